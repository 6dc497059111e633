"""What the results of tasks come to."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from sereno import Key, Model
from sereno.batch.finish import finish
from sereno.batch.parts import MOST_REASONS, OTHER_REASONS, PartWriter
from sereno.batch.profiling import ProfileBuilder
from sereno.batch.tasks import Task, TaskResult


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


def test_reasons_that_all_differ_are_counted_together_beyond_the_first(tmp_path: Path) -> None:
    model = Model("m", inputs=Row, outputs=Out)
    table = pa.table({"id": [1, 2], "y": [0.5, 1.5]})
    writer = PartWriter(tmp_path / "part.parquet", tmp_path, tmp_path / "keys.u64", table.schema, keys=1)
    writer.write(table)
    part, keys_file = writer.close()
    outputs, inputs = ProfileBuilder(model.outputs.columns), ProfileBuilder(model.inputs.features)
    outputs.add(table)
    inputs.add(pa.table({"x": [1.0, 2.0]}))
    results = []
    for index in range(3):
        reasons = {f"row {i}: has 3 columns instead of 2": 1 for i in range(60 * index, 60 * index + 60)}
        first = index == 0
        results.append(
            TaskResult(
                index=index, key=str(index), part=part if first else None, rows_in=62 if first else 60, rejects=60,
                reasons=reasons, rejects_file=None, keys_file=keys_file if first else None, profile=outputs.build(),
                inputs_profile=inputs.build(), seconds={},
            )
        )  # fmt: skip
    outcome = finish(
        model, [Task(index=i, pieces=()) for i in range(3)], results, policy="fail", attempt="2026-05-01-3f9a2c",
        parts_folder=tmp_path, work_folder=tmp_path, rejects_file=tmp_path / "rejects.parquet", batch_rows=10,
    )  # fmt: skip
    assert len(outcome.reasons) == MOST_REASONS + 1
    assert outcome.reasons[OTHER_REASONS] == 180 - MOST_REASONS
    assert sum(outcome.reasons.values()) == outcome.rejects == 180
