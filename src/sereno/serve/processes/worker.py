"""A worker of the server: `python -m sereno.serve.processes.worker DESCRIPTOR`. Not for people.

It inherits its line to the supervisor, is told what to serve, loads it, says that it is ready, and takes connections from
the sockets that it is given, until it is told to drain or the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import os
import resource
import select
import signal
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from sereno.adapters.executors.spawn import THREAD_VARIABLES, threads_each
from sereno.exceptions import SerenoError, SettingsError
from sereno.lines import whole_lines
from sereno.serve.options import Options
from sereno.serve.processes.board import Board, State
from sereno.serve.processes.control import (
    RESERVE,
    Accept,
    Control,
    Drain,
    Failed,
    Job,
    Ready,
    Release,
    Served,
    close_all,
    to_worker,
)
from sereno.serve.processes.sockets import BACKLOG, has_waiting, stop_connects

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service
    from sereno.settings import ServeSettings

QUIET_SECONDS = 1.0  # without a new connection for so long, a server that ends takes no more
HANDSHAKE_SECONDS = 0.2  # for connections that are being made while it stops
SECONDS_OF_GRACE = 0.5  # a signal to all processes reaches a worker before the supervisor's word does
LONGEST_WORDS = 16_000  # of a message that the supervisor prints
LONGEST_LINE = 500  # to try a model; /docs has what is longer

LOG = logging.getLogger("sereno.serve")


class Serving:
    """Connections, from the first to the last. On the event loop."""

    def __init__(self, app: Any, service: Service, control: Control, board: Board, slot: int) -> None:
        self._service = service
        self._control = control
        self._board, self._slot = board, slot
        self._loop = asyncio.get_running_loop()
        self._config = _config(app, service.settings.serve)
        self._state = ServerState()
        service.connections = self._state.connections
        self._listeners: dict[int, list[tuple[socket.socket, asyncio.AbstractServer]]] = {}  # by place
        self._accepted = self._loop.time()  # when the last connection came
        self._draining: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._ended = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()  # every connection, also those whose TLS is not agreed yet

    @property
    def drain_seconds(self) -> float:
        return self._service.settings.serve.drain_seconds

    async def run(self, ready: Ready) -> None:
        """Until it has drained."""
        self._look()
        self._loop.add_reader(self._control.fileno(), self._on_message)
        self._loop.add_signal_handler(signal.SIGTERM, self._loop.call_later, SECONDS_OF_GRACE, self.leave)
        self._control.send(ready)
        await self._ended.wait()
        assert self._draining is not None
        await self._draining

    def leave(self) -> None:
        """Drain on our own account; the supervisor, if there is one, starts another worker."""
        if self._draining is None:
            self._drain(Drain(seconds=max(0.0, self.drain_seconds - RESERVE), accept_seconds=None))

    def _on_message(self) -> None:
        content, descriptors = self._control.receive()
        if not content:  # the supervisor is gone; whatever watches over it starts another
            self._loop.remove_reader(self._control.fileno())
            self.leave()
            return
        message = to_worker(content)
        if isinstance(message, Accept):
            task = self._loop.create_task(self._accept(message.place, descriptors))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            return
        close_all(descriptors)
        if isinstance(message, Release):
            self._release(message.place)
        elif isinstance(message, Drain):
            self._drain(message)

    async def _accept(self, place: int, descriptors: list[int]) -> None:
        listeners = self._listeners.setdefault(place, [])
        for descriptor in descriptors:
            sock = socket.socket(fileno=descriptor)
            sock.setblocking(False)
            options: dict[str, Any] = {}
            if self._config.ssl is not None:
                options["ssl_handshake_timeout"] = self._service.settings.serve.header_timeout_seconds or None
            listener = await self._loop.create_server(
                self._connect, sock=sock, ssl=self._config.ssl, backlog=BACKLOG, **options
            )
            listeners.append((sock, listener))
        if self._draining is not None:
            self._release(place)

    def _connect(self) -> asyncio.Protocol:
        self._accepted = self._loop.time()
        make: Callable[..., asyncio.Protocol] = self._config.http_protocol_class
        connection = make(config=self._config, server_state=self._state, app_state={}, _loop=self._loop)
        self._made.add(connection)
        return connection

    def _release(self, place: int) -> None:
        for _, listener in self._listeners.pop(place, ()):
            listener.close()

    def _drain(self, drain: Drain) -> None:
        deadline = self._loop.time() + drain.seconds
        if self._draining is not None:
            self._deadline = min(self._deadline, deadline)
            return
        self._deadline = deadline
        self._service.draining.set()
        self._board.set_state(self._slot, State.DRAINING)
        self._draining = self._loop.create_task(self._finish(drain.accept_seconds))

    async def _finish(self, accept_seconds: float | None) -> None:
        try:
            await self._answer_all(accept_seconds)
            await self._service.close()
        finally:
            self._ended.set()

    async def _answer_all(self, accept_seconds: float | None) -> None:
        for connection in list(self._state.connections):
            # WebSockets see `draining`, and close themselves
            if isinstance(connection, self._config.http_protocol_class):
                connection.shutdown()
        if accept_seconds is not None:
            await self._until_nobody_comes(accept_seconds)
        for place in list(self._listeners):
            self._release(place)
        while self._is_busy() and self._loop.time() < self._deadline:
            await asyncio.sleep(0.02)
        if left := len(self._state.connections):
            LOG.warning("sereno: worker %d ends with %d connections that did not finish in time.", os.getpid(), left)

    def _is_busy(self) -> bool:
        if self._state.connections or self._state.tasks:
            return True
        if self._agrees_on_tls():
            gc.collect()  # nobody is told of one that came to nothing, as a probe of the port is: it is gone, no more
        return self._agrees_on_tls()

    def _agrees_on_tls(self) -> bool:
        return any(connection.transport is None for connection in self._made)

    async def _until_nobody_comes(self, seconds: float) -> None:
        """Go on accepting while callers still come: they do not know yet. Then let nobody in, and take those who are."""
        latest = min(self._loop.time() + seconds, self._deadline - HANDSHAKE_SECONDS)
        self._accepted = max(self._accepted, self._loop.time() - QUIET_SECONDS / 2)
        while self._loop.time() < min(latest, self._accepted + QUIET_SECONDS):
            await asyncio.sleep(0.02)
        sockets = [sock for listeners in self._listeners.values() for sock, _ in listeners]
        for sock in sockets:
            stop_connects(sock)
        closed = self._loop.time() + HANDSHAKE_SECONDS
        while self._loop.time() < self._deadline and (self._loop.time() < closed or has_waiting(sockets)):
            await asyncio.sleep(0.01)

    def _look(self) -> None:
        """Once a second: the time, and whether a model hangs."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        if not self._service.is_draining:
            # the supervisor looks there
            hangs = any(live.is_hung for live in self._service.lives.values())
            self._board.set_state(self._slot, State.HUNG if hangs else State.READY)
        self._loop.call_later(1.0, self._look)


def main(descriptor: int) -> None:
    started = time.time_ns()
    whole_lines(sys.stdout, sys.stderr)
    control = Control(socket.socket(fileno=descriptor))
    for number in (signal.SIGINT, signal.SIGHUP):  # they mean the supervisor
        signal.signal(number, lambda *_: None)
    line = threading.Thread(target=_end_with, args=[descriptor], daemon=True)
    line.start()
    content, descriptors = control.receive()
    job = to_worker(content) if content else None
    if not isinstance(job, Job):
        sys.exit(1)
    board = Board.attach(descriptors[0])
    board.set_pid(job.slot, os.getpid())
    _raise_limits()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a model prints stands in the log when it was printed
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, str(threads_each(job.workers)))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(job, control, board, started))
            _flush()
            os._exit(0)  # a predict that hangs in a thread would be waited for
    except BaseException as error:
        if _serving:
            LOG.critical("sereno: worker %d cannot go on.", os.getpid(), exc_info=error)
        with contextlib.suppress(OSError):
            control.send(_told(error, verbose=job.verbose))
        _flush()
        os._exit(1)


async def _serve(job: Job, control: Control, board: Board, started: int) -> None:
    # what takes long to import
    from sereno.serve.processes.belongs import Belonging
    from sereno.serve.snippets import curl

    options = Options(
        files=[Path(file) for file in job.files],
        home=Path(job.home) if job.home is not None else None,
        env=job.env,
        overrides=job.overrides,
    )
    settings = {file.resolve(): options.settings(file) for file in options.model_files()}
    belonging = Belonging(options) if job.watch else None
    if belonging is not None:
        control.send(belonging.told())
    app, service = _open(options, board, job.slot)
    serving = Serving(app, service, control, board, job.slot)
    if belonging is not None:
        belonging.add(service)
        control.send(belonging.told())
    board.beat(job.slot)
    _serving.append(serving)
    await serving.run(
        Ready(
            models=[
                Served(
                    name=live.name,
                    fingerprint=live.fingerprint,
                    tries=tries if len(tries := curl(service, live, "URL")) < LONGEST_LINE else "",
                    home=str(settings[live.model.file].home),
                    storage=str(settings[live.model.file].storage or ""),
                    log_days=live.settings.log_days if live.settings.log != "off" else None,
                    is_looked_up=live.lookup is not None,
                    lookup_home=str(live.lookup.home) if live.lookup is not None else "",
                    where=live.lookup.where if live.lookup is not None else None,
                    awaits_run=_awaits_run(live),
                )
                for live in service.lives.values()
                if live.model.file is not None
            ],
            hang_seconds=max(live.settings.predict_timeout_seconds for live in service.lives.values()),
            seen=belonging.seen(started) if belonging is not None else "",
        )
    )


def _awaits_run(live: Live) -> bool:
    """Whether lookups can answer nothing before a run publishes."""
    from sereno.lookup.pointer import is_behind, read_pointer

    if live.lookup is None or live.settings.unknown == "live":
        return False
    if live.lookup.where is not None:
        return live.lookup.awaits_run
    home = live.lookup.home
    return read_pointer(home, live.name) is None and not is_behind(home, live.name)


def _open(options: Options, board: Board, slot: int) -> tuple[Any, Service]:
    """The application, with every model loaded."""
    from sereno.serve.app import App
    from sereno.serve.service import open_service

    app = App(lambda: open_service(options, board=board, slot=slot))
    return app, app.opened()


def _config(app: Any, serve: ServeSettings) -> Config:
    from sereno.serve.lane import Lane

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what is wrong with a request stands in the access log
    config = Config(
        app,
        http=Lane,
        ws="websockets-sansio",
        ws_max_size=serve.max_body_bytes,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=serve.tls_certificate,
        ssl_keyfile=serve.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        what = f"the certificate {serve.tls_certificate} and its key {serve.tls_key or 'in the same file'}"
        raise SettingsError(
            f"TLS cannot be spoken with {what} (settings serve.tls_certificate and serve.tls_key): {error}. They are PEM "
            "files, the key without a password."
        ) from error
    return config


_serving: list[Serving] = []  # empty until there is one


def _end_with(descriptor: int) -> None:
    """End this process if the supervisor goes: at once while it loads, else when it had its time to drain.

    The event loop sees it too, and drains, unless predict hangs there: then nobody else is left who ends it.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    poll.poll()
    if _serving:
        time.sleep(_serving[0].drain_seconds)
    os._exit(1)


def _raise_limits() -> None:
    """As many connections as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _told(error: BaseException, *, verbose: bool) -> Failed:
    if isinstance(error, SerenoError):
        kind, says = type(error).__name__, str(error)[:LONGEST_WORDS]
        verbose = verbose and error.__cause__ is not None
    else:
        kind, says, verbose = "WorkerError", "A worker failed.", True
    if verbose:
        import traceback

        says = f"{says}\n{''.join(traceback.format_exception(error))[-LONGEST_WORDS:]}"
    return Failed(kind=kind, says=says)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
