"""Every route of the API, in the order in which they are tried, and the shape of errors under paths that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sereno.serve import health, page
from sereno.serve.protocols import invocations, kserve, mlflow, native, oip, predictions, sagemaker, stream, vertex
from sereno.serve.wire import Reply, RequestError, Route

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from sereno.serve.service import Service

fallback = native.NATIVE
# first segment of a path → how errors below it look
SHAPES: dict[str, Callable[[RequestError], Reply]] = {
    **dict.fromkeys(("invocations", "ping", "health", "version", "execution-parameters"), mlflow.refuse),
    **dict.fromkeys(("v1", "v2"), oip.refuse),
}


def all_routes(service: Service) -> list[Route]:
    """Those of every protocol, for the models that are served."""
    found = [
        *vertex.routes(service),  # first: the platform may choose a path that is one of ours
        *native.routes(service),
        *predictions.routes(service),
        *health.routes(service),
        *oip.routes(service),
        *kserve.routes(service),
        *invocations.routes(service),
        *mlflow.routes(service),
        *sagemaker.routes(service),
        *page.routes(service),
    ]
    first: dict[tuple[str, str], Route] = {}
    for route in found:
        first.setdefault((route.method, route.path), route)
    return list(first.values())


def refuse_at(service: Service, path: str) -> Callable[[RequestError], Reply]:
    """The error shape of whatever protocol a path belongs to."""
    hot = service.hot.get(path.encode("utf-8", "surrogateescape"))
    return hot[0].refuse if hot is not None else SHAPES.get(path.lstrip("/").partition("/")[0], fallback.refuse)


def socket_routes(service: Service) -> list[BaseRoute]:
    """The WebSockets."""
    return [*stream.stream_routes(service)]
