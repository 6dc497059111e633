"""Two outputs, key by key, in memory that does not grow with them.

Both are cut into lots by the hashes of their keys, so that equal keys are in lots of the same number; each lot is small
enough to be joined in memory. Outputs of one lot stay where they are; larger ones are copied into files of lots first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.batch.keys import MIX, hash_keys
from sereno.places import Place, readable

LOT_ROWS = 500_000  # of each side, about
MOST_LOTS = 400  # files that are open at once

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lot:
    """Some of the keys: the rows that both have, in the same order, and the keys that only one has."""

    before: pa.Table
    now: pa.Table
    only_before: pa.Table  # keys alone
    only_now: pa.Table


def joined(
    before: Sequence[Place], now: Sequence[Place], keys: Sequence[str], folder: Path, *, rows: int
) -> Iterator[Lot]:
    """The parts of two outputs of at most `rows` rows each, lot by lot. Lots are copied into the folder."""
    lots = min(max(1, -(-rows // LOT_ROWS)), MOST_LOTS)
    if lots == 1:
        yield _lot(_whole(before), _whole(now), keys)
        return
    sides = [_in_lots(parts, keys, folder / name, lots) for parts, name in ((before, "before"), (now, "now"))]
    for number in range(lots):
        files = [side[number] for side in sides]
        yield _lot(_read(files[0]), _read(files[1]), keys)
        for file in files:
            file.unlink()


def _whole(parts: Sequence[Place]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(readable(part)).read() for part in parts])


def _in_lots(parts: Sequence[Place], keys: Sequence[str], folder: Path, lots: int) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{number}.arrow" for number in range(lots)]
    schema = pq.read_schema(readable(parts[0]))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(file), schema, options=options)) for file in files]
        for part in parts:
            for batch in pq.ParquetFile(readable(part)).iter_batches():
                table = pa.Table.from_batches([batch]).cast(schema)
                # whole numbers are their own hashes: keys that are all even would use half of the lots
                mixed = (hash_keys(table.select(keys)) * MIX) >> np.uint64(32)
                numbers = (mixed % np.uint64(lots)).astype(np.int64)
                order = np.argsort(numbers, kind="stable")
                bounds = np.searchsorted(numbers[order], np.arange(lots + 1))
                table = table.take(pa.array(order))
                for number in np.flatnonzero(np.diff(bounds)).tolist():
                    start, end = int(bounds[number]), int(bounds[number + 1])
                    writers[number].write_table(table.slice(start, end - start))
    return files


def _read(file: Path) -> pa.Table:
    with pa.ipc.open_stream(str(file)) as stream:
        return stream.read_all()


def _lot(before: pa.Table, now: pa.Table, keys: Sequence[str]) -> Lot:
    """Rows by key. Each side has a key once: duplicates were dealt with before either was an output."""
    names = _unused(keys)
    sides = [
        table.select(keys).append_column(name, pa.array(np.arange(table.num_rows)))
        for table, name in zip((before, now), names, strict=True)
    ]
    # one type for both: one may have been written when a key was declared nullable
    sides[1] = sides[1].cast(pa.schema([*(sides[0].schema.field(k) for k in keys), sides[1].schema.field(names[1])]))
    found = sides[0].join(sides[1], keys=list(keys), join_type="full outer").select(names)
    found = found.sort_by([(name, "ascending") for name in names]).combine_chunks()  # threads leave any order
    left, right = found.column(0), found.column(1)
    pairs = found.filter(pa.compute.and_(left.is_valid(), right.is_valid()))
    return Lot(
        before=before.take(pairs.column(0)),
        now=now.take(pairs.column(1)),
        only_before=before.select(keys).take(left.filter(right.is_null())),
        only_now=now.select(keys).take(right.filter(left.is_null())),
    )


def _unused(keys: Sequence[str]) -> list[str]:
    """Names of two columns that no key has."""
    prefix = "_" * (1 + max(len(key) for key in keys))
    return [f"{prefix}before", f"{prefix}now"]
