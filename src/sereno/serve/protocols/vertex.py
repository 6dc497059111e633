"""Vertex AI's custom containers: predict and health under whatever paths its variables hold.

`{"instances": [...], "parameters"?}` is answered with `{"predictions": [...]}`, one for each instance. An instance is an
object, or a list by position (`positional.py`). Of `parameters`, `{"lookup": true}` asks for what was published under the
keys of the instances (`keys.py`); others are passed over: predict takes rows and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.exceptions import SettingsError
from sereno.rows import NOT_DECODED
from sereno.serve.protocols.keys import ByKey, wants_lookup
from sereno.serve.protocols.mlflow import explained
from sereno.serve.protocols.native import extra_headers
from sereno.serve.protocols.positional import Positions
from sereno.serve.wire import Asked, Exchange, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

PREDICT, HEALTH = "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"


class Body(msgspec.Struct, gc=False):
    instances: msgspec.Raw
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    """None outside Vertex AI. They come before all others: the platform may choose a path that is one of ours."""
    found = []
    if predict := _path(PREDICT):
        live = service.only
        if live is None:
            found.append(Route("POST", predict, answer=_several, refuse=refuse))
        else:
            instances = Instances(live)
            exchange = Exchange("vertex", instances.read, instances.write, refuse)
            found.append(Route("POST", predict, exchange, live))
    if health := _path(HEALTH):
        found.append(Route("GET", health, answer=_health, refuse=refuse))
    return found


class Instances:
    """Requests to one model into rows, and its answers into replies. Built once."""

    def __init__(self, live: Live) -> None:
        self._positions = Positions(live.row, live.decoder, live.check_count)
        self._by_key = ByKey(live)

    def read(self, live: Live, request: Request) -> Asked:
        body = request.body
        live.check_json(body)
        try:
            parsed = _decode(body)
            raw = parsed.instances
            told = parsed.parameters is not msgspec.UNSET and wants_lookup(parsed.parameters)
            if (
                not told
                and body.count(b"{") <= live.limits.max_rows + 1
                and (rows := live.decoder.decode_list(raw)) is not None
            ):
                live.check_count(len(rows))
                return Asked(rows)
            instances = msgspec.json.decode(raw)
        except NOT_DECODED:
            raise RequestError(400, 'The body must be a JSON object with "instances".') from None
        if not isinstance(instances, list):
            raise RequestError(400, '"instances" must be a list.')
        if told or self._by_key.are_rows_alone(instances):
            return self._by_key.ask(self._by_key.positions.of_items(instances), told=told)
        return Asked(live.rows_of(self._positions.of_items(instances)))

    def write(self, live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
        return Reply(200, b'{"predictions":%s}' % live.encode_many(answers))


def refuse(error: RequestError) -> Reply:
    """`{"error": …}`, with the mistakes of all instances in it. Vertex AI hands it on as it is."""
    return Reply(error.status, _encode({"error": explained(error)}), headers=extra_headers(error))


def _path(variable: str) -> str:
    path = os.environ.get(variable, "")
    if path and (not path.startswith("/") or "{" in path or "?" in path):
        raise SettingsError(f"The variable {variable} is {path!r}. It must be a path, such as /predict.")
    return path


def _health(service: Service, request: Request, params: dict[str, str]) -> Reply:
    return Reply(200 if service.is_ready else 503, b"{}")


def _several(service: Service, request: Request, params: dict[str, str]) -> Reply:
    raise RequestError(
        404,
        "Several models are served here, and Vertex AI's requests do not say which one they mean. Serve one model in each "
        f"container: `sereno serve FILE`. Served: {', '.join(service.lives)}.",
    )
