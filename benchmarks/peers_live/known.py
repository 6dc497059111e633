"""The other ways to answer over HTTP: who they are, how each is started and asked, and the environment it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import python_with, same_as_here
from benchmarks.workload import FEATURES

LIBRARIES = ("numpy", "lightgbm", "scikit-learn", "joblib")
WITH_PANDAS = (*LIBRARIES, "pandas")
Row = Mapping[str, float]
FILES = {"heavy": "live"}  # model → its model file for Sereno, where that has another name


def _as_it_is(row: Row) -> Any:
    return row


def _probability(answer: Any) -> float:
    return float(answer["probability"])


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a server is started, and what is sent to it for one row."""

    # In the command: {python}, {bin} (the folder of its environment's commands), {here} (this folder), {port},
    # {model} (heavy, frame or slow), {folder} (one of its own for this run, empty at first); for Sereno also {models}
    # (the folder of model files), {name} (the file's and the model's) and {workers}.
    command: tuple[str, ...]
    venv: str = ""  # the environment; empty: this one, whose packages Sereno needs anyway
    packages: tuple[str, ...] = ()  # of that environment, beyond libraries
    libraries: tuple[str, ...] = LIBRARIES  # the model's, in the versions that we have
    path: str = "/predict"
    body: Callable[[Row], Any] = _as_it_is  # what is sent for a row, as JSON
    answer: Callable[[Any], float] = _probability  # the probability in what comes back
    environ: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ("heavy",)
    kind: str = "framework"  # or "sereno", "by hand", "limit": no peer but a bound

    def python(self) -> Path:
        if not self.venv:
            return Path(sys.executable)
        return python_with(self.venv, [*self.packages, *same_as_here(*self.libraries)])


def _uvicorn(app: str) -> tuple[str, ...]:
    server = ("{bin}/uvicorn", f"benchmarks.peers_live.{app}:app", "--host", "127.0.0.1", "--port", "{port}")
    return (*server, "--no-access-log", "--log-level", "warning")


def _sereno(*options: str) -> Peer:
    """As a user starts it: metrics on, types and bounds checked, answers logged, in the background if not said otherwise."""
    command = ("{bin}/sereno", "serve", "{models}/{name}.py", "--home", "{folder}", "--port", "{port}")
    return Peer(
        command=(*command, "--workers", "{workers}", *options), models=("heavy", "frame", "slow"), kind="sereno"
    )


def _values(row: Row) -> list[float]:
    return list(row.values())


FASTAPI: dict[str, Any] = {
    "venv": "fastapi",
    "packages": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    "libraries": WITH_PANDAS,
    "kind": "by hand",
}
BENTOML: dict[str, Any] = {
    "venv": "bentoml",
    "packages": ("bentoml==1.4.39",),
    "environ": {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{folder}"},
}
LITSERVE: dict[str, Any] = {"venv": "litserve", "packages": ("litserve==0.2.19",)}
MLSERVER: dict[str, Any] = {
    "venv": "mlserver",
    "packages": ("mlserver==1.7.1",),
    "libraries": WITH_PANDAS,
    "path": "/v2/models/live/infer",
    "body": lambda row: {
        "inputs": [{"name": "rows", "shape": [1, len(FEATURES)], "datatype": "FP64", "data": _values(row)}]
    },
    "answer": lambda answer: float(answer["outputs"][0]["data"][0]),
}
RAY: dict[str, Any] = {
    "venv": "ray-serve",
    "packages": ("ray[serve]==2.60.0",),
    "body": lambda row: {"row": _values(row)},
    "environ": {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}


def _script(name: str, *options: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"benchmarks.peers_live.{name}", "{model}", "{port}", *options)


# Those that batch do so with the longest batch that helped and the shortest wait that is worth it; `-single` is the
# same server without batching, which is often the faster one. The better of the two is what counts.
PEERS = {
    "sereno": _sereno(),
    "sereno-sync": _sereno("--set", "models.{name}.log=sync"),
    "sereno-off": _sereno("--set", "models.{name}.log=off"),
    "limit": Peer(command=_script("bare_loop"), kind="limit"),
    "fastapi-numpy": Peer(command=_uvicorn("fastapi_numpy"), **FASTAPI),
    "fastapi-pandas": Peer(command=_uvicorn("fastapi_pandas"), models=("heavy", "frame"), **FASTAPI),
    "bentoml": Peer(
        command=(
            "{bin}/bentoml",
            "serve",
            "bento:Batched",
            "--working-dir",
            "{here}",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ),
        body=lambda row: {"rows": [_values(row)]},
        answer=lambda answer: float(answer[0]),
        **BENTOML,
    ),
    "bentoml-single": Peer(
        command=(
            "{bin}/bentoml",
            "serve",
            "bento:Single",
            "--working-dir",
            "{here}",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ),
        body=lambda row: {"row": _values(row)},
        answer=float,
        **BENTOML,
    ),
    "litserve": Peer(command=_script("lit", "64"), body=lambda row: {"row": _values(row)}, **LITSERVE),
    "litserve-single": Peer(command=_script("lit", "1"), body=lambda row: {"row": _values(row)}, **LITSERVE),
    "mlserver": Peer(command=_script("mlserver_start", "{folder}", "64"), **MLSERVER),
    "mlserver-single": Peer(command=_script("mlserver_start", "{folder}", "0"), **MLSERVER),
    "mlflow": Peer(
        command=_script("mlflow_start", "{folder}"),
        venv="mlflow",
        packages=("mlflow==3.17.2",),
        libraries=WITH_PANDAS,
        path="/invocations",
        body=lambda row: {"dataframe_split": {"columns": list(row), "data": [_values(row)]}},
        answer=lambda answer: float(answer["predictions"][0]),
        environ={"MLFLOW_TRACKING_URI": "sqlite:///{folder}/mlflow.db"},
    ),
    "kserve": Peer(
        command=_script("kserve_model", "--http_port", "{port}", "--enable_grpc", "false", "--workers", "1"),
        venv="kserve",
        packages=("kserve==0.21.0",),
        path="/v1/models/live:predict",
        body=lambda row: {"instances": [_values(row)]},
        answer=lambda answer: float(answer["predictions"][0]),
    ),
    "ray": Peer(command=_script("ray_serve", "64"), **RAY),
    "ray-single": Peer(command=_script("ray_serve", "1"), **RAY),
}
