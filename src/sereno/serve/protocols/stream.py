"""WebSockets, for callers that keep a connection open while a customer browses.

    /models/{m}/stream          a message is a row, a JSON object; its answer is the prediction
    /models/{m}/predictions     a message is a key as JSON (a list where it is composite); its answer is what was looked up

Messages are text or binary. Answers come in the order of what was asked. Many rows may be on their way: they are batched
as those of all other requests. What has no answer gets problem details, as on our own routes, and the connection stays
open. A server that ends answers what is on its way, then closes with 1012 (service restart): connect again, and send what
was not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sereno.serve.protocols import native, predictions
from sereno.serve.wire import Asked, Exchange, Request, RequestError, read, settle

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

MOST_ON_THEIR_WAY = 64  # rows, or keys, of one connection; more are read once the first of them is answered
RESTART = 1012


def stream_routes(service: Service) -> list[WebSocketRoute]:
    found = []
    for live in service.lives.values():
        for prefix in (f"/models/{live.name}", "") if live is service.only else (f"/models/{live.name}",):
            found.append(WebSocketRoute(f"{prefix}/stream", _endpoint(service, live, STREAM)))
            if live.lookup is not None:
                found.append(WebSocketRoute(f"{prefix}/predictions", _endpoint(service, live, predictions.STREAM)))
    return found


def _read_row(live: Live, request: Request) -> Asked:
    return Asked([live.decode(request.body)])


STREAM = Exchange("stream", _read_row, native.write, native.refuse)


def _endpoint(service: Service, live: Live, exchange: Exchange) -> Callable[[WebSocket], Awaitable[None]]:
    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MOST_ON_THEIR_WAY)
        reader = asyncio.create_task(_read(service, live, exchange, socket, waiting))
        drain = asyncio.create_task(service.draining.wait())
        drain.add_done_callback(lambda _: reader.cancel())
        try:
            while (task := await waiting.get()) is not None:
                await socket.send_text((await task).decode())
            if service.is_draining and socket.client_state is WebSocketState.CONNECTED:
                await socket.close(RESTART, "The server ends or restarts. Connect again.")
        except (WebSocketDisconnect, RuntimeError):
            pass  # the caller has gone; Starlette says so by either
        finally:
            drain.cancel()
            reader.cancel()
            while not waiting.empty():
                if (left := waiting.get_nowait()) is not None:
                    left.cancel()

    return endpoint


async def _read(
    service: Service,
    live: Live,
    exchange: Exchange,
    socket: WebSocket,
    waiting: asyncio.Queue[asyncio.Task[bytes] | None],
) -> None:
    """Have each message answered; what is read is answered, also where the connection or the server ends."""
    with contextlib.suppress(WebSocketDisconnect, asyncio.CancelledError):
        while True:
            message = await socket.receive()
            if message["type"] != "websocket.receive":
                break
            text = message.get("text")
            body = text.encode() if text is not None else message.get("bytes") or b""
            task = asyncio.create_task(_answer(service, live, exchange, socket, body))
            try:
                await waiting.put(task)
            except asyncio.CancelledError:  # the server drains, while the caller does not read as fast as it asks
                await waiting.put(task)
                raise
    await waiting.put(None)


async def _answer(service: Service, live: Live, exchange: Exchange, socket: WebSocket, body: bytes) -> bytes:
    started, request_id = perf_counter(), service.request_id(None)
    try:
        asked = await read(exchange, live, Request(b"GET", socket.url.path.encode(), b"", (), body, request_id))
        reply = asked.reply or settle(
            exchange, live, asked, await live.ask(asked.rows, request_id, one_by_one=asked.one_by_one)
        )
    except RequestError as error:
        reply = exchange.refuse(error)
    except Exception as error:  # noqa: BLE001 - a bug of ours: the caller gets its id, the log the traceback
        reply = exchange.refuse(service.bug(error))
    seconds = perf_counter() - started
    service.done(live.name, exchange.name, reply.status, seconds)
    if reply.status >= service.least_logged:
        client, path = socket.client.host if socket.client else "unix", socket.url.path.encode()
        size = len(reply.body)
        service.access.log(
            reply.status,
            b"GET",
            path,
            request_id,
            client,
            seconds,
            size,
            protocol=exchange.name,
            model=live.name,
            rows=1,
        )
    return reply.body
