"""The shortest path: plain requests that arrive in the same turn of the event loop, decoded, answered and written together.

A request is plain where its body is one row and its reply that row's answer, as on our own route. Nothing but the
bookkeeping differs from the way of all others: the same decoder, the same queue, the same `predict`, the same replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sereno.rows import Row
from sereno.serve.batcher import Waiting
from sereno.serve.wire import JSON, Exchange, Reply, RequestError

if TYPE_CHECKING:
    from sereno.serve.lane import Lane
    from sereno.serve.live import Live
    from sereno.serve.service import Service


class Bursts:
    """Collects the plain requests to one model, until its batcher takes the next batch."""

    def __init__(self, service: Service, exchange: Exchange, live: Live) -> None:
        self.service, self.exchange, self.live = service, exchange, live
        self._items: list[tuple[Lane, bytes]] = []
        self.batcher = live.batcher
        self.batcher.gather = self.gather

    def add(self, lane: Lane, body: bytes) -> None:
        """A plain request; the lane keeps its place in the order of its connection until `lane.write` is called."""
        self._items.append((lane, body))
        if len(self._items) == 1:
            self.batcher.wake()

    def gather(self) -> None:
        """Decode what has arrived, and hand it to the batcher as one piece."""
        if not self._items:
            return
        items, self._items = self._items, []
        service, decode = self.service, self.live.decode
        lanes: list[Lane] = []
        rows: list[Row] = []
        since = perf_counter()
        for lane, body in items:
            try:
                rows.append(decode(body))
                lanes.append(lane)
            except RequestError as error:
                self._refuse(lane, error, since)
            except Exception as error:  # noqa: BLE001 - a bug of ours: this caller is told its id, the others go on
                self._refuse(lane, service.bug(error), since)
        room = self.batcher.room
        if len(rows) > room:
            for lane in lanes[room:]:
                self._refuse(lane, self.batcher.busy(), since)
            del lanes[room:], rows[room:]
        if rows:
            self.batcher.submit(Burst(self, lanes, rows, since))

    def _refuse(self, lane: Lane, error: RequestError, since: float) -> None:
        lane.write(self.exchange, self.live, self.exchange.refuse(error), self.service.request_id(None), since)


class Burst(Waiting):
    """One row of each of many connections."""

    def __init__(self, bursts: Bursts, lanes: Sequence[Lane], rows: Sequence[Row], since: float) -> None:
        self.rows, self.since = rows, since
        self._bursts, self._lanes = bursts, lanes
        new_id = bursts.service.request_id
        self._ids = [new_id(None) for _ in rows]

    def ids(self, first: int, count: int) -> list[bytes]:
        return self._ids[first : first + count]

    def tell(self, answers: Sequence[Any]) -> None:
        live, exchange, service = self._bursts.live, self._bursts.exchange, self._bursts.service
        encode = live.encode
        start = None
        done, now = 0, service.now
        for lane, request_id, answer in zip(self._lanes, self._ids, answers, strict=True):
            if type(answer) is not tuple or lane.is_draining or lane.is_lost:
                reply = exchange.refuse(answer) if isinstance(answer, RequestError) else Reply(200, encode(answer))
                lane.write(exchange, live, reply, request_id, self.since)
                continue
            if start is None:
                start = service.start(lane.server_state.default_headers, 200, JSON)
            body = encode(answer)
            done += 1
            turns = lane.turns
            turns.popleft()
            lane.active, lane.has_asked = now, True
            lane.transport.write(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (start, request_id, len(body), body))
            if turns or lane.pipeline or lane.is_half_closed:
                lane.flush()
        if done:
            service.done(live.name, exchange.name, 200, perf_counter() - self.since, done)
