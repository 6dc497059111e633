"""What the results of tasks come to."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pytest

from sereno import Key, Model
from sereno.batch.finish import finish
from sereno.batch.parts import MOST_REASONS, OTHER_REASONS, PartWriter
from sereno.batch.profiling import ProfileBuilder
from sereno.batch.tasks import Task, TaskResult
from sereno.cli import code_of
from sereno.exceptions import DataError, PredictError, SerenoError


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


@pytest.mark.parametrize(
    ("reasons", "kind", "code"),
    [
        ({"predict raised ConnectionError: refused": 2}, PredictError, 1),  # another try may find who was asked
        ({"input:x: is 3": 3, "predict raised ConnectionError: refused": 2}, PredictError, 1),
        ({"input:x: is 3": 2}, DataError, 4),
    ],
)
def test_what_is_wrong_where_no_row_could_be_scored(
    tmp_path: Path, reasons: dict[str, int], kind: type[SerenoError], code: int
) -> None:
    model = Model("m", inputs=Row, outputs=Out)
    nothing = ProfileBuilder(model.outputs.columns).build(), ProfileBuilder(model.inputs.features).build()
    rows = sum(reasons.values())
    result = TaskResult(
        index=0, key="0", part=None, rows_in=rows, rejects=rows, reasons=reasons, rejects_file=None, keys_file=None,
        profile=nothing[0], inputs_profile=nothing[1], seconds={},
    )  # fmt: skip
    with pytest.raises(SerenoError, match=f"None of the {rows} rows could be scored") as caught:
        finish(
            model, [Task(index=0, pieces=())], [result], policy="fail", attempt="2026-05-01-3f9a2c",
            parts_folder=tmp_path, work_folder=tmp_path, rejects_file=tmp_path / "rejects.parquet", batch_rows=10,
        )  # fmt: skip
    assert type(caught.value) is kind
    assert code_of(caught.value, "run") == code


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
