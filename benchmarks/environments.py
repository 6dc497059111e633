"""What peers run in: the variables they are given, and environments under .venvs, made by uv when first needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.workload import DATA, FOLDER

VENVS = FOLDER / ".venvs"
MODEL_LIBRARIES = ("numpy", "pandas", "pyarrow", "lightgbm", "scikit-learn", "joblib")


class CannotInstall(Exception):
    """A peer's packages are neither here nor to be had."""


def variables(threads: int | None) -> dict[str, str]:
    """The caller's, but with compiled modules kept (outside the sources), and so many threads of the model's libraries."""
    unwanted = {"PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    env = {key: value for key, value in os.environ.items() if key not in unwanted and not key.startswith("SERENO_")}
    env |= {"PYTHONPYCACHEPREFIX": str(DATA / "pycache"), "RAY_USAGE_STATS_ENABLED": "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    if threads:
        env |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    return env


def same_as_here(*libraries: str) -> list[str]:
    """Those libraries, of the versions that this environment has."""
    return [f"{name}=={version(name)}" for name in libraries]


def python_with(name: str, packages: Sequence[str]) -> Path:
    """The Python of the environment `name`; made, or made anew, unless it has been made of just these packages."""
    venv = VENVS / name
    made_of = venv / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != "\n".join(packages):
        print(f"installing {' '.join(packages)}", flush=True)
        _uv("venv", "--clear", "--python", sys.executable, venv)
        _uv("pip", "install", "--python", venv, *packages)
        made_of.write_text("\n".join(packages))
    return venv / "bin" / "python"


def installed(name: str) -> dict[str, str]:
    """What an environment has: package → version."""
    done = subprocess.run([_find_uv(), "pip", "freeze", "--python", VENVS / name], capture_output=True, text=True)
    return dict(line.split("==") for line in done.stdout.split() if line.count("==") == 1)


def _uv(*command: str | Path) -> None:
    done = subprocess.run([_find_uv(), *command], capture_output=True, text=True)
    if done.returncode:
        raise CannotInstall(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "uv failed")


def _find_uv() -> str:
    beside = FOLDER.parent / ".tools" / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise CannotInstall("uv is not here: run `make setup`, or put it on the PATH")
    return found
