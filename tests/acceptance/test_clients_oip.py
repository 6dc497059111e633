"""Clients that others wrote work unmodified: `tritonclient` and KServe's, against a server as a user starts it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.server import Server
from tests.clients import python_of

OFFERS = """
from datetime import date
from typing import Annotated, Literal, TypedDict

from annotated_types import Ge
from sereno import Key, Model


class Customer(TypedDict):
    id: Key[int]
    age: Annotated[int, Ge(18)]
    income: float | None
    member: bool
    plan: Literal["basic", "gold"]
    since: date
    basket: list[str]


class Offer(TypedDict):
    score: float | None
    rank: int | None
    plan: str
    day: date
    seen: list[str]


model = Model("offers", inputs=Customer, outputs=Offer)


@model.load
def load():
    return None


@model.predict
def predict(loaded, customers: list[Customer]) -> list[Offer]:
    return [
        {
            "score": c["income"] and c["income"] / c["age"],
            "rank": None if c["member"] else c["age"],
            "plan": c["plan"],
            "day": c["since"],
            "seen": c["basket"],
        }
        for c in customers
    ]
"""
NUMBERS = """
from typing import TypedDict

import numpy as np
from sereno import Key, Model


class Row(TypedDict):
    id: Key[str]
    x: float
    n: int
    flag: bool


class Total(TypedDict):
    total: float


model = Model("numbers", inputs=Row, outputs=Total)


@model.load
def load():
    return None


@model.predict
def predict(loaded, rows: np.ndarray) -> np.ndarray:
    return rows.sum(axis=1)
"""
CHURN = """
from typing import Annotated, Literal, TypedDict

import numpy as np
from annotated_types import Ge, Le
from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    age: Annotated[int, Ge(18), Le(120)]
    plan: Literal["basic", "family", "premium"]
    monthly_spend: float | None


class Churn(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]


model = Model("churn", inputs=Customer, outputs=Churn)


@model.load
def load():
    return None


@model.predict
def predict(loaded, customers: list[Customer]) -> list[Churn]:
    return [{"probability": 0.25 if c["monthly_spend"] else 0.75} for c in customers]
"""
SCORES = """
from datetime import date
from typing import TypedDict

from sereno import Key, Model


class Customer(TypedDict):
    shop: Key[str]
    id: Key[int]
    spent: float | None


class Score(TypedDict):
    score: float | None
    note: str


model = Model("scores", inputs=Customer, outputs=Score, source="customers.parquet")


@model.load
def load():
    return None


@model.predict
def predict(loaded, customers: list[Customer]) -> list[Score]:
    return [{"score": c["spent"], "note": "jamón"} for c in customers]
"""
ROWS = [
    {"age": 20, "income": 10.0, "member": True, "plan": "gold", "since": "2026-05-01", "basket": ["wine", "jamón"]},
    {"age": 40, "income": None, "member": False, "plan": "basic", "since": "2026-05-02", "basket": []},
]
PREDICTIONS = [
    {"score": 0.5, "rank": None, "plan": "gold", "day": "2026-05-01", "seen": ["wine", "jamón"]},
    {"score": None, "rank": 40, "plan": "basic", "day": "2026-05-02", "seen": []},
]


def publish_scores(folder: Path) -> None:
    """Two customers' scores, which a server of `scores.py` finds published."""
    (folder / "scores.py").write_text(SCORES)
    columns = {"shop": ["north", "north"], "id": [7, 8], "spent": [0.5, None]}
    pq.write_table(pa.table(columns), folder / "customers.parquet")
    command = [sys.executable, "-m", "sereno", "run", "scores.py", "--date", "2026-05-01"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def until_looked_up(server: Server) -> None:
    """The index is built once the server is there."""
    server.until(
        lambda: httpx.get(f"{server.url}/models/scores/predictions/north/7").status_code == 200, "look scores up"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "offers.py").write_text(OFFERS)
    (folder / "numbers_sum.py").write_text(NUMBERS)
    (folder / "churn.py").write_text(CHURN)
    publish_scores(folder)
    with Server(folder, "offers.py", "numbers_sum.py", "churn.py", "scores.py") as one:
        until_looked_up(one)
        yield one


def said_by(client: str, server: Server) -> dict[str, Any]:
    script = Path(__file__).with_name("clients_oip.py")
    python = python_of("oip")
    done = subprocess.run([python, script, client, server.url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def by_column(predictions: list[dict[str, Any]]) -> dict[str, list[Any]]:
    columns = {name: [p[name] for p in predictions] for name in predictions[0]}
    columns["seen"] = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in columns["seen"]]
    return columns


def test_the_predictions_are_those_of_our_own_route(server: Server) -> None:
    assert httpx.post(f"{server.url}/models/offers/predict", json=ROWS).json() == PREDICTIONS


def test_tritonclient(server: Server) -> None:
    found = said_by("tritonclient", server)
    metadata = found.pop("metadata")
    assert [(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"]] == [
        ("id", "INT64", [-1]),
        ("age", "INT64", [-1]),
        ("income", "FP64", [-1]),
        ("member", "BOOL", [-1]),
        ("plan", "BYTES", [-1]),
        ("since", "BYTES", [-1]),
        ("basket", "BYTES", [-1]),
    ]
    assert [t["name"] for t in metadata["outputs"]] == list(PREDICTIONS[0])
    assert found.pop("server")["extensions"] == ["binary_tensor_data"]
    for packing in (None, "gzip", "deflate"):
        for way_out in ("bytes", "json"):
            assert found.pop(f"bytes in, {way_out} out, {packing}") == by_column(PREDICTIONS)
            known = [PREDICTIONS[0], {**PREDICTIONS[1], "score": 0.125}]
            assert found.pop(f"json in, {way_out} out, {packing}") == by_column(known)
    status, says = found.pop("refused")
    assert status == "422"
    assert "row 0: age: must be at least 18; row 0: income: is absent" in says
    version, data_date = 1, "2026-05-01"
    for way in ("bytes", "json"):
        looked_up, parameters = found.pop(f"looked up, {way}")
        assert looked_up == {"score": [None, 0.5], "note": ["jamón", "jamón"]}
        assert (parameters["version"], parameters["data_date"], parameters["origin"]) == (version, data_date, "lookup")
        assert (parameters["data_time"], parameters["stale"]) == ("2026-05-02T00:00:00Z", False)
        assert parameters["age_seconds"] > 0
    assert found.pop("looked up, some") == ["note"]
    assert found.pop("looked up, asked for") == [None, 0.5]
    assert found.pop("unknown key") == ["404", "Rows 1: there is no prediction under their keys."]
    assert found == {
        "live": True,
        "ready": True,
        "model": True,
        "unknown": False,
        "version": True,
        "other_version": False,
        "only": ["plan"],
        "many": [[100.0, 400]] * 3,
        "later": [0.5, None],
        "matrix True": [3.5, 6.5],
        "matrix False": [3.5, 6.5],
        "wrong shape": ["400", "Input 'age': its shape is not [n] or [n, 1]."],
    }


def test_kserve(server: Server) -> None:
    found = said_by("kserve", server)
    for name in ("objects", "lists"):
        assert found.pop(f"v1 {name}") == {"predictions": PREDICTIONS}
    for way_in in ("bytes", "json"):
        for way_out in ("bytes", "json"):
            assert found.pop(f"{way_in} in, {way_out} out") == by_column(PREDICTIONS)
    status, says = found.pop("v1 refused")
    assert status == 422
    assert "row 0: age: is absent; row 0: income: is absent" in says
    status, says = found.pop("v2 refused")
    assert status == 400
    assert "None of the inputs is one of the model's" in says
    assert found.pop("v1 looked up") == {"predictions": [{"score": 0.5, "note": "jamón"}]}
    looked_up, parameters = found.pop("v2 looked up")
    assert (looked_up, parameters["origin"]) == ([None, 0.5], "lookup")
    assert found == {"live": [True, True], "ready": True, "model": [True, True], "unknown": False}


@pytest.mark.parametrize(("library", "probability"), [("tritonclient", "[0.25, 0.75]"), ("kserve", "0.25")])
def test_what_the_page_shows_works(server: Server, library: str, probability: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (snippet,) = [block for block in blocks if f"from {library}" in block]
    assert "localhost:8000" in snippet
    snippet = snippet.replace("localhost:8000", server.url.removeprefix("http://"))
    snippet += "\nprint(getattr(probability, 'tolist', lambda: probability)())"
    done = subprocess.run([python_of("oip"), "-c", snippet], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == probability, done.stderr
