"""MLflow's own client works unmodified: `ScoringServerClient`, against a server as a user starts it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sereno import __version__
from tests.acceptance.server import Server
from tests.acceptance.test_clients_oip import CHURN, publish_scores, until_looked_up
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
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
PREDICTIONS = [
    {"score": 0.5, "plan": "gold", "day": "2026-05-01", "at": "2026-05-01T08:00:00Z", "basket": ["wine", "jamón"]},
    {"score": None, "plan": "basic", "day": "2026-05-02", "at": "2026-05-02T00:00:00.000001Z", "basket": []},
]


def said_to(server: Server, *conversation: str) -> dict[str, Any]:
    done = subprocess.run(
        [python_of("mlflow"), Path(__file__).with_name("clients_mlflow.py"), server.url, *conversation],
        env=QUIET,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "offers.py").write_text(OFFERS)
    with Server(folder, "offers.py") as server:
        return said_to(server)


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


PAGE = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
SHOWN = {"predictions": [{"probability": 0.25}, {"probability": 0.75}]}


def blocks(section: str, kind: str) -> list[str]:
    """The examples of a section of the page."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(f"{section}\n")]
    return re.findall(rf"^```{kind}\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)


def curl(server: Server, command: str, **variables: str) -> str:
    command = re.sub(r"localhost:80[08]0", server.url.removeprefix("http://"), command)
    done = subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True, timeout=60)
    return done.stdout


class TestPage:
    """What the page shows, as it stands there."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        folder = tmp_path_factory.mktemp("page")
        (folder / "churn.py").write_text(CHURN)
        with Server(folder, "churn.py") as one:
            yield one

    def test_mlflow(self, server: Server) -> None:
        *json_in, csv_in, lines_in = blocks("MLflow", "sh")
        assert len(json_in) == 4
        for command in (*json_in, csv_in):
            assert json.loads(curl(server, command)) == SHOWN
        assert curl(server, lines_in) == "0.25\n0.75\n"
        assert [json.loads(block) for block in blocks("MLflow", "json")] == [SHOWN]

    def test_mlflows_client(self, server: Server) -> None:
        (snippet,) = blocks("MLflow", "python")
        snippet = snippet.replace("8000", str(server.port)) + "\nprint(list(probability))"
        done = subprocess.run(
            [python_of("mlflow"), "-c", snippet], env=QUIET, capture_output=True, text=True, timeout=240
        )
        assert done.stdout == "[0.25, 0.75]\n", done.stderr

    @pytest.mark.parametrize("section", ["SageMaker", "Vertex AI"])
    def test_platforms(self, section: str, tmp_path: Path) -> None:
        (tmp_path / "churn.py").write_text(CHURN)
        variables = {"SAGEMAKER_BATCH": "true"}
        if section == "Vertex AI":
            variables = {"AIP_PREDICT_ROUTE": "/v1/42:predict", "AIP_HTTP_PORT": "8080"}
        (image,) = blocks(section, "dockerfile")
        opened = dict(
            word.split("=") for line in image.splitlines() if line.startswith("ENV ") for word in line.split()[1:]
        )
        with Server(tmp_path, "churn.py", **variables, **opened) as server:
            (command,) = blocks(section, "sh")
            said = curl(server, command, **variables)
        if section == "SageMaker":
            assert blocks(section, "csv") == [said]
        else:
            assert json.loads(said) == SHOWN


def test_asked_by_key_it_gives_what_was_published(tmp_path: Path) -> None:
    publish_scores(tmp_path)
    with Server(tmp_path, "scores.py") as server:
        until_looked_up(server)
        found = said_to(server, "lookups")
        looked_up = httpx.post(f"{server.url}/invocations", json={"instances": [{"shop": "north", "id": 7}]})
    live = [{"score": 1.0, "note": "jamón"}, {"score": 2.0, "note": "jamón"}]
    assert found.pop("live") == live
    assert "There is no prediction under" not in found["no key"]
    assert "row 0: id: must be a whole number" in found.pop("no key")
    assert "Rows 1: there is no prediction under their keys." in found.pop("unknown key")
    published = [{"score": None, "note": "jamón"}, {"score": 0.5, "note": "jamón"}]
    assert len(found) == 6
    assert found == dict.fromkeys(found, published)
    assert looked_up.headers["etag"] == 'W/"1-false"'
    assert int(looked_up.headers["age"]) > 0
