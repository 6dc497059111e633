"""Duplicate keys among any number of rows, in bounded memory.

Each task leaves the sorted 64-bit hashes of its keys in a file. Hashes that occur twice are looked for range by range,
a few million at a time, and only their rows are compared by the keys themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.checks import one_array
from sereno.storage import fsync

Hashes = npt.NDArray[np.uint64]
AT_ONCE = 2_000_000  # hashes in memory at a time: 16 MB
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


def repeated_hashes(files: Sequence[Path]) -> Hashes:
    """The hashes that occur more than once over all files (each sorted); sorted, each once."""
    found = [np.empty(0, np.uint64)]
    if not files:
        return found[0]
    bounds = _bounds(files)
    # where each file is cut; files are read, not mapped: mapped pages stay in memory and count as ours
    cuts = [[0, *np.searchsorted(_read(f), bounds).tolist(), f.stat().st_size // 8] for f in files]
    for lot in range(len(bounds) + 1):
        together = np.concatenate([_read(f, cut[lot], cut[lot + 1]) for f, cut in zip(files, cuts, strict=True)])
        together.sort()
        found.append(np.unique(together[1:][together[1:] == together[:-1]]))
    return np.concatenate(found)


def _read(file: Path, start: int = 0, end: int | None = None) -> Hashes:
    return np.fromfile(file, np.uint64, -1 if end is None else end - start, offset=8 * start)


def _bounds(files: Sequence[Path]) -> Hashes:
    """What splits the hashes in nearly equal lots of AT_ONCE, by a sample of each file."""
    total = sum(f.stat().st_size // 8 for f in files)
    lots = -(-total // AT_ONCE)
    if lots < 2:
        return np.empty(0, np.uint64)
    step = max(1, total // (lots * 1000))
    sample = np.sort(np.concatenate([_read(f)[::step] for f in files]))
    return np.unique(sample[[len(sample) * i // lots for i in range(1, lots)]])


def rows_with(part: Path, keys: Sequence[str], wanted: Hashes) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(position in the part, key) of the rows whose hash is wanted."""
    position = 0
    for batch in pq.ParquetFile(part).iter_batches(columns=list(keys), use_threads=False):
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
    parts: Sequence[Path], files: Sequence[Path], keys: Sequence[str], *, enough: int | None = None
) -> tuple[Found, bool]:
    """Rows whose key occurs more than once, in the order of the source; and whether these are all of them.

    With `enough`, so many repeated hashes are looked up at a time, and the search ends with the first lot that holds a
    duplicate: a feed that came twice must not fill the memory with its keys.
    """
    wanted = repeated_hashes(files)
    step = enough or max(len(wanted), 1)
    for start in range(0, len(wanted), step):
        found = _repeated(parts, keys, wanted[start : start + step])
        if found:
            return found, start + step >= len(wanted)
    return {}, True


def _repeated(parts: Sequence[Path], keys: Sequence[str], wanted: Hashes) -> Found:
    candidates = {}
    seen: dict[tuple[Any, ...], int] = {}
    for index, part in enumerate(parts):
        rows = list(rows_with(part, keys, wanted))
        if rows:
            candidates[index] = rows
            for _, key in rows:
                seen[key] = seen.get(key, 0) + 1
    chosen = {i: [(p, k) for p, k in rows if seen[k] > 1] for i, rows in candidates.items()}
    return {i: rows for i, rows in chosen.items() if rows}
