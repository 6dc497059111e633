"""The other ways to do the work: who they are, and the environment that each needs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.workload import FOLDER

VENVS = FOLDER / ".venvs"
SAME_FOR_ALL = ("numpy", "pandas", "pyarrow", "lightgbm", "scikit-learn", "joblib")


@dataclass(frozen=True, kw_only=True)
class Peer:
    script: str  # the module in this folder
    option: str = ""  # what it is called with beyond the model and the folders
    threads: int  # of the model's libraries in each process: threads × parallel predictions = 2
    needs: dict[str, str]  # packages beyond SAME_FOR_ALL: how Python imports it → how uv installs it
    keys_only: bool = False  # its probabilities are made up


# The two limits are no peers but bounds: each does only a part of the work.
PEERS = {
    "limit-predict": Peer(script="limit_predict", threads=2, needs={}),
    "limit-parquet": Peer(script="limit_parquet", threads=1, needs={}, keys_only=True),
    "arrow-loop": Peer(script="arrow_loop", threads=1, needs={}),
    "polars": Peer(script="polars_streaming", threads=2, needs={"polars": "polars"}),
    "pandas-row-groups": Peer(script="pandas_row_groups", threads=2, needs={}),
    "pandas-at-once": Peer(script="pandas_at_once", threads=2, needs={}),
    "dask": Peer(script="dask_frames", threads=1, needs={"dask.dataframe": "dask[dataframe,distributed]"}),
    "spark-map": Peer(script="spark", option="map", threads=1, needs={"pyspark": "pyspark"}),
    "spark-udf": Peer(script="spark", option="udf", threads=1, needs={"pyspark": "pyspark"}),
    "ray": Peer(script="ray_data", threads=1, needs={"ray.data": "ray[data]"}),
}


class CannotInstall(Exception):
    """A peer's packages are neither here nor to be had."""


def python_of(peer: Peer) -> Path:
    """The Python that runs a peer: this one if it has the packages, else one made for it under .venvs by uv."""
    if all(importlib.util.find_spec(name.partition(".")[0]) for name in peer.needs):
        return Path(sys.executable)
    wanted = [*peer.needs.values(), *(f"{name}=={version(name)}" for name in SAME_FOR_ALL)]
    venv = VENVS / "-".join(sorted(name.partition(".")[0] for name in peer.needs))
    made_of = venv / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != "\n".join(wanted):
        print(f"installing {' '.join(wanted)}", flush=True)
        for command in (["venv", "--clear", "--python", sys.executable], ["pip", "install", "--python"]):
            extra = wanted if command[0] == "pip" else []
            done = subprocess.run([_uv(), *command, venv, *extra], capture_output=True, text=True)
            if done.returncode:
                raise CannotInstall(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "uv failed")
        made_of.write_text("\n".join(wanted))
    return venv / "bin" / "python"


def _uv() -> str:
    beside = FOLDER.parent / ".tools" / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise CannotInstall("uv is not here: run `make setup`, or put it on the PATH")
    return found
