"""Answers x times a weight, which it loads from a file."""

from pathlib import Path
from typing import TypedDict

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"})


@model.load
def load(weight: Path) -> float:
    return float(weight.read_text())


@model.predict
def predict(weight: float, rows: list[Row]) -> list[Score]:
    return [{"y": row["x"] * weight} for row in rows]
