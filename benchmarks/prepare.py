"""Makes the models, the rows and the right answers under .data, once; the same seed gives the same everywhere."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import DATA, FEATURES, KEY, MODEL_FILES, MODELS, load_model

FILES = 16
ROW_GROUP = 131_072
SAMPLED = 1_024
REQUESTS = 512


def customers(rows: int, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Invented customers with the columns and ranges of UCI's credit card clients, and whether each defaulted."""
    random_ = np.random.default_rng(seed)
    strain = random_.standard_normal(rows)  # what the columns have in common
    matrix = np.empty((rows, len(FEATURES)))
    limit = matrix[:, 0] = np.clip(np.round(random_.lognormal(2.5, 0.9, rows)), 1, 80) * 10_000
    matrix[:, 1] = random_.integers(1, 3, rows)
    matrix[:, 2] = random_.choice(4, rows, p=[0.36, 0.46, 0.17, 0.01]) + 1
    matrix[:, 3] = random_.choice(3, rows, p=[0.46, 0.53, 0.01]) + 1
    matrix[:, 4] = np.clip(np.round(random_.normal(35.5, 9.2, rows)), 21, 75)
    used = np.clip(random_.beta(0.9, 1.6, rows) + 0.08 * strain, 0, 1.2) * limit
    for month in range(6):
        late = strain + random_.normal(-0.4, 0.9, rows)
        matrix[:, 5 + month] = np.clip(np.round(late), -2, 8)
        matrix[:, 11 + month] = np.round(used * random_.uniform(0.75, 1.1, rows))
        matrix[:, 17 + month] = np.round(used * random_.exponential(0.07, rows) + random_.exponential(300, rows))
    score = 0.8 * strain + 0.4 * (matrix[:, 5] >= 2) - 0.3 * np.log(limit / 1e5) + 0.5 * (used > 0.9 * limit) - 1.6
    return matrix, random_.random(rows) < 1 / (1 + np.exp(-score))


def models() -> None:
    if all(file.exists() for file in MODEL_FILES.values()):
        return
    import joblib
    import lightgbm
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    DATA.mkdir(exist_ok=True)
    matrix, defaulted = customers(40_000, 1)
    settings = {"objective": "binary", "num_leaves": 31, "learning_rate": 0.05, "seed": 1, "deterministic": True}
    training = lightgbm.Dataset(matrix, defaulted.astype(int), feature_name=FEATURES)
    lightgbm.train(settings | {"verbose": -1}, training, num_boost_round=200).save_model(MODEL_FILES["heavy"])
    frame = pd.DataFrame(matrix, columns=FEATURES)
    for name, rows in (("light", matrix), ("frame", frame)):  # of the same numbers, but one knows the columns' names
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(rows, defaulted)
        joblib.dump(pipeline, MODEL_FILES[name])


def rows(count: int) -> tuple[Path, dict[str, Any]]:
    """The folder of `count` rows, and the answers that direct prediction gives for them."""
    models()
    folder, answers = DATA / f"rows-{count}", DATA / f"rows-{count}.json"
    if not answers.exists():
        print(f"making {count:,} rows and their right answers in {folder}", flush=True)
        unfinished = folder.with_suffix(".unfinished")
        for old in (folder, unfinished):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True)
        expected = _write(unfinished, count)
        unfinished.replace(folder)
        answers.write_text(json.dumps(expected))  # last: it says that the folder is whole
    return folder, json.loads(answers.read_text())


def requests() -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Rows for live requests, and for each model the probabilities that direct prediction gives for them."""
    models()
    matrix, _ = customers(REQUESTS, 3)
    frame = pd.DataFrame(matrix, columns=FEATURES)
    right = {"heavy": load_model("heavy")(matrix).tolist(), "frame": load_model("frame")(frame).tolist()}
    right["slow"] = (matrix[:, 0] / (matrix[:, 0] + 1e5)).tolist()
    pace = DATA / "slow.json"
    if not pace.exists():
        pace.write_text(json.dumps({"rounds_per_ms": _rounds_per_ms()}))
    return [dict(zip(FEATURES, row, strict=True)) for row in matrix.tolist()], right


def _rounds_per_ms() -> float:
    """How many rounds of hashing this machine does in a millisecond when nothing disturbs it."""
    rounds, best = 20_000, float("inf")
    for _ in range(50):
        before = time.thread_time()
        hashlib.pbkdf2_hmac("sha256", b"a password", b"a salt", rounds)
        best = min(best, time.thread_time() - before)
    return rounds / best / 1e3


def _write(folder: Path, count: int) -> dict[str, Any]:
    predict = {name: load_model(name) for name in MODELS}
    sampled = np.array(sorted(random.Random(1).sample(range(count), min(SAMPLED, count))))
    sums: dict[str, float] = dict.fromkeys(MODELS, 0.0)
    picked: dict[str, list[float]] = {name: [] for name in MODELS}
    files = FILES if count >= FILES * 1_000 else 1
    schema = pa.schema([(KEY, pa.int64()), *((feature, pa.float64()) for feature in FEATURES)])
    for number in range(files):
        first, end = count * number // files, count * (number + 1) // files
        with pq.ParquetWriter(folder / f"customers-{number:02d}.parquet", schema, compression="zstd") as writer:
            for start in range(first, end, ROW_GROUP):
                size = min(ROW_GROUP, end - start)
                matrix, _ = customers(size, 2, start)
                columns = [pa.array(np.arange(start, start + size)), *(pa.array(column) for column in matrix.T)]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
                here = sampled[(sampled >= start) & (sampled < start + size)] - start
                for name in MODELS:
                    probability = predict[name](matrix)
                    sums[name] += float(probability.sum())
                    picked[name] += probability[here].tolist()
    return {"rows": count, "sampled": sampled.tolist(), "sum": sums, "probability": picked}
