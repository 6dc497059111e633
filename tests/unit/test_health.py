"""Alive, ready, counted: what the three routes answer, and to whom."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sereno.serve.access import AccessLog
from sereno.serve.guard import Guard, new_key
from sereno.serve.health import routes, watch
from sereno.serve.metrics import CONTENT_TYPE, Metrics
from sereno.serve.processes.board import Board, State
from sereno.serve.wire import Reply, Request
from sereno.settings import Settings
from sereno.status import Status, Statuses, status_folder, write_status

KEY, LINE = new_key()
LOCAL = (b"host", b"localhost")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(4)
    yield board
    board.close()


@pytest.fixture
def service(board: Board, tmp_path: Path) -> Iterator[Any]:
    """One of two workers, in slot 1, with two models and a key."""
    settings = Settings(home=Path("/nowhere"), secrets_folder=Path("/nowhere"))
    recorder = SimpleNamespace(lag_seconds=1.5, dropped=7)
    service = SimpleNamespace(
        board=board,
        slot=1,
        guard=Guard(settings, {"SERENO_SECRET_API_KEYS": LINE}),
        metrics=Metrics(),
        access=AccessLog("off"),
        is_draining=False,
        connections=set(),
        statuses=[Statuses(tmp_path), Statuses(Path("/nowhere"))],
        lives={
            "churn": SimpleNamespace(name="churn", is_ready=True, lookup=None, recorder=recorder),
            "total": SimpleNamespace(name="total", is_ready=True, lookup=None, recorder=None),
        },
    )
    for slot in (1, 2):
        board.set_state(slot, State.READY)
    yield service
    service.metrics.close()


def ask(service: Any, path: str, *headers: tuple[bytes, bytes]) -> Reply:
    (route,) = [r for r in routes(service) if r.path == path]
    assert route.method == "GET"
    assert route.answer is not None
    reply = route.answer(service, Request(b"GET", path.encode(), b"", headers, b"", b"1"), {})
    assert (b"cache-control", b"no-store") in reply.headers
    return reply


def reasons(service: Any, *headers: tuple[bytes, bytes]) -> list[str]:
    reply = ask(service, "/readyz", *headers)
    told = json.loads(reply.body)
    assert (reply.status, told["ready"]) == ((503, False) if told.get("because") else (200, True))
    found: list[str] = told.get("because", [])
    return found


def test_alive_whatever_else(service: Any) -> None:
    service.is_draining = True
    service.lives["churn"].is_ready = False
    reply = ask(service, "/livez")
    assert (reply.status, reply.body) == (200, b'{"live":true}')


def test_ready(service: Any) -> None:
    assert reasons(service) == []


def test_not_ready_while_it_drains(service: Any) -> None:
    service.is_draining = True
    assert reasons(service) == ["the worker drains"]


def test_which_model_is_not_ready_is_told_to_those_who_may_ask(service: Any) -> None:
    service.lives["churn"].is_ready = service.lives["total"].is_ready = False
    for header in ((b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", KEY.encode())):
        assert reasons(service, LOCAL, header) == ["not ready: churn, total"]
        assert reasons(service, (b"host", b"evil.example"), header) == ["a model is not ready"]
    for headers in ([], [LOCAL], [LOCAL, (b"authorization", b"Bearer wrong")]):
        assert reasons(service, *headers) == ["a model is not ready"]
    assert set(service.guard.refused.values()) == {0}  # who asks for health was not refused


def test_not_ready_while_another_worker_hangs(service: Any, board: Board) -> None:
    board.set_state(2, State.HUNG)
    assert reasons(service) == ["worker 2 hangs"]
    board.set_state(2, State.DRAINING)
    assert reasons(service) == []


def test_without_a_board_it_is_its_own_matter(service: Any) -> None:
    service.board = None
    assert reasons(service) == []
    service.metrics.done("churn", "native", 200, 0.1)
    reply = ask(service, "/metrics")
    assert (reply.status, reply.content_type) == (200, CONTENT_TYPE)
    assert b'sereno_requests_total{model="churn",protocol="native",status="200"} 1\n' in reply.body


def test_the_metrics_of_the_worker_that_is_asked_are_not_a_second_old(service: Any, board: Board) -> None:
    other = Metrics()
    other.done("churn", "native", 200, 0.1)
    other.flush(board, 2)
    other.close()
    for count in (2, 3):
        service.metrics.done("churn", "native", 200, 0.1)
        line = f'sereno_requests_total{{model="churn",protocol="native",status="200"}} {count}\n'
        assert line.encode() in ask(service, "/metrics").body


def test_what_others_keep_is_counted(service: Any) -> None:
    turns, cycle = [1, 2], SimpleNamespace(response_complete=False)
    service.connections = {
        SimpleConnection(turns=turns, cycle=None, pipeline=[]),
        SimpleConnection(turns=[], cycle=cycle, pipeline=[1]),
        SimpleConnection(turns=[], cycle=SimpleNamespace(response_complete=True), pipeline=[]),
        object(),  # a WebSocket
    }
    service.access.dropped = 3
    watch(service)
    service.guard.check(b"/predict", b"localhost", b"Bearer wrong")
    text = ask(service, "/metrics").body.decode()
    for line in (
        'sereno_refused_requests_total{reason="key"} 1',
        'sereno_refused_requests_total{reason="host"} 0',
        "sereno_access_log_dropped_lines_total 3",
        "sereno_connections 4",
        "sereno_requests_in_flight 4",
        'sereno_log_lag_seconds{model="churn"} 1.5',
        'sereno_log_dropped_rows_total{model="churn"} 7',
        'sereno_workers{state="ready"} 2',
    ):
        assert f"{line}\n" in text


class SimpleConnection:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


# What is published


def series(service: Any, name: str) -> dict[str, float]:
    found = re.findall(rf'^{name}{{model="(.*)"}} (.*)$', ask(service, "/metrics").body.decode(), re.MULTILINE)
    return {model: float(number) for model, number in found}


@pytest.mark.parametrize("alone", [True, False])
def test_metrics_tell_what_is_published_of_every_model(service: Any, tmp_path: Path, alone: bool) -> None:
    if alone:
        service.board = None
    now = datetime.now(UTC)
    assert series(service, "sereno_last_success_timestamp") == {}
    for model, hours in (("churn", 2), ("elsewhere", 30)):
        then = now - timedelta(hours=hours)
        write_status(
            tmp_path, Status(model=model, last_success_at=now, version=1, data_date=then.date(), data_time=then)
        )
    write_status(tmp_path, Status(model="withdrawn", last_success_at=now))  # nothing is served of it
    (status_folder(tmp_path) / "torn.json").write_bytes(b'{"format":1,')
    for _ in range(2):
        success = series(service, "sereno_last_success_timestamp")
        assert success == {m: pytest.approx(now.timestamp()) for m in ("churn", "elsewhere", "withdrawn")}
        assert series(service, "sereno_freshness_seconds") == {
            "churn": pytest.approx(7200, abs=60),
            "elsewhere": pytest.approx(108_000, abs=60),
        }
