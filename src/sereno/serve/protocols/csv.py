"""CSV bodies, in and out (RFC 4180): every value is text here, and an empty field differs from an empty text in quotes.

Python's own reader takes both for the same, and Arrow's is made for files; the dialect is that of a run's CSV files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from sereno.checks import check_table
from sereno.schema import Column
from sereno.serve.protocols.positional import Names, Positions
from sereno.serve.wire import RequestError, Row

if TYPE_CHECKING:
    from sereno.serve.live import Live

Cells = list[str | None]  # of one line; None: nothing stands between the commas

FIELD = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"(?!")([^,\r\n]*)|([^",\r\n][^,\r\n]*)|)(,|\r\n|\r|\n|\Z)')
NUMBERS = b"0123456789.-+eE,\r\n"
NEGATIVE_ZERO = re.compile(rb"-0(?:[,\r\n]|\Z)")  # the whole number 0 in JSON, which has no sign
MANY = 32  # lines that are worth being checked by column
LINE_END = re.compile(r"\r\n|\r|\n")

_encode = msgspec.json.Encoder(decimal_format="string").encode


class BrokenLineError(ValueError):
    """What is wrong with a line. `line` counts from 0."""

    def __init__(self, line: int, says: str) -> None:
        super().__init__(says)
        self.line = line


def parse(text: str) -> list[Cells]:
    """The cells of each line that is not blank. Raises BrokenLineError."""
    if '"' not in text:
        return [[cell or None for cell in line.split(",")] for line in LINE_END.split(text) if line]
    lines: list[Cells] = []
    cells: Cells = []
    at = 0
    while at < len(text):
        found = FIELD.match(text, at)
        if found is None:
            raise BrokenLineError(len(lines), "has a quote that never closes")
        quoted, rest, bare, end = found.groups()
        cells.append(bare if quoted is None else quoted.replace('""', '"') + rest)
        at = found.end()
        if end != ",":
            if cells != [None]:
                lines.append(cells)
            cells = []
    if cells:  # the text ends with a comma
        lines.append([*cells, None])
    return lines


def parse_line(line: str) -> Cells:
    """The cells of a text that is one line, blank or not. Raises BrokenLineError."""
    parsed = parse(line)
    if len(parsed) > 1:
        raise BrokenLineError(0, "has a line break inside")
    return parsed[0] if parsed else [None]


def text_of(body: bytes) -> str:
    """The text of a body. Raises RequestError (400)."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(400, "The body is no text in UTF-8.") from None


def check_cells(lines: Sequence[Cells], most: int) -> None:
    """Refuse a text that is longer than so many bytes (413)."""
    if any(
        cell is not None and len(cell) > most // 4 and len(cell.encode()) > most for cells in lines for cell in cells
    ):
        raise RequestError(413, f"A text in the request is longer than {most:,} bytes.")


def numbers(positions: Positions, names: Names | None, body: bytes) -> list[Row] | None:
    """The rows of lines that hold nothing but numbers, which CSV and JSON write alike: the JSON decoder reads them.

    None where there is anything else, or a line does not fit; `rows_of` has the same verdicts, and knows why.
    """
    lines = body.strip(b"\r\n")
    if not lines or lines.translate(None, NUMBERS) or (b"-0" in lines and NEGATIVE_ZERO.search(lines)):
        return None
    if any(column.kind == "decimal" for column in positions.columns.values()):
        return None  # JSON's numbers have fewer digits
    if names is None:
        try:
            names = positions.by_position(lines.partition(b"\n")[0].count(b",") + 1)
        except RequestError:
            return None
    lines = lines.replace(b"\r\n", b"\n")
    if b"\r" in lines:
        return None  # it ends a line too, which a blank in JSON does not
    lists = b"[[%b]]" % lines.replace(b"\n", b"],[")
    return positions.decode(b"csv:" + ",".join(names).encode(), lambda: names, lists)


def rows_of(live: Live, names: Names, lines: Sequence[Cells]) -> list[Row | RequestError]:
    """The row of each line, or why it has none; every line has as many cells as there are names."""
    if len(lines) < MANY:
        return [_row_of(live, names, line) for line in lines]
    # by column, as a run does it: the same verdicts, and a tenth of the time, which is the event loop's
    places = {name: i for i, name in enumerate(names)}
    present = [column for column in live.row.columns if column.name in places]
    texts = {c.name: pa.array([line[places[c.name]] for line in lines], pa.string()) for c in present}
    checked = check_table(live.row, pa.table(texts), "text", columns=present, explain=lambda position: "")
    values: list[Sequence[Any]] = []
    for column in live.row.columns:
        fits = checked.table.num_rows
        values.append(checked.table[column.name].to_pylist() if column.name in places else [column.default] * fits)
    rows = iter(zip(*values, strict=True))
    refused = {position for position, _ in checked.refused}
    return [_row_of(live, names, line) if i in refused else next(rows) for i, line in enumerate(lines)]


def _row_of(live: Live, names: Names, line: Cells) -> Row | RequestError:
    try:
        return live.rows_of([dict(zip(names, line, strict=True))], "text")[0]
    except RequestError as error:
        return error


def line_of(columns: Sequence[Column], answer: Sequence[Any]) -> str:
    """An answer as a line without its end: texts in quotes, nothing for null, as in exports."""
    line = ",".join([_cell(column, value) for column, value in zip(columns, answer, strict=True)])
    return line or '""'  # readers pass over blank lines


def blank_line(columns: Sequence[Column]) -> str:
    """A line with every cell empty."""
    return line_of(columns, [None] * len(columns))


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    kind = column.kind
    if kind == "str":
        return _quoted(value)
    if kind in ("list", "row"):
        return _quoted(_encode(value).decode())
    text = _encode(value).decode()
    return text[1:-1] if text[0] == '"' else text  # dates and decimals need no quotes


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
