"""Fetched columns in live requests: greedy, as the batcher is. While `fetch` runs, rows queue; then all are fetched at once.

One call at a time: an async `fetch` on the event loop, any other in a thread of its own, always the same one (a database
connection may be tied to its thread).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol

from sereno.fetching import Fetch, Key
from sereno.rows import UNSET, Row
from sereno.schema import RowType
from sereno.serve.batcher import Waiting, tell
from sereno.serve.wire import TOO_MANY_WAIT, Mistake, RequestError
from sereno.values import Refused

LOG = logging.getLogger("sereno.serve")

NOTHING_KNOWN = "A row lacks features, and none are known for its key."
MOST_TRIES = 32  # calls of fetch for the keys of one batch, to find those on which it raises


class Watcher(Protocol):
    """What is told about each call of fetch: `metrics.Metrics`."""

    def fetched(self, model: str, seconds: float, *, failed: bool = False) -> None: ...


class _Others(Waiting):
    """The rows of a request that are complete, while others of it have an error already."""

    def __init__(self, whole: Waiting, failed: dict[int, RequestError]) -> None:
        super().__init__((), whole.request_id, whole.since)
        self._whole, self._failed = whole, failed

    def tell(self, answers: Sequence[Any]) -> None:
        rest = iter(answers)
        count = len(answers) + len(self._failed)
        tell(self._whole, [self._failed[i] if i in self._failed else next(rest) for i in range(count)])


class _TooLate(Exception):
    """fetch did not answer in time."""


class Fetcher:
    """The queue in front of one model's `fetch`. All methods are called on the event loop."""

    def __init__(
        self,
        name: str,
        fetch: Fetch,
        inputs: RowType,
        *,
        then: Callable[[Waiting], None],
        queue_rows: int,
        timeout_seconds: float,
        request_timeout_seconds: float,
        watcher: Watcher,
    ) -> None:
        self.name = name
        self._fetch = fetch
        self._then = then  # gets the requests whose rows are complete; raises RequestError (503)
        self._queue_rows = queue_rows
        self._timeout, self._request_timeout = timeout_seconds, request_timeout_seconds
        self._watcher = watcher
        self._keys = [i for i, c in enumerate(inputs.columns) if c.role == "key"]
        self._fetched = [i for i, c in enumerate(inputs.columns) if c.role == "fetched"]
        self._queue: list[Waiting] = []
        self._in_flight: list[Waiting] = []
        self._since = 0.0  # when the call of now, or the last one, began
        self._thread: ThreadPoolExecutor | None = None
        self._stuck: Future[dict[Key, tuple[Any, ...]]] | None = None  # the call that the thread is at, or was last at
        self._task: asyncio.Task[None] | None = None

    @property
    def queued_rows(self) -> int:
        return sum(len(w.rows) for w in (*self._queue, *self._in_flight))

    @property
    def fetching_since(self) -> float | None:
        """When the call began that fetch is at, though nobody may wait for it any more; None: it is at none."""
        return self._since if self._in_flight or self._is_stuck else None

    @property
    def _is_stuck(self) -> bool:
        return self._stuck is not None and not self._stuck.done()

    def submit(self, waiting: Waiting) -> None:
        """Have the missing columns of its rows fetched. Raises RequestError (503) where too many rows wait."""
        if self._queue and self.queued_rows + len(waiting.rows) > self._queue_rows:
            raise RequestError(503, f"{TOO_MANY_WAIT} for their features. Try again later.", retry_after=1)
        self._queue.append(waiting)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def expire(self, now: float) -> None:
        """Answer what has waited too long (504). Called every now and then."""
        for waiting in (*self._in_flight, *self._queue):
            if not waiting.is_told and now - waiting.since > self._request_timeout:
                self._tell(waiting, RequestError(504, f"There was no answer within {self._request_timeout:g} seconds."))
        self._queue = [w for w in self._queue if not w.is_told]

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while self._queue:
            self._in_flight, self._queue = self._queue, []
            keys = dict.fromkeys(
                tuple(row[i] for i in self._keys)
                for waiting in self._in_flight
                for row in waiting.rows
                if any(row[i] is UNSET for i in self._fetched)
            )
            start = perf_counter()
            if not self._is_stuck:
                self._since = start
            found: dict[Key, tuple[Any, ...] | RequestError] = {}
            pieces = [list(keys)]
            tries = 0
            while pieces:
                some = pieces.pop()
                tries += 1
                try:
                    found |= await self._call(some)
                except _TooLate:
                    late = RequestError(504, f"The row's features were not there within {self._timeout:g} seconds.")
                    found |= dict.fromkeys(some, late)
                except KeyboardInterrupt:
                    raise
                except BaseException as raised:
                    # fetch may have waited for what somebody else cancelled
                    cancelled = isinstance(raised, asyncio.CancelledError)
                    if cancelled and self._task is not None and self._task.cancelling():
                        raise
                    if len(some) > 1 and tries < MOST_TRIES:  # one key's trouble must not cost the others theirs
                        half = len(some) // 2
                        pieces += [some[half:], some[:half]]
                    else:
                        found |= dict.fromkeys(some, self._failure(raised))
            failed = any(isinstance(value, RequestError) for value in found.values())
            self._watcher.fetched(self.name, perf_counter() - start, failed=failed)
            done, self._in_flight = self._in_flight, []
            for waiting in done:
                if not waiting.is_told:
                    self._finish(waiting, found)
        self._task = None

    def _failure(self, raised: BaseException) -> RequestError:
        error_id = uuid.uuid4().hex[:12]
        LOG.error("error %s: model %s: fetch: %s", error_id, self.name, raised, exc_info=raised)
        return RequestError(
            500,
            f"The row's features could not be fetched. The server's log tells why, under {error_id}.",
            error_id=error_id,
        )

    async def _call(self, keys: list[Key]) -> dict[Key, tuple[Any, ...]]:
        """Raises _TooLate, and whatever fetch raises, which may be a TimeoutError of its own."""
        fetch = self._fetch
        if fetch.is_async:
            deadline = asyncio.timeout(self._timeout)
            try:
                async with deadline:
                    return fetch.read(await fetch.call(keys))
            except TimeoutError:
                if deadline.expired():
                    raise _TooLate from None
                raise
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"fetch {self.name}")
        if self._is_stuck:
            raise _TooLate  # the thread is still at a call that nobody waits for; `Live.is_hung` looks at how long
        self._stuck = self._thread.submit(lambda: fetch.read(fetch.call(keys)))
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._stuck)), self._timeout)
        except TimeoutError:
            if self._is_stuck:
                raise _TooLate from None
            raise

    def _finish(self, waiting: Waiting, found: dict[Key, tuple[Any, ...] | RequestError]) -> None:
        rows: list[Row] = []
        failed: dict[int, RequestError] = {}
        for position, row in enumerate(waiting.rows):
            try:
                rows.append(self._filled(row, found))
            except RequestError as error:
                failed[position] = error
            except Refused as refused:
                mistakes = [Mistake(position, column, expected) for column, expected in refused.mistakes]
                failed[position] = RequestError(422, NOTHING_KNOWN, mistakes)
        if failed and waiting.one_by_one:
            waiting = _Others(waiting, failed)
            if not rows:
                tell(waiting, ())
                return
        elif failed:
            first = next((error for error in failed.values() if error.status != 422), None)
            mistakes = [mistake for error in failed.values() for mistake in error.mistakes]
            self._tell(waiting, first or RequestError(422, NOTHING_KNOWN, mistakes))
            return
        waiting.rows = rows
        try:
            self._then(waiting)
        except RequestError as busy:
            self._tell(waiting, busy)

    def _filled(self, row: Row, found: dict[Key, tuple[Any, ...] | RequestError]) -> Row:
        """Raises RequestError or Refused, where the row's key had no features to give."""
        if not any(row[i] is UNSET for i in self._fetched):
            return row
        values = found.get(tuple(row[i] for i in self._keys))
        if isinstance(values, RequestError):
            raise values
        if values is None:
            values = self._fetch.unknown()
        filled = list(row)
        for i, value in zip(self._fetched, values, strict=True):
            if filled[i] is UNSET:
                filled[i] = value
        return tuple(filled)

    def _tell(self, waiting: Waiting, error: RequestError) -> None:
        tell(waiting, [error] * len(waiting.rows))
