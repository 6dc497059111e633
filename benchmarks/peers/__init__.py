"""The other ways to do the work: who they are, and the environment that each needs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import MODEL_LIBRARIES, python_with, same_as_here


@dataclass(frozen=True, kw_only=True)
class Peer:
    script: str  # the module in this folder
    option: str = ""  # what it is called with beyond the model and the folders
    threads: int  # of the model's libraries in each process: threads × parallel predictions = 2
    needs: dict[str, str]  # packages beyond MODEL_LIBRARIES: how Python imports it → how uv installs it
    keys_only: bool = False  # its probabilities are made up
    apart: bool = False  # in an environment of its own, though Sereno's executors need some of its packages here


# The two limits are no peers but bounds: each does only a part of the work.
PEERS = {
    "limit-predict": Peer(script="limit_predict", threads=2, needs={}),
    "limit-parquet": Peer(script="limit_parquet", threads=1, needs={}, keys_only=True),
    "arrow-loop": Peer(script="arrow_loop", threads=1, needs={}),
    "polars": Peer(script="polars_streaming", threads=2, needs={"polars": "polars"}),
    "pandas-row-groups": Peer(script="pandas_row_groups", threads=2, needs={}),
    "pandas-at-once": Peer(script="pandas_at_once", threads=2, needs={}),
    "dask": Peer(script="dask_frames", threads=1, needs={"dask.dataframe": "dask[dataframe,distributed]"}),
    "spark-map": Peer(script="spark", option="map", threads=1, needs={"pyspark": "pyspark"}, apart=True),
    "spark-udf": Peer(script="spark", option="udf", threads=1, needs={"pyspark": "pyspark"}, apart=True),
    "ray": Peer(script="ray_data", threads=1, needs={"ray.data": "ray[data]"}, apart=True),
}
# Those that `cluster` compares with, beside some of the former.
MLFLOW = {"mlflow": "mlflow-skinny==3.17.2", "pyspark": "pyspark==4.3.0"}
ON_CLUSTERS = {
    "ray-data": PEERS["ray"],
    "spark-mlflow": Peer(script="spark_mlflow", threads=1, needs=MLFLOW, apart=True),
}


def python_of(peer: Peer) -> Path:
    """The Python that runs a peer: this one if it has the packages, else one of an environment made for it."""
    if not peer.apart and all(importlib.util.find_spec(name.partition(".")[0]) for name in peer.needs):
        return Path(sys.executable)
    venv = "-".join(sorted(name.partition(".")[0] for name in peer.needs))
    return python_with(venv, [*peer.needs.values(), *same_as_here(*MODEL_LIBRARIES)])
