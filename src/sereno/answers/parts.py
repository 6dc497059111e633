"""What is written to the table of answers: Parquet files, one day in each."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.adapters.answer_table import DataFile
from sereno.answers.columns import CHUNK, conform
from sereno.failpoints import failpoint
from sereno.places import Place
from sereno.storage import fsync

FILE_BYTES = 256 << 20
_DAY = 86_400_000_000  # microseconds
_EPOCH = date(1970, 1, 1)


@dataclass
class _Part:
    """A file that is being written."""

    path: Path
    day: date
    stream: pa.NativeFile
    writer: pq.ParquetWriter
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0
    rows: int = 0
    first: int = 1 << 62  # answered_at, microseconds
    last: int = -(1 << 62)


class Parts:
    """Writes rows to files of the table, which nobody sees before the commit. On the disk for good once it is closed.

    Those of a table in an object store grow in `scratch`, a folder of this machine.
    """

    def __init__(self, table: Place, attempt: str, schema: pa.Schema, scratch: Path) -> None:
        self._table, self._attempt, self._schema = table, attempt, schema
        self._folder = table if isinstance(table, Path) else scratch
        self._open: dict[date, _Part] = {}
        self._done: list[DataFile] = []
        self.rows = 0

    def write(self, rows: pa.Table) -> None:
        """Add rows of whatever days; columns that they lack are null."""
        if not rows.num_rows:
            return
        times = rows.column("answered_at").cast(pa.int64()).combine_chunks()
        days = pc.floor(pc.divide(times.cast(pa.float64()), float(_DAY))).cast(pa.int64())
        for number in sorted(pc.unique(days).to_pylist()):
            chosen = pc.equal(days, number)
            some = rows if pc.all(chosen).as_py() else rows.filter(chosen)
            bounds = pc.min_max(times.filter(chosen)).as_py()
            self._write(_EPOCH + timedelta(days=number), some, bounds["min"], bounds["max"])
        self.rows += rows.num_rows

    def _write(self, day: date, rows: pa.Table, first: int, last: int) -> None:
        part = self._open.get(day) or self._new(day)
        part.waiting.append(conform(rows, self._schema))
        part.waiting_rows += rows.num_rows
        part.rows += rows.num_rows
        part.first, part.last = min(part.first, first), max(part.last, last)
        if part.waiting_rows >= CHUNK:
            self._flush(part)
            if part.stream.tell() > FILE_BYTES:
                self._finish(self._open.pop(day))

    def _new(self, day: date) -> _Part:
        folder = self._folder / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._attempt}-{len(self._done) + len(self._open)}.parquet"
        stream = pa.OSFile(str(path), "wb")
        # a dictionary of numbers that all differ would be built for nothing
        texts = [f.name for f in self._schema if pa.types.is_string(f.type)]
        writer = pq.ParquetWriter(stream, self._schema, compression="zstd", use_dictionary=texts)
        part = self._open[day] = _Part(path, day, stream, writer)
        return part

    def _flush(self, part: _Part) -> None:
        if part.waiting:
            part.writer.write_table(pa.concat_tables(part.waiting), row_group_size=CHUNK)
        part.waiting, part.waiting_rows = [], 0

    def _finish(self, part: _Part) -> None:
        self._flush(part)
        part.writer.close()
        part.stream.close()
        name = str(part.path.relative_to(self._folder))
        if isinstance(self._table, Path):
            fsync(part.path)
        else:
            (self._table / name).upload(part.path)
        failpoint("answers_part")
        self._done.append(
            DataFile(
                path=name,
                day=part.day,
                size=part.path.stat().st_size,
                rows=part.rows,
                first=_moment(part.first),
                last=_moment(part.last),
            )
        )
        if not isinstance(self._table, Path):
            part.path.unlink()

    def abandon(self) -> None:
        """Let go of files that were not closed, as they are."""
        for part in self._open.values():
            part.writer.is_open = False  # else it writes the rest, to a disk that is full perhaps
            with contextlib.suppress(OSError):
                part.stream.close()
        self._open.clear()

    def close(self) -> list[DataFile]:
        """The files that were written. Raises OSError, as `write` does."""
        while self._open:
            self._finish(self._open.popitem()[1])
        if isinstance(self._table, Path):
            for folder in {self._table / Path(f.path).parent for f in self._done}:
                fsync(folder)
            if self._done:
                fsync(self._table)
        return self._done


def remove_parts(table: Place, attempt: str) -> None:
    """Remove the files of an attempt that was not committed."""
    for path in table.glob(f"day=*/{attempt}-*.parquet"):
        path.unlink(missing_ok=True)  # another pod may be removing what no version needs


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
