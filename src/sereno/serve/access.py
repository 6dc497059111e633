"""The access log: one JSON object a line, for each request or for those that went wrong.

    {"time":"2026-05-01T12:00:00.123Z","request_id":"8f…-2a","client":"10.0.0.7","method":"POST","path":"/predict",
     "protocol":"native","model":"credit-scoring","status":200,"rows":1,"bytes":58,"seconds":0.00021}

The query is left out, and keys are hidden, so that the log holds no secret that a caller put into an address. Lines go
out by a thread of their own, so a reader that is stuck (a full pipe) keeps no request waiting; what it did not take in
time is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from typing import Literal
from urllib.parse import unquote_to_bytes

import msgspec

from sereno.serve.guard import KEY

LOG = logging.getLogger("sereno.serve")

Mode = Literal["off", "errors", "all"]

CHUNK = 1 << 16  # bytes that are written at once
MOST_WAITING = 64  # chunks that wait for a slow reader; what comes then is dropped
MOST_ERRORS = 1_000  # lines a second in mode `errors`: a flood of refused requests does not fill the disk
PATIENCE = 2.0  # seconds that `close` waits for a slow reader

_LONGEST = 512  # bytes of a path that are shown: with all else, a line is then shorter than PIPE_BUF
_NEVER = 1_000  # no status is as high


class Line(msgspec.Struct):
    """A line of the log, in this order."""

    time: str
    request_id: str
    client: str
    method: str
    path: str
    protocol: str
    model: str
    status: int
    rows: int
    bytes: int
    seconds: float


class AccessLog:
    """One per process. `log` and `flush` are called on the event loop and never wait.

    Every process of a server writes to the same descriptor, by default its stderr; each write has whole lines only.
    """

    def __init__(self, mode: Mode | str, descriptor: int = 2) -> None:
        self.least_status = {"off": _NEVER, "errors": 400}.get(mode, 0)  # requests with a lower one get no line
        self.dropped = 0  # lines, since the start
        self._limit = MOST_ERRORS if mode == "errors" else None
        self._this_second = 0  # lines of it, in mode `errors`
        self._left_out = 0  # lines of it, beyond the limit
        self._descriptor = descriptor
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._size = 0
        self._second, self._stamp = 0, ""
        self._chunks: deque[list[bytes]] = deque()
        self._is_stuck = self._is_closing = False
        self._news = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def log(
        self,
        status: int,
        method: bytes,
        path: bytes,
        request_id: bytes,
        client: str,
        seconds: float,
        size: int,
        *,
        protocol: str = "",
        model: str = "",
        rows: int = 0,
    ) -> None:
        """A request was answered. Path as it was sent; `client` is the address without the port; `size` of the body."""
        if status < self.least_status:
            return
        if self._limit is not None:
            self._this_second += 1
            if self._this_second > self._limit:
                self._left_out += 1
                return
        line = Line(
            self._now(),
            _printable(request_id[:64]),
            client,
            _printable(method[:16]),
            _printable(_shown(path)),
            protocol,
            model,
            status,
            rows,
            size,
            round(seconds, 6),
        )
        text = self._encode(line)
        self._lines.append(text)
        self._size += len(text) + 1
        if self._size >= CHUNK:
            self._hand_over()

    def flush(self) -> None:
        """Write what is there; called once a second."""
        if self._left_out:
            self.dropped += self._left_out
            told = {"time": self._now(), "left_out": self._left_out, "limit_a_second": self._limit}
            self._lines.append(self._encode(told))
            self._left_out = 0
        self._this_second = 0
        if self._lines:
            self._hand_over()

    def close(self) -> None:
        """Write everything and stop; waits for a slow reader, but not long."""
        self.flush()
        self._is_closing = True
        if self._thread is not None:
            self._news.release()
            self._thread.join(PATIENCE)

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"

    def _hand_over(self) -> None:
        lines, self._lines, self._size = self._lines, [], 0
        if len(self._chunks) >= MOST_WAITING:
            self.dropped += len(lines)
            return
        self._chunks.append(lines)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()
        self._news.release()

    # On the writer's thread

    def _run(self) -> None:
        most = _most_at_once(self._descriptor)
        while True:
            self._news.acquire()
            while self._chunks:
                lines = self._chunks[0]  # it counts as waiting until it is written
                for part in _parts(lines, most):
                    self._write(part)
                self._chunks.popleft()
            if self._is_closing:
                return

    def _write(self, content: bytes) -> None:
        try:
            while content:
                try:
                    content = content[os.write(self._descriptor, content) :]
                except BlockingIOError:  # somebody made the descriptor so; it is not ours alone
                    select.select([], [self._descriptor], [])
        except OSError as error:  # the reader is gone, the disk is full: requests go on
            self.dropped += content.count(b"\n")
            if not self._is_stuck:
                self._is_stuck = True
                LOG.error("the access log cannot be written: %s; lines are dropped and counted", error.strerror)


def _most_at_once(descriptor: int) -> int:
    """What one write may have without the lines of two processes running into each other."""
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        is_file = False
    return CHUNK if is_file else select.PIPE_BUF


def _parts(lines: list[bytes], most: int) -> list[bytes]:
    """The lines in pieces of at most so many bytes; never less than a line."""
    parts: list[bytes] = []
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) + 1 > most:
            parts.append(b"\n".join((*piece, b"")))
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    if piece:
        parts.append(b"\n".join((*piece, b"")))
    return parts


def _shown(path: bytes) -> bytes:
    """A path without its query, as it was sent; unquoted where quotes (`sereno%5F…`) would hide a key from us alone."""
    path = path.partition(b"?")[0][: 4 * _LONGEST]
    if b"%" in path and KEY.search(plain := unquote_to_bytes(path)):
        return plain
    return path


def _printable(raw: bytes) -> str:
    """What a caller sent, in printable ASCII: nothing that a terminal or a reader of logs would act on; JSON does the rest."""
    if b"sereno_" in raw:
        raw = KEY.sub(b"sereno_***", raw)
    text = raw[:_LONGEST].decode("ascii", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text
