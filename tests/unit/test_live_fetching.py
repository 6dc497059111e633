"""Fetched columns: what fetch is asked, what its answer means, and what becomes of rows that it does not complete."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from annotated_types import Ge

from sereno import Digits, Fetched, Key, Model
from sereno.exceptions import ModelFileError, OutputError, SettingsError
from sereno.fetching import UNKNOWN, Fetch
from sereno.rows import UNSET
from sereno.serve.batcher import Waiting
from sereno.serve.fetching import Fetcher
from sereno.serve.wire import RequestError, combined
from sereno.settings import Settings, Value
from sereno.values import Refused


class One(TypedDict):
    id: Key[int]
    x: float
    bought: Fetched[list[int]]


class Many(TypedDict):
    shop: Key[str]
    x: float
    day: Key[date]
    spent: Annotated[Fetched[float | None], Ge(0)]
    price: Fetched[Annotated[Decimal, Digits(6, 2)]]


class Defaulted(pydantic.BaseModel):
    id: Key[int]
    x: float
    bought: Fetched[list[int]] = [7]
    spent: Fetched[float | None]


class Score(TypedDict):
    score: float


SHOP, DAY = "north", date(2026, 5, 1)


def fetch_of(inputs: Any, function: Callable[..., Any], **values: Any) -> Fetch:
    model = Model("m", inputs=inputs, outputs=Score)
    model.load(lambda: None)
    model.predict(predict)
    model.fetch(function)
    model.check()
    return Fetch(model, Settings(home=Path(), values={k: Value(value=v, base=Path()) for k, v in values.items()}))


def predict(loaded: None, rows: list[Any]) -> Any:
    raise AssertionError("these tests do not predict")


# What fetch is asked


def test_keys_come_as_they_are_annotated() -> None:
    asked: list[Any] = []

    def plain(keys):  # type: ignore[no-untyped-def]
        asked.append(keys)
        return {}

    def listed(keys: list[int]) -> dict[int, Any]:
        return plain(keys)  # type: ignore[no-any-return, no-untyped-call]

    def pandas(keys: pd.DataFrame) -> dict[int, Any]:
        return plain(keys)  # type: ignore[no-any-return, no-untyped-call]

    def polars(keys: pl.DataFrame) -> dict[int, Any]:
        return plain(keys)  # type: ignore[no-any-return, no-untyped-call]

    def arrow(keys: pa.Table) -> dict[int, Any]:
        return plain(keys)  # type: ignore[no-any-return, no-untyped-call]

    for function in (plain, listed, pandas, polars, arrow):
        fetch_of(One, function).call([(3,), (1,)])
    assert asked[:2] == [[3, 1], [3, 1]]
    assert asked[2].equals(pd.DataFrame({"id": [3, 1]}))
    assert asked[3].equals(pl.DataFrame({"id": [3, 1]}))
    assert asked[4].equals(pa.table({"id": [3, 1]}))

    asked.clear()
    for function in (plain, arrow):
        fetch_of(Many, function).call([(SHOP, DAY)])
    assert asked[0] == [(SHOP, DAY)]
    assert asked[1].to_pylist() == [{"shop": SHOP, "day": DAY}]


def test_values_are_filled_in() -> None:
    def fetch(keys: list[int], shop: str, limit: int = 3) -> dict[int, list[int]]:
        return {k: [len(shop), limit] for k in keys}

    found = fetch_of(One, fetch, shop="north")
    assert found.read(found.call([(1,)])) == {(1,): ([5, 3],)}
    with pytest.raises(SettingsError, match="'shop'"):
        fetch_of(One, fetch)


def test_a_fetch_that_cannot_be_called() -> None:
    def none() -> None: ...

    def matrix(keys: np.ndarray[Any, Any]) -> None: ...

    with pytest.raises(ModelFileError, match="fetch takes no keys"):
        fetch_of(One, none)
    with pytest.raises(ModelFileError, match="it says how keys arrive"):
        fetch_of(One, matrix)


# What its answer means


@pytest.mark.parametrize(
    "answer",
    [
        {1: [2, 3], 5: []},
        {np.int64(1): np.array([2, 3]), 5.0: ()},
        {(1,): [2.0, 3], (5,): []},
        [{"id": 1, "bought": [2, 3]}, {"id": 5, "bought": [], "more": "ignored"}],
        pd.DataFrame({"id": [1, 5], "bought": [[2, 3], []], "more": ["a", None]}),
        pl.DataFrame({"bought": [[2, 3], []], "id": [1, 5]}),
        pa.table({"id": pa.array([1, 5], pa.int32()), "bought": [[2, 3], []]}),
    ],
    ids=["mapping", "numpy", "tuples", "list", "pandas", "polars", "arrow"],
)
def test_one_column(answer: Any) -> None:
    assert fetch_of(One, lambda keys: answer).read(answer) == {(1,): ([2, 3],), (5,): ([],)}


@pytest.mark.parametrize(
    "answer",
    [
        {(SHOP, DAY): {"price": Decimal("1.5"), "spent": None}},
        [{"shop": SHOP, "day": DAY, "spent": float("nan"), "price": Decimal("1.50")}],
        pd.DataFrame({"shop": [SHOP], "day": [pd.Timestamp(DAY)], "spent": [np.nan], "price": [Decimal("1.50")]}),
        pl.DataFrame({"shop": [SHOP], "day": [DAY], "spent": [None], "price": [Decimal("1.5")]}),
    ],
    ids=["mapping", "list", "pandas", "polars"],
)
def test_several_columns_and_keys(answer: Any) -> None:
    fetch = fetch_of(Many, lambda keys: answer)
    assert fetch.read(answer) == {(SHOP, DAY): (None, Decimal("1.50"))}


@pytest.mark.parametrize("answer", [{}, [], pd.DataFrame(), pd.DataFrame({"id": [], "bought": []})])
def test_nothing_is_known(answer: Any) -> None:
    assert fetch_of(One, lambda keys: answer).read(answer) == {}


@pytest.mark.parametrize(
    ("inputs", "answer", "says"),
    [
        (One, 5, "fetch answered int. Valid are a mapping from key to value, a frame, or a list of mappings, with id, bought"),
        (One, [[1]], "fetch answered list."),
        (One, None, "fetch answered NoneType."),
        (One, [{"id": 1}], "the answer of fetch has no column 'bought'; it needs id, bought."),
        (One, {1: ["a"]}, "a value of fetch does not fit its column: bought[0]: must be a whole number."),
        (One, {1: None}, "a value of fetch does not fit its column: bought: is missing (null)."),
        (One, {"one": []}, "a key in the answer of fetch does not fit: id: must be a whole number."),
        (One, {(1, 2): []}, "a key in the answer of fetch has 2 values; declared are id."),
        (Many, {(SHOP, DAY): 5}, "fetch has several columns to answer, so each key needs a mapping with spent, price."),
        (Many, {(SHOP, DAY): {"spent": 5}}, "each key needs a mapping with spent, price."),
        (Many, {SHOP: {}}, "a key in the answer of fetch has 1 values; declared are shop, day."),
        (
            Many,
            {(SHOP, DAY): {"spent": -1, "price": Decimal("0.001")}},
            "a value of fetch does not fit its column: spent: must be at least 0",
        ),
    ],
)  # fmt: skip
def test_an_answer_that_is_none(inputs: Any, answer: Any, says: str) -> None:
    fetch = fetch_of(inputs, lambda keys: answer)
    with pytest.raises(OutputError) as error:
        fetch.read(answer)
    assert says in str(error.value)
    assert str(error.value).startswith("test_live_fetching.py:")


def test_what_an_unknown_key_has() -> None:
    assert fetch_of(Defaulted, lambda keys: {}).unknown() == ([7], None)
    with pytest.raises(Refused) as refused:
        fetch_of(Many, lambda keys: {}).unknown()
    assert list(refused.value.mistakes) == [("price", UNKNOWN)]


# Live requests


class Asking(Waiting):
    """A request, and what it was told, or the rows that it went on with."""

    def __init__(self, *rows: tuple[Any, ...], since: float = 0.0) -> None:
        super().__init__(rows, b"id", since)
        self.answers: Sequence[Any] = ()
        self.done = asyncio.Event()

    def tell(self, answers: Sequence[Any]) -> None:
        assert not self.done.is_set(), "told twice"
        self.answers = answers
        self.done.set()

    @property
    def error(self) -> RequestError:
        first = self.answers[0]
        assert list(self.answers) == [first] * len(self.rows)
        assert isinstance(first, RequestError)
        return first


class Shop:
    """A fetch, and what it is asked. It knows every key below 100."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.threads: set[str] = set()
        self.error: BaseException | None = None
        self.bad_key: int | None = None  # on which it raises
        self.may_go_on, self.has_begun = threading.Event(), threading.Event()
        self.may_go_on.set()

    def fetch(self, keys: list[int]) -> dict[int, list[int]]:
        self.calls.append(list(keys))
        self.threads.add(threading.current_thread().name)
        self.has_begun.set()
        assert self.may_go_on.wait(30)
        if self.error is not None:
            raise self.error
        if self.bad_key in keys:
            raise ValueError("a NUL in a key, say")
        return {k: [k, k] for k in keys if k < 100}

    async def fetch_on_the_loop(self, keys: list[int]) -> dict[int, list[int]]:
        self.calls.append(list(keys))
        self.threads.add(threading.current_thread().name)
        self.has_begun.set()
        while not self.may_go_on.is_set():
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.bad_key in keys:
            raise ValueError("a NUL in a key, say")
        return {k: [k, k] for k in keys if k < 100}

    def hold(self) -> None:
        self.may_go_on.clear()
        self.has_begun.clear()

    async def until_it_has_begun(self) -> None:
        async with asyncio.timeout(30):
            while not self.has_begun.is_set():
                await asyncio.sleep(0)


class Watched:
    def __init__(self) -> None:
        self.calls: list[bool] = []  # whether each failed

    def fetched(self, model: str, seconds: float, *, failed: bool = False) -> None:
        assert (model, seconds >= 0) == ("m", True)
        self.calls.append(failed)


Test = Callable[[Fetcher, Shop, Watched], Coroutine[Any, Any, None]]


@pytest.fixture(params=["def", "async def"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test with a fetch of either kind."""

    def start(test: Test, inputs: Any = One, then: Callable[[Waiting], None] | None = None, **options: Any) -> None:
        shop, watched = Shop(), Watched()

        def completed(waiting: Waiting) -> None:
            waiting.tell(["complete"] * len(waiting.rows))

        async def main() -> None:
            fetch = fetch_of(inputs, shop.fetch if request.param == "def" else shop.fetch_on_the_loop)
            assert fetch.is_async == (request.param == "async def")
            limits = {"queue_rows": 100, "timeout_seconds": 30.0, "request_timeout_seconds": 20.0, **options}
            inputs_ = fetch._model.inputs
            fetcher = Fetcher("m", fetch, inputs_, then=then or completed, watcher=watched, **limits)
            try:
                await test(fetcher, shop, watched)
            finally:
                shop.may_go_on.set()
                fetcher.close()

        asyncio.run(main())

    return start


async def told(*requests: Asking) -> None:
    async with asyncio.timeout(30):
        for request in requests:
            await request.done.wait()


async def ask(fetcher: Fetcher, *requests: Asking) -> None:
    for request in requests:
        fetcher.submit(request)
    await told(*requests)


def test_what_waits_is_fetched_by_one_call(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.hold()
        first = Asking((1, 0.5, UNSET))
        fetcher.submit(first)
        await shop.until_it_has_begun()
        assert fetcher.fetching_since is not None
        others = [Asking((2, 0.5, UNSET), (3, 0.25, UNSET)), Asking((2, 1.5, UNSET)), Asking((4, 0.5, UNSET))]
        for other in others:
            fetcher.submit(other)
        assert fetcher.queued_rows == 5
        shop.may_go_on.set()
        await told(first, *others)
        assert shop.calls == [[1], [2, 3, 4]]  # each key once
        assert first.rows == [(1, 0.5, [1, 1])]
        assert others[0].rows == [(2, 0.5, [2, 2]), (3, 0.25, [3, 3])]
        assert others[1].rows == [(2, 1.5, [2, 2])]
        assert all(set(r.answers) == {"complete"} for r in (first, *others))
        assert fetcher.fetching_since is None
        assert fetcher.queued_rows == 0
        assert watched.calls == [False, False]
        assert len(shop.threads) == 1  # always the same

    run(test)


def test_what_a_request_brings_is_not_fetched(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        mixed = Asking((1, 0.5, [9]), (2, 0.5, UNSET))
        await ask(fetcher, mixed)
        assert shop.calls == [[2]]
        assert mixed.rows == [(1, 0.5, [9]), (2, 0.5, [2, 2])]

    run(test)


def test_a_column_that_a_request_brings_stays_as_it_is() -> None:
    async def main() -> None:
        fetch = fetch_of(Many, lambda keys: {k: {"spent": 1.0, "price": Decimal(2)} for k in keys})
        fetcher = Fetcher(
            "m", fetch, fetch._model.inputs, then=lambda w: w.tell(()), queue_rows=9, timeout_seconds=30,
            request_timeout_seconds=30, watcher=Watched(),
        )  # fmt: skip
        request = Asking((SHOP, 0.5, DAY, None, UNSET), (SHOP, 0.5, DAY, UNSET, Decimal("3.00")))
        await ask(fetcher, request)
        assert request.rows == [(SHOP, 0.5, DAY, None, Decimal("2.00")), (SHOP, 0.5, DAY, 1.0, Decimal("3.00"))]
        fetcher.close()

    asyncio.run(main())


def test_a_key_that_fetch_does_not_know(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        good, bad = (
            Asking((1, 0.5, UNSET)),
            Asking((2, 0.5, UNSET), (100, 0.5, UNSET), (101, 0.5, [1]), (102, 0.5, UNSET)),
        )
        await ask(fetcher, good, bad)
        assert good.answers == ["complete"]
        assert bad.error.status == 422
        assert [tuple(m) for m in bad.error.mistakes] == [(1, "bought", UNKNOWN), (3, "bought", UNKNOWN)]
        assert combined(bad.answers) is bad.error  # a caller is told of these rows alone
        assert watched.calls == [False]

    run(test)


def test_a_key_on_which_fetch_raises_costs_the_others_nothing(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.bad_key = 7
        requests = [Asking((key, 0.5, UNSET)) for key in range(20)]
        await ask(fetcher, *requests)
        assert requests[7].error.status == 500
        assert all(r.answers == ["complete"] for r in requests if r is not requests[7])

    run(test)


def test_a_fetch_that_raises(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        for error in (
            ValueError("password=1234"),
            TimeoutError("of the database"),  # which is no deadline of ours
            SystemExit("ends the process"),
            asyncio.CancelledError("of a task that fetch waited for"),
        ):
            shop.error = error
            requests = [Asking((1, 0.5, UNSET)), Asking((2, 0.5, UNSET), (3, 0.5, UNSET))]
            await ask(fetcher, *requests)
            assert {r.error.status for r in requests} == {500}
            error_id = requests[0].error.error_id  # each key was tried alone in the end
            assert len({r.error.error_id for r in requests}) == 2
            assert str(requests[0].error) == (
                f"The row's features could not be fetched. The server's log tells why, under {error_id}."
            )
            assert f"error {error_id}: model m: fetch: {error}" in caplog.text
            assert fetcher.fetching_since is None
        shop.error = None
        again = Asking((1, 0.5, UNSET))
        await ask(fetcher, again)
        assert again.answers == ["complete"]
        assert watched.calls == [True] * 4 + [False]

    run(test)


def test_an_answer_of_fetch_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        fetch = fetch_of(One, lambda keys: {1: "secret"})
        fetcher = Fetcher(
            "m", fetch, fetch._model.inputs, then=lambda w: None, queue_rows=9, timeout_seconds=30,
            request_timeout_seconds=30, watcher=Watched(),
        )  # fmt: skip
        request = Asking((1, 0.5, UNSET))
        await ask(fetcher, request)
        assert request.error.status == 500
        assert "a value of fetch does not fit its column: bought: must be a list." in caplog.text
        assert "secret" not in caplog.messages[0]
        fetcher.close()

    asyncio.run(main())


def test_a_fetch_that_is_too_slow(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.hold()
        late = Asking((1, 0.5, UNSET))
        await ask(fetcher, late)
        assert late.error.status == 504
        assert str(late.error) == "The row's features were not there within 0.01 seconds."
        is_stuck = fetcher.fetching_since is not None  # the thread; a coroutine is cancelled
        assert is_stuck == (not fetcher._fetch.is_async)
        if is_stuck:
            began = fetcher.fetching_since
            second = Asking((2, 0.5, UNSET))
            await ask(fetcher, second)
            assert second.error.status == 504
            assert shop.calls == [[1]]  # it was not called again, from another thread
            assert fetcher.fetching_since == began
        shop.may_go_on.set()
        async with asyncio.timeout(30):
            while fetcher.fetching_since is not None:  # at rest again, though nobody asks
                await asyncio.sleep(0)
        assert fetcher.queued_rows == 0

    run(test, timeout_seconds=0.01)


def test_after_a_call_that_was_too_slow_come_others(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.hold()
        late = Asking((1, 0.5, UNSET))
        fetcher.submit(late)
        await shop.until_it_has_begun()
        fetcher._timeout = 30.0
        await told(late)
        shop.may_go_on.set()
        async with asyncio.timeout(30):
            while fetcher.fetching_since is not None:
                await asyncio.sleep(0)
        again = Asking((2, 0.5, UNSET))
        await ask(fetcher, again)
        assert again.answers == ["complete"]
        assert shop.calls == [[1], [2]]
        assert watched.calls == [True, False]

    run(test, timeout_seconds=0.01)


def test_a_request_has_its_own_deadline(run: Callable[..., None]) -> None:
    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.hold()
        first = Asking((1, 0.5, UNSET))
        fetcher.submit(first)
        await shop.until_it_has_begun()
        late, young = Asking((2, 0.5, UNSET)), Asking((3, 0.5, UNSET), since=15.0)
        fetcher.submit(late)
        fetcher.submit(young)
        fetcher.expire(20.1)
        assert (first.error.status, late.error.status) == (504, 504)
        assert str(late.error) == "There was no answer within 20 seconds."
        fetcher.expire(21.0)
        shop.may_go_on.set()
        await told(young)
        assert shop.calls == [[1], [3]]

    run(test)


def test_a_full_queue_sheds_before_and_behind_fetch(run: Callable[..., None]) -> None:
    def full(waiting: Waiting) -> None:
        raise RequestError(503, "Too many rows wait to be scored.", retry_after=4)

    async def test(fetcher: Fetcher, shop: Shop, watched: Watched) -> None:
        shop.hold()
        first = Asking((1, 0.5, UNSET), (2, 0.5, UNSET), (3, 0.5, UNSET))
        fetcher.submit(first)
        await shop.until_it_has_begun()
        second = Asking((4, 0.5, UNSET))
        fetcher.submit(second)
        with pytest.raises(RequestError, match="Too many rows wait for their features") as busy:
            fetcher.submit(Asking((5, 0.5, UNSET)))
        assert (busy.value.status, busy.value.retry_after) == (503, 1)
        shop.may_go_on.set()
        await told(first, second)
        assert (second.error.status, second.error.retry_after) == (503, 4)

    run(test, then=full, queue_rows=4)


def test_defaults_stand_for_what_is_not_known() -> None:
    async def main() -> None:
        fetch = fetch_of(Defaulted, lambda keys: {5: {"bought": [1], "spent": 2.5}})
        fetcher = Fetcher(
            "m", fetch, fetch._model.inputs, then=lambda w: w.tell(()), queue_rows=9, timeout_seconds=30,
            request_timeout_seconds=30, watcher=Watched(),
        )  # fmt: skip
        request = Asking((5, 0.5, UNSET, UNSET), (6, 0.5, UNSET, UNSET), (7, 0.5, UNSET, 1.0))
        await ask(fetcher, request)
        assert request.rows == [(5, 0.5, [1], 2.5), (6, 0.5, [7], None), (7, 0.5, [7], 1.0)]
        fetcher.close()

    asyncio.run(main())
