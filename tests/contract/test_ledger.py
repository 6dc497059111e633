"""What every ledger promises, in a file and in PostgreSQL."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest

from sereno.adapters.ledger import open_at
from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Lease, Pause, RunState, holder_here
from tests.contract.ledgers import START, Place, entry, eventually, labels, moved

STATES: tuple[RunState, ...] = get_args(RunState)
LATER = START + timedelta(days=1000)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    address = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    place = Place(address=address, home=tmp_path)
    yield place
    place.close()


@pytest.fixture
def ledger(place: Place) -> RunLedger:
    return place.open()


# Moves


def test_an_entry_comes_back_as_it_was(place: Place) -> None:
    given = entry(
        state="failed",
        reason="StorageError: The disk is “full”; it's 100 % – déjà vu?\nSecond line \\ ' \" $1 {x}",
        who="maría",
        attempt="2026-05-01-3f9a2c",
        version=12,
        tries=3,
        since=datetime(2026, 5, 2, 1, 2, 3, 456789, tzinfo=UTC),
        not_before=datetime(2026, 5, 2, 1, 5, 0, 1, tzinfo=UTC),
    )
    assert place.open().move(given)
    assert place.open().entry("churn", given.run_key) == given
    assert place.open().entries() == place.open().open_entries() == [given]
    assert place.open().entry("churn", "2026-05-02T22:00Z") is None
    assert place.open().entry("other", given.run_key) is None


def test_texts_that_a_database_does_not_take_are_told_all_the_same(ledger: RunLedger) -> None:
    odd = "input/caf\udce9\0.csv is 🦔"  # a file's name in Latin-1, as Python has it
    moved(ledger, entry(reason=odd, who=odd))
    ledger.pause(Pause(model="churn", since=START, who=odd, why=odd))
    ledger.add_notice("churn", "k", "held", odd, START)
    ledger.tried(ledger.untold()[0].number, told_at=None, error=odd)
    shown = "input/caf\\udce9\\0.csv is 🦔"
    (found,) = ledger.entries()
    (notice,) = ledger.untold()
    assert {found.reason, found.who, ledger.pauses()["churn"].why, notice.says, notice.error} == {shown}


def test_times_of_any_zone_are_the_same_moments(ledger: RunLedger) -> None:
    madrid, india = ZoneInfo("Europe/Madrid"), timezone(timedelta(hours=5, minutes=30))
    given = entry(data_time=START.astimezone(madrid), since=START.astimezone(india), not_before=START.astimezone(india))
    moved(ledger, given)
    found = ledger.entry("churn", given.run_key)
    assert found == given
    assert found is not None
    assert found.not_before is not None
    assert {found.data_time.tzinfo, found.since.tzinfo, found.not_before.tzinfo} == {UTC}
    assert labels(ledger.entries(since=START.astimezone(india), until=LATER.astimezone(madrid))) == ["churn/01"]
    assert ledger.newest(START.astimezone(madrid)) == {"churn": given}
    with pytest.raises(TypeError):
        ledger.move(entry(since=START.replace(tzinfo=None)))
    with pytest.raises(TypeError):
        ledger.add_notice("churn", "k", "held", "It is held.", START.replace(tzinfo=None))


@pytest.mark.parametrize("year", [1, 1970, 2037, 2039, 9999])
def test_times_far_away(ledger: RunLedger, year: int) -> None:
    moved(ledger, entry(since=datetime(year, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), data_date=date(year, 1, 1)))
    assert ledger.entry("churn", entry().run_key) == entry(
        since=datetime(year, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), data_date=date(year, 1, 1)
    )


def test_each_change_of_state_is_kept(ledger: RunLedger) -> None:
    due = entry(who="sereno")
    later = [due.since + timedelta(seconds=n) for n in range(5)]
    running = replace(due, state="running", since=later[1], attempt="a", tries=1)
    again = replace(running, since=later[2], tries=2, attempt="b")  # the state that it had
    failed = replace(again, state="failed", since=later[3], reason="SourceError: it is empty", who="ana")
    moved(ledger, due, running, again, failed, replace(failed, reason="told"))
    assert ledger.entry("churn", due.run_key) == replace(failed, reason="told")
    found = ledger.transitions("churn", due.run_key)
    assert [(t.at, t.before, t.after, t.attempt, t.reason, t.who) for t in found] == [
        (due.since, None, "due", "", "", "sereno"),
        (later[1], "due", "running", "a", "", "sereno"),
        (later[3], "running", "failed", "b", "SourceError: it is empty", "ana"),
    ]
    assert {(t.model, t.run_key) for t in found} == {("churn", due.run_key)}
    assert ledger.transitions("churn", entry(2).run_key) == []


def test_what_becomes_of_a_published_run_is_kept_too(ledger: RunLedger) -> None:
    published = entry(state="published", version=1)
    later = [published.since + timedelta(seconds=n) for n in range(4)]
    behind = replace(published, since=later[1], reason="ExportError: no room", not_before=later[3])
    rolled_back = replace(behind, since=later[3], reason="Version 1 was rolled back.", who="ana", not_before=None)
    moved(ledger, published, behind, replace(behind, since=later[2], tries=2), rolled_back)
    found = ledger.transitions("churn", published.run_key)
    assert [(t.at, t.before, t.after, t.reason, t.who) for t in found] == [
        (published.since, None, "published", "", published.who),
        (later[1], "published", "published", "ExportError: no room", published.who),
        (later[3], "published", "published", "Version 1 was rolled back.", "ana"),
    ]


@pytest.mark.parametrize("before", [None, *STATES])
def test_a_move_from_another_state_than_expected_changes_nothing(ledger: RunLedger, before: RunState | None) -> None:
    given = entry(state=before or "due")
    if before:
        moved(ledger, given)
    others: list[RunState | None] = [state for state in (None, *STATES) if state != before]
    kept = ledger.entry("churn", given.run_key), ledger.transitions("churn", given.run_key)
    to = replace(given, state="held", reason="new")
    assert not ledger.move(to, expected=others)
    assert not ledger.move(to, expected=[])
    assert (ledger.entry("churn", given.run_key), ledger.transitions("churn", given.run_key)) == kept
    assert ledger.move(to, expected={before})
    assert ledger.entry("churn", given.run_key) == to


def test_a_move_needs_its_lease(place: Place) -> None:
    ledger, other = place.open(), place.open()
    lease = ledger.acquire("run:churn:x", "me", 30)
    assert lease is not None
    assert ledger.move(entry(), lease=lease)
    assert other.move(replace(entry(), state="running"), lease=lease)  # it is the lease that counts
    taken = other.acquire("run:churn:x", "you", 30, by_force=True)
    assert not ledger.move(replace(entry(), state="published"), lease=lease)
    assert not ledger.move(replace(entry(), state="published"), lease=replace(lease, token=taken.token if taken else 0))
    assert not ledger.move(entry(2), lease=Lease(name="never", holder="me", token=lease.token))
    assert [e.state for e in ledger.entries()] == ["running"]
    assert other.move(replace(entry(), state="published"), expected=["running"], lease=taken)
    assert taken is not None
    other.release(taken)
    assert not other.move(entry(), lease=taken)


def test_a_lease_whose_time_is_over_is_had_until_another_takes_it(place: Place) -> None:
    ledger = place.open()
    lease = ledger.acquire("scheduler", "me", 0.01)
    assert lease is not None
    eventually(lambda: ledger.holder("scheduler") is None)
    assert ledger.move(entry(), lease=lease)
    assert ledger.renew(lease, 30)
    assert ledger.holder("scheduler") == lease


# Finding


def test_entries_are_what_the_filters_leave(ledger: RunLedger) -> None:
    dice = random.Random(1)
    every = [
        entry(day, model, state=dice.choice(STATES), not_before=dice.choice([None, None, START]), tries=day)
        for model in ("churn", "credit", "offers")
        for day in range(1, 21)
    ]
    dice.shuffle(every)
    moved(ledger, *every)

    def oracle(chosen: list[Entry]) -> list[Entry]:
        return sorted(sorted(chosen, key=lambda e: e.model), key=lambda e: e.data_time, reverse=True)

    assert ledger.entries() == oracle(every)
    for _ in range(60):
        model = dice.choice([None, "churn", "offers", "unknown"])
        states = dice.sample(STATES, dice.randint(0, 4))
        since, until = (dice.choice([None, START + timedelta(days=dice.randint(-1, 22))]) for _ in range(2))
        limit = dice.choice([None, None, 1, 7, 100])
        expected = oracle(
            [
                e
                for e in every
                if model in (None, e.model)
                and (not states or e.state in states)
                and (since is None or e.data_time >= since)
                and (until is None or e.data_time < until)
            ]
        )[:limit]
        assert ledger.entries(model=model, states=states, since=since, until=until, limit=limit) == expected

    for day in range(-1, 23):
        until = START + timedelta(days=day, seconds=dice.choice([-1, 0, 1]))
        assert ledger.newest(until) == {e.model: e for e in reversed(oracle(every)) if e.data_time <= until}
    open_ = [e for e in every if e.state in ("due", "waiting", "running") or e.not_before]
    assert ledger.open_entries() == sorted(open_, key=lambda e: (e.data_time, e.model))


def test_what_is_known_to_be_published(ledger: RunLedger) -> None:
    assert ledger.versions() == {}
    assert ledger.add([entry(1, version=3), entry(2, version=2), entry(3)]) == 3
    assert ledger.add([entry(1, version=9)]) == 0
    assert ledger.versions() == {"churn": 3}


def test_a_new_ledger_is_empty(ledger: RunLedger) -> None:
    assert ledger.entries() == ledger.open_entries() == ledger.untold() == ledger.notices("churn", 5) == []
    assert ledger.newest(LATER) == ledger.pauses() == {}
    assert ledger.resume("churn") is None
    assert ledger.holder("scheduler") is None
    assert ledger.prune(LATER) == 0
    ledger.forget("churn", "unknown")


def test_what_is_forgotten_is_as_if_it_had_never_been(ledger: RunLedger) -> None:
    moved(ledger, entry(1), entry(2), entry(1, "other"))
    for model in ("churn", "other"):
        assert ledger.add_notice(model, entry(1).run_key, "late", "It is late.", START)
    ledger.forget("churn", entry(1).run_key)
    assert ledger.entry("churn", entry(1).run_key) is None
    assert ledger.transitions("churn", entry(1).run_key) == []
    assert labels(ledger.entries()) == ["churn/02", "other/01"]
    assert [n.model for n in ledger.untold()] == ["other"]
    assert ledger.move(entry(1), expected=[None])


def test_pruning(ledger: RunLedger) -> None:
    """Runs that ended go, whatever is open or undecided stays, and so does the newest of each model."""
    moved(ledger, *(entry(day, state=state) for day, state in enumerate(STATES, 1)))
    moved(ledger, entry(1, "rare", state="published"), entry(1, "again", state="failed", not_before=LATER))
    moved(ledger, entry(2, "again", state="published"), entry(20, state="published"))
    for day in (*range(1, len(STATES) + 1), 20):
        assert ledger.add_notice("churn", entry(day).run_key, "failed", "It failed.", entry(day).data_time)
    ledger.add_notice("churn", "gone", "held", "It is held.", START)
    ledger.add_notice("churn", "gone", "late", "It is late.", LATER)
    before = entry(20).data_time
    assert ledger.prune(entry(5).data_time, dry_run=True) == 0
    assert ledger.prune(entry(5).data_time + timedelta(seconds=1), dry_run=True) == 1
    assert ledger.prune(before, dry_run=True) == 4
    assert ledger.prune(before, model="nobody") == 0
    assert ledger.prune(before, model="churn", dry_run=True) == ledger.prune(before, dry_run=True)
    assert len(ledger.entries()) == len(STATES) + 4
    assert ledger.prune(before) == 4
    left = {(e.model, e.state) for e in ledger.entries()}
    assert left == {
        *(("churn", state) for state in ("due", "waiting", "running", "held", "published")),
        *(("rare", "published"), ("again", "failed"), ("again", "published")),
    }
    kept = {e.run_key for e in ledger.entries(model="churn")}
    assert {n.run_key for n in ledger.notices("churn", 100)} == kept | {"gone"}
    assert [n.kind for n in ledger.notices("churn", 100) if n.run_key == "gone"] == ["late"]
    pruned = [entry(day).run_key for day, state in enumerate(STATES, 1) if entry(day).run_key not in kept]
    assert all(not ledger.transitions("churn", key) for key in pruned)
    assert all(ledger.transitions("churn", key) for key in kept)
    assert ledger.prune(LATER) == 0  # what ended latest of each model is its newest
    assert ledger.prune(before) == 0


# Leases


def test_a_lease_has_one_holder(place: Place) -> None:
    ledger, other = place.open(), place.open()
    lease = ledger.acquire("scheduler", "me", 30)
    assert lease is not None
    assert (lease.name, lease.holder) == ("scheduler", "me")
    assert other.acquire("scheduler", "you", 30) is None
    assert other.holder("scheduler") == ledger.holder("scheduler") == lease
    elsewhere = other.acquire("run:churn:x", "you", 30)  # another name is another lease
    assert elsewhere is not None
    assert other.holder("run:churn:x") == elsewhere
    ledger.release(lease)
    assert other.holder("scheduler") is None
    mine = other.acquire("scheduler", "you", 30)
    assert other.holder("scheduler") == mine
    ledger.release(lease)  # it is not his any more
    assert other.holder("scheduler") == mine


def test_tokens_only_grow(place: Place) -> None:
    ledger, other = place.open(), place.open()
    seen = []

    def acquired(by: RunLedger, holder: str, seconds: float = 30, *, by_force: bool = False) -> Lease:
        lease = by.acquire("run:churn:x", holder, seconds, by_force=by_force)
        assert lease is not None
        seen.append(lease.token)
        return lease

    ledger.release(acquired(ledger, "me"))
    ledger.release(acquired(ledger, "me"))
    lease = acquired(other, "you", 0.01)
    eventually(lambda: ledger.holder("run:churn:x") is None)
    acquired(ledger, "me")
    assert not other.renew(lease, 30)
    lease = acquired(other, "you", by_force=True)
    acquired(other, "you")  # its own, once more: the earlier one is void
    assert not other.renew(lease, 30)
    assert seen == sorted(set(seen))
    again = place.open().acquire("another name", "me", 30)
    assert again is not None
    assert again.token > seen[-1]


def test_a_lease_ends_unless_it_is_renewed(place: Place) -> None:
    ledger, other = place.open(), place.open()
    lease = ledger.acquire("scheduler", "me", 0.5)
    assert lease is not None
    for _ in range(4):
        time.sleep(0.2)
        assert ledger.renew(lease, 0.5)
        assert other.acquire("scheduler", "you", 30) is None
    began = time.monotonic()
    eventually(lambda: other.holder("scheduler") is None)
    assert time.monotonic() - began > 0.2
    taken = other.acquire("scheduler", "you", 30)
    assert taken is not None
    assert not ledger.renew(lease, 30)
    ledger.release(lease)
    assert ledger.holder("scheduler") == taken


def test_what_was_given_back_or_lost_cannot_be_renewed(place: Place) -> None:
    ledger, other = place.open(), place.open()
    lease = ledger.acquire("scheduler", "me", 30)
    assert lease is not None
    ledger.release(lease)
    assert not ledger.renew(lease, 30)
    assert ledger.holder("scheduler") is None
    lease = ledger.acquire("scheduler", "me", 30)
    taken = other.acquire("scheduler", "you", 30, by_force=True)
    assert lease is not None
    assert taken is not None
    other.release(taken)
    assert not ledger.renew(lease, 30)  # nobody has it now, but somebody had
    assert not ledger.renew(Lease(name="unknown", holder="me", token=lease.token + 1), 30)


# Pauses


def test_pauses(place: Place) -> None:
    ledger, other = place.open(), place.open()
    first = Pause(model="churn", since=START, who="ana", why="the warehouse moves")
    assert ledger.pause(first)
    assert not other.pause(Pause(model="churn", since=LATER, who="bob", why=""))
    second = Pause(model="credit", since=LATER, who="bob", why="")
    assert other.pause(second)
    assert ledger.pauses() == {"churn": first, "credit": second}
    assert other.resume("churn") == first
    assert ledger.resume("churn") is None
    assert ledger.pauses() == {"credit": second}


# Notices


def test_a_notice_of_a_run_and_kind_is_given_once(place: Place) -> None:
    ledger, other = place.open(), place.open()
    assert ledger.add_notice("churn", "a", "failed", "It failed.", START)
    assert not other.add_notice("churn", "a", "failed", "It failed again.", LATER)
    assert other.add_notice("churn", "a", "held", "It is held.", START + timedelta(hours=1))
    assert other.add_notice("churn", "b", "failed", "It failed.", START + timedelta(hours=2))
    assert ledger.add_notice("credit", "a", "failed", "It failed.", START + timedelta(hours=3))
    first, *others = ledger.untold()
    assert (first.model, first.run_key, first.kind, first.at, first.says) == (
        "churn",
        "a",
        "failed",
        START,
        "It failed.",
    )
    assert (first.tries, first.told_at, first.error) == (0, None, "")
    assert [(n.model, n.run_key, n.kind) for n in others] == [
        ("churn", "a", "held"),
        ("churn", "b", "failed"),
        ("credit", "a", "failed"),
    ]

    other.tried(first.number, told_at=None, error="the mail server refused it")
    assert ledger.untold()[0] == replace(first, tries=1, error="the mail server refused it")
    other.tried(first.number, told_at=LATER)
    assert [n.number for n in ledger.untold()] == [n.number for n in others]
    assert not ledger.add_notice("churn", "a", "failed", "It failed again.", LATER)
    newest = ledger.notices("churn", 2)
    assert [(n.run_key, n.kind) for n in newest] == [("b", "failed"), ("a", "held")]
    assert ledger.notices("churn", 9)[-1] == replace(first, tries=2, told_at=LATER)
    numbers = [n.number for n in (first, *others)]
    assert numbers == sorted(set(numbers))


# Many at once


def test_of_many_processes_one_moves_a_run(place: Place) -> None:
    days = range(1, 26)
    moved(place.open(), *(entry(day) for day in days))
    won = place.together(
        """
mine = []
for one in sorted(ledger.open_entries(), key=lambda e: (e.data_time.day * (7 + 2 * int(arguments[0]))) % 31):
    to = replace(one, state="running", who=arguments[0], attempt=arguments[0], tries=one.tries + 1)
    if ledger.move(to, expected=["due"]):
        mine.append(one.run_key)
tell(mine)
""",
        4,
    )
    ledger = place.open()
    assert sorted(key for keys in won for key in keys) == sorted(entry(day).run_key for day in days)
    for number, keys in enumerate(won):
        for key in keys:
            found = ledger.entry("churn", key)
            assert found is not None
            assert (found.who, found.tries) == (str(number), 1)
            assert [t.after for t in ledger.transitions("churn", key)] == ["due", "running"]


def test_of_many_processes_one_makes_the_entry_and_one_has_the_lease(place: Place) -> None:
    """They begin with no ledger at all."""
    told = place.together(
        """
from tests.contract.ledgers import entry
made, leases, tokens = [], [], []
for day in range(1, 16):
    if ledger.move(entry(day, who=arguments[0]), expected=[None]):
        made.append(day)
    lease = ledger.acquire(f"run:churn:{day}", arguments[0], 300)
    if lease:
        leases.append(day)
        tokens.append(lease.token)
    tokens.append(ledger.acquire("contested", arguments[0], 300, by_force=True).token)
    ledger.add_notice("churn", str(day), "late", "It is late.", datetime.now(UTC))
tell([made, leases, tokens])
""",
        4,
    )
    ledger = place.open()
    assert sorted(day for made, _, _ in told for day in made) == list(range(1, 16))
    assert sorted(day for _, leases, _ in told for day in leases) == list(range(1, 16))
    assert all(tokens == sorted(tokens) for _, _, tokens in told)
    every = [token for _, _, tokens in told for token in tokens]
    assert len(set(every)) == len(every)
    last = ledger.holder("contested")
    assert last is not None
    assert last.token == max(every)
    assert len(ledger.untold()) == 15
    for number, (made, _, _) in enumerate(told):
        for day in made:
            found = ledger.entry("churn", entry(day).run_key)
            assert found is not None
            assert found.who == str(number)


def test_threads_take_turns(place: Place) -> None:
    ledger = place.open()

    def work(number: int) -> list[int]:
        won = []
        for day in range(1, 11):
            if ledger.move(entry(day, who=str(number)), expected=[None]):
                won.append(day)
            lease = ledger.acquire(f"run:{day}", str(number), 30)
            assert lease is None or ledger.renew(lease, 30)
        return won

    with ThreadPoolExecutor(4) as threads:
        won = [day for days in threads.map(work, range(4)) for day in days]
    assert sorted(won) == list(range(1, 11))


def test_a_process_that_is_killed_leaves_all_or_nothing(place: Place) -> None:
    ledger = place.open()
    for _ in range(3):
        process = place.start(
            """
from tests.contract.ledgers import entry
print("begun", flush=True)
while True:
    for day in range(1, 400):
        ledger.move(entry(day, state="due" if (ledger.entry("churn", entry(day).run_key) or entry()).state == "held" else "held"))
"""
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "begun\n"]
        before = len(ledger.entries())
        eventually(lambda before=before: len(ledger.entries()) > before + 5)  # type: ignore[misc]
        process.kill()
        process.communicate()
        assert ledger.move(entry(400, "other"))  # nobody waits for the dead
        for one in ledger.entries(model="churn"):
            found = ledger.transitions("churn", one.run_key)
            assert found[-1].after == one.state
            assert [t.before for t in found] == [None, *(t.after for t in found[:-1])]
        ledger.forget("other", entry(400).run_key)


def test_what_is_closed_opens_again_when_it_is_used(place: Place) -> None:
    ledger = place.open()
    moved(ledger, entry())
    ledger.close()
    ledger.close()
    assert ledger.entries() == [entry()]


def test_holders_differ() -> None:
    assert holder_here() != holder_here()


def test_nothing_is_made_before_it_is_used(tmp_path: Path) -> None:
    open_at(None, tmp_path).close()
    assert [*tmp_path.iterdir()] == []


def test_a_notice_of_another_attempt_is_another_one(ledger: RunLedger) -> None:
    ledger.move(entry(1))
    key = entry(1).run_key
    assert [ledger.add_notice("churn", key, "held", "It is held.", START, one) for one in ("a", "b", "a", "")] == [
        True,
        True,
        False,
        True,
    ]
    assert [(one.kind, one.attempt) for one in ledger.untold()] == [("held", "a"), ("held", "b"), ("held", "")]
    ledger.forget("churn", key)
    assert ledger.untold() == []
