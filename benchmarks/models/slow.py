"""A model that takes a given time for every row, however many it is given at once, and lets other threads run meanwhile.

MILLISECONDS says how long (2, if not given), in processor time of the machine that made the artefact.
"""

import json
import os
from hashlib import pbkdf2_hmac
from pathlib import Path
from typing import Annotated, TypedDict

import numpy
from annotated_types import Ge, Gt, Le

from sereno import Key, Model


class Customer(TypedDict):
    customer_id: Key[int]
    credit_limit: Annotated[float, Gt(0), Le(1e9)]


class Score(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]


model = Model("slow", inputs=Customer, outputs=Score, artifacts={"pace": "../.data/slow.json"})


@model.load
def load(pace: Path) -> int:
    """How many rounds of hashing take that long."""
    return round(json.loads(pace.read_text())["rounds_per_ms"] * float(os.environ.get("MILLISECONDS", "2")))


@model.predict
def predict(rounds: int, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
    for _ in rows:
        pbkdf2_hmac("sha256", b"a password", b"a salt", rounds)
    return {"probability": rows[:, 0] / (rows[:, 0] + 1e5)}


if __name__ == "__main__":
    model.main()
