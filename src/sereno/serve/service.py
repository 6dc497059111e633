"""All that one worker serves: the loaded models, their routes, and what every request meets on its way."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sereno.config import find_home
from sereno.exceptions import ModelFileError, SettingsError
from sereno.fetching import Fetch
from sereno.loader import fingerprint, load_model
from sereno.lookup.keys import KeyCodec
from sereno.lookup.where import Where, lookup_home, open_store, where_of
from sereno.model import Model
from sereno.scoring import open_scorer
from sereno.serve.burst import Bursts
from sereno.serve.guard import KEY, Guard
from sereno.serve.live import Live
from sereno.serve.lookup import Lookups
from sereno.serve.options import Options
from sereno.serve.platforms import for_platform
from sereno.serve.processes.indexing import Indexing
from sereno.serve.wire import Exchange, RequestError, Route
from sereno.settings import Settings
from sereno.status import Statuses

if TYPE_CHECKING:
    from sereno.places import Place
    from sereno.serve.access import AccessLog
    from sereno.serve.metrics import Metrics
    from sereno.serve.processes.board import Board
    from sereno.serve.turn import Head, Tail

LOG = logging.getLogger("sereno.serve")

TICK_SECONDS = 0.25  # how often late requests, hung models and quiet connections are looked for
HEADS, HEAD_BYTES = 4096, 4096  # how many heads of requests are remembered, and how long one may be
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())


class Service:
    """Open models and everything around them. Made on the event loop, used on it."""

    def __init__(
        self,
        lives: Sequence[Live],
        settings: Settings,
        *,
        guard: Guard,
        metrics: Metrics,
        access: AccessLog,
        roots: Iterable[Place] = (),  # of the models, whose metrics tell what is published there
        board: Board | None = None,
        slot: int = 0,
    ) -> None:
        from sereno.serve.routes import all_routes, fallback

        self.lives = {live.name: live for live in lives}
        self.only = lives[0] if len(lives) == 1 else None
        self.settings, self.limits = settings, settings.serve
        self.guard, self.metrics, self.access = guard, metrics, access
        self.done = metrics.done  # hot: called for every request
        self.statuses = [Statuses(root) for root in sorted({one.resolve() for one in (settings.root, *roots)}, key=str)]
        self.least_logged = access.least_status
        self.board, self.slot = board, slot
        self.draining = asyncio.Event()  # the server ends, or another worker takes over
        self.fallback: Exchange = fallback  # its `refuse` shapes the errors that belong to no route
        self.routes: list[Route] = all_routes(self)
        self.hot: dict[bytes, tuple[Exchange, Live]] = {
            route.path.encode(): (route.exchange, route.live)
            for route in self.routes
            if route.exchange is not None and route.live is not None and route.method == "POST"
        }
        # what a GET's path may begin with, up to the key
        self.hot_lookups: dict[bytes, tuple[Exchange, Live]] = {
            route.path.partition("{")[0].encode(): (route.exchange, route.live)
            for route in self.routes
            if route.exchange is not None and route.live is not None and route.method == "GET"
        }
        self.lookups = {
            prefix: live.lookup for prefix, (_, live) in self.hot_lookups.items() if live.lookup is not None
        }
        for exchange, live in self.hot_lookups.values():
            if live.lookup is not None and live.lookup.reads is not None:
                live.lookup.reads.serve(self, exchange, live)
        plain = {live.name: (exchange, live) for exchange, live in self.hot.values() if exchange.is_plain}
        self.bursts = {name: Bursts(self, *both) for name, both in plain.items()}
        self.now = perf_counter()  # as of the last tick
        self.connections: set[Any] = set()  # uvicorn's, of which the lane's are looked at
        self.id_start = os.urandom(5).hex().encode() + b"-"  # of the requests' ids; the rest is `next_id()`, as %x
        self.next_id = itertools.count().__next__
        self._defaults: Any = None
        self._starts: dict[tuple[int, bytes], bytes] = {}
        self.heads: dict[bytes, Head] = {}  # of requests that were let in, as they came
        self.tails: dict[bytes, Tail] = {}  # of GETs, from the end of their path on
        self._indexing: Indexing | None = None
        if board is None:  # else the supervisor's
            self._indexing = Indexing(lambda text: LOG.warning("%s", text), metrics.failed_index)
            looked_up = [live.lookup for live in lives if live.lookup is not None]
            self._indexing.serve((str(one.home), one.name, one.where) for one in looked_up)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    def live(self, name: str) -> Live:
        """Raises RequestError (404)."""
        live = self.lives.get(name)
        if live is None:
            raise RequestError(404, f"There is no such model here. Served: {', '.join(self.lives)}.")
        return live

    @property
    def is_draining(self) -> bool:
        return self.draining.is_set()

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and all(live.is_ready for live in self.lives.values())

    def request_id(self, given: bytes | None) -> bytes:
        """The caller's, where it is one that can stand in a log; else a new one."""
        if given is not None and REQUEST_ID.fullmatch(given) and not (b"sereno_" in given and KEY.search(given)):
            return given
        return b"%b%x" % (self.id_start, self.next_id())

    def too_large(self) -> RequestError:
        return RequestError(413, f"The body is larger than {self.limits.max_body_bytes:,} bytes.")

    def bug(self, error: BaseException) -> RequestError:
        """What a caller is told of an error that nobody foresaw; the log has the rest under the same id."""
        error_id = uuid.uuid4().hex[:12]
        LOG.error("error %s", error_id, exc_info=error)
        return RequestError(500, f"An error of the server. Its log tells more under {error_id}.", error_id=error_id)

    def start(self, defaults: list[tuple[bytes, bytes]], status: int, content_type: bytes) -> bytes:
        """The start of a reply: its status, uvicorn's headers (the date; a new list each second) and its type."""
        if self._defaults is not defaults:
            self._defaults = defaults
            self._starts.clear()
        key = (status, content_type)
        start = self._starts.get(key)
        if start is None:
            lines = [*defaults, (b"content-type", content_type)]
            start = status_line(status) + b"".join(b"%b: %b\r\n" % line for line in lines) + b"x-request-id: "
            self._starts[key] = start
        return start

    def remember(self, head: bytes, what: Head) -> None:
        """Keep the head of a request that was let in: the same bytes mean the same again."""
        if len(self.heads) >= HEADS:
            self.heads.clear()
        if len(head) <= HEAD_BYTES:
            self.heads[head] = what

    def remember_tail(self, tail: bytes, what: Tail) -> None:
        """Keep all of a GET that was let in but its path."""
        if len(self.tails) >= HEADS:
            self.tails.clear()
        if len(tail) <= HEAD_BYTES:
            self.tails[tail] = what

    async def _tick(self) -> None:
        from sereno.serve.lane import Lane

        ticks = 0
        while True:
            self.now = perf_counter()
            if self.board is not None:
                self.board.beat(self.slot)
            try:
                for live in self.lives.values():
                    live.expire()
                    if live.lookup is not None:
                        live.lookup.look()
                if self._indexing is not None:
                    self._indexing.look()
                if ticks % 4 == 0:
                    for connection in list(self.connections):
                        if isinstance(connection, Lane):
                            connection.check(self.now)
                    if self.board is not None:
                        self.metrics.flush(self.board, self.slot)
                    self.access.flush()
            except Exception as error:  # noqa: BLE001 - deadlines and heartbeats go on
                self.bug(error)
            ticks += 1
            await asyncio.sleep(TICK_SECONDS)

    async def close(self) -> None:
        """Stop, once every request is answered."""
        self._ticker.cancel()
        if self._indexing is not None:
            self._indexing.stop()
            self._indexing.wait()
        for live in self.lives.values():
            live.close()
        if self.board is not None:
            self.metrics.flush(self.board, self.slot)
        self.metrics.close()
        self.access.close()


def open_service(options: Options, *, board: Board | None = None, slot: int = 0, own: Model | None = None) -> Service:
    """Load every model and what belongs to it.

    `own` is the model whose file was started itself. Raises SerenoError: whatever keeps a model from being served.
    """
    from sereno.serve.access import AccessLog
    from sereno.serve.health import watch
    from sereno.serve.metrics import Metrics

    files = options.model_files()
    settings = options.settings()
    settings_of = {file: options.settings(file) for file in files}  # before relative paths mean something else
    os.chdir(
        find_home(files[0])
    )  # so that relative paths in `load` and `fetch` mean the same from wherever it is started
    metrics = Metrics()
    lives: dict[str, Live] = {}
    for file in files:
        model = own if own is not None and own.file == file.resolve() else load_model(file)
        if model.name in lives:
            raise ModelFileError(
                f"{model.place}: model {model.name!r} is served from {lives[model.name].model.file} already."
            )
        lives[model.name] = open_live(model, settings_of[file], settings, metrics, slot)
    service = Service(
        list(lives.values()),
        settings,
        guard=Guard(settings),
        metrics=metrics,
        access=AccessLog(settings.serve.access_log),
        roots=[one.root for one in settings_of.values()],
        board=board,
        slot=slot,
    )
    watch(service)
    # what was loaded stays: full collections over it are the tail of the answer times
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a request makes a dozen objects that die with it, and no cycles
    return service


def open_live(model: Model, settings: Settings, server: Settings, metrics: Metrics, slot: int) -> Live:
    """One model with its queue, its fetch and its log."""
    assert model.file is not None
    mine = for_platform(settings.model(model.name, model.declared, model.file.parent), os.environ)
    scorer = open_scorer(model, settings)
    digest = fingerprint(model)
    recorder = None
    if mine.log != "off":
        from sereno.answers.folder import segments_folder
        from sereno.answers.log import AnswerLog

        mode: Any = mine.log
        folder = segments_folder(settings.home, model.name)
        recorder = AnswerLog(folder, model.name, mode, fingerprint=digest, inputs=model.inputs, outputs=model.outputs)
    live = Live(
        scorer,
        digest,
        mine,
        server.serve,
        metrics=metrics,
        recorder=recorder,
        fetch=Fetch(model, settings) if model.fetch_function is not None else None,
    )
    if mine.lookup != "off":
        live.lookup = open_lookup(live, settings, lookup_home(settings), metrics, slot, where_of(settings))
    return live


def open_lookup(
    live: Live, settings: Settings, home: Path, metrics: Metrics, slot: int, where: Where | None = None
) -> Lookups:
    """The lookups of a model in a home, or in a server that several hosts share.

    Raises SettingsError where they are to be answered live and cannot be, or their store has no address that can be read,
    and MissingExtraError.
    """
    for name, others in (("stale", '"flag" or "refuse"'), ("unknown", '"404"')):
        if getattr(live.settings, name) == "live" and not live.needs_keys_alone:
            raise SettingsError(
                f"'models.{live.name}.{name}' is 'live', from {settings.origin(live.name, name)}. That needs a model that can "
                f"answer to a key alone: a fetch function, and every other column of {live.inputs.name} "
                f"({live.model.place}) Fetched or with a default. Or choose {others}."
            )
    lookup = Lookups(
        live.name,
        home,
        open_store(where, home, live.name),
        live.settings,
        KeyCodec.of(live.inputs.arrow_schema(live.inputs.keys), [c.name for c in live.inputs.keys]),
        metrics=metrics,
        max_reply_bytes=live.limits.max_reply_bytes,
        where=where,
    )
    lookup.watch(metrics, slot)
    return lookup
