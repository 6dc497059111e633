"""The fast lane: uvicorn's own protocol class, which answers the hot routes itself and leaves all else to the application.

A hot route is an `Exchange` under an exact path. The lane reads its request, has the rows batched and writes the reply,
with no task and no ASGI message in between. What the application gives otherwise is the lane's own here: the order of
pipelined requests, deadlines, caps before any copy, slow readers, and the last answer of a connection that drains.

Order on one connection: hot requests take turns. A request for the application waits until no turn is left, and while
one is with the application, every request goes there (the same routes exist there too, with the same answers).
"""

from __future__ import annotations

import logging
from collections import deque
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sereno.serve.live import Live
from sereno.serve.lookup import Lookups
from sereno.serve.reads import Plain
from sereno.serve.service import Service
from sereno.serve.turn import Head, Tail, Turn
from sereno.serve.wire import Exchange, Reply, Request, RequestError

LOG = logging.getLogger("sereno.serve")

NEW = tuple.__new__  # of a NamedTuple, without the function in between
MAX_HEADER_BYTES = 1 << 16
MOST_OVERHEAD = 8  # bytes received for a byte of body: a chunk of one byte takes six
MOST_TURNS = 64  # requests of one connection that wait for their replies, before less is read
LINGER_SECONDS = 1.0
DRAIN_IDLE_SECONDS = 5.0  # how long a draining connection may take to send the request that is its last
# what the lane leaves to the application; the first three come here only where they come twice
APPLICATION_HEADERS = frozenset(
    (b"host", b"authorization", b"origin", b"x-api-key", b"expect", b"upgrade", b"content-encoding")
)
ON_ITS_WAY: Any = type("OnItsWay", (), {"response_complete": False, "disconnected": False, "keep_alive": True})()
IN_BURST: Any = type("InBurst", (), {"output": None})()  # keeps a plain request's place among the turns
OBJECT = ord("{")
MOST_AWAITED = 1 << 16  # bytes of a body; a longer one goes through the parser, piece by piece


class Lane(HttpToolsProtocol):
    """One connection. `config.loaded_app` is the App, which has the Service."""

    cycle: Any  # None until the first request for the application

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.service: Service = self.config.loaded_app.opened()
        self.turns: deque[Turn] = deque()  # hot requests without a reply, or behind one without
        self.held: deque[tuple[Turn, Request]] = (
            deque()
        )  # of those, requests of a client that does not read its replies
        self.turn: Turn | None = None  # the hot request that is being received
        self.body: bytes | bytearray = b""
        self.awaited = b""  # a request with a known head, of whose body some is missing
        self.head = b""  # what was received up to an empty line, where a request begins with it
        self.received_bytes, self.began_now = 0, False  # of a request, after the read that it began in
        self.receiving_since = 0.0  # a request began and is not complete; 0: none
        self.has_headers = False
        self.is_draining = self.is_refusing = self.is_lost = self.is_half_closed = False
        self.paused_since = 0.0  # the client does not read; 0: it does
        self.active, self.has_asked = self.service.now, False  # last sign of life; whether it has got an answer

    # What arrives

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.is_draining = self.service.is_draining

    def data_received(self, data: bytes) -> None:
        if self.is_refusing:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if data.startswith(b"GET ") and not self.receiving_since and self._look_up(data):
            return
        self.head = b""
        since = self.receiving_since
        if self.awaited:
            data, self.awaited, self.receiving_since = self.awaited + data, b"", 0.0
        if not self.receiving_since:  # a request begins here
            end = data.find(b"\r\n\r\n") + 4
            self.head = data[:end]
            known = self.service.heads.get(self.head)
            if known is not None and (self.cycle is None or not self._is_with_application()):
                missing = end + known.length - len(data)
                if missing == 0:
                    self._take(known, data[end:])
                    return
                if 0 < missing <= MOST_AWAITED:  # most clients send the head first, and the body after it
                    self.awaited, self.has_headers = data, True
                    self.receiving_since = since or self.service.now  # however many pieces it comes in
                    return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:  # the parser is done with this connection: the request that asked for it is the last
                self.is_refusing = True
                self._end_with_application()
            return
        except httptools.HttpParserError:
            self.refuse(RequestError(400, "This is no valid HTTP request."))
            return
        if (
            self.receiving_since and self.began_now
        ):  # how much of this belongs to the request is not known, nor is it much
            self.began_now = False
        elif self.receiving_since and not self.is_refusing:
            self.received_bytes += len(data)
            if not self.has_headers and self.received_bytes > MAX_HEADER_BYTES:
                self.refuse(RequestError(431, f"The headers are longer than {MAX_HEADER_BYTES:,} bytes."))
            elif self.received_bytes > MAX_HEADER_BYTES + MOST_OVERHEAD * self.service.limits.max_body_bytes:
                self.refuse(self.service.too_large(), self.turn)

    def _take(self, known: Head, body: bytes) -> None:
        """A request whose head needs no parsing."""
        bursts = known.bursts
        if bursts is not None and bursts.batcher.is_on_loop and not self.turns and body[0] == OBJECT:
            self.url = known.url
            self.turns.append(IN_BURST)
            bursts.add(self, body)
            return
        turn = Turn(self, known.exchange, known.live, self.service.request_id(None), close=False)
        self._append(turn)
        turn.ask(NEW(Request, (b"POST", known.url, b"", known.headers, body, turn.request_id)))

    def _look_up(self, data: bytes) -> bool:
        """The shortest path of a lookup: one GET, all but its path known. False: it takes a longer look."""
        end = data.find(b" HTTP/1.1\r\n")
        service = self.service
        tail = service.tails.get(data[end:])
        if tail is None or self.turns or self.is_draining or (self.cycle is not None and self._is_with_application()):
            return False
        at = data.find(b"/predictions/", 4, end) + 13
        lookup = service.lookups.get(data[4:at])
        if lookup is None:
            return False
        since = perf_counter()
        if lookup.reads is not None:
            return self._look_up_far(lookup, data[4:end], at - 4, tail.none_match, since)
        reply = lookup.plain(data[at:end], tail.none_match, service, self.server_state.default_headers)
        if reply is None:
            return False
        self.transport.write(reply)
        self.active, self.has_asked = service.now, True
        service.done(lookup.name, "lookup", 200 if tail.none_match is None else 304, perf_counter() - since)
        return True

    def _look_up_far(self, lookup: Lookups, path: bytes, at: int, none_match: bytes | None, since: float) -> bool:
        """The same where the store is on another machine."""
        assert lookup.reads is not None
        if not lookup.is_plain or lookup.reads.is_full or (key := lookup.keys.plain(path[at:])) is None:
            return False
        self.turns.append(IN_BURST)
        lookup.reads.add(Plain(self, key, path, none_match, since))
        return True

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.turn = None
        self.has_headers = False
        self.received_bytes, self.began_now = 0, True
        self.receiving_since = self.service.now

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_headers:  # what comes after the last chunk of a body is nothing that we read
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.has_headers = True
        head, self.head = self.head, b""  # of the first request in what was received
        if self.is_refusing:
            return
        service = self.service
        hot = None if self._is_with_application() else self._hot(method := self.parser.get_method())
        if hot is None:
            self._to_application()
            return
        host = authorization = given_id = origin = none_match = None
        length = 0
        for name, value in self.headers:
            if name == b"host" and host is None:
                host = value
            elif name == b"authorization" and authorization is None:
                authorization = value
            elif name == b"origin" and origin is None:
                origin = value
            elif name == b"content-length":
                length = int(value)
            elif name == b"x-request-id":
                given_id = value if given_id is None else given_id
            elif name == b"transfer-encoding":
                head = b""
            elif name == b"if-none-match":
                head, none_match = head if none_match is None else b"", value
            elif name in APPLICATION_HEADERS:
                self._to_application()
                return
        close = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        turn = Turn(self, *hot, service.request_id(given_id), close=close)
        turn.method = method
        error = service.guard.check(self.url.partition(b"?")[0], host, authorization, origin)
        if error is None and length > service.limits.max_body_bytes:
            error = service.too_large()
        if error is not None:
            self.refuse(error, turn)
            return
        is_known = given_id is None and not close and head.count(b"\r\n") == head.count(b"\n") == len(self.headers) + 2
        if is_known and method == b"GET" and service.least_logged > 200:
            if not length and b"?" not in self.url:
                service.remember_tail(head[head.index(b" HTTP/1.1\r\n") :], Tail(none_match))
        elif is_known and length and method == b"POST":
            is_plain = hot[0].is_plain and hot[1].fetcher is None and service.least_logged > 200
            bursts = service.bursts[hot[1].name] if is_plain else None
            service.remember(head, Head(*hot, self.url, self.headers, length, bursts))
        self.turn, self.body = turn, b""

    def on_body(self, body: bytes) -> None:
        turn = self.turn
        if turn is None:
            if not self.is_refusing:
                super().on_body(body)
            return
        if len(self.body) + len(body) > self.service.limits.max_body_bytes:
            self.turn = None
            self.refuse(self.service.too_large(), turn)
        elif not self.body:
            self.body = body
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += body

    def on_message_complete(self) -> None:
        self.receiving_since = 0.0
        turn = self.turn
        if turn is None:
            if not self.is_refusing:
                super().on_message_complete()
            return
        self.turn = None
        self._append(turn)
        path, _, query = self.url.partition(b"?")
        request = Request(turn.method, path, query, self.headers, bytes(self.body), turn.request_id)
        if self.paused_since:  # a small request may have a large reply
            self.held.append((turn, request))
        else:
            turn.ask(request)

    def _append(self, turn: Turn) -> None:
        self.turns.append(turn)
        if len(self.turns) >= MOST_TURNS:
            self.flow.pause_reading()  # until `flush` has written some

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has sent all it will may still wait for its answers."""
        if self.scheme != "http" or not (self.turns or self._is_with_application()):
            return None
        self.is_half_closed = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_lost = True
        self.turns.clear()
        self.held.clear()

    # To and from the application

    def _hot(self, method: bytes) -> tuple[Exchange, Live] | None:
        """What this request is for, where the lane answers it."""
        if method == b"POST":
            return self.service.hot.get(self.url)
        at = self.url.find(b"/predictions/") + 13 if method == b"GET" else 0
        return self.service.hot_lookups.get(self.url[:at])

    def _is_with_application(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _to_application(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        if self.turns:
            self.cycle = ON_ITS_WAY  # so that this one is queued; flush() starts it
        super().on_headers_complete()
        if self.is_draining:
            self._end_with_application()

    def _end_with_application(self) -> None:
        """What the application answers next is the connection's last."""
        if self.cycle is not None and self.cycle is not ON_ITS_WAY:
            self.cycle.keep_alive = False

    def _should_upgrade(self) -> bool:
        """To a WebSocket, by a GET without a body that waits for nobody's reply; anything else is a request like others."""
        if self.turns or self._is_with_application():  # the stream would begin before that reply
            return False
        if self.parser.get_method() != b"GET" or any(
            n in (b"content-length", b"transfer-encoding") for n, _ in self.headers
        ):
            return False
        return super()._should_upgrade()

    def on_response_complete(self) -> None:
        self.active, self.has_asked = self.service.now, True
        if self.is_half_closed and not self.pipeline:
            self.transport.close()
            return
        super().on_response_complete()

    # What leaves

    def write(self, exchange: Exchange, live: Live, reply: Reply, request_id: bytes, since: float) -> None:
        """The reply to a request that was in a burst."""
        if self.is_lost:
            return
        turn = self.turns[0] = Turn(self, exchange, live, request_id, close=False)
        turn.since, turn.path = since, self.url
        turn.reply(reply)

    def flush(self) -> None:
        """Write the replies whose turn it is."""
        turns = self.turns
        self.active, self.has_asked = self.service.now, True
        transport = self.transport
        while turns:
            turn = turns[0]
            if turn.output is None:
                return
            turns.popleft()
            transport.write(turn.output)
            if turn.close:
                turns.clear()
                self.is_refusing = self.is_lost = True  # whatever was asked after it gets no reply any more
                self._close()
                return
        if self.flow.read_paused and not self.paused_since and not self.pipeline:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.is_half_closed:
            transport.close()

    def refuse(self, error: RequestError, turn: Turn | None = None) -> None:
        """Answer a request that is not read to its end, in its turn; it is the connection's last."""
        self.is_refusing = True
        self.receiving_since = 0.0
        service = self.service
        if self._is_with_application():  # its answer comes first, and is the last
            self._end_with_application()
            return
        if turn is None:
            turn = Turn(self, service.fallback, None, service.request_id(None), close=True)
        else:
            turn.path = self.url
        turn.since, turn.close = perf_counter(), True
        self.turns.append(turn)
        turn.reply(turn.exchange.refuse(error))

    def _close(self) -> None:
        """Close, but let a client that still sends read our answer first: a reset would take it away."""
        if self.scheme == "http" and not self.is_half_closed and self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    # Time

    def shutdown(self) -> None:
        """The server drains. An idle connection gets one more answer, with `Connection: close`, so that no client that
        sends at this moment sees a reset; one that stays quiet is closed by `check`."""
        self.is_draining = True
        self.active = self.service.now
        if self._is_with_application():
            self._end_with_application()

    def check(self, now: float) -> None:
        """Close what has been quiet, slow or deaf for too long; called for every connection once a second."""
        limits = self.service.limits
        if self.paused_since and now - self.paused_since > limits.request_timeout_seconds:
            self.transport.abort()
        elif self.receiving_since and not (self.has_headers and self._is_with_application()):  # that one sees to it
            late = limits.request_timeout_seconds if self.has_headers else limits.header_timeout_seconds
            if now - self.receiving_since <= late:
                return
            if self.has_headers and self.turn is None and not self.awaited:
                self.transport.close()  # the application has answered it, without waiting for its body
            else:
                self.refuse(RequestError(408, f"The request was not complete within {late:g} seconds."), self.turn)
        elif not self.turns and not self._is_with_application():
            quiet = limits.keep_alive_seconds if self.has_asked else limits.header_timeout_seconds
            if self.is_draining:
                quiet = min(quiet, DRAIN_IDLE_SECONDS)
            if now - self.active > quiet:
                self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's timer; `check` looks at all connections in its place."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_since = self.service.now
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.paused_since = 0.0
        while self.held and not self.paused_since:
            turn, request = self.held.popleft()
            turn.ask(request)
        if not self.paused_since:
            self.flow.resume_reading()
