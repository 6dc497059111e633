"""A run of many small tasks in one process: the seconds of its stages, and the memory of the process after each.

`python -m benchmarks.scale.driver TASKS SOURCE HOME [EXECUTOR]` prints a line of JSON. Tasks are cut small, else so many of them would take
thousands of millions of rows; a process that drives does not see how many rows a task has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import FEATURES, FOLDER, KEY

ROWS = 100  # of a task
GROUPS = 100  # row groups, so tasks, of a file
MODEL = FOLDER / "models" / "light.py"


def make_rows(tasks: int, folder: Path) -> None:
    """Files whose row groups have ROWS rows, as many as there are to be tasks."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(tasks)
    features = {name: random.uniform(0, 100, ROWS * GROUPS) for name in FEATURES}
    for first in range(0, tasks, GROUPS):
        rows = ROWS * min(GROUPS, tasks - first)
        keys = np.arange(rows) + first * ROWS
        table = pa.table({KEY: keys, **{name: column[:rows] for name, column in features.items()}})
        pq.write_table(table, folder / f"{first:07d}.parquet", row_group_size=ROWS)


def memory() -> dict[str, float]:
    """Megabytes of this process: now, and the most there ever were."""
    said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: round(int(said[key].split()[0]) / 1024, 1) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


class Watcher:
    """Notes the memory, and the processor time so far, when a stage begins."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    def stage(self, name: str) -> None:
        self.stages[name] = memory() | {"cpu": round(time.process_time(), 3)}

    def rows(self, done: int) -> None:
        pass

    def total(self, rows: int) -> None:
        pass


def main(tasks: int, source: str, home: str, kind: str = "local") -> None:
    from sereno.adapters.executors.choosing import make_executor
    from sereno.batch import plan
    from sereno.batch.run import run
    from sereno.config import load_settings
    from sereno.loader import load_model

    plan.SMALLEST_TASK = plan.LARGEST_TASK = ROWS
    given = {"executor": kind, "workers": "1", "models.light.source": f"{source}/*.parquet"}
    settings = load_settings(Path(home), home=Path(home), overrides=given, environ={})
    model = load_model(MODEL)
    watcher = Watcher()
    report = run(model, settings, make_executor(model, settings), watcher=watcher)
    watcher.stage("end")
    if report.tasks != tasks:
        raise SystemExit(f"{report.tasks} tasks instead of {tasks}")
    print(json.dumps({"tasks": tasks, "seconds": report.seconds, "memory": watcher.stages}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
