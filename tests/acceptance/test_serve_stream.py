"""WebSocket /models/{m}/stream, with a real client against a real server."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.acceptance.server import Server

pytestmark = pytest.mark.anyio

MODEL = """
import time
from typing import Annotated, TypedDict
import numpy as np
from annotated_types import Ge
from sereno import Key, Model

class Row(TypedDict):
    customer_id: Key[int]
    a: Annotated[float, Ge(0)]
    seconds: float

class Out(TypedDict):
    twice: float

model = Model("twice", inputs=Row, outputs=Out)

@model.load
def load():
    return None

@model.predict
def predict(loaded, rows: np.ndarray) -> np.ndarray:
    time.sleep(rows[:, 1].max())
    return rows[:, 0] * 2
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("stream")
    (folder / "twice.py").write_text(MODEL)
    with Server(folder, "twice.py") as server:
        yield server


def row(a: float, seconds: float = 0.0) -> str:
    return json.dumps({"a": a, "seconds": seconds})


def address(server: Server, path: str) -> str:
    return server.url.replace("http://", "ws://") + path


async def test_answers_come_in_the_order_of_their_rows(server: Server) -> None:
    async with websockets.connect(address(server, "/models/twice/stream"), proxy=None) as socket:
        for a in range(500):
            await socket.send(row(a))
        assert [json.loads(await socket.recv())["twice"] for _ in range(500)] == [2.0 * a for a in range(500)]


async def test_binary_messages_are_rows_too_and_the_only_model_needs_no_name(server: Server) -> None:
    async with websockets.connect(address(server, "/stream"), proxy=None) as socket:
        await socket.send(row(4).encode())
        assert json.loads(await socket.recv()) == {"twice": 8.0}


async def test_a_bad_row_gets_problem_details_and_the_connection_stays(server: Server) -> None:
    async with websockets.connect(address(server, "/stream"), proxy=None) as socket:
        await socket.send(row(1))
        await socket.send('{"a": -1}')
        await socket.send("no JSON")
        await socket.send("[]")
        await socket.send(row(2))
        first, bad, broken, a_list, last = [json.loads(await socket.recv()) for _ in range(5)]
    assert (first, last) == ({"twice": 2.0}, {"twice": 4.0})
    assert bad["status"] == 422
    assert [e["column"] for e in bad["errors"]] == ["a", "seconds"]
    assert (broken["status"], a_list["status"]) == (400, 422)


async def test_no_such_model_is_no_stream(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with websockets.connect(address(server, "/models/other/stream"), proxy=None):
            pass
    assert refused.value.response.status_code in (403, 404)


async def test_a_page_of_another_site_opens_none(server: Server) -> None:
    with pytest.raises(InvalidStatus):
        async with websockets.connect(address(server, "/stream"), proxy=None, origin="http://elsewhere.example"):
            pass


async def test_many_callers_get_their_own_answers(server: Server) -> None:
    async def caller(number: int) -> bool:
        async with websockets.connect(address(server, "/stream"), proxy=None) as socket:
            for i in range(50):
                await socket.send(row(number * 1000 + i))
                if json.loads(await socket.recv())["twice"] != 2.0 * (number * 1000 + i):
                    return False
        return True

    assert all(await asyncio.gather(*(caller(n) for n in range(20))))


async def test_a_server_that_ends_answers_what_arrived_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(MODEL)
    with Server(tmp_path, "twice.py") as server:
        async with websockets.connect(address(server, "/stream"), proxy=None) as socket:
            await socket.send(row(1))
            await socket.recv()
            for a in range(5):
                await socket.send(row(a, 0.3))
            await socket.send(row(9))
            pong = await socket.ping()
            await pong  # all of them have arrived
            server.process.send_signal(signal.SIGTERM)
            answers = [json.loads(await socket.recv())["twice"] for _ in range(6)]
            assert answers == [0.0, 2.0, 4.0, 6.0, 8.0, 18.0]
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
