"""The client and a real server: keys, TLS, Unix sockets, what is refused, and a server that is replaced meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

import sereno
from sereno.exceptions import InvalidRowsError, ServerError, UnavailableError
from sereno.serve.guard import new_key
from tests.acceptance.server import Server
from tests.lookups import publish

MODELS = Path(__file__).parents[1] / "models"
ROW = {"customer_id": 7, "age": 60, "plan": "basic", "monthly_spend": None}
ANSWER = {"probability": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in MODELS.glob("*.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


def by_client(rows: Any, **arguments: Any) -> Any:
    with sereno.Client(**arguments) as client:
        return client.predict(rows)


def by_async_client(rows: Any, **arguments: Any) -> Any:
    async def ask() -> Any:
        async with sereno.AsyncClient(**arguments) as client:
            return await client.predict(rows)

    return asyncio.run(ask())


PREDICT = (by_client, by_async_client)  # a server takes seconds to come and go, so that both ask the same one


def look_up_by_client(how: str, what: Any, **arguments: Any) -> Any:
    with sereno.Client(**arguments) as client:
        return getattr(client, how)(what)


def look_up_by_async_client(how: str, what: Any, **arguments: Any) -> Any:
    async def ask() -> Any:
        async with sereno.AsyncClient(**arguments) as client:
            return await getattr(client, how)(what)

    return asyncio.run(ask())


LOOK_UP = (look_up_by_client, look_up_by_async_client)


def test_several_models_and_keys(folder: Path) -> None:
    key = new_key()
    with Server(folder, "plain.py", "everything.py", SERENO_SECRET_API_KEYS=key.line) as server:
        for predict in PREDICT:
            assert predict(ROW, address=server.url, model="plain", key=key.key) == ANSWER
            with pytest.raises(ServerError, match=r"401: An API key is missing.* Give the client a `key=`\.") as caught:
                predict(ROW, address=server.url, model="plain")
            assert caught.value.status == 401
            with pytest.raises(ServerError, match="404: There is nothing under this path"):
                predict(ROW, address=server.url, key=key.key)  # which of the two?
            with pytest.raises(InvalidRowsError) as invalid:
                predict([ROW, ROW | {"age": 7, "plan": None}], address=server.url, model="plain", key=key.key)
            assert [(m.row, m.column, m.expected) for m in invalid.value.mistakes] == [
                (1, "age", "must be at least 18"),
                (1, "plan", "is missing (null)"),
            ]


def test_tls(folder: Path) -> None:
    made = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=ours -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)
    tls = ("--tls-certificate", "cert.pem", "--tls-key", "key.pem")
    with Server(folder, "plain.py", *tls, SERENO_SERVE__DRAIN_SECONDS="3600") as server:
        for predict in PREDICT:
            assert predict(ROW, address=server.url, certificate=folder / "cert.pem") == ANSWER
            with pytest.raises(
                ServerError, match=r"its certificate is not accepted .* `certificate=` names the authority"
            ):
                predict(ROW, address=server.url)
        socket.create_connection(("127.0.0.1", server.port)).close()  # as a balancer's probe does
        assert server.stop() == 0  # no connection keeps it, as none of those came about


def test_a_unix_socket(folder: Path) -> None:
    path = folder / "api.sock"
    with Server(folder, "plain.py", "--unix", str(path)):
        for predict in PREDICT:
            assert predict([ROW, ROW], address=f"unix://{path}") == [ANSWER, ANSWER]


def test_nothing_fails_while_the_server_is_replaced(folder: Path) -> None:
    """Reloads and a restart: connections end, are refused, and the next try finds the new server."""
    answers: list[Any] = []
    done = threading.Event()

    def ask(url: str) -> None:
        with sereno.Client(url, retries=1000) as client:
            while not done.is_set():
                try:
                    answers.append(client.predict(ROW))
                except UnavailableError as error:
                    answers.append(error)

    with Server(folder, "plain.py") as server:
        url, port = server.url, str(server.port)
        threads = [threading.Thread(target=ask, args=[url]) for _ in range(3)]
        for thread in threads:
            thread.start()
        server.until(lambda: len(answers) > 10, "answer")
        server.reload()
        server.stop()
    with Server(folder, "plain.py", "--port", port) as server:
        before = len(answers)
        server.until(lambda: len(answers) > before + 10, "answer")
        done.set()
        for thread in threads:
            thread.join()
    assert [answer for answer in answers if answer != ANSWER] == []


# Lookups

PAIRS = """
from datetime import date
from typing import TypedDict

import numpy as np
import pandas as pd
from sereno import Key, Model


class Row(TypedDict):
    word: Key[str]
    day: Key[date]
    number: Key[int]
    x: float


class Answer(TypedDict):
    y: float | None


model = Model("pairs", inputs=Row, outputs=Answer)
model.load(lambda: None)


@model.predict
def predict(loaded, rows: pd.DataFrame) -> np.ndarray:
    return rows["x"].where(rows["x"] > 0)
"""
WORDS = [
    *("", ".", "..", "...", "a/b", "/", "//", "%", "%2F", "a%20b", "?", "a?b=c#d", ";", "+", " ", "a b", "\0", "\r\n"),
    *("'\"", "é", "東京", "\U0001f600", "x" * 600, "é" * 3000),
]
DAYS = [date(1969, 12, 31), date(2026, 5, 1)]
NUMBERS = [-(2**63), -1, 0, 2**63 - 1]
KEYS = [(word, DAYS[i % 2], NUMBERS[i % 4]) for i, word in enumerate(WORDS)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model with a composite key, which published y = 0, null, 2, 3 …"""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.py").write_text(PAIRS)
    columns = dict(zip(("word", "day", "number"), map(list, zip(*KEYS, strict=True)), strict=True))
    publish(folder, "pairs.py", rows=pa.table(columns | {"x": [1.0, -1.0, *map(float, range(2, len(KEYS)))]}))
    with Server(folder, "pairs.py") as server:
        yield server


@pytest.mark.parametrize("look_up", LOOK_UP)
def test_every_key_is_found(pairs: Server, look_up: Callable[..., Any]) -> None:
    found = [look_up("lookup", key, address=pairs.url) for key in KEYS]
    assert [one.prediction["y"] for one in found] == [1.0, None, *range(2, len(KEYS))]
    assert {(one.version, one.data_date, one.stale, one.origin) for one in found} == {
        (1, date(2026, 5, 1), False, "lookup")
    }
    assert {one.data_time for one in found} == {datetime(2026, 5, 2, tzinfo=UTC)}
    many = look_up("lookup_many", [*KEYS, ("?", date(2026, 5, 1), 5)], address=pairs.url, model="pairs")
    assert [one and one.prediction for one in many] == [*(one.prediction for one in found), None]


@pytest.mark.parametrize("look_up", LOOK_UP)
def test_keys_that_are_not_there(pairs: Server, look_up: Callable[..., Any]) -> None:
    for key in (("a", date(2026, 5, 1), 0), ("a/b", DAYS[0], 1), ["..", DAYS[0], 5]):
        with pytest.raises(sereno.UnknownKeyError, match="404: There is no prediction under this key") as unknown:
            look_up("lookup", key, address=pairs.url)
        assert unknown.value.status == 404
    for key in ("a", ("a", date(2026, 5, 1)), ("a", 1, 1), ("a", "2026-05-01", 2**63), ("a", DAYS[0], "1 ")):
        with pytest.raises(InvalidRowsError, match="422: This is no key of this model"):
            look_up("lookup", key, address=pairs.url)
    with pytest.raises(InvalidRowsError, match="key 1, number: must be a whole number"):
        look_up("lookup_many", [KEYS[0], ("a", DAYS[0], "x")], address=pairs.url)
    with pytest.raises(ServerError, match="404: There is nothing under this path") as other:
        look_up("lookup", KEYS[0], address=pairs.url, model="others")
    assert type(other.value) is ServerError
    with pytest.raises(InvalidRowsError, match="too long for a URL. `lookup_many` takes it"):
        look_up("lookup", ("é" * 20_000, DAYS[0], 1), address=pairs.url)
    assert look_up("lookup_many", [("é" * 20_000, DAYS[0], 1)], address=pairs.url) == [None]
    with pytest.raises(ServerError, match="413: "):
        look_up("lookup_many", [KEYS[0]] * 1001, address=pairs.url)


def test_what_is_stale_or_not_there_yet(folder: Path) -> None:
    with Server(folder, "plain.py", SERENO_MODELS__PLAIN__LOOKUP="off", SERENO_MODELS__PLAN__LOG="off") as server:
        server.wait_for(
            "SERENO_MODELS__PLAN__LOG is set, but no model 'plan' is known. Did you mean SERENO_MODELS__PLAIN"
        )
        for look_up in LOOK_UP:
            with pytest.raises(ServerError, match="404: There is nothing under this path") as off:
                look_up("lookup", 1, address=server.url)
            assert type(off.value) is ServerError
    stale = {"SERENO_MODELS__PLAIN__MAX_AGE_SECONDS": "3600", "SERENO_MODELS__PLAIN__STALE": "refuse"}
    with Server(folder, "plain.py", **stale) as server:
        for look_up in LOOK_UP:
            with pytest.raises(UnavailableError, match="503: Nothing is published yet"):
                look_up("lookup", 1, address=server.url)
        publish(folder, "plain.py")
        server.until(lambda: "version" in httpx.get(f"{server.url}/readyz").text, "look up")
        for look_up in LOOK_UP:
            with pytest.raises(
                UnavailableError, match="503: What is published is .* seconds old, and may be at most 3,600"
            ):
                look_up("lookup", 1, address=server.url)
    with Server(folder, "plain.py", SERENO_MODELS__PLAIN__MAX_AGE_SECONDS="3600") as server:
        for look_up in LOOK_UP:
            assert look_up("lookup", 1, address=server.url).stale is True
