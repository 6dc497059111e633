"""The OpenAPI 3.1 document of everything that this server answers, made from the row types of its models.

Our own routes are told in full, one path for each model; those of other protocols (`others.py`) in short, since
their own documents tell them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sereno import __version__
from sereno.json_schema import answer_schema, row_schema
from sereno.serve.openapi.lookups import key_segments, lookup_paths, lookup_schemas
from sereno.serve.openapi.others import TAGS, other_paths, other_schemas
from sereno.serve.openapi.parts import ANYWHERE, ASKING, HEADERS, PROBLEM, Document, problems, ref, said, success
from sereno.serve.protocols import native
from sereno.serve.snippets import curl, example_answer, example_row, python
from sereno.serve.wire import Mistake, RequestError
from sereno.values import Refused

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service
    from sereno.serve.wire import Route


def document(service: Service) -> Document:
    """The document, for whoever may ask any of the models."""
    lives = list(service.lives.values())
    schemas: Document = {"Problem": PROBLEM}
    for live in lives:
        schemas[f"{live.name}.row"] = row_schema(live.row)
        schemas[f"{live.name}.prediction"] = answer_schema(live.outputs)
    paths: Document = {}
    for live in lives:
        path = f"/models/{live.name}/predict"
        if service.only is live:
            paths["/predict"] = {"post": _predict(service, live, "predict")}
        paths[path] = {"post": _predict(service, live, f"predict_{live.name}")}
    paths |= lookup_paths(service)
    paths |= _about(service)
    there = {(route.method.lower(), template(route)) for route in service.routes}
    for path, operations in other_paths(service).items():
        some = {method: operation for method, operation in operations.items() if (method, path) in there}
        if some:
            paths[path] = some
    for operations in paths.values():
        for operation in operations.values():  # who has no key is refused otherwise than a page of another site
            operation["responses"].pop("403" if service.guard.wants_keys else "401", None)
    out: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": f"API of {', '.join(service.lives)}",
            "version": __version__,
            "summary": "Predictions of models, served by Sereno.",
            "description": _description(service),
        },
        "tags": [
            *({"name": live.name, "description": f"model version {live.model_version}"} for live in lives),
            {"name": "server", "description": "about the server itself"},
            *({"name": name, "description": about} for name, about in _protocols(paths).items()),
        ],
        "paths": paths,
        "components": {"schemas": schemas | lookup_schemas(service) | other_schemas(), "headers": HEADERS},
    }
    if service.guard.wants_keys:
        out["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "an API key; X-API-Key is taken too"}
        }
        out["security"] = [{"key": []}]
    return out


def encode(service: Service) -> bytes:
    return msgspec.json.encode(document(service))


def template(route: Route) -> str:
    """A route's path in OpenAPI's syntax, with the names of parameters in words."""
    path = route.path.replace("{m}", "{model}").replace("{v}", "{version}")
    return path if route.live is None else path.replace("{key:rest}", key_segments(route.live))


def _predict(service: Service, live: Live, operation: str) -> Document:
    row, prediction = ref(f"{live.name}.row"), ref(f"{live.name}.prediction")
    rows = {"type": "array", "items": row, "maxItems": live.limits.max_rows}
    one, answer = example_row(live), example_answer(live)
    asked = {} if one is None else {"row": {"value": one}, "rows": {"value": [one, one]}}
    given = {} if answer is None else {"row": {"value": answer}, "rows": {"value": [answer, answer]}}
    responses = problems((*ANYWHERE, *ASKING))
    responses["422"]["content"][native.PROBLEM.decode()]["example"] = said(_example_422(live))
    return {
        "tags": [live.name],
        "operationId": operation,
        "summary": f"Predictions of {live.name}",
        "description": (
            f"A row gives a prediction; a list of rows gives a list, in the same order. Unknown fields are ignored.\n\n"
            f"```sh\n{curl(service, live)}\n```\n\n```python\n{python(service, live)}```\n"
        ),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": [row, rows]}, "examples": asked}},
        },
        "responses": {
            "200": success(
                "The prediction, or one for each row.",
                {"oneOf": [prediction, {"type": "array", "items": prediction}]},
                examples=given,
            ),
            **responses,
        },
    }


def _example_422(live: Live) -> RequestError:
    """What is really said to a row that is null."""
    try:
        live.decoder.convert(dict.fromkeys(c.name for c in live.row.columns))
    except Refused as refused:
        mistakes = [Mistake(0, column, expected) for column, expected in refused.mistakes]
    else:
        mistakes = [Mistake(0, "row", "must be an object")]
    return RequestError(422, "A row does not fit the row type of this model.", mistakes=mistakes)


def _about(service: Service) -> Document:
    """What the server says of itself."""
    model = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "model_version": {"type": "string"}, "ready": {"type": "boolean"}},
        "required": ["name", "model_version", "ready"],
    }
    models = {"type": "object", "properties": {"models": {"type": "array", "items": model}}, "required": ["models"]}
    ready = {
        "type": "object",
        "properties": {
            "ready": {"type": "boolean"},
            "because": {"type": "array", "items": {"type": "string"}},
            "lookup": {
                "type": "object",
                "description": "model → what its lookups answer from, and how old that is",
                "additionalProperties": {"type": "object"},
            },
        },
        "required": ["ready"],
    }
    live = {"type": "object", "properties": {"live": {"const": True}}, "required": ["live"]}
    return {
        "/models": {"get": _told("models", "The models that are served", success("Their names.", models))},
        "/livez": {"get": _told("livez", "Whether the process answers", success("It does.", live), free=True)},
        "/readyz": {
            "get": _told(
                "readyz",
                "Whether requests may be sent here",
                success("They may.", ready),
                free=True,
                **{"503": success("They should not: it starts, drains, or a model hangs.", ready)},
            )
        },
        "/metrics": {
            "get": _told(
                "metrics",
                "Counters of all workers, for Prometheus",
                success("Prometheus' text format.", {"type": "string"}, "text/plain; version=0.0.4; charset=utf-8"),
            )
        },
        "/openapi.json": {"get": _told("openapi", "This document", success("OpenAPI 3.1.", {"type": "object"}))},
        "/docs": {
            "get": _told(
                "docs",
                "This document, to read and to try",
                success("A page.", {"type": "string"}, "text/html; charset=utf-8"),
            )
        },
    }


def _told(operation: str, summary: str, found: Document, *, free: bool = False, **more: Document) -> Document:
    """An operation of the server's own; free ones need no key."""
    responses = {"200": found, **more, **problems((500,) if free else ANYWHERE)}
    out = {"tags": ["server"], "operationId": operation, "summary": summary, "responses": responses}
    return out | {"security": []} if free else out


def _description(service: Service) -> str:
    has_lookups = any(live.lookup is not None for live in service.lives.values())
    parts = [
        "Ask a model with a row, or with a list of rows.",
        *(["Or look up by its key what the last published run computed."] if has_lookups else []),
        "Errors on this server's own paths are problem details (RFC 9457), which tell the mistakes of all rows, up to 100.",
    ]
    if service.guard.wants_keys:
        parts.append("Each request needs an API key: `Authorization: Bearer KEY`.")
    parts.append(
        "For many rows one after the other, `/models/NAME/stream` is a WebSocket: each message is a row, and its answer a "
        f"message.{' So is `/models/NAME/predictions`, for keys.' if has_lookups else ''}"
    )
    return "\n\n".join(parts)


def _protocols(paths: Mapping[str, Any]) -> dict[str, str]:
    used = {tag for operations in paths.values() for operation in operations.values() for tag in operation["tags"]}
    return {name: about for name, about in TAGS.items() if name in used}
