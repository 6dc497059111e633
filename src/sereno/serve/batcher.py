"""Greedy micro-batching: while `predict` runs, rows queue; when it returns, all that wait go as one batch.

No timer waits for more rows, so an idle server adds no time. `predict` runs on the event loop as long as it takes well
under a millisecond, else in a thread of its own, so that the loop goes on reading and answering meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Protocol

from sereno.exceptions import PredictError
from sereno.serve.wire import TOO_MANY_WAIT, Answer, RequestError, Row

LOG = logging.getLogger("sereno.serve")

LOOP_SECONDS = 0.0007  # where most batches take longer, they go to the thread; back at half of it
SLOW_SECONDS = 50 * LOOP_SECONDS  # one batch like this, and predict stays in the thread for a while
THREAD_SECONDS = 10.0
WEIGHT = 0.2  # of the newest batch in the running mean of what a row takes


class Waiting:
    """One request's rows on their way to `predict`. Whoever waits says by `tell` what becomes of the answers."""

    is_told = False
    one_by_one = False  # a row without an answer must not cost the others theirs
    sent = 0  # how many of its rows went to predict
    parts: dict[int, Sequence[Any]] | None = None  # position of the first → answers, of a request in pieces

    def __init__(self, rows: Sequence[Row], request_id: bytes, since: float) -> None:
        self.rows = rows
        self.request_id = request_id
        self.since = since  # time.perf_counter() of its arrival

    def ids(self, first: int, count: int) -> list[bytes]:
        """The request ids of these rows."""
        return [self.request_id] * count

    def tell(self, answers: Sequence[Any]) -> None:
        """Gets an Answer or a RequestError for each row, in order; called once, on the loop."""
        raise NotImplementedError


def tell(waiting: Waiting, answers: Sequence[Any]) -> None:
    """Tell it, unless it was told already that it was too late. One caller's trouble must not cost the others theirs."""
    if waiting.is_told:
        return
    waiting.is_told = True
    try:
        waiting.tell(answers)
    except Exception:
        LOG.exception("sereno: a reply could not be given; this is a bug of Sereno.")


class Batch:
    """Rows that go to `predict` at once."""

    __slots__ = ("requests", "rows", "spans")

    def __init__(self, requests: list[Waiting], rows: list[Row], spans: list[tuple[int, int]] | None) -> None:
        self.requests = requests
        self.rows = rows
        self.spans = spans  # which rows of each request (first, count); None: all of each

    def ids(self) -> list[bytes]:
        """The request of each row."""
        if self.spans is None and len(self.requests) == 1:
            return self.requests[0].ids(0, len(self.rows))
        spans = self.spans or [(0, len(w.rows)) for w in self.requests]
        return [one for w, span in zip(self.requests, spans, strict=True) for one in w.ids(*span)]

    def tell(self, answers: Sequence[Any]) -> None:
        """Give each request its own answers, and nobody else's."""
        if self.spans is None and len(self.requests) == 1:
            tell(self.requests[0], answers)
            return
        if self.spans is None and len(self.requests) == len(self.rows):
            for waiting, answer in zip(self.requests, answers, strict=True):
                tell(waiting, (answer,))
            return
        position = 0
        for i, waiting in enumerate(self.requests):
            first, count = (0, len(waiting.rows)) if self.spans is None else self.spans[i]
            some = answers[position : position + count]
            position += count
            if count < len(waiting.rows):
                parts = waiting.parts = waiting.parts or {}
                parts[first] = some
                if sum(map(len, parts.values())) < len(waiting.rows):
                    continue
                some = [answer for _, part in sorted(parts.items()) for answer in part]
            tell(waiting, some)


class Watcher(Protocol):
    """What is told about each batch: `metrics.Metrics`."""

    def batch(self, model: str, rows: int, queue_seconds: float, predict_seconds: float) -> None: ...

    def failed(self, model: str, rows: int) -> None: ...


class Recorder(Protocol):
    """Keeps the answers: `answers.log.AnswerLog`."""

    def append(
        self, when: float, ids: list[bytes], rows: list[Row], answers: list[Answer], then: Callable[..., None]
    ) -> None: ...

    def close(self) -> None: ...


class Batcher:
    """The queue in front of one model's `predict`. All methods are called on the event loop."""

    def __init__(
        self,
        name: str,
        score: Callable[[Sequence[Row]], Sequence[Any]],
        *,
        max_batch_rows: int,
        queue_rows: int,
        queue_seconds: float,
        timeout_seconds: float,
        watcher: Watcher,
        recorder: Recorder | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.queued_rows = 0
        self.gather: Callable[[], None] | None = None  # hands in (by `submit`) what has arrived and is not decoded yet
        # until predict has shown that it is fast, it cannot hold up the loop; never while a batch is in the thread
        self.is_on_loop = False
        self.predicting_since: float | None = None
        self._score = score
        self._max_batch_rows = max_batch_rows
        self._queue_rows, self._queue_seconds = queue_rows, queue_seconds
        self.most_rows = queue_rows  # may wait; fewer where they would take longer than queue_seconds
        self._timeout = timeout_seconds
        self._watcher = watcher
        self._recorder = recorder
        self._clock = clock  # time.time, for the recorder
        self._loop = asyncio.get_running_loop()
        self._queue: list[Waiting] = []
        self._is_busy = False  # a batch is in the thread; what arrives goes with the next
        self._is_scheduled = False
        self._in_thread_until = 0.0
        self._recent = deque([2 * LOOP_SECONDS] * 5, maxlen=5)  # what the last batches took
        self._row_seconds = 0.0  # a row takes, running mean
        self._in_flight: list[Waiting] = []  # what predict is at, in its thread
        self._keeping: list[Batch] = []  # answered, and waiting for the recorder
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, waiting: Waiting) -> None:
        """Have its rows (one or more) scored. Raises RequestError (503) where too many rows wait."""
        queued = self.queued_rows + len(waiting.rows)
        if queued > self.most_rows and self.queued_rows:
            raise self.busy()
        self.queued_rows = queued
        self._queue.append(waiting)
        self.wake()

    def wake(self) -> None:
        """Take the next batch as soon as everything that is there has arrived."""
        if not self._is_scheduled and not self._is_busy:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    @property
    def room(self) -> int:
        """How many rows may still be submitted."""
        return max(0, self.most_rows - self.queued_rows)

    @property
    def is_full(self) -> bool:
        return self.queued_rows >= self.most_rows

    def busy(self) -> RequestError:
        seconds = max(1, min(60, round(self.queued_rows * self._row_seconds)))
        return RequestError(503, f"{TOO_MANY_WAIT} to be scored. Try again later.", retry_after=seconds)

    def expire(self, now: float) -> None:
        """Answer what has waited too long (504). Called every now and then."""
        kept = [w for batch in self._keeping for w in batch.requests]
        every = dict.fromkeys((*self._in_flight, *kept, *self._queue))  # a request in pieces is in several of them
        late = [w for w in every if not w.is_told and now - w.since > self._timeout]
        for waiting in late:
            error = RequestError(504, f"There was no answer within {self._timeout:g} seconds.")
            tell(waiting, [error] * len(waiting.rows))
        if late:
            self._queue, before = [w for w in self._queue if not w.is_told], self._queue
            self.queued_rows -= sum(len(w.rows) - w.sent for w in before if w.is_told)

    def close(self) -> None:
        """End the thread, once it has done what it is at."""
        if self._thread is not None:
            self._jobs.put(None)

    def _take(self) -> Batch:
        """As many of the waiting rows as predict gets at once. A larger request goes in several batches."""
        if self.queued_rows <= self._max_batch_rows and not (self._queue and self._queue[0].sent):
            requests, self._queue, self.queued_rows = self._queue, [], 0
            return Batch(requests, [row for waiting in requests for row in waiting.rows], None)
        requests, rows, spans = [], list[Row](), []
        for waiting in self._queue:
            some = waiting.rows[waiting.sent : waiting.sent + self._max_batch_rows - len(rows)]
            if not some:
                break
            requests.append(waiting)
            rows.extend(some)
            spans.append((waiting.sent, len(some)))
            waiting.sent += len(some)
        self.queued_rows -= len(rows)
        self._queue = [w for w in self._queue if w.sent < len(w.rows)]
        return Batch(requests, rows, spans)

    def _flush(self) -> None:
        if self.gather is not None:
            self.gather()
        self._is_scheduled = False
        start = perf_counter()
        if self._queue and start - self._queue[0].since > self._timeout:
            self.expire(start)
        if not self._queue:
            return
        batch = self._take()
        if not self.is_on_loop:
            self._is_busy, self._in_flight, self.predicting_since = True, batch.requests, start
            self._in_thread(batch, start)
            return
        answers = self._answers(batch.rows)
        self._finish(batch, answers, start, perf_counter())
        if self._queue:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _in_thread(self, batch: Batch, start: float) -> None:
        def job() -> None:
            answers = self._answers(batch.rows)
            end = perf_counter()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._after_thread, batch, answers, start, end)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"predict {self.name}", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _after_thread(self, batch: Batch, answers: Sequence[Any], start: float, end: float) -> None:
        self._is_busy, self._in_flight, self.predicting_since = False, [], None
        self._finish(batch, answers, start, end)
        if self._queue and not self._is_scheduled:
            self._flush()

    def _answers(self, rows: list[Row]) -> Sequence[Any]:
        """The answers of predict, with a RequestError for each row that has none."""
        try:
            return self._score(rows)
        except PredictError as error:
            return [self._failure(str(error), error)] * len(rows)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - sys.exit, a panic of a library: nobody is left waiting for it
            return [self._failure(f"{type(error).__name__}: {error}", error)] * len(rows)

    def _failure(self, reason: str, error: BaseException | None = None) -> RequestError:
        """What the caller is told: an id. The log has the reason under it."""
        error_id = uuid.uuid4().hex[:12]
        LOG.error("error %s: model %s: %s", error_id, self.name, reason, exc_info=error)
        return RequestError(
            500,
            f"The model could not answer this row. The server's log tells why, under {error_id}.",
            error_id=error_id,
        )

    def _finish(self, batch: Batch, answers: Sequence[Any], start: float, end: float) -> None:
        count = len(batch.rows)
        seconds = end - start
        self._recent.append(seconds)
        self._row_seconds += WEIGHT * (seconds / count - self._row_seconds)
        if self._row_seconds * self._queue_rows > self._queue_seconds:
            # at least a batch may wait, so that one forms where it pays
            self.most_rows = min(
                self._queue_rows, max(self._max_batch_rows, int(self._queue_seconds / self._row_seconds))
            )
        else:
            self.most_rows = self._queue_rows
        if not self.is_on_loop or seconds >= LOOP_SECONDS:
            # the median, since a process that had to wait for its core once has not become slow; but a predict that is
            # slow now and then keeps everybody waiting each time
            if seconds >= SLOW_SECONDS:
                self._in_thread_until = end + THREAD_SECONDS
            most = LOOP_SECONDS if self.is_on_loop else LOOP_SECONDS / 2
            self.is_on_loop = sorted(self._recent)[2] < most and end >= self._in_thread_until
        self._watcher.batch(self.name, count, start - batch.requests[0].since, seconds)
        good = [i for i, a in enumerate(answers) if type(a) is tuple]
        if len(good) < count:
            self._watcher.failed(self.name, count - len(good))
            answers = [self._failure(a) if isinstance(a, str) else a for a in answers]
        if self._recorder is None or not good:
            batch.tell(answers)
            return

        def then(failed: BaseException | None = None) -> None:
            self._keeping.remove(batch)
            if failed is None:
                batch.tell(answers)
            else:
                batch.tell([self._failure(f"the answer could not be kept: {failed}", failed)] * count)

        ids, rows, kept = batch.ids(), batch.rows, answers
        if len(good) < count:
            ids, rows, kept = [ids[i] for i in good], [rows[i] for i in good], [answers[i] for i in good]
        self._keeping.append(batch)
        self._recorder.append(self._clock(), ids, rows, kept, then)  # type: ignore[arg-type]
