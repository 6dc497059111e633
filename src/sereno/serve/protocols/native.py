"""Our own routes: a row object is answered by a prediction object, a list of rows by a list, in the same order.

Errors are problem details (RFC 9457), `application/problem+json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.serve.wire import JSON, Asked, Exchange, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

PROBLEM = b"application/problem+json"
BLANKS = b" \t\n\r"


def read(live: Live, request: Request) -> Asked:
    body = request.body
    if body.startswith(b"{") or not body.lstrip(BLANKS).startswith(b"["):
        return Asked([live.decode(body)])
    return Asked(live.decode_many(body), context=list)


def write(live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
    if asked.context is None:
        return Reply(200, live.encode(answers[0]))
    return Reply(200, live.encode_many(answers))


def refuse(error: RequestError) -> Reply:
    """Problem details: type, title, status, detail, and `errors` (row, column, expected) or `error_id`."""
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.says,
    }
    if error.mistakes:
        problem["errors"] = [m._asdict() for m in error.mistakes]
    if error.error_id is not None:
        problem["error_id"] = error.error_id
    return Reply(error.status, msgspec.json.encode(problem), PROBLEM, extra_headers(error))


def extra_headers(error: RequestError) -> tuple[tuple[bytes, bytes], ...]:
    """What an error's status asks for beside the body, whatever the protocol."""
    if error.retry_after is not None:
        return ((b"retry-after", b"%d" % error.retry_after),)
    if error.status == 401:
        return ((b"www-authenticate", b"Bearer"),)
    return ()


NATIVE = Exchange("native", read, write, refuse, is_plain=True)


def routes(service: Service) -> list[Route]:
    found = [
        Route("POST", f"/models/{live.name}/predict", exchange=NATIVE, live=live) for live in service.lives.values()
    ]
    if service.only is not None:
        found.append(Route("POST", "/predict", exchange=NATIVE, live=service.only))
    found.append(Route("GET", "/models", answer=_models))
    return found


def _models(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    """The models that are served."""
    models = [
        {"name": live.name, "model_version": live.model_version, "ready": live.is_ready}
        for live in service.lives.values()
    ]
    return Reply(200, msgspec.json.encode({"models": models}), JSON)
