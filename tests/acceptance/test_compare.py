"""`sereno compare`: what it finds between a challenger and a snapshot, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sereno.storage import exclusive
from tests.acceptance.project import DAY, MODEL, NEXT_DAY, PARTS, ROWS, THIRD_DAY, Project

BANDS = MODEL.replace("    y: float\n", "    y: float\n    band: str\n    days: list[float]\n    on: date\n").replace(
    'pa.table({"y": pc.multiply(rows["x"], weight)})',
    """pa.table({
        "y": pc.multiply(rows["x"], weight),
        "band": pc.if_else(pc.greater(rows["x"], EDGE), "high", "low"),
        "days": pa.array([[x, x] for x in rows["x"].to_pylist()], pa.list_(pa.float64())),
        "on": pa.array([date(2024, 5, 1)] * rows.num_rows),
    })""",
).replace("import os, sys", "import os, sys\nfrom datetime import date\nEDGE = 100.0")  # fmt: skip
PRODUCT = 'pc.multiply(rows["x"], weight)'
JUMP = f'pc.add({PRODUCT}, pc.cast(pc.greater(rows["x"], 200.0), pa.float64()))'  # one more for ids above 1,600
ANSWER = '    return pa.table({"y"'
SLOWLY = f'    import time; Path("began").touch(); time.sleep(1)\n{ANSWER}'
GATE = """
@model.gate
def enough(profile):
    return f"only {profile.outputs['y'].rows} rows"


"""
DAYS = '"days": pa.array([[x, x] for x in rows["x"].to_pylist()], pa.list_(pa.float64())),'
MAIN = 'if __name__ == "__main__":'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The model total, on one worker, whose version 1 is of 2,000 rows."""
    project = Project.new(tmp_path / "project")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1"}
    project.rows(DAY, 2_000)
    project.run(DAY)
    return project


def files(project: Project) -> dict[str, tuple[int, int]]:
    """Every file below the home, locks aside, with its size and time."""
    found = [f for f in project.folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return {
        str(f.relative_to(project.folder)): (f.stat().st_size, f.stat().st_mtime_ns)
        for f in found
        if "locks" not in f.parts and not f.name.startswith("ledger.sqlite-")
    }


def compare(project: Project, file: str = "total2.py", against: str = "served", *arguments: str) -> Any:
    return project.json("compare", file, "--against", against, *arguments)


def challenger(project: Project, *changes: tuple[str, str], of: str = MODEL, name: str = "total2.py") -> None:
    text = of
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    project.write(name, text)


def test_the_same_file_is_the_same(project: Project) -> None:
    found = compare(project, "total.py")
    assert found["same"] is True
    assert found["would_be_held"] is False
    assert (found["both"], found["differ"], found["only_challenger"], found["only_against"]) == (2_000, 0, 0, 0)
    (y,) = found["columns"]
    assert (y["name"], y["rows"], y["differ"], y["share"], y["greatest_size"], y["psi"]) == ("y", 2_000, 0, 0, 0, 0)
    assert found["challenger"]["fingerprint"] == found["against"]["fingerprint"]
    assert {g["name"]: g["level"] for g in found["gates"]}["row count"] == "passed"
    says = project.sereno("compare", "total.py", "--against", "1").stdout
    assert "  The same: 2,000 keys, and every prediction agrees to 1e-09 of its size." in says
    assert "y: the same, PSI 0.000" in says


def test_a_changed_model(project: Project) -> None:
    challenger(project, (PRODUCT, JUMP))
    found = compare(project)
    assert found["same"] is False
    assert (found["both"], found["differ"]) == (2_000, 399)
    (y,) = found["columns"]
    assert (y["differ"], y["nulls"], y["how"]) == (399, 0, "numbers")
    assert y["mean"] == pytest.approx(399 / 2_000)
    assert (y["median_size"], y["greatest_size"]) == (0, 1)
    assert len(y["most"]) == 10
    for pair in y["most"]:
        assert pair["now"] - pair["before"] == 1
        assert pair["before"] == pair["key"][0] / 4
    says = project.sereno("compare", "total2.py", "--against", "served").stdout
    assert "Of 2,000 keys that both have, 399 (" in says
    assert re.search(r"^  challenger  \S.*\n  version 1   \S", says, re.MULTILINE)
    assert re.search(r"^    id \d+ +[\d.]+ +[\d.]+$", says, re.MULTILINE)


def test_a_difference_within_the_tolerance_is_none(project: Project) -> None:
    change = (PRODUCT, 'pc.multiply(rows["x"], weight * (1 + 1e-7))')
    challenger(project, change)
    assert 1_980 < compare(project)["differ"] < 1_999  # all but those near 0, where the median size counts
    challenger(project, change, ('source="input', 'tolerance=1e-6, source="input'), name="total3.py")
    found = compare(project, "total3.py")
    assert (found["differ"], found["same"], found["tolerance"]) == (0, True, 1e-6)


def test_categories_lists_and_dates(project: Project) -> None:
    project.write("total.py", BANDS)
    project.run(DAY, "--force")
    challenger(
        project,
        ("EDGE = 100.0", "EDGE = 200.0"),
        ("[[x, x]", "[[x, x + (x == 8)]"),
        ("date(2024, 5, 1)]", "date(2024, 5, 2)]"),
        of=BANDS,
    )
    columns = {c["name"]: c for c in compare(project)["columns"]}
    assert columns["y"]["differ"] == 0
    assert columns["band"]["changes"] == [["high", "low", 800]]
    assert columns["band"]["psi"] > 0.25
    assert (columns["days"]["differ"], columns["days"]["how"]) == (1, "other")
    assert columns["days"]["most"] == [{"key": [64], "before": [8.0, 8.0], "now": [8.0, 9.0]}]
    assert columns["on"]["differ"] == 2_000
    assert columns["on"]["most"][0]["now"] == "2024-05-02"
    found = compare(project)
    assert found["would_be_held"] is True
    assert [g["name"] for g in found["gates"] if g["level"] == "held"] == ["drift of band"]
    says = project.sereno("compare", "total2.py", "--against", "served").stdout
    assert "          800  high → low" in says
    assert re.search(r"^  HELD    drift of band: PSI ", says, re.MULTILINE)


def test_rows_that_only_one_has(project: Project) -> None:
    project.rows(DAY, 1_500, first=700)  # the data of that day has come again, with others
    found = compare(project, "total.py")
    assert (found["both"], found["only_challenger"], found["only_against"]) == (1_300, 200, 700)
    assert len(found["some_only_against"]) == 5
    assert all(key[0] < 700 for key in found["some_only_against"])
    assert all(key[0] >= 2_000 for key in found["some_only_challenger"])
    says = project.sereno("compare", "total.py", "--against", "1").stdout
    assert re.search(r"  Only challenger has 200 keys: id \d+; .* …", says)
    assert re.search(r"  Only version 1 has 700 keys: id \d+; ", says)


def test_rejects_are_told_beside_each_other(project: Project) -> None:
    challenger(
        project,
        ("from typing import TypedDict", "from typing import Annotated, TypedDict\nfrom annotated_types import Ge"),
        ("    y: float", "    y: Annotated[float, Ge(1)]"),
    )
    found = compare(project)
    assert found["challenger"]["rejects"] == 4  # 0, 0.25, 0.5, 0.75
    assert found["challenger"]["reasons"] == {"output:y: must be at least 1.0": 4}
    assert (found["against"]["rejects"], found["against"]["reasons"]) == (0, {})
    assert found["only_against"] == 4
    assert found["challenger"]["rows_in"] == found["against"]["rows_in"] == 2_000


def test_rejects_of_the_snapshot(project: Project) -> None:
    project.table(DAY, {"id": [5_000, 5_001], "x": [1.0, None]}, "1.parquet")
    project.run(DAY)
    found = compare(project, "total.py")
    assert found["against"]["reasons"] == found["challenger"]["reasons"] == {"x: is missing (null)": 1}
    assert found["same"] is True


def test_outputs_that_only_one_has_and_types_that_differ(project: Project) -> None:
    project.write("total.py", BANDS)
    project.run(DAY)
    challenger(
        project,
        ("    band: str\n", "    band: int\n    more: float\n"),
        ("    days: list[float]\n", ""),
        ('"high", "low"', "1, 0"),
        (DAYS, '"more": rows["x"],'),
        of=BANDS,
    )
    found = compare(project)
    assert (found["outputs_only_challenger"], found["outputs_only_against"]) == (["more"], ["days"])
    band = next(c for c in found["columns"] if c["name"] == "band")
    assert (band["how"], band["types"], band["psi"]) == ("types", ["string", "int64"], None)
    assert (found["differ"], found["same"]) == (0, False)
    says = project.sereno("compare", "total2.py", "--against", "2").stdout
    assert "band: not compared, it is int64 in the challenger and string in the snapshot" in says
    assert "  Only challenger has the output more" in says
    assert "  Only version 2 has the output days" in says


def test_other_keys_are_refused(project: Project) -> None:
    challenger(project, ("    id: Key[int]\n    x: float", "    id: int\n    x: Key[str]"))
    says = project.json("compare", "total2.py", "--against", "served", code=1)
    assert says["error"] == "PublishError"
    assert says["says"].startswith(
        "The keys of the challenger 'total' are x; those of version 1 of 'total' are id. Predictions are"
    )
    challenger(project, ("id: Key[int]", "id: Key[str]"), name="total3.py")
    says = project.json("compare", "total3.py", "--against", "served", code=1)
    assert says["says"].startswith("The key id is string in the challenger 'total' and int64 in version 1 of 'total'.")


def test_a_model_of_another_name(project: Project) -> None:
    challenger(project, ('Model("total"', 'Model("sum-2"'))
    says = project.json("compare", "total2.py", "--against", "served", code=1)
    assert says["says"].startswith("No snapshot of model 'sum-2' is published in ")
    found = compare(project, "total2.py", "served", "--model", "total")
    assert (found["challenger"]["name"], found["against"]["name"], found["same"]) == ("sum-2", "total", True)


def test_settings_are_those_of_the_model_whose_work_it_is_to_do(project: Project) -> None:
    challenger(project, ('Model("total"', 'Model("sum-2"'))
    project.settings(gates__max_row_change=0.1)
    project.rows(DAY, 2_500)
    found = compare(project, "total2.py", "served", "--model", "total")
    assert [g["name"] for g in found["gates"] if not g["passed"]] == ["row count"]
    with (project.folder / "sereno.toml").open("a") as settings:
        settings.write("models.sum-2.gates.max_row_change = 0.9\n")
    found = compare(project, "total2.py", "served", "--model", "total")
    assert found["would_be_held"] is False


def test_versions_and_dates(project: Project) -> None:
    project.rows(NEXT_DAY, 2_100)
    project.write("weight.txt", "4")
    project.run(NEXT_DAY, "--set", "models.total.gates.hold_output_psi=9")
    assert compare(project, "total.py")["against"]["version"] == 2
    first = compare(project, "total.py", "1")
    assert (first["against"]["data_date"], first["challenger"]["data_date"], first["differ"]) == (DAY, DAY, 1_999)
    other = compare(project, "total.py", "1", "--date", NEXT_DAY)
    assert (other["challenger"]["data_date"], other["challenger"]["predictions"]) == (NEXT_DAY, 2_100)
    says = project.sereno("compare", "total.py", "--against", "1", "--date", NEXT_DAY).stdout
    assert f"  version 1 is of another data date: {DAY}" in says


def test_a_table_of_partitions(tmp_path: Path) -> None:
    project = Project.new(tmp_path / "project")
    project.within, project.variables = True, {"SERENO_WORKERS": "1"}
    project.settings(disposition="partition")
    for night, day in enumerate((DAY, NEXT_DAY)):
        project.rows(day, 100 + night)
        project.run(day)
    assert compare(project, "total.py")["against"]["version"] == 2
    found = compare(project, "total.py", "served", "--date", DAY)
    assert (found["against"]["version"], found["same"]) == (1, True)


def test_a_source_on_the_command_line(project: Project) -> None:
    project.rows(NEXT_DAY, 2_000)
    found = compare(project, "total.py", "served", "--source", f"input/{NEXT_DAY}")
    assert found["source"] == str(project.folder / "input" / NEXT_DAY)
    assert found["same"] is True


def test_the_models_own_gates_are_asked(project: Project) -> None:
    challenger(project, (MAIN, GATE + MAIN))
    found = compare(project)
    assert [(g["name"], g["says"]) for g in found["gates"] if not g["passed"]] == [("gate enough", "only 2000 rows")]


def test_a_snapshot_that_has_no_profile_with_it(project: Project) -> None:
    for file in (project.predictions / "_profiles").iterdir():
        file.unlink()
    found = compare(project, "total.py")
    assert found["same"] is True
    assert found["columns"][0]["psi"] == 0  # counted again from its parts
    assert found["against"]["inputs"] == {}
    (drift,) = [g for g in found["gates"] if g["name"].startswith("drift")]
    assert drift["level"] == "held"  # as a run would be, and for the same reason
    assert "drift could not be judged: The profile of" in drift["says"]
    assert "is missing." in drift["says"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("compare", "total.py"), 2, "the following arguments are required: --against"),
        (("compare", "total.py", "--against", "yesterday"), 2, "'yesterday' is no version. Give a number of `sereno"),
        (("compare", "total.py", "--against", "7"), 1, "Model 'total' has no version 7. It has 1."),
        (("compare", "total.py", "--against", "served", "--model", "other"), 1, "No snapshot of model 'other' is published in"),
        (("compare", "total.py", "--against", "served", "--date", "2999-01-01"), 2, "The interval 2999-01-01 has not ended"),
        (("compare", "total.py", "--against", "served", "--date", THIRD_DAY), 1, "is missing: there is no such file"),
        (("compare", "nothing.py", "--against", "served"), 1, "There is no file"),
        (("compare", "total.py", "--against", "served", "--html", "no/such/folder.html"), 1, "Give --html another path"),
    ],
)  # fmt: skip
def test_mistakes(project: Project, arguments: tuple[str, ...], code: int, says: str) -> None:
    before = files(project)
    assert says in project.sereno(*arguments, code=code).stderr
    assert files(project) == before


def test_a_snapshot_of_another_time_zone(project: Project) -> None:
    challenger(project, ('source="input', 'time_zone="America/New_York", source="input'))
    says = project.json("compare", "total2.py", "--against", "served", code=2)["says"]
    assert (
        f"is of {DAY}, but in the challenger's time zone, America/New_York, its interval starts on 2024-04-30." in says
    )
    assert compare(project, "total2.py", "served", "--date", DAY)["same"] is True


def test_nothing_changes_on_the_disk(project: Project) -> None:
    """Table, exports, ledger, attempts: every file is what it was, and there is no other."""
    before = files(project)
    challenger(project, ("weight)", "weight + 1)"))
    before = files(project)
    compare(project)
    compare(project, "total.py", "1")
    challenger(project, (PRODUCT, "1 / 0"), name="total4.py")
    found = project.json("compare", "total4.py", "--against", "served", code=1)
    assert found["error"] == "PredictError"
    (project.folder / "total4.py").unlink()
    assert files(project) == before
    assert not (project.folder / ".sereno" / "compare").exists()
    assert not list((project.folder / ".sereno" / "locks").glob("compare*"))
    assert project.states() == ["published"]
    assert project.in_service() == [1]


def test_a_page(project: Project) -> None:
    challenger(project, ("weight)", "weight + 1)"))
    found = project.sereno("compare", "total2.py", "--against", "served", "--html", "found.html")
    page = (project.folder / "found.html").read_text()
    assert f"The page is in {project.folder / 'found.html'}." in found.stdout
    assert "total beside version 1 of total" in page
    assert "<script" not in page
    assert page.count('class="before"') == 2  # y, and the input x
    assert compare(project, "total2.py", "1", "--html", "again.html")["html"] == str(project.folder / "again.html")


def test_several_workers_and_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As processes of its own, with keys that need several lots: what one worker finds, two find."""
    from sereno.compare import lots

    project = Project.new(tmp_path / "project")
    project.rows(DAY, np.arange(ROWS) / 8, parts=PARTS)
    project.run(DAY, "--workers", "2")
    challenger(project, (PRODUCT, JUMP))
    two = compare(project, "total2.py", "served", "--workers", "2")
    project.within = True
    monkeypatch.setattr(lots, "LOT_ROWS", ROWS // 7)
    one = compare(project, "total2.py", "served", "--workers", "1")
    for found in (one, two):
        del found["seconds"], found["challenger"]["inputs"], found["challenger"]["outputs"]  # estimates are by task
    for found in (one, two):  # of equal differences, which keys are shown is as their lots come
        assert len(found["columns"][0].pop("most")) == 10
    assert one == two
    assert one["differ"] == ROWS - 1_601


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_comparison_that_is_ended_leaves_nothing(project: Project, workers: str) -> None:
    project.within = False
    project.rows(DAY, 400_000, parts=PARTS)
    challenger(project, (ANSWER, SLOWLY))
    before = files(project)
    process = project.start("compare", "total2.py", "--against", "served", "--workers", workers)
    wait_for(project.folder / "began", process)
    assert list((project.folder / ".sereno" / "compare").iterdir())
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "Traceback" not in error
    (project.folder / "began").unlink()
    assert files(project) == before
    assert not (project.folder / ".sereno" / "compare").exists()


def test_what_a_killed_comparison_left_goes_with_the_next(project: Project) -> None:
    place, locks = project.folder / ".sereno" / "compare", project.folder / ".sereno" / "locks"
    for name in ("left", "going-on"):
        (place / name / "parts").mkdir(parents=True)
    (locks / "compare.left").touch()
    with exclusive(locks / "compare.going-on", "busy"):
        compare(project, "total.py")
        assert [f.name for f in place.iterdir()] == ["going-on"]
    assert not (locks / "compare.left").exists()


def test_ctrl_c(project: Project) -> None:
    project.within = False
    project.rows(DAY, 400_000, parts=PARTS)
    challenger(project, (ANSWER, SLOWLY))
    process = project.start("compare", "total2.py", "--against", "served", "--workers", "1")
    wait_for(project.folder / "began", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; of a comparison nothing is kept." in error
    assert not (project.folder / ".sereno" / "compare").exists()


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
