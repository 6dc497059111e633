"""WebSocket `/models/{m}/stream`: for callers that keep a connection open while a customer browses.

A message (text or binary) is a row, a JSON object; its answer is a message, the prediction as JSON. Answers come in the
order of their rows. Many rows may be on their way: they are batched as those of all other requests. A row without an
answer gets problem details, as on our own route, and the connection stays open. A server that ends answers the rows that
are on their way, then closes with 1012 (service restart): connect again, and send what was not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sereno.serve.protocols import native
from sereno.serve.wire import Reply, RequestError

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

NAME = "stream"
MOST_ON_THEIR_WAY = 64  # rows of one connection; more are read once the first of them is answered
RESTART = 1012


def stream_routes(service: Service) -> list[WebSocketRoute]:
    found = [WebSocketRoute(f"/models/{live.name}/stream", _endpoint(service, live)) for live in service.lives.values()]
    if service.only is not None:
        found.append(WebSocketRoute("/stream", _endpoint(service, service.only)))
    return found


def _endpoint(service: Service, live: Live) -> Callable[[WebSocket], Awaitable[None]]:
    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MOST_ON_THEIR_WAY)
        reader = asyncio.create_task(_read(service, live, socket, waiting))
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
    service: Service, live: Live, socket: WebSocket, waiting: asyncio.Queue[asyncio.Task[bytes] | None]
) -> None:
    """Have each message answered; what is read is answered, also where the connection or the server ends."""
    with contextlib.suppress(WebSocketDisconnect, asyncio.CancelledError):
        while True:
            message = await socket.receive()
            if message["type"] != "websocket.receive":
                break
            text = message.get("text")
            body = text.encode() if text is not None else message.get("bytes") or b""
            task = asyncio.create_task(_answer(service, live, socket, body))
            try:
                await waiting.put(task)
            except asyncio.CancelledError:  # the server drains, while the caller does not read as fast as it asks
                await waiting.put(task)
                raise
    await waiting.put(None)


async def _answer(service: Service, live: Live, socket: WebSocket, body: bytes) -> bytes:
    started, request_id = perf_counter(), service.request_id(None)
    try:
        (answer,) = await live.ask([live.decode(body)], request_id)
        if isinstance(answer, RequestError):
            raise answer
        reply = Reply(200, live.encode(answer))
    except RequestError as error:
        reply = native.refuse(error)
    except Exception as error:  # noqa: BLE001 - a bug of ours: the caller gets its id, the log the traceback
        reply = native.refuse(service.bug(error))
    seconds = perf_counter() - started
    service.done(live.name, NAME, reply.status, seconds)
    if reply.status >= service.least_logged:
        client, path = socket.client.host if socket.client else "unix", socket.url.path.encode()
        size = len(reply.body)
        service.access.log(
            reply.status, b"GET", path, request_id, client, seconds, size, protocol=NAME, model=live.name, rows=1
        )
    return reply.body
