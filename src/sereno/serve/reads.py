"""Lookups in a store on another machine: what waits for its answers, and the shortest path once they are there.

Nothing may wait on the event loop. The plain GETs that arrive in one turn of it are one question to the store; any other
request is read, says which keys it needs, and is read again when these were answered: its second reading finds them.
All answers to one request are of one snapshot: where another took over meanwhile, the store is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from sereno.exceptions import StorageError
from sereno.serve.turn import Turn
from sereno.serve.wire import Awaited, Exchange, Request, RequestError

if TYPE_CHECKING:
    from sereno.interfaces import FarIndex
    from sereno.serve.lane import Lane
    from sereno.serve.live import Live
    from sereno.serve.lookup import Lookups
    from sereno.serve.service import Service

AT_ONCE = 64  # keys of one request that are asked before it is seen how large what they found is
MOST_AT_ONCE = 512  # of several requests
MOST_WAITING = 10_000  # keys

Found = list[bytes | None] | StorageError


class Plain(NamedTuple):
    """A GET on the shortest path."""

    lane: Lane
    key: bytes
    path: bytes
    none_match: bytes | None
    since: float


class _Given(NamedTuple):
    """What the store said, for the reading of now."""

    by: FarIndex
    found: dict[bytes, bytes | None]
    error: StorageError | None


class Reads:
    """Of one model in one worker. All methods are called on the event loop."""

    def __init__(self, lookups: Lookups, max_reply_bytes: int) -> None:
        self._lookups, self._max_reply_bytes = lookups, max_reply_bytes
        self._plain: list[Plain] = []
        self._given: _Given | None = None
        self.waiting_keys = 0

    def serve(self, service: Service, exchange: Exchange, live: Live) -> None:
        """What replies are made with. Once, when the service is open."""
        self._service, self._exchange, self._live = service, exchange, live

    @property
    def is_full(self) -> bool:
        return self.waiting_keys >= MOST_WAITING

    # The shortest path

    def add(self, plain: Plain) -> None:
        """The lane keeps its place in the order of its connection, until its reply is written."""
        self._plain.append(plain)
        if len(self._plain) == 1:
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        """Ask for all that has arrived."""
        items, self._plain = self._plain, []
        index = self._lookups.far
        for start in range(0, len(items), MOST_AT_ONCE):
            some = items[start : start + MOST_AT_ONCE]
            if index is None:
                self._answered(some, index, [None] * len(some))
            else:
                self._look_up(index, [one.key for one in some], partial(self._answered, some, index))

    def _look_up(self, index: FarIndex, keys: Sequence[bytes], then: Callable[[Found], None]) -> None:
        def told(found: Found) -> None:
            self.waiting_keys -= len(keys)
            if isinstance(found, StorageError):
                self._lookups.lost(index, found)
            then(found)

        self.waiting_keys += len(keys)
        index.ask(keys, told)

    def _answered(self, items: Sequence[Plain], index: FarIndex | None, found: Found) -> None:
        lookups, service = self._lookups, self._service
        if isinstance(found, StorageError) or index is None or lookups.far is not index or not lookups.is_plain:
            for one in items:
                self._take_longer(one, index, found)
            return
        now, done, first = service.now, 0, items[0].since
        for one, prediction in zip(items, found, strict=True):
            lane = one.lane
            if prediction is None or lane.is_lost or lane.is_draining:
                self._take_longer(one, index, [prediction])
                continue
            reply = lookups.reply(prediction, one.none_match, service, lane.server_state.default_headers)
            if reply is None:
                self._take_longer(one, index, [prediction])
                continue
            turns = lane.turns
            turns.popleft()
            lane.active, lane.has_asked = now, True
            lane.transport.write(reply)
            done += one.none_match is None
            if one.none_match is not None:
                service.done(lookups.name, "lookup", 304, perf_counter() - one.since)
            if turns or lane.pipeline or lane.is_half_closed:
                lane.flush()
        if done:
            service.done(lookups.name, "lookup", 200, perf_counter() - first, done)

    def _take_longer(self, one: Plain, index: FarIndex | None, found: Found) -> None:
        """The way of all others, with what was found."""
        lane = one.lane
        if lane.is_lost:
            return
        turn = lane.turns[0] = Turn(lane, self._exchange, self._live, self._service.request_id(None), close=False)
        headers = [(b"if-none-match", one.none_match)] if one.none_match is not None else []
        request = Request(b"GET", one.path, b"", headers, b"", turn.request_id)
        if index is None:
            turn.ask(request, one.since)
        elif isinstance(found, StorageError):
            with self._giving(_Given(index, {}, found)):
                turn.ask(request, one.since)
        else:
            with self._giving(_Given(index, {one.key: found[0]}, None)):
                turn.ask(request, one.since)

    # Every other way

    def get_many(self, index: FarIndex, keys: Sequence[bytes]) -> list[bytes | None]:
        """What there is under these keys, where it was asked for before this reading; else the reading ends here.

        Raises Awaited, StorageError where the store does not answer, and RequestError (503) where too many keys wait.
        """
        given = self._given
        if given is not None and given.error is not None:
            raise given.error
        if given is not None and given.by is index:
            return [given.found[key] for key in keys]
        if self.waiting_keys and self.waiting_keys + len(keys) > MOST_WAITING:
            raise RequestError(503, "Too many lookups wait for their answers. Try again later.", retry_after=1)
        raise Awaited(partial(self._begin, index, list(keys)))

    def _begin(self, index: FarIndex, keys: list[bytes], again: Callable[[], None]) -> None:
        found: dict[bytes, bytes | None] = {}
        left = list(dict.fromkeys(keys))
        size = 0

        def ask() -> None:
            some = left[:AT_ONCE]
            del left[:AT_ONCE]
            self._look_up(index, some, partial(told, some))

        def told(some: list[bytes], answer: Found) -> None:
            nonlocal size
            if isinstance(answer, StorageError):
                with self._giving(_Given(index, {}, answer)):
                    again()
                return
            found.update(zip(some, answer, strict=True))
            size += sum(len(one) for one in answer if one is not None)
            if size > self._max_reply_bytes:  # whoever reads sees that it is too large, without the rest
                found.update(dict.fromkeys(left))
                left.clear()
            if left:
                ask()
                return
            with self._giving(_Given(index, found, None)):
                again()

        ask()

    @contextmanager
    def _giving(self, given: _Given) -> Iterator[None]:
        self._given = given
        try:
            yield
        finally:
            self._given = None
