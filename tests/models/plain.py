"""A model of a few numbers and choices, whose key may be left out."""

from typing import Annotated, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
from annotated_types import Ge, Le

from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    age: Annotated[int, Ge(18), Le(120)]
    plan: Literal["basic", "family"]
    monthly_spend: float | None


class Churn(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]


model = Model("plain", inputs=Customer, outputs=Churn)


@model.load
def load():
    return 120.0


@model.predict
def predict(oldest: float, customers: pd.DataFrame) -> npt.NDArray[np.float64]:
    return (customers["age"] / oldest).to_numpy(dtype="float64")
