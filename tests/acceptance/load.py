"""Callers that notice everything: whoever is refused a connection, and whose answer is missing, cut off or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import ssl
import threading
from collections import Counter
from pathlib import Path
from typing import Self

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Load:
    """`with Load(port, callers=16) as load: …`: callers of the model `total` (y = x × weight), each one request at a time.

    `weights` counts the answers by the weight that they show; `failures` tells what no caller should see. A caller whose
    answer said `Connection: close` comes again on a new connection.
    """

    def __init__(
        self,
        port: int | None = None,
        *,
        unix: Path | None = None,
        callers: int = 8,
        keep_alive: bool = True,
        tls: bool = False,
    ):
        self.weights: Counter[float] = Counter()
        self.failures: list[str] = []
        self.refused = 0  # attempts to connect: a server that has ended refuses them
        self._port, self._unix = port, unix
        self._tls = ssl._create_unverified_context() if tls else None
        self._callers, self._keep_alive = callers, keep_alive
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def answers(self) -> int:
        return sum(self.weights.values())

    def wait_for(self, more: int = 200, *, weight: float | None = None) -> None:
        """Until there are so many answers more (that show this weight)."""
        with self._news:
            goal = more + (self.answers if weight is None else self.weights[weight])
            reached = self._news.wait_for(
                lambda: (self.answers if weight is None else self.weights[weight]) >= goal or bool(self.failures), 60
            )
        assert not self.failures, self.failures[:5]
        assert reached, f"the callers got {dict(self.weights)}"

    async def _run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(self._callers)))

    async def _call(self) -> None:
        while not self._stop.is_set():
            try:
                if self._unix is not None:
                    reader, writer = await asyncio.open_unix_connection(self._unix)
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls)
            except (ConnectionRefusedError, FileNotFoundError):
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            except OSError as error:
                self._fail(f"connect: {error!r}")
                return
            try:
                while not self._stop.is_set() and await self._ask(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError) as error:
                self._fail(f"{type(error).__name__}: {error}")
                return
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection may be used again."""
        number = next(self._numbers)
        body = json.dumps({"id": number, "x": number}).encode()
        close = b"" if self._keep_alive else b"Connection: close\r\n"
        writer.write(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n" % (close, len(body)) + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        answer = await reader.readexactly(int(length[1]) if length else 0)
        if b" 200 " not in head.partition(b"\r\n")[0]:
            self._fail(f"{head!r} {answer!r}")
            return False
        weight = json.loads(answer)["y"] / number
        with self._news:
            self.weights[weight] += 1
            self._news.notify_all()
        return b"connection: close" not in head.lower()

    def _fail(self, what: str) -> None:
        with self._news:
            self.failures.append(what)
            self._news.notify_all()
