"""What the terminal shows of a run: short where all is well, and where it is not, what one needs to see."""

from __future__ import annotations

import re

from sereno.baseline import Baseline
from sereno.show import gate_lines, histogram_lines, run_lines
from tests.profiles import HOSTILE, baseline, gate, profile_of, report_of

UP, DOWN = [i / 1000 for i in range(1000)], [(i / 1000) ** 3 for i in range(1000)]


def lines(**given: object) -> list[str]:
    about = {k: given.pop(k) for k in ("state", "baseline", "inputs") if k in given}
    return list(run_lines(report_of(**given), **about))  # type: ignore[arg-type]


def test_what_held_a_run_comes_first() -> None:
    shown = lines(gates=[gate("passed", "rejects"), gate("warned", "drift of age"), gate("held", "row count", "gone")])
    at = shown.index("Gates")
    assert shown[at + 1 : at + 4] == [
        "  HELD    row count: gone",
        "  warned  drift of age: PSI 0.41",
        "  passed  rejects: PSI 0.41",
    ]


def test_a_column_that_drifted_is_shown_over_its_baseline() -> None:
    found = gate(column="score", side="output")
    shown = lines(
        gates=[found], profile={"score": profile_of("float", UP)}, baseline=baseline(score=profile_of("float", DOWN))
    )
    at = shown.index("  HELD    drift of score: PSI 0.41")
    now, before, axis = shown[at + 1 : at + 4]
    assert re.fullmatch(r"          this run   [▁-█]{24}  mean 0.4995", now)
    assert re.fullmatch(r"          version 2  [▁-█]{24}  mean 0.2495", before)
    assert re.fullmatch(r" {21}0 +0.999", axis)
    assert before.strip().split()[2][0] == "█"


def test_a_column_of_the_inputs() -> None:
    found = gate("warned", column="age", side="input")
    ages = profile_of("int", range(18, 90))
    before = Baseline(
        version=2, data_date=report_of().data_date, inputs={"age": ages}, outputs={"age": profile_of("int", [1])}
    )
    shown = lines(gates=[found], inputs_profile={"age": ages}, baseline=before)
    assert any(line.startswith("          version 2  ") for line in shown)
    assert "Inputs" not in shown
    assert "Inputs" in lines(gates=[found], inputs_profile={"age": ages}, inputs=True)


def test_without_a_baseline_there_is_one_histogram() -> None:
    shown = lines(gates=[gate(column="score", side="output")], profile={"score": profile_of("float", UP)})
    gate_at = shown.index("  HELD    drift of score: PSI 0.41")
    assert shown[gate_at + 1].startswith("          this run  ")
    assert "version 2" not in "".join(shown)


def test_all_is_well() -> None:
    passed = [gate("passed", column="score", side="output")]
    shown = lines(
        state="published",
        gates=passed,
        profile={"score": profile_of("float", UP)},
        says="",
        baseline=baseline(score=profile_of("float", DOWN)),
    )
    assert shown[0] == "Run 2026-05-03-abcdef of churn: published"
    assert shown[shown.index("Gates") + 2] == "Predictions"  # a line for the gate, and no histograms
    assert len(shown) == 14


def test_categories_stand_beside_each_other() -> None:
    columns = [(profile_of("str", ["A", "A", "B"]), "this run"), (profile_of("str", ["B", "C"]), "version 2")]
    head, *rows = histogram_lines(columns)
    assert head.split() == ["this", "run", "version", "2"]
    assert [(r.split()[0], re.findall(r"[\d.]+%", r)) for r in rows] == [
        ("A", ["66.7%", "0.0%"]), ("B", ["33.3%", "50.0%"]), ("C", ["0.0%", "50.0%"]),
    ]  # fmt: skip
    assert head.index("version") == rows[0].index("  0.0%")


def test_constants_and_nulls() -> None:
    constant, nulls = profile_of("float", [3.0] * 5), profile_of("float", [None] * 5)
    assert list(histogram_lines([(constant, "this run"), (nulls, "version 2")])) == [
        "this run   █  mean 3", "version 2", "           3",
    ]  # fmt: skip
    assert list(histogram_lines([(nulls, "this run")])) == []
    assert "  x: 5 values, 5 null" in lines(profile={"x": nulls})


def test_rejects_and_times() -> None:
    shown = lines(resumed_tasks=2)
    assert "  1,010 rows in = 1,000 predictions + 10 rejects (3 tasks, 2 taken over from an earlier attempt)" in shown
    assert "          7  age: must be at least 18" in shown
    assert "  of which in 2 workers: read 1.00 s" in shown
    assert "Time" not in lines(rows_in=0)


def test_which_model_it_was_and_where_its_artefacts_lay() -> None:
    lay = {"net": "s3://bank/net.onnx#sha256=" + "ab" * 32, "pipeline": "models:/credit/7"}
    shown = lines(fingerprint="cd" * 32, artifacts=lay, rows_in=0)  # also of a run that scored nothing
    assert shown[-3:] == [
        "  model cdcdcdcdcdcd",
        f"  artefact net: {lay['net']}",
        "  artefact pipeline: models:/credit/7",
    ]


def test_nothing_that_data_says_is_obeyed_by_a_terminal() -> None:
    texts = profile_of("str", [HOSTILE, HOSTILE, "B"])
    before = baseline(**{HOSTILE: texts})
    shown = lines(
        reasons={HOSTILE: 3},
        gates=[gate(name=HOSTILE, says=HOSTILE, column=HOSTILE, side="output")],
        profile={HOSTILE: texts},
        says=HOSTILE,
        source=HOSTILE,
        artifacts={HOSTILE: HOSTILE},
        baseline=before,
    )
    assert all(line.isprintable() for line in shown)


def test_the_verdict_of_a_gate() -> None:
    assert next(gate_lines(gate("passed"))) == "  passed  drift of score: PSI 0.41"
    assert len(list(gate_lines(gate("passed"), [(profile_of("float", UP), "this run")]))) == 1
