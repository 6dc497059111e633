"""Files as sources: which there are, what rows they hold, and how a worker reads its own stretch of one."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sereno.adapters.fetched import FetchedFile, row_group_spans, stretches
from sereno.exceptions import ChangedError, InputError, SourceError
from sereno.object_path import Object, ObjectPath
from sereno.places import Place, is_url, place_of
from sereno.schema import Column, RowType
from sereno.values import Refused, admit

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
VALID = "Parquet (.parquet), CSV (.csv, .csv.gz), JSON lines (.jsonl, .ndjson), or a Delta table"
READ_ROWS, READ_BYTES = 131_072, 32 << 20  # of a Parquet file at once
COLUMN_BYTES = 1 << 20  # of one column that are read at once from an object store
LINE_BYTES = 64 << 10  # likewise, of lines
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one file."""

    kind: Literal["parquet", "text", "json"]  # text: a Parquet file of CSV's texts
    path: str  # of a file of this machine, or an object's URL
    row_groups: tuple[int, ...] | None = None  # of a Parquet file; None: all
    span: tuple[int, int] | None = None  # bytes of a file of JSON lines, from a line's start to a line's end
    partition: dict[str, str | None] = field(default_factory=dict)  # columns that stand in the path
    stamp: str = ""  # of the file when the run was planned
    digest: str = ""  # of the content, where the run spooled it itself
    size: int = -1  # bytes of an object when the run was planned, and its tag: no other one is read in its place
    tag: str = ""

    @property
    def identity(self) -> str:
        """What tells its rows from others without reading them."""
        return self.digest or self.stamp

    def check_unchanged(self) -> None:
        """Raise ChangedError where the file is no longer the one that was planned, SourceError where there is none.

        Of an object every read says so.
        """
        if is_url(self.path):
            return
        try:
            is_same = not self.stamp or self.stamp == stamp(self.stamp.split(":", 2)[2], Path(self.path))
        except FileNotFoundError as error:
            raise SourceError(
                f"{self.path} is not there on host {socket.gethostname()}, and was when the run was planned. Every node needs "
                "the source at the same path; or it was removed since: start the run again when it is there."
            ) from error
        if not is_same:
            raise ChangedError(
                f"{self.path} changed while it was read. Nothing was published; start the run again when it is whole."
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[Path | FetchedFile]:
        """The file, or the object that was planned. Raises SourceError where there is none, and StorageError."""
        place = place_of(self.path)
        if isinstance(place, Path):
            yield place
            return
        then = datetime.fromtimestamp(0, UTC)  # nobody asks
        known = Object(size=self.size, tag=self.tag, modified_at=then) if self.size >= 0 else None
        with open_object(place, known) as fetched:
            yield fetched


def open_object(place: ObjectPath, known: Object | None = None) -> FetchedFile:
    """An object to be read. Raises SourceError where there is none, and StorageError."""
    try:
        return FetchedFile(place, known)
    except FileNotFoundError as error:
        raise SourceError(f"{place} is not there any more. Start the run again when it is.") from error


def format_of(files: Collection[Place], source: str) -> str:
    suffixes = {"".join(f.suffixes[-2:] if f.suffix == ".gz" else f.suffixes[-1:]) or f.name for f in files}
    found = {FORMATS.get(s.lower()) for s in suffixes}
    kind = found.pop() if len(found) == 1 else None
    if kind is None:
        shown = ", ".join(sorted(suffixes)[:5])
        raise SourceError(f"The source {source} holds {shown}; valid is one kind of {VALID}.")
    return kind


def partition_of(file: Place) -> dict[str, str | None]:
    """The columns that stand in a path as folders `name=value`."""
    found: dict[str, str | None] = {}
    for part in file.parent.parts:
        name, equals, value = part.partition("=")
        if equals and name.isidentifier():
            found[name] = None if value == HIVE_NULL else unquote(value)
    return found


def names_of(files: Collection[Place]) -> list[str]:
    """What each file of a source is called: its path below what they share, with the folders that are columns.

    Not the whole path: a project that moves has the same input. Moved to another day's folder, a file has other rows.
    """
    parts = [f.absolute().parts for f in files]
    first, last = min(one[:-1] for one in parts), max(one[:-1] for one in parts)
    shared = [one for one, _ in itertools.takewhile(lambda both: both[0] == both[1], zip(first, last, strict=False))]
    columns = [p for p in shared if "=" in p]
    return ["/".join([*columns, *one[len(shared) :]]) for one in parts]


def stamp(name: str, file: Path) -> str:
    """What tells a file from another or a changed one without reading it: name, size, time of change."""
    with file.open("rb") as stream:  # a file server is asked; else this host may tell what it remembers
        stat = os.fstat(stream.fileno())
    return f"{stat.st_size}:{stat.st_mtime_ns}:{name}"


def stamp_of_object(name: str, known: Object) -> str:
    """As `stamp`: name, size, tag. The tag changes with the content; whether also without depends on the store."""
    return f"{known.size}:{known.tag}:{name}"


def open_parquet(file: str | Path | FetchedFile) -> pq.ParquetFile:
    """A Parquet file to be read, of this machine or of an object store. Raises SourceError, StorageError."""
    if isinstance(file, str) and isinstance(place := place_of(file), ObjectPath):
        file = open_object(place)
    try:
        if isinstance(file, FetchedFile):
            # not a whole column at once, which would have to be there before the first row is
            return pq.ParquetFile(file, pre_buffer=False, buffer_size=COLUMN_BYTES)
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        shown = file.path if isinstance(file, FetchedFile) else file
        raise SourceError(
            f"{shown} cannot be read as Parquet: {_first_line(error).rstrip('.')}. It may be truncated or still being written; "
            "have it written again, then start the run again."
        ) from error


def read_piece(piece: Piece, row: RowType, batch_rows: int) -> Iterator[pa.RecordBatch | list[bytes]]:
    """The rows of a piece in batches, with the declared columns only. Raises SourceError where it cannot be read."""
    piece.check_unchanged()
    yield from (_read_lines if piece.kind == "json" else _read_parquet)(piece, row, batch_rows)
    piece.check_unchanged()


def _read_parquet(piece: Piece, row: RowType, batch_rows: int) -> Iterator[pa.RecordBatch]:
    names = [c.name for c in row.columns]
    with piece.open() as source:
        file = open_parquet(source)
        there = set(file.schema_arrow.names)
        groups = list(range(file.num_row_groups)) if piece.row_groups is None else list(piece.row_groups)
        constants = {n: t for n, t in piece.partition.items() if n in names and n not in there}
        read = [n for n in names if n in there]
        if isinstance(source, FetchedFile):
            source.expect(row_group_spans(file.metadata, groups, read))
        batches = file.iter_batches(
            batch_size=_read_rows(file, batch_rows), row_groups=groups, columns=read, use_threads=False
        )
        for batch in _whole_batches(batches, piece):
            whole = with_constants(batch, row, constants, piece) if constants else batch
            for start in range(0, whole.num_rows, batch_rows):
                yield whole.slice(start, batch_rows)


def _whole_batches(batches: Iterator[pa.RecordBatch], piece: Piece) -> Iterator[pa.RecordBatch]:
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
        yield batch


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
        value = _constant(columns[name], text, piece)
        batch = batch.append_column(name, pa.array([value] * batch.num_rows, columns[name].arrow_type))
    return batch


def _constant(column: Column, text: str | None, piece: Piece | None) -> Any:
    # bounds and choices are checked later, row by row, so that a row that breaks one is a reject as anywhere else
    bare = Column(name=column.name, kind=column.kind, nullable=True, precision=column.precision, scale=column.scale)
    try:
        return admit(bare, text, "text")
    except Refused as reason:
        where = f" in {piece.path}" if piece else ""
        raise InputError(f"The folder name {column.name}={text}{where} does not fit the row type: {reason}.") from None


def _read_lines(piece: Piece, row: RowType, batch_rows: int) -> Iterator[list[bytes]]:
    constants = {c.name: _constant(c, piece.partition[c.name], piece) for c in row.columns if c.name in piece.partition}
    # in front, so that a value in the row itself counts more
    prefix = msgspec.json.encode(constants)[:-1] + b"," if constants else b""
    with piece.open() as source, _stream(source) as stream:
        start, end = piece.span or (0, _size(source))
        if isinstance(source, FetchedFile):
            source.expect(stretches(start, end))
        stream.seek(start)
        lines: list[bytes] = []
        while stream.tell() < end:
            line = stream.readline().removeprefix(b"\xef\xbb\xbf").strip()
            if prefix and line.startswith(b"{"):
                line = prefix + line[1:]
            if line:
                lines.append(line)
            if len(lines) >= batch_rows:
                yield lines
                lines = []
        if lines:
            yield lines


def _stream(source: Path | FetchedFile) -> IO[bytes]:
    return source.open("rb") if isinstance(source, Path) else cast(IO[bytes], io.BufferedReader(source, LINE_BYTES))


def _size(source: Path | FetchedFile) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.known.size


def spans(file: Path | FetchedFile, size: int) -> Iterator[tuple[int, int]]:
    """Stretches of about `size` bytes of a file of lines, each from a line's start to a line's end."""
    total = _size(file)
    start = 0
    with _stream(file) as stream:
        while start < total:
            stream.seek(min(start + size, total))
            stream.readline()
            end = min(stream.tell(), total)
            yield start, end
            start = end


def read_csv(
    file: Place, row: RowType, known: Object | None = None
) -> Iterator[tuple[pa.RecordBatch, list[tuple[str, str]]]]:
    """Batches of a CSV file, every declared column as text, with the broken lines found so far as (text, reason).

    `known`: what a store has said of an object; it is asked where nobody knows.
    """
    broken: list[tuple[str, str]] = []
    unclosed: list[str] = []  # quotes that swallow all that follows

    def on_broken(line: Any) -> str:
        if "\n" in line.text and line.text.count('"') % 2:
            unclosed.append(f"row {line.number}")
            return "error"
        reason = f"row {line.number}: has {line.actual_columns} columns instead of {line.expected_columns}"
        broken.append((str(line.text), reason))
        return "skip"

    if isinstance(file, ObjectPath):
        known = open_object(file, known).known  # the same one to the end
    header = _csv_header(file, known)
    delimiter = _delimiter(header, row)
    names = _split(header, delimiter)
    wanted = [c.name for c in row.columns if c.name in names]
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"{file}: column {name!r} is there twice. Rename or leave out one of them.")
    read = list(dict.fromkeys([*wanted, names[-1]]))  # the last one tells an unclosed quote
    last: str | None = None
    try:
        with (
            contextlib.ExitStack() as at_the_end,
            pacsv.open_csv(
                _csv_source(file, known, at_the_end),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=8 << 20, column_names=names, skip_rows=1),
                parse_options=pacsv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_broken
                ),
                convert_options=pacsv.ConvertOptions(
                    include_columns=read,
                    column_types={n: pa.string() for n in read},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ) as reader,
        ):
            for batch in reader:
                found, broken[:] = list(broken), []
                last = batch.column(names[-1])[-1].as_py() if batch.num_rows else last
                yield batch.select(wanted), found
            if broken:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema).select(wanted), broken
        if last is not None and "\n" in last and _last_byte(file, known) != b'"':
            unclosed.append("its last row")
            raise pa.ArrowInvalid
    except (pa.ArrowInvalid, OSError) as error:
        why = f"a quote that opens in {unclosed[0]} never closes" if unclosed else _first_line(error)
        raise SourceError(f"{file} cannot be read as CSV: {why}. Have it written again, whole and as UTF-8.") from error


def _csv_source(file: Place, known: Object | None, at_the_end: contextlib.ExitStack) -> Any:
    """What pyarrow reads; it unpacks a file by its name."""
    if isinstance(file, Path):
        return file
    fetched = at_the_end.enter_context(open_object(file, known))
    fetched.expect(stretches(0, fetched.known.size))
    stream = pa.PythonFile(fetched, mode="r")
    return pa.CompressedInputStream(stream, "gzip") if file.suffix.lower() == ".gz" else stream


def _last_byte(file: Place, known: Object | None) -> bytes:
    tail = b""
    with _open_text(file, known) as stream:
        while chunk := stream.read(1 << 20):
            tail = (tail + chunk).rstrip()[-1:]
    return tail


@contextlib.contextmanager
def _open_text(file: Place, known: Object | None) -> Iterator[IO[bytes]]:
    import gzip

    with _stream(file if isinstance(file, Path) else open_object(file, known)) as stream:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if file.suffix.lower() == ".gz" else stream


def _split(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))]


def _csv_header(file: Place, known: Object | None) -> str:
    with _open_text(file, known) as stream:
        try:
            header = stream.readline().decode("utf-8-sig").strip()
        except (UnicodeDecodeError, OSError, EOFError) as error:
            raise SourceError(f"{file} is no text in UTF-8 ({error}). Have it written again as UTF-8.") from error
    if not header:
        raise SourceError(f"{file} is empty: a CSV file starts with a line of column names.")
    return header


def _delimiter(header: str, row: RowType) -> str:
    """The separator by which the header holds most declared columns; a tie is a comma's."""
    declared = {c.name for c in row.columns}
    return max(",;\t|", key=lambda d: len(declared.intersection(_split(header, d))))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
