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

Hashes = npt.NDArray[np.uint64]
AT_ONCE = 4_000_000  # hashes in memory at a time: 32 MB
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


def repeated_hashes(files: Sequence[Path]) -> Hashes:
    """The hashes that occur more than once over all files (each sorted); sorted, each once."""
    arrays = [np.load(f, mmap_mode="r") for f in files]
    total = sum(len(a) for a in arrays)
    found = []
    for low, high in _ranges(arrays, total):
        inside = [a[np.searchsorted(a, low) : None if high is None else np.searchsorted(a, high)] for a in arrays]
        together = np.concatenate([np.asarray(i) for i in inside])
        together.sort()
        found.append(np.unique(together[1:][together[1:] == together[:-1]]))
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def _ranges(arrays: Sequence[Hashes], total: int) -> Iterator[tuple[np.uint64, np.uint64 | None]]:
    """Ranges [low, high) that split the hashes in nearly equal lots, by a sample of each file."""
    if not total:
        return
    lots = -(-total // AT_ONCE)
    step = max(1, total // (lots * 1000))
    sample = np.sort(np.concatenate([np.asarray(a[::step]) for a in arrays]))
    bounds = np.unique(sample[[len(sample) * i // lots for i in range(1, lots)]]) if lots > 1 else sample[:0]
    edges = [np.uint64(0), *bounds]
    yield from zip(edges, [*edges[1:], None], strict=True)


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
