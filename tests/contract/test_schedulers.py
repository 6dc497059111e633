"""Schedulers that race, on both ledgers: each run is published once, whatever each of them believes."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.ledger import open_at
from sereno.exceptions import BusyError
from sereno.interfaces import RunLedger
from sereno.ledger import LEASE_SECONDS, Entry, NoticeKind, holder_here
from sereno.operate.scheduling.scheduler import LEASE, Scheduler
from sereno.storage import exclusive, run_lock
from tests.nights import Night

NOW = datetime(2026, 5, 10, 0, 0, 30, tzinfo=UTC)
MODELS = (
    Night(name="latest", has_arrival=False),
    Night(name="dates", has_arrival=False, disposition="partition"),
)
KNOWN = datetime(2026, 5, 7, tzinfo=UTC)
TO_PUBLISH = {("latest", "2026-05-09T00:00Z"), *(("dates", f"2026-05-0{day}T00:00Z") for day in (7, 8, 9))}


class Race:
    """Several schedulers, each with a ledger of its own, and what was published."""

    def __init__(self, home: Path, address: str | None, many: int, seed: int, *, all_believe: bool) -> None:
        self.home, self.address, self.all_believe = home, address, all_believe
        self.chance = random.Random(seed)
        self.ledgers = [open_at(address, home) for _ in range(many)]
        self.published: list[tuple[str, str]] = []
        self.started = 0
        self.errors: list[BaseException] = []
        self.go = threading.Barrier(many)

    def run(self) -> None:
        for model in MODELS:
            key = f"{KNOWN:%Y-%m-0%d}"
            entry = Entry(
                model=model.name, run_key="2026-05-06T00:00Z", data_date=KNOWN.date(), data_time=KNOWN, state="published",
                since=KNOWN, label=key,
            )  # fmt: skip
            self.ledgers[0].move(entry)
        threads = [threading.Thread(target=self._one, args=[ledger]) for ledger in self.ledgers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for ledger in self.ledgers:
            ledger.close()
        assert self.errors == []

    def _one(self, ledger: RunLedger) -> None:
        try:
            self._schedule(ledger)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.errors.append(error)

    def _schedule(self, ledger: RunLedger) -> None:
        starter = Starts(self, ledger)
        scheduler = Scheduler(
            ledger, MODELS, home=self.home, starter=starter, arrivals=starter, teller=starter, clock=lambda: NOW,
            random=self.chance.random, most_runs=10, log=lambda line: None,
        )  # fmt: skip
        self.go.wait()
        until = time.monotonic() + 30
        while set(self.published) != TO_PUBLISH and time.monotonic() < until:
            if self.all_believe and not scheduler.leads:
                # its time was over, and the one that had it stood still: it does not know
                ledger.acquire(LEASE, scheduler._holder, LEASE_SECONDS, by_force=True)
            scheduler.tick()
            time.sleep(self.chance.random() * 0.003)
        for thread in starter.threads:
            thread.join()
        scheduler.tick()


class Starts:
    """Runs as `batch.run` does them: the lock of the key, its lease, then one commit while the lease is held."""

    def __init__(self, race: Race, ledger: RunLedger) -> None:
        self.race, self.ledger = race, ledger
        self.threads: list[threading.Thread] = []
        self.over: list[tuple[str, str, int]] = []

    def start(self, entry: Entry, scheduled: Any) -> None:
        self.race.started += 1
        thread = threading.Thread(target=self._run, args=[entry])
        self.threads.append(thread)
        thread.start()

    def _run(self, entry: Entry) -> None:
        code = 1
        try:
            with exclusive(run_lock(self.race.home, entry.model, entry.run_key), "busy", wait_seconds=0.02):
                self._publish(entry)
            code = 0
        except BusyError:
            pass
        except BaseException as error:  # noqa: BLE001
            self.race.errors.append(error)
        self.over.append((entry.model, entry.run_key, code))

    def _publish(self, entry: Entry) -> None:
        name = f"run:{entry.model}:{entry.run_key}"
        lease = self.ledger.acquire(name, holder_here(), LEASE_SECONDS, by_force=True)
        assert lease is not None
        known = self.ledger.entry(entry.model, entry.run_key)
        assert known is not None
        if known.state != "published":  # else the log would tell that there is nothing to do
            running = replace(known, state="running", since=NOW, tries=known.tries + 1, not_before=None)
            self.ledger.move(running, lease=lease)
            time.sleep(self.race.chance.random() * 0.005)
            if self.ledger.renew(lease, LEASE_SECONDS):
                self.race.published.append((entry.model, entry.run_key))
                self.ledger.move(replace(running, state="published", version=1), lease=lease)
        self.ledger.release(lease)

    def ended(self) -> list[tuple[str, str, int]]:
        over, self.over = self.over, []
        return over

    def watch(self, entry: Entry, scheduled: Any) -> None:
        pass

    def state(self, model: str, run_key: str) -> tuple[Any, str]:
        return "ready", ""

    def forget(self, model: str, run_key: str) -> None:
        pass

    def tell(self, entry: Entry, kind: NoticeKind, says: str, at: datetime) -> object:
        return self.ledger.add_notice(entry.model, entry.run_key, kind, says, at)

    def tell_published(self, entry: Entry, at: datetime) -> object:
        return None


def check(home: Path, address: str | None, seed: int) -> None:
    many = 2 + seed % 7
    race = Race(home, address, many, seed, all_believe=seed % 2 == 1)
    race.run()
    assert sorted(race.published) == sorted(TO_PUBLISH)
    with_ledger = open_at(address, home)
    states = {(one.model, one.run_key[:10]): one.state for one in with_ledger.entries()}
    with_ledger.close()
    assert states == {
        **{("latest", f"2026-05-0{day}"): "skipped" for day in (7, 8)},
        **{("latest", f"2026-05-0{day}"): "published" for day in (6, 9)},
        **{("dates", f"2026-05-0{day}"): "published" for day in (6, 7, 8, 9)},
    }


@pytest.mark.parametrize("seed", range(12))
def test_each_run_is_published_once(seed: int, tmp_path: Path) -> None:
    check(tmp_path, None, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 1100))
def test_each_run_is_published_once_in_a_thousand_races(seed: int, tmp_path: Path) -> None:
    check(tmp_path, None, seed)


@pytest.mark.service
@pytest.mark.parametrize("seed", range(3))
def test_each_run_is_published_once_with_postgresql(seed: int, tmp_path: Path, postgresql_url: str) -> None:
    check(tmp_path, postgresql_url, seed)
