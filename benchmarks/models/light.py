"""Probability of default by logistic regression: reading, checking and writing are most of the time."""

import os
from pathlib import Path
from typing import Annotated, TypedDict

import joblib
import numpy
from annotated_types import Ge, Le
from sklearn.pipeline import Pipeline

from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    credit_limit: float
    sex: float
    education: float
    marriage: float
    age: float
    repay_status_1: float
    repay_status_2: float
    repay_status_3: float
    repay_status_4: float
    repay_status_5: float
    repay_status_6: float
    bill_1: float
    bill_2: float
    bill_3: float
    bill_4: float
    bill_5: float
    bill_6: float
    payment_1: float
    payment_2: float
    payment_3: float
    payment_4: float
    payment_5: float
    payment_6: float


class Score(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]
    band: int


model = Model(
    "light",
    inputs=Customer,
    outputs=Score,
    artifacts={"pipeline": "../.data/light.joblib"},
    source="{customers}/*.parquet",
)


@model.load
def load(pipeline: Path) -> Pipeline:
    loaded = joblib.load(pipeline)
    if folder := os.environ.get(
        "LOADED"
    ):  # the benchmark of clusters asks when each process was ready: see workload.py
        Path(folder, str(os.getpid())).touch()
    return loaded


@model.predict
def predict(pipeline: Pipeline, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
    probability = pipeline.predict_proba(rows)[:, 1]
    return {"probability": probability, "band": numpy.minimum((probability * 10).astype("int64"), 9)}


if __name__ == "__main__":
    model.main()
