"""Greedy micro-batching: what waits goes at once, to its own callers, in time or not at all."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.exceptions import OutputError, PredictError, StorageError
from sereno.serve import batcher as module
from sereno.serve.batcher import LOOP_SECONDS, Batcher, Waiting
from sereno.serve.wire import RequestError

FAST, SLOW = LOOP_SECONDS / 10, LOOP_SECONDS * 10


class Asking(Waiting):
    """A request whose rows are numbers, and what it was told."""

    def __init__(self, *numbers: int, since: float = 0.0, name: bytes = b"id") -> None:
        super().__init__([(n,) for n in numbers], name, since)
        self.answers: Sequence[Any] = ()
        self.done = asyncio.Event()

    def tell(self, answers: Sequence[Any]) -> None:
        assert not self.done.is_set(), "told twice"
        assert len(answers) == len(self.rows)
        self.answers = answers
        self.done.set()

    @property
    def statuses(self) -> list[int]:
        return [a.status if isinstance(a, RequestError) else 200 for a in self.answers]


class Watched:
    """What the watcher of a batcher was told."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, float, float]] = []
        self.failed_rows = 0

    def batch(self, model: str, rows: int, queue_seconds: float, predict_seconds: float) -> None:
        self.batches.append((rows, queue_seconds, predict_seconds))

    def failed(self, model: str, rows: int) -> None:
        self.failed_rows += rows


class Recorded:
    """A recorder that says when, and whether, answers are kept."""

    def __init__(self, *, waits: bool = False) -> None:
        self.kept: list[tuple[bytes, Any, Any]] = []
        self.waits = waits
        self.then: list[Callable[..., None]] = []

    def append(self, when: float, ids: Any, rows: Any, answers: Any, then: Callable[..., None]) -> None:
        assert when == 1234.5
        self.kept += zip(ids, rows, answers, strict=True)
        if self.waits:
            self.then.append(then)
        else:
            then()

    def close(self) -> None: ...


class Predicting:
    """A predict that takes as long as it is told, by the clock that the batcher looks at. It answers twice the number.

    A number of 1000 or more is a row that predict raises on.
    """

    def __init__(self, seconds: float = SLOW) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.calls: list[list[int]] = []
        self.threads: list[bool] = []  # whether each call was on the loop's thread
        self.error: BaseException | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.has_begun = threading.Event()

    def __call__(self, rows: Sequence[tuple[int]]) -> list[Any]:
        self.calls.append([n for (n,) in rows])
        self.threads.append(threading.current_thread() is threading.main_thread())
        self.has_begun.set()
        assert self.may_go_on.wait(30)
        self.now += self.seconds
        if self.error is not None:
            raise self.error
        return [(2 * n,) if n < 1000 else f"predict raised ValueError: {n}" for (n,) in rows]

    def hold(self) -> None:
        """Let the next call begin and not end."""
        self.may_go_on.clear()
        self.has_begun.clear()

    async def until_it_has_begun(self) -> None:
        assert await asyncio.to_thread(self.has_begun.wait, 30)


Test = Callable[[Batcher, Predicting, Watched], Coroutine[Any, Any, None]]


@pytest.fixture
def predicting(monkeypatch: pytest.MonkeyPatch) -> Predicting:
    predicting = Predicting()
    monkeypatch.setattr(module, "perf_counter", lambda: predicting.now)
    return predicting


@pytest.fixture
def run(predicting: Predicting) -> Callable[..., None]:
    """Runs a test on a batcher with these options."""

    def start(test: Test, **options: Any) -> None:
        asyncio.run(with_batcher(test, predicting, **options))

    return start


async def with_batcher(test: Test, predicting: Predicting, **options: Any) -> None:
    watched = Watched()
    given_ = {"max_batch_rows": 100, "queue_rows": 100, "timeout_seconds": 20.0, "recorder": None}
    given_ |= {"queue_seconds": math.inf, **options}
    batcher = Batcher("m", predicting, watcher=watched, clock=lambda: 1234.5, **given_)
    try:
        await test(batcher, predicting, watched)
    finally:
        predicting.may_go_on.set()
        batcher.close()
        if batcher._thread is not None:
            await asyncio.to_thread(batcher._thread.join, 30)
            assert not batcher._thread.is_alive()


async def answered(*requests: Asking) -> None:
    async with asyncio.timeout(30):
        for request in requests:
            await request.done.wait()


async def ask(batcher: Batcher, *requests: Asking) -> None:
    for request in requests:
        batcher.submit(request)
    await answered(*requests)


# Batches


def test_what_waits_while_predict_runs_goes_at_once(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.hold()
        first = Asking(1)
        batcher.submit(first)
        await predicting.until_it_has_begun()
        others = [Asking(2), Asking(3, 4), Asking(5)]
        for other in others:
            batcher.submit(other)
        assert batcher.queued_rows == 4
        predicting.may_go_on.set()
        await answered(first, *others)
        assert predicting.calls == [[1], [2, 3, 4, 5]]
        assert [list(r.answers) for r in (first, *others)] == [[(2,)], [(4,)], [(6,), (8,)], [(10,)]]
        assert [rows for rows, _, _ in watched.batches] == [1, 4]
        assert batcher.queued_rows == 0

    run(test)


def test_what_arrives_in_one_turn_of_the_loop_goes_at_once(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        await ask(batcher, *[Asking(n) for n in range(10)])
        assert predicting.calls == [list(range(10))]

    run(test)


def test_an_idle_batcher_waits_for_nothing(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        for n in range(5):
            await ask(batcher, Asking(n))
        assert predicting.calls == [[n] for n in range(5)]

    run(test)


@pytest.mark.parametrize("seconds", [FAST, SLOW])
def test_a_batch_has_so_many_rows_and_a_larger_request_goes_in_several(
    run: Callable[..., None], predicting: Predicting, seconds: float
) -> None:
    predicting.seconds = seconds

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        for _ in range(5):  # fast or slow by now
            await ask(batcher, Asking(0))
        predicting.calls.clear()
        requests = [Asking(1, 2, 3), Asking(4, 5), Asking(*range(10, 20)), Asking(6)]
        await ask(batcher, *requests)
        assert predicting.calls == [[1, 2, 3, 4], [5, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 6]]
        for request in requests:
            assert list(request.answers) == [(2 * n,) for (n,) in request.rows]
        assert batcher.queued_rows == 0

    run(test, max_batch_rows=4)


def test_what_has_arrived_and_is_not_decoded_is_gathered_first(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        burst = Asking(1, 2)
        arrived = [burst]

        def gather() -> None:
            while arrived:
                batcher.submit(arrived.pop())

        batcher.gather = gather
        batcher.wake()
        other = Asking(3)
        batcher.submit(other)
        await answered(burst, other)
        assert predicting.calls == [[3, 1, 2]]
        batcher.wake()  # nothing came after all
        await asyncio.sleep(0)
        assert len(predicting.calls) == 1

    run(test)


# Thread and loop


def test_predict_is_on_the_loop_while_it_is_fast(run: Callable[..., None], predicting: Predicting) -> None:
    predicting.seconds = FAST

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        async def five() -> list[bool]:
            predicting.threads.clear()
            for n in range(5):
                await ask(batcher, Asking(n))
            return predicting.threads

        assert not batcher.is_on_loop  # until it has shown that it is fast
        assert (await five())[0] is False
        assert batcher.is_on_loop
        assert await five() == [True] * 5
        # one that had to wait for its core has not become slow
        predicting.seconds = SLOW
        await ask(batcher, Asking(1))
        predicting.seconds = FAST
        assert await five() == [True] * 5
        predicting.seconds = SLOW
        assert (await five())[-1] is False
        assert not batcher.is_on_loop
        assert await five() == [False] * 5
        # between the two limits, it stays where it is
        predicting.seconds = LOOP_SECONDS * 0.75
        assert await five() == [False] * 5
        predicting.seconds = FAST
        await five()
        predicting.seconds = LOOP_SECONDS * 0.75
        assert await five() == [True] * 5

    run(test)


def test_the_loop_goes_on_while_a_slow_predict_runs(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.hold()
        request = Asking(1)
        batcher.submit(request)
        await predicting.until_it_has_begun()  # which is the loop, going on
        assert batcher.predicting_since == 0.0
        predicting.may_go_on.set()
        await answered(request)
        assert batcher.predicting_since is None
        assert predicting.threads == [False]

    run(test)


# Too much, and too late


def test_a_full_queue_sheds(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.seconds = 2.0
        await ask(batcher, Asking(0))
        predicting.hold()
        first = Asking(1)
        batcher.submit(first)
        await predicting.until_it_has_begun()
        queued = [Asking(2, 3, 4), Asking(5, 6)]
        for request in queued:
            batcher.submit(request)
        assert batcher.room == 0
        with pytest.raises(RequestError, match="Too many rows wait to be scored") as busy:
            batcher.submit(Asking(7))
        assert busy.value.status == 503
        assert busy.value.retry_after == 2  # 5 rows of 2 s each, of which the mean knows a fifth so far
        predicting.may_go_on.set()
        await answered(first, *queued)
        assert batcher.room == 5
        await ask(batcher, Asking(8))
        assert 7 not in [n for call in predicting.calls for n in call]

    run(test, queue_rows=5)


def test_a_request_larger_than_the_queue_is_taken_where_nothing_waits(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        large = Asking(*range(12))
        batcher.submit(large)
        with pytest.raises(RequestError):
            batcher.submit(Asking(20))
        await answered(large)
        assert large.statuses == [200] * 12

    run(test, queue_rows=5)


def test_no_more_rows_wait_than_predict_gets_through_in_time(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.seconds = 1.0
        assert batcher.most_rows == 50
        for _ in range(50):
            await ask(batcher, Asking(0))
        assert batcher.most_rows == 10  # of 1 s each
        predicting.seconds = 5.0
        for _ in range(50):
            await ask(batcher, Asking(0))
        assert batcher.most_rows == 3  # a batch, however slow
        predicting.hold()
        first = Asking(1)
        batcher.submit(first)
        await predicting.until_it_has_begun()
        second = Asking(2, 3, 4)
        batcher.submit(second)
        assert batcher.is_full
        with pytest.raises(RequestError) as busy:
            batcher.submit(Asking(5))
        assert (busy.value.status, busy.value.retry_after) == (503, 15)
        predicting.seconds = 1e-9
        predicting.may_go_on.set()
        await answered(first, second)
        for _ in range(100):
            await ask(batcher, Asking(0))
        assert batcher.most_rows == 50

    run(test, queue_rows=50, max_batch_rows=3, queue_seconds=10.1, timeout_seconds=math.inf)


def test_retry_after_is_between_a_second_and_a_minute(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        assert batcher.busy().retry_after == 1
        predicting.seconds = 1e6
        await ask(batcher, Asking(0))
        batcher.submit(Asking(1))
        assert batcher.busy().retry_after == 60

    run(test)


def test_what_waits_too_long_is_told_so_and_never_predicted(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.hold()
        flying, late, young = Asking(1, 2), Asking(3), Asking(4, since=15.0)
        batcher.submit(flying)
        await predicting.until_it_has_begun()
        for request in (late, young):
            batcher.submit(request)
        batcher.expire(20.0)
        assert not flying.done.is_set()
        batcher.expire(20.1)
        assert flying.statuses == [504, 504]
        assert late.statuses == [504]
        assert str(late.answers[0]) == "There was no answer within 20 seconds."
        assert batcher.queued_rows == 1
        batcher.expire(21.0)  # nobody is told twice, as `tell` asserts
        predicting.may_go_on.set()
        await answered(young)
        assert young.statuses == [200]
        assert predicting.calls == [[1, 2], [4]]
        assert batcher.queued_rows == 0

    run(test)


def test_the_rest_of_a_large_request_that_is_too_late_is_not_predicted(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        predicting.hold()
        large, young = Asking(*range(10)), Asking(50, since=15.0)
        batcher.submit(large)
        await predicting.until_it_has_begun()
        batcher.submit(young)
        assert batcher.queued_rows == 7
        batcher.expire(20.1)
        assert large.statuses == [504] * 10
        assert batcher.queued_rows == 1
        predicting.may_go_on.set()
        await answered(young)
        assert predicting.calls == [[0, 1, 2, 3], [50]]

    run(test, max_batch_rows=4)


def test_deadlines_are_looked_at_before_a_batch_is_taken(run: Callable[..., None]) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        late, young = Asking(1, since=0.0), Asking(2, since=30.0)
        predicting.now = 30.0  # the loop was held up
        await ask(batcher, late, young)
        assert (late.statuses, young.statuses) == ([504], [200])
        assert predicting.calls == [[2]]

    run(test)


# Rows that predict does not answer


def failed(request: Asking) -> list[str]:
    """The ids of a request's errors, which say nothing else."""
    errors = [a for a in request.answers if isinstance(a, RequestError)]
    for error in errors:
        assert error.status == 500
        assert error.error_id is not None
        assert str(error) == (
            f"The model could not answer this row. The server's log tells why, under {error.error_id}."
        )
    return [error.error_id or "" for error in errors]


def test_a_bad_row_fails_only_its_own_caller(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        good, bad, mixed = Asking(1), Asking(1007), Asking(2, 1008, 3)
        await ask(batcher, good, bad, mixed)
        assert predicting.calls == [[1, 1007, 2, 1008, 3]]
        assert (good.statuses, bad.statuses, mixed.statuses) == ([200], [500], [200, 500, 200])
        ids = [*failed(bad), *failed(mixed)]
        assert len(set(ids)) == 2
        assert watched.failed_rows == 2
        for error_id, number in zip(ids, (1007, 1008), strict=True):
            assert f"error {error_id}: model m: predict raised ValueError: {number}" in caplog.text

    run(test)


@pytest.mark.parametrize(
    "error",
    [
        PredictError("m.py:1: predict raised ValueError on 50 rows"),
        OutputError("m.py:1: the answer of predict: secret"),
        ZeroDivisionError("a bug of ours"),
        SystemExit("predict ends the process"),
    ],
)
@pytest.mark.parametrize("seconds", [FAST, SLOW])
def test_what_fails_a_batch_fails_no_other(
    run: Callable[..., None],
    predicting: Predicting,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    seconds: float,
) -> None:
    predicting.seconds = seconds

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        for _ in range(5):
            await ask(batcher, Asking(0))
        predicting.error = error
        requests = [Asking(1), Asking(2, 3)]
        await ask(batcher, *requests)
        ids = {i for request in requests for i in failed(request)}
        assert [r.statuses for r in requests] == [[500], [500, 500]]
        assert len(ids) == 1  # one cause, one line with its traceback
        [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert ids.pop() in record.getMessage()
        assert str(error) in record.getMessage()
        assert record.exc_info is not None
        assert watched.failed_rows == 3
        predicting.error = None
        again = Asking(4)
        await ask(batcher, again)
        assert again.statuses == [200]

    run(test)


# The recorder


def test_exactly_what_was_answered_is_recorded(run: Callable[..., None]) -> None:
    recorded = Recorded()

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        requests = [Asking(1, name=b"a"), Asking(1007, name=b"b"), Asking(2, 1008, 3, 4, 5, name=b"c")]
        await ask(batcher, *requests)
        assert recorded.kept == [
            (b"a", (1,), (2,)),
            (b"c", (2,), (4,)),
            (b"c", (3,), (6,)),
            (b"c", (4,), (8,)),
            (b"c", (5,), (10,)),
        ]
        await ask(batcher, Asking(1009))
        assert len(recorded.kept) == 5

    run(test, recorder=recorded, max_batch_rows=4)


def test_answers_leave_when_they_are_kept(run: Callable[..., None]) -> None:
    recorded = Recorded(waits=True)

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        first, second = Asking(1), Asking(2)
        batcher.submit(first)
        while len(recorded.then) < 1:
            await asyncio.sleep(0)
        batcher.submit(second)  # the next batch does not wait for the disk
        while len(recorded.then) < 2:
            await asyncio.sleep(0)
        assert not first.done.is_set()
        recorded.then[1]()
        assert second.statuses == [200]
        recorded.then[0]()
        assert first.statuses == [200]

    run(test, recorder=recorded)


def test_answers_that_cannot_be_kept_do_not_leave(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(waits=True)

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        request = Asking(1, 1007, 2)
        batcher.submit(request)
        while not recorded.then:
            await asyncio.sleep(0)
        recorded.then[0](StorageError("The disk is full."))
        assert request.statuses == [500, 500, 500]
        failed(request)
        assert "the answer could not be kept: The disk is full." in caplog.text

    run(test, recorder=recorded)


def test_nobody_waits_for_the_disk_beyond_the_deadline(run: Callable[..., None]) -> None:
    recorded = Recorded(waits=True)

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        request = Asking(1)
        batcher.submit(request)
        while not recorded.then:
            await asyncio.sleep(0)
        batcher.expire(19.0)
        assert not request.done.is_set()
        batcher.expire(20.1)
        assert request.statuses == [504]
        recorded.then[0]()  # too late: nobody is told twice
        batcher.expire(40.0)
        assert batcher.queued_rows == 0

    run(test, recorder=recorded)


# No caller ever gets another caller's row


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_caller_gets_the_answers_to_its_own_rows(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    most = data.draw(st.integers(1, 12))
    waits = data.draw(st.booleans())
    monkeypatch = pytest.MonkeyPatch()
    predicting = Predicting(data.draw(st.sampled_from([FAST, SLOW])))

    async def test(batcher: Batcher, predicting: Predicting, watched: Watched) -> None:
        number = 0
        requests = []
        for size in sizes:
            rows = range(number, number + size)
            number += size
            bad = data.draw(st.booleans())
            requests.append(Asking(*(n + 1000 * (bad and n % 2) for n in rows), name=b"%d" % len(requests)))
            batcher.submit(requests[-1])
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
        expired = set()
        if data.draw(st.booleans()):
            expired = {r for r in requests if data.draw(st.booleans()) and not r.done.is_set()}
            for request in expired:
                request.since = predicting.now - 100
            batcher.expire(predicting.now)
        async with asyncio.timeout(30):
            while not all(r.done.is_set() for r in requests):
                for then in recorded.then:
                    then()
                recorded.then.clear()
                await asyncio.sleep(0)
        for request in requests:
            for (n,), answer in zip(request.rows, request.answers, strict=True):
                if isinstance(answer, RequestError):
                    assert answer.status == 504 if request in expired else n >= 1000
                else:
                    assert answer == (2 * n,)
        for name, (n,), (answer,) in recorded.kept:
            assert answer == 2 * n
            assert (n,) in requests[int(name)].rows
        assert batcher.queued_rows == 0
        called = [n for call in predicting.calls for n in call]
        assert len(called) == len(set(called))
        assert max(map(len, predicting.calls), default=0) <= most

    recorded = Recorded(waits=waits)
    with monkeypatch.context() as patch:
        patch.setattr(module, "perf_counter", lambda: predicting.now)
        asyncio.run(with_batcher(test, predicting, max_batch_rows=most, queue_rows=1000, recorder=recorded))
