"""The ASGI application: every route, hot ones too, so that any server and any test gets the same answers.

A request passes one guard, whatever its route and method; then its route is looked up.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from sereno.model import Model
from sereno.serve.options import Options
from sereno.serve.routes import refuse_at, socket_routes
from sereno.serve.service import Service, open_service
from sereno.serve.wire import Reply, Request, RequestError, Route, read, settle

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CLOSE = ((b"connection", b"close"),)
TEXT = b"text/plain; charset=utf-8"


class App:
    """The application, under any ASGI server. The models are loaded when the server starts it, or at the first request."""

    def __init__(self, opening: Callable[[], Service]) -> None:
        self._opening = opening
        self._service: Service | None = None
        self._routed: Starlette | None = None

    def opened(self) -> Service:
        """The service, with every model loaded. Raises what `open_service` raises."""
        if self._service is None:
            self._service = self._opening()
            self._routed = _routed(self._service)
        return self._service

    async def close(self) -> None:
        if self._service is not None:
            await self._service.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        service = self.opened()
        assert self._routed is not None
        error = service.guard.check_scope(scope)
        if scope["type"] == "websocket":
            if error is not None:
                await send({"type": "websocket.close", "code": 1008, "reason": error.says[:100]})
            else:
                await self._routed(scope, receive, send)
            return
        started = perf_counter()
        given = next((v for n, v in scope["headers"] if n == b"x-request-id"), None)
        call = Call(service, scope, receive, service.request_id(given))
        scope["sereno"] = call
        if error is not None:
            call.reply, call.is_turned_away = refuse_at(service, scope["path"])(error), True
            await call.send_reply(send)
        else:
            await self._routed(scope, receive, send)
        call.finished(perf_counter() - started)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.opened()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(*files: Path | str, options: Options | None = None, own: Model | None = None) -> App:
    """The application of some model files, or of the project's models: `uvicorn.run(create_app("churn.py"))`."""
    options = options or Options(files=[Path(file) for file in files])
    return App(lambda: open_service(options, own=own))


class Call:
    """One request at the application: what its endpoint, the log and the metrics need of it."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, request_id: bytes) -> None:
        self.service, self.scope, self.receive, self.request_id = service, scope, receive, request_id
        self.protocol, self.model = "other", ""
        self.reply: Reply | None = None
        self.is_turned_away = False  # by the guard
        self.rows = 0

    @property
    def status(self) -> int:
        return self.reply.status if self.reply is not None else 0  # 0: the caller went away

    def finished(self, seconds: float) -> None:
        """Count it, and log it where it is to be logged."""
        service, scope, status = self.service, self.scope, self.status
        if not status:
            return
        service.done(self.model, self.protocol, status, seconds)
        if status >= service.least_logged:
            assert self.reply is not None
            service.access.log(
                status,
                scope["method"].encode(),
                (scope.get("raw_path") or scope["path"].encode()),
                self.request_id,
                scope["client"][0] if scope.get("client") else "unix",
                seconds,
                len(self.reply.body),
                protocol=self.protocol,
                model=self.model,
                rows=self.rows,
            )

    async def run(self, route: Route, parameters: dict[str, str]) -> Reply:
        """What the route answers, or its error in the route's own shape."""
        exchange, live = route.exchange, route.live
        refuse = exchange.refuse if exchange else route.refuse or self.service.fallback.refuse
        try:
            if exchange is None or live is None:
                assert route.answer is not None
                body = await self._body() if route.method == "POST" else b""
                return route.answer(self.service, self._request(body), parameters)
            self.protocol, self.model = exchange.name, live.name
            request = self._request(await self._body() if route.method == "POST" else b"")
            asked = await read(exchange, live, request)
            if asked.reply is not None:
                return asked.reply
            self.rows = len(asked.rows)
            return settle(
                exchange, live, asked, await live.ask(asked.rows, self.request_id, one_by_one=asked.one_by_one)
            )
        except RequestError as error:
            return refuse(error)
        except Exception as error:  # noqa: BLE001 - a bug of ours: the caller gets its id, the log the traceback
            return refuse(self.service.bug(error))

    def _request(self, body: bytes) -> Request:
        scope = self.scope
        path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
        return Request(scope["method"].encode(), path, scope["query_string"], scope["headers"], body, self.request_id)

    async def _body(self) -> bytes:
        """The whole body, unpacked. Raises RequestError: 408 too slow, 413 too large, 415 packed in another way."""
        limits = self.service.limits
        most = limits.max_body_bytes
        headers = dict(self.scope["headers"])
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b"deflate"):
            raise RequestError(415, "The body is packed in a way that is not known here. Valid are gzip and deflate.")
        if int(headers.get(b"content-length", b"0")) > most:
            raise self.service.too_large()
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(limits.request_timeout_seconds):
                while more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "The request was not complete.")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise self.service.too_large()
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestError(
                408, f"The request was not complete within {limits.request_timeout_seconds:g} seconds."
            ) from None
        body = b"".join(parts)
        return body if encoding == b"identity" else unpacked(body, encoding, most)

    async def send_reply(self, send: Send) -> None:
        reply = self.reply
        assert reply is not None
        headers = [(b"content-type", reply.content_type), (b"x-request-id", self.request_id), *reply.headers]
        if reply.status != 304:
            headers.append((b"content-length", b"%d" % len(reply.body)))
        if self.is_turned_away or reply.status in (408, 413):
            headers += CLOSE  # what is left of the body is not read
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


def unpacked(body: bytes, encoding: bytes, most: int) -> bytes:
    """The body that was packed. Raises RequestError: 400 damaged, 413 larger than that when unpacked."""
    for wbits in (31,) if encoding == b"gzip" else (15, -15):  # deflate comes with and without a header of zlib
        unpacker = zlib.decompressobj(wbits)
        try:
            out = unpacker.decompress(body, most + 1)
        except zlib.error:
            continue
        if len(out) > most:
            raise RequestError(413, f"The body is larger than {most:,} bytes when it is unpacked.")
        if unpacker.eof and not unpacker.unused_data:
            return out
    raise RequestError(400, f"The body is no {encoding.decode()}, or not all of it.")


class _Sent(Response):
    """Sends a call's reply exactly as it is."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._call.send_reply(send)


def _endpoint(route: Route) -> Callable[[StarletteRequest], Awaitable[Response]]:
    async def endpoint(request: StarletteRequest) -> Response:
        call: Call = request.scope["sereno"]
        call.reply = await call.run(route, dict(request.path_params))
        return _Sent(call)

    return endpoint


async def _no_route(request: StarletteRequest, error: Exception) -> Response:
    call: Call = request.scope["sereno"]
    status = error.status_code if isinstance(error, HTTPException) else 500
    says = {
        404: "There is nothing under this path. GET /models tells what is served.",
        405: "This path takes another method.",
    }
    reply = refuse_at(call.service, request.scope["path"])(RequestError(status, says.get(status, "It failed.")))
    if status == 405 and isinstance(error, HTTPException) and error.headers:
        reply = reply._replace(
            headers=[*reply.headers, *((k.lower().encode(), v.encode()) for k, v in error.headers.items())]
        )
    call.reply = reply
    return _Sent(call)


class _Rest(Convertor[str]):
    """All that is left of a path, line breaks too, which Starlette's own `path` stops at."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def _routed(service: Service) -> Starlette:
    register_url_convertor("rest", _Rest())
    routes: Sequence[BaseRoute] = [
        *(StarletteRoute(route.path, _endpoint(route), methods=[route.method]) for route in service.routes),
        *socket_routes(service),
    ]
    routed = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    routed.router.redirect_slashes = False  # a redirect would be made of the Host that the caller sent
    return routed
