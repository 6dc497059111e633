"""The Open Inference Protocol V2 over REST, as Triton, KServe and MLServer speak it: its paths, and what they tell.

Inference itself is in `infer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sereno.schema import Column
from sereno.serve.protocols.infer import Translation
from sereno.serve.protocols.mlflow import explained
from sereno.serve.protocols.native import extra_headers
from sereno.serve.protocols.tensors import datatype_of
from sereno.serve.wire import Exchange, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    """All paths of the protocol; those that infer are hot."""
    found = []
    for live in service.lives.values():
        translation = Translation(live)
        exchange = Exchange("v2", translation.read, translation.write, refuse)
        for path in (f"/v2/models/{live.name}", f"/v2/models/{live.name}/versions/{live.model_version}"):
            found += [Route("POST", f"{path}/infer", exchange=exchange, live=live)]
    answers = [
        ("GET", "/v2", _server),
        ("GET", "/v2/health/live", _server_live),
        ("GET", "/v2/health/ready", _server_ready),
        *(
            answer
            for model in ("/v2/models/{m}", "/v2/models/{m}/versions/{v}")
            for answer in (
                ("GET", model, _metadata),
                ("GET", f"{model}/ready", _model_ready),
                ("POST", f"{model}/infer", _unknown),  # what the exact paths above did not take
            )
        ),
    ]
    return found + [Route(method, path, answer=answer, refuse=refuse) for method, path, answer in answers]


def refuse(error: RequestError) -> Reply:
    """`{"error": …}`, with the mistakes of all rows in it."""
    says = explained(error)
    if error.error_id is not None and error.error_id not in says:
        says += f" (error {error.error_id})"
    return Reply(error.status, _encode({"error": says}), headers=extra_headers(error))


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, _encode(value))


def _server(service: Service, request: Request, params: dict[str, str]) -> Reply:
    from sereno import __version__

    return _json({"name": "sereno", "version": __version__, "extensions": ["binary_tensor_data"]})


def _server_live(service: Service, request: Request, params: dict[str, str]) -> Reply:
    return _json({"live": True})


def _server_ready(service: Service, request: Request, params: dict[str, str]) -> Reply:
    ready = service.is_ready
    return _json({"ready": ready}, 200 if ready else 503)


def _model(service: Service, params: dict[str, str]) -> Live:
    live = service.live(params["m"])
    if params.get("v", live.model_version) != live.model_version:
        raise RequestError(
            404, f"Model {live.name!r} is not served in this version. It is in version {live.model_version}."
        )
    return live


def _metadata(service: Service, request: Request, params: dict[str, str]) -> Reply:
    live = _model(service, params)
    return _json(
        {
            "name": live.name,
            "versions": [live.model_version],
            "platform": "sereno",
            "inputs": [_described(column) for column in live.inputs.columns],
            "outputs": [_described(column) for column in live.outputs.columns],
        }
    )


def _described(column: Column) -> dict[str, Any]:
    return {"name": column.name, "datatype": datatype_of(column.kind), "shape": [-1]}


def _model_ready(service: Service, request: Request, params: dict[str, str]) -> Reply:
    live = _model(service, params)
    return _json({"name": live.name, "ready": live.is_ready}, 200 if live.is_ready else 503)


def _unknown(service: Service, request: Request, params: dict[str, str]) -> Reply:
    _model(service, params)
    raise RequestError(404, "There is no such path.")
