"""A proxy before an object store that misbehaves as stores and networks do: by rules, or by a schedule from a seed.

It forwards what it is sent byte by byte, as the `Host` of a request is signed, too.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal[
    "500",  # refused, not done
    "503",  # the same, by a machine in between: no XML
    "slow-down",  # 503 as S3 says it
    "silent",  # no answer, not done
    "silent-after",  # done, no answer
    "reset",  # the connection is cut, not done
    "reset-after",  # done, and cut before the answer: a lost acknowledgement
    "truncated",  # done, and cut within the answer
    "conflict",  # 409 for a conditional write: S3's ConditionalRequestConflict, not done
    "refused",  # 412 for a conditional write, not done
    "expired",  # 400: the token has expired
    "denied",  # 403
    "skewed",  # 403: the clock
    "elsewhere",  # 301: the bucket is in another region
    "500-after",  # done, and an error all the same
    "forgotten",  # 404: an upload in parts is not known (any more)
]
PASSING: tuple[Fault, ...] = (  # what a client gets over by trying again
    *("500", "503", "slow-down", "silent", "silent-after", "reset", "reset-after"),
    *("truncated", "conflict", "500-after"),
)
CONDITIONAL: tuple[Fault, ...] = ("conflict", "refused")  # make sense for conditional writes alone
ANSWERS: dict[Fault, tuple[str, str]] = {
    "500": ("500 Internal Server Error", "InternalError"),
    "500-after": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", ""),
    "forgotten": ("404 Not Found", "NoSuchUpload"),
    "slow-down": ("503 Slow Down", "SlowDown"),
    "conflict": ("409 Conflict", "ConditionalRequestConflict"),
    "refused": ("412 Precondition Failed", "PreconditionFailed"),
    "expired": ("400 Bad Request", "ExpiredToken"),
    "denied": ("403 Forbidden", "AccessDenied"),
    "skewed": ("403 Forbidden", "RequestTimeTooSkewed"),
    "elsewhere": ("301 Moved Permanently", "PermanentRedirect"),
}
DONE_FIRST: tuple[Fault, ...] = ("silent-after", "reset-after", "truncated", "500-after")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks."""

    method: str
    target: str  # path and query
    headers: dict[str, str]  # by their names in lower case
    raw: bytes

    @property
    def is_conditional_write(self) -> bool:
        return self.method == "PUT" and bool({"if-match", "if-none-match"} & self.headers.keys())


Decide = Callable[[Request], Fault | None]


@dataclass(kw_only=True)
class Rule:
    """The requests from the `first` that fits, and `times` of them, have a fault."""

    fault: Fault
    method: str = ""  # "": any
    pattern: str = ""  # of path and query; "": any
    first: int = 1
    times: int = 1
    seen: int = 0

    def __call__(self, request: Request) -> Fault | None:
        if self.method not in ("", request.method) or not re.search(self.pattern, request.target):
            return None
        if self.fault in CONDITIONAL and not request.is_conditional_write:
            return None
        self.seen += 1
        return self.fault if self.first <= self.seen < self.first + self.times else None


@dataclass(kw_only=True)
class Schedule:
    """Faults that come as a seed has them: each request has one with some probability, never more than `in_a_row`."""

    seed: int
    faults: Sequence[Fault] = PASSING
    probability: float = 0.3
    in_a_row: int = 3

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._row = 0

    def __call__(self, request: Request) -> Fault | None:
        fits = [f for f in self.faults if f not in CONDITIONAL or request.is_conditional_write]
        drawn, fault = self._random.random(), self._random.choice(fits)
        if drawn >= self.probability or self._row >= self.in_a_row:
            self._row = 0
            return None
        self._row += 1
        return fault


def rules(*of: Rule) -> Decide:
    """The first rule that has a fault for a request; all of them count it."""
    return lambda request: next((fault for fault in [rule(request) for rule in of] if fault), None)


@dataclass(kw_only=True)
class FaultyProxy:
    """One proxy. `decide` may be changed at any time; `log` has each request with its fault."""

    address: tuple[str, int]  # the store's
    url: str = ""
    decide: Decide = field(default=lambda request: None)
    log: list[tuple[str, str, Fault | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    def injected(self) -> list[Fault]:
        with self._lock:
            return [fault for _, _, fault in self.log if fault]

    def forget(self) -> None:
        with self._lock:
            self.log.clear()

    @contextlib.contextmanager
    def having(self, decide: Decide) -> Iterator[None]:
        """Meanwhile, requests have the faults that this says."""
        self.forget()
        before, self.decide = self.decide, decide
        try:
            yield
        finally:
            self.decide = before

    def serve(self, client: socket.socket) -> None:
        """All requests of one connection."""
        client.settimeout(60)
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while (request := _read_request(client, buffer)) is not None:
                with self._lock:
                    fault = self.decide(request)
                    self.log.append((request.method, request.target, fault))
                if not self._answer(client, request, fault):
                    return

    def _answer(self, client: socket.socket, request: Request, fault: Fault | None) -> bool:
        """Whether the connection goes on."""
        answer = b""
        if fault is None or fault in DONE_FIRST:
            answer = self._forwarded(request)
        if fault in ("reset", "reset-after"):
            _reset(client)
            return False
        if fault in ("silent", "silent-after"):
            return self._stay_silent(client)
        if fault == "truncated":
            head, _, body = answer.partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2] if body else answer[: len(answer) // 2])
            _reset(client)
            return False
        client.sendall(answer if fault is None else _refusal(request, fault))
        return True

    def _forwarded(self, request: Request) -> bytes:
        with socket.create_connection(self.address, timeout=30) as store:
            store.sendall(request.raw)
            return _read_answer(store, request.method)

    def _stay_silent(self, client: socket.socket) -> bool:
        """Until the client has had enough of it."""
        client.settimeout(0.05)
        while not self._ended.is_set():
            try:
                if not client.recv(65_536):
                    break
            except TimeoutError:
                continue
        return False


@contextlib.contextmanager
def faulty_proxy(url: str) -> Iterator[FaultyProxy]:
    """A proxy on a port of its own before the store of this URL, with no faults yet."""
    host, _, port = url.removeprefix("http://").partition(":")
    proxy = FaultyProxy(address=(host, int(port)))

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            proxy.serve(self.request)

    with _Server(("127.0.0.1", 0), Connection) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield proxy
        finally:
            proxy._ended.set()
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """What goes wrong with a connection is what the proxy is for."""


def _refusal(request: Request, fault: Fault) -> bytes:
    status, code = ANSWERS[fault]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>'.encode() if code else b""
    kind = "application/xml" if code else "text/plain"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if request.method == "HEAD" else head + body


def _reset(client: socket.socket) -> None:
    """Cut the connection with an RST, as a machine that goes away does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _read_request(client: socket.socket, buffer: bytearray) -> Request | None:
    """The next request; None: the connection has ended."""
    if not _fill(client, buffer, lambda: b"\r\n\r\n" in buffer):
        return None
    end = buffer.index(b"\r\n\r\n") + 4
    first, headers = _head(bytes(buffer[:end]))
    method, target, _ = first.split(" ", 2)
    if "expect" in headers:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    whole = _end_of_body(client, buffer, end, headers, no_length_means=0)
    raw = bytes(buffer[:whole])
    del buffer[:whole]
    return Request(method=method, target=target, headers=headers, raw=raw)


def _read_answer(store: socket.socket, method: str) -> bytes:
    buffer = bytearray()
    _fill(store, buffer, lambda: b"\r\n\r\n" in buffer)
    end = buffer.index(b"\r\n\r\n") + 4
    first, headers = _head(bytes(buffer[:end]))
    status = int(first.split(" ")[1])
    if status == 100:
        raise OSError("the store answers before it has all")
    if method == "HEAD" or status in (204, 304):
        return bytes(buffer[:end])
    return bytes(buffer[: _end_of_body(store, buffer, end, headers, no_length_means=None)])


def _head(raw: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _end_of_body(
    peer: socket.socket, buffer: bytearray, start: int, headers: dict[str, str], no_length_means: int | None
) -> int:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        at = start
        while True:
            _need(peer, buffer, lambda at=at: b"\r\n" in buffer[at:])
            line_end = buffer.index(b"\r\n", at)
            size = int(bytes(buffer[at:line_end]).split(b";")[0], 16)
            at = line_end + 2 + size + 2
            _need(peer, buffer, lambda at=at: len(buffer) >= at)
            if size == 0:
                return at
    if "content-length" not in headers and no_length_means is None:
        _fill(peer, buffer, lambda: False)
        return len(buffer)
    end = start + int(headers.get("content-length", 0))
    _need(peer, buffer, lambda: len(buffer) >= end)
    return end


def _need(peer: socket.socket, buffer: bytearray, enough: Callable[[], bool]) -> None:
    if not _fill(peer, buffer, enough):
        raise OSError("the connection ended within a message")


def _fill(peer: socket.socket, buffer: bytearray, enough: Callable[[], bool]) -> bool:
    """Read until there is enough. Whether there is."""
    while not enough():
        some = peer.recv(1 << 18)
        if not some:
            return False
        buffer += some
    return True
