"""Asks a server (`sereno serve`) for predictions.

    client = sereno.Client("http://127.0.0.1:8000")
    client.predict({"age": 33, "plan": "family"})       # one row → one prediction
    client.predict([row, row])                          # a list, or a data frame → the same, in the same order

`AsyncClient` is its twin, to be awaited. What they send, when they try again and what an answer means is decided by
`_Call`, which both share and which touches no network.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self, overload
from urllib.parse import quote

import httpx
import msgspec

from sereno.exceptions import InvalidRowsError, ServerError, SettingsError, UnavailableError
from sereno.serve.wire import Mistake
from sereno.values import plain_value

FIRST_WAIT_SECONDS = 0.1  # at most; it doubles with each try
LONGEST_WAIT_SECONDS = 5.0
SHOWN = 10  # mistakes in a message; the error has them all
BUSY = (429, 503)  # refused before it was begun, so that it may be sent again
SOCKET = "unix://"
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
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
            and at least as long as the server says (Retry-After).
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
        self._settings = _Settings(address, model, key, timeout_seconds, connect_timeout_seconds, retries)
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
        call = _Call(self._settings, rows, model)
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
        self._settings = _Settings(address, model, key, timeout_seconds, connect_timeout_seconds, retries)
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
        import anyio  # httpx's own, so that it runs under asyncio and trio

        call = _Call(self._settings, rows, model)
        while True:
            try:
                with anyio.fail_after(call.left()):
                    wait = await self._try(call)
            except TimeoutError as error:
                raise call.not_in_time() from error
            if wait is None:
                return call.answer
            await anyio.sleep(wait)

    async def _try(self, call: _Call) -> float | None:
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

    call: _Call

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


class _Settings:
    """What is the same for all calls of a client."""

    def __init__(
        self,
        address: str,
        model: str | None,
        key: str | None,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        retries: int,
    ) -> None:
        self.address = address
        self.socket = address.removeprefix(SOCKET) if address.startswith(SOCKET) else None
        self.url = "http://localhost" if self.socket is not None else address.rstrip("/")
        if not address.startswith(("http://", "https://", SOCKET)):
            raise SettingsError(
                f"The address {address!r} of a server cannot be. Write http://HOST:PORT, https://HOST:PORT, or "
                "unix:///PATH for a Unix socket."
            )
        self.model = model
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"
        self.timeout_seconds = timeout_seconds
        self.connect_timeout_seconds = connect_timeout_seconds
        self.retries = retries


class _Call:
    """One call: its requests, and after each try either the answer, or how long to wait, or an error."""

    def __init__(self, settings: _Settings, rows: Any, model: str | None) -> None:
        self.settings = settings
        self.answer: Any = None
        self._rows = rows
        self._body = _json(_records(rows))
        name = settings.model if model is None else model
        self._url = settings.url + ("/predict" if name is None else f"/models/{quote(name, safe='')}/predict")
        self._id = uuid.uuid4().hex  # one for all tries, so that the server's log shows them as one call
        self._until = time.monotonic() + settings.timeout_seconds
        self._tries = 0
        self._received: list[bytes] = []

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        self._tries += 1
        self._received = []
        left = self.left()
        timeout = httpx.Timeout(left, connect=min(left, self.settings.connect_timeout_seconds))
        return http.build_request(
            "POST", self._url, content=self._body, headers={"X-Request-ID": self._id}, timeout=timeout
        )

    def receive(self, chunk: bytes) -> None:
        """Take a piece of an answer's body. Raises UnavailableError where the answer takes too long."""
        self._received.append(chunk)
        if self._left() <= 0:
            raise self.not_in_time()

    def answered(self, response: httpx.Response) -> float | None:
        """None: there is an answer. Else the seconds to wait before the next try. Raises ServerError."""
        body = b"".join(self._received)
        if response.status_code != 200:
            error = self._error_of(response, body)
            if response.status_code in BUSY:
                return self._wait(error, _retry_after(response))
            raise error
        try:
            answers = msgspec.json.decode(body)
        except NOT_JSON as error:
            raise self._error(ServerError, "what it answered is no JSON. Is this a server of Sereno?", 200) from error
        if _library(self._rows) and not _are_answers(answers, len(self._rows)):
            raise self._error(ServerError, "what it answered is not a prediction for each row.", 200)
        self.answer = _like(self._rows, answers)
        return None

    def failed(self, error: httpx.TransportError) -> float:
        """Seconds to wait before the next try, after one that brought no answer. Raises UnavailableError, ServerError."""
        if isinstance(error, httpx.ConnectTimeout) and self._left() > 0:
            seconds = self.settings.connect_timeout_seconds
            return self._wait(self._unavailable(f"it could not be reached within {seconds:g} s"), 0, error)
        if isinstance(error, httpx.TimeoutException):
            raise self.not_in_time() from error
        if _is_distrust(error):
            raise self._error(
                ServerError,
                f"its certificate is not accepted ({error}). `certificate=` names the authority that signed it",
            ) from error
        if isinstance(error, httpx.NetworkError):  # refused, or reset
            return self._wait(self._unavailable(f"there is no connection ({_words(error)})"), 0, error)
        if isinstance(error, httpx.RemoteProtocolError) and "without sending a response" in str(error):
            return self._wait(self._unavailable("it closed the connection instead of answering"), 0, error)
        raise self._error(ServerError, f"this is no HTTP that could be understood ({error})") from error

    def broken(self, error: httpx.RequestError) -> ServerError:
        """The error of an answer that began and did not end."""
        if isinstance(error, httpx.TimeoutException):
            return self.not_in_time()
        return self._unavailable(f"its answer broke off ({_words(error)})")

    def _wait(self, error: ServerError, at_least: float, cause: Exception | None = None) -> float:
        most = min(FIRST_WAIT_SECONDS * 2 ** (self._tries - 1), LONGEST_WAIT_SECONDS)
        wait = at_least + random.uniform(0, most)  # full jitter: callers that failed together do not return together
        if self._tries > self.settings.retries or wait >= self._left():
            raise error from cause
        return wait

    def left(self) -> float:
        """Seconds until the call must end, as a timeout may be: never 0."""
        return max(self._left(), 0.001)

    def _left(self) -> float:
        return self._until - time.monotonic()

    def not_in_time(self) -> ServerError:
        return self._unavailable(f"it did not answer within {self.settings.timeout_seconds:g} s")

    def _unavailable(self, says: str) -> ServerError:
        tries = f" (tried {self._tries} times)" if self._tries > 1 else ""
        return UnavailableError(self._text(f"{says}{tries}"), request_id=self._id)

    def _error(self, kind: type[ServerError], says: str, status: int | None = None, **facts: Any) -> ServerError:
        return kind(self._text(says), status=status, request_id=self._id, **facts)

    def _text(self, says: str) -> str:
        return f"{self.settings.address}: {says}" + ("" if says.endswith(("?", ".")) else ".")

    def _error_of(self, response: httpx.Response, body: bytes) -> ServerError:
        """What the server said (problem details, RFC 9457), or what stands between it and us."""
        status = response.status_code
        problem = _problem(body)
        said = str(problem.get("detail") or problem.get("title") or response.reason_phrase or "no prediction")
        errors = problem.get("errors")
        mistakes = [
            Mistake(m["row"], m["column"], m["expected"])
            for m in (errors if isinstance(errors, list) else ())
            if isinstance(m, dict) and m.keys() >= {"row", "column", "expected"}
        ]
        several = not isinstance(self._rows, Mapping)
        shown = [f"{f'row {m.row}, ' if several else ''}{m.column}: {m.expected}" for m in mistakes[:SHOWN]]
        if len(mistakes) > SHOWN:
            shown.append(f"and {len(mistakes) - SHOWN} more")
        if shown:
            said = f"{said.rstrip('.')}: {'; '.join(shown)}"
        error_id = problem.get("error_id")
        if error_id is not None and str(error_id) not in said:
            said = f"{said.rstrip('.')}. The server's log has the cause under {error_id}"
        if status == 401:
            said = f"{said.rstrip('.')}. Give the client a `key=`"
        kind = InvalidRowsError if status == 422 else UnavailableError if status in (*BUSY, 504) else ServerError
        return self._error(kind, f"{status}: {said}", status, mistakes=mistakes, error_id=error_id)


def _verify(certificate: str | Path | None) -> ssl.SSLContext | bool:
    return True if certificate is None else ssl.create_default_context(cafile=str(certificate))


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _is_distrust(error: BaseException | None) -> bool:
    """Whether the server's certificate was refused, which no other try would change."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = msgspec.json.decode(body)
    except NOT_JSON:
        return {}
    return problem if isinstance(problem, dict) else {}


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a server asks to wait; 0 where it asks nothing."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _library(rows: Any) -> str:
    """Of a data frame: whose it is; else nothing."""
    kind = type(rows)
    library = kind.__module__.split(".")[0]
    return library if library in ("pandas", "polars", "pyarrow") and kind.__name__ in ("DataFrame", "Table") else ""


def _records(rows: Any) -> Any:
    match _library(rows):
        case "pandas":
            return rows.to_dict("records")
        case "polars":
            return rows.to_dicts()
        case "pyarrow":
            return rows.to_pylist()
    return rows


def _are_answers(answers: Any, count: int) -> bool:
    return isinstance(answers, list) and len(answers) == count and all(isinstance(one, dict) for one in answers)


def _like(rows: Any, answers: Any) -> Any:
    """Answers in the form in which the rows were given."""
    match _library(rows):
        case "pandas":
            return type(rows)(answers, index=rows.index)
        case "polars":
            return type(rows)(answers, infer_schema_length=None)
        case "pyarrow":
            return type(rows).from_pylist(answers)
    return answers


def _moment(value: Any) -> str:
    """What msgspec does not know: pandas' Timestamp."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"A row holds a value of type {type(value).__name__}, which has no form in JSON.")


def _json(rows: Any) -> bytes:
    plain = plain_value(rows)
    body = ENCODER.encode(plain)
    if b"null" in body:  # msgspec writes NaN and infinities so; the first is a missing value, the others are mistakes
        _no_infinity(plain)
    return body


ENCODER = msgspec.json.Encoder(decimal_format="string", enc_hook=_moment)


def _no_infinity(value: Any) -> None:
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise InvalidRowsError("A row holds an infinite number, which JSON cannot say.")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_infinity(part)
