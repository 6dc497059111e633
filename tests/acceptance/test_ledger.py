"""The ledger on the command line: runs of one model and of all, what happened to one, and a ledger that is made again."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.ledger import ledger_file, open_at
from sereno.adapters.ledger.statements import SqlLedger
from sereno.exceptions import LedgerError
from sereno.ledger import Entry, Pause, RunState
from tests.acceptance.project import DAY, NEXT_DAY, THIRD_DAY, Project, faults
from tests.services import postgresql

LAST_DAY = "2024-05-04"


@pytest.fixture
def project(project: Project) -> Project:
    project.within = True
    return project


@contextlib.contextmanager
def ledger_of(project: Project, address: str | None = None) -> Iterator[SqlLedger]:
    with contextlib.closing(open_at(address, project.folder)) as ledger:
        yield ledger


def an_entry(day: str, state: RunState, model: str = "total", **changes: Any) -> Entry:
    """Of a day of `total`, which is scored after its midnight."""
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    blank = Entry(
        model=model,
        run_key=f"{start:%Y-%m-%dT%H:%MZ}",
        data_date=start.date(),
        data_time=start + timedelta(days=1),
        state=state,
        since=start + timedelta(days=1, seconds=30),
        label=day,
        who="sereno",
    )
    return replace(blank, **changes)


def entries(project: Project) -> dict[str, Entry]:
    with ledger_of(project) as ledger:
        return {entry.label: entry for entry in ledger.entries()}


@pytest.fixture
def nights(project: Project) -> Project:
    """One that was published, twice, one that is held, one that failed, one that was discarded."""
    project.rows(DAY, 100)
    project.run()
    project.rows(DAY, 101)
    project.run()
    project.rows(NEXT_DAY, 300)
    assert project.run(NEXT_DAY, code=3)["state"] == "held"
    project.table(THIRD_DAY, {"id": [1]})
    project.run(THIRD_DAY, code=4)
    project.rows(LAST_DAY, 300)
    project.run(LAST_DAY, code=3)
    project.sereno("discard", LAST_DAY)
    return project


# Listing


def test_runs_of_one_model(nights: Project) -> None:
    attempts = nights.json("runs", "total")
    assert [run["state"] for run in attempts] == ["published", "published", "held", "failed", "discarded"]
    with ledger_of(nights) as ledger:
        ledger.move(an_entry("2024-04-30", "skipped", reason="a newer date, 2024-05-01, is due"))
        ledger.move(an_entry("2024-05-05", "waiting", reason="input/2024-05-05 is not there\x1b[31m"))
    runs = nights.json("runs", "total")
    # what was never begun stands where it came to be what it is: long before these nights were scored
    assert [(run["state"], run["attempt"] != "") for run in runs] == [
        ("skipped", False),
        ("waiting", False),
        *((run["state"], True) for run in attempts),
    ]
    assert runs[2:] == attempts == nights.json("runs", "total", "--attempts")
    assert runs[1] == {
        "model": "total",
        "run_key": "2024-05-05T00:00Z",
        "data_date": "2024-05-05",
        "data_time": "2024-05-06T00:00:00+00:00",
        "state": "waiting",
        "since": "2024-05-06T00:00:30+00:00",
        "says": "input/2024-05-05 is not there\x1b[31m",
        "who": "sereno",
        "attempt": "",
        "version": None,
        "tries": 0,
        "not_before": None,
        "label": "2024-05-05",
    }
    lines = nights.sereno("runs", "total").stdout.splitlines()
    assert lines[0].split() == ["run", "state", "version", "rows", "in", "predictions", "rejects", "started", "(UTC)"]
    assert lines[1].split() == [
        "2024-04-30",
        "skipped",
        "2024-05-01",
        "00:00",
        *["a", "newer", "date,", "2024-05-01,", "is", "due"],
    ]
    assert "\\x1b[31m" in lines[2]
    assert nights.sereno("runs").stdout.splitlines() == lines  # it is the only one there is


def test_filters_of_runs(nights: Project) -> None:
    def days(*arguments: str) -> list[str]:
        return [run["data_date"] for run in nights.json("runs", "total", *arguments)]

    every = days()
    assert every == [DAY, DAY, NEXT_DAY, THIRD_DAY, LAST_DAY]
    assert days("--state", "held") == [NEXT_DAY]
    assert days("--state", "held", "--state", "failed") == [NEXT_DAY, THIRD_DAY]
    assert days("--limit", "2") == [THIRD_DAY, LAST_DAY]
    assert days("--limit", "1", "--state", "published") == [DAY]
    assert days("--limit", "99") == every
    # due at the end of the day
    assert days("--since", THIRD_DAY) == [NEXT_DAY, THIRD_DAY, LAST_DAY]
    assert days("--until", NEXT_DAY) == [DAY, DAY]
    assert days("--since", "2024-05-03T00:00:01", "--until", "2024-05-04T02:00+02:00") == []
    assert days("--since", "2024-05-03T02:00+02:00", "--until", THIRD_DAY) == [NEXT_DAY]
    assert days("--since", "3d") == []
    assert nights.json("runs", "total", "--since", "soon", code=2)["says"].startswith(
        "--since 'soon' is no time. Write "
    )
    done = nights.sereno("runs", "total", "--state", "done", code=2)
    assert "invalid choice: 'done' (choose from 'due', 'waiting', 'running', 'held'," in done.stderr


def test_an_interrupted_attempt_has_failed(project: Project) -> None:
    project.within = False
    project.rows(DAY, 10)
    project.sereno("run", "total.py", "--date", DAY, code=-9, **faults("commit_before:kill"))
    assert [run["state"] for run in project.json("runs", "total", "--state", "failed")] == ["interrupted"]
    assert project.json("runs", "total", "--state", "running") == []


def test_runs_of_all_models(nights: Project) -> None:
    nights.write("other.py", (nights.folder / "total.py").read_text().replace('"total"', '"other"'))
    nights.sereno("run", "other.py", "--date", DAY)
    runs = nights.json("runs")
    assert [(run["model"], run["data_date"], run["state"], run["version"]) for run in runs] == [
        ("total", DAY, "published", 2),
        ("other", DAY, "published", 1),
        ("total", NEXT_DAY, "held", None),
        ("total", THIRD_DAY, "failed", None),
        ("total", LAST_DAY, "discarded", None),
    ]
    assert {run["who"] for run in runs} != {""}
    lines = nights.sereno("runs").stdout.splitlines()
    assert lines[0].split() == ["model", "run", "state", "version", "since", "(UTC)", "by"]
    assert [line.split()[:3] for line in lines[1:]] == [[r["model"], r["data_date"], r["state"]] for r in runs]
    assert "InputError: " in lines[4]
    of_one = nights.sereno("runs", "total").stdout.splitlines()[1:]
    says = next(run["says"] for run in nights.json("runs", "total") if run["state"] == "failed")
    assert [" ".join(says.split())[:60] in line for line in of_one] == [" failed " in line for line in of_one]
    assert nights.json("runs", "--limit", "2") == runs[-2:]
    assert nights.sereno("runs", "--limit", "2").stdout.splitlines()[-1] == (
        "There are older ones: --limit N shows the newest N, `sereno runs MODEL` those of one model."
    )
    assert nights.json("runs", "--state", "held", "--state", "failed") == runs[2:4]
    assert nights.json("runs", "--since", THIRD_DAY, "--until", "2024-05-04") == runs[2:4]
    assert nights.json("runs", "--attempts", code=2)["says"].startswith("Say whose attempts: in ")

    for path in ledger_file(nights.folder).parent.glob("ledger.sqlite*"):
        path.unlink()
    said = nights.json("runs", code=1)["says"]
    assert said == (
        f"There is no ledger of runs in {nights.folder}. `sereno repair` makes one from what was published; `sereno runs MODEL "
        "--attempts` does without."
    )
    assert len(nights.json("runs", "total")) == 5
    assert not ledger_file(nights.folder).exists()  # whoever only looks makes none
    nights.sereno("repair")
    assert [(r["model"], r["state"]) for r in nights.json("runs")] == [(r["model"], r["state"]) for r in runs]


def test_runs_where_none_were(project: Project) -> None:
    assert project.json("runs", code=2)["says"] == f"Say which model: in {project.folder} there are none."
    with ledger_of(project) as ledger:
        ledger.move(an_entry(DAY, "due", "other"))
    assert [run["state"] for run in project.json("runs")] == ["due"]
    assert [run["state"] for run in project.json("runs", "other")] == ["due"]
    assert project.json("runs", "unknown", code=1)["says"].startswith("There is no model 'unknown' in ")


def test_a_listing_loads_no_data_frames(nights: Project) -> None:
    code = (
        "import sys; from sereno.cli import main; main(['runs', '--home', sys.argv[1]]); "
        "print(*({'numpy', 'pyarrow', 'deltalake', 'msgspec', 'psycopg'} & set(sys.modules)))"
    )
    (nights.folder / "predictions" / "other").mkdir()
    done = subprocess.run([sys.executable, "-c", code, nights.folder], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert len(done.stdout.splitlines()) == 6


# One run


def test_what_happened_to_a_run(nights: Project) -> None:
    found = nights.json("show", LAST_DAY)["transitions"]
    assert [(t["before"], t["after"]) for t in found] == [(None, "running"), ("running", "held"), ("held", "discarded")]
    assert found[2]["who"]
    assert found[2]["says"].startswith("Discarded by ")
    lines = nights.sereno("show", LAST_DAY).stdout.splitlines()
    history = lines[lines.index("History (UTC)") + 1 :]
    assert [re.sub(r"\s+", " ", line).split()[2:5] for line in history] == [
        ["new", "→", "running"],
        ["running", "→", "held"],
        ["held", "→", "discarded"],
    ]
    ledger_file(nights.folder).unlink()
    assert nights.json("show", LAST_DAY)["transitions"] == []


def test_a_run_without_an_attempt_is_shown(nights: Project) -> None:
    with ledger_of(nights) as ledger:
        ledger.move(an_entry("2024-05-05", "waiting", reason="input/2024-05-05 is not there"))
        ledger.move(an_entry("2024-05-05", "held", reason="late: it is not there"))
    shown = nights.sereno("show", "2024-05-05").stdout.splitlines()
    assert shown[0] == "Run 2024-05-05 of total: held"
    assert shown[1] == "  late: it is not there"
    assert [t["after"] for t in nights.json("show", "2024-05-05")["transitions"]] == ["waiting", "held"]
    with ledger_of(nights) as ledger:
        ledger.move(an_entry("2024-05-05", "due", "other"))
    assert nights.json("show", "2024-05-05", code=1)["says"] == (
        "other, total have a run '2024-05-05' each. Say which with --model."
    )
    assert nights.json("show", "2024-05-05", "--model", "other")["state"] == "due"
    assert "has a run '2024-05-09'" in nights.json("show", "2024-05-09", code=1)["says"]


def test_a_run_that_is_held_as_its_input_was_late(nights: Project) -> None:
    for day in ("2024-05-05", "2024-05-06"):
        with ledger_of(nights) as ledger:
            ledger.move(an_entry(day, "held", reason="late: it is not there"))
    assert nights.sereno("release", "2024-05-05").stdout == (
        "Run 2024-05-05 of total is due, whatever there is of its input.\n"
        "No scheduler runs here: start `sereno up`, or `sereno run total --date 2024-05-05`.\n"
    )
    assert (
        nights.sereno("discard", "2024-05-06").stdout
        == "Run 2024-05-06 of total is skipped; what is in service stays.\n"
    )
    found = entries(nights)
    assert (found["2024-05-05"].state, found["2024-05-06"].state) == ("due", "skipped")
    assert nights.json("release", "2024-05-05", code=1)["says"] == (
        "Run 2024-05-05 of total is due, not held (released: the input is not waited for any longer). "
        "`sereno run total --date 2024-05-05` runs it now, with what there is of its input."
    )
    assert nights.json("discard", "2024-05-06", code=1)["says"].startswith(
        "Run 2024-05-06 of total is skipped, not held ("
    )
    nights.sereno("release", NEXT_DAY)  # held by a gate: as ever
    assert entries(nights)[NEXT_DAY].state == "published"


def test_a_late_date_that_is_older_than_what_is_served_is_refused(nights: Project) -> None:
    with ledger_of(nights) as ledger:
        ledger.move(an_entry("2024-04-01", "held", reason="late: it is not there"))
    says = nights.json("release", "2024-04-01", code=1)["says"]
    assert says.startswith(f"Data date 2024-04-01 is older than {DAY}, which is in service")
    assert entries(nights)["2024-04-01"].state == "held"


# Repair


def told(project: Project) -> dict[str, tuple[Any, ...]]:
    """What must be as it was once a ledger was made again."""
    return {
        label: (e.run_key, e.data_date, e.data_time, e.state, e.attempt, e.version, e.tries)
        for label, e in entries(project).items()
    }


def test_a_ledger_that_was_removed(nights: Project) -> None:
    before, reasons = told(nights), {label: e.reason for label, e in entries(nights).items()}
    whole = nights.json("repair")
    assert (whole["added"], whole["changed"], whole["unread"]) == ({}, [], [])
    assert told(nights) == before
    for path in ledger_file(nights.folder).parent.glob("ledger.sqlite*"):
        path.unlink()
    done = nights.json("repair")
    assert done == {
        "ledger": str(ledger_file(nights.folder)),
        "damage": "",
        "aside": "",
        "salvaged": {},
        "added": {"discarded": 1, "failed": 1, "held": 1, "published": 1},
        "changed": [],
        "unread": [],
    }
    assert told(nights) == {
        label: (*values[:-1], {DAY: 2}.get(label, values[-1])) for label, values in before.items()
    }  # a number of tries is that of the attempts
    assert entries(nights)[NEXT_DAY].reason == reasons[NEXT_DAY]
    assert [t["after"] for t in nights.json("show", DAY)["transitions"]] == ["published"]
    again = told(nights)
    assert nights.sereno("repair").stdout == f"The ledger {ledger_file(nights.folder)} lacked no run.\n"
    assert told(nights) == again
    # and they go on from there
    nights.sereno("release", NEXT_DAY)
    assert nights.run(THIRD_DAY, code=4)["error"] == "InputError"
    assert {label: e.state for label, e in entries(nights).items()} == {
        DAY: "published",
        NEXT_DAY: "published",
        THIRD_DAY: "failed",
        LAST_DAY: "discarded",
    }


def test_a_run_tells_a_ledger_that_was_removed_what_else_is_published(project: Project) -> None:
    """Else a scheduler that knows one run, and not the others, would run them again."""
    for day in (DAY, NEXT_DAY):
        project.rows(day, 100)
        project.run(day)
    before = told(project)
    for wanted, code in ((THIRD_DAY, 1), (NEXT_DAY, 0)):
        for path in ledger_file(project.folder).parent.glob("ledger.sqlite*"):
            path.unlink()
        project.run(wanted, code=code)
        assert told(project) == before | {day: told for day, told in told(project).items() if day == THIRD_DAY}
    with ledger_of(project) as ledger:
        ledger.prune(datetime.now(UTC) + timedelta(days=1))
        project.run(NEXT_DAY)
        assert list(entries(project)) == [NEXT_DAY]  # what is too old to be known stays unknown


def test_a_damaged_ledger_is_put_aside(nights: Project) -> None:
    with ledger_of(nights) as ledger:
        ledger.move(an_entry("2024-04-30", "skipped", reason="a newer date is due"))
        ledger.move(an_entry("2024-05-05", "waiting", reason="it is not there"))
        ledger.pause(Pause(model="total", since=datetime(2024, 5, 6, tzinfo=UTC), who="ana", why="holidays"))
        ledger.add_notice("total", "k", "held", "It is held.", datetime(2024, 5, 6, tzinfo=UTC))
        lease = ledger.acquire("scheduler", "me", 60)
        with contextlib.closing(sqlite3.connect(ledger_file(nights.folder))) as connection:
            (root,) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'sereno_runs_by_time'"
            ).fetchone()
    before = {label: e.state for label, e in entries(nights).items()}
    file = ledger_file(nights.folder)
    content = bytearray(file.read_bytes())
    content[4096 * (root - 1) : 4096 * root] = random.Random(1).randbytes(4096)
    file.write_bytes(content)

    listed = nights.sereno("runs", "total", "--state", "held")
    assert listed.returncode == 0  # not all of it is damaged
    done = nights.sereno("repair").stdout.splitlines()
    today = datetime.now(UTC).date()
    aside = file.with_name(f"ledger.sqlite.damaged-{today}")
    assert done[0].startswith(f"The ledger {file} is damaged: ")
    assert done[1:3] == [
        f"It is now {aside}; remove it when nothing of it is missed.",
        "Read of it: 6 runs, 13 transitions, 1 pause, 1 notice.",
    ]
    assert done[3:] == [f"The ledger {file} lacked no run."]
    assert aside.read_bytes() == content
    assert {label: e.state for label, e in entries(nights).items()} == before
    with ledger_of(nights) as ledger:
        ledger.verify()
        assert ledger.pauses()["total"].why == "holidays"
        assert not ledger.add_notice("total", "k", "held", "It is held.", datetime(2024, 5, 6, tzinfo=UTC))
        assert lease is not None
        assert ledger.renew(lease, 60)  # the scheduler goes on
        taken = ledger.acquire("another", "you", 60)
        assert taken is not None
        assert taken.token > lease.token

    file.write_bytes(b"garbage" * 5000)
    failed = nights.sereno("runs", "total", code=1)
    assert "held" in failed.stdout
    assert "is damaged: it is no SQLite file any more" in failed.stderr
    assert failed.stderr.endswith(
        "`sereno repair` puts it aside and makes it again from what was published. Only attempts are listed.\n"
    )
    assert nights.json("runs", "total", "--attempts")[-1]["state"] == "discarded"
    shown = nights.sereno("show", DAY).stdout
    assert "What happened to it is not known: The ledger " in shown
    again = nights.json("repair")
    assert again["aside"] == f"{aside}-2"
    assert again["salvaged"] == {"runs": 0, "transitions": 0, "pauses": 0, "notices": 0}
    assert again["added"] == {"discarded": 1, "failed": 1, "held": 1, "published": 1}
    assert len(again["unread"]) == 6
    assert aside.read_bytes() == content
    assert [*file.parent.glob("*ledger.new*"), *file.parent.glob("*-wal"), *file.parent.glob("*-shm")] == []


@pytest.mark.parametrize("point", ["commit_after", "ledger_ended"])
def test_runs_that_the_ledger_was_not_told_of(project: Project, point: str) -> None:
    project.within = False
    project.rows(DAY, 10)
    project.sereno("run", "total.py", "--date", DAY, code=-9, **faults(f"{point}:kill"))
    before = entries(project)[DAY].state
    done = project.json("repair")
    assert done["changed"] == ([] if before == "published" else [f"total {DAY}: running is published"])
    assert (entries(project)[DAY].state, entries(project)[DAY].version) == ("published", 1)
    assert project.json("repair")["changed"] == []


def test_a_run_goes_on_over_a_repair(project: Project) -> None:
    project.within = False
    project.rows(DAY, 10)
    process = project.start("run", "total.py", "--date", DAY, "--json", **faults("commit_before:delay=3"))
    try:
        wait_for(lambda: ledger_file(project.folder).exists() and entries(project).get(DAY) is not None)
        ledger_file(project.folder).write_bytes(b"garbage" * 5000)
        done = project.json("repair")
        assert done["added"] == {"running": 1}
        assert entries(project)[DAY].state == "running"
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert json.loads(out)["version"] == 1
    assert (entries(project)[DAY].state, entries(project)[DAY].version) == ("published", 1)


def wait_for(holds: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_read_is_told(nights: Project) -> None:
    nights.write("other.py", (nights.folder / "total.py").read_text().replace('"total"', '"other"'))
    nights.sereno("run", "other.py", "--date", DAY)
    ledger_file(nights.folder).unlink()
    (log,) = (nights.folder / "predictions" / "other" / "_delta_log").glob("*0.json")
    log.write_text("{")
    attempt = nights.json("runs", "total")[2]["attempt"]
    report = nights.folder / ".sereno" / "runs" / "total" / attempt / "report.json"
    report.write_text("{")
    done = nights.json("repair")
    assert [what.partition(": ")[0] for what in done["unread"]] == ["the log of other", str(report)]
    # of the other there is only a report that says it is published, and no log that confirms it
    assert done["added"] == {"discarded": 1, "failed": 2, "published": 1}


def test_a_disk_that_is_full_while_the_ledger_is_repaired(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        project = Project.new(disk / "project")
        project.within = True
        with ledger_of(project) as ledger:
            first = date(2024, 1, 1)
            ledger.add([an_entry(str(first + timedelta(days=n)), "skipped", reason="words " * 30) for n in range(300)])
        file = ledger_file(project.folder)
        content = bytearray(file.read_bytes())
        content[-4096:] = random.Random(1).randbytes(4096)
        file.write_bytes(content)
        (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 100_000))
        said = project.json("repair", code=1)
        assert said["error"] == "LedgerError"
        assert "the disk is full" in said["says"]
        assert file.read_bytes() == content
        (disk / "filler").unlink()
        done = project.json("repair")
        assert done["aside"]
        assert 200 < done["salvaged"]["runs"] <= 300
        with ledger_of(project) as ledger:
            ledger.verify()
            assert len(ledger.entries()) == done["salvaged"]["runs"]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.service
def test_a_ledger_in_postgresql(nights: Project) -> None:
    before = told(nights)
    with postgresql() as address:
        nights.write("sereno.toml", f'ledger = "{address}"\n')
        done = nights.json("repair")
        assert done["ledger"] == address
        assert done["added"] == {"discarded": 1, "failed": 1, "held": 1, "published": 1}
        with ledger_of(nights, address) as ledger:
            assert {e.label: e.state for e in ledger.entries()} == {
                label: values[3] for label, values in before.items()
            }
        nights.sereno("release", NEXT_DAY)
        assert nights.json("repair")["added"] == {}
        assert [t["after"] for t in nights.json("show", NEXT_DAY)["transitions"]] == ["held", "published"]
        with ledger_of(nights, address) as ledger:
            ledger._database.write(lambda cursor: cursor.change("DELETE FROM sereno_ledger"))
        said = nights.json("repair", code=1)["says"]
        assert "is damaged: it does not say which format it has" in said
    said = nights.json("repair", code=1)["says"]
    assert f"The ledger {address} cannot be reached: " in said


def test_only_one_repairs_at_a_time(nights: Project) -> None:
    from sereno.storage import exclusive

    with exclusive(nights.folder / ".sereno" / "locks" / "repair", ""):
        said = nights.json("repair", code=1)
    assert said["error"] == "BusyError"
    assert said["says"].startswith("Another process (pid ")


def test_a_damaged_one_is_told_from_the_rest() -> None:
    assert LedgerError("x", damaged=True).damaged
    assert not LedgerError().damaged
