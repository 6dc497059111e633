"""Asks a server (`sereno serve`) for predictions.

    client = sereno.Client("http://127.0.0.1:8000")
    client.predict({"age": 33, "plan": "family"})       # one row → one prediction
    client.predict([row, row])                          # a list, or a data frame → the same, in the same order
    client.lookup(1001)                                 # what the last run published for a key

`AsyncClient` is its twin, to be awaited. What they send, when they try again and what an answer means is decided by
`calls.py`, which both share.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import httpx

from sereno.calls import Call, LookUp, LookUpMany, Predict, Settings
from sereno.lookup.found import Lookup

PIECE = 1 << 16  # bytes that are sent before the time is looked at again


class Client:
    """Predictions of the models that a server has. Safe to share between threads; close it, or use it in `with`.

    Args:
        address: of the server: `http://…`, `https://…`, or `unix:///path/of/the/socket`.
        model: its name, where the server has several.
        key: an API key, where the server wants one.
        timeout_seconds: for a call as a whole, with all its tries and the waits between them.
        connect_timeout_seconds: to reach the server, in each try.
        retries: how often a call is tried again when the server has too much to do (503), or the connection is refused
            or breaks before any of the answer came. It waits a random time between tries, up to a limit that doubles,
            and at least as long as the server says (Retry-After). A lookup in which nothing is published, or nothing new
            enough, is not.
        certificate: PEM file of the authority that signed the server's certificate, if the system does not know it.
        transport: what carries the requests, if not the network: of httpx.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        connect_timeout_seconds: float = 5.0,
        retries: int = 3,
        certificate: str | Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settings = Settings(address, model, key, timeout_seconds, connect_timeout_seconds, retries)
        verify = _verify(certificate)
        if transport is None and self._settings.socket is not None:
            transport = httpx.HTTPTransport(uds=self._settings.socket, verify=verify)
        self._http = httpx.Client(headers=self._settings.headers, verify=verify, transport=transport)
        self._deadlines = _Deadlines()

    @overload
    def predict(self, rows: Mapping[str, Any], *, model: str | None = None) -> dict[str, Any]: ...
    @overload
    def predict(self, rows: Sequence[Mapping[str, Any]], *, model: str | None = None) -> list[dict[str, Any]]: ...
    @overload
    def predict(self, rows: Any, *, model: str | None = None) -> Any: ...
    def predict(self, rows: Any, *, model: str | None = None) -> Any:
        """The prediction of a row, or the predictions of several, in their order.

        A row is a mapping, or an instance of the model's row type, and gives a dict of JSON values (dates and decimals
        are texts). A list of rows gives a list; a frame of pandas, polars or Arrow gives a frame.

        Raises InvalidRowsError, UnavailableError, and ServerError for whatever else the server says.
        """
        return self._ask(Predict(self._settings, model, rows))

    def lookup(self, key: Any, *, model: str | None = None) -> Lookup:
        """What the last run published under a key: an int, a text or a date; where it has several columns, a tuple.

        Raises UnknownKeyError where nothing is, InvalidRowsError where it is no key of the model, UnavailableError
        also where nothing is published yet, or what is published is refused as too old (it is not tried again then), and
        ServerError for whatever else the server says.
        """
        found: Lookup = self._ask(LookUp(self._settings, model, key))
        return found

    def lookup_many(self, keys: Sequence[Any], *, model: str | None = None) -> list[Lookup | None]:
        """The same for several keys by one request, in their order; None where nothing is published under a key."""
        found: list[Lookup | None] = self._ask(LookUpMany(self._settings, model, keys))
        return found

    def _ask(self, call: Call) -> Any:
        self._deadlines.call = call
        while True:
            wait: float | None
            try:
                request = call.request(self._http)
                request.extensions["trace"] = self._deadlines.trace
                response = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                wait = call.failed(error)
            else:
                try:
                    for chunk in response.iter_bytes():
                        call.receive(chunk)
                except httpx.RequestError as error:
                    raise call.broken(error) from error
                finally:
                    response.close()
                wait = call.answered(response)
            if wait is None:
                return call.answer
            time.sleep(wait)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncClient:
    """The twin of `Client` for async code: the same arguments; `await client.predict(…)`, `async with`."""

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        connect_timeout_seconds: float = 5.0,
        retries: int = 3,
        certificate: str | Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = Settings(address, model, key, timeout_seconds, connect_timeout_seconds, retries)
        verify = _verify(certificate)
        if transport is None and self._settings.socket is not None:
            transport = httpx.AsyncHTTPTransport(uds=self._settings.socket, verify=verify)
        self._http = httpx.AsyncClient(headers=self._settings.headers, verify=verify, transport=transport)

    @overload
    async def predict(self, rows: Mapping[str, Any], *, model: str | None = None) -> dict[str, Any]: ...
    @overload
    async def predict(self, rows: Sequence[Mapping[str, Any]], *, model: str | None = None) -> list[dict[str, Any]]: ...
    @overload
    async def predict(self, rows: Any, *, model: str | None = None) -> Any: ...
    async def predict(self, rows: Any, *, model: str | None = None) -> Any:
        """As `Client.predict`."""
        return await self._ask(Predict(self._settings, model, rows))

    async def lookup(self, key: Any, *, model: str | None = None) -> Lookup:
        """As `Client.lookup`."""
        found: Lookup = await self._ask(LookUp(self._settings, model, key))
        return found

    async def lookup_many(self, keys: Sequence[Any], *, model: str | None = None) -> list[Lookup | None]:
        """As `Client.lookup_many`."""
        found: list[Lookup | None] = await self._ask(LookUpMany(self._settings, model, keys))
        return found

    async def _ask(self, call: Call) -> Any:
        import anyio  # httpx's own, so that it runs under asyncio and trio

        while True:
            try:
                with anyio.fail_after(call.left()):
                    wait = await self._try(call)
            except TimeoutError as error:
                raise call.not_in_time() from error
            if wait is None:
                return call.answer
            await anyio.sleep(wait)

    async def _try(self, call: Call) -> float | None:
        try:
            response = await self._http.send(call.request(self._http), stream=True)
        except httpx.TransportError as error:
            return call.failed(error)
        try:
            async for chunk in response.aiter_bytes():
                call.receive(chunk)
        except httpx.RequestError as error:
            raise call.broken(error) from error
        finally:
            await response.aclose()
        return call.answered(response)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class _Deadlines(threading.local):
    """Ends a call in time whatever the server does; httpx's own timeouts begin anew with every piece that comes or goes.

    httpcore hands out each connection as it is made (its extension `trace`). A connection is used by one thread at a
    time, whose call is the one that counts.
    """

    call: Call

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith(("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")):
            return
        stream = info["return_value"]
        read, write = stream.read, stream.write

        def read_in_time(most: int, timeout: float | None = None) -> bytes:
            received: bytes = read(most, self.call.left())
            return received

        def write_in_time(content: bytes, timeout: float | None = None) -> None:
            for start in range(0, len(content), PIECE):
                write(content[start : start + PIECE], self.call.left())

        stream.read, stream.write = read_in_time, write_in_time


def _verify(certificate: str | Path | None) -> ssl.SSLContext | bool:
    return True if certificate is None else ssl.create_default_context(cafile=str(certificate))
