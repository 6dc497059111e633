"""BentoML: a service that batches, and one that predicts in its event loop."""

import os

import bentoml
import numpy as np

from benchmarks.workload import load_model

SETTINGS = {
    "workers": 1,
    "traffic": {"timeout": 30, "max_concurrency": 1_000},
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
}


@bentoml.service(**SETTINGS)
class Batched:
    def __init__(self) -> None:
        self.model = load_model(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=30_000)
    def predict(self, rows: list[list[float]]) -> list[float]:
        return self.model(np.array(rows)).tolist()


@bentoml.service(**SETTINGS)
class Single:
    def __init__(self) -> None:
        self.model = load_model(os.environ["MODEL"])

    @bentoml.api
    async def predict(self, row: list[float]) -> float:
        return float(self.model(np.array([row]))[0])
