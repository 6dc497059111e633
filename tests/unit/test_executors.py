"""Executors are closed at the end of a run, however it ends; and of Spark, only what was started for it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters.executors import spark_executor
from sereno.adapters.executors.local import LocalExecutor
from sereno.adapters.executors.spark_executor import SparkExecutor
from sereno.batch.run import run
from sereno.config import load_settings
from sereno.exceptions import SourceError
from sereno.loader import load_model
from sereno.scoring import open_scorer
from sereno.settings import Settings

MODEL = """\
from pathlib import Path
from typing import TypedDict
from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    x: int

class Out(TypedDict):
    y: float

model = Model("m", inputs=Row, outputs=Out, source="rows.parquet", artifacts={"weight": "weight.txt"})

@model.load
def load(weight: Path) -> None:
    return None

@model.predict
def predict(nothing: None, rows: list[Row]) -> list[Out]:
    return [{"y": row["x"]} for row in rows]
"""


class Told(LocalExecutor):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_run_closes_its_executor(tmp_path: Path) -> None:
    """One that publishes, one that has nothing to do, and one that fails while it is planned."""
    file = tmp_path / "closes_its_executor.py"  # a module of its own
    file.write_text(MODEL)
    (tmp_path / "weight.txt").write_text("1")
    (tmp_path / "sereno.toml").touch()
    pq.write_table(pa.table({"id": range(5), "x": range(5)}), tmp_path / "rows.parquet")
    os.utime(tmp_path / "rows.parquet", (0, 0))
    model, settings = load_model(file), load_settings(tmp_path, environ={})

    def executor() -> Told:
        return Told(1, lambda: open_scorer(model, settings))

    for state, closed in (("published", 2), ("nothing", 1)):  # once it has published, and at the end of each
        first = executor()
        assert run(model, settings, first, when="2026-11-01").state == state
        assert first.closed == closed
    (tmp_path / "rows.parquet").unlink()
    last = executor()
    with pytest.raises(SourceError):
        run(model, settings, last, when="2026-11-01", force=True)
    assert last.closed == 1


class Context:
    """One of Spark, as far as it is begun and ended."""

    stopped = 0

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class whose active context is found."""
    kind = type("SparkContext", (), {"_active_spark_context": None})
    monkeypatch.setattr(spark_executor, "SparkContext", kind)

    def start(settings: Settings) -> Context:
        kind._active_spark_context = Context()  # type: ignore[attr-defined]
        return kind._active_spark_context  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(spark_executor.spark_start, "start", start)
    return kind


def test_a_spark_of_our_own_is_stopped_and_no_other(spark: Any, tmp_path: Path) -> None:
    first, second = (SparkExecutor(Settings(home=tmp_path)) for _ in range(2))
    left: Any = first._connect()
    ours: Any = second._connect()  # the first was not closed: what it is set to is not what the second asks for
    assert (left.stopped, ours.stopped) == (1, 0)
    second.close()
    second.close()
    assert ours.stopped == 1
    spark._active_spark_context = theirs = Context()
    third = SparkExecutor(Settings(home=tmp_path))
    assert third._connect() is theirs  # type: ignore[comparison-overlap]
    third.close()
    assert theirs.stopped == 0
