"""One model in service: every caller gets the answers to its own rows, as JSON can carry them, or is told why not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
import pandas as pd
import pytest
from annotated_types import Ge

from sereno import Digits, Fetched, Key, Model
from sereno.fetching import Fetch
from sereno.rows import RowDecoder
from sereno.scoring import Scorer
from sereno.serve import live as module
from sereno.serve.live import Live
from sereno.serve.metrics import Metrics
from sereno.serve.wire import RequestError
from sereno.settings import ModelSettings, ServeSettings, Settings


class Row(TypedDict):
    id: Key[int]
    x: float


class Visit(TypedDict):
    id: Key[int]
    x: float
    bought: Fetched[list[int]]


class Score(TypedDict):
    score: Annotated[float, Ge(0)]


class Part(TypedDict):
    name: str
    price: Annotated[Decimal, Digits(6, 2)]


class Everything(TypedDict):
    score: float | None
    day: date
    at: datetime
    price: Annotated[Decimal, Digits(6, 2)]
    parts: list[Part]


def by_numpy(loaded: None, rows: np.ndarray[Any, Any]) -> Any:
    if (rows[:, 0] == 13).any():
        raise ValueError("thirteen")
    return rows[:, 0] * 2


def by_pandas(loaded: None, rows: pd.DataFrame) -> Any:
    if (rows.x == 13).any():
        raise ValueError("thirteen")
    return rows.x * 2


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


@pytest.fixture
def run(metrics: Metrics) -> Callable[..., None]:
    """Runs a test on a model in service."""

    def start(
        test: Callable[[Live], Awaitable[None]],
        predict: Any = by_numpy,
        inputs: Any = Row,
        outputs: Any = Score,
        fetch: Any = None,
        recorder: Any = None,
        **settings: Any,
    ) -> None:
        model = Model("m", inputs=inputs, outputs=outputs)
        model.load(lambda: None)
        model.predict(predict)
        if fetch is not None:
            model.fetch(fetch)
        model.check()

        async def main() -> None:
            live = Live(
                Scorer(model, None),
                "0123456789abcdef" * 4,
                ModelSettings(**settings),
                ServeSettings(),
                metrics=metrics,
                recorder=recorder,
                fetch=Fetch(model, Settings(home=Path())) if fetch is not None else None,
            )
            try:
                async with asyncio.timeout(60):
                    await test(live)
            finally:
                live.close()

        asyncio.run(main())

    return start


def row(number: int, x: float | None = None) -> bytes:
    return msgspec.json.encode({"id": number, "x": float(number if x is None else x)})


@pytest.mark.parametrize("predict", [by_numpy, by_pandas])
def test_a_row_that_predict_cannot_answer_fails_its_own_caller_alone(
    run: Callable[..., None], predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(live: Live) -> None:
        for _ in range(3):  # in the thread at first; on the loop, where it is fast
            asked = [live.ask([live.decode(row(n))], b"id") for n in range(40)]
            asked += [live.ask(live.decode_many(b"[%b,%b,%b]" % (row(50), row(13), row(-51))), b"id")]
            answers = await asyncio.gather(*asked)
            assert [a for i, [a] in enumerate(answers[:40]) if i != 13] == [(2.0 * n,) for n in range(40) if n != 13]
            first, second, third = answers[40]
            assert first == (100.0,)
            for error in (answers[13][0], second, third):
                assert isinstance(error, RequestError)
                assert error.status == 500
                assert "thirteen" not in str(error)
                assert f"error {error.error_id}: model m: " in caplog.text
        assert "predict raised ValueError: thirteen" in caplog.text
        assert "output:score: must be at least 0" in caplog.text

    caplog.set_level(logging.ERROR)
    run(test, predict)


def test_no_rows_have_no_answers(run: Callable[..., None]) -> None:
    async def test(live: Live) -> None:
        assert list(await live.ask([], b"id")) == []

    run(test)


def test_who_goes_away_keeps_nobody(run: Callable[..., None]) -> None:
    async def test(live: Live) -> None:
        gone = asyncio.ensure_future(live.ask([live.decode(row(1))], b"id"))
        stays = asyncio.ensure_future(live.ask([live.decode(row(2))], b"id"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == ((4.0,),)

    run(test)


def test_answers_as_json(run: Callable[..., None]) -> None:
    answer = (
        None,
        date(2026, 5, 1),
        datetime(2026, 5, 1, 12, tzinfo=UTC),
        Decimal("1.50"),
        [{"name": "ä", "price": Decimal("0.10")}],
    )
    plain = {
        "score": None,
        "day": "2026-05-01",
        "at": "2026-05-01T12:00:00Z",
        "price": "1.50",
        "parts": [{"name": "ä", "price": "0.10"}],
    }

    def predict(loaded: None, rows: list[Row]) -> Any:
        names = list(Everything.__annotations__)
        return [dict(zip(names, answer, strict=True)) for _ in rows]

    async def test(live: Live) -> None:
        [found] = await live.ask([live.decode(row(1))], b"id")
        assert found == answer
        assert live.answer_dict(found) == plain
        assert msgspec.json.decode(live.encode(found)) == plain
        assert msgspec.json.decode(live.encode_many([found, found])) == [plain, plain]
        assert live.encode_many([]) == b"[]"
        assert RowDecoder(live.outputs).decode(live.encode(found)) == answer

    run(test, predict, Row, Everything)


def test_what_is_missing_is_fetched_and_what_is_there_is_not(run: Callable[..., None]) -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> dict[int, list[int]]:
        calls.append(keys)
        return {k: [k, k] for k in keys if k < 100}

    def predict(loaded: None, rows: list[Visit]) -> Any:
        return [sum(r["bought"]) + r["x"] for r in rows]

    async def test(live: Live) -> None:
        given = msgspec.json.encode({"id": 5, "x": 0.5, "bought": [1, 2]})
        asked = [live.ask([live.decode(body)], b"id") for body in (row(1), row(2), given, row(2, 0.5), row(100))]
        answers = [a for [a] in await asyncio.gather(*asked)]
        assert answers[:4] == [(3.0,), (6.0,), (3.5,), (4.5,)]
        assert calls == [[1, 2, 100]]
        error = answers[4]
        assert error.status == 422
        assert [tuple(m) for m in error.mistakes] == [(0, "bought", "nothing is known of this key")]
        with pytest.raises(RequestError) as absent:
            live.decode(b'{"x": 1}')
        assert [tuple(m) for m in absent.value.mistakes] == [(0, "id", "is absent")]

    run(test, predict, Visit, fetch=fetch)


def test_a_call_that_takes_longer_than_it_may_hangs(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    async def fetch(keys: list[int]) -> dict[int, list[int]]:
        raise AssertionError("it is not called here")

    def predict(loaded: None, rows: list[Visit]) -> Any: ...

    class Called:
        """A fetcher that is at a call."""

        fetching_since: float | None = None

        def close(self) -> None: ...

    async def test(live: Live) -> None:
        assert live.is_ready
        live.batcher.predicting_since = 90.0
        assert live.is_ready
        now[0] = 100.1
        assert live.is_hung
        assert not live.is_ready
        live.batcher.predicting_since = None
        assert live.is_ready
        live.fetcher = called = Called()  # type: ignore[assignment]
        called.fetching_since = 90.0
        assert live.is_hung
        called.fetching_since = 95.0
        assert live.is_ready

    run(test, predict, Visit, fetch=fetch, predict_timeout_seconds=10.0)


def test_what_was_answered_is_recorded_and_the_recorder_is_closed(run: Callable[..., None]) -> None:
    class Recorded:
        def __init__(self) -> None:
            self.kept: list[tuple[bytes, Any, Any]] = []
            self.is_closed = False

        def append(self, when: float, ids: Any, rows: Any, answers: Any, then: Callable[..., None]) -> None:
            self.kept += zip(ids, rows, answers, strict=True)
            then()

        def close(self) -> None:
            self.is_closed = True

    recorded = Recorded()

    async def test(live: Live) -> None:
        await asyncio.gather(
            live.ask([live.decode(row(1))], b"a"),
            live.ask([live.decode(row(13))], b"b"),
            live.ask([live.decode(b'{"x": 3}')], b"c"),
        )
        assert not recorded.is_closed

    run(test, recorder=recorded)
    assert recorded.kept == [(b"a", (1, 1.0), (2.0,)), (b"c", (None, 3.0), (6.0,))]
    assert recorded.is_closed


def test_it_sheds_what_is_too_much(run: Callable[..., None]) -> None:
    async def test(live: Live) -> None:
        rows = live.decode_many(b"[%b,%b]" % (row(1), row(2)))
        first = asyncio.ensure_future(live.ask(rows, b"id"))
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as busy:
            await live.ask(rows, b"id")
        assert busy.value.status == 503
        assert list(await first) == [(2.0,), (4.0,)]

    run(test, queue_rows=3)
