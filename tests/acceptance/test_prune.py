"""Retention: what `sereno prune` says would go, goes, and nothing else."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.acceptance.project import DAY, NEXT_DAY, THIRD_DAY, Project

LONG_AGO = "1950-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three nights that were published."""
    project = Project.new(tmp_path_factory.mktemp("nights") / "project")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1"}
    for night, day in enumerate((DAY, NEXT_DAY, THIRD_DAY)):
        project.rows(day, 100 + night)
        project.run(day)
    return project


@pytest.fixture
def project(nights: Project, tmp_path: Path) -> Project:
    project = nights.copy(tmp_path / "project")
    project.within, project.variables = True, nights.variables
    keep(project)
    return project


def keep(project: Project, **settings: int) -> None:
    """Settings of retention; the ledger keeps what it knows of these nights unless they say otherwise."""
    project.settings(**{"keep_run_days": 20_000, **settings})


def everything(project: Project) -> dict[str, int]:
    """Every file of the home but the ledger's, with its size."""
    files = [f for f in project.folder.rglob("*") if f.is_file() and "ledger.sqlite" not in f.name]
    return {str(f.relative_to(project.folder)): f.stat().st_size for f in files}


def parts(project: Project) -> int:
    return len(list((project.folder / "predictions" / "total").glob("2024*/*.parquet")))


def age(project: Project, day: str) -> None:
    """The runs of a day began long ago."""
    for file in (project.folder / ".sereno" / "runs" / "total").glob(f"{day}-*/report.json"):
        report = json.loads(file.read_bytes())
        file.write_text(json.dumps(report | {"started_at": LONG_AGO}))
    for lock in (project.folder / ".sereno" / "locks").glob("total.*.run"):
        if lock.name.startswith(f"total.{day}"):
            os.utime(lock, (0, 0))


def test_nothing_is_to_go(project: Project) -> None:
    before = everything(project)
    assert project.sereno("prune").stdout == "Nothing is to go.\n"
    assert everything(project) == before


def test_old_snapshots_go_as_the_settings_say(project: Project) -> None:
    keep(project, keep_snapshots=1, keep_hours=0)
    before = everything(project)
    would = project.json("prune", "total", "--dry-run")
    assert everything(project) == before
    done = project.json("prune", "total")
    assert done == would | {"dry_run": False}
    gone = before.keys() - everything(project).keys()
    assert {name.split("/")[0] for name in gone} == {"predictions", "exports"}
    assert parts(project) == 1
    assert [folder.name for folder in project.latest.parent.iterdir() if folder.name.isdigit()] == ["000003"]
    assert project.published().num_rows == 102  # type: ignore[union-attr]
    assert project.sereno("prune").stdout == "Nothing is to go.\n"


def test_old_reports_go_but_not_of_what_is_kept(project: Project) -> None:
    runs = project.folder / ".sereno" / "runs" / "total"
    for day in (DAY, NEXT_DAY, THIRD_DAY):
        age(project, day)
    gone = project.json("prune")["pruned"]
    assert [(one["what"], one["count"]) for one in gone] == [("locks of runs", 3)]  # their snapshots are kept
    keep(project, keep_snapshots=1, keep_hours=0)
    done = project.json("prune")
    assert {one["what"]: one["count"] for one in done["pruned"]}["reports of runs"] == 2
    assert [folder.name[:10] for folder in runs.iterdir()] == [THIRD_DAY]


def test_a_held_run_stays(project: Project) -> None:
    project.rows(DAY, [7.0] * 100)
    held = project.run(DAY, "--force", code=3)
    age(project, DAY)
    keep(project, keep_snapshots=1, keep_hours=0, keep_run_days=1)
    project.json("prune")
    assert project.json("show", held["attempt"])["state"] == "held"
    assert Path(held["parts"][0]["path"]).exists()


def test_the_ledger_forgets_old_runs_but_the_newest(project: Project) -> None:
    keep(project, keep_run_days=1)
    before = {run["data_date"] for run in project.json("runs", "total")}
    assert before == {DAY, NEXT_DAY, THIRD_DAY}
    assert project.json("prune")["pruned"] == []  # old data, but it was run today
    with contextlib.closing(sqlite3.connect(project.folder / ".sereno" / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE sereno_runs SET since = 0")
    done = {one["what"]: one["count"] for one in project.json("prune")["pruned"]}
    assert done["runs in the ledger"] == 2


def test_what_a_killed_comparison_left_goes(project: Project) -> None:
    left = project.folder / ".sereno" / "compare" / "0123456789ab" / "part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 1000)
    assert project.json("prune") == {
        "dry_run": False,
        "bytes": 1000,
        "pruned": [{"model": "", "what": "comparisons that were killed", "count": 1, "size": 1000}],
    }
    assert not left.exists()


def test_an_unknown_model_is_named(project: Project) -> None:
    assert "There is no model 'nobody'" in project.json("prune", "nobody", code=1)["says"]
