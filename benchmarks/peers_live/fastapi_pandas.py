"""FastAPI as most tutorials write it: a DataFrame of one row in a plain function."""

import os

import pandas as pd
from fastapi import FastAPI
from pydantic import create_model

from benchmarks.workload import FEATURES, load_model

predict = load_model(os.environ["MODEL"])
app = FastAPI()
Row = create_model("Row", **dict.fromkeys(FEATURES, (float, ...)))


@app.post("/predict")
def score(row: Row) -> dict[str, float]:
    frame = pd.DataFrame([row.model_dump()])
    return {"probability": float(predict(frame)[0])}
