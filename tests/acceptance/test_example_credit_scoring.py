"""The credit scoring example: its model, its nights, and the marketing program that reads what Sereno exports."""

import hashlib
import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import date
from pathlib import Path
from types import ModuleType

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "credit_scoring"
SAFE, FAIR, POOR, BAD = (0.03, "A"), (0.2, "B"), (0.3, "C"), (0.8, "D")


def run_python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(folder: Path, version: int, data_date: str, scores: dict[int, tuple[float, str]], parts: int = 1) -> None:
    """Publish scores as Sereno's Parquet export does: a folder of its own, then the link, swapped."""
    exports = folder / "exports" / "credit-scoring" / "parquet"
    own = exports / f"{version:06}"
    own.mkdir(parents=True)
    files = []
    for number, customers in enumerate(np.array_split(np.array(list(scores)), parts)):
        chosen = [scores[customer] for customer in customers]
        table = pa.table(
            {
                "customer_id": customers,
                "probability_of_default": [probability for probability, _ in chosen],
                "band": [band for _, band in chosen],
            }
        )
        path = own / f"part-{number:05}.parquet"
        pq.write_table(table, path)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append({"name": path.name, "rows": table.num_rows, "bytes": len(content), "sha256": digest})
    manifest = {
        "model": "credit-scoring",
        "version": version,
        "data_date": data_date,
        "data_time": f"{data_date}T22:00:00Z",
        "published_at": f"{data_date}T22:00:09Z",
        "rows": len(scores),
        "rejects": 0,
        "format": "parquet",
        "columns": [
            {"name": "customer_id", "type": "int64"},
            {"name": "probability_of_default", "type": "float64"},
            {"name": "band", "type": "string"},
        ],
        "files": files,
    }
    (own / "manifest.json").write_text(json.dumps(manifest))
    point_to(exports, version)


def point_to(exports: Path, version: int) -> None:
    new = exports / ".latest"
    new.symlink_to(f"{version:06}")
    new.replace(exports / "latest")


def offers(folder: Path) -> dict[int, int]:
    with closing(sqlite3.connect(folder / "offers.sqlite")) as connection:
        return dict(connection.execute("SELECT customer_id, amount FROM offers"))


def marketing(folder: Path, today: str) -> subprocess.CompletedProcess[str]:
    return run_python(str(EXAMPLE / "marketing.py"), "--today", today, folder=folder)


FIRST = {1: SAFE, 2: FAIR, 3: POOR, 4: BAD, 5: FAIR}
FIRST_OFFERS = {1: 10_000, 2: 3_000, 3: 1_500, 5: 3_000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where marketing has made its offers from the first night's scores."""
    export(tmp_path, 1, "2026-05-01", FIRST, parts=2)
    done = marketing(tmp_path, "2026-05-02")
    assert done.returncode == 0, done.stderr
    assert "Scores of 2026-05-01, version 1: 5 customers, checked." in done.stdout
    assert "Offers: 4 new, 0 raised, 0 lowered, 0 withdrawn, 0 unchanged." in done.stdout
    assert offers(tmp_path) == FIRST_OFFERS
    return tmp_path


def test_offers_follow_last_nights_scores(folder: Path) -> None:
    # 1 became riskier, 2 safer, 3 is no longer a customer, 4 and 5 are as they were, 6 is new.
    export(folder, 2, "2026-05-02", {1: FAIR, 2: SAFE, 4: BAD, 5: FAIR, 6: POOR})
    done = marketing(folder, "2026-05-03")
    assert done.returncode == 0, done.stderr
    assert "Offers: 1 new, 1 raised, 1 lowered, 1 withdrawn, 1 unchanged." in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "new customer 6 no offer -> 1,500 DM (band C)" in lines
    assert "raised customer 2 3,000 DM (band B) -> 10,000 DM (band A)" in lines
    assert "lowered customer 1 10,000 DM (band A) -> 3,000 DM (band B)" in lines
    assert "withdrawn customer 3 1,500 DM (band C) -> no offer" in lines
    assert offers(folder) == {1: 3_000, 2: 10_000, 5: 3_000, 6: 1_500}


def test_a_second_update_on_the_same_morning_changes_nothing(folder: Path) -> None:
    done = marketing(folder, "2026-05-02")
    assert "Offers: 0 new, 0 raised, 0 lowered, 0 withdrawn, 4 unchanged." in done.stdout
    assert offers(folder) == FIRST_OFFERS


@pytest.mark.parametrize("today", ["2026-05-01", "2026-05-03"])
def test_scores_of_another_night_are_refused(folder: Path, today: str) -> None:
    done = marketing(folder, today)
    assert done.returncode == 1
    assert "Offers stay as they are: the published scores are of 2026-05-01, and last night was" in done.stderr
    assert offers(folder) == FIRST_OFFERS


def test_a_file_that_is_not_the_published_one_is_refused(folder: Path) -> None:
    export(folder, 2, "2026-05-02", dict.fromkeys(range(1, 100), SAFE), parts=3)
    part = folder / "exports" / "credit-scoring" / "parquet" / "000002" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = marketing(folder, "2026-05-03")
    assert done.returncode == 1
    assert "part-00001.parquet is not what was published: its SHA-256 is not the manifest's." in done.stderr
    assert offers(folder) == FIRST_OFFERS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda own, manifest: manifest["files"][0].update(rows=7), "has 99 rows, and the manifest says 7"),
        (lambda own, manifest: manifest.update(rows=98), "have 99 rows, the manifest says 98"),
        (lambda own, manifest: manifest.update(model="churn"), "has parquet of churn, not parquet of credit-scoring"),
        (lambda own, manifest: (own / "part-00000.parquet").unlink(), "cannot be read: No such file or directory"),
    ],
)
def test_an_export_that_does_not_agree_with_its_manifest_is_refused(folder: Path, damage, message: str) -> None:
    export(folder, 2, "2026-05-02", dict.fromkeys(range(1, 100), SAFE))
    own = folder / "exports" / "credit-scoring" / "parquet" / "000002"
    manifest = json.loads((own / "manifest.json").read_text())
    damage(own, manifest)
    (own / "manifest.json").write_text(json.dumps(manifest))
    done = marketing(folder, "2026-05-03")
    assert done.returncode == 1
    assert message in done.stderr
    assert offers(folder) == FIRST_OFFERS


def test_no_scores_yet_is_said(tmp_path: Path) -> None:
    done = marketing(tmp_path, "2026-05-02")
    assert done.returncode == 1
    assert "there are no published scores at exports/credit-scoring/parquet/latest" in done.stderr
    assert not (tmp_path / "offers.sqlite").exists()


def test_an_update_that_fails_halfway_leaves_the_offers(folder: Path) -> None:
    program = import_file(EXAMPLE / "marketing.py")
    customers = [{"customer_id": n, "probability_of_default": 0.03, "band": "A"} for n in (1, 7)]
    customers[1]["customer_id"] = 2**70  # SQLite cannot store it: an error in the middle of the inserts
    with pytest.raises(OverflowError):
        program.update_offers(folder / "offers.sqlite", {"data_date": "2026-05-02", "version": 2}, customers)
    assert offers(folder) == FIRST_OFFERS


def test_a_version_published_while_marketing_reads_does_not_mix_in(tmp_path: Path) -> None:
    program = import_file(EXAMPLE / "marketing.py")
    exports = tmp_path / "exports" / "credit-scoring" / "parquet"
    bands = {1: SAFE, 2: POOR}
    for version, score in bands.items():
        export(tmp_path, version, "2026-05-01", dict.fromkeys(range(500 * version), score), parts=3)

    # Between any two steps of the reader, the link moves.
    point_to(exports, 1)
    folder = program.latest_folder(exports)
    point_to(exports, 2)
    manifest = program.read_manifest(folder, date(2026, 5, 2))
    point_to(exports, 1)
    point_to(exports, 2)
    scores = program.read_scores(folder, manifest)
    assert (manifest["version"], len(scores), {row["band"] for row in scores}) == (1, 500, {"A"})

    # And at any moment: each reading is one version, whole.
    stop = threading.Event()

    def swap() -> None:
        version = 1
        while not stop.is_set():
            point_to(exports, version)
            version = 3 - version

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        seen = set()
        for _ in range(200):
            folder = program.latest_folder(exports)
            manifest = program.read_manifest(folder, date(2026, 5, 2))
            scores = program.read_scores(folder, manifest)
            version = manifest["version"]
            assert (len(scores), {row["band"] for row in scores}) == (500 * version, {bands[version][1]})
            seen.add(version)
    finally:
        stop.set()
        swapping.join()
    assert seen == {1, 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its model trained and its nights prepared."""
    folder = tmp_path_factory.mktemp("credit") / "scoring"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.joblib", "warehouse", "exports", "predictions"))
    for program in ("train.py", "prepare_nights.py"):
        done = run_python("-W", "error", program, folder=folder)
        assert done.returncode == 0, done.stderr
    return folder


def applicants(folder: Path, night: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "warehouse" / "applicants" / f"{night}.parquet")


def test_the_model_answers_a_row_alike_however_it_comes(trained: Path) -> None:
    pipeline = joblib.load(trained / "credit_scoring.joblib")
    real = pd.read_csv(trained / "data" / "german_credit.csv").drop(columns="outcome").head(100)
    batch = pipeline.predict_proba(real)[:, 1]
    for types in ({}, dict.fromkeys(real.select_dtypes("str"), "category"), {"age": "Int64", "telephone": "boolean"}):
        typed = real.astype(types)
        rows = [pipeline.predict_proba(typed.iloc[[position]])[0, 1] for position in range(len(typed))]
        np.testing.assert_allclose(rows, batch, rtol=1e-9)
        np.testing.assert_allclose(pipeline.predict_proba(typed[::-1])[::-1, 1], batch, rtol=1e-9)

    # An empty cell, alone or in a whole column, is the same in whatever way it is written.
    codes = ["below_100", "100_to_500", "500_to_1000", "1000_or_more"]
    columns = [pd.Series([empty] * len(real), dtype=object) for empty in (None, np.nan, pd.NA)]
    columns += [pd.Series([None] * len(real), dtype=dtype) for dtype in ("str", pd.CategoricalDtype(codes))]
    answers = [pipeline.predict_proba(real.assign(savings=column))[:, 1] for column in columns]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-9)
    unsaved = real["savings"].isna().to_numpy()
    assert unsaved.any()
    np.testing.assert_allclose(answers[0][unsaved], batch[unsaved], rtol=1e-9)


def test_training_again_gives_the_same_model(trained: Path) -> None:
    before = (trained / "credit_scoring.joblib").read_bytes()
    done = run_python("train.py", folder=trained)
    assert "AUC on applicants that the model has not seen: 0.789" in done.stdout
    assert (trained / "credit_scoring.joblib").read_bytes() == before


def test_the_nights_are_broken_as_the_story_says(trained: Path) -> None:
    nights = [applicants(trained, night) for night in ("2026-05-01", "2026-05-02", "2026-05-03")]
    assert [len(night) for night in nights] == [4_000, 4_020, 1_500]
    for night in nights:
        assert night["customer_id"].is_unique
    for night in nights[:2]:
        assert night["credit_amount"].isna().sum() == 3
        assert (night["purpose"] == "e_bike").sum() == 2
        assert (night["age"] == 126).sum() == 1

    done = run_python("prepare_nights.py", "--repair", folder=trained)
    assert done.returncode == 0, done.stderr
    repaired = applicants(trained, "2026-05-03")
    assert len(repaired) == 4_040
    pd.testing.assert_frame_equal(repaired.head(1_500), nights[2])
