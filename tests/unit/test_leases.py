"""Leases whose holder is gone."""

from __future__ import annotations

import os
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.ledger import ledger_file, open_at
from sereno.cli.ledger import state_of
from sereno.home import Home
from sereno.ledger import Lease, holder_here, is_here, is_left, lease_name
from sereno.operate.scheduling.scheduler import LEASE, Scheduler
from sereno.schedule import Interval
from sereno.settings import Settings


def lease(holder: str) -> Lease:
    return Lease(name="it", holder=holder, token=1)


def of_a_process_that_is_gone() -> str:
    """As it was written by one that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    host, _, number = holder_here().split(":")
    return f"{host}:{process.pid}:{number}"


def test_a_lease_is_left_when_its_process_was_ours_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_left(None)
    assert not is_left(lease(holder_here()))
    assert not is_left(lease("elsewhere:999999999:abc"))
    assert not is_left(lease("what is this"))
    assert is_left(lease(of_a_process_that_is_gone()))

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not is_left(lease(holder_here()))


def test_a_pid_of_another_machine_of_the_same_name_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = of_a_process_that_is_gone()
    assert is_here(holder)
    monkeypatch.setattr("sereno.ledger._place", lambda: "00000000")
    assert not is_here(holder)
    assert not is_left(lease(holder))
    assert is_here(f"{socket.gethostname()}:1:run")  # of a version that told only the name
    assert not is_here("elsewhere:1:run")


@pytest.mark.parametrize(("is_gone", "leads"), [(True, True), (False, False)])
def test_a_scheduler_that_was_killed_is_replaced_at_once(tmp_path: Path, is_gone: bool, leads: bool) -> None:
    ledger = open_at(None, tmp_path)
    nothing: Any = type("Nothing", (), {"ended": lambda self: []})()
    ledger.acquire(LEASE, of_a_process_that_is_gone() if is_gone else holder_here(), 1000.0)
    scheduler = Scheduler(
        ledger,
        [],
        home=tmp_path,
        starter=nothing,
        arrivals=nothing,
        teller=nothing,
        clock=lambda: datetime.now(UTC),
        random=lambda: 0.0,
    )
    scheduler.tick()
    assert scheduler.leads == leads
    ledger.close()


@pytest.mark.parametrize(
    ("holder", "state"), [("elsewhere:7:abc", "running"), (of_a_process_that_is_gone(), "interrupted")]
)
def test_an_attempt_of_another_host_goes_on_as_long_as_its_lease_does(tmp_path: Path, holder: str, state: str) -> None:
    home = Home(Settings(home=tmp_path), "churn")
    day = Interval(start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 2, tzinfo=UTC))
    report = home.attempts.create(day)
    assert state_of(home, report, {}) == "interrupted"
    assert not ledger_file(tmp_path).exists()  # who only looks makes none
    with home.ledger() as ledger:
        assert ledger.acquire(lease_name("churn", report.run_key), holder, 1000.0)
    assert state_of(home, report, {}) == state
    assert state_of(home, report, {report.attempt: 1}) == "published"
