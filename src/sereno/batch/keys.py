"""Duplicate keys among any number of rows, in bounded memory.

Each task leaves the sorted 64-bit hashes of its keys in a file. The files are merged, a few million hashes at a time, which
shows those that occur twice, and only their rows are compared by the keys themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.adapters.executors.spawn import cores
from sereno.checks import one_array
from sereno.exceptions import StorageError
from sereno.places import Place, readable
from sereno.storage import fsync

Hashes = npt.NDArray[np.uint64]
AT_ONCE = 1_000_000  # hashes in memory at a time, of each thread: 8 MB, and as much again while they are sorted
FILES_AT_ONCE = 256  # so that 32 KB and more are read of each
MOST_THREADS, RANGES_EACH = 8, 4
SAMPLED = 4_096  # hashes that tell where ranges begin
MOST_FOUND = 250_000  # repeated ones of a range, until somebody has asked for more
GREATEST = np.uint64(2**64 - 1)
END = 2**64
PRIME = np.uint64(0x100000001B3)
MIX = np.uint64(0x9E3779B97F4A7C15)


def hash_keys(keys: pa.Table) -> Hashes:
    """One 64-bit hash a row. A single whole-number key is its own hash, so two of them never collide."""
    hashes: Hashes | None = None
    for column in keys.columns:
        own = _hash_column(one_array(column))
        hashes = own if hashes is None else (hashes * MIX) ^ (own + (hashes >> np.uint64(29)))
    assert hashes is not None
    return hashes


def _hash_column(array: pa.Array) -> Hashes:
    if pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    if pa.types.is_integer(array.type):
        return np.asarray(array.cast(pa.int64())).view(np.uint64)
    return _hash_texts(array)


def _hash_texts(array: pa.Array) -> Hashes:
    """A polynomial over the bytes of each text, mod 2^64. Collisions cost a comparison, never a wrong verdict."""
    binary = array.cast(pa.large_binary())
    _, offsets_buffer, data_buffer = binary.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[binary.offset : binary.offset + len(binary) + 1]
    lengths = np.diff(offsets)
    hashes = lengths.astype(np.uint64) * MIX
    if data_buffer is None or not lengths.any():
        return hashes
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    data += np.uint64(1)
    powers = np.cumprod(np.full(int(lengths.max()), PRIME, np.uint64))
    starts = offsets[:-1] - offsets[0]
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    data *= powers[place]
    some = lengths > 0
    hashes[some] += np.add.reduceat(data, starts[some])
    return hashes ^ (hashes >> np.uint64(31)) * MIX


def write_hashes(path: Path, hashes: Hashes) -> None:
    """Sort the hashes in place and write them: 8 bytes each, nothing else."""
    hashes.sort()
    path.parent.mkdir(parents=True, exist_ok=True)
    hashes.tofile(path)
    fsync(path)  # the task counts as finished once its result stands, and a lost hash would hide a duplicate


def repeated_hashes(files: Sequence[Path]) -> Generator[Hashes, None, None]:
    """The hashes that occur more than once over all files (each sorted): ascending, each once, some at a time.

    Each file is read from its start to its end, once where there are few and once more for every FILES_AT_ONCE times as many: then
    some are merged to one first, in a folder beside them that is removed at the end. Each core takes its range of
    the hashes, as it is only here that one process looks at every row. Raises StorageError.
    """
    threads = max(1, min(cores(), MOST_THREADS))
    with contextlib.ExitStack() as merged, ThreadPoolExecutor(threads) as pool:
        while len(files) > FILES_AT_ONCE:
            folder = Path(merged.enter_context(tempfile.TemporaryDirectory(dir=files[0].parent, prefix="merged-")))
            lots = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
            files = list(pool.map(_merge, lots, [folder / f"{number}.u64" for number in range(len(lots))]))
        waiting = deque((high, pool.submit(_repeated_in, files, low, high)) for low, high in _ranges(files, threads))
        try:
            while waiting:
                high, future = waiting.popleft()
                found, further = future.result()
                if further < high:
                    waiting.appendleft((high, pool.submit(_repeated_in, files, further, high)))
                if len(found):
                    yield found
        finally:
            pool.shutdown(cancel_futures=True)


def _repeated_in(files: Sequence[Path], low: int, high: int) -> tuple[Hashes, int]:
    """The repeated hashes of a range, at most about MOST_FOUND of them, and up to where they were looked for."""
    found: list[Hashes] = []
    for hashes in _ascending(files, low, high):
        found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        if sum(map(len, found)) > MOST_FOUND:
            return np.concatenate(found), int(hashes[-1]) + 1
    return np.concatenate([np.empty(0, np.uint64), *found]), high


def _ranges(files: Sequence[Path], threads: int) -> list[tuple[int, int]]:
    """What splits the hashes in several ranges a thread, nearly equal ones; where there are few, there is one."""
    total = sum(f.stat().st_size // 8 for f in files)
    count = min(RANGES_EACH * threads, total // AT_ONCE)
    if threads == 1 or count < 2:
        return [(0, END)]
    each = SAMPLED // len(files) + 16
    sample = sorted(value for file in files for value in _sampled(file, each))
    edges = sorted({sample[len(sample) * i // count] for i in range(1, count)} - {0})
    return list(itertools.pairwise([0, *edges, END]))


def _sampled(file: Path, count: int) -> Iterator[int]:
    with file.open("rb") as stream:
        length = os.fstat(stream.fileno()).st_size // 8
        for i in range(min(count, length)):
            yield _hash_at(stream.fileno(), length * i // min(count, length))


def _hash_at(descriptor: int, place: int) -> int:
    return int.from_bytes(os.pread(descriptor, 8, 8 * place), sys.byteorder)


def _merge(files: Sequence[Path], into: Path) -> Path:
    with into.open("wb") as stream:
        for hashes in _ascending(files, 0, END):
            hashes.tofile(stream)
    return into


def _ascending(files: Sequence[Path], low: int, high: int) -> Iterator[Hashes]:
    """All hashes of sorted files from `low` on and below `high`, in order, some at a time: all equal ones at once, of which two
    stand for any more."""
    stretches = [_Stretch(f, max(AT_ONCE // len(files), 1), low, high) for f in files]
    last = np.empty(0, np.uint64)  # equal ones may follow
    while stretches := [s for s in stretches if s.read()]:
        # the least of what each has read up to: beyond it, there may be more in one of the files
        bound = min((s.hashes[-1] for s in stretches if s.left), default=GREATEST)
        hashes = np.concatenate([last, *(s.take(bound) for s in stretches)])
        hashes.sort()
        end = int(np.searchsorted(hashes, hashes[-1]))
        last = hashes[end : end + 2].copy()
        if end:
            yield hashes[:end]
    if len(last):
        yield last


class _Stretch:
    """What is in memory of a range of a sorted file. It is read, not mapped: mapped pages stay in memory and count as ours."""

    def __init__(self, file: Path, most: int, low: int, high: int) -> None:
        self._file, self._most = file, most
        with file.open("rb") as stream:
            whole = range(os.fstat(stream.fileno()).st_size // 8)
            place = partial(_hash_at, stream.fileno())
            self._at = bisect_left(whole, low, key=place) if low else 0
            end = bisect_left(whole, high, key=place) if high < END else len(whole)
        self.left = end - self._at  # not read yet
        self.hashes = np.empty(0, np.uint64)

    def read(self) -> bool:
        """Read on, where less than half is left in memory; whether there is anything."""
        if self.left and len(self.hashes) <= self._most // 2:
            count = min(self._most - len(self.hashes), self.left)
            more = np.fromfile(self._file, np.uint64, count, offset=8 * self._at)
            if len(more) < count:  # it would hide duplicates
                raise StorageError(
                    f"{self._file} became shorter while it was read. Nothing was published; start the run again."
                )
            self._at, self.left = self._at + count, self.left - count
            self.hashes = np.concatenate([self.hashes, more])
        return len(self.hashes) > 0

    def take(self, bound: np.uint64) -> Hashes:
        """Those up to a bound, which are gone then."""
        end = int(np.searchsorted(self.hashes, bound, side="right"))
        taken, self.hashes = self.hashes[:end], self.hashes[end:]
        return taken


def _holds(file: Path, wanted: Hashes) -> bool:
    """Whether a sorted file has any of these hashes: eight bytes a row tell, before its part is read."""
    hashes = np.fromfile(file, np.uint64)
    at = np.searchsorted(hashes, wanted)
    return bool(len(hashes)) and bool((hashes[np.minimum(at, len(hashes) - 1)] == wanted).any())


def rows_with(part: Place, keys: Sequence[str], wanted: Hashes) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(position in the part, key) of the rows whose hash is wanted."""
    position = 0
    for batch in pq.ParquetFile(readable(part)).iter_batches(columns=list(keys), use_threads=False):
        table = pa.Table.from_batches([batch]).select(list(keys))
        hashes = hash_keys(table)
        at = np.searchsorted(wanted, hashes)
        hits = np.flatnonzero(wanted[np.minimum(at, len(wanted) - 1)] == hashes)
        if len(hits):
            columns = [pc.take(one_array(c), pa.array(hits)).to_pylist() for c in table.columns]
            yield from zip((position + hits).tolist(), zip(*columns, strict=True), strict=True)
        position += table.num_rows


Found = dict[int, list[tuple[int, tuple[Any, ...]]]]  # part index → (position in the part, key)


def duplicates(
    parts: Sequence[Place], files: Sequence[Path], keys: Sequence[str], *, enough: int | None = None
) -> tuple[Found, bool]:
    """Rows whose key occurs more than once, in the order of the source; and whether these are all of them.

    With `enough`, so many repeated hashes are looked up at a time, and the search ends with the first lot that holds a
    duplicate: a feed that came twice must not fill the memory with its keys.
    """
    with contextlib.closing(repeated_hashes(files)) as lots:
        for wanted, every_one in _in_lots(lots, enough):
            found = _repeated(parts, files, keys, wanted)
            if found:
                return found, every_one
    return {}, True


def _in_lots(found: Iterator[Hashes], size: int | None) -> Iterator[tuple[Hashes, bool]]:
    """The same hashes, so many at a time (None: all at once); and whether these are the last."""
    waiting = np.concatenate([np.empty(0, np.uint64), *found]) if size is None else np.empty(0, np.uint64)
    for more in found:
        waiting = np.concatenate([waiting, more])
        while size is not None and len(waiting) > size:
            yield waiting[:size], False
            waiting = waiting[size:]
    if len(waiting):
        yield waiting, True


def _repeated(parts: Sequence[Place], files: Sequence[Path], keys: Sequence[str], wanted: Hashes) -> Found:
    candidates = {}
    seen: dict[tuple[Any, ...], int] = {}
    for index, (part, file) in enumerate(zip(parts, files, strict=True)):
        rows = list(rows_with(part, keys, wanted)) if _holds(file, wanted) else []
        if rows:
            candidates[index] = rows
            for _, key in rows:
                seen[key] = seen.get(key, 0) + 1
    chosen = {i: [(p, k) for p, k in rows if seen[k] > 1] for i, rows in candidates.items()}
    return {i: rows for i, rows in chosen.items() if rows}
