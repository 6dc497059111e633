"""SIGKILL at every named place: others read the old version or the new one, and a rerun makes all whole.

The default run kills the second night's publication at every place, and the first and each date's at those around the
commit; `make soak` kills everywhere.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from sereno.config import load_settings
from sereno.failpoints import POINTS
from sereno.home import Home
from sereno.ledger import lease_name
from sereno.status import read_status
from tests.acceptance.project import DAY, NEXT_DAY, PARTS, ROWS, THIRD_DAY, Project, faults
from tests.acceptance.test_faults_lookup import BUILD_PLACES

OF_A_RUN = (
    "plan", "task_start", "task_start@2", "part_written", "task_done", "task_done@2", "scored", "gate_before", "gate_after",
    "fsync", "commit_before", "commit_after", "export_before", "export_before@2", "export_copied", "export_copied@2",
    "export_swapped", "export_swapped@2", "run_end", "ledger_running", "ledger_ended",
)  # fmt: skip
AROUND_THE_COMMIT = ("commit_before", "commit_after", "export_copied")
OF_OPERATORS = {"release", "rollback"}  # killed in tests of their own
FINISHED_BEFORE = {"task_start@2": 1, "task_done": 1, "task_done@2": 2} | dict.fromkeys(
    ("scored", "gate_before", "gate_after", "fsync", "commit_before"), PARTS
)


def seldom(*values: object) -> object:
    """A case for `make soak`."""
    return pytest.param(*values, marks=pytest.mark.soak)


class Before(NamedTuple):
    """A project before a run that will be killed, and what others read of it before and after an undisturbed one."""

    project: Project
    day: str
    old: tuple[pa.Table | None, pa.Table | None]  # the table, and its export
    new: tuple[pa.Table | None, pa.Table | None]


Begin = Callable[[str, str], Before]


def test_every_failpoint_is_killed_at() -> None:
    of_answers = {place for place in POINTS if place.startswith("answers_")}  # test_answers.py
    of_lookups = {place for place in POINTS if place.startswith("lookup_")}
    assert {place.partition("@")[0] for place in BUILD_PLACES} == of_lookups
    of_notices = {place for place in POINTS if place.startswith("notice_")}  # test_notices.py
    others = OF_OPERATORS | of_answers | of_lookups | of_notices
    assert {place.partition("@")[0] for place in OF_A_RUN} | others == POINTS


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Project]]:
    """By disposition: an untouched project, one that published the first night, and one that published both."""
    found = {}
    for disposition in ("replace", "partition"):
        folder = tmp_path_factory.mktemp(disposition)
        project = Project.new(folder / "0")
        project.settings(disposition=disposition)
        project.rows(DAY, ROWS, parts=PARTS)
        project.rows(NEXT_DAY, ROWS, parts=PARTS, first=ROWS // 2)
        found[disposition] = [project]
        for night, day in enumerate((DAY, NEXT_DAY), 1):
            project = project.copy(folder / str(night))
            assert project.run(day)["tasks"] == PARTS
            found[disposition].append(project)
    return found


@pytest.fixture
def begin(nights: dict[str, list[Project]], tmp_path: Path) -> Begin:
    def begin(disposition: str, publication: str) -> Before:
        first = ("first", "second").index(publication)
        old, new = nights[disposition][first : first + 2]
        day = (DAY, NEXT_DAY)[first]
        return Before(old.copy(tmp_path / "project"), day, shown(old), shown(new))

    return begin


def shown(project: Project) -> tuple[pa.Table | None, pa.Table | None]:
    return project.published(), project.exported()


def is_old_or_new(before: Before) -> bool:
    """What any other system reads right now is one of the two versions, whole. True: the table is the new one."""
    table, export = shown(before.project)
    assert (table, export) in (before.old, (before.new[0], before.old[1]), before.new)  # exports never lead
    return bool(table == before.new[0])


def is_whole(before: Before) -> None:
    """The run was published exactly once, as it would have been undisturbed, and nothing is left over."""
    project = before.project
    assert shown(project) == before.new
    versions = project.versions()
    assert [v["data_date"] for v in versions] == [DAY, NEXT_DAY][: len(versions)]
    assert versions[-1]["data_date"] == before.day
    runs = [r for r in project.runs() if r["data_date"] == before.day]
    assert [(r["version"], r["attempt"]) for r in runs if r["state"] == "published"] == [
        (versions[-1]["version"], versions[-1]["run"])
    ]
    assert [r["state"] for r in runs if r["state"] != "published"] in ([], ["failed"])
    assert project.orphans() == set()
    left = [f for f in (project.folder / ".sereno" / "runs").rglob("*") if f.is_file() and f.name != "report.json"]
    assert left == []
    with Home(load_settings(project.folder), "total").ledger() as ledger:
        known = {str(e.data_date): e for e in ledger.entries(model="total")}
        assert [e.state for e in known.values()] == ["published"] * len(known)
        entry = known[before.day]
        assert (entry.attempt, entry.version, entry.label) == (versions[-1]["run"], versions[-1]["version"], before.day)
        assert ledger.holder(lease_name("total", entry.run_key)) is None
    status = read_status(project.folder, "total")
    assert status is not None
    assert (status.version, str(status.data_date)) == (versions[-1]["version"], before.day)


def cases() -> Iterator[object]:
    for disposition in ("replace", "partition"):
        for publication in ("first", "second"):
            for place in OF_A_RUN:
                if publication == "first" and place.endswith("@2") and place.startswith("export"):
                    continue  # nothing is exported before the first publication, so each is reached once
                other = (disposition, publication) != ("replace", "second")
                rare = other and (
                    place not in AROUND_THE_COMMIT or (disposition, publication) == ("partition", "first")
                )
                yield (seldom if rare else pytest.param)(disposition, publication, place)


@pytest.mark.parametrize(("disposition", "publication", "place"), [*cases()])
def test_a_run_is_killed(begin: Begin, disposition: str, publication: str, place: str) -> None:
    before = begin(disposition, publication)
    name, _, time = place.partition("@")
    fault = f"{name}:kill@{time or 1}"
    before.project.sereno("run", "total.py", "--date", before.day, code=-signal.SIGKILL, **faults(fault))
    published = is_old_or_new(before)
    exporting = name.startswith("export") and (publication == "first" or time == "2")
    assert published == (exporting or name in ("commit_after", "run_end", "ledger_ended"))
    states = before.project.states()
    if name.startswith("export") and not exporting:
        assert states == ["published"]  # it died before it was an attempt
    else:
        assert states[-1] == ("published" if published else "interrupted")

    report = before.project.run(before.day)
    assert report["state"] == ("nothing" if published else "published")
    if not published:
        assert report["resumed_tasks"] >= FINISHED_BEFORE.get(place, 0)
    is_whole(before)


@pytest.mark.parametrize("place", ["task_start", "part_written", seldom("task_done"), "task_done@2"])
@pytest.mark.parametrize("disposition", ["replace", seldom("partition")])
def test_the_second_worker_is_killed(begin: Begin, disposition: str, place: str) -> None:
    before = begin(disposition, "second")
    name, _, time = place.partition("@")
    # the first worker is slow after its first task, so that the second has something to do
    variables = faults("task_done:delay=0.7") | {"FAILPOINT_OF_WORKER": f"{name}:kill@{time or 1}"}
    said = before.project.run(before.day, "--workers", "2", code=1, **variables)
    assert said["error"] == "WorkerError"
    assert re.fullmatch(
        r"A worker process was ended by signal 9 while it scored task \d\. The machine may have run out of memory: try "
        r"fewer --workers, or a smaller batch_rows\. Nothing was published; finished tasks are kept: start the run again "
        r"and it goes on where it was\.",
        said["says"],
    )
    assert not is_old_or_new(before)
    assert before.project.states() == ["published", "failed"]
    report = before.project.run(before.day, "--workers", "2")
    assert report["resumed_tasks"] >= FINISHED_BEFORE.get(place, 0)
    is_whole(before)


def test_two_kills_in_a_row(begin: Begin) -> None:
    """Tasks are taken over from an attempt that had taken them over itself; so are none that are published."""
    before = begin("replace", "second")
    run = ("run", "total.py", "--date", before.day)
    before.project.sereno(*run, code=-signal.SIGKILL, **faults("task_done:kill@2"))
    before.project.sereno(*run, code=-signal.SIGKILL, **faults("scored:kill"))
    before.project.sereno(*run, code=-signal.SIGKILL, **faults("commit_after:kill"))
    assert is_old_or_new(before)
    again = before.project.run(before.day, "--force")
    assert (again["version"], again["resumed_tasks"]) == (3, 0)  # a part belongs to one version only
    assert shown(before.project) == before.new
    assert before.project.orphans() == set()
    assert before.project.states() == ["published", "failed", "failed", "published", "published"]


@pytest.mark.parametrize(
    "place", ["release", seldom("commit_before"), "commit_after", "export_copied", seldom("export_swapped")]
)
def test_a_release_is_killed(begin: Begin, place: str) -> None:
    before = begin("replace", "second")
    project = before.project
    project.run(NEXT_DAY)
    project.rows(THIRD_DAY, 1_000)
    held = project.run(THIRD_DAY, code=3)
    old = shown(project)

    project.sereno("release", held["attempt"], code=-signal.SIGKILL, **faults(f"{place}:kill"))
    published = place not in ("release", "commit_before")
    assert (shown(project) == old) == (not published)
    assert project.states()[-1] == ("published" if published else "held")
    again = project.json("release", held["attempt"])
    assert (again["state"], again["version"]) == ("published", 3)
    assert shown(project)[0] == shown(project)[1]
    assert project.published().num_rows == 1_000  # type: ignore[union-attr]
    assert [v["version"] for v in project.versions()] == [1, 2, 3]
    assert project.orphans() == set()
    refused = project.json("release", held["attempt"], code=1)
    assert f"Run {held['attempt']} is published, not held. Released by" in refused["says"]


@pytest.mark.parametrize("place", ["rollback", "export_copied", "export_swapped", seldom("export_before")])
@pytest.mark.parametrize("to", [(), seldom(("--to", "1"))])
def test_a_rollback_is_killed(
    nights: dict[str, list[Project]], tmp_path: Path, place: str, to: tuple[str, ...]
) -> None:
    project = nights["replace"][2].copy(tmp_path / "project")
    project.sereno("rollback", "total", *to, code=-signal.SIGKILL, **faults(f"{place}:kill"))
    old, new = (shown(nights["replace"][night]) for night in (2, 1))
    assert shown(project) in (old, (new[0], old[1]), new)
    assert project.in_service() == [2 if place == "rollback" else 1]
    again = project.json("rollback", "total", *to)  # finishes what the first one left, and goes no further back
    assert again == {"rolled_back": 2, "in_service": 1, "data_date": DAY}
    assert shown(project) == new
    assert project.in_service() == [1]
    assert project.run(NEXT_DAY)["state"] == "nothing"  # withdrawn
