"""A steady load of lookups until its standard input ends; what each answer was goes to a file.

python -m benchmarks.lookup.steady '{"port": 8000, "path": "/models/lookup/predictions/{key}", "keys": 1000000, "file": "F"}'

Requests are due at random moments of a given rate (a Poisson process), whether the server keeps up or not. A request
takes a connection that is free, the one that has been free for longest, else a new one: so all are in use in turn, and
with them all workers. An answer's time counts from the moment that its request was due.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK = 0.001
END_SECONDS = 2  # how long answers are waited for at the end
BROKEN = -1  # in place of a status: the connection ended, or the load did


@dataclass(frozen=True, kw_only=True)
class Steady:
    """What is asked of the server."""

    port: int
    path: str
    keys: int
    file: str  # for the answers: a JSON list of [due, seconds, status, version, worker, how late it was sent]
    rate: float = 1_000.0
    connections: int = 32  # opened at the start; more as they are needed
    seed: int = 1


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load) -> None:
        self.load, self.due, self.late = load, 0.0, 0.0  # `due`: 0 while no request is under way
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, due: float) -> None:
        self.due, self.late = due, time.time() - due
        self.transport.write(self.load.request())

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", 0)):
            return
        self.received = b""
        status = int(head[9:12])
        version = json.loads(body).get("version") if status == 200 else None
        self.end(status, version, headers.get(b"x-request-id", b"").partition(b"-")[0].decode())
        if headers.get(b"connection") == b"close":
            self.transport.close()
        else:
            self.load.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.due:
            self.end(BROKEN, None, "")

    def end(self, status: int, version: int | None, worker: str) -> None:
        self.load.answers.append((self.due, time.time() - self.due, status, version, worker, self.late))
        self.due = 0.0


class Load:
    def __init__(self, steady: Steady) -> None:
        self.steady, self.random = steady, random.Random(steady.seed)
        self.idle: deque[Connection] = deque()
        self.answers: list[tuple[float, float, int, int | None, str, float]] = []
        self.connections: list[Connection] = []
        self.opening: set[asyncio.Task[None]] = set()
        self.is_over = False

    def request(self) -> bytes:
        path = self.steady.path.replace("{key}", str(self.random.randrange(self.steady.keys)))
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, self.stop)
        for _ in range(self.steady.connections):
            self.idle.append(await self.connect())
        due = time.time()
        while not self.is_over:
            due += self.random.expovariate(self.steady.rate)
            while (wait := due - time.time()) > 0 and not self.is_over:
                await asyncio.sleep(min(wait, TICK))
            self.ask(due)
        deadline = time.time() + END_SECONDS
        while any(one.due for one in self.connections) and time.time() < deadline:
            await asyncio.sleep(0.01)
        for one in self.connections:
            if one.due:
                one.end(BROKEN, None, "")
        Path(self.steady.file).write_text(json.dumps(self.answers))

    def stop(self) -> None:
        self.is_over = True

    async def connect(self) -> Connection:
        made = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), "127.0.0.1", self.steady.port
        )
        self.connections.append(made[1])
        return made[1]

    def ask(self, due: float) -> None:
        while self.idle:
            connection = self.idle.popleft()
            if not connection.transport.is_closing():
                connection.send(due)
                return
        task = asyncio.get_running_loop().create_task(self.ask_anew(due))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def ask_anew(self, due: float) -> None:
        try:
            connection = await self.connect()
        except OSError:
            self.answers.append((due, time.time() - due, BROKEN, None, "", 0.0))
        else:
            connection.send(due)


def main() -> None:
    import uvloop

    load = Load(Steady(**json.loads(sys.argv[1])))
    gc.freeze()
    gc.disable()  # its pauses would count as the server's
    uvloop.run(load.run())


if __name__ == "__main__":
    main()
