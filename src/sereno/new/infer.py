"""Row types guessed from data: what `sereno new --from-data` writes down.

A guess is held against the data by the same checks as a run's rows, so that a written file scores the data it is from.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sereno.adapters.files import FORMATS, VALID, open_parquet, read_csv
from sereno.checks import check_column, one_array
from sereno.exceptions import InputError, SourceError
from sereno.schema import ABSENT, Column, Kind, RowType
from sereno.values import INT_TEXT, Refused, admit

LOOKED_AT = 200_000  # rows that a guess is made from
MOST_CHOICES = 12  # distinct texts that may be a Literal
ROWS_PER_CHOICE = 5  # each of them must stand for this many rows on average
LONGEST_CHOICE = 40
LEADING_ZERO = re.compile(r"[+-]?0[0-9]")  # a code, such as a postcode, that is no number
NAMED_LIKE_A_KEY = re.compile(r"(?i)^(id|key|uuid)$|(_|-|\s)(id|key|uuid)$")


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One column of the data."""

    column: Column | None  # None: no row type can hold it
    comment: str = ""  # what the reader of the row type should know
    values: pa.Array | None = None  # canonical, of the rows that were looked at

    @property
    def has_default(self) -> bool:
        return self.column is not None and self.column.default is not ABSENT


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What is guessed of a file of data."""

    columns: tuple[tuple[str, Guess], ...]  # by name, in the file's order
    key: str
    rows: int  # looked at
    all_rows: bool  # the file has no more

    def feature(self) -> Iterator[tuple[Column, pa.Array]]:
        for name, guess in self.columns:
            if guess.column is not None and guess.values is not None and name != self.key:
                yield guess.column, guess.values


def guess(file: Path) -> Guesses:
    """Guess the columns of a file, and which is the key.

    Raises SourceError where the file is missing, empty or of an unknown kind; InputError where no column can be a key.
    """
    if not file.is_file():
        what = "is a folder; give one file of it" if file.is_dir() else "is missing: there is no such file"
        raise SourceError(f"The data {file} {what}.")
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise SourceError(
            f"The data {file} is of an unknown kind ({file.suffix or 'no suffix'}). Valid are {_valid()}."
        )
    read: dict[str, Callable[[Path], tuple[dict[str, Guess], int, bool]]] = {
        "parquet": _of_parquet,
        "csv": _of_csv,
        "jsonl": _of_json_lines,
    }
    found, rows, all_rows = read[kind](file)
    if not rows:
        raise SourceError(
            f"The data {file} holds no rows, so there is nothing to guess from. Give a file that has some."
        )
    key = _key(file, found)
    if not any(g.column for name, g in found.items() if name != key):
        raise InputError(
            f"The data {file} has a key ({key}), but no other column that a row type can hold: no feature."
        )
    found[key] = replace(found[key], column=replace(_column(found[key]), role="key", choices=()), comment="")
    return Guesses(columns=tuple(found.items()), key=key, rows=rows, all_rows=all_rows)


def _valid() -> str:
    return VALID.split(", or a Delta table")[0]


def _column(guess_: Guess) -> Column:
    assert guess_.column is not None
    return guess_.column


def _key(file: Path, found: dict[str, Guess]) -> str:
    """The column that tells rows apart: by its name if there are several, else the first."""
    able = [
        name
        for name, g in found.items()
        if g.column is not None and g.values is not None and g.column.kind in ("int", "str")
        if not g.column.nullable and g.column.default is ABSENT and pc.count_distinct(g.values).as_py() == len(g.values)
    ]
    if not able:
        raise InputError(
            f"No column of {file} can be the key: each whole-number or text column has duplicates or missing values. "
            "Add one that identifies a row, such as customer_id, or its line's number. If several together do, write "
            "the model file by hand and mark each of them `Key[…]`."
        )
    return min(able, key=lambda name: (not NAMED_LIKE_A_KEY.search(name), able.index(name)))


def _names_differ(file: Path, names: list[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{file} has two columns named {twice[0]!r}. Rename one where the file is written.")


# Parquet


def _of_parquet(file: Path) -> tuple[dict[str, Guess], int, bool]:
    source = open_parquet(file)
    _names_differ(file, source.schema_arrow.names)
    batches, rows = [], 0
    for batch in source.iter_batches(batch_size=65_536):
        batches.append(batch)
        rows += batch.num_rows
        if rows >= LOOKED_AT:
            break
    table = pa.Table.from_batches(batches, schema=source.schema_arrow)
    guesses = {name: _of_array(name, one_array(table.column(name))) for name in table.schema.names}
    return guesses, rows, rows == source.metadata.num_rows


def _of_array(name: str, array: pa.Array) -> Guess:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count == len(array):
        return Guess(column=None, comment="only missing values")
    column = _of_type(name, array.type)
    if column is None:
        return Guess(column=None, comment=_unfit(array.type))
    return _held(column, array)


def _held(column: Column, array: pa.Array) -> Guess:
    """The column with the nulls and choices of its values; or without values that it cannot hold."""
    values, bad = check_column(replace(column, nullable=True), array)
    comment = ""
    if bad is not None and bad.any():
        if column.kind != "float":
            return Guess(column=None, comment=f"{int(bad.sum())} values that {column.kind} cannot hold exactly")
        comment = f"{int(bad.sum())} infinite values, whose rows are rejects"
    missing = values.null_count - (int(bad.sum()) if bad is not None else 0)
    column = replace(column, nullable=missing > 0)
    if column.kind == "str":
        column, comment = _with_choices(column, values)
    return Guess(column=column, comment=comment, values=values)


def _with_choices(column: Column, values: pa.Array) -> tuple[Column, str]:
    distinct = pc.unique(values.drop_null())
    few = len(distinct) <= min(MOST_CHOICES, (len(values) - values.null_count) // ROWS_PER_CHOICE)
    choices = sorted(distinct.to_pylist()) if few else []
    if not choices or len(max(choices, key=len)) > LONGEST_CHOICE:
        return column, ""
    return replace(column, choices=tuple(choices)), "inferred; str, if there can be others"


def _of_type(name: str, found: pa.DataType) -> Column | None:
    """The column of a type, nested ones with nullable items; None: none can hold it."""
    types = pa.types
    if types.is_integer(found):
        return Column(name=name, kind="int")
    if types.is_floating(found):
        return Column(name=name, kind="float")
    if types.is_boolean(found):
        return Column(name=name, kind="bool")
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return Column(name=name, kind="str")
    if types.is_date(found):
        return Column(name=name, kind="date")
    if types.is_timestamp(found):
        return Column(name=name, kind="date" if found.tz is None else "datetime")
    if types.is_decimal(found) and 0 < found.precision <= 38 and found.scale >= 0:
        return Column(name=name, kind="decimal", precision=found.precision, scale=found.scale)
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        item = _of_type(f"{name}[]", found.value_type)
        return item and Column(name=name, kind="list", item=replace(item, nullable=True))
    if types.is_struct(found) and found.num_fields:
        fields = [_of_type(f.name, f.type) for f in found]
        if all(f is not None and f.name.isidentifier() for f in fields):
            return _nested(name, [replace(f, nullable=True) for f in fields if f is not None])
    return None


def _nested(name: str, columns: list[Column]) -> Column:
    return Column(name=name, kind="row", row=RowType(name="", cls=dict, style="typeddict", columns=tuple(columns)))


def _unfit(found: pa.DataType) -> str:
    return f"{found}, which no row type holds"


# CSV: everything is text


def _of_csv(file: Path) -> tuple[dict[str, Guess], int, bool]:
    names = _header(file)
    _names_differ(file, names)
    texts = RowType(
        name="Texts",
        cls=dict,
        style="typeddict",
        columns=tuple(Column(name=n, kind="str", nullable=True) for n in names if n),
    )
    batches: list[pa.RecordBatch] = []
    rows, all_rows = 0, True
    for batch, _ in read_csv(file, texts):
        if rows >= LOOKED_AT:
            all_rows = False
            break
        batches.append(batch)
        rows += batch.num_rows
    if not rows:
        return {}, 0, True
    table = pa.Table.from_batches(batches).slice(0, LOOKED_AT)
    guesses = {n: _of_texts(n, one_array(table.column(n))) if n else Guess(column=None) for n in names}
    return guesses, table.num_rows, all_rows and table.num_rows == rows


def _header(file: Path) -> list[str]:
    """Column names by the separator that gives most of them."""
    try:
        with gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            line = stream.readline().decode("utf-8-sig").strip()
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(f"{file} is no text in UTF-8 ({error}). Have it written again as UTF-8.") from error
    if not line:
        raise SourceError(f"The data {file} is empty: a CSV file starts with a line of column names.")
    readings = [next(csv.reader(io.StringIO(line), delimiter=d)) for d in ",;\t|"]
    return [name.strip() for name in max(readings, key=len)]


def _of_texts(name: str, array: pa.Array) -> Guess:
    """The first kind that every text is one of."""
    if array.null_count == len(array):
        return Guess(column=None, comment="only missing values")
    distinct = pc.unique(array.drop_null())
    for kind in ("int", "float", "bool", "date", "datetime"):
        column = Column(name=name, kind=kind, nullable=True)
        if kind in ("int", "float") and not _are_numbers(distinct, kind):
            continue
        if check_column(column, distinct, "text")[1] is None:
            values, _ = check_column(column, array, "text")
            return Guess(column=replace(column, nullable=array.null_count > 0), values=values)
    guess_ = _held(Column(name=name, kind="str"), array)
    return replace(guess_, comment=guess_.comment or _times_without_zone(name, distinct))


def _are_numbers(distinct: pa.Array, kind: str) -> bool:
    """Texts like 007 are codes; whole numbers beyond 64 bits are text rather than floats that lose their end."""
    if any(LEADING_ZERO.match(text) for text in distinct.to_pylist()):
        return False
    return kind == "int" or not all(INT_TEXT.fullmatch(text.strip()) for text in distinct.to_pylist())


def _times_without_zone(name: str, distinct: pa.Array) -> str:
    column = Column(name=name, kind="datetime")
    try:
        for text in distinct[:100].to_pylist():
            admit(column, f"{text.strip()}Z", "text")
    except Refused:
        return ""
    return "times without a zone; with one (2026-05-01T00:00:00Z) write datetime"


# JSON lines: value by value


def _of_json_lines(file: Path) -> tuple[dict[str, Guess], int, bool]:
    rows: list[dict[str, Any]] = []
    all_rows = True
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if len(rows) >= LOOKED_AT:
                all_rows = False
                break
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SourceError(f"{file}, line {number}, is no JSON: {error}. Each line is one object.") from None
            if not isinstance(row, dict):
                raise SourceError(
                    f"{file}, line {number}, is no JSON object. Each line is one object with a row's columns."
                )
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _of_values(name, [row.get(name, ABSENT) for row in rows]) for name in names}, len(rows), all_rows


def _of_values(name: str, given: list[Any]) -> Guess:
    values = [None if v is ABSENT else v for v in given]
    column = _of_json(name, values)
    if column is None:
        some = sorted({type(v).__name__ for v in values if v is not None})
        mixed = f"{' and '.join(some)} values that are of no one kind"
        return Guess(column=None, comment=mixed if some else "only missing values")
    try:
        array = pa.array([admit(replace(column, nullable=True), v, "json") for v in values], column.arrow_type)
    except Refused as reason:
        return Guess(column=None, comment=str(reason))
    guess_ = _held(column, array)
    if guess_.column is not None and any(v is ABSENT for v in given):
        column = replace(guess_.column, nullable=True, default=None)
        note = "; ".join(part for part in ("absent in some rows", guess_.comment) if part)
        return replace(guess_, column=column, comment=note)
    return guess_


def _of_json(name: str, values: Iterable[Any]) -> Column | None:
    """The column of JSON values; None where they are of several kinds."""
    some = [v for v in values if v is not None]
    nullable = any(v is None for v in values)
    kinds = {type(v) for v in some}
    if kinds in ({bool}, {int}, {float}, {int, float}):
        kind: Kind = "bool" if bool in kinds else "float" if float in kinds else "int"
        return Column(name=name, kind=kind, nullable=nullable)
    if kinds == {str}:
        for kind in ("date", "datetime"):
            if all(_admits(Column(name=name, kind=kind), v) for v in dict.fromkeys(some)):
                return Column(name=name, kind=kind, nullable=nullable)
        return Column(name=name, kind="str", nullable=nullable)
    if kinds == {list}:
        item = _of_json(f"{name}[]", [i for v in some for i in v])
        return item and Column(name=name, kind="list", nullable=nullable, item=item)
    if kinds == {dict}:
        names = dict.fromkeys(n for v in some for n in v)
        columns = [_of_json(n, [v.get(n) for v in some]) for n in names]
        if names and all(set(v) == set(names) for v in some) and all(c and c.name.isidentifier() for c in columns):
            return replace(_nested(name, [c for c in columns if c is not None]), nullable=nullable)
    return None


def _admits(column: Column, value: Any) -> bool:
    try:
        admit(column, value, "json")
    except Refused:
        return False
    return True
