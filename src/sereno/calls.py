"""What the clients ask, whichever way it travels: requests, when one is tried again, and what an answer means.

A `Call` touches no network and waits for nobody; `client.py` does both.
"""

from __future__ import annotations

import random
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
import msgspec

from sereno.exceptions import InvalidRowsError, ServerError, SettingsError, UnavailableError, UnknownKeyError
from sereno.lookup.found import UNKNOWN_KEY, Lookup, key_path, key_values
from sereno.serve.wire import TOO_MANY_WAIT, Mistake
from sereno.values import plain_value

FIRST_WAIT_SECONDS = 0.1  # at most; it doubles with each try
LONGEST_WAIT_SECONDS = 5.0
SHOWN = 10  # mistakes in a message; the error has them all
BUSY = (429, 503)  # refused before it was begun, so that it may be sent again
SOCKET = "unix://"
LONGEST_PATH = 60_000  # characters; a server takes 64 KiB with all headers
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Settings:
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


class Call:
    """One call: its requests, and after each try either the answer, or how long to wait, or an error.

    Its kinds say what is asked, and what an answer means.
    """

    method: ClassVar[str] = "POST"
    item: ClassVar[str] = "row"

    def __init__(self, settings: Settings, model: str | None, path: str, body: bytes | None, *, several: bool) -> None:
        self.settings = settings
        self.answer: Any = None
        name = settings.model if model is None else model
        self._url = settings.url + ("" if name is None else f"/models/{quote(name, safe='')}") + path
        self._body = body
        self._several = several  # rows or keys, so that a mistake says in which of them
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
            self.method, self._url, content=self._body, headers={"X-Request-ID": self._id}, timeout=timeout
        )

    def take(self, answers: Any) -> Any:
        """What the caller gets for the JSON of a 200. Raises ServerError where it is not what was asked for."""
        raise NotImplementedError

    def may_change_soon(self, body: bytes) -> bool:
        """Whether who says that it is busy may be asked again within seconds."""
        return True

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
            if response.status_code in BUSY and self.may_change_soon(body):
                return self._wait(error, _retry_after(response))
            raise error
        try:
            answers = msgspec.json.decode(body)
        except NOT_JSON as error:
            raise self._error(ServerError, "what it answered is no JSON. Is this a server of Sereno?", 200) from error
        self.answer = self.take(answers)
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
        shown = [
            f"{f'{self.item} {m.row}, ' if self._several else ''}{m.column}: {m.expected}" for m in mistakes[:SHOWN]
        ]
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


class Predict(Call):
    def __init__(self, settings: Settings, model: str | None, rows: Any) -> None:
        self._rows = rows
        body = _json(_records(rows))
        super().__init__(settings, model, "/predict", body, several=not isinstance(rows, Mapping))

    def take(self, answers: Any) -> Any:
        if _library(self._rows) and not _are_answers(answers, len(self._rows)):
            raise self._error(ServerError, "what it answered is not a prediction for each row.", 200)
        return _like(self._rows, answers)


class _ByKey(Call):
    """What both kinds of lookups have in common."""

    item = "key"

    def may_change_soon(self, body: bytes) -> bool:
        """Not where nothing is published yet, or what is published is refused as too old: that takes a run to change."""
        said = _problem(body).get("detail")
        return not isinstance(said, str) or TOO_MANY_WAIT in said  # without words it is none of ours, but a proxy

    def converted(self, answers: Any, kind: Any) -> Any:
        """The JSON of an answer as values of that type. Raises ServerError."""
        try:
            return msgspec.convert(answers, kind)
        except msgspec.ValidationError as error:
            raise self._error(ServerError, f"what it answered is no lookup ({error})", 200) from error


class LookUp(_ByKey):
    method = "GET"

    def __init__(self, settings: Settings, model: str | None, key: Any) -> None:
        path = f"/predictions/{key_path(key)}"
        if len(path) > LONGEST_PATH:
            raise InvalidRowsError("The key is too long for a URL. `lookup_many` takes it.")
        super().__init__(settings, model, path, None, several=False)

    def take(self, answers: Any) -> Any:
        return self.converted(answers, Lookup)

    def _error_of(self, response: httpx.Response, body: bytes) -> ServerError:
        error = super()._error_of(response, body)
        if _problem(body).get("detail") != UNKNOWN_KEY:
            return error
        return UnknownKeyError(str(error), status=error.status, request_id=error.request_id)


class LookUpMany(_ByKey):
    def __init__(self, settings: Settings, model: str | None, keys: Sequence[Any]) -> None:
        values = key_values(keys)
        self._count = len(values)
        super().__init__(settings, model, "/predictions", _json({"keys": values}), several=True)

    def take(self, answers: Any) -> Any:
        found = self.converted(answers, list[Lookup | None])
        if len(found) != self._count:
            raise self._error(ServerError, "what it answered is not a lookup of each key.", 200)
        return found


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
