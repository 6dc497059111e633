"""Every snippet of docs/client.md, run against a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import sereno
from tests.acceptance.server import Server
from tests.lookups import publish

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("project")
    model = (ROOT / "tests" / "models" / "plain.py").read_text()
    (folder / "churn.py").write_text(model.replace('Model("plain"', 'Model("churn"'))
    publish(folder, "churn.py")
    with Server(folder, "churn.py") as server:
        yield server


def run(server: Server, number: int) -> dict[str, Any]:
    """What a Python block of the page leaves, asked of this server."""
    snippet = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]
    names: dict[str, Any] = {}
    exec(compile(snippet.replace("http://127.0.0.1:8000", server.url), "client.md", "exec"), names)
    if isinstance(names.get("client"), sereno.Client):
        names["client"].close()
    return names


def test_rows(server: Server) -> None:
    names = run(server, 0)
    assert names["one"] == {"probability": 33 / 120}
    assert names["both"] == [{"probability": 33 / 120}, {"probability": 58 / 120}]
    with sereno.Client(server.url, model="churn") as client:
        row = {"age": 33, "plan": "family", "monthly_spend": 42.5}
        assert client.predict(row) == client.predict(row, model="churn") == names["one"]


def test_frames(server: Server) -> None:
    assert run(server, 1)["risky"].tolist() == [1002]


def test_async(server: Server) -> None:
    assert run(server, 2)["answers"] == [{"probability": age / 120} for age in (20, 40, 60)]


def test_errors(server: Server) -> None:
    names = run(server, 4)
    assert names["wrong"] == ["age must be at least 18", "plan must be one of basic, family"]
    assert "answer" not in names


def test_lookups(server: Server) -> None:
    names = run(server, 3)
    assert isinstance(names["found"], sereno.Lookup)
    assert names["found"].prediction.keys() == {"probability"}
    assert names["several"][0].prediction == names["found"].prediction
    assert names["several"][1].version == 1
    assert names["several"][2] is None


def test_every_snippet_has_a_test() -> None:
    assert PAGE.count("```python") == 5


def test_every_argument_is_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+)", PAGE.split("## Arguments")[1], re.MULTILINE)
    for client in (sereno.Client, sereno.AsyncClient):
        assert [name for name, _ in rows] == list(signature(client).parameters)
    told = {name: float(default) for name, default in rows if default.isdigit()}
    assert told == {"timeout_seconds": 30, "connect_timeout_seconds": 5, "retries": 3}
