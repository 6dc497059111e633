"""Which snapshot a worker's lookups answer from, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from sereno.lookup.keys import KeyCodec
from sereno.serve.lookup import Lookups, matches
from sereno.serve.metrics import Metrics
from sereno.serve.wire import RequestError
from sereno.settings import ModelSettings

KEYS = KeyCodec(("id",), ("int",))
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Index:
    """Says its version, whatever the key."""

    data_date, data_time, rows = date(2026, 11, 21), NOON, 1

    def __init__(self, number: int, mark: object = None, keys: KeyCodec = KEYS) -> None:
        self.number, self.mark, self.keys = number, mark if mark is not None else number, keys
        self.is_closed = False

    def get(self, key: bytes) -> bytes | None:
        assert not self.is_closed
        return b"%d" % self.number

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def close(self) -> None:
        self.is_closed = True


class Store:
    """Opens what a test puts there: an index, or an error."""

    is_far = False

    def __init__(self, there: Index | Exception | None) -> None:
        self.there = there
        self.served = there.number if isinstance(there, Index) else 0
        self.is_late = False  # whether the table's lookups are not built yet

    def serve(self, number: int) -> None:
        self.there, self.served = Index(number), number

    def follow(self, state: Any, keep: frozenset[int]) -> bool:
        return False

    def mark(self) -> object:
        return self.served or None

    def is_behind(self) -> bool:
        return self.is_late

    def was_rolled_back(self, number: int) -> bool:
        return number > self.served

    def open(self) -> Index | None:
        if isinstance(self.there, Exception):
            raise self.there
        return self.there


class Clock:
    now = NOON.timestamp() + 100

    def __call__(self) -> float:
        return self.now


def version(lookups: Lookups) -> int | str:
    try:
        (found,), _ = lookups.find([(7,)])
    except RequestError as error:
        return error.says
    assert found is not None
    return int(found)


async def settled(lookups: Lookups) -> None:
    """Look, and wait for what that begins."""
    lookups.look()
    if lookups._opening is not None:
        await lookups._opening


def made(store: Store, clock: Clock | None = None, **settings: Any) -> Lookups:
    return Lookups("m", Path("/"), store, ModelSettings(**settings), KEYS, metrics=Metrics(), clock=clock or Clock())


def test_it_follows_forth_and_back() -> None:
    async def story() -> None:
        store = Store(Index(1))
        lookups = made(store)
        assert version(lookups) == 1
        for number in (2, 1, 3):
            store.serve(number)
            await settled(lookups)
            assert version(lookups) == number
        lookups.close()

    asyncio.run(story())


def test_what_cannot_be_opened_changes_nothing_and_is_tried_again() -> None:
    async def story() -> None:
        store, clock = Store(Index(1)), Clock()
        lookups = made(store, clock)
        store.served, store.there = 2, OSError("no descriptors")
        await settled(lookups)
        assert version(lookups) == 1
        store.serve(2)
        await settled(lookups)
        assert version(lookups) == 1  # after a moment
        clock.now += 6
        await settled(lookups)
        assert version(lookups) == 2
        lookups.close()

    asyncio.run(story())


@pytest.mark.parametrize("there", [OSError("no descriptors"), None], ids=["cannot be opened", "is not there"])
def test_what_was_rolled_back_does_not_go_on_answering(there: Any) -> None:
    async def story() -> None:
        store, clock = Store(Index(2)), Clock()
        lookups = made(store, clock)
        before = lookups.index
        store.served, store.there = 1, there
        await settled(lookups)
        assert version(lookups) == "What is published is being made ready for lookups."
        assert lookups.plain(b"7", None, None, None) is None  # type: ignore[arg-type]
        store.serve(1)
        store.served = 1
        clock.now += 6
        lookups._mark = None if there is None else lookups._mark
        await settled(lookups)
        assert version(lookups) == 1
        await asyncio.sleep(0.05)
        assert isinstance(before, Index)
        assert before.is_closed
        lookups.close()

    asyncio.run(story())


def test_it_notices_what_came_and_went_while_it_opened() -> None:
    """It sees version 1, finds version 2 when it opens, and version 1 is back by then."""

    async def story() -> None:
        store = Store(Index(3))
        lookups = made(store)
        store.served, store.there = 1, Index(2)
        await settled(lookups)
        assert version(lookups) == 2
        store.serve(1)
        await settled(lookups)
        assert version(lookups) == 1
        lookups.close()

    asyncio.run(story())


def test_what_was_removed_is_answered_until_there_is_another() -> None:
    async def story() -> None:
        store = Store(Index(1))
        lookups = made(store)
        store.there, store.served = None, 2
        await settled(lookups)
        assert version(lookups) == 1
        lookups.close()

    asyncio.run(story())


def test_a_snapshot_with_other_keys_is_not_looked_up_in() -> None:
    async def story() -> None:
        other = KeyCodec(("name",), ("int",))
        store = Store(Index(1, keys=other))
        lookups = made(store, lookup="required")
        assert "has other keys" in str(version(lookups))
        assert lookups.why_not_ready == "what is published has other keys"
        assert isinstance(store.there, Index)
        assert store.there.is_closed
        store.serve(2)
        await settled(lookups)
        assert (version(lookups), lookups.why_not_ready) == (2, "")
        lookups.close()

    asyncio.run(story())


def test_why_it_is_not_ready() -> None:
    async def story() -> None:
        store = Store(None)
        assert made(store).why_not_ready == ""
        lookups = made(store, lookup="required")
        assert lookups.why_not_ready == "nothing is published to look up"
        store.is_late = True
        assert lookups.why_not_ready == "what is published is not indexed yet"

    asyncio.run(story())


def test_it_gets_older_and_stale() -> None:
    async def story() -> None:
        clock = Clock()
        lookups = made(Store(Index(1)), clock, max_age_seconds=200)
        assert lookups.standing is not None
        assert lookups.standing._asdict() == {
            "version": 1,
            "data_date": "2026-11-21",
            "data_time": "2026-11-22T12:00:00Z",
            "age_seconds": 100,
            "stale": False,
        }
        for now, age, stale in ((200.9, 200, False), (201.0, 201, True), (-50.0, 0, False)):
            clock.now = NOON.timestamp() + now
            lookups.look()
            assert (lookups.standing.age_seconds, lookups.standing.stale) == (age, stale)
            assert lookups.etag == (b'W/"1-true"' if stale else b'W/"1-false"')
        lookups.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        (b'W/"1-false"', True),
        (b'"1-false"', True),
        (b'"x", W/"1-false"', True),
        (b" * ", True),
        (b'W/"1-true"', False),
        (b"1-false", False),
        (b"", False),
        (b'"1-false', False),
    ],
)
def test_if_none_match(sent: bytes, same: bool) -> None:
    assert matches(sent, b'W/"1-false"') is same
