"""The paths of other people's protocols in the OpenAPI document: enough to find and to try them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
OBJECT: Document = {"type": "object"}
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
        "data": {"type": "array", "description": "values, flat or nested, row by row", "items": {}},
        "parameters": OBJECT,
    },
    "required": ["name", "shape", "datatype"],
}  # fmt: skip
INFER_REQUEST = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "parameters": OBJECT,
        "inputs": {"type": "array", "items": ref("v2.tensor")},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": TEXT, "parameters": OBJECT},
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


def other_schemas(lives: Sequence[Live]) -> Document:
    predictions = {"type": "array", "items": {"anyOf": [ref(f"{live.name}.prediction") for live in lives]}}
    return {
        "v2.tensor": TENSOR,
        "v2.error": ERROR,
        "predictions": {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]},
        "mlflow.error": MLFLOW_ERROR,
    }


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
    failures, asking = _errors(ANYWHERE), _errors((*ANYWHERE, *ASKING))
    unready = {"503": success("Not now.", ready)}
    server = {"type": "object", "properties": {"name": TEXT, "version": TEXT}, "required": ["name", "version"]}
    live = {"type": "object", "properties": {"live": {"const": True}}, "required": ["live"]}
    paths = {
        "/v2": _operation("v2", "v2_server", "About the server", success("Its name.", server), failures),
        "/v2/health/live": _operation("v2", "v2_live", "Whether it lives", success("It does.", live), failures),
        "/v2/health/ready": _operation(
            "v2", "v2_ready", "Whether it is ready", success("It is.", ready), failures | unready
        ),
    }
    found: Document = {path: {"get": operation} for path, operation in paths.items()}
    versions = sorted({live.version for live in lives})
    for suffix, name, about in (("", "", ""), ("/versions/{version}", "_version", ", if it is of this version")):
        path = f"/v2/models/{{model}}{suffix}"
        parameters = _parameters([live.name for live in lives], versions if suffix else ())
        missing = _errors((404,))
        found[path] = {
            "get": _operation(
                "v2", f"v2_model{name}", f"A model's tensors{about}", success("Them.", METADATA), failures | missing
            )
        }
        found[f"{path}/ready"] = {
            "get": _operation(
                "v2", f"v2_model_ready{name}", f"Whether a model is ready{about}", success("It is.", ready),
                failures | missing | unready,
            )
        }  # fmt: skip
        body = {"application/json": {"schema": INFER_REQUEST, "examples": _infer_examples(lives)}}
        found[f"{path}/infer"] = {
            "post": _operation(
                "v2", f"v2_infer{name}", f"Predictions of a model{about}", _inferred(), asking, body
            )
        }  # fmt: skip
        for below in (path, f"{path}/ready", f"{path}/infer"):
            for operation in found[below].values():
                operation["parameters"] = parameters
    return found


def _inferred() -> Document:
    out = success("The outputs, as tensors.", INFER_RESPONSE)
    out["content"]["application/octet-stream"] = {"schema": {"description": "JSON, then the tensors that are binary"}}
    return out


def _infer_examples(lives: Sequence[Live]) -> Document:
    """One row for each model; nested columns are JSON in text."""
    found: Document = {}
    for live in lives:
        row = example_row(live)
        if row is None:
            continue
        inputs = []
        for column in live.inputs.columns:
            if column.name not in row:
                continue
            value = row[column.name]
            if column.kind in ("list", "row"):
                value = json.dumps(value)
            elif column.kind == "decimal":
                value = float(value)
            inputs.append({"name": column.name, "shape": [1], "datatype": datatype_of(column.kind), "data": [value]})
        found[live.name] = {"value": {"inputs": inputs}}
    return found


def _v1(lives: Sequence[Live]) -> Document:
    names = [live.name for live in lives]
    failures, asking, missing = _errors(ANYWHERE), _errors((*ANYWHERE, *ASKING)), _errors((404,))
    models = {"type": "object", "properties": {"models": {"type": "array", "items": TEXT}}, "required": ["models"]}
    ready = {
        "type": "object",
        "properties": {"name": TEXT, "ready": {"type": "boolean"}},
        "required": ["name", "ready"],
    }
    alive = {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]}
    body = {"application/json": {"schema": _instances(lives), "examples": _instance_examples(lives)}}
    unready = {"503": success("Not now.", ready)}
    return {
        "/": {"get": _operation("v1", "v1_alive", "Whether the server lives", success("It does.", alive), failures)},
        "/v1/models": {"get": _operation("v1", "v1_models", "The models", success("Their names.", models), failures)},
        "/v1/models/{model}": {
            "get": _operation(
                "v1", "v1_model", "Whether a model is ready", success("It is.", ready), failures | missing | unready
            )
            | {"parameters": _parameters(names)},
        },
        "/v1/models/{model}:predict": {
            "post": _operation(
                "v1", "v1_predict", "Predictions of a model", success("One for each instance.", ref("predictions")),
                asking, body,
            )
            | {"parameters": _parameters(names)},
        },
    }  # fmt: skip


def _instances(lives: Sequence[Live]) -> Document:
    rows = [ref(f"{live.name}.row") for live in lives]
    by_position = {"type": "array", "description": "the values of a row, in declared order", "items": {}}
    return {
        "type": "object",
        "properties": {"instances": {"type": "array", "items": {"anyOf": [*rows, by_position]}}},
        "required": ["instances"],
    }


def _instance_examples(lives: Sequence[Live]) -> Document:
    rows = {live.name: example_row(live) for live in lives}
    return {name: {"value": {"instances": [row]}} for name, row in rows.items() if row is not None}


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
                success("Them.", parameters), errors(ANYWHERE, ref("Problem"), "application/problem+json"),
            )
        },
    }  # fmt: skip
    if service.only is not None:
        found["/invocations"] = {"post": _invoke(service.only)}
    return found


def _invoke(live: Live) -> Document:
    row = ref(f"{live.name}.row")
    records = {"type": "array", "items": row}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": TEXT},
            "index": {},
            "data": {"type": "array", "items": {"type": "array", "items": {}}},
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
            {"type": "object", "properties": {name: form, "params": OBJECT}, "required": [name]}
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
    answer = success("One for each row.", ref("predictions"))
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


def _mlflow_errors(statuses: tuple[int, ...]) -> Document:
    return errors(statuses, ref("mlflow.error"))
