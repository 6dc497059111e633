"""A hot request on its way: from its head to its reply, in the order of its connection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from sereno.serve.batcher import Waiting
from sereno.serve.wire import Asked, Awaited, Exchange, Reply, Request, RequestError, Row, settle

if TYPE_CHECKING:
    from sereno.serve.burst import Bursts
    from sereno.serve.lane import Lane
    from sereno.serve.live import Live


class Head(NamedTuple):
    """What a request's head came to: its first line and headers, byte for byte the same as one before.

    Callers that keep a connection send few different heads. One that was parsed, let in and found plain is not parsed
    again; only a head whose lines all end in CR LF is kept, so that where it ends is beyond doubt.
    """

    exchange: Exchange
    live: Live
    url: bytes
    headers: list[tuple[bytes, bytes]]
    length: int  # of the body
    bursts: Bursts | None  # takes it where it is plain


class Tail(NamedTuple):
    """The same of a GET, whose path is another each time: what comes after the path."""

    none_match: bytes | None  # If-None-Match


class Turn(Waiting):
    """A hot request, from its headers to its reply."""

    rows: Sequence[Row] = ()
    method, path = b"POST", b""
    output: bytes | None = None  # the reply, until it is its turn
    asked: Asked

    def __init__(self, lane: Lane, exchange: Exchange, live: Live | None, request_id: bytes, *, close: bool) -> None:
        self.lane = lane
        self.exchange = exchange
        self.live = live
        self.request_id = request_id
        self.close = close  # the caller wants no further request on the connection

    def ask(self, request: Request, since: float | None = None) -> None:
        """The request is there: have its rows answered, or refuse them."""
        self.since = since or perf_counter()
        self.method, self.path = request.method, request.path
        self._read(request)

    def _read(self, request: Request) -> None:
        exchange, live = self.exchange, self.live
        assert live is not None
        try:
            if (
                exchange.asks_model and live.batcher.is_full
            ):  # before anything is decoded: what is too much must cost little
                raise live.batcher.busy()
            self.asked = asked = exchange.read(live, request)
            if asked.reply is not None:
                self.reply(asked.reply)
                return
            self.rows, self.one_by_one = asked.rows, asked.one_by_one
            live.submit(self)
        except Awaited as awaited:
            awaited.begin(partial(self._read, request))
        except RequestError as error:
            self.reply(exchange.refuse(error))
        except Exception as error:  # noqa: BLE001 - a bug of ours: this caller is told its id, the others go on
            self.reply(exchange.refuse(self.lane.service.bug(error)))

    def tell(self, answers: Sequence[Any]) -> None:
        exchange, live = self.exchange, self.live
        assert live is not None
        try:
            reply = settle(exchange, live, self.asked, answers)
        except RequestError as error:
            reply = exchange.refuse(error)
        except Exception as error:  # noqa: BLE001 - one caller's reply must not cost the others of the batch theirs
            reply = exchange.refuse(self.lane.service.bug(error))
        self.reply(reply)

    def reply(self, reply: Reply) -> None:
        """Write the reply, when it is its turn."""
        lane, live = self.lane, self.live
        service = lane.service
        status, body, content_type, headers = reply
        service.done(live.name if live is not None else "", self.exchange.name, status, perf_counter() - self.since)
        if status >= service.least_logged:
            self._log(status, len(body))
        if lane.is_lost:
            return
        close = b""
        if self.close or lane.is_draining:
            self.close, close = True, b"connection: close\r\n"
        more = b"".join(b"%b: %b\r\n" % header for header in headers) if headers else b""
        start = service.start(lane.server_state.default_headers, status, content_type)
        if status != 304:  # which has no body, and says nothing of the one that it stands for
            more += b"content-length: %d\r\n" % len(body)
        self.output = b"%b%b\r\n%b%b\r\n%b" % (start, self.request_id, more, close, body)
        if lane.turns[0] is self:
            lane.flush()

    def _log(self, status: int, size: int) -> None:
        lane = self.lane
        client = lane.client[0] if lane.client else "unix"
        name = self.live.name if self.live is not None else ""
        seconds, protocol = perf_counter() - self.since, self.exchange.name
        lane.service.access.log(
            status,
            self.method,
            self.path,
            self.request_id,
            client,
            seconds,
            size,
            protocol=protocol,
            model=name,
            rows=len(self.rows),
        )
