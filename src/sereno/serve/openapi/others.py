"""The paths of other people's protocols in the OpenAPI document: enough to find and to try them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from sereno.serve.openapi.parts import ANYWHERE, ASKING, Document, errors, ref, success
from sereno.serve.protocols.tensors import datatype_of
from sereno.serve.snippets import example_row

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

TAGS = {
    "v2": "the Open Inference Protocol, V2, over REST; tensors may be binary, as its specification has them",
    "v1": "KServe's protocol V1",
    "mlflow": "MLflow's scoring server, and containers of SageMaker",
}
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
MAYBE: Document = {"type": ["object", "null"]}
TEXT: Document = {"type": "string"}

ERROR = {"type": "object", "properties": {"error": TEXT}, "required": ["error"]}
MLFLOW_ERROR = {
    "type": "object",
    "properties": {"error_code": TEXT, "message": TEXT},
    "required": ["error_code", "message"],
}
SHAPE = {"type": "array", "items": {"type": "integer"}}
TENSOR = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "shape": SHAPE,
        "datatype": {
            "enum": ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64",
                     "BYTES"]
        },
        "data": {"type": ["array", "null"], "description": "values, flat or nested, row by row", "items": {}},
        "parameters": MAYBE,
    },
    "required": ["name", "shape", "datatype"],
}  # fmt: skip
INFER_REQUEST = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "parameters": MAYBE,
        "inputs": {"type": "array", "items": ref("v2.tensor")},
        "outputs": {
            "type": ["array", "null"],
            "description": "those that are wanted; all, if there are none",
            "items": {
                "type": "object",
                "properties": {"name": TEXT, "parameters": MAYBE},
                "required": ["name"],
            },
        },
    },
    "required": ["inputs"],
}
INFER_RESPONSE = {
    "type": "object",
    "properties": {
        "model_name": TEXT,
        "model_version": TEXT,
        "id": TEXT,
        "outputs": {"type": "array", "items": ref("v2.tensor")},
    },
    "required": ["model_name", "model_version", "outputs"],
}
METADATA_TENSOR = {
    "type": "object",
    "properties": {"name": TEXT, "datatype": TEXT, "shape": SHAPE},
    "required": ["name", "datatype", "shape"],
}
METADATA = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "versions": {"type": "array", "items": TEXT},
        "platform": TEXT,
        "inputs": {"type": "array", "items": METADATA_TENSOR},
        "outputs": {"type": "array", "items": METADATA_TENSOR},
    },
    "required": ["name", "versions", "platform", "inputs", "outputs"],
}


def other_schemas() -> Document:
    return {"v2.tensor": TENSOR, "v2.infer": INFER_REQUEST, "v2.error": ERROR, "mlflow.error": MLFLOW_ERROR}


def other_paths(service: Service) -> Document:
    """Every path that another protocol has; the caller leaves out what is not served."""
    lives = list(service.lives.values())
    return _v2(lives) | _v1(lives) | _invocations(service)


def _operation(
    tag: str, operation: str, summary: str, answer: Document, failures: Document, body: Document | None = None
) -> Document:
    out: Document = {"tags": [tag], "operationId": operation, "summary": summary}
    if body is not None:
        out["requestBody"] = {"required": True, "content": body}
    return out | {"responses": {"200": answer} | failures}


def _parameters(names: Sequence[str], version: Sequence[str] = ()) -> list[Document]:
    found = {"model": names, "version": version}
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": list(values)}}
        for name, values in found.items()
        if values
    ]


def _v2(lives: Sequence[Live]) -> Document:
    ready = {"type": "object", "properties": {"name": TEXT, "ready": {"type": "boolean"}}, "required": ["ready"]}
    failures, missing = _errors(ANYWHERE), _errors((404,))
    unready = {"503": success("Not now.", ready)}
    server = {"type": "object", "properties": {"name": TEXT, "version": TEXT}, "required": ["name", "version"]}
    live = {"type": "object", "properties": {"live": {"const": True}}, "required": ["live"]}
    found: Document = {
        "/v2": {"get": _operation("v2", "v2_server", "About the server", success("Its name.", server), failures)},
        "/v2/health/live": {
            "get": _operation("v2", "v2_live", "Whether it lives", success("It does.", live), failures)
        },
        "/v2/health/ready": {
            "get": _operation("v2", "v2_ready", "Whether it is ready", success("It is.", ready), failures | unready)
        },
    }
    names, versions = [live.name for live in lives], sorted({live.model_version for live in lives})
    for suffix, name, about in (("", "", ""), ("/versions/{version}", "_version", " of this version")):
        path = f"/v2/models/{{model}}{suffix}"
        parameters = {"parameters": _parameters(names, versions if suffix else ())}
        tensors = _operation(
            "v2", f"v2_model{name}", f"The tensors of a model{about}", success("Them.", METADATA), failures | missing
        )
        is_ready = _operation(
            "v2", f"v2_model_ready{name}", f"Whether a model{about} is ready", success("It is.", ready),
            failures | missing | unready,
        )  # fmt: skip
        found[path] = {"get": tensors | parameters}
        found[f"{path}/ready"] = {"get": is_ready | parameters}
    for one in lives:
        for path, name in (
            (f"/v2/models/{one.name}", "_"),
            (f"/v2/models/{one.name}/versions/{one.model_version}", "_version_"),
        ):
            body = {"application/json": {"schema": ref("v2.infer"), "examples": _infer_example(one)}}
            found[f"{path}/infer"] = {
                "post": _operation(
                    "v2", f"v2_infer{name}{one.name}", f"Predictions of {one.name}", _inferred(),
                    _errors((*ANYWHERE, *ASKING)), body,
                )
            }  # fmt: skip
    return found


def _inferred() -> Document:
    out = success("The outputs, as tensors.", INFER_RESPONSE)
    out["content"]["application/octet-stream"] = {"schema": {"description": "JSON, then the tensors that are binary"}}
    return out


def _infer_example(live: Live) -> Document:
    """One row as tensors; nested columns are JSON in text."""
    row = example_row(live)
    if row is None:
        return {}
    inputs = []
    for column in live.inputs.columns:
        if column.name not in row:
            continue
        value = row[column.name]
        if column.kind in ("list", "row"):
            value = msgspec.json.encode(value).decode()
        inputs.append({"name": column.name, "shape": [1], "datatype": datatype_of(column.kind), "data": [value]})
    return {"row": {"value": {"inputs": inputs}}}


def _v1(lives: Sequence[Live]) -> Document:
    failures, missing = _errors(ANYWHERE), _errors((404,))
    models = {"type": "object", "properties": {"models": {"type": "array", "items": TEXT}}, "required": ["models"]}
    ready = {
        "type": "object",
        "properties": {"name": TEXT, "ready": {"type": "boolean"}},
        "required": ["name", "ready"],
    }
    alive = {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]}
    unready = {"503": success("Not now.", ready)}
    is_ready = _operation(
        "v1", "v1_model", "Whether a model is ready", success("It is.", ready), failures | missing | unready
    )
    found: Document = {
        "/": {
            "get": _operation(
                "v1", "v1_alive", "Whether the server lives", success("It does.", alive), _either(failures)
            )
        },
        "/v1/models": {"get": _operation("v1", "v1_models", "The models", success("Their names.", models), failures)},
        "/v1/models/{model}": {"get": is_ready | {"parameters": _parameters([live.name for live in lives])}},
    }
    for live in lives:
        body = {"application/json": {"schema": _instances(live), "examples": _instance_example(live)}}
        found[f"/v1/models/{live.name}:predict"] = {
            "post": _operation(
                "v1", f"v1_predict_{live.name}", f"Predictions of {live.name}",
                success("One for each instance.", _predictions(live)), _errors((*ANYWHERE, *ASKING)), body,
            )
        }  # fmt: skip
    return found


def _row(live: Live) -> Document:
    """A row, or a key alone where there are lookups."""
    row = ref(f"{live.name}.row")
    return row if live.lookup is None else {"anyOf": [row, ref(f"{live.name}.key")]}


def _instances(live: Live) -> Document:
    by_position = {"type": "array", "description": "the values of a row, in declared order", "items": {}}
    return {
        "type": "object",
        "properties": {"instances": {"type": "array", "items": {"anyOf": [_row(live), by_position]}}},
        "required": ["instances"],
    }


def _instance_example(live: Live) -> Document:
    row = example_row(live)
    return {} if row is None else {"row": {"value": {"instances": [row]}}}


def _predictions(live: Live) -> Document:
    predictions = {"type": "array", "items": ref(f"{live.name}.prediction")}
    return {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]}


def _invocations(service: Service) -> Document:
    parameters = {
        "type": "object",
        "properties": {
            "MaxConcurrentTransforms": {"type": "integer"},
            "BatchStrategy": TEXT,
            "MaxPayloadInMB": {"type": "integer"},
        },
        "required": ["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"],
    }
    failures = _mlflow_errors(ANYWHERE)
    version = success("Sereno's.", TEXT, "text/plain; charset=utf-8")
    end, unready = success("It is.", {}), {"404": success("It is not.", {})}  # a line end, as MLflow has it
    for one in (end, unready["404"]):
        one["content"] = {"application/json": {}}
    found: Document = {
        "/ping": {
            "get": _operation("mlflow", "ping", "Whether the server is ready", end, _mlflow_errors((500,)) | unready)
            | {"security": []}
        },
        "/health": {"get": _operation("mlflow", "health", "Whether the server is ready", end, failures | unready)},
        "/version": {"get": _operation("mlflow", "version", "The version of the server", version, failures)},
        "/execution-parameters": {
            "get": _operation(
                "mlflow", "execution_parameters", "What a batch transform job should ask for",
                success("Them.", parameters), _either(failures),
            )
        },
    }  # fmt: skip
    if service.only is not None:
        found["/invocations"] = {"post": _invoke(service.only)}
    return found


def _invoke(live: Live) -> Document:
    records = {"type": "array", "items": _row(live)}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": ["array", "null"], "items": TEXT},
            "index": {},
            "data": {"type": ["array", "null"], "items": {"type": "array", "items": {}}},
        },
        "required": ["data"],
    }
    forms = {
        "dataframe_split": split,
        "dataframe_records": records,
        "instances": {"description": "rows: objects, or lists of values"},
        "inputs": {"description": "values by column, or rows"},
    }
    schema = {
        "oneOf": [
            {"type": "object", "properties": {name: form, "params": {}}, "required": [name]}
            for name, form in forms.items()
        ]
    }
    example = example_row(live)
    examples: Document = {}
    if example is not None:
        table = {"columns": list(example), "data": [list(example.values())]}
        examples = {
            "records": {"value": {"dataframe_records": [example]}},
            "split": {"value": {"dataframe_split": table}},
        }
    body = {
        "application/json": {"schema": schema, "examples": examples},
        CSV: {"schema": TEXT | {"description": "a row a line; the first may name the columns"}},
        JSON_LINES: {"schema": TEXT | {"description": "a row a line"}},
    }
    answer = success("One for each row.", _predictions(live))
    answer["content"] |= {
        CSV: {"schema": TEXT},
        f"{CSV}; charset=utf-8": {"schema": TEXT},
        JSON_LINES: {"schema": TEXT},
    }
    failures = _mlflow_errors((*ANYWHERE, *(status for status in ASKING if status != 422), 406))
    failures["415"]["content"]["text/plain; charset=utf-8"] = {"schema": TEXT}
    return _operation("mlflow", "invocations", f"Predictions of {live.name}", answer, failures, body)


def _errors(statuses: tuple[int, ...]) -> Document:
    return errors(statuses, ref("v2.error"))


def _either(failures: Document) -> Document:
    """Responses of a path that is of no protocol's own folder: the guard refuses there as on our own routes."""
    problem = {"application/problem+json": {"schema": ref("Problem")}}
    return {status: one | {"content": one["content"] | problem} for status, one in failures.items()}


def _mlflow_errors(statuses: tuple[int, ...]) -> Document:
    return errors(statuses, ref("mlflow.error"))
