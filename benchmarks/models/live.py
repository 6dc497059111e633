"""Probability of default by 200 boosted trees, one row a request, with the bounds that the columns have."""

from pathlib import Path
from typing import Annotated, TypedDict

import lightgbm
import numpy
from annotated_types import Ge, Gt, Le

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


model = Model("live", inputs=Customer, outputs=Score, artifacts={"booster": "../.data/heavy.txt"})


@model.load
def load(booster: Path) -> lightgbm.Booster:
    return lightgbm.Booster(model_file=booster)


@model.predict
def predict(booster: lightgbm.Booster, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
    return {"probability": booster.predict(rows)}


if __name__ == "__main__":
    model.main()
