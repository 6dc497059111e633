"""The model file that the design shows, as it stands there: it runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sereno.checks import check_table
from sereno.config import load_settings
from sereno.loader import bind, fingerprint, load_model, script_requirements
from sereno.model import Model
from sereno.rows import JsonRows
from sereno.scoring import arrow_of, open_scorer

LISTING = Path(__file__).parents[1] / "listing" / "credit_scoring.py.txt"  # as text, so that no tool reformats it
DAY = date(2026, 5, 1)


def applicants(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "customer_id": np.arange(rows) + 1000,
            "duration_months": rng.integers(1, 60, rows),
            "purpose": rng.choice(["car", "furniture", "education", "business"], rows),
            "savings": np.where(rng.random(rows) < 0.2, np.nan, rng.gamma(2, 1000, rows)),
            "branch": "not declared",
        }
    )


def train(path: Path) -> None:
    frame = applicants(500)
    risk = frame["duration_months"] / 60 + (frame["purpose"] == "car") - frame["savings"].fillna(0) / 4000
    columns = make_column_transformer(
        (OneHotEncoder(), ["purpose"]), (SimpleImputer(), ["duration_months", "savings"]), sparse_threshold=0
    )
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=10_000))
    joblib.dump(pipeline.fit(frame, risk > risk.median()), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    shutil.copy(LISTING, folder / "credit_scoring.py")
    train(folder / "credit_scoring.joblib")
    (folder / "sereno.toml").write_text(f'[values]\nwarehouse = "{folder}/data"\n')
    (folder / "data/applicants").mkdir(parents=True)
    applicants(200).to_parquet(folder / f"data/applicants/{DAY}.parquet")
    return folder


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    path = list(sys.path)
    yield load_model(folder / "credit_scoring.py")
    sys.path[:] = path
    del sys.modules["credit_scoring"]


def test_the_listing_scores_what_it_reads(model: Model, folder: Path) -> None:
    settings = load_settings(folder)
    assert model.read_function is not None
    frame = model.read_function(**bind(model, model.read_function, settings, given={"data_date": DAY}))
    checked = check_table(model.inputs, arrow_of(frame))
    assert checked.refused == []
    scored = open_scorer(model, settings).score(checked.table)
    assert scored.refused == []
    assert scored.table.schema.names == ["customer_id", "probability_of_default", "band"]
    assert scored.table["customer_id"].to_pylist() == list(range(1000, 1200))
    risk = scored.table["probability_of_default"].to_numpy()
    assert scored.table["band"].to_pylist() == ["ABCD"[np.searchsorted([0.1, 0.25, 0.5], r)] for r in risk]
    assert len(fingerprint(model)) == 64


def test_a_row_has_the_same_score_from_json_and_alone(model: Model, folder: Path) -> None:
    frame = applicants(20).drop(columns="branch")
    scorer = open_scorer(model, load_settings(folder))
    whole = scorer.score(check_table(model.inputs, arrow_of(frame)).table).table
    # pandas writes a missing number as null
    texts = frame.to_json(orient="records", lines=True, double_precision=15).splitlines()
    decoded = JsonRows(model.inputs).decode(texts)
    assert decoded.refused == []
    alone = pa.concat_tables(scorer.score(decoded.table.slice(i, 1)).table for i in range(20))
    np.testing.assert_allclose(alone["probability_of_default"], whole["probability_of_default"], rtol=1e-9)
    assert alone["band"].to_pylist() == whole["band"].to_pylist()


def test_the_listing_is_scored_in_a_notebook(model: Model, folder: Path) -> None:
    frame = applicants(5)
    frame.loc[1, "duration_months"] = 0
    frame.loc[3, "purpose"] = "boat"
    scores = model.score(frame)
    assert scores.predictions["customer_id"].tolist() == [1000, 1002, 1004]
    assert scores.predictions["band"].dtype == "category"
    assert scores.rejects == [
        (1, "duration_months: must be at least 1"),
        (3, "purpose: must be one of car, furniture, education, business"),
    ]


def test_what_the_listing_declares(model: Model) -> None:
    assert model.form == "pandas"
    assert model.declared == {"schedule": "0 0 * * *"}
    assert model.file is not None
    assert script_requirements(model.file) == ["sereno", "pandas", "scikit-learn", "joblib"]
    assert [c.name for c in model.inputs.features] == ["duration_months", "purpose", "savings"]
