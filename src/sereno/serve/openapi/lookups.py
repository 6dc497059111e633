"""The paths of lookups in the OpenAPI document: of each model whose published predictions can be asked for by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sereno.serve.openapi.parts import ANYWHERE, ASKING, Document, header_refs, problems, ref, said, success
from sereno.serve.protocols import native, predictions
from sereno.serve.snippets import curl_lookup, example_answer, example_key, example_keys, python_lookup
from sereno.values import Refused

if TYPE_CHECKING:
    from sereno.schema import Column
    from sereno.serve.live import Live
    from sereno.serve.service import Service

VERSION, DATA_DATE, DATA_TIME = 12, "2026-05-01", "2026-05-02T00:00:00Z"  # of examples
SECONDS = 4711
KEYS: dict[str, Document] = {
    "int": {"type": "integer", "format": "int64"},
    "str": {"type": "string"},
    "date": {"type": "string", "format": "date"},
}
UNKNOWN = predictions.unknown_key().says
WORDS = {
    422: "This is no key of the model: a value is of another type, or there are fewer or more of them.",
    503: "Nothing is there yet to look up in, or it is stale and refused. Try again after the seconds in Retry-After.",
}


def lookup_schemas(service: Service) -> Document:
    found: Document = {}
    for live in service.lives.values():
        if live.lookup is not None:
            found |= {f"{live.name}.key": _key_alone(live), f"{live.name}.lookup": _answer(live)}
    return found


def lookup_paths(service: Service) -> Document:
    found: Document = {}
    for live in service.lives.values():
        if live.lookup is None:
            continue
        prefixes = [("", ""), (f"/models/{live.name}", f"_{live.name}")][live is not service.only :]
        for prefix, name in prefixes:
            found[f"{prefix}/predictions/{key_segments(live)}"] = {"get": _one(service, live, f"lookup{name}")}
            found[f"{prefix}/predictions"] = {"post": _many(live, f"lookup_many{name}")}
    return found


def key_segments(live: Live) -> str:
    """What stands for a key in a path: a parameter for each of its columns."""
    return "/".join(f"{{{column.name}}}" for column in live.inputs.keys)


def _one(service: Service, live: Live, operation: str) -> Document:
    codec = predictions.lookups_of(live).keys
    prediction = example_answer(live)
    examples = {} if prediction is None else {"found": {"value": _example(prediction)}}
    found = success("What is published, and how old it is.", ref(f"{live.name}.lookup"), examples=examples)
    found["headers"] |= header_refs("ETag", "Age", "Cache-Control")
    not_modified = {"description": "What If-None-Match names is still so.", "headers": found["headers"]}
    statuses = (*ANYWHERE, 404, 422, 503, *([504] if _is_live(live) else []))
    responses = problems(statuses, WORDS | {404: UNKNOWN})
    _show_refusal(responses, lambda: codec.of_texts(["x"] if codec.single != "str" else []))
    return {
        "tags": [live.name],
        "operationId": operation,
        "summary": f"What is published of {live.name} under a key",
        "description": (
            "The prediction that the last published run computed."
            f"{_LIVE if _is_live(live) else ''}\n\n"
            f"```sh\n{curl_lookup(service, live)}\n```\n\n```python\n{python_lookup(service, live)}```\n"
        ),
        "parameters": [*_key_parameters(live), _NONE_MATCH],
        "responses": {"200": found, "304": not_modified, **responses},
    }


_LIVE = " What is not published, or is stale, may be predicted now: `origin` tells."
_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "the ETag of an answer that the caller has",
    "schema": {"type": "string"},
}


def _many(live: Live, operation: str) -> Document:
    key, codec = _key(live), predictions.lookups_of(live).keys
    body = {
        "type": "object",
        "properties": {"keys": {"type": "array", "items": key, "maxItems": live.limits.max_rows}},
        "required": ["keys"],
        "additionalProperties": False,
    }
    keys, prediction = [key[0] if len(key) == 1 else key for key in example_keys(live)], example_answer(live)
    asked = {"keys": {"value": {"keys": keys}}} if keys else {}
    given = {} if prediction is None else {"found": {"value": [_example(prediction), None]}}
    responses = problems((*ANYWHERE, *ASKING), WORDS)
    _show_refusal(responses, lambda: codec.of_value(None))
    items = {"type": "array", "items": {"anyOf": [ref(f"{live.name}.lookup"), {"type": "null"}]}}
    return {
        "tags": [live.name],
        "operationId": operation,
        "summary": f"What is published of {live.name} under several keys",
        "description": "One answer for each key, in the same order; null where nothing is published under it.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "examples": asked}},
        },
        "responses": {
            "200": success("An answer for each key, all of the same snapshot.", items, examples=given),
            **responses,
        },
    }


def _show_refusal(responses: Document, read: Callable[[], object]) -> None:
    """Have the example of a 422 be what is really said, to the key that is read."""
    try:
        read()
    except Refused as refused:
        responses["422"]["content"][native.PROBLEM.decode()]["example"] = said(predictions.no_key([refused]))


def _answer(live: Live) -> Document:
    is_live = _is_live(live)

    def of_snapshot(schema: Document) -> Document:
        return schema | {"type": [schema["type"], "null"]} if is_live else schema

    properties: Document = {
        "prediction": ref(f"{live.name}.prediction"),
        "version": of_snapshot({"type": "integer", "minimum": 1, "description": "of the snapshot that it is from"}),
        "data_date": of_snapshot({"type": "string", "format": "date", "description": "of that snapshot"}),
        "data_time": {"type": "string", "format": "date-time", "description": "the end of the data that went into it"},
        "age_seconds": {"type": "integer", "minimum": 0, "description": "since data_time"},
        "stale": {"type": "boolean", "description": "older than the model's max_age_seconds"},
        "origin": {"enum": ["lookup", "live"] if is_live else ["lookup"]},
    }
    return {"type": "object", "title": "Lookup", "properties": properties, "required": list(properties)}


def _example(prediction: Any) -> Document:
    return {
        "prediction": prediction,
        "version": VERSION,
        "data_date": DATA_DATE,
        "data_time": DATA_TIME,
        "age_seconds": SECONDS,
        "stale": False,
        "origin": "lookup",
    }


def _is_live(live: Live) -> bool:
    return "live" in (live.settings.stale, live.settings.unknown)


def _key(live: Live) -> Document:
    """A key in JSON: the value, or the list of its values."""
    parts = [_value(column) for column in live.inputs.keys]
    if len(parts) == 1:
        return parts[0]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts), "maxItems": len(parts)}


def _key_parameters(live: Live) -> list[Document]:
    example = example_key(live)
    parameters = []
    for position, column in enumerate(live.inputs.keys):
        parameters.append({"name": column.name, "in": "path", "required": True, "schema": _value(column)})
        if example is not None:
            parameters[-1]["example"] = example[position]
    return parameters


def _key_alone(live: Live) -> Document:
    """A row of other protocols that asks for a lookup."""
    properties = {column.name: _value(column) for column in live.inputs.keys}
    return {
        "type": "object",
        "title": "Key",
        "description": "a key without any other column of the model: what is published under it",
        "properties": properties,
        "required": list(properties),
    }


def _value(column: Column) -> Document:
    return KEYS[column.kind]
