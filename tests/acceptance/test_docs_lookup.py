"""docs/lookup.md, followed from top to bottom by a reader with a model of customers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sereno.adapters.lookup_redis.address import Address
from sereno.config import load_settings
from sereno.lookup.where import where_of
from tests.acceptance.server import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "lookup.md").read_text(encoding="utf-8")
PROTOCOLS = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8").split("## Lookups by key")[1]
READ = """

@model.read
def read() -> pd.DataFrame:
    keys = range(1, 101)
    return pd.DataFrame({"customer_id": keys, "age": [18 + k for k in keys], "plan": "basic", "monthly_spend": 1.0})
"""


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What the first two commands of the page leave."""
    folder = tmp_path_factory.mktemp("project")
    model = (ROOT / "tests" / "models" / "plain.py").read_text().replace('Model("plain"', 'Model("churn"')
    (folder / "churn.py").write_text(model + READ)
    (folder / "sereno.toml").write_text('[models.churn]\ntime_zone = "Europe/Madrid"\n')  # as in the README
    run, serve = (shlex.split(line) for line in blocks("sh")[0].splitlines()[:2])
    assert (run[:2], serve[:2]) == (["sereno", "run"], ["sereno", "serve"])
    subprocess.run([sys.executable, "-m", *run], cwd=folder, check=True, capture_output=True)
    with Server(folder, *serve[2:]) as server:
        server.until(lambda: "version" in httpx.get(f"{server.url}/readyz").text, "look up")
        yield server


def curled(server: Server, command: str) -> Any:
    words = shlex.split(command.replace("localhost:8000", server.url.removeprefix("http://")))
    assert words[0] == "curl"
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *words[1:]], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_first_lookups(server: Server) -> None:
    one, many = (curled(server, line) for line in blocks("sh")[0].splitlines()[2:])
    shown = json.loads(blocks("json")[0])
    assert one.keys() == shown.keys()
    same = ("version", "data_date", "data_time", "origin", "stale")
    assert [one[name] for name in same] == [shown[name] for name in same]
    assert one["prediction"] == {"probability": (18 + 42) / 120}
    assert [item and item["prediction"] for item in many] == [one["prediction"], {"probability": (18 + 43) / 120}, None]


def test_from_python(server: Server) -> None:
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(program.replace("http://127.0.0.1:8000", server.url), "lookup.md", "exec"), names)
    assert names["found"].prediction == {"probability": (18 + 42) / 120}
    assert names["several"][1:] == [names["several"][1], None]


def test_other_protocols(server: Server) -> None:
    mlflow, v2 = blocks("sh", PROTOCOLS)
    expected = [(18 + key) / 120 for key in (42, 43)]
    assert curled(server, mlflow) == {"predictions": [{"probability": one} for one in expected]}
    reply = curled(server, v2)
    assert reply["outputs"][0]["data"] == expected
    assert reply["parameters"].keys() == json.loads(blocks("json", PROTOCOLS)[0].replace("…", ""))["parameters"].keys()
    assert (reply["parameters"]["version"], reply["parameters"]["origin"]) == (1, "lookup")


def test_the_settings_are_there(tmp_path: Path) -> None:
    settings, shared = blocks("toml")
    (tmp_path / "sereno.toml").write_text(settings)
    chosen = load_settings(tmp_path).models["churn"]
    assert (chosen.max_age_seconds, chosen.stale, chosen.unknown, chosen.lookup) == (36 * 3600, "flag", "404", "auto")
    (tmp_path / "sereno.toml").write_text(shared)
    where = where_of(load_settings(tmp_path))
    assert where is not None
    assert (where.prefix, where.versions) == ("offers", 2)
    assert Address.parse(where.address).shown == "redis://lookups.bank.internal:6379/0"
