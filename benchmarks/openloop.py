"""A load of so many requests a second, whether the server keeps up or not.

python -m benchmarks.openloop '{"port": 8000, "path": "/predict", "bodies": "FILE", "rate": 5000, "seconds": 60}'

Requests are due at random moments of a given rate (a Poisson process from a seed), decided beforehand. The time of an
answer counts from the moment that its request was due, not from when it could be sent, so a server that makes its
callers wait for each other does not look better for it. A request takes a connection that is free, else a new one, else
waits for one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TICK = 0.001
LATE, BROKEN = 0, -1  # in place of a status: no answer in time; the connection ended before one


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is asked of the server."""

    port: int
    path: str
    bodies: str  # file, one request body a line
    rate: float  # requests a second
    seconds: float
    connections: int = 4_000  # at most
    patience: float = 10.0  # seconds after which a caller gives up
    seed: int = 1
    is_precise: bool = False  # takes all of its core to be punctual to some µs, in place of TICK
    dripping: int = 0  # sockets that send a byte of a request every second and never finish it
    every: bool = False  # say of each request when it was due, its status and seconds


@dataclass(kw_only=True)
class Outcome:
    """What became of it. `lag`: how much later than due requests were looked at, which is this program's own fault."""

    started: float = 0.0  # by the monotonic clock of the machine
    seconds: float = 0.0
    offered: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    good_rate: float = 0.0  # answers with status 200 a second, while requests were due
    good_ms: dict[str, float] = field(default_factory=dict)  # p50, p90, p99, most
    refused_ms: dict[str, float] = field(default_factory=dict)  # of status 503
    lag_ms: dict[str, float] = field(default_factory=dict)
    connections: int = 0  # opened in all
    most_connections: int = 0  # at once
    drips_reopened: int = 0  # dripping sockets that the server closed
    cpu_share: float = 0.0  # of one core; near 1 this program was the bottleneck (unless is_precise)
    each: list[tuple[float, int, float]] = field(default_factory=list)  # due (after the start), status, seconds


class Connection(asyncio.Protocol):
    """One request at a time."""

    __slots__ = ("due", "load", "need", "received", "transport")

    def __init__(self, load: Load, due: float) -> None:
        self.load, self.due = load, due  # `due` is below 0 while no request is under way
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send(self.due)

    def send(self, due: float) -> None:
        self.due = due
        self.load.busy.add(self)
        self.transport.write(self.load.next_request())

    def data_received(self, data: bytes) -> None:
        received = self.received = self.received + data if self.received else data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = received[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(received) < end + 4 + length:
            return
        self.received = received[end + 4 + length :]
        due, self.due = self.due, -1.0
        self.load.busy.discard(self)
        self.load.done(due, int(head[9:12]))
        if head.find(b"connection: close") >= 0:
            self.transport.close()
        else:
            self.load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost(self)


class Drip(asyncio.Protocol):
    """Sends a request so slowly that it never ends; half of them do so in the headers, half in the body."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number = load, number
        head = f"POST {load.offer.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        self.start = head + (b"Content-Length: 500000\r\n\r\n{" if number % 2 else b"X-Slow: ")
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.start)
        self.again()

    def again(self) -> None:
        if not self.transport.is_closing() and not self.load.over:
            self.load.loop.call_later(1.0, self.one)

    def one(self) -> None:
        self.transport.write(b" " if self.number % 2 else b"a")
        self.again()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.load.over:
            self.load.outcome.drips_reopened += 1
            self.load.drip(self.number)


class Load:
    def __init__(self, offer: Offer) -> None:
        self.offer, self.outcome = offer, Outcome()
        head = f"POST {offer.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        bodies = Path(offer.bodies).read_bytes().splitlines()
        self.requests = [head.encode() + b"%d\r\n\r\n%b" % (len(body), body) for body in bodies]
        self.sent = 0
        draw = random.Random(offer.seed)
        self.due: list[float] = []
        moment = draw.expovariate(offer.rate)
        while moment < offer.seconds:
            self.due.append(moment)
            moment += draw.expovariate(offer.rate)
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()
        self.waiting: deque[float] = deque()  # due, but all connections are taken
        self.open = 0
        self.over = False
        self.good: list[float] = []
        self.good_meanwhile = 0
        self.refused: list[float] = []
        self.lags: list[float] = []
        self.opening: set[asyncio.Task[Any]] = set()

    def next_request(self) -> bytes:
        self.sent += 1
        return self.requests[self.sent % len(self.requests)]

    async def run(self) -> Outcome:
        loop = self.loop = asyncio.get_running_loop()
        offer, outcome = self.offer, self.outcome
        for number in range(offer.dripping):
            loop.call_later(number / max(offer.dripping, 1), self.drip, number)
        if offer.dripping:
            await asyncio.sleep(2)
        cpu = time.process_time()
        start = self.start = outcome.started = time.monotonic()
        next_look = number = 0
        while number < len(self.due):
            now = time.monotonic() - start
            while number < len(self.due) and self.due[number] <= now:
                self.lags.append(now - self.due[number])
                self.ask(self.due[number])
                number += 1
            if now >= next_look:
                next_look = now + 0.1
                self.give_up(now)
            await asyncio.sleep(0 if offer.is_precise else TICK)
        outcome.cpu_share = (time.process_time() - cpu) / (time.monotonic() - start)
        while (self.busy or self.waiting) and (now := time.monotonic() - start) < offer.seconds + offer.patience + 1:
            self.give_up(now)
            await asyncio.sleep(0.01)
        self.over = True
        outcome.seconds, outcome.offered = offer.seconds, len(self.due)
        outcome.good_rate = self.good_meanwhile / offer.seconds
        outcome.good_ms, outcome.refused_ms = _summary(self.good), _summary(self.refused)
        outcome.lag_ms = _summary(self.lags)
        return outcome

    def ask(self, due: float) -> None:
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                connection.send(due)
                return
        if self.open < self.offer.connections:
            self.open += 1
            self.outcome.connections += 1
            self.outcome.most_connections = max(self.outcome.most_connections, self.open)
            task = self.loop.create_task(self.connect(due))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)
        else:
            self.waiting.append(due)

    async def connect(self, due: float) -> None:
        try:
            await self.loop.create_connection(lambda: Connection(self, due), "127.0.0.1", self.offer.port)
        except OSError:
            self.open -= 1
            self.done(due, BROKEN)

    def free(self, connection: Connection) -> None:
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.open -= 1
        if connection.due >= 0:
            self.busy.discard(connection)
            self.done(connection.due, BROKEN)

    def give_up(self, now: float) -> None:
        oldest = now - self.offer.patience
        for connection in [one for one in self.busy if one.due < oldest]:
            self.busy.discard(connection)
            self.done(connection.due, LATE)
            connection.due = -1.0
            connection.transport.abort()
        while self.waiting and self.waiting[0] < oldest:
            self.done(self.waiting.popleft(), LATE)

    def done(self, due: float, status: int) -> None:
        now = time.monotonic() - self.start
        seconds = now - due
        name = {LATE: "late", BROKEN: "broken"}.get(status, str(status))
        self.outcome.statuses[name] = self.outcome.statuses.get(name, 0) + 1
        if status == 200:
            self.good.append(seconds)
            self.good_meanwhile += now <= self.offer.seconds
        elif status == 503:
            self.refused.append(seconds)
        if self.offer.every:
            self.outcome.each.append((due, status, seconds))

    def drip(self, number: int) -> None:
        async def connect() -> None:
            try:
                await self.loop.create_connection(lambda: Drip(self, number), "127.0.0.1", self.offer.port)
            except OSError:
                self.loop.call_later(1.0, self.drip, number)

        if not self.over:
            task = self.loop.create_task(connect())
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)


def _summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "most": 1.0}
    return {name: round(ordered[min(int(len(ordered) * q), len(ordered) - 1)] * 1e3, 4) for name, q in at.items()}


def main() -> None:
    import uvloop

    offer = Offer(**json.loads(sys.argv[1]))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = Load(offer)
    gc.freeze()
    gc.disable()  # its pauses would count as the server's
    print(json.dumps(asdict(uvloop.run(load.run()))))


if __name__ == "__main__":
    main()
