"""The first promise, for lists, nested rows and fetched columns: the recommender by night, in a notebook, live, looked up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sereno
from sereno.loader import load_model
from tests.acceptance.server import Server
from tests.recommender import trained_copy


def in_folder(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, trained, and its recommendations for all customers published."""
    folder = trained_copy(tmp_path_factory)
    in_folder(folder, "-m", "sereno", "run", "recommender.py")
    return folder


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[int, Any]:
    """Customer → products, as the table has them."""
    rows = sereno.read_predictions("recommender", home=folder).to_pylist()
    assert len(rows) == 2_440
    return {row["customer_id"]: row["products"] for row in rows}


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[sereno.Client]:
    with Server(folder) as server, sereno.Client(server.url, timeout_seconds=120) as client:
        server.until(lambda: client.lookup(1104).origin == "lookup", "look up what is published")
        yield client


def test_notebook_and_batch_agree(folder: Path, published: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = load_model(folder / "recommender.py")
    del sys.modules["recommender"]  # other tests have a model file of that name too
    assert model.read_function is not None
    scores = model.score(model.read_function(folder / "shop.sqlite"))
    assert scores.rejects == []
    assert {row["customer_id"]: row["products"] for row in scores.predictions} == published


def visits(published: dict[int, Any]) -> list[dict[str, Any]]:
    """What the shop sends when somebody has come, and has put nothing in the basket yet."""
    return [{"customer_id": customer, "basket": []} for customer in published]


def test_live_and_batch_agree_row_by_row(client: sereno.Client, published: dict[int, Any]) -> None:
    some = visits(published)[::25]
    assert [client.predict(visit)["products"] for visit in some] == [published[v["customer_id"]] for v in some]


def test_live_and_batch_agree_in_lists(client: sereno.Client, published: dict[int, Any]) -> None:
    rows = visits(published)
    answers = [answer for start in range(0, len(rows), 500) for answer in client.predict(rows[start : start + 500])]
    assert [answer["products"] for answer in answers] == [published[visit["customer_id"]] for visit in rows]


def test_live_and_batch_agree_when_all_ask_at_once(client: sereno.Client, published: dict[int, Any]) -> None:
    some = visits(published)[::5]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(client.predict, some))
    assert [answer["products"] for answer in answers] == [published[visit["customer_id"]] for visit in some]


def test_a_key_alone_is_enough_to_be_answered_live(client: sereno.Client, published: dict[int, Any]) -> None:
    some = list(published)[::50]
    answers = client.predict([{"customer_id": customer} for customer in some])
    assert [answer["products"] for answer in answers] == [published[customer] for customer in some]


def test_lookup_and_batch_agree(client: sereno.Client, published: dict[int, Any]) -> None:
    customers = list(published)
    found = [
        one for start in range(0, len(customers), 500) for one in client.lookup_many(customers[start : start + 500])
    ]
    assert {one.origin for one in found if one is not None} == {"lookup"}
    assert [one.prediction["products"] for one in found if one is not None] == list(published.values())
    one = client.lookup(customers[0])
    assert (one.origin, one.version, one.prediction["products"]) == ("lookup", 1, published[customers[0]])


def test_a_history_that_the_request_brings_counts_instead_of_the_fetched_one(
    client: sereno.Client, published: dict[int, Any]
) -> None:
    new = client.predict({"customer_id": 1_000_000, "basket": []})
    assert client.predict({"customer_id": 1104, "basket": [], "bought": []}) == new
    assert new["products"] != published[1104]


def test_check_finds_no_difference(folder: Path) -> None:
    said = json.loads(in_folder(folder, "-m", "sereno", "check", "recommender.py", "--json"))
    assert said["ok"]
    assert {"state", "batch", "order", "json"} <= {outcome["kind"] for outcome in said["outcomes"]}
    assert all(outcome["passed"] for outcome in said["outcomes"])
