"""Files as sources: which there are, what rows they hold, and how a worker reads its own stretch of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sereno.exceptions import InputError, SourceError
from sereno.schema import Column, RowType
from sereno.values import Refused, admit

if TYPE_CHECKING:
    from sereno.batch.tasks import Piece

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".gz": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
VALID = "Parquet (.parquet), CSV (.csv, .csv.gz), JSON lines (.jsonl, .ndjson), or a Delta table"
READ_ROWS, READ_BYTES = 131_072, 32 << 20  # of a Parquet file at once
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(source: str) -> list[Path]:
    """The data files of a path, a folder (with what is below it) or a glob, sorted. Raises SourceError if there is none."""
    path = Path(source)
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file() and not _hidden(f.relative_to(path))]
    elif any(c in source for c in "*?["):
        import glob

        files = [Path(f) for f in glob.glob(source, recursive=True) if os.path.isfile(f)]
        files = [f for f in files if not f.name.startswith((".", "_"))]
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise SourceError(
            f"The source {source} is missing: there is no such file, or the folder or pattern holds none. "
            "If it arrives later, start the run again then; if its place is another, mend source= or [values]."
        )
    return sorted(files)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def format_of(files: list[Path], source: str) -> str:
    found = {FORMATS.get(f.suffix.lower()) for f in files}
    kind = found.pop() if len(found) == 1 else None
    if kind is None:
        shown = ", ".join(sorted({f.suffix or f.name for f in files})[:5])
        raise SourceError(f"The source {source} holds {shown}; valid is one kind of {VALID}.")
    return kind


def partition_of(file: Path) -> dict[str, str | None]:
    """The columns that stand in a path as folders `name=value`."""
    found: dict[str, str | None] = {}
    for part in file.parent.parts:
        name, equals, value = part.partition("=")
        if equals and name.isidentifier():
            found[name] = None if value == HIVE_NULL else unquote(value)
    return found


def stamp(file: Path) -> str:
    """What tells a file from another or a changed one without reading it: name, size, time of change."""
    stat = file.stat()
    return f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}"


def open_parquet(file: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{file} cannot be read as Parquet: {_first_line(error)}. It may be truncated or still being written; "
            "have it written again, then start the run again."
        ) from error


def read_piece(piece: Piece, row: RowType, batch_rows: int) -> Iterator[pa.RecordBatch | list[bytes]]:
    """The rows of a piece in batches, with the declared columns only. Raises SourceError where it cannot be read."""
    if piece.kind == "json":
        yield from _read_lines(piece, batch_rows)
        return
    names = [c.name for c in row.columns]
    file = open_parquet(piece.path)
    there = set(file.schema_arrow.names)
    groups = list(range(file.num_row_groups)) if piece.row_groups is None else list(piece.row_groups)
    constants = {n: t for n, t in piece.partition.items() if n in names and n not in there}
    batches = file.iter_batches(
        batch_size=_read_rows(file, batch_rows), row_groups=groups, columns=[n for n in names if n in there], use_threads=False
    )
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{piece.path} broke off while it was read: {_first_line(error)}. It may be truncated or damaged; "
                "have it written again, then start the run again."
            ) from error
        if batch is None:
            return
        whole = with_constants(batch, row, constants, piece) if constants else batch
        for start in range(0, whole.num_rows, batch_rows):
            yield whole.slice(start, batch_rows)


def _read_rows(file: pq.ParquetFile, batch_rows: int) -> int:
    """Rows read at once: a long stretch decodes faster than several short ones, as long as it stays under READ_BYTES."""
    metadata = file.metadata
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    fits = READ_BYTES * metadata.num_rows // max(size, 1)
    return int(max(batch_rows, min(fits, READ_ROWS)))


def with_constants(
    batch: pa.RecordBatch, row: RowType, constants: dict[str, str | None], piece: Piece | None = None
) -> pa.RecordBatch:
    """The batch with the columns that stand in its path."""
    columns = {c.name: c for c in row.columns}
    for name, text in constants.items():
        column = columns[name]
        # bounds and choices are checked later, row by row, so that a row that breaks one is a reject as anywhere else
        bare = Column(name=name, kind=column.kind, nullable=True, precision=column.precision, scale=column.scale)
        try:
            value = admit(bare, text, "text")
        except Refused as reason:
            where = f" in {piece.path}" if piece else ""
            raise InputError(f"The folder name {name}={text}{where} does not fit the row type: {reason}.") from None
        batch = batch.append_column(name, pa.array([value] * batch.num_rows, column.arrow_type))
    return batch


def _read_lines(piece: Piece, batch_rows: int) -> Iterator[list[bytes]]:
    start, end = piece.span or (0, os.path.getsize(piece.path))
    with open(piece.path, "rb") as stream:
        stream.seek(start)
        lines: list[bytes] = []
        while stream.tell() < end:
            line = stream.readline().strip()
            if line:
                lines.append(line)
            if len(lines) >= batch_rows:
                yield lines
                lines = []
        if lines:
            yield lines


def spans(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """Stretches of about `size` bytes of a file of lines, each from a line's start to a line's end."""
    total = file.stat().st_size
    start = 0
    with file.open("rb") as stream:
        while start < total:
            stream.seek(min(start + size, total))
            stream.readline()
            end = min(stream.tell(), total)
            yield start, end
            start = end


def read_csv(file: Path, row: RowType) -> Iterator[tuple[pa.RecordBatch, list[tuple[str, str]]]]:
    """Batches of a CSV file, every declared column as text, with the broken lines found so far as (text, reason)."""
    broken: list[tuple[str, str]] = []

    def on_broken(line: Any) -> str:
        reason = f"line {line.number}: has {line.actual_columns} columns instead of {line.expected_columns}"
        broken.append((str(line.text), reason))
        return "skip"

    header = _csv_header(file)
    delimiter = _delimiter(header, row)
    names = [n.strip().strip('"') for n in header.split(delimiter)]
    wanted = [c.name for c in row.columns if c.name in names]
    try:
        with pacsv.open_csv(
            file,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=8 << 20),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_broken
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted,
                column_types={n: pa.string() for n in wanted},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        ) as reader:
            for batch in reader:
                found, broken[:] = list(broken), []
                yield batch, found
            if broken:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema), broken
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{file} cannot be read as CSV: {_first_line(error)}. Have it written again as UTF-8."
        ) from error


def _csv_header(file: Path) -> str:
    import gzip

    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        try:
            header = stream.readline().decode("utf-8-sig").strip()
        except (UnicodeDecodeError, OSError) as error:
            raise SourceError(f"{file} is no text in UTF-8 ({error}). Have it written again as UTF-8.") from error
    if not header:
        raise SourceError(f"{file} is empty: a CSV file starts with a line of column names.")
    return header


def _delimiter(header: str, row: RowType) -> str:
    """The separator by which the header holds most declared columns; a tie is a comma's."""
    declared = {c.name for c in row.columns}
    return max(",;\t|", key=lambda d: len(declared & {n.strip().strip('"') for n in header.split(d)}))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
