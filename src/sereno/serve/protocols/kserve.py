"""KServe's first protocol, V1: `{"instances": […]}` in, `{"predictions": […]}` out. Its second one is V2 (`oip.py`).

An instance is an object, as on our own routes, or a list of values by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.serve.protocols.oip import refuse
from sereno.serve.protocols.positional import Positions
from sereno.serve.wire import Asked, Exchange, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service


class PredictRequest(msgspec.Struct, gc=False):
    instances: list[Any]


_decode = msgspec.json.Decoder(PredictRequest).decode
_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    """All paths of the protocol; those that predict are hot."""
    exchanges = [(live, Translation(live)) for live in service.lives.values()]
    return [
        *(
            Route(
                "POST", f"/v1/models/{live.name}:predict", exchange=Exchange("v1", t.read, t.write, refuse), live=live
            )
            for live, t in exchanges
        ),
        Route("GET", "/", answer=_alive, refuse=refuse),
        Route("GET", "/v1/models", answer=_models, refuse=refuse),
        Route("GET", "/v1/models/{m}", answer=_ready, refuse=refuse),
        Route("POST", "/v1/models/{m}:predict", answer=_unknown, refuse=refuse),  # what the exact paths did not take
    ]


class Translation:
    """Requests to one model into rows, and its answers into replies. Built once."""

    def __init__(self, live: Live) -> None:
        self._positions = Positions(live.row, live.decoder)

    def read(self, live: Live, request: Request) -> Asked:
        live.check_json(request.body)
        try:
            asked = _decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
            raise RequestError(400, f'The body is not {{"instances": […]}}: {reason}.') from None
        most = live.limits.max_rows
        if len(asked.instances) > most:
            raise RequestError(413, f"The request has {len(asked.instances):,} rows; at most {most:,} may be.")
        return Asked(live.rows_of(self._positions.of_items(asked.instances)))

    def write(self, live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
        return Reply(200, b'{"predictions":%s}' % live.encode_many(answers))


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
