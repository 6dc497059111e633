"""Is it alive, is it ready, and what has it counted: `/livez`, `/readyz` and `/metrics`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.serve.metrics import CONTENT_TYPE, of_statuses, render, render_alone
from sereno.serve.processes.board import State
from sereno.serve.wire import JSON, Reply, Request, Route

if TYPE_CHECKING:
    from sereno.serve.service import Service

_NOW_ONLY = ((b"cache-control", b"no-store"),)


def routes(service: Service) -> list[Route]:
    return [
        Route("GET", "/livez", answer=_live),
        Route("GET", "/readyz", answer=_ready),
        Route("GET", "/metrics", answer=_metrics),
    ]


def _live(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    """Whether this process answers at all. It depends on nothing else: who asks would restart us."""
    return Reply(200, b'{"live":true}', JSON, _NOW_ONLY)


def _ready(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    """Whether to send requests here; 503 with the reasons where not. Only who may ask a model hears the names of models."""
    is_let_in = _is_let_in(service, request)
    reasons = not_ready(service, with_names=is_let_in)
    told: dict[str, Any] = {"ready": not reasons}
    if reasons:
        told["because"] = reasons
    standing = {live.name: live.lookup.standing for live in service.lives.values() if live.lookup is not None}
    if is_let_in and any(standing.values()):
        told["lookup"] = {name: one._asdict() for name, one in standing.items() if one is not None}
    return Reply(503 if reasons else 200, msgspec.json.encode(told), JSON, _NOW_ONLY)


def _metrics(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    """What all workers counted, in Prometheus' text format."""
    besides = of_statuses(one for statuses in service.statuses for one in statuses.read().values())
    if service.board is None:
        return Reply(200, render_alone(service.metrics, besides), CONTENT_TYPE, _NOW_ONLY)
    service.metrics.flush(service.board, service.slot)  # so that who asks sees what this worker has just answered
    return Reply(200, render(service.board, besides), CONTENT_TYPE, _NOW_ONLY)


def not_ready(service: Service, *, with_names: bool = True) -> list[str]:
    """Why no request should come here; empty where they may."""
    reasons = []
    if service.is_draining:
        reasons.append("the worker drains")
    unready: dict[str, list[str]] = {}
    for live in service.lives.values():
        if not live.is_ready:
            why = live.lookup.why_not_ready if live.lookup is not None else ""
            unready.setdefault(why or "not ready", []).append(live.name)
    if with_names:
        reasons += [f"{what}: {', '.join(names)}" for what, names in unready.items()]
    elif unready:
        reasons.append("a model is not ready")
    if service.board is not None:
        hung = [slot for slot in service.board.workers() if service.board.state(slot) is State.HUNG]
        reasons += [f"worker {slot} hangs" for slot in hung if slot != service.slot]
    return reasons


def watch(service: Service) -> None:
    """Have counted what others keep: the guard, the logs, the connections. Once, when the service is open."""
    metrics, refused = service.metrics, service.guard.refused
    for reason in refused:
        metrics.watch("sereno_refused_requests_total", partial(refused.__getitem__, reason), reason)
    metrics.watch("sereno_access_log_dropped_lines_total", lambda: service.access.dropped)
    metrics.watch("sereno_connections", lambda: len(service.connections))
    metrics.watch("sereno_requests_in_flight", lambda: sum(map(_in_flight, service.connections)))
    for live in service.lives.values():
        recorder: Any = live.recorder
        if recorder is not None:
            metrics.watch("sereno_log_lag_seconds", partial(getattr, recorder, "lag_seconds"), live.name)
            metrics.watch("sereno_log_dropped_rows_total", partial(getattr, recorder, "dropped"), live.name)


def _in_flight(connection: Any) -> int:
    """Requests of a connection that wait for their answer: those of the lane, and those with the application."""
    cycle = getattr(connection, "cycle", None)
    waiting = len(getattr(connection, "turns", ())) + len(getattr(connection, "pipeline", ()))
    return waiting + (cycle is not None and not cycle.response_complete)


def _is_let_in(service: Service, request: Request) -> bool:
    authorization, key = request.header(b"authorization"), request.header(b"x-api-key")
    if not authorization and key is not None:
        authorization = b"Bearer " + key
    return service.guard.knows(request.header(b"host"), authorization)
