"""Probability of default by a scikit-learn pipeline that is given a pandas DataFrame, as it was in training."""

from pathlib import Path
from typing import Annotated, TypedDict

import joblib
import numpy
import pandas
from annotated_types import Ge, Gt, Le
from sklearn.pipeline import Pipeline

from sereno import Key, Model

Months = Annotated[float, Ge(-2), Le(24)]  # how late a payment was; -2: nothing was due
Amount = Annotated[float, Ge(-1e9), Le(1e9)]


class Customer(TypedDict):
    customer_id: Key[int]
    credit_limit: Annotated[float, Gt(0), Le(1e9)]
    sex: Annotated[float, Ge(1), Le(2)]
    education: Annotated[float, Ge(1), Le(4)]
    marriage: Annotated[float, Ge(1), Le(3)]
    age: Annotated[float, Ge(18), Le(120)]
    repay_status_1: Months
    repay_status_2: Months
    repay_status_3: Months
    repay_status_4: Months
    repay_status_5: Months
    repay_status_6: Months
    bill_1: Amount
    bill_2: Amount
    bill_3: Amount
    bill_4: Amount
    bill_5: Amount
    bill_6: Amount
    payment_1: Amount
    payment_2: Amount
    payment_3: Amount
    payment_4: Amount
    payment_5: Amount
    payment_6: Amount


class Score(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]


model = Model("frame", inputs=Customer, outputs=Score, artifacts={"pipeline": "../.data/frame.joblib"})


@model.load
def load(pipeline: Path) -> Pipeline:
    return joblib.load(pipeline)


@model.predict
def predict(pipeline: Pipeline, rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
    return {"probability": pipeline.predict_proba(rows)[:, 1]}


if __name__ == "__main__":
    model.main()
