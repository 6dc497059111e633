"""MLflow's own client works unmodified: `ScoringServerClient`, against a server as a user starts it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sereno import __version__
from tests.acceptance.server import Server
from tests.clients import python_of

OFFERS = """
from datetime import date, datetime
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
    seen_at: datetime
    basket: list[str]


class Offer(TypedDict):
    score: float | None
    plan: str
    day: date
    at: datetime
    basket: list[str]


model = Model("offers", inputs=Customer, outputs=Offer)


@model.load
def load():
    return None


@model.predict
def predict(loaded, customers: list[Customer]) -> list[Offer]:
    return [
        {
            "score": c["income"] and c["income"] / c["age"],
            "plan": c["plan"],
            "day": c["since"],
            "at": c["seen_at"],
            "basket": c["basket"],
        }
        for c in customers
    ]
"""
PREDICTIONS = [
    {"score": 0.5, "plan": "gold", "day": "2026-05-01", "at": "2026-05-01T08:00:00Z", "basket": ["wine", "jamón"]},
    {"score": None, "plan": "basic", "day": "2026-05-02", "at": "2026-05-02T00:00:00.000001Z", "basket": []},
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "offers.py").write_text(OFFERS)
    python = python_of("mlflow")
    with Server(folder, "offers.py") as server:
        done = subprocess.run(
            [python, Path(__file__).with_name("clients_mlflow.py"), server.url],
            env={"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_every_way_to_ask_gives_the_same_predictions(found: dict[str, Any]) -> None:
    ways = {
        name: said
        for name, said in found.items()
        if isinstance(said, list) and name not in ("as a frame", "one row", "no row")
    }
    assert len(ways) == 9
    assert ways == dict.fromkeys(ways, PREDICTIONS)
    assert found["one row"] == PREDICTIONS[:1]
    assert found["no row"] == []


def test_predictions_become_a_frame(found: dict[str, Any]) -> None:
    assert found["as a frame"] == [list(PREDICTIONS[0]), ["gold", "basic"], 2]


def test_the_version_is_ours(found: dict[str, Any]) -> None:
    assert found["version"] == __version__


def test_what_the_client_raises(found: dict[str, Any]) -> None:
    assert found["refused"] == (
        'Invocation failed (error code 400, response: {"error_code":"BAD_REQUEST","message":"A row does not fit the row type of '
        'this model. row 0: age: must be at least 18"})'
    )
    assert "The body must be a JSON object with one of dataframe_split, dataframe_records" in found["no form"]
    assert "The body is not JSON." in found["no json"]
