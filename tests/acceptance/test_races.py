"""Several processes run the same date at once, and again and again: each date is published exactly once.

`make test` has a few races of each kind, `make soak` a thousand.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest

from sereno.config import load_settings
from sereno.home import Home
from sereno.ledger import lease_name
from tests.racers import MODEL, PLAIN, Racer, new_home, racers
from tests.services import postgresql

QUICK = {"LEASE_SECONDS": 1.0, "BEAT_SECONDS": 0.2, "LOOK_SECONDS": 0.02}
DAYS_OF_A_HOME = 50  # a log that is long takes long to read
# A model, and how it is run. One that declares no artefacts is never a no-op by its revision: a scheduler runs it once.
Kind = tuple[str, dict[str, str]]
KINDS = [pytest.param((MODEL, {}), id="artefacts"), pytest.param((PLAIN, {"once": "ever"}), id="plain")]
# places at which a run that stands still has its lease, and has lost it when it goes on
STANDS = ("scored", "gate_after", "fsync", "commit_before")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def ledger(request: pytest.FixtureRequest) -> str | None:
    """Where the ledger is kept; None: in the home."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("server")
    with psycopg.connect(url, autocommit=True) as admin:
        name = f"races_{random.getrandbits(32):08x}"
        admin.execute(f"CREATE DATABASE {name}".encode())
    return url.replace("/postgres?", f"/{name}?")


def was_published_once(folder: Path, day: str, said: list[dict[str, object]]) -> None:
    """By one of them; the others found that out, or that somebody was at it."""
    states = Counter(str(one.get("error", one["state"])) for one in said)
    assert states["published"] == 1, said
    assert set(states) <= {"published", "nothing", "BusyError"}, said
    home = Home(load_settings(folder), "total")
    found = [s for s in home.store.state().snapshots.values() if s.data_date.isoformat() == day]
    assert len(found) == 1
    with home.ledger() as ledger:
        (entry,) = [e for e in ledger.entries(model="total") if e.data_date.isoformat() == day]
        assert (entry.state, entry.version, entry.attempt) == ("published", found[0].number, found[0].attempt)
        assert [t.after for t in ledger.transitions("total", entry.run_key)] == ["running", "published"]
        assert ledger.holder(lease_name("total", entry.run_key)) is None


def race(folder: Path, rivals: list[Racer], count: int, ledger: str | None, kind: Kind) -> None:
    chance = random.Random(folder.name)
    place = folder
    for number in range(count):
        if number % DAYS_OF_A_HOME == 0:
            place = new_home(folder / f"home-{number}", ledger, kind[0])
        day = (date(2024, 1, 1) + timedelta(days=number)).isoformat()
        some = chance.sample(rivals, chance.randint(2, len(rivals)))
        for rival in some:
            rival.begin(place, day, **kind[1])
        was_published_once(place, day, [rival.end() for rival in some])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.soak)])
def test_races_on_one_host(tmp_path: Path, count: int, kind: Kind) -> None:
    with racers([None] * (4 if count < 100 else 8)) as rivals:
        race(tmp_path, rivals, count, None, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [6, pytest.param(500, marks=pytest.mark.soak)])
def test_races_of_hosts_without_common_locks(tmp_path: Path, ledger: str | None, count: int, kind: Kind) -> None:
    hosts = [f"host-{number}" for number in range(3 if count < 100 else 8)]
    with racers(hosts, LOOK_SECONDS=0.02) as rivals:
        race(tmp_path, rivals, count, ledger, kind)


@pytest.mark.parametrize("count", [3, pytest.param(150, marks=pytest.mark.soak)])
def test_races_of_hosts_that_stand_still_now_and_then(tmp_path: Path, ledger: str | None, count: int) -> None:
    """Some of them for longer than their lease lasts, at any moment: also while they ask the ledger."""
    chance = random.Random(7)
    quick = QUICK | {"LEASE_SECONDS": 0.15, "BEAT_SECONDS": 0.03}
    with racers(["host-0", "host-1", "host-2"], **quick) as rivals:
        for number in range(count):
            if number % DAYS_OF_A_HOME == 0:
                place = new_home(tmp_path / f"home-{number}", ledger)
            day = (date(2024, 1, 1) + timedelta(days=number)).isoformat()
            for rival in rivals:
                rival.begin(place, day)
            for _ in range(chance.randint(1, 4)):
                sleeper = chance.choice(rivals)
                time.sleep(chance.uniform(0, 0.1))
                sleeper.stand_still()
                time.sleep(chance.uniform(0, 0.4))
                sleeper.go_on()
            said = [rival.end() for rival in rivals]
            errors = {one["error"] for one in said if "error" in one}
            assert errors <= {"BusyError", "LeaseLostError", "LedgerError"}, said
            last = rivals[0].run(place, day)
            assert last["state"] in ("published", "nothing"), (last, said)
            home = Home(load_settings(place), "total")
            found = [s for s in home.store.state().snapshots.values() if s.data_date.isoformat() == day]
            assert len(found) == 1, said
            with home.ledger() as known:
                (entry,) = [e for e in known.entries(model="total") if e.data_date.isoformat() == day]
                assert (entry.state, entry.version, entry.attempt) == ("published", found[0].number, found[0].attempt)


@pytest.mark.parametrize("place", STANDS)
def test_a_run_that_stood_still_publishes_nothing(tmp_path: Path, place: str) -> None:
    """Another host takes it over once its lease has run out."""
    folder = new_home(tmp_path / "home")
    with racers(["awake"], **QUICK) as (awake,):
        asleep = Racer("asleep", stops_at=place, **QUICK)
        try:
            asleep.begin(folder, "2024-05-01")
            asleep.wait_until_it_stands()
            found = awake.run(folder, "2024-05-01")
            assert found["state"] == "published"
            asleep.go_on()
            said = asleep.end()
        finally:
            asleep.close()
    assert said["error"] == "LeaseLostError", said  # at `commit_before` the table's version is what stops it
    assert said["says"] == (
        "Another process has taken this run over, because this one did not move for too long. Nothing was published by this "
        "one; see `sereno runs` for what became of the other."
    )
    home = Home(load_settings(folder), "total")
    assert [s.attempt for s in home.store.state().snapshots.values()] == [found["attempt"]]
    with home.ledger() as ledger:
        (entry,) = ledger.entries()
        happened = [(t.after, t.who) for t in ledger.transitions("total", entry.run_key)]
    assert happened == [("running", "asleep"), ("failed", "awake"), ("running", "awake"), ("published", "awake")]
    again = Racer("asleep")
    try:
        assert again.run(folder, "2024-05-01")["state"] == "nothing"
    finally:
        again.close()


def test_a_run_that_stood_still_and_was_not_missed_goes_on(tmp_path: Path) -> None:
    folder = new_home(tmp_path / "home")
    asleep = Racer("asleep", stops_at="scored", LEASE_SECONDS=0.2, BEAT_SECONDS=0.05)
    try:
        asleep.begin(folder, "2024-05-01")
        asleep.wait_until_it_stands()
        home = Home(load_settings(folder), "total")
        with home.ledger() as ledger:
            (entry,) = ledger.entries(states=["running"])
            while ledger.holder(lease_name("total", entry.run_key)):
                pass
        asleep.go_on()
        assert asleep.end()["state"] == "published"
    finally:
        asleep.close()


def test_a_host_that_waits_for_another_gives_up(tmp_path: Path) -> None:
    folder = new_home(tmp_path / "home")
    working = Racer("working", stops_at="scored", LEASE_SECONDS=60.0)
    waiting = Racer("waiting", PATIENCE=0.3, LOOK_SECONDS=0.02)
    try:
        working.begin(folder, "2024-05-01")
        working.wait_until_it_stands()
        said = waiting.run(folder, "2024-05-01")
        assert said["says"] == (
            f"A run of model 'total' for this interval is going on already on host working (pid {working.process.pid}). "
            "Wait for it, or end it."
        )
        assert waiting.run(folder, "2024-05-02")["state"] == "published"  # another date is no concern of theirs
        working.go_on()
        assert working.end()["error"] == "OlderDataError"
    finally:
        working.close()
        waiting.close()


def test_a_run_whose_process_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    """On its own host, where its lock is free; its lease is not over for long."""
    folder = new_home(tmp_path / "home")
    dead = Racer("same", stops_at="scored", LEASE_SECONDS=600.0)
    dead.begin(folder, "2024-05-01")
    dead.wait_until_it_stands()
    dead.close()
    with racers(["same"], PATIENCE=0.0) as (next_one,):
        assert next_one.run(folder, "2024-05-01")["state"] == "published"
