"""Gates that a model file declares: what they are given, and what becomes of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno import Key, Model, Profile, Secret, Warn
from sereno.batch.gates import Gate
from sereno.batch.own_gates import bind_own, judge_own, own_gates
from sereno.batch.parts import WrittenPart
from sereno.batch.profile import ColumnProfile
from sereno.batch.profiling import ProfileBuilder
from sereno.config import load_settings
from sereno.exceptions import PredictError, SettingsError
from sereno.signals import Terminated


class Row(TypedDict):
    id: Key[int]
    age: float


class Score(TypedDict):
    score: float
    note: str | None


OUTPUT = pa.table({"id": [1, 2, 3], "score": [0.5, 0.25, 0.75], "note": ["a", None, "b"]})


def part(folder: Path, name: str, table: pa.Table) -> WrittenPart:
    path = folder / "k=v" / f"{name}.parquet"  # which is no partition
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    return WrittenPart(path=str(path), rows=table.num_rows, size=0, sha256="", stats="")


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., list[Gate]]:
    """Judge functions as a model's gates, over two parts."""

    def judge(*functions: Callable[..., Any], values: Mapping[str, str] | None = None) -> list[Gate]:
        model = Model("m", inputs=Row, outputs=Score)
        for function in functions:
            model.gate(function)
        (tmp_path / "sereno.toml").write_text("[values]\nmost = 0.6\n")
        settings = load_settings(tmp_path, overrides=values or {}, environ={})
        builder = ProfileBuilder(model.outputs.columns)
        builder.add(OUTPUT)
        profile = Profile(inputs={}, outputs=builder.build())
        parts = [part(tmp_path, "0", OUTPUT.slice(0, 2)), part(tmp_path, "1", OUTPUT.slice(2))]
        return judge_own(bind_own(model, settings), model, profile, parts)

    return judge


def test_what_a_gate_may_answer(judged: Callable[..., list[Gate]]) -> None:
    answers: dict[str, Any] = {
        "none": None, "true": True, "numpy_true": np.bool_(True), "false": False, "numpy_false": np.bool_(False),
        "text": "too few adults", "warning": Warn("few adults"),
    }  # fmt: skip

    def gate_that(answer: Any, name: str) -> Callable[..., Any]:
        def gate(profile: Profile) -> Any:
            return answer

        gate.__name__ = name
        return gate

    found = judged(*(gate_that(answer, name) for name, answer in answers.items()))
    assert [(g.name, g.level, g.passed, g.says) for g in found] == [
        ("gate none", "passed", True, "passed"),
        ("gate true", "passed", True, "passed"),
        ("gate numpy_true", "passed", True, "passed"),
        ("gate false", "held", False, "false returned False"),
        ("gate numpy_false", "held", False, "numpy_false returned False"),
        ("gate text", "held", False, "too few adults"),
        ("gate warning", "warned", True, "few adults"),
    ]
    assert own_gates([Gate(name="rejects", passed=True, says=""), *found]) == found


@pytest.mark.parametrize("answer", [0, 1.0, "", "  ", Warn(""), [], pd.Series([True])], ids=repr)
def test_what_is_no_verdict_fails_the_run(judged: Callable[..., list[Gate]], answer: Any) -> None:
    def fine(profile: Profile) -> Any:
        return answer

    with pytest.raises(PredictError, match=r"test_own_gates\.py:\d+: gate fine returned (.|\n)*Valid are None or True"):
        judged(fine)


def test_what_a_gate_is_given(judged: Callable[..., list[Gate]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERENO_SECRET_TOKEN", "s3cret")
    seen: dict[str, Any] = {}

    def only_profile(profile: Profile, most: float, token: Secret, least: int = 1) -> bool:
        column = profile.outputs["score"]
        seen["profile"] = (column.rows, column.nulls, column.least, column.greatest, column.mean, column.distinct)
        seen["values"] = (most, str(token), least)
        return (column.quantile(0.5) or 0) < most and profile.outputs["note"].categories == {"a": 1, "b": 1}

    def as_pandas(profile: Profile, predictions: pd.DataFrame) -> bool:
        seen["pandas"] = predictions.to_dict("list")
        return True

    def as_polars(profile: Profile, predictions: pl.DataFrame, *, most: float) -> bool:
        seen["polars"] = predictions.rows()
        return True

    def as_arrow(profile: Profile, predictions: pa.Table) -> bool:
        seen["arrow"] = predictions
        return True

    assert all(g.passed for g in judged(only_profile, as_pandas, as_polars, as_arrow))
    assert seen["profile"] == (3, 0, 0.25, 0.75, 0.5, 3)
    assert seen["values"] == (0.6, "s3cret", 1)
    assert list(seen["pandas"]) == ["id", "score", "note"]
    assert seen["pandas"]["id"] == [1, 2, 3]
    assert seen["polars"] == [(1, 0.5, "a"), (2, 0.25, None), (3, 0.75, "b")]
    assert seen["arrow"].column_names == ["id", "score", "note"]


def test_a_gate_that_raises_is_named_by_its_line(judged: Callable[..., list[Gate]]) -> None:
    def broken(profile: Profile) -> bool:
        return len(profile.outputs["scroe"].bins) > 1  # this line

    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# this line"))
    with pytest.raises(
        PredictError, match=rf"test_own_gates\.py:{line}: gate broken raised KeyError: 'scroe'\. Nothing was"
    ):
        judged(broken)


@pytest.mark.parametrize("raised", [SystemExit(0), SystemExit(), asyncio.CancelledError("no")], ids=repr)
def test_a_gate_that_ends_the_program_fails_the_run(judged: Callable[..., list[Gate]], raised: BaseException) -> None:
    def ending(profile: Profile) -> None:
        raise raised

    says = rf"test_own_gates\.py:\d+: gate ending raised {type(raised).__name__}: .*Nothing was published"
    with pytest.raises(PredictError, match=says):
        judged(ending)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Terminated])
def test_what_ends_the_process_is_no_mistake_of_a_gate(
    judged: Callable[..., list[Gate]], raised: type[BaseException]
) -> None:
    def waiting(profile: Profile) -> None:
        raise raised

    with pytest.raises(raised):
        judged(waiting)


def test_a_value_that_nothing_gives_is_told(judged: Callable[..., list[Gate]]) -> None:
    def strict(profile: Profile, unknown: float) -> bool:
        return True

    with pytest.raises(SettingsError, match="nothing gives strict its parameter 'unknown'"):
        judged(strict)


def test_a_second_parameter_without_an_annotation_is_told(judged: Callable[..., list[Gate]]) -> None:
    def wants_rows(profile, predictions):  # type: ignore[no-untyped-def]
        return True

    def wants_a_value(profile, *, least):  # type: ignore[no-untyped-def]
        return True

    def has_one(profile, most):  # type: ignore[no-untyped-def]
        return most == 0.6

    hint = r"annotate it: `def wants_rows\(profile, predictions: pd\.DataFrame\)`\."
    with pytest.raises(SettingsError, match=hint):
        judged(wants_rows)
    with pytest.raises(SettingsError, match="nothing gives wants_a_value") as error:
        judged(wants_a_value)
    assert "annotate" not in str(error.value)
    assert judged(has_one)[0].passed


def test_gates_are_bound_before_the_first_is_called(judged: Callable[..., list[Gate]]) -> None:
    called: list[Profile] = []

    def fine(profile: Profile) -> None:
        called.append(profile)

    def strict(profile: Profile, unknown: float) -> None:
        called.append(profile)

    with pytest.raises(SettingsError):
        judged(fine, strict)
    assert not called


def test_what_a_gate_writes_into_its_profile_nobody_else_sees(judged: Callable[..., list[Gate]]) -> None:
    seen: list[ColumnProfile] = []

    def writes(profile: Profile) -> None:
        column = profile.outputs["note"]
        column.categories["<b>"] = 1
        column.rows = 99
        profile.outputs["score"].bins.clear()

    def looks(profile: Profile) -> None:
        seen.extend(profile.outputs.values())

    judged(writes, looks)
    score, note = seen
    assert (note.rows, note.categories, score.mean) == (3, {"a": 1, "b": 1}, 0.5)

    def clears(profile: Profile) -> None:
        profile.outputs.clear()  # type: ignore[attr-defined]

    with pytest.raises(PredictError, match="gate clears raised AttributeError"):
        judged(clears)


def test_what_a_gate_says_is_cut(judged: Callable[..., list[Gate]]) -> None:
    def talks(profile: Profile) -> str:
        return "x" * 1_000_000

    def warns(profile: Profile) -> str:
        return Warn("x" * 1_001)

    held, warned = judged(talks, warns)
    assert held.says == warned.says == "x" * 999 + "…"
    assert (held.level, warned.level, type(warned.says)) == ("held", "warned", str)


def test_without_gates_nothing_is_read(judged: Callable[..., list[Gate]]) -> None:
    assert judged() == []
