"""A snapshot as an index wants it: each key's bytes and the JSON of its prediction, in the order of the bytes.

What fits into memory is sorted there. Of anything larger the rows go to files on the disk first, each of which has the keys
of one range and is sorted in its turn; so memory stays the same however many rows there are, and in whatever order.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.checks import one_array
from sereno.exceptions import IndexingError
from sereno.lookup.keys import KeyCodec
from sereno.rows import AnswerEncoder

if TYPE_CHECKING:
    from sereno.snapshots import Part, Snapshot

Chunk = tuple[list[bytes], list[bytes]]  # keys, and the prediction of each

CHUNK_ROWS = 50_000  # of what is handed on at a time
CHUNK_BYTES = 8 << 20
READ_ROWS = 4_096  # at a time: a large text that often occurs takes little of a file, and all of its size in memory
BATCH_ROWS = 65_536  # of what is sorted first, to be cut in ranges
BATCH_BYTES = 8 << 20
AT_ONCE = 32 << 20  # bytes of columns that one range is to have; twice as much is sorted in memory at most
MOST_RANGES = 64  # files that are written at the same time; a range that is still too large is split again
SAMPLE = 65_536  # keys by which the ranges are chosen, about


class Entries:
    """The entries of one snapshot. Raises IndexingError, here and while they are read, where a part is not as it was."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._parts = _Parts(snapshot)
        self.keys = KeyCodec.of(self._parts.schema, snapshot.keys)
        self._outputs = [name for name in self._parts.schema.names if name not in snapshot.keys]
        self._encoder = AnswerEncoder(self._outputs)

    def chunks(self, scratch: Path) -> Iterator[Chunk]:
        """All of them, a chunk at a time. The folder `scratch` is made where it is needed, and is gone at the end."""
        try:
            yield from self._sorted(self._parts, scratch)
        finally:
            if scratch.exists():
                shutil.rmtree(scratch)

    def _sorted(self, source: _Source, scratch: Path) -> Iterator[Chunk]:
        batches = _gathered(source.batches())
        held: list[pa.Table] = []
        for table in batches:
            held.append(table)
            if sum(t.nbytes for t in held) > 2 * AT_ONCE:
                break
        else:
            if held:
                table = pa.concat_tables(_drained(held)).combine_chunks()
                yield from self._chunks(table)
            return
        bounds = self._bounds(source, held)
        spools = [_Spool(scratch / f"{i:02}.arrow", source.schema) for i in range(len(bounds) + 1)]
        scratch.mkdir(parents=True, exist_ok=True)
        self._spread(chain(_drained(held), batches), bounds, spools)
        for spool in spools:
            if bounds:
                yield from self._sorted(spool, scratch / spool.path.stem)
            else:  # every row has the same key, which cannot be: whoever builds the index finds it out
                yield from self._chunks(pa.concat_tables(spool.batches()))
            spool.remove()

    def _bounds(self, source: _Source, first: Sequence[pa.Table]) -> list[bytes]:
        """The keys with which all ranges but the first begin, so that they are about equally large."""
        size = sum(t.nbytes for t in first) / sum(t.num_rows for t in first) * source.rows
        ranges = min(MOST_RANGES, max(2, -(-int(size) // AT_ONCE)))
        sample = sorted(chain.from_iterable(map(self.keys.encode_table, source.sample(self.keys.names))))
        # without the least, so that each range has fewer rows than all
        return sorted({sample[len(sample) * i // ranges] for i in range(1, ranges)} - {sample[0]})

    def _spread(self, batches: Iterable[pa.Table], bounds: Sequence[bytes], spools: Sequence[_Spool]) -> None:
        for batch in batches:
            keys = self.keys.encode_array(batch)
            order = self._order(batch, keys)
            keys, rows = keys.take(order), batch.take(order)
            cuts = [bisect.bisect_left(keys, bound, key=_as_bytes) for bound in bounds]
            for spool, (start, end) in zip(spools, pairwise([0, *cuts, rows.num_rows]), strict=True):
                if start < end:
                    spool.write(rows.slice(start, end - start))
        for spool in spools:
            spool.close()

    def _chunks(self, table: pa.Table) -> Iterator[Chunk]:
        keys = self.keys.encode_array(table)
        order = self._order(table, keys)
        step = min(CHUNK_ROWS, max(1, CHUNK_BYTES * table.num_rows // max(1, table.nbytes)))
        for start in range(0, len(order), step):
            chosen = order.slice(start, step)
            rows = table.take(chosen)
            predictions = self._encoder.encode_columns([_values(rows.column(name)) for name in self._outputs])
            yield keys.take(chosen).to_pylist(), predictions

    def _order(self, table: pa.Table, keys: pa.Array) -> pa.Array:
        """The positions of the rows, by the bytes of their keys."""
        if self.keys.single == "int":  # its bytes are in the order of the numbers, which are sorted ten times as fast
            return pa.array(np.argsort(np.asarray(one_array(table.column(self.keys.names[0])))))
        return pc.sort_indices(keys)


class _Source(Protocol):
    """Rows that are to be sorted."""

    schema: pa.Schema
    rows: int

    def batches(self) -> Iterator[pa.Table]: ...

    def sample(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of some of its rows, from everywhere in it."""
        ...


class _Parts:
    """The published parts of a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        if not snapshot.parts:
            raise IndexingError(f"Version {snapshot.number} of model {snapshot.model!r} has no rows to look up.")
        self._verify()
        with self._reading(snapshot.parts[0]):
            found = pq.read_schema(snapshot.parts[0].path)
        self.schema: pa.Schema = pa.schema([(field.name, field.type) for field in found])
        self.rows = snapshot.rows

    def _verify(self) -> None:
        for part in self._snapshot.parts:
            with self._reading(part), part.path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != part.sha256:
                    raise self._unreadable(part, "is damaged: its SHA-256 is not that of what was published")

    def batches(self) -> Iterator[pa.Table]:
        for part in self._snapshot.parts:
            with self._reading(part), pq.ParquetFile(part.path, pre_buffer=False) as file:
                if [(field.name, field.type) for field in file.schema_arrow] != [(f.name, f.type) for f in self.schema]:
                    raise self._unreadable(part, "has other columns than the parts before it")
                for group in range(file.num_row_groups):
                    known = file.metadata.row_group(group)
                    fitting = BATCH_BYTES * known.num_rows // max(1, known.total_byte_size)
                    for batch in file.iter_batches(min(READ_ROWS, max(1, fitting)), [group], use_threads=False):
                        yield pa.Table.from_arrays(batch.columns, schema=self.schema)

    def sample(self, names: Sequence[str]) -> Iterator[pa.Table]:
        step = max(1, self.rows // SAMPLE)  # of so many rows, one
        owed = step
        for part in self._snapshot.parts:
            with self._reading(part), pq.ParquetFile(part.path, pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    # the first rows of a group stand for all of it: to reach the others, these must be read anyway
                    rows = file.metadata.row_group(group).num_rows
                    owed += rows
                    if wanted := min(rows, owed // step):
                        owed -= wanted * step
                        batch = next(file.iter_batches(wanted, [group], columns=list(names), use_threads=False))
                        yield pa.Table.from_batches([batch])

    @contextlib.contextmanager
    def _reading(self, part: Part) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._unreadable(part, "is missing") from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, or this user's rights: nothing is known about the part
            raise self._unreadable(part, f"is damaged ({str(error).rstrip('.')})") from error

    def _unreadable(self, part: Part, what: str) -> IndexingError:
        snapshot = self._snapshot
        return IndexingError(
            f"Version {snapshot.number} of model {snapshot.model!r} cannot be looked up: {part.path} {what}. Lookups answer as "
            f"before. Restore the file from a backup, run data date {snapshot.data_date} again, or roll back."
        )


class _Spool:
    """A file with the rows of one range of keys."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.rows = 0
        self._file: Any = None
        self._writer: Any = None

    def write(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._file = pa.OSFile(str(self.path), "wb")
            self._writer = pa.ipc.new_stream(self._file, self.schema)
        self._writer.write_table(rows)
        self.rows += rows.num_rows

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()

    def batches(self) -> Iterator[pa.Table]:
        if self.rows:
            with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def sample(self, names: Sequence[str]) -> Iterator[pa.Table]:
        step = max(1, self.rows // SAMPLE)
        for batch in _gathered(self.batches()):
            yield batch.select(list(names)).take(pa.array(np.arange(0, batch.num_rows, step)))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _gathered(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small batches together, since each is sorted and cut in ranges."""
    held: list[pa.Table] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= BATCH_ROWS or size >= BATCH_BYTES:
            yield pa.concat_tables(held).combine_chunks()
            held, rows, size = [], 0, 0
    if rows:
        yield pa.concat_tables(held).combine_chunks()


def _drained(tables: list[pa.Table]) -> Iterator[pa.Table]:
    while tables:
        yield tables.pop()


def _as_bytes(scalar: Any) -> Any:
    return scalar.as_py()


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The Python values of a column: those of `to_pylist`, ten times as fast where that makes each date by itself."""
    array = one_array(column)
    if pa.types.is_date32(array.type):
        days: list[Any] = array.to_numpy(zero_copy_only=False).astype(object).tolist()
        return days
    if pa.types.is_timestamp(array.type) and array.type.unit == "us" and array.type.tz == "UTC":
        times = array.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False).astype(object).tolist()
        return [time and time.replace(tzinfo=UTC) for time in times]
    values: list[Any] = array.to_pylist()
    return values
