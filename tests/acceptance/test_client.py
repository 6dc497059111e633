"""The client and a real server: keys, TLS, Unix sockets, what is refused, and a server that is replaced meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sereno
from sereno.exceptions import InvalidRowsError, ServerError, UnavailableError
from sereno.serve.guard import new_key
from tests.acceptance.server import Server

MODELS = Path(__file__).parents[1] / "models"
ROW = {"customer_id": 7, "age": 60, "plan": "basic", "monthly_spend": None}
ANSWER = {"probability": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in MODELS.glob("*.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture(params=["sync", "async"])
def predict(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`predict(rows, **arguments of the client)`, by either client."""

    def sync(rows: Any, **arguments: Any) -> Any:
        with sereno.Client(**arguments) as client:
            return client.predict(rows)

    def by_async(rows: Any, **arguments: Any) -> Any:
        async def ask() -> Any:
            async with sereno.AsyncClient(**arguments) as client:
                return await client.predict(rows)

        return asyncio.run(ask())

    return sync if request.param == "sync" else by_async


def test_several_models_and_keys(folder: Path, predict: Callable[..., Any]) -> None:
    key = new_key()
    with Server(folder, "plain.py", "everything.py", SERENO_SECRET_API_KEYS=key.line) as server:
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


def test_tls(folder: Path, predict: Callable[..., Any]) -> None:
    made = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=ours -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)
    with Server(folder, "plain.py", "--tls-certificate", "cert.pem", "--tls-key", "key.pem") as server:
        assert predict(ROW, address=server.url, certificate=folder / "cert.pem") == ANSWER
        with pytest.raises(ServerError, match=r"its certificate is not accepted .* `certificate=` names the authority"):
            predict(ROW, address=server.url)


def test_a_unix_socket(folder: Path, predict: Callable[..., Any]) -> None:
    path = folder / "api.sock"
    with Server(folder, "plain.py", "--unix", str(path)):
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
