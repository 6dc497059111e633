"""A ledger that fails while a run goes on: the run is published once or not at all, and says which; readers notice nothing.

What fails is what really does: a file that another process has locked, damaged or removed, a disk without room, a
database that is gone.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sereno import ledger as ledgers
from sereno.adapters.ledger import ledger_file, sqlite
from sereno.batch import lease
from sereno.batch.run import Silent
from sereno.config import load_settings
from sereno.exceptions import LedgerError
from sereno.home import Home
from sereno.ledger import Entry
from tests.acceptance.project import DAY, NEXT_DAY, THIRD_DAY, Project
from tests.racers import new_home, run_here
from tests.services import postgresql

KNOWS_NOT = "But the ledger of runs does not know: "


class At(Silent):
    """Does something once, when a run comes to a stage."""

    def __init__(self, stage: str, fault: Callable[[], None]) -> None:
        self._stage, self._fault = stage, fault

    def stage(self, name: str) -> None:
        if name == self._stage:
            self._fault()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new_home(tmp_path / "home")


@pytest.fixture
def locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Locks the ledger, until the test ends."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            other = stack.enter_context(contextlib.closing(sqlite3.connect(ledger_file(folder))))
            other.execute("BEGIN IMMEDIATE")

        lock.end = stack.close  # type: ignore[attr-defined]
        yield lock


def damage(folder: Path) -> None:
    """Another file of that name, which is no ledger."""
    file = ledger_file(folder)
    other = file.with_name("other")
    other.write_bytes(b"This is no ledger. " * 1_000)
    other.replace(file)
    for name in ("-wal", "-shm"):
        file.with_name(file.name + name).unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    with Home(load_settings(folder), "total").ledger() as ledger:
        return ledger.entries(model="total")


def versions(folder: Path) -> list[str]:
    snapshots = Home(load_settings(folder), "total").store.state().snapshots
    return [s.data_date.isoformat() for s in snapshots.values()]


def is_mended(folder: Path, day: str = DAY) -> None:
    """The next run has the ledger say what the log does."""
    assert run_here(folder, day)["state"] == "nothing"
    (entry,) = [e for e in entries(folder) if e.label == day]
    assert (entry.state, entry.version) == ("published", len(versions(folder)))


def test_a_ledger_that_is_locked_before_a_run(folder: Path, locked: Any) -> None:
    assert run_here(folder, DAY)["state"] == "published"
    locked()
    said = run_here(folder, NEXT_DAY)
    assert said["error"] == "LedgerError"
    assert "is locked" in said["says"]
    assert said["says"].endswith(" Nothing was published by this run.")
    assert versions(folder) == [DAY]
    locked.end()
    assert run_here(folder, NEXT_DAY)["state"] == "published"


@pytest.mark.parametrize("stage", ["score", "publish", "export"])
def test_a_ledger_that_is_locked_during_a_run(folder: Path, locked: Any, stage: str) -> None:
    """The lease was had a moment ago, so that nobody else can have it: the run goes on."""
    said = run_here(folder, DAY, watcher=At(stage, locked))
    assert said["error"] == "LedgerError"
    assert said["says"].startswith(f"Version 1 is published. {KNOWS_NOT}The ledger ")
    assert "is locked" in said["says"]
    assert said["says"].endswith("The next `sereno run` of its date, or `sereno repair`, tells it.")
    assert versions(folder) == [DAY]
    locked.end()
    assert [e.state for e in entries(folder)] == ["running"]
    is_mended(folder)
    assert versions(folder) == [DAY]


def test_a_ledger_that_is_locked_for_longer_than_a_lease(
    folder: Path, locked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then another may have taken the run over: better not published than twice."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)

    def fault() -> None:
        locked()
        began = lease._now()
        while lease._now() < began + 0.3:  # as long as scoring takes
            pass

    said = run_here(folder, DAY, watcher=At("score", fault))
    assert said["error"] == "LeaseLostError"
    assert re.match(
        r"The lease of this run could not be renewed for \d seconds, so that another process may have taken the run over: "
        r"The ledger .* is locked",
        said["says"],
    )
    assert versions(folder) == []
    locked.end()
    assert run_here(folder, DAY)["state"] == "published"
    assert [e.state for e in entries(folder)] == ["published"]


@pytest.mark.parametrize("stage", ["score", "publish"])
def test_a_ledger_that_is_damaged_during_a_run(folder: Path, stage: str) -> None:
    said = run_here(folder, DAY, watcher=At(stage, lambda: damage(folder)))
    assert said["error"] == "LedgerError"
    assert said["says"].startswith(f"Version 1 is published. {KNOWS_NOT}")
    assert "`sereno repair`" in said["says"]
    assert versions(folder) == [DAY]


@pytest.mark.parametrize("stage", ["score", "publish", "export"])
def test_a_ledger_that_is_removed_during_a_run(folder: Path, stage: str) -> None:
    """Another is begun, and told what is known."""

    def remove() -> None:
        for path in ledger_file(folder).parent.glob("ledger.sqlite*"):
            path.unlink()

    assert run_here(folder, DAY, watcher=At(stage, remove))["state"] == "published"
    (entry,) = entries(folder)
    assert (entry.state, entry.version, entry.label, entry.tries) == ("published", 1, DAY, 1)


@pytest.mark.parametrize("stage", ["plan", "score", "publish"])
def test_a_disk_without_room_for_the_ledger(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The table is on another one."""

    def fill() -> None:
        def full(*_: object) -> None:
            raise LedgerError("The ledger cannot be written: the disk is full. Free space, then try again.")

        monkeypatch.setattr("sereno.adapters.ledger.sqlite.SqliteDatabase.write", full)

    said = run_here(folder, DAY, watcher=At(stage, fill))
    assert said["error"] == "LedgerError"
    assert said["says"].startswith(
        f"Version 1 is published. {KNOWS_NOT}The ledger cannot be written: the disk is full."
    )
    assert versions(folder) == [DAY]
    monkeypatch.undo()
    is_mended(folder)


@pytest.mark.service
@pytest.mark.parametrize("stage", ["plan", "score", "publish", "export"])
def test_a_database_that_is_killed_during_a_run(server: str, tmp_path: Path, stage: str) -> None:
    name = f"ledger_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        folder = new_home(tmp_path / "home", server.replace("/postgres?", f"/{name}?"))

        def kill() -> None:
            admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false".encode())
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        said = run_here(folder, DAY, watcher=At(stage, kill))
        assert said["error"] == "LedgerError"
        assert said["says"].startswith(f"Version 1 is published. {KNOWS_NOT}The ledger postgresql://")
        assert versions(folder) == [DAY]
        said = run_here(folder, NEXT_DAY)
        assert (said["error"], said["says"].split(". ")[-1]) == ("LedgerError", "Nothing was published by this run.")
        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true".encode())
        is_mended(folder)


@pytest.mark.service
def test_a_database_that_drops_its_connections_is_asked_again(server: str, tmp_path: Path) -> None:
    name = f"ledger_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        folder = new_home(tmp_path / "home", server.replace("/postgres?", f"/{name}?"))

        def drop() -> None:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        assert run_here(folder, DAY, watcher=At("score", drop))["state"] == "published"
        assert [e.state for e in entries(folder)] == ["published"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.new(tmp_path / "project")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1", "SERENO_WHO": "ana"}
    for night, day in enumerate((DAY, NEXT_DAY, THIRD_DAY)):
        project.rows(day, 100 + night)
    return project


def told(project: Project, day: str) -> list[tuple[str, str, str]]:
    """What happened to a date's run: state, reason, who."""
    with Home(load_settings(project.folder), "total").ledger() as ledger:
        (entry,) = [e for e in ledger.entries(model="total") if str(e.data_date) == day]
        return [(t.after, t.reason, t.who) for t in ledger.transitions("total", entry.run_key)]


def test_what_only_reads_needs_no_ledger_and_makes_none(project: Project) -> None:
    project.run(DAY)
    shutil.rmtree(project.folder / ".sereno" / "status")
    file = ledger_file(project.folder)
    file.unlink()
    project.look("get", "total", "7")
    project.versions()
    project.look("show", DAY)
    project.runs()
    assert not file.exists()
    damage(project.folder)
    assert project.look("get", "total", "7")["y"] == 1.75
    assert project.in_service() == [1]
    assert project.look("show", DAY)["predictions"] == 100
    said = project.run(NEXT_DAY, code=1)
    assert said["error"] == "LedgerError"
    assert "`sereno repair`" in said["says"]
    assert said["says"].endswith("Nothing was published by this run.")


def test_a_rollback_needs_no_ledger(project: Project) -> None:
    project.run(DAY)
    project.run(NEXT_DAY)
    damage(project.folder)
    said = project.json("rollback", "total", "--why", "strange offers", code=1)
    assert said["says"].startswith(f"Version 1 is in service again. {KNOWS_NOT}")
    assert project.in_service() == [1]
    assert project.exported() == project.published()


def test_the_ledger_is_told_of_every_decision(project: Project) -> None:
    assert project.run(DAY)["version"] == 1
    assert project.run(DAY)["state"] == "nothing"
    assert told(project, DAY) == [("running", "", "ana"), ("published", "", "ana")]  # what does nothing leaves no trace

    project.rows(NEXT_DAY, 10)
    held = project.run(NEXT_DAY, code=3)
    project.variables["SERENO_WHO"] = "ben"
    project.json("release", held["attempt"])
    project.json("rollback", "total", "--why", "too few")
    running, was_held, released, rolled_back = told(project, NEXT_DAY)
    assert (running, was_held) == (("running", "", "ana"), ("held", held["says"], "ana"))
    assert released[0::2] == ("published", "ben")
    assert released[1].startswith("Released by ben at ")
    assert rolled_back == ("published", "Version 2 was rolled back by ben: too few.", "ben")
    project.json("rollback", "total", "--to", "2")
    assert told(project, NEXT_DAY)[4:] == [("published", "Version 2 was rolled back to.", "ben")]

    project.rows(THIRD_DAY, 1_000)
    held = project.run(THIRD_DAY, code=3)
    project.json("discard", held["attempt"])
    assert told(project, THIRD_DAY)[1:] == [("held", held["says"], "ben"), ("discarded", "Discarded by ben.", "ben")]


def test_a_failure_names_its_class(project: Project) -> None:
    shutil.rmtree(project.folder / "input" / DAY)
    said = project.run(DAY, code=1)
    assert told(project, DAY) == [("running", "", "ana"), ("failed", f"SourceError: {said['says']}", "ana")]
    project.rows(DAY, 100)
    project.run(DAY)
    with Home(load_settings(project.folder), "total").ledger() as ledger:
        (entry,) = ledger.entries()
    assert (entry.state, entry.reason, entry.tries, entry.version) == ("published", "", 2, 1)


def test_another_try_of_what_is_published_does_not_make_it_less_so(project: Project) -> None:
    project.run(DAY)
    shutil.rmtree(project.folder / "input" / DAY)
    said = project.run(DAY, code=1)
    failed, still = told(project, DAY)[2:]
    assert failed == ("failed", f"SourceError: {said['says']}", "ana")
    assert still == ("published", f"The last try failed: SourceError: {said['says']}", "ana")


def test_exports_that_failed_are_to_be_tried_again(project: Project) -> None:
    blocker = project.write("exports", "not a folder")
    said = project.run(DAY, code=1)
    assert said["error"] == "ExportError"
    with Home(load_settings(project.folder), "total").ledger() as ledger:
        for tries in (1, 2):
            (entry,) = ledger.open_entries()
            assert (entry.state, entry.version, entry.tries) == ("published", 1, tries)
            assert entry.reason == f"ExportError: {said['says']}"
            assert entry.not_before is not None
            assert 50 < (entry.not_before - entry.since).total_seconds() < 70
            said = project.run(DAY, code=1)
        blocker.unlink()
        assert project.run(DAY)["state"] == "nothing"
        (entry,) = ledger.entries()
        assert (entry.state, entry.reason, entry.not_before) == ("published", "", None)


def test_what_was_held_for_late_data(project: Project) -> None:
    project.run(DAY)
    home = Home(load_settings(project.folder), "total")
    with home.ledger() as ledger:
        (known,) = ledger.entries()
        late = ledgers.Entry(
            model="total", run_key="2024-05-02T00:00Z", data_date=known.data_date.replace(day=2), state="held",
            data_time=known.data_time.replace(day=3), since=known.since, reason="late: no file", who="sereno", label=NEXT_DAY,
        )  # fmt: skip
        ledger.move(late)
        project.json("discard", NEXT_DAY, "--model", "total")
        assert told(project, NEXT_DAY)[1:] == [("skipped", "discarded: the input came too late", "ana")]
        ledger.move(late)
        project.json("release", NEXT_DAY, "--model", "total")
        (entry,) = ledger.entries(states=["due"])
        assert (entry.reason, entry.who, entry.not_before) == (ledgers.RELEASED_LATE, "ana", None)
        assert project.run(NEXT_DAY)["version"] == 2
        assert told(project, NEXT_DAY)[3:] == [
            ("due", ledgers.RELEASED_LATE, "ana"),
            ("running", "", "ana"),
            ("published", "", "ana"),
        ]
