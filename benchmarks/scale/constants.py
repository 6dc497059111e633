"""What one file, row group, task or part costs the process that drives a run: the constants of docs/architecture/scale.md.

`python -m benchmarks.scale.constants FOLDER NAME COUNT` measures one of them in a process of its own, and prints a line of JSON: seconds,
and bytes of memory, for COUNT of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.scale.driver import MODEL, memory
from benchmarks.workload import FEATURES, KEY

GROUPS = 8  # row groups of a file
HASHES = 10_000  # keys of a task
STATS = {"numRecords": 1_000_000, "minValues": {KEY: 10**9, "band": 0}, "maxValues": {KEY: 2 * 10**9, "band": 9}}
COLUMNS = pa.schema([(KEY, pa.int64()), ("probability", pa.float64()), ("band", pa.int64())])


def files(folder: Path, count: int) -> Callable[[], Any]:
    """Footers of Parquet files, with 24 columns and GROUPS row groups each, become a plan; with it, a task for each file."""
    from sereno.batch import plan
    from sereno.loader import load_model

    rows = 100 * GROUPS
    table = pa.table({KEY: np.arange(rows), **{name: np.random.default_rng(1).random(rows) for name in FEATURES}})
    pq.write_table(table, folder / "one.parquet", row_group_size=100)
    paths = [shutil.copy(folder / "one.parquet", folder / f"{i:06d}.parquet") for i in range(count)]
    plan.SMALLEST_TASK = plan.LARGEST_TASK = rows
    model = load_model(MODEL)
    return lambda: list(plan._parquet(model, [(Path(p), {}) for p in paths], "", 2).tasks)


def results(folder: Path, count: int) -> Callable[[], Any]:
    """Results of tasks, as they come from a worker elsewhere: decoded, and kept until the end."""
    import msgspec

    from sereno.adapters.executors.local import Answer
    from sereno.batch.parts import WrittenPart
    from sereno.batch.tasks import TaskResult

    def answer(index: int) -> bytes:
        part = WrittenPart(
            path=f"{folder}/{index:064d}", rows=10**6, size=10**7, sha256="a" * 64, stats=json.dumps(STATS)
        )
        seconds = dict.fromkeys(("read", "check", "predict", "write", "profile"), 0.1)
        file = f"{folder}/{index:040d}.u64"
        result = TaskResult(
            index=index, key="b" * 64, part=part, rows_in=10**6, rejects=0, reasons={}, rejects_file=None, keys_file=file,
            profile={}, seconds=seconds,
        )  # fmt: skip
        return msgspec.msgpack.encode(Answer(result=result))

    answers = [answer(index) for index in range(count)]
    return lambda: [msgspec.msgpack.decode(one, type=Answer).result for one in answers]


def keys(folder: Path, count: int) -> Callable[[], Any]:
    """The search for duplicates among the hashes that tasks left: HASHES of each."""
    from sereno.batch.keys import repeated_hashes, write_hashes

    random = np.random.default_rng(1)
    paths = [folder / f"{i:06d}.u64" for i in range(count)]
    for path in paths:
        write_hashes(path, random.integers(0, 2**64 - 1, HASHES, np.uint64))
    return lambda: sum(len(found) for found in repeated_hashes(paths))


def _publish(table: Path, version: int, count: int) -> Any:
    from sereno.adapters import delta

    attempt = f"2026-05-01-{version:06x}"
    stats = json.dumps(STATS)
    added = [
        delta.AddedFile(path=f"{attempt}/part-{i:05d}-0123abcd-4567ef.parquet", size=10**7, stats=stats)
        for i in range(count)
    ]
    metadata = {"kind": "publish", "sha256": ",".join(["a" * 64] * count)}
    return delta.commit(
        table,
        expected=version - 1,
        schema=COLUMNS,
        files=added,
        metadata=metadata,
        partition=None,
        partition_value=None,
    )


def commit(folder: Path, count: int) -> Callable[[], Any]:
    """A Delta commit of so many parts, in place of as many."""
    for version in range(2):
        _publish(folder / "table", version, count)
    return lambda: _publish(folder / "table", 2, count)


def history(folder: Path, count: int) -> Callable[[], Any]:
    """What was published so far, as a run reads it: ten snapshots of so many parts each."""
    from sereno.adapters import delta

    for version in range(10):
        _publish(folder / "table", version, count)
    return lambda: list(delta.metadata_of_commits(folder / "table"))


def opening(folder: Path, count: int) -> Callable[[], Any]:
    """delta-rs opens a table that has had so many parts since its first commit, and holds a tenth of them."""
    from deltalake import DeltaTable

    for version in range(10):
        _publish(folder / "table", version, count // 10)
    return lambda: DeltaTable(folder / "table")


def profiles(folder: Path, count: int) -> Callable[[], Any]:
    """Profiles of tasks, 23 features and two outputs, read from their files and merged."""
    import msgspec

    from sereno.batch.profile import Profile, merged
    from sereno.batch.profiling import ProfileBuilder
    from sereno.loader import load_model

    columns = load_model(MODEL).inputs.features
    builder = ProfileBuilder(columns, sampled=True)
    builder.add(pa.table({name: np.random.default_rng(1).random(100_000) for name in FEATURES}), {})
    for index in range(count):
        (folder / f"{index}.json").write_bytes(msgspec.json.encode(builder.build()))

    def merge() -> Profile:
        waiting: list[Profile] = []
        for index in range(count):
            waiting.append(msgspec.json.decode((folder / f"{index}.json").read_bytes(), type=Profile))
            if len(waiting) == 64:
                waiting = [merged(waiting)]
        return merged(waiting)

    return merge


MEASURED = {one.__name__: one for one in (files, results, keys, commit, history, opening, profiles)}


def main(folder: str, name: str, count: int) -> None:
    work = MEASURED[name](Path(folder), count)
    before, start = memory(), time.perf_counter()
    held = work()
    seconds, after = time.perf_counter() - start, memory()
    del held
    tracemalloc.start()
    held = work() if name in ("files", "results") else None
    kept = tracemalloc.get_traced_memory()[0]
    print(json.dumps({"seconds": seconds, "grown_mb": after["peak"] - before["now"], "kept_bytes": kept}))
    del held


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
