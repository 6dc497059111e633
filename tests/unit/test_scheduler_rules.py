"""The scheduler at its ledger: limits, pauses, clocks, leases, what fails. Real ledgers; clock, starter and arrivals are the test's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.ledger import open_at
from sereno.exceptions import LedgerError, WorkerError
from sereno.ledger import LEASE_SECONDS, Entry, Notice, Pause
from sereno.operate.notices.words import Teller
from sereno.operate.scheduling.pausing import resume
from sereno.operate.scheduling.scheduler import LEASE, Scheduler
from sereno.settings import Settings
from tests.nights import Night

NOW = datetime(2026, 5, 10, 0, 0, 30, tzinfo=UTC)


class Bench:
    """A scheduler, and all that it has to do with."""

    def __init__(self, home: Path, *models: Night, most_runs: int = 10) -> None:
        self.home, self.now, self.log = home, NOW, list[str]()
        self.ledger = open_at(None, home)
        self.alive: set[tuple[str, str]] = set()
        self.started: list[str] = []
        self.over: list[tuple[str, str, int]] = []
        self.there: set[str] = set()  # labels of dates whose data is there
        self.watched: set[tuple[str, str]] = set()
        self.refusal = ""
        self.scheduler = self.another(*models, most_runs=most_runs)

    def another(self, *models: Night, most_runs: int = 10) -> Scheduler:
        teller = Teller(self.ledger, Settings(home=self.home, notify=("json://localhost",)))
        return Scheduler(
            self.ledger,
            models,
            home=self.home,
            starter=self,
            arrivals=self,
            teller=teller,
            clock=lambda: self.now,
            random=lambda: 0.5,
            most_runs=most_runs,
            log=self.log.append,
            is_alive=lambda entry: (entry.model, entry.run_key) in self.alive,
        )

    # Starter and Arrivals

    def start(self, entry: Entry, scheduled: Any) -> None:
        if self.refusal:
            raise WorkerError(self.refusal)
        self.started.append(f"{entry.model} {entry.label}")

    def ended(self) -> list[tuple[str, str, int]]:
        over, self.over = self.over, []
        return over

    def watch(self, entry: Entry, scheduled: Any) -> None:
        self.watched.add((entry.model, entry.run_key))

    def state(self, model: str, run_key: str) -> tuple[Any, str]:
        is_there = run_key[:10] in self.there
        return ("ready", "it is there") if is_there else ("waiting", f"/in/{run_key[:10]} is not there")

    def forget(self, model: str, run_key: str) -> None:
        self.watched.discard((model, run_key))

    # What happens

    def tick(self, after: float = 0) -> list[str]:
        """What is started by a tick so many seconds later."""
        self.now += timedelta(seconds=after)
        before = len(self.started)
        self.scheduler.tick()
        return self.started[before:]

    def entry(self, day: str, model: str = "churn") -> Entry:
        found = self.ledger.entry(model, f"{day}T00:00Z")
        assert found is not None
        return found

    def states(self, model: str = "churn") -> dict[str, str]:
        return {entry.label: entry.state for entry in self.ledger.entries(model=model)[::-1]}

    def begin(self, day: str, model: str = "churn") -> None:
        """Its run says that it is running."""
        entry = self.entry(day, model)
        self.alive.add((model, entry.run_key))
        self.ledger.acquire(f"run:{model}:{entry.run_key}", _here(), 1000, by_force=True)
        self.ledger.move(
            replace(entry, state="running", since=self.now, tries=entry.tries + 1, attempt="a", not_before=None)
        )

    def end(self, day: str, state: str, reason: str = "", model: str = "churn", **more: Any) -> None:
        """Its run says how it ends, and does."""
        entry = self.entry(day, model)
        if entry.state != "running":
            self.begin(day, model)
            entry = self.entry(day, model)
        self.ledger.move(replace(entry, state=state, since=self.now, reason=reason, **more))  # type: ignore[arg-type]
        self.gone(day, 0 if state == "published" else 1, model)

    def gone(self, day: str, code: int, model: str = "churn") -> None:
        """Its process ends, whatever it has said."""
        key = (model, f"{day}T00:00Z")
        self.alive.discard(key)
        self.over.append((*key, code))

    def notices(self, model: str = "churn") -> list[tuple[str, str]]:
        return [(notice.run_key[:10], notice.kind) for notice in self.ledger.notices(model, 100)[::-1]]

    def newest_notice(self) -> Notice:
        return self.ledger.notices("churn", 1)[0]


def _here() -> str:
    import socket

    return f"{socket.gethostname()}:1:run"


CHURN = Night(name="churn", has_arrival=False)
DATES = Night(name="churn", has_arrival=False, disposition="partition")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def known(bench: Bench, day: str, model: str = "churn") -> None:
    """The newest run that the ledger knows."""
    start = datetime.fromisoformat(f"{day}T00:00Z")
    entry = Entry(
        model=model, run_key=f"{day}T00:00Z", data_date=start.date(), data_time=start + timedelta(days=1),
        state="published", since=start + timedelta(days=1), label=day, version=1,
    )  # fmt: skip
    bench.ledger.move(entry)


# A night


def test_a_run_is_started_when_it_is_due_and_once(home: Path) -> None:
    bench = Bench(home, CHURN)
    assert bench.tick() == ["churn 2026-05-09"]
    assert bench.tick(5) == []  # it has not said yet that it runs
    bench.begin("2026-05-09")
    assert bench.tick(5) == []
    bench.end("2026-05-09", "published", version=1)
    assert bench.tick(5) == []
    assert bench.scheduler.next_wake() == datetime(2026, 5, 11, tzinfo=UTC)
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    assert bench.tick() == ["churn 2026-05-10"]
    assert bench.notices() == []


def test_it_waits_for_its_data(home: Path) -> None:
    bench = Bench(home, replace(CHURN, has_arrival=True))
    assert bench.tick() == []
    assert bench.entry("2026-05-09").reason == "/in/2026-05-09 is not there"
    assert bench.watched == {("churn", "2026-05-09T00:00Z")}
    assert bench.scheduler.next_wake() == datetime(2026, 5, 10, 6, tzinfo=UTC)
    bench.there.add("2026-05-09")
    assert bench.tick(60) == ["churn 2026-05-09"]
    assert bench.watched == set()


def test_data_that_is_always_later_than_the_next_date_still_comes(home: Path) -> None:
    hourly = replace(CHURN, has_arrival=True, schedule="0 * * * *")
    bench = Bench(home, hourly)
    bench.tick()
    bench.tick(3600)
    bench.tick(3600)
    assert [*bench.states().values()] == ["waiting", "waiting", "waiting"]
    bench.ledger.move(replace(bench.ledger.entries()[1], who="sereno"))
    bench.there = {"2026-05-10"}  # of the two newer ones; the newest goes, the others are skipped
    assert bench.tick(5) == ["churn 2026-05-10T01:00"]
    assert [*bench.states().values()] == ["skipped", "skipped", "waiting"]


def test_late_data_is_told_once_and_an_operator_may_run_it_as_it_is(home: Path) -> None:
    bench = Bench(home, replace(CHURN, has_arrival=True))
    bench.tick()
    bench.now = datetime(2026, 5, 10, 6, tzinfo=UTC)
    assert bench.tick() == []
    assert bench.entry("2026-05-09").state == "held"
    assert bench.notices() == [("2026-05-09", "late")]
    assert bench.newest_notice().says == "late: 6:00:00 after the run was due, /in/2026-05-09 is not there"
    bench.tick(5)
    assert bench.notices() == [("2026-05-09", "late")]
    bench.ledger.move(replace(bench.entry("2026-05-09"), state="due", who="ana", since=bench.now))
    assert bench.tick(5) == ["churn 2026-05-09"]
    bench.end("2026-05-09", "published", version=1)
    bench.tick(5)
    assert bench.notices() == [("2026-05-09", "late"), ("2026-05-09", "recovered")]


def test_one_run_per_model_and_no_more_than_the_limit(home: Path) -> None:
    others = [replace(CHURN, name=name) for name in ("a", "b", "c")]
    bench = Bench(home, DATES, *others, most_runs=2)
    known(bench, "2026-05-06")
    assert bench.tick() == ["a 2026-05-09", "b 2026-05-09"]
    assert bench.tick(5) == []
    bench.end("2026-05-09", "published", model="a")
    assert bench.tick(5) == ["c 2026-05-09"]
    bench.end("2026-05-09", "published", model="b")
    assert bench.tick(5) == ["churn 2026-05-07"]
    bench.end("2026-05-09", "published", model="c")
    assert bench.tick(5) == []  # churn has two more, and is busy
    bench.end("2026-05-07", "published")
    assert bench.tick(5) == ["churn 2026-05-08"]


def test_a_run_that_somebody_started_by_hand_comes_first(home: Path) -> None:
    bench = Bench(home, DATES)
    known(bench, "2026-05-08")
    known(bench, "2026-04-01")
    bench.begin("2026-04-01")
    assert bench.tick() == []
    bench.end("2026-04-01", "published")
    bench.over.clear()  # no process of ours
    assert bench.tick(5) == ["churn 2026-05-09"]


# What fails


def test_what_the_machine_failed_at_is_tried_again_and_told_once_it_is_not(home: Path) -> None:
    bench = Bench(home, CHURN)
    waits = []
    for _ in range(4):
        assert bench.tick() == ["churn 2026-05-09"]
        bench.end("2026-05-09", "failed", "StorageError: The disk is full.")
        assert bench.tick() == []
        waits.append((bench.scheduler.next_wake() - bench.now).total_seconds())
        bench.now = min(bench.scheduler.next_wake(), bench.now + timedelta(minutes=5))
    assert waits[:3] == [5, 10, 20]
    assert bench.entry("2026-05-09").state == "failed"
    assert bench.notices() == [("2026-05-09", "failed")]


def test_what_the_data_failed_at_is_told_at_once(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "failed", "SourceError: There is no such file.")
    assert bench.tick(5) == bench.tick(5) == []
    assert bench.notices() == [("2026-05-09", "failed")]
    assert bench.log == ["churn 2026-05-09: failed: SourceError: There is no such file."]
    bench.end("2026-05-09", "published", version=3)  # somebody has mended it
    bench.tick(5)
    bench.tick(5)
    assert bench.notices() == [("2026-05-09", "failed"), ("2026-05-09", "recovered")]


@pytest.mark.parametrize(
    ("code", "says"), [(-9, "ended by signal 9 before it began"), (1, "ended with exit code 1 before it began")]
)
def test_a_process_that_never_says_that_it_runs_has_failed(home: Path, code: int, says: str) -> None:
    bench = Bench(home, replace(CHURN, retries=1))
    for _ in range(2):
        assert bench.tick(60) == ["churn 2026-05-09"]
        bench.gone("2026-05-09", code)
        assert bench.tick() == []
    entry = bench.entry("2026-05-09")
    assert (entry.state, entry.tries) == ("failed", 2)
    assert entry.reason == f"WorkerError: The run {says}. The log has what it said."


@pytest.mark.parametrize(
    ("code", "says"), [(0, "RunError: The run ended well, but not as"), (2, "SettingsError: The run was refused")]
)
def test_a_process_that_does_nothing_is_told_of_and_not_started_again(home: Path, code: int, says: str) -> None:
    bench = Bench(home, CHURN)
    assert bench.tick() == ["churn 2026-05-09"]
    bench.gone("2026-05-09", code)
    assert bench.tick() == bench.tick(60) == bench.tick(600) == []
    assert (bench.entry("2026-05-09").state, bench.notices()) == ("failed", [("2026-05-09", "failed")])
    assert bench.entry("2026-05-09").reason.startswith(says)


def test_exports_whose_run_does_nothing_are_told_of_and_not_tried_for_ever(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "published", "ExportError: postgresql://bank …", version=7, not_before=bench.now)
    assert bench.tick(1) == ["churn 2026-05-09"]
    bench.gone("2026-05-09", 0)
    assert bench.tick() == bench.tick(60) == bench.tick(600) == []
    assert (bench.entry("2026-05-09").state, bench.notices()) == ("published", [("2026-05-09", "failed")])


def test_a_run_that_somebody_else_works_on_is_no_try(home: Path) -> None:
    bench = Bench(home, replace(CHURN, retries=0))
    for _ in range(5):
        assert bench.tick() == ["churn 2026-05-09"]
        bench.over.append(("churn", "2026-05-09T00:00Z", 1, "BusyError"))  # type: ignore[arg-type]
        assert bench.tick() == bench.tick(5) == []
        bench.now += timedelta(seconds=30)
    assert (bench.entry("2026-05-09").state, bench.entry("2026-05-09").tries) == ("due", 0)
    assert bench.notices() == []


@pytest.mark.parametrize("began", [True, False])
def test_a_run_that_took_too_long_is_told_of_and_not_started_again(home: Path, began: bool) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    if began:
        bench.begin("2026-05-09")
    bench.alive.clear()
    bench.over.append(("churn", "2026-05-09T00:00Z", -15, "", "RunError: It took longer"))  # type: ignore[arg-type]
    assert bench.tick() == bench.tick(60) == bench.tick(600) == []
    assert bench.entry("2026-05-09").reason == "RunError: It took longer"
    assert bench.notices() == [("2026-05-09", "failed")]


def test_a_run_that_hangs_and_those_behind_it_are_late(home: Path) -> None:
    bench = Bench(home, CHURN, replace(CHURN, name="offers"), replace(CHURN, name="paused"), most_runs=1)
    bench.ledger.pause(Pause(model="paused", since=NOW, who="ana", why=""))
    assert bench.tick() == ["churn 2026-05-09"]
    bench.begin("2026-05-09")
    bench.tick(60)
    assert bench.scheduler.next_wake() == datetime(2026, 5, 10, 6, tzinfo=UTC)
    assert (bench.notices(), bench.notices("offers")) == ([], [])
    for _ in range(3):
        bench.tick(6 * 3600)
    assert bench.notices() == bench.notices("offers") == [("2026-05-09", "late")]
    assert "it is still running" in bench.newest_notice().says
    assert "it has not begun" in bench.ledger.notices("offers", 1)[0].says
    assert bench.notices("paused") == []


def test_a_process_that_stands_still_is_not_gone(home: Path) -> None:
    """It has lost its lease, and still has the lock of the run."""
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    lease = bench.ledger.holder("run:churn:2026-05-09T00:00Z")
    assert lease is not None
    bench.ledger.release(lease)
    assert bench.tick(60) == []
    assert bench.entry("2026-05-09").state == "running"


def test_a_run_that_is_killed_is_tried_again(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    bench.gone("2026-05-09", -9)
    bench.tick()
    assert bench.entry("2026-05-09").reason.startswith("Tried again after: WorkerError: The run ended by signal 9.")
    assert bench.tick(60) == ["churn 2026-05-09"]


def test_a_process_that_cannot_be_started_is_a_try(home: Path) -> None:
    bench = Bench(home, replace(CHURN, retries=0))
    bench.refusal = "There is no room for another process."
    bench.tick()
    assert bench.entry("2026-05-09").reason == "WorkerError: There is no room for another process."
    assert bench.notices() == [("2026-05-09", "failed")]


def test_exports_that_could_not_follow_are_tried_again_then_told(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    for _ in range(4):
        again = bench.now + timedelta(seconds=60)
        bench.end("2026-05-09", "published", "ExportError: postgresql://bank …", version=7, not_before=again)
        assert bench.tick(1) == []
        assert bench.notices() == []
        started = bench.tick(60)
    assert started == []
    assert bench.notices() == [("2026-05-09", "failed")]
    assert (bench.entry("2026-05-09").state, bench.entry("2026-05-09").not_before) == ("published", None)
    assert bench.started == ["churn 2026-05-09"] * 4


# Schedulers that come and go


def test_the_next_scheduler_goes_on_from_the_ledger(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    bench.scheduler.stop([])
    bench.alive.clear()  # it died with the scheduler
    bench.scheduler = bench.another(CHURN)
    assert bench.tick(60) == ["churn 2026-05-09"]
    assert "WorkerError: Interrupted: its process is gone" in bench.entry("2026-05-09").reason
    assert bench.notices() == []


def test_of_a_model_that_is_not_read_yet_nothing_is_concluded(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    bench.scheduler.stop([])
    bench.alive.clear()
    bench.scheduler = bench.another()
    bench.scheduler.let_be = {"churn"}
    bench.tick(60)
    bench.tick(60)
    assert (bench.entry("2026-05-09").state, bench.notices()) == ("failed", [])
    bench.scheduler.reload([CHURN])
    bench.scheduler.let_be = set()
    bench.scheduler.begin_anew()
    assert bench.tick(60) == ["churn 2026-05-09"]  # another try
    assert bench.notices() == []


def test_what_goes_on_in_another_process_is_let_be(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    bench.scheduler.stop([])
    bench.scheduler = bench.another(CHURN)
    assert bench.tick(60) == []
    assert bench.entry("2026-05-09").state == "running"


def test_what_failed_while_nobody_looked_is_looked_at(home: Path) -> None:
    bench = Bench(home, DATES)
    known(bench, "2026-05-08")  # before the others failed
    for day, state in (("2026-05-06", "failed"), ("2026-05-07", "held")):
        known(bench, day)
        bench.ledger.move(replace(bench.entry(day), state=state, since=bench.now, reason="DataError: …", attempt="a"))  # type: ignore[arg-type]
    bench.tick()
    assert sorted(bench.notices()) == [("2026-05-06", "failed"), ("2026-05-07", "held")]


def test_a_run_that_another_ledger_does_not_know_falls_due_again(home: Path) -> None:
    bench = Bench(home, Night(name="churn"))
    known(bench, "2026-05-08")
    bench.tick()
    assert bench.entry("2026-05-09").state == "waiting"
    bench.ledger.forget("churn", "2026-05-09T00:00Z")  # as if it was made again from what is published
    assert bench.tick(60) == []
    assert bench.ledger.entry("churn", "2026-05-09T00:00Z") is None
    bench.scheduler.begin_anew()
    bench.tick(60)
    assert bench.entry("2026-05-09").state == "waiting"
    bench.there.add("2026-05-09")
    assert bench.tick(60) == ["churn 2026-05-09"]


def test_runs_that_are_stopped_with_it_are_due_and_lose_no_try(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    bench.gone("2026-05-09", -15)
    bench.scheduler.stop(bench.ended())
    entry = bench.entry("2026-05-09")
    assert (entry.state, entry.tries) == ("due", 0)
    assert entry.reason == "It was stopped with the scheduler, and goes on where it was."
    assert bench.ledger.holder(LEASE) is None
    bench.scheduler = bench.another(CHURN)
    assert bench.tick(5) == ["churn 2026-05-09"]


def test_one_schedules_the_other_stands_by(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    other = bench.another(CHURN)
    other.tick()
    assert (bench.scheduler.leads, other.leads) == (True, False)
    bench.scheduler.stop([])
    other.tick()
    assert other.leads


def test_one_that_stood_still_beyond_its_lease_stands_by_and_does_no_harm(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.begin("2026-05-09")
    other = bench.another(CHURN)
    bench.ledger.acquire(LEASE, "other:1:x", LEASE_SECONDS, by_force=True)  # its time was over
    bench.end("2026-05-09", "failed", "StorageError: …")
    bench.over.clear()
    bench.ledger.move(replace(bench.entry("2026-05-09"), state="due", since=bench.now, tries=1))
    bench.gone("2026-05-09", 1)  # what its child said before the other had it tried again
    assert bench.tick(60) == []
    assert not bench.scheduler.leads
    assert "stands by" in bench.log[-1]
    assert (bench.entry("2026-05-09").state, bench.entry("2026-05-09").tries) == ("due", 1)
    other.tick()
    assert not other.leads


def test_a_ledger_that_fails_loses_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "failed", "SourceError: …")

    def full(*_: object, **__: object) -> None:
        raise LedgerError("The disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(bench.ledger, "entry", full)
        for _ in range(2):
            with pytest.raises(LedgerError):
                bench.tick(5)
    bench.tick(5)
    assert bench.notices() == [("2026-05-09", "failed")]
    with monkeypatch.context() as broken:
        bench.now = datetime(2026, 5, 11, tzinfo=UTC)
        broken.setattr(bench.ledger, "move", full)
        with pytest.raises(LedgerError):
            bench.tick()
    assert bench.tick(5) == ["churn 2026-05-10"]


# Clocks


def test_a_clock_that_was_put_forward_and_back(home: Path) -> None:
    bench = Bench(home, replace(CHURN, has_arrival=True), replace(CHURN, name="asks-nothing"))
    bench.tick()
    bench.end("2026-05-09", "published", model="asks-nothing")
    bench.there = {"2026-05-09"}
    bench.tick(5)
    bench.end("2026-05-09", "published")
    bench.now += timedelta(days=3)
    assert bench.tick() == ["asks-nothing 2026-05-12"]
    assert [*bench.states().values()] == ["published", "skipped", "skipped", "waiting"]
    bench.end("2026-05-12", "published", model="asks-nothing")
    bench.tick(5)
    bench.now -= timedelta(days=3)
    assert bench.tick() == []
    assert bench.states() == {"2026-05-09": "published"}
    assert "The clock was ahead: 5 runs that are not due yet" in bench.log[-1]
    bench.there.add("2026-05-10")
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    # each date comes when it is due, and what was published early is not run again
    assert bench.tick() == ["asks-nothing 2026-05-10", "churn 2026-05-10"]
    bench.now = datetime(2026, 5, 13, 0, 1, tzinfo=UTC)
    assert "asks-nothing 2026-05-12" not in bench.tick()


def test_a_night_that_failed_or_was_late_by_a_clock_that_was_ahead_comes_all_the_same(home: Path) -> None:
    waits, fails = replace(CHURN, has_arrival=True), replace(CHURN, name="asks-nothing")
    bench = Bench(home, waits, fails)
    bench.there = {"2026-05-09"}
    bench.tick()
    bench.end("2026-05-09", "published")
    bench.end("2026-05-09", "published", model="asks-nothing")
    bench.tick(5)
    bench.now += timedelta(hours=32)
    assert bench.tick() == ["asks-nothing 2026-05-10"]
    bench.end("2026-05-10", "failed", "SourceError: no rows for this date yet", model="asks-nothing")
    bench.tick(60)
    assert (bench.states(), bench.states("asks-nothing")) == (
        {"2026-05-09": "published", "2026-05-10": "held"},
        {"2026-05-09": "published", "2026-05-10": "failed"},
    )
    bench.now -= timedelta(hours=32)
    assert bench.tick() == []
    bench.there.add("2026-05-10")
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    assert bench.tick() == ["asks-nothing 2026-05-10", "churn 2026-05-10"]
    bench.end("2026-05-10", "failed", "SourceError: no rows", model="asks-nothing")
    bench.tick(5)
    assert bench.notices("asks-nothing") == [("2026-05-10", "failed")]  # a new one, of what is true now


def test_a_pause_by_a_clock_that_was_ahead_ends_with_it(home: Path) -> None:
    bench = Bench(home, DATES)
    known(bench, "2026-05-09")
    bench.ledger.pause(Pause(model="offers", since=NOW + timedelta(days=40), who="ana", why=""))
    bench.now += timedelta(days=40)
    bench.tick()
    assert bench.ledger.pauses()["churn"].who == "sereno"
    bench.now -= timedelta(days=40)
    assert bench.tick() == []
    assert [*bench.ledger.pauses()] == ["offers"]
    assert bench.notices() == []
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    assert bench.tick() == ["churn 2026-05-10"]


def test_a_clock_that_is_put_back_runs_nothing_twice(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "published")
    bench.tick(5)
    bench.now -= timedelta(days=2)
    assert bench.tick() == []
    bench.now += timedelta(days=2)
    assert bench.tick() == []
    assert bench.states() == {"2026-05-09": "published"}


# Pauses


def test_a_paused_model_starts_nothing_and_catches_up_afterwards(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.ledger.pause(Pause(model="churn", since=NOW, who="ana", why=""))
    assert bench.tick() == []
    bench.now += timedelta(days=2)
    assert bench.tick() == []
    assert bench.states() == {}
    bench.ledger.resume("churn")
    assert bench.tick(5) == ["churn 2026-05-11"]


@pytest.mark.parametrize("skip_missed", [False, True])
def test_too_much_to_catch_up_with_is_for_an_operator_to_decide(home: Path, skip_missed: bool) -> None:
    bench = Bench(home, replace(DATES, catch_up=3))
    known(bench, "2026-05-05")
    assert bench.tick() == bench.tick(5) == []
    assert bench.ledger.pauses()["churn"].who == "sereno"
    assert bench.notices() == [("2026-05-09", "held")]
    assert bench.newest_notice().says.startswith("paused: More than 3 dates were missed")
    assert bench.states() == {"2026-05-05": "published"}
    pause, made = resume(bench.ledger, DATES, skip_missed=skip_missed, now=bench.now, who="ana")
    assert pause is not None
    assert [one.label for one in made] == ["2026-05-06", "2026-05-07", "2026-05-08", "2026-05-09"]
    assert bench.tick(5) == ([] if skip_missed else ["churn 2026-05-06"])
    assert set(bench.states().values()) == ({"published", "skipped"} if skip_missed else {"published", "due"})


def by_hand(bench: Bench, day: str) -> None:
    known(bench, day)
    bench.ledger.move(replace(bench.entry(day), who="ana", since=bench.now))


def test_a_run_by_hand_hides_no_date_that_was_missed(home: Path) -> None:
    bench = Bench(home, DATES)
    known(bench, "2026-05-05")
    bench.ledger.move(replace(bench.entry("2026-05-05"), who="sereno"))
    by_hand(bench, "2026-02-01")
    by_hand(bench, "2026-05-09")  # while all was off
    assert bench.tick() == ["churn 2026-05-06"]
    states = dict.fromkeys(["2026-05-06", "2026-05-07", "2026-05-08"], "due")
    assert {day: state for day, state in bench.states().items() if state == "due"} == states
    assert bench.tick(5) == []
    bench.end("2026-05-06", "published")
    assert bench.tick(5) == ["churn 2026-05-07"]


@pytest.mark.parametrize("skip_missed", [False, True])
def test_a_run_by_hand_during_a_pause_hides_no_date_either(home: Path, skip_missed: bool) -> None:
    bench = Bench(home, DATES)
    bench.now -= timedelta(days=4)
    by_hand(bench, "2026-05-05")  # never a scheduled one
    bench.ledger.pause(Pause(model="churn", since=bench.now, who="ana", why=""))
    bench.now += timedelta(days=4)
    by_hand(bench, "2026-05-08")
    _, made = resume(bench.ledger, DATES, skip_missed=skip_missed, now=bench.now, who="ana")
    assert [one.label for one in made] == ["2026-05-06", "2026-05-07", "2026-05-09"]
    assert bench.tick(5) == ([] if skip_missed else ["churn 2026-05-06"])


def test_dates_before_the_first_scheduled_one_are_for_backfill(home: Path) -> None:
    bench = Bench(home, DATES)
    by_hand(bench, "2026-02-01")
    by_hand(bench, "2026-05-08")
    assert bench.tick() == ["churn 2026-05-09"]
    assert bench.states() == {"2026-02-01": "published", "2026-05-08": "published", "2026-05-09": "due"}


def test_what_was_missed_by_a_latest_snapshot_may_be_skipped_too(home: Path) -> None:
    bench = Bench(home, CHURN)
    known(bench, "2026-05-07")
    bench.ledger.pause(Pause(model="churn", since=NOW, who="ana", why=""))
    _, made = resume(bench.ledger, CHURN, skip_missed=True, now=bench.now, who="ana")
    assert [(one.label, one.state) for one in made] == [("2026-05-08", "skipped"), ("2026-05-09", "skipped")]
    assert made[0].reason == "Missed while paused; ana resumed without it."
    assert bench.tick() == []


# Changes


def test_models_come_and_go_with_a_reload(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "published")
    bench.scheduler.reload([CHURN, replace(CHURN, name="offers")])
    assert bench.tick(5) == ["offers 2026-05-09"]
    bench.scheduler.reload([replace(CHURN, name="offers")])
    bench.end("2026-05-09", "published", model="offers")
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    assert bench.tick() == ["offers 2026-05-10"]


def test_another_schedule_holds_from_now_on(home: Path) -> None:
    bench = Bench(home, replace(CHURN, schedule="0 * * * *"))
    bench.now = datetime(2026, 5, 10, 1, 0, 5, tzinfo=UTC)
    assert bench.tick() == ["churn 2026-05-10T00:00"]
    bench.end("2026-05-10", "published")
    bench.scheduler.reload([CHURN])
    bench.now = datetime(2026, 5, 11, tzinfo=UTC)
    # the day's run begins when the hour's did, and is another one
    assert bench.tick() == ["churn 2026-05-10"]
    assert bench.entry("2026-05-10").data_time == bench.now


def test_what_waits_and_is_of_no_interval_any_more_gives_way_to_the_schedule(home: Path) -> None:
    waits = replace(CHURN, has_arrival=True)
    bench = Bench(home, waits)
    known(bench, "2026-05-08")
    bench.tick()
    assert bench.states() == {"2026-05-08": "published", "2026-05-09": "waiting"}
    bench.scheduler.reload([replace(waits, time_zone="Europe/Madrid")])
    bench.tick(5)
    skipped = bench.entry("2026-05-09")
    assert (skipped.state, skipped.reason) == (
        "skipped",
        "The schedule has changed, to '0 0 * * *' (Europe/Madrid): it has no such interval.",
    )
    madrid = bench.ledger.entry("churn", "2026-05-08T22:00Z")
    assert madrid is not None
    assert (madrid.state, madrid.label) == ("waiting", "2026-05-09")
    bench.there.add("2026-05-08")  # by the bench, which names data by the start in UTC
    assert bench.tick(5) == ["churn 2026-05-09"]
    bench.ledger.move(replace(madrid, state="published", since=bench.now, tries=1, version=3))
    bench.over.append(("churn", "2026-05-08T22:00Z", 0))
    for _ in range(5):
        assert bench.tick(60) == []
    bench.now = datetime(2026, 5, 10, 22, 0, 1, tzinfo=UTC)
    bench.there.add("2026-05-09")
    assert bench.tick() == ["churn 2026-05-10"]


def test_nothing_heavy_is_imported() -> None:
    """The process is there for months, beside what needs the memory."""
    heavy = "{'pyarrow', 'numpy', 'pandas', 'polars', 'deltalake', 'datasketches', 'apprise'}"
    code = f"import sys, sereno.operate.scheduling.process, sereno.adapters.ledger.sqlite; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_released_date_that_is_overtaken_is_skipped_and_nobody_is_told(home: Path) -> None:
    bench = Bench(home, CHURN)
    bench.tick()
    bench.end("2026-05-09", "failed", "OlderDataError: Data of 2026-05-10 is in service.", who="sereno")
    bench.tick(1)
    assert bench.states() == {"2026-05-09": "skipped"}
    assert bench.entry("2026-05-09").reason == "OlderDataError: Data of 2026-05-10 is in service."
    assert bench.notices() == []


def test_late_is_said_once_in_a_line(home: Path) -> None:
    bench = Bench(home, replace(CHURN, has_arrival=True, deadline_seconds=60))
    bench.tick()
    bench.tick(3600)
    (line,) = [line for line in bench.log if "late" in line]
    assert line.startswith("churn 2026-05-09: late: 0:01:00 after the run was due")
