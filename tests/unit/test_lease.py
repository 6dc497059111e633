"""A lease is renewed while the work goes on; whoever has lost it, or cannot know, is told before it is too late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.adapters.ledger import open_at
from sereno.batch import lease
from sereno.batch.lease import HeldLease, hold
from sereno.exceptions import BusyError, LeaseLostError, LedgerError
from sereno.interfaces import RunLedger
from sereno.ledger import Lease, lease_name

KEY = "2026-05-01T00:00Z"
NAME = lease_name("churn", KEY)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[RunLedger]:
    ledger = open_at(None, tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)


class Fails:
    """A ledger that renews nothing, from now on."""

    def __init__(self, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Event()
        monkeypatch.setattr(ledger, "renew", self.renew)

    def renew(self, lease: Lease, seconds: float) -> bool:
        self.asked.set()
        raise LedgerError("The ledger is locked.")


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_it_is_renewed_until_the_work_ends(ledger: RunLedger) -> None:
    with hold(ledger, "churn", KEY) as held:
        wait(1.0)  # three times as long as it would last
        assert ledger.holder(NAME) == held.lease
        held.check()
        held.confirm()
    assert ledger.holder(NAME) is None
    with hold(ledger, "churn", KEY) as again:
        assert again.lease.token > held.lease.token


def test_it_is_given_back_when_the_work_fails(ledger: RunLedger) -> None:
    with pytest.raises(ValueError, match="the model"), hold(ledger, "churn", KEY):
        raise ValueError("the model")
    assert ledger.holder(NAME) is None


@pytest.mark.parametrize("at_the_commit", [False, True])
def test_who_has_lost_it_is_told(ledger: RunLedger, at_the_commit: bool) -> None:
    with hold(ledger, "churn", KEY) as held:
        other = ledger.acquire(NAME, "elsewhere:1:x", 60, by_force=True)
        if not at_the_commit:
            held._thread.join(0.2)  # it asks in the meantime
        with pytest.raises(LeaseLostError, match=r"Another process has taken this run over, .* Nothing was published"):
            held.confirm() if at_the_commit else held.check()
        assert isinstance(held.lost(), LeaseLostError)
    assert ledger.holder(NAME) == other  # which is not ours to give back


def test_a_ledger_that_fails_is_no_harm_for_a_while(ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(ledger, "churn", KEY) as held:
        fails = Fails(ledger, monkeypatch)
        assert fails.asked.wait(10)
        monkeypatch.setattr(held, "_renewed_at", lease._now())
        held.confirm()
        monkeypatch.setattr(held, "_renewed_at", lease._now() - 41)
        says = r"The lease of this run could not be renewed for 41 seconds, .*: The ledger is locked\. Nothing was published"
        with pytest.raises(LeaseLostError, match=says):
            held.check()
        assert held.lost() is None  # nobody knows


def test_who_stood_still_and_was_not_missed_goes_on(ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldLease, "start", lambda self: None)
    monkeypatch.setattr(HeldLease, "end", lambda self: None)
    with hold(ledger, "churn", KEY) as held:
        wait(0.4)
        assert ledger.holder(NAME) is None
        held.check()
        assert ledger.holder(NAME) == held.lease


def test_another_host_is_waited_for(ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.acquire(NAME, "elsewhere:4711:x", 0.2)
    with hold(ledger, "churn", KEY) as held:
        assert ledger.holder(NAME) == held.lease
    ledger.acquire(NAME, "elsewhere:4711:x", 60)
    monkeypatch.setattr(lease, "PATIENCE", 0.1)
    with pytest.raises(
        BusyError, match=r"is going on already on host elsewhere \(pid 4711\)\. Wait for it, or end it\."
    ):
        hold(ledger, "churn", KEY).__enter__()


def test_of_this_host_it_is_taken(ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had it would have the lock of the run key, too."""
    here = lease.holder_here()
    ledger.acquire(NAME, here, 60)
    monkeypatch.setattr(lease, "PATIENCE", 0.0)
    with hold(ledger, "churn", KEY) as held:
        assert held.lease.holder != here


def test_without_a_ledger_nothing_begins(tmp_path: Path) -> None:
    (tmp_path / ".sereno").mkdir()
    (tmp_path / ".sereno" / "ledger.sqlite").write_bytes(b"no ledger" * 1_000)
    with pytest.raises(LedgerError, match="sereno repair"):
        hold(open_at(None, tmp_path), "churn", KEY).__enter__()
