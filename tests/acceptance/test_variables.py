"""No `sereno.toml` at all: variables say everything, as in a container; and what they say that is secret is printed nowhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.project import Project

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
MODEL = """
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from sereno import Key, Model, Secret


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    Income: float


model = Model("credit-scoring", inputs=Row, outputs=Out)


@model.load
def load(factor: float, shifts: list[float], token: Secret):
    return factor * sum(shifts) if token == "hunter2" else 0.0


@model.predict
def predict(factor, rows: pa.Table) -> pa.Table:
    return pa.table({"Income": pc.multiply(rows["x"], factor)})
"""
PASSWORD = "hunter2"
NOBODY = f"postgresql://sereno:{PASSWORD}@127.0.0.1:1/bank"  # nothing listens there


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A folder without settings: commands start there, and the model lies elsewhere."""
    project = Project(tmp_path)
    project.within = True
    project.write("models/credit_scoring.py", MODEL)
    project.write("rows.csv", "id,x\n1,2.0\n2,3.0\n")
    project.write("secrets/token", PASSWORD + "\n")
    model = "SERENO_MODELS__CREDIT_SCORING__"
    project.variables = {
        "SERENO_HOME": str(tmp_path / "home"),
        "SERENO_WORKERS": "1",
        "SERENO_SECRET_TOKEN_FILE": str(tmp_path / "secrets" / "token"),
        "SERENO_VALUES__FACTOR": "2",
        "SERENO_VALUES__SHIFTS": "0.5,1",
        f"{model}FILE": str(tmp_path / "models" / "credit_scoring.py"),
        f"{model}SOURCE": str(tmp_path / "rows.csv"),
        f"{model}EXPORTS": "csv,jsonl",
        f"{model}COLUMNS__INCOME__MAX_NULL_SHARE": "0.1",
    }
    return project


def test_every_command_knows_the_model_by_the_name_that_its_file_gives(project: Project) -> None:
    assert project.json("run", "credit-scoring")["version"] == 1
    assert project.json("get", "credit-scoring", "2")["Income"] == 9.0
    assert [one["model"] for one in project.json("health")["models"]] == ["credit-scoring"]
    assert [one["version"] for one in project.json("runs", "credit-scoring")] == [1]
    project.sereno("pause", "credit-scoring")
    project.sereno("resume", "credit-scoring")
    exports = project.folder / "home" / "exports" / "credit-scoring"
    assert sorted(one.name for one in exports.iterdir()) == ["csv", "jsonl"]
    assert {one.name for one in project.folder.iterdir()} == {"home", "models", "rows.csv", "secrets"}
    assert {one.name for one in (project.folder / "models").iterdir()} - {"__pycache__"} == {"credit_scoring.py"}


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("LEDGER", NOBODY),
        ("LOOKUP_STORE", f"redis://:{PASSWORD}@127.0.0.1:1/0"),
        ("MODELS__CREDIT_SCORING__EXPORTS", f'["csv", "{NOBODY}"]'),
        ("MODELS__CREDIT_SCORING__DATABASE", NOBODY),
    ],
)
def test_a_password_in_an_address_is_printed_nowhere(project: Project, setting: str, address: str) -> None:
    project.variables[f"SERENO_{setting}"] = address
    if setting.endswith("DATABASE"):
        project.variables["SERENO_MODELS__CREDIT_SCORING__SOURCE"] = "SELECT 1 AS id, 2.0 AS x"
    if setting == "LOOKUP_STORE":
        project.variables["SERENO_MODELS__CREDIT_SCORING__LOOKUP"] = "required"
    commands = (
        "run {}",
        "run --json {}",
        "health",
        "runs --json {}",
        "versions {}",
        "prune {}",
        "repair",
        "config",
        "check {}",
    )
    said = []
    for words in commands:
        done = project.sereno(*words.format("credit-scoring").split(), code=None)
        said.append(f"$ {words}\n{done.stdout}\n{done.stderr}")
    traceback = project.start("run", "-v", "--force", "credit-scoring").communicate(timeout=60)
    assert PASSWORD not in "".join(traceback)
    assert PASSWORD not in "\n".join(said)
    assert "127.0.0.1:1" in said[0]  # it was asked
    home = project.folder / "home"
    kept = [one for one in home.rglob("*") if one.is_file()] if home.is_dir() else []
    assert [one for one in kept if PASSWORD.encode() in one.read_bytes()] == []


def variables_of_the_page() -> Iterator[tuple[str, str]]:
    (block,) = re.findall(r"```sh\n(export .*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            name, _, text = words[1].partition("=")
            yield name, text


def test_the_variables_of_the_page(project: Project, tmp_path: Path) -> None:
    project.write("srv/models/credit_scoring.py", MODEL)
    project.write("run/secrets/ledger", NOBODY)
    places = {"/srv": f"{tmp_path}/srv", "/run": f"{tmp_path}/run", "/data": f"{tmp_path}/data"}
    given = {}
    for name, text in variables_of_the_page():
        given[name] = next((text.replace(at, there, 1) for at, there in places.items() if text.startswith(at)), text)
    project.variables = given
    found = {one["name"]: one for one in project.json("config")["settings"]}
    assert {one["where"].partition("=")[0] for one in found.values() if one["origin"] == "variable"} == set(given)
    assert found["models.credit-scoring.exports"]["value"] == ["parquet", "csv"]
    assert found["models.credit-scoring.gates.max_reject_share"]["value"] == 0.02
    assert found["models.credit-scoring.columns.income.warn_psi"]["value"] == 0.5
    assert found["ledger"]["value"] == NOBODY.replace(PASSWORD, "***")
