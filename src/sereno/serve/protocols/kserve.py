"""KServe's first protocol, V1: `{"instances": […]}` in, `{"predictions": […]}` out, the same as Vertex AI's.

Its second one is V2 (`oip.py`), with which it shares the shape of errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sereno.serve.protocols.oip import refuse
from sereno.serve.protocols.vertex import Instances
from sereno.serve.wire import Exchange, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.service import Service

_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    """All paths of the protocol; those that predict are hot."""
    found = []
    for live in service.lives.values():
        instances = Instances(live)
        exchange = Exchange("v1", instances.read, instances.write, refuse)
        found.append(Route("POST", f"/v1/models/{live.name}:predict", exchange, live))
    return [
        *found,
        Route("GET", "/", answer=_alive, refuse=refuse),
        Route("GET", "/v1/models", answer=_models, refuse=refuse),
        Route("GET", "/v1/models/{m}", answer=_ready, refuse=refuse),
        Route("POST", "/v1/models/{m}:predict", answer=_unknown, refuse=refuse),  # what the exact paths did not take
    ]


def _alive(service: Service, request: Request, params: dict[str, str]) -> Reply:
    """`GET /`, by which KServe's client asks whether the server lives; a browser is shown the documentation."""
    if b"text/html" in (request.header(b"accept") or b""):
        return Reply(307, b"", headers=((b"location", b"/docs"),))
    return Reply(200, b'{"status":"alive"}')


def _models(service: Service, request: Request, params: dict[str, str]) -> Reply:
    return Reply(200, _encode({"models": list(service.lives)}))


def _ready(service: Service, request: Request, params: dict[str, str]) -> Reply:
    live = service.live(params["m"])
    return Reply(200 if live.is_ready else 503, _encode({"name": live.name, "ready": live.is_ready}))


def _unknown(service: Service, request: Request, params: dict[str, str]) -> Reply:
    service.live(params["m"])
    raise RequestError(404, "There is no such path.")
