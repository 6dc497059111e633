"""The first promise: the same row gets the same prediction, whichever way it comes in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sereno import read_predictions
from sereno.checks import check_table
from sereno.config import load_settings
from sereno.loader import load_model
from sereno.rows import JsonRows, encode
from sereno.scoring import open_scorer

EXAMPLE = Path(__file__).parents[2] / "examples" / "credit_scoring"
DATE = "2026-05-01"


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model file is a module of its name, and other tests have one of that name too."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("credit_scoring", None)


def in_folder(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, trained, with its nights prepared and the first one published."""
    folder = tmp_path_factory.mktemp("bank") / "credit_scoring"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.joblib", "warehouse", "__pycache__"))
    in_folder(folder, "train.py")
    in_folder(folder, "prepare_nights.py")
    in_folder(folder, "-m", "sereno", "run", "credit_scoring.py", "--date", DATE)
    return folder


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [r["customer_id"] for r in found] == [r["customer_id"] for r in expected]
    assert [r["band"] for r in found] == [r["band"] for r in expected]
    risks = [r["probability_of_default"] for r in expected]
    assert [r["probability_of_default"] for r in found] == pytest.approx(risks, rel=1e-9)


def test_batch_notebook_and_json_rows_agree(bank: Path) -> None:
    published = read_predictions("credit-scoring", home=bank).sort_by("customer_id").to_pylist()
    model = load_model(bank / "credit_scoring.py")
    rows = pq.read_table(bank / "warehouse" / "applicants" / f"{DATE}.parquet").sort_by("customer_id")

    notebook = model.score(rows.to_pandas())
    same(notebook.predictions.to_dict("records"), published)
    assert len(notebook.rejects) + len(published) == rows.num_rows

    scorer = open_scorer(model, load_settings(bank))
    fits = check_table(model.inputs, rows).table
    decoder = JsonRows(model.inputs)
    singly = [scorer.score(decoder.decode([text]).table).table.to_pylist()[0] for text in encode(fits)[:200]]
    same(singly, published[:200])


def test_check_finds_no_difference(bank: Path) -> None:
    said = json.loads(in_folder(bank, "-m", "sereno", "check", "credit_scoring.py", "--date", DATE, "--json"))
    assert said["ok"]
    kinds = {outcome["kind"] for outcome in said["outcomes"]}
    assert kinds == {"state", "batch", "order", "json", "http", "keys", "lookup"}
    assert all(outcome["passed"] for outcome in said["outcomes"])
