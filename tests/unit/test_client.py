"""The client: what it sends, when it tries again, what it makes of answers. Its waits are on a clock of the test's."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, assert_type

import anyio
import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import sereno
from sereno import calls
from sereno import client as module
from sereno.exceptions import InvalidRowsError, ServerError, SettingsError, UnavailableError
from sereno.lookup.found import UNKNOWN_KEY
from sereno.serve.wire import TOO_MANY_WAIT, Mistake

ROW = {"x": 1.5}
ANSWER = {"y": 3.0}
Told = Callable[[httpx.Request], httpx.Response]


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for one in (module, calls):
        monkeypatch.setattr(one, "time", SimpleNamespace(monotonic=clock.monotonic, time=clock.time, sleep=clock.sleep))
    monkeypatch.setattr(anyio, "sleep", clock.asleep)
    monkeypatch.setattr(calls.random, "uniform", lambda low, high: high)  # the longest wait that may be drawn
    return clock


@pytest.fixture(params=["sync", "async"])
def predict(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`predict(transport, rows, **arguments of the client)`, by either client."""

    def sync(transport: Any, rows: Any = ROW, asked: str | None = None, **arguments: Any) -> Any:
        with sereno.Client(transport=transport, **arguments) as client:
            return client.predict(rows, model=asked)

    def by_async(transport: Any, rows: Any = ROW, asked: str | None = None, **arguments: Any) -> Any:
        async def ask() -> Any:
            async with sereno.AsyncClient(transport=transport, **arguments) as client:
                return await client.predict(rows, model=asked)

        return asyncio.run(ask())

    return sync if request.param == "sync" else by_async


class Server:
    """Answers what it was told, one after the other, and keeps the requests. Errors are raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def rows(self) -> Any:
        return json.loads(self.requests[-1].content)


def answer(value: Any = ANSWER, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=value, headers={k.replace("_", "-"): v for k, v in headers.items()})


def problem(status: int, detail: str = "No.", **more: Any) -> httpx.Response:
    return answer({"type": "about:blank", "status": status, "detail": detail, **more}, status)


def busy(**headers: str) -> httpx.Response:
    return answer({"detail": f"{TOO_MANY_WAIT} to be scored."}, 503, **headers)


# What is sent


def test_a_row_is_asked_of_the_one_model(predict: Callable[..., Any]) -> None:
    server = Server(answer())
    assert predict(server.transport) == ANSWER
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", "http://127.0.0.1:8000/predict")
    assert request.headers["Content-Type"] == "application/json"
    assert len(request.headers["X-Request-ID"]) == 32
    assert "Authorization" not in request.headers
    assert server.rows == ROW


def test_the_model_is_named_by_the_client_or_the_call(predict: Callable[..., Any]) -> None:
    server = Server(answer(), answer())
    predict(server.transport, model="churn")
    predict(server.transport, asked="other", model="churn")
    assert [r.url.path for r in server.requests] == ["/models/churn/predict", "/models/other/predict"]


def test_what_is_no_name_of_a_model_is_no_other_path(predict: Callable[..., Any]) -> None:
    server = Server(answer())
    predict(server.transport, model="../a?b")
    assert server.requests[0].url.raw_path == b"/models/..%2Fa%3Fb/predict"


def test_the_key_goes_along(predict: Callable[..., Any]) -> None:
    server = Server(answer())
    predict(server.transport, key="abc")
    assert server.requests[0].headers["Authorization"] == "Bearer abc"


def test_a_path_before_the_servers_own_is_kept(predict: Callable[..., Any]) -> None:
    server = Server(answer())
    predict(server.transport, address="https://example.org/models-of-ours/")
    assert str(server.requests[0].url) == "https://example.org/models-of-ours/predict"


def test_an_address_that_cannot_be(predict: Callable[..., Any]) -> None:
    with pytest.raises(SettingsError, match=r"'localhost:8000' of a server cannot be. Write http://HOST:PORT"):
        predict(None, address="localhost:8000")


def test_a_list_gives_a_list(predict: Callable[..., Any]) -> None:
    server = Server(answer([ANSWER, ANSWER]))
    assert predict(server.transport, [ROW, ROW]) == [ANSWER, ANSWER]
    assert server.rows == [ROW, ROW]


@dataclass
class Item:
    name: str
    price: Decimal


def test_python_values_become_json(predict: Callable[..., Any]) -> None:
    server = Server(answer())
    row = {
        "day": date(2026, 5, 1), "at": datetime(2026, 5, 1, 2, 3, tzinfo=UTC), "price": Decimal("1.10"), "number": np.int64(3),
        "missing": float("nan"), "list": np.array([1.5, 2.5]), "item": Item("é", Decimal(2)), "when": pd.Timestamp(0, tz="UTC"),
    }  # fmt: skip
    predict(server.transport, row)
    assert server.rows == {
        "day": "2026-05-01", "at": "2026-05-01T02:03:00Z", "price": "1.10", "number": 3, "missing": None, "list": [1.5, 2.5],
        "item": {"name": "é", "price": "2"}, "when": "1970-01-01T00:00:00+00:00",
    }  # fmt: skip


def test_what_json_cannot_say_is_not_sent(predict: Callable[..., Any]) -> None:
    for row in ({"x": float("inf")}, [{"x": [None, -float("inf")]}]):
        with pytest.raises(InvalidRowsError, match="infinite"):
            predict(Server().transport, row)
    with pytest.raises(TypeError, match="a value of type object, which has no form in JSON"):
        predict(Server().transport, {"x": object()})


FRAME = pd.DataFrame({"x": [1.0, None], "band": pd.Categorical(["a", None])}, index=[7, 9])


@pytest.mark.parametrize("rows", [FRAME, pl.from_pandas(FRAME), pa.Table.from_pandas(FRAME, preserve_index=False)])
def test_a_frame_gives_a_frame(predict: Callable[..., Any], rows: Any) -> None:
    server = Server(answer([ANSWER, {"y": 4.0}]))
    answers = predict(server.transport, rows)
    assert server.rows == [{"x": 1.0, "band": "a"}, {"x": None, "band": None}]
    assert type(answers) is type(rows)
    if isinstance(answers, pd.DataFrame):
        assert answers["y"].to_dict() == {7: 3.0, 9: 4.0}
    else:
        assert list(answers["y"].to_pylist() if isinstance(answers, pa.Table) else answers["y"]) == [3.0, 4.0]


# Errors


def test_all_mistakes_of_the_rows(predict: Callable[..., Any]) -> None:
    mistakes = [
        {"row": 0, "column": "age", "expected": "must be at least 18"},
        {"row": 2, "column": "items[1].price", "expected": "is absent"},
    ]
    server = Server(problem(422, "2 rows do not fit the model.", errors=mistakes))
    with pytest.raises(InvalidRowsError) as caught:
        predict(server.transport, [ROW] * 3)
    error = caught.value
    assert str(error) == (
        "http://127.0.0.1:8000: 422: 2 rows do not fit the model: row 0, age: must be at least 18; "
        "row 2, items[1].price: is absent."
    )
    assert error.mistakes == (Mistake(0, "age", "must be at least 18"), Mistake(2, "items[1].price", "is absent"))
    assert (error.status, error.error_id) == (422, None)
    assert error.request_id == server.requests[0].headers["X-Request-ID"]
    assert len(server.requests) == 1


def test_a_single_row_needs_no_number_and_a_message_has_an_end(predict: Callable[..., Any]) -> None:
    mistakes = [{"row": 0, "column": f"c{i}", "expected": "is absent"} for i in range(12)]
    with pytest.raises(InvalidRowsError, match=r": c0: is absent; .*c9: is absent; and 2 more\.$") as caught:
        predict(Server(problem(422, errors=mistakes)).transport)
    assert len(caught.value.mistakes) == 12


@pytest.mark.parametrize(
    ("made", "kind", "says"),
    [
        (lambda: problem(401, "A key is needed."), ServerError, "401: A key is needed. Give the client a `key=`."),
        (lambda: problem(404, "There is no such model."), ServerError, "404: There is no such model."),
        (lambda: problem(500, "predict raised.", error_id="e1"), ServerError,
         "500: predict raised. The server's log has the cause under e1."),
        (lambda: problem(504, "Not in time."), UnavailableError, "504: Not in time."),
        (lambda: httpx.Response(502, text="<html>"), ServerError, "502: Bad Gateway."),
        (lambda: httpx.Response(418, json=[]), ServerError, "418: I'm a teapot."),
        (lambda: httpx.Response(307, headers={"Location": "/elsewhere"}), ServerError, "307: Temporary Redirect."),
        (lambda: httpx.Response(200, text="hello"), ServerError, "what it answered is no JSON. Is this a server of Sereno?"),
    ],
)  # fmt: skip
def test_what_is_not_tried_again(
    predict: Callable[..., Any], made: Callable[[], httpx.Response], kind: type, says: str
) -> None:
    response = made()
    server = Server(response)
    with pytest.raises(ServerError) as caught:
        predict(server.transport)
    assert type(caught.value) is kind
    assert str(caught.value) == f"http://127.0.0.1:8000: {says}"
    assert caught.value.status == response.status_code
    assert len(server.requests) == 1
    if response.status_code == 500:
        assert caught.value.error_id == "e1"


def test_errors_can_be_pickled() -> None:
    error = InvalidRowsError("no", status=422, mistakes=[Mistake(0, "a", "b")], error_id="e", request_id="r")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == ("no", vars(error))


# Trying again


def test_a_busy_server_is_asked_again(predict: Callable[..., Any], clock: Clock) -> None:
    server = Server(busy(), answer({}, 429), answer())
    assert predict(server.transport) == ANSWER
    assert clock.waits == [0.1, 0.2]
    assert len({r.headers["X-Request-ID"] for r in server.requests}) == 1  # one call


def test_waits_are_random_and_have_a_limit(
    predict: Callable[..., Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(calls.random, "uniform", lambda low, high: drawn.append((low, high)) or low)
    predict(Server(*[busy()] * 8, answer()).transport, retries=8)
    assert drawn == [(0, w) for w in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0)]
    assert clock.waits == [0.0] * 8


def test_a_server_that_stays_busy(predict: Callable[..., Any], clock: Clock) -> None:
    server = Server(*[busy()] * 4)
    with pytest.raises(UnavailableError, match=r": 503: Too many rows wait to be scored\.$") as caught:
        predict(server.transport)
    assert caught.value.status == 503
    assert len(clock.waits) == 3
    with pytest.raises(UnavailableError):
        predict(Server(busy()).transport, retries=0)


@pytest.mark.parametrize("asked", ["2", "Mon, 12 Jan 1970 13:46:42 GMT"])
def test_the_server_says_how_long_to_wait(predict: Callable[..., Any], clock: Clock, asked: str) -> None:
    predict(Server(busy(Retry_After=asked), answer()).transport)
    assert clock.waits == [2.1]


@pytest.mark.parametrize("asked", ["soon", "-1", "Mon, 12 Jan 1970 13:40:00 GMT", "٣"])
def test_a_wait_that_makes_no_sense(predict: Callable[..., Any], clock: Clock, asked: str) -> None:
    response = httpx.Response(503, headers=[(b"Retry-After", asked.encode())])
    predict(Server(response, answer()).transport)
    assert clock.waits == [0.1]


def test_nobody_waits_past_the_time_of_the_call(predict: Callable[..., Any], clock: Clock) -> None:
    server = Server(busy(Retry_After="20"), busy(Retry_After="20"))
    with pytest.raises(UnavailableError, match="503"):
        predict(server.transport)  # 30 s
    assert clock.waits == [20.1]
    assert [r.extensions["timeout"]["read"] for r in server.requests] == pytest.approx([30, 9.9])
    assert [r.extensions["timeout"]["connect"] for r in server.requests] == pytest.approx([5, 5])


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("[Errno 111] Connection refused"),
        httpx.ConnectTimeout("timed out"),
        httpx.ReadError("[Errno 104] Connection reset by peer"),
        httpx.WriteError("[Errno 32] Broken pipe"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
    ids=repr,
)
def test_a_connection_that_fails_before_the_answer_is_made_again(
    predict: Callable[..., Any], clock: Clock, error: Exception
) -> None:
    server = Server(error, answer())
    assert predict(server.transport) == ANSWER
    assert clock.waits == [0.1]
    with pytest.raises(UnavailableError, match=r"\(tried 4 times\)") as caught:
        predict(Server(*[error] * 4).transport)
    assert caught.value.status is None
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (httpx.ReadTimeout(""), UnavailableError, "it did not answer within 30 s."),
        (httpx.RemoteProtocolError("illegal status line"), ServerError, "this is no HTTP that could be understood"),
    ],
    ids=repr,
)
def test_failures_that_are_not_tried_again(
    predict: Callable[..., Any], error: Exception, kind: type, says: str
) -> None:
    with pytest.raises(ServerError, match=says) as caught:
        predict(Server(error).transport)
    assert type(caught.value) is kind


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces: text, or what is raised in place of one; the clock goes on by a second with each."""

    def __init__(self, clock: Clock, *pieces: bytes | Exception) -> None:
        self.clock, self.pieces = clock, pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.clock.now += 1
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


def test_an_answer_that_breaks_off_is_not_asked_for_again(predict: Callable[..., Any], clock: Clock) -> None:
    stream = Pieces(clock, b'{"y":', httpx.ReadError("reset"))
    with pytest.raises(UnavailableError, match=r"its answer broke off \(reset\)\."):
        predict(Server(httpx.Response(200, stream=stream)).transport)
    stream = Pieces(clock, b'{"y":', httpx.ReadTimeout(""))
    with pytest.raises(UnavailableError, match="did not answer within 30 s"):
        predict(Server(httpx.Response(200, stream=stream)).transport)


def test_an_answer_that_drips(predict: Callable[..., Any], clock: Clock) -> None:
    with pytest.raises(UnavailableError, match="did not answer within 3 s"):
        predict(Server(httpx.Response(200, stream=Pieces(clock, *[b" "] * 100))).transport, timeout_seconds=3)
    assert predict(Server(httpx.Response(200, stream=Pieces(clock, b"[", b"]"))).transport, timeout_seconds=3) == []


@pytest.mark.parametrize("errors", [None, 5, "no", [None, {"row": 1}]])
def test_an_error_of_another_form(predict: Callable[..., Any], errors: Any) -> None:
    with pytest.raises(InvalidRowsError, match="422: No"):
        predict(Server(problem(422, errors=errors)).transport)


@pytest.mark.parametrize("content", [b'"\xff"', b'{"y":"\xe9"}', b"[" * 100_000, b"<html>"])
def test_an_answer_that_is_no_json(predict: Callable[..., Any], content: bytes) -> None:
    with pytest.raises(ServerError, match="no JSON"):
        predict(Server(httpx.Response(200, content=content)).transport)
    with pytest.raises(ServerError, match="400: "):
        predict(Server(httpx.Response(400, content=content)).transport)


@pytest.mark.parametrize("found", [5, {"y": 1}, [], [1, 2], [{"y": 1}] * 3])
def test_a_frame_needs_an_answer_for_each_row(predict: Callable[..., Any], found: Any) -> None:
    for frame in (pd.DataFrame({"x": [1, 2]}), pl.DataFrame({"x": [1, 2]}), pa.table({"x": [1, 2]})):
        with pytest.raises(ServerError, match="not a prediction for each row"):
            predict(Server(answer(found)).transport, frame)


# Lookups


FOUND = {
    "prediction": {"y": None}, "version": 12, "data_date": "2026-11-21", "data_time": "2026-11-22T00:00:00Z",
    "age_seconds": 4711, "stale": False, "origin": "lookup",
}  # fmt: skip
LIVE = FOUND | {"version": None, "data_date": None, "age_seconds": 0, "origin": "live"}
LOOKUP = sereno.Lookup(
    prediction={"y": None}, version=12, data_date=date(2026, 11, 21), data_time=datetime(2026, 11, 22, tzinfo=UTC),
    age_seconds=4711, stale=False, origin="lookup",
)  # fmt: skip


@pytest.fixture(params=["sync", "async"])
def asked(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`asked("lookup", transport, key, **arguments of the client)`, by either client."""

    def sync(how: str, transport: Any, what: Any, model: str | None = None, **arguments: Any) -> Any:
        with sereno.Client(transport=transport, **arguments) as client:
            return getattr(client, how)(what, model=model)

    def by_async(how: str, transport: Any, what: Any, model: str | None = None, **arguments: Any) -> Any:
        async def ask() -> Any:
            async with sereno.AsyncClient(transport=transport, **arguments) as client:
                return await getattr(client, how)(what, model=model)

        return asyncio.run(ask())

    return sync if request.param == "sync" else by_async


def test_a_key_is_looked_up(asked: Callable[..., Any]) -> None:
    server = Server(answer(FOUND), answer(LIVE | {"new": 1}))
    assert asked("lookup", server.transport, 7) == LOOKUP
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("GET", "http://127.0.0.1:8000/predictions/7")
    assert request.content == b""
    assert len(request.headers["X-Request-ID"]) == 32
    live = asked("lookup", server.transport, 7)
    assert (live.version, live.data_date, live.origin) == (None, None, "live")


def test_the_model_of_a_lookup_is_named(asked: Callable[..., Any]) -> None:
    server = Server(answer(FOUND), answer([]))
    asked("lookup", server.transport, 7, model="a/b", address="https://example.org/ours/")
    assert str(server.requests[0].url) == "https://example.org/ours/models/a%2Fb/predictions/7"
    with sereno.Client(transport=server.transport, model="churn") as client:
        client.lookup_many([])
    assert server.requests[1].url.path == "/models/churn/predictions"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (-7, "-7"),
        (np.int64(7), "7"),
        ("a b", "a%20b"),
        ("a/b%2F?c#d&e=f+g;h", "a%2Fb%252F%3Fc%23d%26e%3Df%2Bg%3Bh"),
        ("東京é", "%E6%9D%B1%E4%BA%AC%C3%A9"),
        ('\0\n\r"', "%00%0A%0D%22"),
        ("", ""),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        (date(2026, 5, 1), "2026-05-01"),
        ((7,), "7"),
        (["a/b"], "a%2Fb"),
        ((7, "a/b", date(2026, 5, 1)), "7/a%2Fb/2026-05-01"),
        (["", ""], "/"),
        (("..", "x"), "%2E%2E/x"),
    ],
)
def test_each_value_of_a_key_is_one_segment(asked: Callable[..., Any], key: Any, path: str) -> None:
    server = Server(answer(FOUND))
    asked("lookup", server.transport, key)
    assert server.requests[0].url.raw_path == f"/predictions/{path}".encode()


@pytest.mark.parametrize(
    "key", [True, 1.0, None, datetime(2026, 5, 1), pd.Timestamp(0), b"a", {"id": 1}, (1, None), ((1,),)]
)
def test_what_no_key_can_be_is_not_sent(asked: Callable[..., Any], key: Any) -> None:
    with pytest.raises(TypeError, match="A key is a whole number, text or a date; one of several columns is a tuple"):
        asked("lookup", Server().transport, key)
    with pytest.raises(TypeError, match="A key is"):
        asked("lookup_many", Server().transport, [1, key])


@pytest.mark.parametrize("keys", ["abc", b"abc", 7, None, date(2026, 5, 1)])
def test_many_keys_are_a_list(asked: Callable[..., Any], keys: Any) -> None:
    with pytest.raises(TypeError, match="Give a list of keys"):
        asked("lookup_many", Server().transport, keys)


def test_many_keys_are_one_request(asked: Callable[..., Any]) -> None:
    server = Server(answer([FOUND, None]), answer([FOUND]), answer([FOUND, None]), answer([]))
    assert asked("lookup_many", server.transport, [7, 8]) == [LOOKUP, None]
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", "/predictions")
    assert server.rows == {"keys": [7, 8]}
    asked("lookup_many", server.transport, ((np.int64(1), date(2026, 5, 1), "a/b"),))
    assert server.rows == {"keys": [[1, "2026-05-01", "a/b"]]}
    asked("lookup_many", server.transport, [(7,), ["a"]])  # a tuple of one value is that value
    assert server.rows == {"keys": [7, "a"]}
    assert asked("lookup_many", server.transport, np.array([], int)) == []


def test_an_unknown_key_differs_from_an_unknown_path(asked: Callable[..., Any]) -> None:
    server = Server(problem(404, UNKNOWN_KEY), problem(404, "There is nothing under this path."), answer({}, 404))
    with pytest.raises(sereno.UnknownKeyError) as caught:
        asked("lookup", server.transport, 7)
    assert str(caught.value) == "http://127.0.0.1:8000: 404: There is no prediction under this key."
    assert caught.value.status == 404
    assert caught.value.request_id == server.requests[0].headers["X-Request-ID"]
    for _ in range(2):
        with pytest.raises(ServerError, match="404: ") as other:
            asked("lookup", server.transport, 7)
        assert type(other.value) is ServerError
    assert len(server.requests) == 3  # none of them twice


def test_mistakes_of_keys(asked: Callable[..., Any]) -> None:
    mistakes = [{"row": 3, "column": "id", "expected": "must be a whole number"}]
    with pytest.raises(InvalidRowsError, match=r"422: No: id: must be a whole number\.$"):
        asked("lookup", Server(problem(422, errors=mistakes)).transport, "x")
    with pytest.raises(InvalidRowsError, match=r"422: No: key 3, id: must be a whole number\.$") as caught:
        asked("lookup_many", Server(problem(422, errors=mistakes)).transport, ["a", "cd"])
    assert caught.value.mistakes == (Mistake(3, "id", "must be a whole number"),)


@pytest.mark.parametrize(("how", "what", "good"), [("lookup", 7, FOUND), ("lookup_many", [7], [FOUND])])
def test_lookups_are_tried_again(asked: Callable[..., Any], clock: Clock, how: str, what: Any, good: Any) -> None:
    proxy = httpx.Response(503, text="<h1>Service Unavailable</h1>")
    server = Server(busy(Retry_After="2"), httpx.ReadError("reset"), proxy, answer(good))
    assert asked(how, server.transport, what) in (LOOKUP, [LOOKUP])
    assert clock.waits == [2.1, 0.2, 0.4]
    assert len({r.headers["X-Request-ID"] for r in server.requests}) == 1


@pytest.mark.parametrize(("how", "what"), [("lookup", 7), ("lookup_many", [7])])
def test_what_takes_a_run_to_change_is_not_tried_again(
    asked: Callable[..., Any], clock: Clock, how: str, what: Any
) -> None:
    server = Server(answer({"detail": "Nothing is published yet."}, 503, Retry_After="1"))
    with pytest.raises(UnavailableError, match=r"8000: 503: Nothing is published yet\.$") as caught:
        asked(how, server.transport, what)
    assert caught.value.status == 503
    assert len(server.requests) == 1
    assert not clock.waits


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("lookup", 5),
        ("lookup", []),
        ("lookup", {"prediction": {}}),
        ("lookup", FOUND | {"data_time": "yesterday"}),
        ("lookup", FOUND | {"origin": "cache"}),
        ("lookup_many", FOUND),
        ("lookup_many", [FOUND | {"stale": "no"}]),
        ("lookup_many", []),
        ("lookup_many", [FOUND, FOUND]),
    ],
)
def test_an_answer_that_is_no_lookup(asked: Callable[..., Any], how: str, found: Any) -> None:
    with pytest.raises(ServerError, match=r"what it answered is (no lookup \(|not a lookup of each key)") as caught:
        asked(how, Server(answer(found)).transport, 7 if how == "lookup" else [7])
    assert type(caught.value) is ServerError


def test_a_lookup_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        LOOKUP.stale = True  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(LOOKUP)) == LOOKUP


# Over real sockets


@contextmanager
def listening(family: int, address: Any, *answers: bytes) -> Iterator[Any]:
    """A socket that gives each connection one of the answers, then closes it; nothing: it resets."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()

        def serve() -> None:
            for text in answers:
                connection, _ = server.accept()
                with connection:
                    while b"}" not in connection.recv(65536):
                        pass
                    connection.sendall(text)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()
        thread.join(10)
        assert not thread.is_alive()


OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"y":3.0}'


def test_over_tcp(predict: Callable[..., Any], clock: Clock) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0), b"", OK) as (host, port):
        assert predict(None, address=f"http://{host}:{port}") == ANSWER
    assert clock.waits == [0.1]
    with pytest.raises(UnavailableError, match=r"there is no connection \(.*\) \(tried 4 times\)"):
        predict(None, address=f"http://{host}:{port}")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_over_a_unix_socket(predict: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(socket.AF_UNIX, str(path), OK):
        assert predict(None, address=f"unix://{path}") == ANSWER
    with pytest.raises(UnavailableError, match=f"^unix://{path}: there is no connection"):
        predict(None, address=f"unix://{path}", retries=0)
    gc.collect()


def test_an_answer_without_its_end(predict: Callable[..., Any]) -> None:
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0), OK[:-1]) as (host, port),
        pytest.raises(UnavailableError, match="its answer broke off"),
    ):
        predict(None, address=f"http://{host}:{port}")


def test_what_is_no_http(predict: Callable[..., Any]) -> None:
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0), b"SSH-2.0-x\r\n\r\n") as (host, port),
        pytest.raises(ServerError, match="no HTTP that could be understood"),
    ):
        predict(None, address=f"http://{host}:{port}")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{", b""),
    ],
    ids=["headers that drip", "a body that drips", "a body that stops"],
)
def test_a_call_ends_in_time_whatever_the_server_does(
    predict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, first: bytes, again: bytes
) -> None:
    for one in (module, calls):
        monkeypatch.setattr(one, "time", time)
    given_up = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(first)
            for _ in range(1000):  # far longer than the call may take; a timeout for each piece would never come
                if given_up.wait(0.02):
                    return
                try:
                    connection.sendall(again)
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UnavailableError, match="did not answer within 0.3 s"):
            predict(None, address=f"http://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0.3)
        given_up.set()
        thread.join(10)


# Types


def test_types_of_the_calls() -> None:
    server = Server(answer(), answer([ANSWER]))
    with sereno.Client(transport=server.transport) as client:
        assert_type(client.predict(ROW), dict[str, Any])
        assert_type(client.predict([ROW]), list[dict[str, Any]])
    server = Server(answer(FOUND), answer([]))
    with sereno.Client(transport=server.transport) as client:
        assert_type(client.lookup(7), sereno.Lookup)
        assert_type(client.lookup_many([]), list[sereno.Lookup | None])
