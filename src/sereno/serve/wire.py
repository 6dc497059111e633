"""What the server and the protocols hand each other: a request, what it asks, the reply, and why there is none.

A protocol is an `Exchange`: three plain functions. The fast lane and the ASGI application call the same three, so both
give the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sereno.exceptions import MOST_TOLD

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

JSON = b"application/json"

Row = tuple[Any, ...]  # canonical values of one input row, in the order of `inputs.columns`
Answer = tuple[Any, ...]  # canonical values of one prediction, in the order of `outputs.columns`


class Request(NamedTuple):
    """An HTTP request, received whole."""

    method: bytes
    path: bytes  # as sent: percent-encoded, without the query
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]  # names in small letters
    body: bytes
    id: bytes  # the caller's X-Request-ID, or one of ours

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (in small letters)."""
        return next((v for n, v in self.headers if n == name), None)


class Reply(NamedTuple):
    """An HTTP answer; whoever sends it adds Content-Length and X-Request-ID."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()


class Mistake(NamedTuple):
    """One thing that is wrong with a row. Never holds the value."""

    row: int  # position in the request, from 0
    column: str  # with its path inside nested rows, `items[2].price`; "row" where the row as a whole is meant
    expected: str  # what would be valid: "must be at least 18"


TOO_MANY_WAIT = "Too many rows wait"  # a 503 that says so may be another answer soon, and clients ask again


@dataclass(eq=False)
class RequestError(Exception):
    """A request, or a row of it, that gets no answer.

    400 malformed, or another host · 401 no key or an unknown one · 403 from the page of another site · 404 no such model or
    route · 405 another method · 406 no type of answer that the caller accepts · 408 did not arrive in time · 413 too large ·
    415 another content type · 422 does not fit the row type · 431 headers too large · 500 the model raised or answered
    otherwise than declared, or a bug of ours · 503 too much to do, not ready · 504 not in time.
    """

    status: int
    says: str  # for the caller: what happened and what would be valid; no value, path or traceback
    mistakes: Sequence[Mistake] = ()  # of a 422: up to MOST_TOLD; of more, the last one says how many are left out
    retry_after: int | None = None  # seconds, of a 503
    error_id: str | None = None  # of a 500: the log has the traceback under it

    def __post_init__(self) -> None:
        # here, where every protocol's mistakes come by
        if len(self.mistakes) > MOST_TOLD:
            told = self.mistakes[: MOST_TOLD - 1]
            first = self.mistakes[len(told)]
            left = len(self.mistakes) - len(told)
            self.mistakes = [*told, Mistake(first.row, "row", f"{left:,} more mistakes from this row on")]

    def __str__(self) -> str:
        return self.says


class Awaited(Exception):
    """What a request asks for is asked elsewhere first. `begin` has that done, and calls back when it is to be read again.

    That reading is done while it calls back, as what was found is there only then; it may await something else in turn.
    """

    def __init__(self, begin: Callable[[Callable[[], None]], None]) -> None:
        self.begin = begin


@dataclass(slots=True)
class Asked:
    """What a request asks for."""

    rows: list[Row]
    context: Any = None  # what `write` needs to know beside the answers
    one_by_one: bool = False  # `write` is given RequestErrors in place of answers; else one of them fails the request
    known: Mapping[int, Answer] | None = None  # position → an answer that was looked up; `rows` are those in between
    reply: Reply | None = None  # all was looked up: there is nothing to ask the model
    headers: Sequence[tuple[bytes, bytes]] = ()  # for the reply, of where the known answers come from


@dataclass(frozen=True, slots=True)
class Exchange:
    """A protocol's way to ask a model: plain functions, called on the event loop, so none of them may wait."""

    name: str  # for metrics and logs: "native", "v2", …
    read: Callable[[Live, Request], Asked]  # raises RequestError, and Awaited: then it is called again
    write: Callable[[Live, Asked, Sequence[Any]], Reply]  # Answers in the order of the rows (RequestErrors: see Asked)
    refuse: Callable[[RequestError], Reply]  # the protocol's own error shape
    asks_model: bool = True  # else most of its requests are answered without, however much the model has to do
    is_plain: bool = False  # a JSON object is one row (`live.decode`), and its answer (`live.encode`) the whole reply


@dataclass(frozen=True, slots=True)
class Route:
    """One path of the API: an exchange with a model, or an answer that needs none.

    Routes with an exchange are hot where their path is exact: the fast lane answers them too.
    """

    method: str
    path: str  # "/v2/models/{m}/ready", in Starlette's syntax
    exchange: Exchange | None = None
    live: Live | None = None
    answer: Callable[[Service, Request, dict[str, str]], Reply] | None = None  # must not wait; raises RequestError
    refuse: Callable[[RequestError], Reply] | None = None  # the error shape of `answer`; problem details if not given


async def read(exchange: Exchange, live: Live, request: Request) -> Asked:
    """What a request asks for, once all that it takes to know that is there. Raises RequestError."""
    try:
        return exchange.read(live, request)
    except Awaited as awaited:
        there: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        awaited.begin(partial(_read_again, exchange, live, request, there))
        return await there


def _read_again(exchange: Exchange, live: Live, request: Request, there: asyncio.Future[Asked]) -> None:
    if there.done():  # the caller has gone
        return
    try:
        there.set_result(exchange.read(live, request))
    except Awaited as awaited:
        awaited.begin(partial(_read_again, exchange, live, request, there))
    except Exception as error:  # noqa: BLE001 - whoever awaits it tells one from another
        there.set_exception(error)


def settle(exchange: Exchange, live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
    """The reply to a request whose answers are there. Raises RequestError where one of them fails it."""
    if asked.known is not None:
        fresh = iter(answers)
        known = asked.known
        answers = [known[i] if i in known else next(fresh) for i in range(len(known) + len(asked.rows))]
    if not asked.one_by_one:
        for answer in answers:
            if type(answer) is not tuple:
                error = combined(answers)
                if asked.known is not None and error.status == 422:  # fetch has nothing for a key either
                    error = RequestError(404, "There is no prediction under the key of a row, and no features.")
                raise error
    reply = exchange.write(live, asked, answers)
    return reply._replace(headers=(*reply.headers, *asked.headers)) if asked.headers else reply


def combined(answers: Sequence[Any]) -> RequestError:
    """The one error of a request, some of whose rows have one."""
    failed = [(i, a) for i, a in enumerate(answers) if isinstance(a, RequestError)]
    first = min((a for _, a in failed), key=lambda a: a.status)
    if all(answer is first for answer in answers):  # one row, or an error of them all, which knows its rows itself
        return first
    mistakes = [Mistake(i, m.column, m.expected) for i, a in failed for m in a.mistakes]
    shown = ", ".join(str(i) for i, _ in failed[:10]) + (", …" if len(failed) > 10 else "")
    return RequestError(
        first.status, f"Rows {shown}: {first.says}", mistakes, retry_after=first.retry_after, error_id=first.error_id
    )
