"""The fast lane over raw sockets: what a client may send, and in what pieces. Its answers are those of the application."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sereno.serve.app import App
from sereno.serve.lane import Lane
from sereno.serve.options import Options
from sereno.serve.service import open_service

FAST = """
from typing import Annotated, TypedDict
import numpy as np
from annotated_types import Ge
from sereno import Key, Model

class Row(TypedDict):
    customer_id: Key[int]
    a: Annotated[float, Ge(0)]
    b: float | None

class Out(TypedDict):
    total: Annotated[float, Ge(0)]

model = Model("fast", inputs=Row, outputs=Out)

@model.load
def load():
    return None

@model.predict
def predict(loaded, rows: np.ndarray) -> np.ndarray:
    if (rows[:, 0] == 13).any():
        raise ValueError("thirteen")
    return rows[:, 0] + np.nan_to_num(rows[:, 1])
"""
SLOW = (
    FAST.replace('"fast"', '"slow"')
    .replace("    if (rows", "    time.sleep(0.01)\n    if (rows")
    .replace("import numpy", "import time\nimport numpy")
)


class Servers:
    """The same application twice: behind the lane, and behind uvicorn's own protocol."""

    def __init__(self, folder: Path, overrides: dict[str, str]) -> None:
        files = []
        for name, text in (("fast", FAST), ("slow", SLOW)):  # names of their own: a process imports a name once
            files.append(folder / f"{name}_{folder.name.replace('-', '_')}.py")
            files[-1].write_text(text)
        more = {"serve.access_log": "off", "models.fast.log": "off", "models.slow.log": "off", **overrides}
        self._options = Options(files=files, home=folder, overrides=more)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self.lane_port = self.plain_port = 0
        self.state = ServerState()

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        app = App(lambda: open_service(self._options))
        self.service = app.opened()
        self.service.connections = self.state.connections
        self.state.default_headers = [(b"date", b"today")]
        listeners = []
        for http, port in ((Lane, "lane_port"), (HttpToolsProtocol, "plain_port")):
            state = self.state if http is Lane else ServerState()
            state.default_headers = self.state.default_headers
            config = Config(app, http=http, lifespan="off", log_config=None, access_log=False, proxy_headers=False)
            config.load()

            def made(config: Config = config, state: ServerState = state, http: Any = http) -> Any:
                return http(config=config, server_state=state, app_state={}, _loop=self._loop)

            listener = await self._loop.create_server(made, "127.0.0.1", 0)
            listeners.append(listener)
            setattr(self, port, listener.sockets[0].getsockname()[1])
        self._started.set()
        await self._ended.wait()
        for listener in listeners:
            listener.close()
        await app.close()

    def __enter__(self) -> Servers:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def on_loop(self, call: Any) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (call(), done.set()))
        assert done.wait(10)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("lane"), {"serve.max_body_bytes": "2000"}) as servers:
        yield servers


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        yield sock


def request(
    body: bytes | dict[str, Any] | list[Any],
    path: str = "/models/fast/predict",
    *,
    method: str = "POST",
    request_id: str | None = "one",
    headers: str = "",
    length: int | None = None,
) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    id_line = f"X-Request-ID: {request_id}\r\n" if request_id else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{id_line}{headers}Content-Length: {size}\r\n\r\n"
    return head.encode() + content


def answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """So many replies, in the order in which they come; fewer where the connection is closed."""
    found = []
    data = b""
    while len(found) < count:
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return found
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        status = int(lines[0].split()[1])
        if status == 100:
            continue
        size = int(headers["content-length"])
        while len(data) < size:
            data += sock.recv(65536)
        found.append((status, headers, data[:size]))
        data = data[size:]
    assert not data
    return found


def reply(port: int, sent: bytes) -> bytes:
    """The bytes of one reply."""
    with connected(port) as sock:
        sock.sendall(sent)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        size = int(re.search(rb"content-length: (\d+)", data)[1])  # type: ignore[index]
        while len(data) < data.index(b"\r\n\r\n") + 4 + size:
            data += sock.recv(65536)
        return data


def total(a: float, b: float | None = 1.0) -> dict[str, Any]:
    return {"a": a, "b": b}


def v2(a: float) -> dict[str, Any]:
    tensors = [("a", a), ("b", 1.0)]
    return {"inputs": [{"name": n, "shape": [1], "datatype": "FP64", "data": [v]} for n, v in tensors]}


SAME = [
    request(total(1)),
    request(total(1), "/models/slow/predict"),
    request([total(1), total(2, None)]),
    request([]),
    request(b" \n" + json.dumps(total(3)).encode()),
    request({"a": -1, "b": "x"}),
    request([total(1), {"a": -1, "b": "x"}, 5]),
    request(b"{"),
    request(b""),
    request(b"7"),
    request(b"\xff"),
    request({"a": 1, "b": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}),
    request(total(1), "/nowhere"),
    request(total(1), method="GET"),
    request(total(1), method="PUT"),
    request(total(1), "/models/fast/predict?x=1"),
    request(total(1), "/models/other/predict"),
    request(total(1), headers="Host: localhost\r\n"),
    request(total(1), headers="Content-Encoding: br\r\n"),
    request(total(1), headers="Origin: http://elsewhere.example\r\n"),
    request(total(1)).replace(b"Host: localhost", b"Host: elsewhere.example"),
    request(v2(2), "/v2/models/fast/infer"),
    request({"inputs": []}, "/v2/models/fast/infer"),
    request({"instances": [total(2)]}, "/v1/models/fast:predict"),
    request({"instances": [{"a": -1}]}, "/v1/models/fast:predict"),
    request(b"x" * 2001),
    request(total(1), "/models"),
    request(total(1)).replace(b"HTTP/1.1", b"HTTP/1.0"),
    request(total(1), headers="Connection: close\r\n"),
    request(total(1), headers="Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    request(total(1), headers="X-Request-ID: two\r\n"),
]


@pytest.mark.parametrize("sent", SAME, ids=range(len(SAME)))
def test_the_lane_answers_as_the_application_does(servers: Servers, sent: bytes) -> None:
    lane, plain = reply(servers.lane_port, sent), reply(servers.plain_port, sent)
    assert lane == plain
    assert lane.startswith(b"HTTP/1.1 ")
    # without an id of the caller's, the lane keeps the head, and knows it the second time
    sent = sent.replace(b"X-Request-ID: one\r\n", b"")
    for _ in range(2):
        found = [re.sub(rb"x-request-id: [^\r]+", b"", reply(p, sent)) for p in (servers.lane_port, servers.plain_port)]
        assert found[0] == found[1]


def test_ids_of_errors_are_all_that_differs_between_two_failures(servers: Servers) -> None:
    sent = request(total(13))
    lane, plain = (re.sub(rb"[0-9a-f]{12}", b"ID", reply(p, sent)) for p in (servers.lane_port, servers.plain_port))
    assert lane == plain
    assert b"500 Internal Server Error" in lane
    assert b"thirteen" not in lane


def test_a_request_may_be_split_anywhere(servers: Servers) -> None:
    sent = request(total(4), request_id=None, headers="X-Other: some\r\n")
    with connected(servers.lane_port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(1, len(sent)):
            sock.sendall(sent[:position])
            time.sleep(0.0005)  # so that it arrives as two; where it does not, nothing is lost but the case
            sock.sendall(sent[position:])
            ((status, _, body),) = answers(sock, 1)
            assert (status, body) == (200, b'{"total":5.0}')


def test_a_known_head_may_come_before_its_body(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for a in range(20, 70):
            head, _, body = request(total(a), request_id=None).partition(b"\r\n\r\n")
            for piece in (head + b"\r\n\r\n", body[:5], body[5:] + request(total(7), request_id=None)):
                sock.sendall(piece)
                time.sleep(0.0005)
            assert [one[2] for one in answers(sock, 2)] == [b'{"total":%.1f}' % (a + 1), b'{"total":8.0}']


def test_a_request_may_come_byte_by_byte(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(total(4)):
            sock.sendall(bytes([byte]))
        assert answers(sock, 1)[0][2] == b'{"total":5.0}'


def test_a_client_that_has_sent_all_still_gets_its_answers(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(request(total(4), "/models/slow/predict") + request(total(5)))
        sock.shutdown(socket.SHUT_WR)
        assert [body for _, _, body in answers(sock, 2)] == [b'{"total":5.0}', b'{"total":6.0}']
        assert sock.recv(1) == b""


def test_pipelined_requests_are_answered_in_order(servers: Servers) -> None:
    paths = [
        "/models/fast/predict",
        "/models/slow/predict",
        "/models/fast/predict?",
        "/models",
        "/v2/models/fast/infer",
    ]
    sent, expected = b"", []
    for i in range(60):
        path = paths[i * 7 % 5]
        body = v2(i + 100) if "v2" in path else total(i + 100)
        sent += request(body, path, method="GET" if path == "/models" else "POST", request_id=f"n{i}")
        expected.append(f"n{i}")
    with connected(servers.lane_port) as sock:
        sock.sendall(sent)
        found = answers(sock, 60)
    assert [headers["x-request-id"] for _, headers, _ in found] == expected
    for i, (status, _, body) in enumerate(found):
        assert status == 200
        if paths[i * 7 % 5] != "/models":
            assert str(float(i + 101)).encode() in body


def test_a_body_may_come_in_chunks(servers: Servers) -> None:
    head = b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps(total(4)).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    with connected(servers.lane_port) as sock:
        for _ in range(3):
            sock.sendall(head + chunks)
            assert answers(sock, 1)[0][2] == b'{"total":5.0}'
        sock.sendall(head + b"".join(b"64\r\n" + b"x" * 100 + b"\r\n" for _ in range(30)) + b"0\r\n\r\n")
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    "sent",
    [
        request(b"{}", headers="Transfer-Encoding: chunked\r\n"),
        b"GARBAGE\r\n\r\n",
        b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /models/fast/predict HTTP/1.1\r\nHost : localhost\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2x\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00",
    ],
    ids=["both lengths", "garbage", "negative", "twice", "blank", "no number", "TLS"],
)
def test_what_is_no_request_is_told_and_closed(servers: Servers, sent: bytes) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(sent)
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (400, "close")
        assert sock.recv(1) == b""


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_with_a_body_is_no_websocket(servers: Servers, method: str) -> None:
    sent = request(total(1), method=method, headers="Connection: Upgrade\r\nUpgrade: websocket\r\n")
    with connected(servers.lane_port) as sock:
        sock.sendall(sent)
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (400 if method == "POST" else 405, "close")
        assert sock.recv(1) == b""


def test_a_websocket_does_not_overtake_a_reply(servers: Servers) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    stream = f"GET /models/fast/stream HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode()
    for before in (request(total(4), "/models/slow/predict"), request(total(4), "/models/slow/predict?")):
        with connected(servers.lane_port) as sock:
            sock.sendall(before + stream)
            assert [status for status, _, _ in answers(sock, 2)] == [200, 404]
            assert sock.recv(1) == b""


def test_answers_before_a_broken_request_still_come(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(request(total(4), "/models/slow/predict") + b"GARBAGE\r\n\r\n")
        assert [status for status, _, _ in answers(sock, 2)] == [200, 400]


def test_too_large_a_body_is_refused_before_it_is_sent(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(request(b"", length=2001))
        status, headers, body = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (413, "close")
        assert b"2,000 bytes" in body


def test_headers_have_an_end(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(200):
                sock.sendall(b"X-Long: " + b"x" * 1000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it was closed while we still sent
        assert answers(sock, 1)[0][0] == 431


def test_a_client_may_ask_whether_to_go_on(servers: Servers) -> None:
    body = json.dumps(total(4)).encode()
    with connected(servers.lane_port) as sock:
        sock.sendall(request(b"", headers="Expect: 100-continue\r\n", length=len(body)))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(body)
        assert answers(sock, 1)[0][2] == b'{"total":5.0}'


def test_a_head_with_bare_line_feeds_is_never_taken_for_another(servers: Servers) -> None:
    # were its end looked for at the first CR LF CR LF, the body would be taken for headers
    odd = b"POST /models/fast/predict HTTP/1.1\nHost: localhost\nContent-Length: 22\n\n" + b'{"a":4,"b":1, "c":"\r\n'
    with connected(servers.lane_port) as sock:
        sock.sendall(odd + b"\r\n")
        sock.settimeout(2)
        first = sock.recv(65536)
    for head in servers.service.heads:
        assert head.count(b"\n") == head.count(b"\r\n")
    assert first.startswith((b"HTTP/1.1 400", b"HTTP/1.1 422"))


def test_the_same_head_means_the_same_whatever_the_body(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        for a in range(10, 99):
            sock.sendall(request(total(a + 0.5), request_id=None))
            assert answers(sock, 1)[0][2] == b'{"total":%.1f}' % (a + 1.5)
    assert len(servers.service.heads) < 100


def test_many_short_requests_at_once_are_no_long_header(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sent = request(total(4), request_id=None) * 3000
        threading.Thread(target=sock.sendall, args=[sent]).start()
        found = [status for status, _, _ in answers(sock, 3000)]
        assert len(found) == 3000
        assert set(found) <= {200, 503}  # more may be sent at once than may wait


def test_a_request_that_is_dropped_costs_nobody_else_an_answer(servers: Servers) -> None:
    """Behind one that closes its connection, or that is broken: their rows are in a batch with those of others."""
    slow, path = request(total(4), "/models/slow/predict"), "/models/slow/predict"
    for rest in (
        slow.replace(b"Host", b"Connection: close\r\nHost") + slow,
        slow + request(b"", "/models", method="GET") + b"X\r\n\r\n",
    ):
        with connected(servers.lane_port) as first, connected(servers.lane_port) as evil:
            first.sendall(slow)
            evil.sendall(rest)
            others = [socket.create_connection(("127.0.0.1", servers.lane_port), timeout=30) for _ in range(5)]
            for a, sock in enumerate(others):
                sock.sendall(request(total(a + 20), path))
            for a, sock in enumerate(others):
                assert answers(sock, 1)[0][2] == b'{"total":%.1f}' % (a + 21)
                sock.close()


def test_a_trailer_is_no_way_in(servers: Servers) -> None:
    head = (
        b"POST /models/fast/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    )
    with connected(servers.lane_port) as sock:
        sock.sendall(head)
        try:
            for _ in range(2000):
                sock.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it was closed while we still sent
        assert answers(sock, 1)[0][0] == 413


def test_a_refusal_reaches_a_client_that_still_sends(servers: Servers) -> None:
    with connected(servers.lane_port) as sock:
        sock.sendall(request(b"", length=3_000_000))
        for _ in range(30):
            sock.sendall(b"x" * 10_000)
        assert answers(sock, 1)[0][0] == 413


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    overrides = {
        "serve.header_timeout_seconds": "0.5",
        "serve.request_timeout_seconds": "1",
        "serve.keep_alive_seconds": "1",
    }
    with Servers(tmp_path_factory.mktemp("hasty"), overrides) as servers:
        yield servers


def test_half_a_head_is_not_waited_for(hasty: Servers) -> None:
    with connected(hasty.lane_port) as sock:
        sock.sendall(b"POST /models/fast/predict HTTP/1.1\r\nHost: loc")
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (408, "close")


@pytest.mark.parametrize("path", ["/models/fast/predict", "/models/fast/predict?application"])
def test_half_a_body_is_not_waited_for(hasty: Servers, path: str) -> None:
    with connected(hasty.lane_port) as sock:
        sock.sendall(
            request(json.dumps(total(1)).encode() + b" " * 70, path, request_id=None)
        )  # so that its head is known
        answers(sock, 1)
        sock.sendall(request(b"{", path, request_id=None, length=88))
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (408, "close")
        assert sock.recv(1) == b""


def test_a_known_head_gives_no_more_time_for_its_body(hasty: Servers) -> None:
    sent = request(total(3), request_id=None)
    with connected(hasty.lane_port) as sock:
        sock.sendall(sent)
        answers(sock, 1)
        for byte in sent[:-20]:  # all but its end takes longer than a request may
            try:
                sock.sendall(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.03)
        assert answers(sock, 1)[0][0] == 408


def test_a_quiet_connection_is_closed(hasty: Servers) -> None:
    with connected(hasty.lane_port) as sock:
        sock.sendall(request(total(1)))
        answers(sock, 1)
        assert sock.recv(1) == b""
    with connected(hasty.lane_port) as sock:
        assert sock.recv(1) == b""


def test_a_client_that_does_not_read_is_dropped(hasty: Servers) -> None:
    """It can have no more in memory here than the buffers of its connection and what one read brings."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", hasty.lane_port))
        sent = request([total(i) for i in range(200)]) * 20
        is_dropped = False
        try:
            while True:
                sock.sendall(sent)
        except (ConnectionResetError, BrokenPipeError):
            is_dropped = True
        assert is_dropped  # and not the other way for a timeout of ours


def test_an_idle_connection_gets_one_last_answer_when_the_server_drains(tmp_path: Path) -> None:
    with Servers(tmp_path, {}) as servers, connected(servers.lane_port) as idle, connected(servers.lane_port) as busy:
        for sock in (idle, busy):
            sock.sendall(request(total(1)))
            assert "connection" not in answers(sock, 1)[0][1]
        busy.sendall(request(total(1), "/models/slow/predict"))
        servers.on_loop(servers.service.draining.set)
        servers.on_loop(lambda: [c.shutdown() for c in list(servers.state.connections)])
        for sock, sent in ((busy, b""), (idle, request(total(2)))):
            sock.sendall(sent)
            status, headers, _ = answers(sock, 1)[0]
            assert (status, headers["connection"]) == (200, "close")
            assert sock.recv(1) == b""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(
            st.integers(0, 5),  # the connection
            st.sampled_from(["fast", "slow", "list", "v2", "application"]),
            st.booleans(),  # whether it goes at once, or with the connection's next
        ),
        min_size=1,
        max_size=60,
    )
)
def test_no_caller_ever_gets_anothers_row(servers: Servers, plan: list[tuple[int, str, bool]]) -> None:
    socks = [socket.create_connection(("127.0.0.1", servers.lane_port), timeout=30) for _ in range(6)]
    try:
        held = [b""] * 6
        expected: list[list[tuple[str | None, list[float]]]] = [[] for _ in range(6)]
        for number, (caller, kind, at_once) in enumerate(plan):
            a = 1000.0 * (number + 1) + caller
            values = [a, a + 0.25, a + 0.5] if kind == "list" else [a]
            path = {
                "slow": "/models/slow/predict",
                "v2": "/v2/models/fast/infer",
                "application": "/models/fast/predict?",
            }
            body: Any = v2(a) if kind == "v2" else [total(v) for v in values] if kind == "list" else total(a)
            name = f"c{caller}-{number}" if number % 3 == 0 else None  # without one, the lane keeps the head
            held[caller] += request(body, path.get(kind, "/models/fast/predict"), request_id=name)
            expected[caller].append((name, [v + 1 for v in values]))
            if at_once:
                socks[caller].sendall(held[caller])
                held[caller] = b""
        for caller, sock in enumerate(socks):
            sock.sendall(held[caller])
        for caller, sock in enumerate(socks):
            found = answers(sock, len(expected[caller]))
            for (name, values), (status, headers, body) in zip(expected[caller], found, strict=True):
                assert (status, headers["x-request-id"]) == (200, name or headers["x-request-id"])
                numbers = [float(n) for n in re.findall(rb"\d+\.\d+", body)]
                assert numbers == values
    finally:
        for sock in socks:
            sock.close()
