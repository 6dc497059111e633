"""Who is let in by a real server, asked byte by byte: no key, wrong keys, other names, every method, paths with tricks."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from sereno.serve.guard import new_key
from tests.acceptance.server import PATIENCE, Server

MODEL = """
from typing import TypedDict

import numpy as np

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score)


@model.load
def load():
    return 2.0


@model.predict
def predict(weight, rows: np.ndarray) -> np.ndarray:
    return rows * weight
"""
SETTINGS = """
[models.total]
file = "total.py"
log = "off"
"""
CLOSED = """
[serve]
keys_file = "keys"
access_log = "all"
allowed_hosts = ["scores.example.com"]
"""
BODY = b'{"id":1,"x":2}'
KEY, LINE = new_key("tests")
OTHER_KEY, _ = new_key()


def project(folder: Path, settings: str) -> Path:
    folder.mkdir()
    (folder / "total.py").write_text(MODEL)
    (folder / "sereno.toml").write_text(SETTINGS + settings)
    (folder / "keys").write_text(f"# the tests' own\n{LINE}\n")
    (folder / "keys").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It wants a key, and writes down every request."""
    with Server(project(tmp_path_factory.mktemp("closed") / "shop", CLOSED)) as server:
        yield server


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """No keys: for this machine alone."""
    with Server(project(tmp_path_factory.mktemp("opened") / "shop", "")) as server:
        yield server


class Answer:
    """One answer, as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head, self.body = head.decode("latin-1").lower(), body
        self.status = int(head.split(b" ", 2)[1])

    def header(self, name: str) -> str | None:
        found = re.search(rf"^{name}: (.*)\r$", self.head, re.MULTILINE)
        return found[1] if found else None


class Wire:
    """A connection on which anything may be said."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()
        self.socket.close()

    def say(self, method: str, path: bytes, *headers: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> None:
        lines = [method.encode() + b" " + path + b" " + version, *headers]
        if body:
            lines.append(b"Content-Length: %d" % len(body))
        self.socket.sendall(b"\r\n".join([*lines, b"", b""]) + body)

    def hear(self, *, has_body: bool = True) -> Answer | None:
        """The next answer; None where the connection was closed without one."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.stream.readline()
            if not line:
                return None
            head += line
        answer = Answer(head, b"")
        if has_body:
            answer.body = self.stream.read(int(answer.header("content-length") or 0))
        return answer


def ask(server: Server, method: str, path: bytes, *headers: bytes, body: bytes = b"") -> Answer:
    with Wire(server) as wire:
        wire.say(method, path, *headers, body=body)
        answer = wire.hear(has_body=method != "HEAD")
        assert answer is not None
        return answer


HOST = b"Host: localhost"
AUTHORIZATION = b"Authorization: Bearer " + KEY.encode()
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
PATHS: Sequence[bytes] = (
    b"/",
    b"/predict",
    b"/models",
    b"/models/total/predict",
    b"/metrics",
    b"/docs",
    b"/openapi.json",
    b"/v2",
    b"/v2/models/total",
    b"/v2/models/total/infer",
    b"/v1/models/total:predict",
    b"/invocations",
    b"/execution-parameters",
    b"/nothing",
    # tricks
    b"//predict",
    b"//livez",
    b"/predict/",
    b"/predict%2f..",
    b"/%70redict",
    b"/livez/../predict",
    b"/livez/..%2fpredict",
    b"/livez%2f..%2fpredict",
    b"/livez/%2e%2e/predict",
    b"/livez;/predict",
    b"/livez/",
    b"/livez%00",
    b"/livez%0d%0a",
    b"/%6civez/../predict",
    b"/LIVEZ",
    b"/./predict",
    b"/predict?/livez",
    b"/predict#/livez",
    b"http://localhost/predict",
    b"http://localhost/livez/../predict",
    b"*",
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", [b"X-Nothing: 1", b"Authorization: Bearer " + OTHER_KEY.encode()], ids=["no", "wrong"])
def test_without_a_key_no_path_under_no_method(closed: Server, method: str, key: bytes) -> None:
    for path in PATHS:
        answer = ask(closed, method, path, HOST, key, body=BODY if method == "POST" else b"")
        assert answer.status in ({401, 400} if path == b"*" else {401}), (path, answer.head)
        if answer.status == 401:
            assert answer.header("www-authenticate") == "bearer"
        assert answer.header("location") is None
        assert b"total" not in answer.body


@pytest.mark.parametrize("path", [b"/livez", b"/readyz", b"/ping", b"/livez?x=1", b"/ping?key=/predict"])
def test_health_needs_neither_key_nor_name(closed: Server, path: bytes) -> None:
    for host in (HOST, b"Host: evil.example", b"Host: 10.0.0.1:8000"):
        assert ask(closed, "GET", path, host).status == 200
        assert ask(closed, "POST", path, host, body=BODY).status == 405


@pytest.mark.parametrize("path", [b"/predict", b"/models/total/predict", b"/models", b"/v2", b"/nothing", b"/metrics"])
def test_another_name_is_refused_key_or_not(closed: Server, opened: Server, path: bytes) -> None:
    for server in (closed, opened):
        for host in (
            b"Host: evil.example",
            b"Host: localhost.evil.example",
            b"Host: evil.example:80",
            b"Host: 10.0.0.1",
            b"Host:",
            b"X-Forwarded-Host: localhost",
            b"Host: evil.example\r\nX-Forwarded-Host: localhost",
            b"Host: evil.example\r\nForwarded: host=localhost",
            b"Host: localhost@evil.example",
            b"Host: localhost, evil.example",
        ):
            for method in ("GET", "POST"):
                answer = ask(server, method, path, host, AUTHORIZATION, body=BODY if method == "POST" else b"")
                assert answer.status == 400, (host, answer.head)
                assert b"evil" not in answer.body + answer.head.encode()


def test_two_hosts_or_two_keys_are_refused(closed: Server) -> None:
    for double in (
        [HOST, HOST, AUTHORIZATION],
        [HOST, b"Host: evil.example", AUTHORIZATION],
        [b"Host: evil.example", HOST, AUTHORIZATION],
        [HOST, AUTHORIZATION, AUTHORIZATION],
        [HOST, AUTHORIZATION, b"Authorization: Bearer x"],
        [HOST, b"Authorization: Bearer x", AUTHORIZATION],
    ):
        for method, path in (("POST", b"/predict"), ("GET", b"/models")):
            assert ask(closed, method, path, *double, body=BODY).status == 400, (path, double)


def test_the_address_in_the_first_line_does_not_count(closed: Server) -> None:
    answer = ask(closed, "POST", b"http://localhost/predict", b"Host: evil.example", AUTHORIZATION, body=BODY)
    assert answer.status == 400


def test_a_request_without_a_host_is_refused(closed: Server) -> None:
    with Wire(closed) as wire:
        wire.say("POST", b"/predict", AUTHORIZATION, body=BODY, version=b"HTTP/1.0")
        answer = wire.hear()
    assert answer is not None
    assert answer.status == 400


@pytest.mark.parametrize(
    "header",
    [
        AUTHORIZATION,
        b"authorization: bearer " + KEY.encode(),
        b"X-API-Key: " + KEY.encode(),
        b"x-api-key:" + KEY.encode() + b"  ",
    ],
)
@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:1", b"[::1]:9", b"Scores.Example.com:443"])
def test_the_key_opens(closed: Server, header: bytes, host: bytes) -> None:
    for path in (b"/predict", b"/models/total/predict"):
        answer = ask(closed, "POST", path, b"Host: " + host, header, body=BODY)
        assert (answer.status, answer.body) == (200, b'{"y":4.0}')
    assert ask(closed, "GET", b"/metrics", b"Host: " + host, header).status == 200


def test_each_request_of_a_connection_needs_the_key(closed: Server) -> None:
    with Wire(closed) as wire:
        for _ in range(3):
            wire.say("POST", b"/predict", HOST, AUTHORIZATION, body=BODY)
            answer = wire.hear()
            assert answer is not None
            assert answer.status == 200
        wire.say("POST", b"/predict", HOST, body=BODY)
        answer = wire.hear()
        assert answer is not None
        assert answer.status == 401


def test_also_where_they_come_at_once(closed: Server) -> None:
    first = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZATION
    first += b"\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    second = first.replace(AUTHORIZATION, b"X-Nothing: 1")
    for _ in range(2):  # the second time, the server has met the first one before
        with Wire(closed) as wire:
            wire.socket.sendall(first + first + second + first)
            answers = [wire.hear(), wire.hear(), wire.hear()]
            assert [a.status for a in answers if a is not None] == [200, 200, 401]


def test_a_body_that_looks_like_a_request_is_none(closed: Server) -> None:
    inner = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZATION + b"\r\nContent-Length: 14\r\n\r\n" + BODY
    with Wire(closed) as wire:
        wire.say("POST", b"/predict", HOST, body=inner)
        answer = wire.hear()
        assert answer is not None
        assert answer.status == 401
        assert wire.hear() is None  # and what follows is not read


@pytest.mark.parametrize("path", [b"/models/total/stream", b"/nothing", b"/livez"])
def test_no_websocket_without_a_key(closed: Server, path: bytes) -> None:
    upgrade = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
    upgrade.append(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    for headers in ([HOST], [b"Host: evil.example", AUTHORIZATION]):
        answer = ask(closed, "GET", path, *headers, *upgrade)
        assert answer.status in (400, 401, 403), answer.head


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://localhost.evil.example:8000"])
def test_pages_of_other_sites_get_nowhere_without_a_key(opened: Server, origin: bytes) -> None:
    origin = b"Origin: " + origin
    for method, path in (("POST", b"/predict"), ("POST", b"/models/total/predict"), ("GET", b"/models")):
        answer = ask(opened, method, path, HOST, origin, b"Content-Type: text/plain", body=BODY)
        assert answer.status == 403
        assert answer.header("access-control-allow-origin") is None
    upgrade = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
    upgrade.append(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    assert ask(opened, "GET", b"/models/total/stream", HOST, origin, *upgrade).status == 403
    assert ask(opened, "POST", b"/predict", HOST, b"Origin: http://localhost:3000", body=BODY).status == 200


def test_a_slash_at_the_end_is_no_way_to_be_sent_elsewhere(closed: Server) -> None:
    for path in (b"/predict/", b"/models/", b"//evil.example/..", b"/docs/"):
        answer = ask(closed, "GET", path, HOST, AUTHORIZATION)
        assert answer.header("location") is None, answer.head
        assert answer.status in (200, 404, 405)


def test_errors_say_nothing_of_the_inside(closed: Server) -> None:
    for method, path, body in (
        ("POST", b"/predict", b'{"id":"secret-value","x":2}'),
        ("POST", b"/predict", b"\xff"),
        ("POST", b"/predict", b'{"id":1,"x":' + b"[" * 500),
        ("GET", b"/secret-value", b""),
        ("POST", b"/v2/models/secret-value/infer", b"{}"),
        ("POST", b"/invocations", b'{"secret-value":1}'),
    ):
        answer = ask(closed, method, path, HOST, AUTHORIZATION, body=body)
        assert 400 <= answer.status < 500, answer.head
        text = answer.body.decode()
        assert not re.search(r"secret-value|Traceback|\.py\b|/tmp|line \d", text), text


# What is written down


def lines_of(server: Server) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]


def test_each_request_has_a_line_and_its_id(closed: Server) -> None:
    own = ask(closed, "POST", b"/predict", HOST, AUTHORIZATION, b"X-Request-ID: mine-1._", body=BODY)
    assert own.header("x-request-id") == "mine-1._"
    ids = ["mine-1._"]
    for path in (b"/predict", b"/models?who=secret-query", b"/livez"):
        answer = ask(closed, "GET", path, HOST, AUTHORIZATION)
        ids.append(answer.header("x-request-id") or "")
    refused = ask(closed, "POST", b"/predict", HOST, body=BODY)
    ids.append(refused.header("x-request-id") or "")
    assert len(set(ids)) == 5
    assert all(re.fullmatch(r"[a-z0-9._-]{1,64}", one) for one in ids)
    closed.until(lambda: set(ids) <= {line.get("request_id") for line in lines_of(closed)}, "write its lines")
    by_id = {line["request_id"]: line for line in lines_of(closed)}
    own_line = by_id["mine-1._"]
    assert {k: own_line[k] for k in ("method", "path", "protocol", "model", "status", "rows", "bytes", "client")} == {
        "method": "POST",
        "path": "/predict",
        "protocol": "native",
        "model": "total",
        "status": 200,
        "rows": 1,
        "bytes": len(own.body),
        "client": "127.0.0.1",
    }
    assert [by_id[one]["status"] for one in ids[1:]] == [405, 200, 200, 401]
    assert [by_id[one]["path"] for one in ids[1:]] == ["/predict", "/models", "/livez", "/predict"]
    assert all(0 <= float(str(by_id[one]["seconds"])) < PATIENCE for one in ids)
    assert "secret-query" not in closed.log


@pytest.mark.parametrize(
    "sent", [b"two words", b"x" * 65, b'quo"te', b"\xff\xfe", b"a;b", b"../..", b"<script>", b'{"status":200}']
)
def test_an_id_that_is_none_is_replaced(closed: Server, sent: bytes) -> None:
    for method, path in (("POST", b"/predict"), ("GET", b"/models")):
        answer = ask(closed, method, path, HOST, AUTHORIZATION, b"X-Request-ID: " + sent, body=BODY)
        given = answer.header("x-request-id")
        assert given is not None
        if sent == b"../..":
            continue  # dots alone are fine: it is never a path
        assert re.fullmatch(r"[a-z0-9._-]{1,64}", given)
        assert given != sent.decode("latin-1").lower()


def test_nothing_that_is_sent_makes_a_line_of_its_own(closed: Server) -> None:
    forged = b'%0d%0a{"request_id":"forged","status":200}'
    ids = []
    for path in (b"/x" + forged, b"/\xc2\x9b2J", b'/"}{"request_id":"forged"}'):
        answer = ask(closed, "GET", path, HOST, AUTHORIZATION, b"User-Agent: x", b"Referer: " + forged)
        if answer.status != 400:
            ids.append(answer.header("x-request-id"))
    closed.until(lambda: set(ids) <= {line.get("request_id") for line in lines_of(closed)}, "write its lines")
    assert "forged" not in {line["request_id"] for line in lines_of(closed)}
    assert all(line.isprintable() for line in closed.log.splitlines())


def test_no_key_is_in_the_log_or_the_list_of_processes(closed: Server) -> None:
    key = KEY.encode()
    ask(closed, "POST", b"/predict", HOST, AUTHORIZATION, body=BODY)
    ask(closed, "POST", b"/predict?key=" + key, HOST, body=BODY)
    ask(closed, "GET", b"/" + key + b"/predict", HOST, b"X-Request-ID: " + key)
    ask(closed, "GET", b"/models", HOST, b"Authorization: Basic " + key, b"X-Request-ID: last-of-the-keys")
    ask(closed, "POST", b"/predict", HOST, AUTHORIZATION, body=b'{"id":"' + key + b'"}')
    closed.wait_for("last-of-the-keys")
    processes = [psutil.Process(closed.pid), *psutil.Process(closed.pid).children(recursive=True)]
    for process in processes:
        shown = " ".join(process.cmdline()) + json.dumps(process.environ())
        assert KEY not in shown
    assert KEY not in closed.log
    assert KEY not in httpx.get(f"{closed.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text


def test_refusals_are_counted(closed: Server) -> None:
    def refused(reason: str) -> float:
        text = httpx.get(f"{closed.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        found = re.search(rf'^sereno_refused_requests_total{{reason="{reason}"}} (\d+)$', text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = refused("key"), refused("host")
    ask(closed, "POST", b"/predict", HOST, body=BODY)
    ask(closed, "GET", b"/models", HOST)
    ask(closed, "GET", b"/models", b"Host: evil.example")
    assert (refused("key"), refused("host")) == (before[0] + 2, before[1] + 1)


# When it starts


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", r"The keys file .* has no key"),
        (f"{KEY}\n", r"line 1 is no hash of a key.*the key itself does not belong there"),
        (None, r"The keys file .* cannot be read: No such file"),
    ],
)
def test_keys_that_cannot_be_read_do_not_open_the_server(tmp_path: Path, content: str | None, told: str) -> None:
    folder = project(tmp_path / "shop", CLOSED)
    if content is None:
        (folder / "keys").unlink()
    else:
        (folder / "keys").write_text(content)
    with Server(folder, ready=False) as server:
        assert server.process.wait(PATIENCE) == 2
        assert server.wait_for(told)
    assert KEY not in server.log


def test_keys_come_from_a_variable_too(tmp_path: Path) -> None:
    with Server(project(tmp_path / "shop", ""), SERENO_SECRET_API_KEYS=LINE) as server:
        assert ask(server, "POST", b"/predict", HOST, body=BODY).status == 401
        assert ask(server, "POST", b"/predict", HOST, AUTHORIZATION, body=BODY).status == 200
