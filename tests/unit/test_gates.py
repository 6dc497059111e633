"""Gates: which output is held, at which number, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, TypedDict

import pyarrow as pa
import pytest

from sereno.batch.gates import Baseline, Gate, Judged, judge
from sereno.batch.profile import Profile
from sereno.batch.profiling import ProfileBuilder
from sereno.schema import row_type
from sereno.settings import GateSettings
from sereno.snapshots import Snapshot


class Answer(TypedDict):
    score: float | None
    band: str | None


ROW = row_type(Answer)


def profile(scores: list[float | None], bands: list[str | None]) -> Profile:
    builder = ProfileBuilder(ROW.columns)
    builder.add(pa.table({"score": pa.array(scores, pa.float64()), "band": pa.array(bands, pa.string())}))
    return builder.build()


def last(rows: int) -> Snapshot:
    now = datetime(2026, 5, 2, tzinfo=UTC)
    return Snapshot(
        model="m", number=7, attempt="a", run_key="k", revision="r", data_date=date(2026, 5, 1), data_time=now,
        published_at=now, fingerprint="f", rows=rows, rejects=0, disposition="replace", keys=("id",), parts=(),
    )  # fmt: skip


def verdicts(**given: Any) -> dict[str, Gate]:
    defaults: dict[str, Any] = {"rows_in": 1_000, "rejects": 0, "answered": 1_000, "last": None, "baseline": None}
    arguments = defaults | {"outputs": given.pop("profile", {}), "inputs": {}} | given
    settings = replace(GateSettings(), **arguments.pop("settings", {}))
    gates = judge(settings, arguments.pop("columns", {}), Judged(**arguments))
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


@pytest.mark.parametrize(
    ("rows_in", "rejects", "settings", "passed"),
    [
        (100, 10, {}, True),
        (100, 11, {}, False),
        (5_000, 50, {}, True),
        (5_000, 51, {}, False),
        (100, 29, {"max_reject_share": 0.29}, True),  # 0.29 × 100 is less than 29 in floats
        (100, 1, {"max_reject_rows": 0, "max_reject_share": 0}, False),
        (100, 0, {"max_reject_rows": 0, "max_reject_share": 0}, True),
    ],
)
def test_rejects(rows_in: int, rejects: int, settings: dict[str, Any], passed: bool) -> None:
    assert verdicts(rows_in=rows_in, rejects=rejects, settings=settings)["rejects"].passed == passed


def test_what_is_said_of_rejects() -> None:
    gate = verdicts(rows_in=5_000, rejects=51)["rejects"]
    assert gate.says == "51 of 5,000 rows (1.02%); at most 50 may be"
    assert verdicts(rows_in=100, rejects=30, settings={"max_reject_share": 0.29})["rejects"].says.endswith(
        "at most 29 may be"
    )


@pytest.mark.parametrize(
    ("answered", "before", "limit", "passed"),
    [
        (150, 100, 0.5, True), (151, 100, 0.5, False), (50, 100, 0.5, True), (49, 100, 0.5, False),
        (160, 100, 0.6, True), (100, 100, 0.0, True), (101, 100, 0.0, False), (1_000, 1, 999, True),
    ],
)  # fmt: skip
def test_row_count(answered: int, before: int, limit: float, passed: bool) -> None:
    gate = verdicts(answered=answered, last=last(before), settings={"max_row_change": limit})["row count"]
    assert gate.passed == passed


def test_what_is_said_of_the_row_count() -> None:
    gate = verdicts(answered=1_520, last=last(4_000))["row count"]
    assert gate.says == "1,520 predictions, -62% against 4,000 of version 7 (2026-05-01); at most ±50%"
    assert "row count" not in verdicts()  # nothing to compare with


def test_nulls() -> None:
    some = profile([1.0, 2.0, None, 4.0], ["A", None, None, None])
    found = verdicts(profile=some)
    assert found["nulls of score"].passed
    assert not found["nulls of band"].passed
    assert found["nulls of band"].says == "75.0% of band are null; at most 50%"
    assert verdicts(profile=some, settings={"max_null_share": 0.75})["nulls of band"].passed
    assert "nulls of score" not in verdicts(profile=profile([1.0], ["A"]))


@pytest.mark.parametrize(
    ("scores", "bands", "answered", "passed"),
    [
        ([0.5] * 10, ["A"] * 10, 10, False),
        ([0.5] * 9, ["A"] * 9, 9, True),  # so few may well be equal
        ([0.5] * 10, ["A"] * 9 + ["B"], 10, True),  # one column that differs is enough
        ([0.5] * 9 + [None], ["A"] * 10, 10, True),
        ([None] * 10, [None] * 10, 10, False),
    ],
)
def test_constant(scores: list[float | None], bands: list[str | None], answered: int, passed: bool) -> None:
    given: dict[str, Any] = {"profile": profile(scores, bands), "answered": answered}
    assert verdicts(**given)["constant"].passed == passed
    assert verdicts(**given, settings={"constant": "allow"})["constant"].passed


def test_what_is_said_of_a_constant() -> None:
    assert verdicts(profile=profile([0.5] * 10, ["A"] * 10))["constant"].says == "every row got the same prediction"
    assert verdicts(profile=profile([0.5, 0.6] * 5, ["A"] * 10))["constant"].says == "predictions differ"
