"""A snapshot as an index wants it: each key's bytes and the JSON of its prediction, in the order of the bytes.

What fits into memory is sorted there. Of anything larger the rows go to files on the disk first, each of which has the keys
of one range and is sorted in its turn; so memory stays the same however many rows there are, and in whatever order.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from sereno.lookup.pointer import AS_BEFORE
from sereno.places import Place, readable
from sereno.rows import AnswerEncoder

if TYPE_CHECKING:
    from sereno.snapshots import Part, Snapshot

Chunk = tuple[list[bytes], list[bytes]]  # keys, and the prediction of each

CHUNK_ROWS = 50_000  # of what is handed on at a time
CHUNK_BYTES = 8 << 20
READ_ROWS = 4_096  # at a time
READ_BYTES = 16 << 20  # of them in memory, if every text were as long as the longest that the file has but once
STREAM_BYTES = 1 << 20  # of a column that is being read
BATCH_ROWS = 65_536  # of what is sorted first, to be cut in ranges
BATCH_BYTES = 8 << 20
AT_ONCE = 32 << 20  # bytes of columns that one range is to have; twice as much is sorted in memory at most
MOST_RANGES = 64  # files that are written at the same time; a range that is still too large is split again
SAMPLE = 65_536  # keys by which the ranges are chosen, about


def _go_on() -> None:
    pass


class Entries:
    """The entries of one snapshot. Raises IndexingError, here and while they are read, where a part is not as it was.

    `look` is called again and again meanwhile; what it raises ends the work.
    """

    def __init__(self, snapshot: Snapshot, look: Callable[[], None] = _go_on) -> None:
        self._look = look
        self._parts = _Parts(snapshot, look)
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
            self._look()
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

    def __init__(self, snapshot: Snapshot, look: Callable[[], None]) -> None:
        self._snapshot, self._look = snapshot, look
        if not snapshot.parts:
            raise IndexingError(f"Version {snapshot.number} of model {snapshot.model!r} has no rows to look up.")
        self._verify()
        with self._reading(snapshot.parts[0]):
            found = pq.read_schema(readable(snapshot.parts[0].path))
        self.schema: pa.Schema = pa.schema([(field.name, field.type) for field in found])
        self.rows = snapshot.rows

    def _verify(self) -> None:
        for part in self._snapshot.parts:
            self._look()
            with self._reading(part), part.path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != part.sha256:  # type: ignore[arg-type]
                    raise self._unreadable(part, "is damaged: its SHA-256 is not that of what was published")

    def batches(self) -> Iterator[pa.Table]:
        for part in self._snapshot.parts:
            with self._reading(part), _PartFile(part.path) as file:
                if [(field.name, field.type) for field in file.schema] != [(f.name, f.type) for f in self.schema]:
                    raise self._unreadable(part, "has other columns than the parts before it")
                for group in range(file.groups):
                    for batch in file.batches(group, self.schema.names):
                        self._look()
                        yield pa.Table.from_arrays(batch.columns, schema=self.schema)

    def sample(self, names: Sequence[str]) -> Iterator[pa.Table]:
        step = max(1, self.rows // SAMPLE)  # of so many rows, one
        owed = step
        for part in self._snapshot.parts:
            with self._reading(part), _PartFile(part.path) as file:
                for group in range(file.groups):
                    # the first rows of a group stand for all of it: to reach the others, these must be read anyway
                    owed += file.rows(group)
                    wanted = min(file.rows(group), owed // step)
                    owed -= wanted * step
                    for batch in file.batches(group, names) if wanted else ():
                        self._look()
                        yield pa.Table.from_batches([batch.slice(0, wanted)])
                        wanted -= min(wanted, batch.num_rows)
                        if not wanted:
                            break

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
            f"Version {snapshot.number} of model {snapshot.model!r} cannot be looked up: {part.path} {what}. {AS_BEFORE} "
            f"Restore the file from a backup, run data date {snapshot.data_date} again, or roll back."
        )


class _PartFile:
    """A part that is being read, in bounded memory."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._file = pq.ParquetFile(readable(path), pre_buffer=False, buffer_size=STREAM_BYTES)
        self.schema: pa.Schema = self._file.schema_arrow
        self.groups: int = self._file.num_row_groups

    def __enter__(self) -> _PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, group: int) -> int:
        rows: int = self._file.metadata.row_group(group).num_rows
        return rows

    def batches(self, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        rows = self._rows_at_once(group)
        yield from self._file.iter_batches(rows, [group], columns=list(names), use_threads=False)

    def _rows_at_once(self, group: int) -> int:
        """A text that often occurs takes little of a file, and all of its size in memory each time."""
        known = self._file.metadata.row_group(group)
        fitting = min(READ_ROWS, max(1, BATCH_BYTES * known.num_rows // max(1, known.total_byte_size)))
        size = 1  # of a row, in bytes
        for column in map(known.column, range(known.num_columns)):
            if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                texts = -(-column.num_values // max(1, known.num_rows))
                size += texts * self._longest(column.path_in_schema, group, fitting)
        rows: int = min(fitting, max(1, READ_BYTES // size))
        return rows

    def _longest(self, column: str, group: int, rows: int) -> int:
        """Bytes of the longest text in a column's dictionary, which comes whole with the first text."""
        with pq.ParquetFile(
            readable(self._path),
            pre_buffer=False,
            buffer_size=STREAM_BYTES,
            read_dictionary=[column],
            metadata=self._file.metadata,
        ) as file:
            for batch in file.iter_batches(rows, [group], columns=[column], use_threads=False):
                texts = _leaf(batch.column(0)).dictionary
                if len(texts):
                    longest: int = pc.max(pc.binary_length(texts)).as_py()
                    return longest
        return 0


def _leaf(array: Any) -> Any:
    """What is innermost in an array of lists and structs, of which one column was read."""
    while pa.types.is_nested(array.type):
        array = array.flatten()
        if isinstance(array, list):
            (array,) = array
    return array


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
