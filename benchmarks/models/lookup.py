"""Predictions to be looked up by key: how much of their credit customers have used, as a probability, a band and a segment."""

from typing import Annotated, TypedDict

import numpy
from annotated_types import Ge, Le

from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    balance: float
    credit_left: float


class Score(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]
    band: int
    segment: str


model = Model("lookup", inputs=Customer, outputs=Score)


@model.load
def load() -> numpy.ndarray:
    return numpy.array(["low", "middle", "high"])


@model.predict
def predict(segments: numpy.ndarray, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
    probability = rows[:, 0] / (rows[:, 0] + rows[:, 1])
    band = numpy.minimum((probability * 10).astype("int64"), 9)
    return {"probability": probability, "band": band, "segment": segments[band // 4]}


if __name__ == "__main__":
    model.main()
