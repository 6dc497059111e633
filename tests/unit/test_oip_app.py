"""V2 and V1 through the application: paths, packed bodies, and the same predictions as on our own route."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lives import Served, served
from tests.unit.test_by_key import Index

MODEL = """
from typing import Annotated, Literal, TypedDict

from annotated_types import Ge
from sereno import Key, Model


class Customer(TypedDict):
    id: Key[int]
    age: Annotated[int, Ge(18)]
    income: float | None
    plan: Literal["basic", "gold"]
    basket: list[str]


class Offer(TypedDict):
    score: float | None
    plan: str
    items: int
    seen: list[str]


model = Model("offers", inputs=Customer, outputs=Offer)


@model.load
def load():
    return None


@model.predict
def predict(loaded, customers: list[Customer]) -> list[Offer]:
    return [
        {"score": c["income"] and c["income"] / c["age"], "plan": c["plan"], "items": len(c["basket"]), "seen": c["basket"]}
        for c in customers
    ]
"""
ROWS = [
    {"age": 20, "income": 10.0, "plan": "gold", "basket": ["wine"]},
    {"age": 40, "income": None, "plan": "basic", "basket": []},
]


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    texts = [json.dumps(row["basket"]) for row in rows]
    return [
        {"name": "age", "datatype": "INT64", "shape": [len(rows)], "data": [row["age"] for row in rows]},
        {"name": "income", "datatype": "FP64", "shape": [len(rows)], "data": [row["income"] for row in rows]},
        {"name": "plan", "datatype": "BYTES", "shape": [len(rows)], "data": [row["plan"] for row in rows]},
        {"name": "basket", "datatype": "BYTES", "shape": [len(rows)], "data": texts},
    ]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("oip") / "oip_offers.py"  # a module is loaded once in a process
    file.write_text(MODEL)
    return file


@pytest.fixture
def api(model_file: Path) -> Iterator[Served]:
    with served(model_file) as one:
        yield one


def test_v2_predicts_as_our_own_route_does(api: Served) -> None:
    own = api.ask("POST", "/models/offers/predict", ROWS).json()
    reply = api.ask("POST", "/v2/models/offers/infer", {"id": "a", "inputs": tensors(ROWS)})
    assert reply.status_code == 200
    found = {o["name"]: o["data"] for o in reply.json()["outputs"]}
    assert reply.json()["id"] == "a"
    found["seen"] = [json.loads(text) for text in found["seen"]]
    assert [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)] == own
    version = api.ask("GET", "/v2/models/offers").json()["versions"][0]
    assert reply.json()["model_version"] == version
    again = api.ask("POST", f"/v2/models/offers/versions/{version}/infer", {"id": "a", "inputs": tensors(ROWS)})
    assert again.content == reply.content


def test_v1_predicts_as_our_own_route_does(api: Served) -> None:
    own = api.ask("POST", "/models/offers/predict", ROWS).json()
    instances: list[Any]
    for instances in (ROWS, [list(row.values()) for row in ROWS]):
        reply = api.ask("POST", "/v1/models/offers:predict", {"instances": instances})
        assert reply.status_code == 200
        assert reply.json() == {"predictions": own}
    assert api.ask("GET", "/v1/models").json() == {"models": ["offers"]}
    assert api.ask("GET", "/v1/models/offers").json() == {"name": "offers", "ready": True}
    assert api.ask("GET", "/").json() == {"status": "alive"}


def test_verdicts_are_those_of_our_own_route(api: Served) -> None:
    bad = [{"age": 17, "income": 1.0, "plan": "gold", "basket": ["wine"]}, {**ROWS[1], "plan": "silver"}]
    own = api.ask("POST", "/models/offers/predict", bad)
    v2 = api.ask("POST", "/v2/models/offers/infer", {"inputs": tensors(bad)})
    v1 = api.ask("POST", "/v1/models/offers:predict", {"instances": bad})
    assert own.status_code == v2.status_code == v1.status_code == 422
    for mistake in own.json()["errors"]:
        for other in (v2, v1):
            assert "row {row}: {column}: {expected}".format(**mistake) in other.json()["error"]


def test_paths_that_are_none(api: Served) -> None:
    for path in (
        "/v2/models/none",
        "/v2/models/none/ready",
        "/v2/models/offers/versions/1",
        "/v2/none",
        "/v1/models/none",
        "/v1/x",
    ):
        reply = api.ask("GET", path)
        assert (reply.status_code, list(reply.json())) == (404, ["error"]), path
    for path in ("/v2/models/none/infer", "/v2/models/offers/versions/1/infer", "/v1/models/none:predict"):
        reply = api.ask("POST", path, {"inputs": []})
        assert (reply.status_code, list(reply.json())) == (404, ["error"]), path
    reply = api.ask("GET", "/v2/models/offers/infer")
    assert (reply.status_code, list(reply.json())) == (405, ["error"])


def test_plain_json_needs_no_content_type(api: Served) -> None:
    for path, body in (
        ("/v2/models/offers/infer", {"inputs": tensors(ROWS)}),
        ("/v1/models/offers:predict", {"instances": ROWS}),
    ):
        assert api.ask("POST", path, body).status_code == 200
        assert api.ask("POST", path, body, content_type="application/octet-stream").status_code == 200


def test_packed_bodies_with_tensors_in_bytes(api: Served) -> None:
    """The length of the JSON is that before packing, in the request and in the answer."""
    names = {"age": ("INT32", "<i", 20), "income": ("FP32", "<f", 10.0)}
    inputs = [
        *(
            {"name": n, "datatype": d, "shape": [1], "parameters": {"binary_data_size": 4}}
            for n, (d, _, _) in names.items()
        ),
        *tensors(ROWS[:1])[2:],
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(struct.pack(code, value) for _, code, value in names.values())

    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body)), ("identity", body)):
        headers = {"content-encoding": encoding, "inference-header-content-length": str(len(head))}
        reply = api.ask("POST", "/v2/models/offers/infer", packed, **headers)
        assert reply.status_code == 200
        length = int(reply.headers["inference-header-content-length"])
        outputs = json.loads(reply.content[:length])["outputs"]
        assert sum(o["parameters"]["binary_data_size"] for o in outputs) == len(reply.content) - length
        assert struct.unpack("<d", reply.content[length : length + 8]) == (0.5,)
    for packed, status in ((gzip.compress(b" " * (2 << 20)), 413), (body, 400), (gzip.compress(body)[:-4], 400)):
        reply = api.ask("POST", "/v2/models/offers/infer", packed, content_encoding="gzip")
        assert (reply.status_code, list(reply.json())) == (status, ["error"])
    reply = api.ask("POST", "/v2/models/offers/infer", body, content_encoding="br")
    assert (reply.status_code, list(reply.json())) == (415, ["error"])


def test_packed_answers(api: Served) -> None:
    rows = ROWS * 200
    replies = []
    for accepts in ("identity", "gzip", "deflate"):
        body = {"inputs": tensors(rows)}
        reply = api.ask("POST", "/v2/models/offers/infer", body, accept_encoding=accepts)
        assert reply.headers.get("content-encoding", "identity") == accepts
        replies.append(reply.json())
    assert replies[0] == replies[1] == replies[2]


FETCHED = """
from typing import TypedDict

from sereno import Fetched, Key, Model


class Visit(TypedDict):
    id: Key[int]
    basket: list[str]
    bought: Fetched[list[str]]


class Offer(TypedDict):
    products: list[str]


model = Model("visits", inputs=Visit, outputs=Offer)


@model.load
def load():
    return None


@model.fetch
def fetch(keys: list[int]) -> list[dict]:
    return [{"id": key, "bought": [f"wine {key}"]} for key in keys]


@model.predict
def predict(loaded, visits: list[Visit]) -> list[Offer]:
    return [{"products": v["basket"] + v["bought"]} for v in visits]


@model.read
def read():
    raise AssertionError
"""


def test_a_column_that_is_fetched_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "oip_visits.py"
    file.write_text(FETCHED)
    key = {"name": "id", "datatype": "INT32", "shape": [2], "data": [1, 2]}
    basket = {"name": "basket", "datatype": "BYTES", "shape": [2], "data": ["[]", '["ham"]']}
    bought = {"name": "bought", "datatype": "BYTES", "shape": [2], "data": ['["oil"]', "[]"]}
    with served(file) as api:
        for inputs, products in (
            ([key, basket], ['["wine 1"]', '["ham","wine 2"]']),
            ([key, basket, bought], ['["oil"]', '["ham"]']),
        ):
            reply = api.ask("POST", "/v2/models/visits/infer", {"inputs": inputs})
            assert reply.json()["outputs"][0]["data"] == products
        reply = api.ask("POST", "/v2/models/visits/infer", {"inputs": [basket]})
        assert (reply.status_code, "row 0: id: is absent" in reply.json()["error"]) == (422, True)


FAILING = """
from typing import TypedDict

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("failing", inputs=Row, outputs=Score)


@model.load
def load():
    return None


@model.predict
def predict(loaded, rows: list[Row]) -> list[Score]:
    raise ZeroDivisionError("secret")
"""


def test_a_model_that_raises_is_told_by_an_id(tmp_path: Path) -> None:
    file = tmp_path / "oip_failing.py"
    file.write_text(FAILING)
    with served(file) as api:
        for path, body in (
            ("/v2/models/failing/infer", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}),
            ("/v1/models/failing:predict", {"instances": [{"x": 1.0}]}),
        ):
            reply = api.ask("POST", path, body)
            assert (reply.status_code, list(reply.json())) == (500, ["error"])
            assert re.search(r"[0-9a-f]{12}", reply.json()["error"])
            assert "secret" not in reply.text


PAGES_MODELS = """
from typing import Literal, TypedDict

import numpy as np
from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    age: int
    plan: Literal["basic", "family", "premium"]
    monthly_spend: float | None


class Churn(TypedDict):
    probability: float


class Flower(TypedDict):
    flower_id: Key[int]
    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Species(TypedDict):
    species: Literal["setosa", "versicolor", "virginica"]


model = Model("NAME", inputs=INPUTS, outputs=OUTPUTS)


@model.load
def load():
    return None


@model.predict
def predict(loaded, rows: list) -> list:
    return [{"probability": 0.25 if row["monthly_spend"] else 0.75} if "age" in row else {"species": "setosa"} for row in rows]
"""


def test_what_the_page_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    asked = re.findall(r"^curl localhost:8000(/v2/\S+) -d '(.*?)'$", page, re.MULTILINE | re.DOTALL)
    shown = [
        json.loads(text) for text in re.findall(r"^```json\n(\{\"model_name.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]
    files = []
    for name, inputs, outputs in (("churn", "Customer", "Churn"), ("iris", "Flower", "Species")):
        files.append(tmp_path / f"oip_page_{name}.py")
        files[-1].write_text(PAGES_MODELS.replace("NAME", name).replace("INPUTS", inputs).replace("OUTPUTS", outputs))
    with served(*files) as api:
        lookup = api.service.lives["churn"].lookup
        assert lookup is not None
        index = Index(lookup.keys, {(42,): {"probability": 0.25}, (43,): {"probability": 0.75}})
        index.data_time = datetime(2026, 11, 21, 23, tzinfo=UTC)  # midnight in the README's time zone
        lookup._clock = lambda: index.data_time.timestamp() + 4711
        lookup._serve(index)
        replies = [api.ask("POST", path, body) for path, body in asked]
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        assert [{**replies[i].json(), "model_version": "8a1c…"} for i in (0, 2)] == shown
        assert replies[1].json()["outputs"][0]["data"] == ["setosa"]
