"""The model in service for as long as a check lasts: what `sereno serve` has in a worker, in this process.

Event loop, fast lane, decoder, batcher and `predict` in its thread are those of a worker; the requests are real HTTP, on
pairs of connected sockets instead of a port. No key is asked for, and no answer is kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sereno.exceptions import MOST_TOLD, OutputError, PredictError
from sereno.fetching import Fetch
from sereno.scoring import Scorer

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.metrics import Metrics
    from sereno.serve.service import Service
    from sereno.settings import Settings

PATIENCE = 300  # seconds; a check is about what is answered, not about how soon
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
SHOWN = 3  # mistakes in a line


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class InService:
    """A model in service. Made by `in_service`; used on its event loop."""

    def __init__(
        self, config: Any, state: Any, service: Service, live: Live, metrics: Metrics, errors: _Errors
    ) -> None:
        self.live = live
        self._config, self._state, self._service = config, state, service
        self._metrics, self._errors = metrics, errors

    @contextmanager
    def looking_up(self, home: Path, **settings: Any) -> Iterator[None]:
        """Have its lookups answer from the table of that home, under other settings of the model than its own."""
        from sereno.serve.service import open_lookup

        live, service = self.live, self._service
        before = live.settings, live.lookup, service.lookups
        live.settings = replace(live.settings, **settings)
        live.lookup = opened = open_lookup(live, service.settings, home, self._metrics, 0)
        service.lookups = dict.fromkeys(service.lookups, opened)  # which the shortest path asks
        try:
            yield
        finally:
            opened.close()
            live.settings, live.lookup, service.lookups = before

    @asynccontextmanager
    async def connections(self, count: int) -> AsyncIterator[list[Connection]]:
        """So many clients."""
        connections = [Connection(self) for _ in range(count)]
        try:
            yield connections
        finally:
            for connection in connections:
                await connection.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        make = self._config.http_protocol_class
        await loop.connect_accepted_socket(
            lambda: make(config=self._config, server_state=self._state, app_state={}, _loop=loop), theirs
        )
        return await asyncio.open_unix_connection(sock=ours)

    def reason(self, reply: Reply) -> str:
        """Why a request got no prediction: in the words of a reject, where predict is the cause.

        Raises OutputError, where predict answered otherwise than declared.
        """
        told = msgspec.json.decode(reply.body)
        logged = self._errors.about(reply.body)
        if logged is None:
            mistakes = _in_words(told.get("errors", ()))
            return f"HTTP {reply.status}: {mistakes or told.get('detail') or told.get('error')}"
        error = logged.error
        if isinstance(error, OutputError):
            raise error
        if isinstance(error, PredictError) and error.__cause__ is not None:
            return f"predict raised {type(error.__cause__).__name__}: {error.__cause__}"
        return logged.reason

    def refused(self, reply: Reply) -> dict[int, str]:
        """Which rows of a request failed it, by position, and why; empty where none is named."""
        told = msgspec.json.decode(reply.body) if reply.status == 422 else {}
        mistakes: dict[int, list[Any]] = {}
        for one in told.get("errors", ())[: MOST_TOLD - 1]:  # after those, one may stand for all others
            mistakes.setdefault(one["row"], []).append(one)
        return {row: f"HTTP {reply.status}: {_in_words(some)}" for row, some in mistakes.items()}


def _in_words(mistakes: Sequence[Any]) -> str:
    words = [f"{m['column']}: {m['expected']}" for m in mistakes]
    return "; ".join(words[:SHOWN] + ([f"and {len(words) - SHOWN} more"] if len(words) > SHOWN else []))


class Connection:
    """A client's connection, opened when it is needed.

    A request is written in one piece: so all of those that are sent at once are there at once, on the server's shortest
    path. A client library writes its head and its body one after the other.
    """

    def __init__(self, service: InService) -> None:
        self._service = service
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> Reply:
        return await self._ask(
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (path.encode(), len(body), body)
        )

    async def get(self, path: str) -> Reply:
        return await self._ask(b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode())

    async def _ask(self, request: bytes) -> Reply:
        reader, writer = self._streams = self._streams or await self._service.connect()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        assert length is not None, "the server gives the length of every reply"
        reply = Reply(int(head[9:12]), await reader.readexactly(int(length[1])))
        if CLOSES.search(head):
            await self.close()
        return reply

    async def close(self) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def in_service(scorer: Scorer, settings: Settings, fetch: Fetch | None, home: Path) -> AsyncIterator[InService]:
    """Put the loaded model in service, with lookups in that home. Raises ModelFileError and SettingsError where it cannot be."""
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from sereno.serve.access import AccessLog
    from sereno.serve.app import App
    from sereno.serve.guard import Guard
    from sereno.serve.lane import Lane
    from sereno.serve.live import Live
    from sereno.serve.metrics import Metrics
    from sereno.serve.service import Service, open_lookup

    model = scorer.model
    nowhere = Path(os.devnull)
    limits = replace(
        settings.serve,
        keys_file=None,
        allowed_hosts=(),
        unix=nowhere,  # under any name, as on a Unix socket
        header_timeout_seconds=PATIENCE,
        request_timeout_seconds=PATIENCE,
        keep_alive_seconds=PATIENCE,
    )
    here = replace(settings, serve=limits, secrets_folder=nowhere)
    mine = settings.model(model.name, model.declared, model.file.parent if model.file else None)
    metrics = Metrics()
    try:
        mine = replace(mine, queue_rows=1 << 30, queue_seconds=math.inf)
        live = Live(scorer, "0" * 64, mine, limits, metrics=metrics, fetch=fetch)
        if mine.lookup != "off":
            live.lookup = open_lookup(live, settings, home, metrics, 0)
        service = Service([live], here, guard=Guard(here, {}), metrics=metrics, access=AccessLog("off"))
    except BaseException:
        metrics.close()
        raise
    app = App(lambda: service)
    app.opened()
    config = Config(app, http=Lane, ws="none", lifespan="off", interface="asgi3", log_config=None, proxy_headers=False)
    config.load()
    state = ServerState()
    service.connections = state.connections
    errors = _Errors()
    log = logging.getLogger("sereno.serve")
    propagated, log.propagate = log.propagate, False
    log.addHandler(errors)
    try:
        yield InService(config, state, service, live, metrics, errors)
        async with asyncio.timeout(PATIENCE):
            while state.connections:  # the clients have gone; the server sees it in the next turns of the loop
                await asyncio.sleep(0)
    finally:
        await service.close()
        log.removeHandler(errors)
        log.propagate = propagated


class _Logged(NamedTuple):
    """What the server's log says of an error that a caller knows by its id."""

    reason: str
    error: BaseException | None


class _Errors(logging.Handler):
    """Keeps what the server logs under an error's id, which would else stand on the terminal once for each row."""

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[bytes, _Logged] = {}

    def emit(self, record: logging.LogRecord) -> None:
        arguments: Sequence[Any] = record.args if isinstance(record.args, tuple) else ()
        if arguments:
            error = record.exc_info[1] if record.exc_info else None
            reason = str(arguments[-1])
            if error is not None and arguments[-1] is error:
                reason = f"fetch raised {type(error).__name__}: {error}"
            elif len(arguments) == 1:
                reason = f"an error of the server: {type(error).__name__}: {error}"
            self._logged[str(arguments[0]).encode()] = _Logged(reason, error)

    def about(self, body: bytes) -> _Logged | None:
        """What was logged under the id that the reply has."""
        return next((logged for error_id, logged in self._logged.items() if error_id in body), None)
