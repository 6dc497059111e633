"""The work that everybody does here: score rows of 23 numbers, answer with a probability and a band.

Every peer imports this file, each in its own environment, so it needs NumPy alone until a model is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
DATA = FOLDER / ".data"
LOGS = DATA / "logs"
MODELS = ("heavy", "light")
MODEL_FILES = {"heavy": DATA / "heavy.txt", "light": DATA / "light.joblib", "frame": DATA / "frame.joblib"}

KEY = "customer_id"
MONTHS = range(1, 7)
FEATURES = [
    *("credit_limit", "sex", "education", "marriage", "age"),
    *(f"repay_status_{month}" for month in MONTHS),
    *(f"bill_{month}" for month in MONTHS),
    *(f"payment_{month}" for month in MONTHS),
]

Predict = Callable[[np.ndarray], np.ndarray]


def load_model(name: str) -> Predict:
    """The model as a function from a matrix (rows × FEATURES; `frame`: a pandas DataFrame of them) to probabilities."""
    if name == "heavy":
        import lightgbm

        booster = lightgbm.Booster(model_file=MODEL_FILES[name])
        note_loaded()
        return lambda matrix: np.asarray(booster.predict(matrix))
    import joblib

    pipeline = joblib.load(MODEL_FILES[name])
    note_loaded()
    return lambda matrix: np.asarray(pipeline.predict_proba(matrix)[:, 1])


def note_loaded() -> None:
    """Note, where somebody asked for it, when this process had a model first: by a file, named by its pid, in the folder LOADED."""
    if folder := os.environ.get("LOADED"):
        with suppress(FileExistsError):
            Path(folder, str(os.getpid())).touch(exist_ok=False)


def band_of(probability: np.ndarray) -> np.ndarray:
    """0 to 9: the tenth of the scale that a probability falls in."""
    return np.minimum((probability * 10).astype(np.int64), 9)


def from_command_line() -> tuple[str, Path, Path]:
    """A peer's arguments: name of the model, folder of Parquet files to read, folder to write Parquet files in."""
    model, source, output = sys.argv[1:4]
    return model, Path(source), Path(output)
