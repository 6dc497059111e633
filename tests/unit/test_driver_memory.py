"""The memory of the process that drives a run hardly depends on the number of tasks. (Of whole runs: `make bench ARGS="scale"`.)"""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters.executors.local import LocalExecutor
from sereno.batch import plan
from sereno.batch.run import run
from sereno.config import load_settings
from sereno.loader import load_model
from sereno.scoring import open_scorer

MODEL = """\
from typing import TypedDict
from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    {columns}

class Out(TypedDict):
    y: float

model = Model("m", inputs=Row, outputs=Out, source="rows.parquet")

@model.load
def load() -> None:
    return None

@model.predict
def predict(nothing: None, rows: list[Row]) -> list[Out]:
    return [{{"y": row["x0"]}} for row in rows]
"""
COLUMNS = 10
ROWS = 50  # of a task, whose profile has as many bins for each column: 25 KB
MOST = 8_000  # bytes a task; a result with its profile would take many times as many


def peak(folder: Path, tasks: int) -> int:
    """The most that Python held in a run of so many tasks, beyond what it held before."""
    home = folder / str(tasks)
    home.mkdir()
    (home / "sereno.toml").touch()
    file = home / f"with_{tasks}_tasks.py"  # a module of its own
    file.write_text(MODEL.format(columns="\n    ".join(f"x{i}: float" for i in range(COLUMNS))))
    rows = {f"x{c}": [float(i * (c + 1)) for i in range(ROWS * tasks)] for c in range(COLUMNS)}
    pq.write_table(pa.table({"id": range(ROWS * tasks), **rows}), home / "rows.parquet", row_group_size=ROWS)
    model, settings = load_model(file), load_settings(home, environ={})
    gc.collect()
    tracemalloc.start()
    try:
        report = run(model, settings, LocalExecutor(1, lambda: open_scorer(model, settings)))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert report.tasks == tasks
        assert report.state == "published"


def test_memory_hardly_depends_on_the_number_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SMALLEST_TASK", ROWS)
    monkeypatch.setattr(plan, "LARGEST_TASK", ROWS)
    monkeypatch.setattr("sereno.batch.finish.MERGED_AT_ONCE", 4)
    peak(tmp_path, 3)  # what is imported and kept for good
    few, many = peak(tmp_path, 8), peak(tmp_path, 68)
    assert (many - few) / 60 < MOST, f"{(many - few) / 60:,.0f} bytes a task"
