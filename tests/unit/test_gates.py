"""Gates: which output is held, at which number, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, TypedDict

import pyarrow as pa
import pytest

from sereno.baseline import Baseline
from sereno.batch.gates import Gate, Judged, judge, settings_of
from sereno.batch.profile import ColumnProfile, Profile
from sereno.batch.profiling import ProfileBuilder
from sereno.schema import Column, row_type
from sereno.settings import ColumnSettings, GateSettings
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


def test_the_same_list_for_every_row_is_held() -> None:
    def items(*lists: list[str]) -> Profile:
        builder = ProfileBuilder([Column(name="items", kind="list")])
        builder.add(pa.table({"items": pa.array(lists, pa.list_(pa.string()))}))
        return builder.build()

    same, other = items(*[["ham", "egg"]] * 20), items(*[["ham", "egg"]] * 19, [])
    assert not verdicts(profile=same)["constant"].passed
    assert verdicts(profile=other)["constant"].says == "predictions differ"
    hold = {"items": ColumnSettings(constant="hold")}
    assert not verdicts(profile=same, columns=hold)["constant items"].passed
    assert verdicts(profile=other, columns=hold)["constant items"].passed


def test_what_is_said_of_a_constant() -> None:
    assert verdicts(profile=profile([0.5] * 10, ["A"] * 10))["constant"].says == "every row got the same prediction"
    assert verdicts(profile=profile([0.5, 0.6] * 5, ["A"] * 10))["constant"].says == "predictions differ"


# Columns by themselves


def test_limits_of_one_column() -> None:
    some = profile([1.0, 2.0, None, 4.0], ["A", None, None, None])
    found = verdicts(profile=some, columns={"score": ColumnSettings(max_null_share=0.2)})
    assert not found["nulls of score"].passed
    assert found["nulls of score"].says == "25.0% of score are null; at most 20%"
    assert (found["nulls of score"].column, found["nulls of score"].side) == ("score", "output")
    assert (found["nulls of score"].value, found["nulls of score"].limit) == (0.25, 0.2)
    assert verdicts(profile=some, columns={"band": ColumnSettings(max_null_share=0.75)})["nulls of band"].passed
    # features are judged where they are named only, and an input may have the name of an output
    assert "nulls of input score" not in verdicts(inputs=some)
    both = verdicts(profile=some, inputs=some, columns={"score": ColumnSettings(max_null_share=0.001)})
    assert both["nulls of input score"].says == "25.0% of score are null; at most 0.1%"
    assert (both["nulls of score"].level, both["nulls of input score"].side) == ("held", "input")


def test_settings_are_found_whatever_the_capitals_of_a_variable() -> None:
    own = {"income": ColumnSettings(max_null_share=0.1)}
    assert settings_of(own, "Income") is own["income"]
    assert settings_of(own, "other") == ColumnSettings()


def test_constant_columns() -> None:
    some = profile([0.5] * 10, ["A", "B"] * 5)
    assert verdicts(profile=some)["constant"].passed
    held = verdicts(profile=some, columns={"score": ColumnSettings(constant="hold")})
    assert (held["constant score"].passed, held["constant score"].says) == (False, "every row has the same score")
    assert verdicts(profile=some, columns={"band": ColumnSettings(constant="hold")})["constant band"].passed
    # a column that may be constant is not asked
    assert not verdicts(profile=some, columns={"band": ColumnSettings(constant="allow")})["constant"].passed
    allowed = {name: ColumnSettings(constant="allow") for name in ("score", "band")}
    assert verdicts(profile=profile([0.5] * 10, ["A"] * 10), columns=allowed)["constant"].passed
    assert not verdicts(inputs=some, columns={"score": ColumnSettings(constant="hold")})["constant input score"].passed


# Drift


SCORES: list[float | None] = [i / 1_000 for i in range(1_000)]
OTHER: list[float | None] = [0.1 + i / 1_000 for i in range(1_000)]
BANDS: list[str | None] = ["A", "B"] * 500


def baseline(outputs: Profile, inputs: Profile | None = None, **given: Any) -> Baseline:
    about: dict[str, Any] = {"version": 7, "data_date": date(2026, 5, 1), "rows": 1_000}
    return Baseline(**about, inputs=inputs or {}, outputs=outputs, **given)


def drift(
    before: list[float | None] = SCORES, now: list[float | None] = OTHER, side: str = "output", **given: Any
) -> dict[str, Gate]:
    a, b = profile(before, BANDS[: len(before)]), profile(now, BANDS[: len(now)])
    if side == "output":
        return verdicts(profile=b, baseline=baseline(a), **given)
    return verdicts(inputs=b, baseline=baseline({}, a), **given)


def test_drift_of_an_output() -> None:
    found = drift()["drift of score"]
    value = found.value or 0
    assert 0.25 < value < 2
    assert (found.level, found.passed, found.column, found.side, found.limit) == (
        "held",
        False,
        "score",
        "output",
        0.25,
    )
    assert found.says == f"PSI {value:.3f} against version 7 (2026-05-01); at most 0.25"
    assert drift()["drift of band"].level == "passed"
    assert (drift(now=SCORES)["drift of score"].value, drift(now=SCORES)["drift of score"].limit) == (0, 0.1)
    warned = drift(settings={"hold_output_psi": 5})["drift of score"]
    assert (warned.level, warned.passed, warned.limit) == ("warned", True, 0.1)
    assert drift(settings={"hold_output_psi": 5, "warn_output_psi": 5})["drift of score"].level == "passed"


def test_a_limit_is_what_is_still_fine() -> None:
    value = drift()["drift of score"].value
    assert drift(settings={"hold_output_psi": value})["drift of score"].level == "warned"
    assert drift(settings={"hold_output_psi": value, "warn_output_psi": value})["drift of score"].level == "passed"


def test_drift_of_an_input() -> None:
    found = drift(side="input")
    assert (found["drift of input score"].level, found["drift of input score"].side) == ("warned", "input")
    assert found["drift of inputs"].says == "PSI at most 0.000, of band; 1 features against version 7 (2026-05-01)"
    assert "drift of input band" not in found  # told together
    assert drift(side="input", settings={"hold_input_psi": 0.2})["drift of input score"].level == "held"
    assert "drift of input score" not in drift(side="input", settings={"warn_input_psi": 5})


def test_drift_of_a_column_with_limits_of_its_own() -> None:
    for side, name in (("output", "score"), ("input", "input score")):
        assert drift(side=side, columns={"score": ColumnSettings(hold_psi=0.2)})[f"drift of {name}"].level == "held"
        lenient = {"score": ColumnSettings(hold_psi=5, warn_psi=5)}
        assert drift(side=side, columns=lenient).get(f"drift of {name}", found_fine).level == "passed"


found_fine = Gate(name="drift", passed=True, says="")


def test_what_drift_is_not_judged() -> None:
    assert not [name for name in verdicts(profile=profile(SCORES, BANDS)) if "drift" in name]  # the first night
    few = drift(SCORES[:999], OTHER, answered=1_000)
    assert "drift of score" not in few
    few_says = "score (fewer than 1,000 rows), band (fewer than 1,000 rows)"
    assert few["drift"].says == f"not judged against version 7 (2026-05-01): {few_says}"
    assert drift(SCORES, OTHER[:999], answered=999)["drift"].says == (
        "not judged: it takes 1,000 rows here and in version 7 (2026-05-01)"
    )
    old = verdicts(profile=profile(SCORES, BANDS), baseline=baseline({}, has_profile=False))["drift"]
    assert (old.level, old.says) == (
        "passed",
        "not judged, as version 7 (2026-05-01) has no profile: it is of before profiles were kept, or older than keep_run_days",
    )
    other = verdicts(profile=profile(SCORES, BANDS), baseline=baseline({"another": ColumnProfile()}))["drift"]
    assert other.says == ("not judged against version 7 (2026-05-01): score (it is not there), band (it is not there)")
    builder = ProfileBuilder([Column(name="day", kind="date")])
    builder.add(pa.table({"day": pa.array([date(2026, 5, 1)] * 1_000)}))
    dates = verdicts(profile=builder.build(), baseline=baseline(builder.build()))["drift"]
    assert dates.says == "not judged: no column can be compared with those of version 7 (2026-05-01)"


def test_a_column_that_drift_does_not_judge_is_named() -> None:
    names: list[str | None] = [str(i) for i in range(1_000)]
    free_text = verdicts(profile=profile(SCORES, BANDS), baseline=baseline(profile(SCORES, names)))
    assert free_text["drift of score"].passed
    assert (free_text["drift"].level, free_text["drift"].says) == (
        "passed",
        "not judged against version 7 (2026-05-01): band (it has more than 50 different texts there)",
    )
    # but what had few values is judged, however many it has now
    assert verdicts(profile=profile(SCORES, names), baseline=baseline(profile(SCORES, BANDS)))[
        "drift of band"
    ].level == ("held")
    many = {f"x{i}": ColumnProfile(rows=1_000, kind="int") for i in range(13)}
    assert verdicts(inputs=many, baseline=baseline({}, {}))["drift"].says.endswith(
        "input x9 (it is not there), and 3 more"
    )


def test_a_profile_that_is_gone_holds() -> None:
    gone = baseline({}, has_profile=False, trouble="It is missing.")
    found = verdicts(profile=profile(SCORES, BANDS), baseline=gone)["drift"]
    assert found.level == "held"
    assert found.says.startswith("drift could not be judged: It is missing. The next data date ")
