"""What the operations of the OpenAPI document have in common: responses and their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sereno.serve.protocols import native
from sereno.serve.wire import RequestError

Document = dict[str, Any]

WHY = {
    400: "The request is malformed, or names a host that is not this server's.",
    401: "The API key is missing or unknown.",
    403: "The request comes from the page of another site.",
    404: "There is nothing under this path.",
    406: "No type of answer that the caller accepts can be given.",
    408: "The request did not arrive in time.",
    413: "The body, a text in it or the number of rows is too large.",
    415: "The body has a type or encoding that is not taken.",
    422: "Rows do not fit the row type of the model; their mistakes are told, up to 100.",
    500: "The model failed on a row, or the server has a bug; the log of the server has the cause under the error id.",
    503: "There is too much to do. Try again after the seconds in Retry-After.",
    504: "The answer was not ready in time.",
}
ANYWHERE = (400, 401, 403, 500)  # of the guard, and of bugs
ASKING = (404, 408, 413, 415, 422, 503, 504)  # of requests for predictions

PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong, as problem details (RFC 9457).",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "the status in words"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened, and what would be valid"},
        "errors": {
            "type": "array",
            "description": "of a 422: the mistakes of all rows, up to 100; of more, the last one says how many are left out",
            "items": {
                "type": "object",
                "properties": {
                    "row": {"type": "integer", "minimum": 0, "description": "position in the request, from 0"},
                    "column": {"type": "string", "description": "with its path in nested rows: items[2].price"},
                    "expected": {"type": "string", "description": "what would be valid"},
                },
                "required": ["row", "column", "expected"],
            },
        },
        "error_id": {"type": "string", "description": "of a 500: the server's log has the cause under it"},
    },
    "required": ["type", "title", "status", "detail"],
}
HEADERS = {
    "X-Request-ID": {"schema": {"type": "string"}, "description": "the caller's, or a new one; the log knows it"},
    "Retry-After": {"schema": {"type": "integer"}, "description": "seconds to wait"},
    "ETag": {"schema": {"type": "string"}, "description": "version and staleness of what was found; for If-None-Match"},
    "Age": {"schema": {"type": "integer", "minimum": 0}, "description": "age_seconds of what was found"},
    "Cache-Control": {"schema": {"type": "string"}, "description": "how long the answer may be kept"},
}


def ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def errors(statuses: tuple[int, ...], schema: Document, content_type: str = "application/json") -> Document:
    """Responses of those statuses, in a protocol's own shape."""
    found: Document = {}
    for status in sorted(statuses):
        found[str(status)] = {
            "description": WHY[status],
            "headers": header_refs("X-Request-ID", *(["Retry-After"] if status == 503 else [])),
            "content": {content_type: {"schema": schema}},
        }
    return found


def problems(statuses: tuple[int, ...], words: Mapping[int, str] = WHY) -> Document:
    """Responses of those statuses on our own routes, each with what its body is like."""
    found = errors(statuses, ref("Problem"), native.PROBLEM.decode())
    for status in statuses:
        about = words.get(status, WHY[status])
        error = RequestError(status, about, error_id="d1f0c5e2a9b4" if status == 500 else None)
        found[str(status)]["description"] = about
        found[str(status)]["content"][native.PROBLEM.decode()]["example"] = said(error)
    return found


def said(error: RequestError) -> Any:
    """The body of an error on our own routes."""
    return msgspec.json.decode(native.refuse(error).body)


def success(about: str, schema: Document, content_type: str = "application/json", **more: Any) -> Document:
    return {
        "description": about,
        "headers": header_refs("X-Request-ID"),
        "content": {content_type: {"schema": schema, **more}},
    }


def header_refs(*names: str) -> Document:
    """Of the document's headers, by name."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
