"""FastAPI as somebody writes it who knows it: no pandas, and `async def`, so that no request changes threads."""

import os

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from benchmarks.workload import FEATURES, load_model

predict = load_model(os.environ["MODEL"])
app = FastAPI()
Row = create_model("Row", **dict.fromkeys(FEATURES, (float, ...)))


class Score(BaseModel):
    probability: float


@app.post("/predict")
async def score(row: Row) -> Score:
    matrix = np.array([[getattr(row, feature) for feature in FEATURES]])
    return Score(probability=float(predict(matrix)[0]))
