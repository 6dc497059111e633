"""Starting worker processes. Light to import, so that the first one can start before anything heavy is loaded here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sereno.adapters.executors.quota import cores_of_quota
from sereno.config import find_home

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def cores() -> int:
    """The cores that this process may use, or as many as it may use the time of."""
    ours = len(os.sched_getaffinity(0))
    return min(ours, cores_of_quota() or ours)


def threads_each(workers: int) -> int:
    """How many threads the libraries of each worker may use: workers × threads = cores."""
    return max(1, cores() // workers)


def start_worker(model_file: str, workers: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """A new process, which reads the model file at once and then waits for its job."""
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(threads_each(workers)))
    process = subprocess.Popen(
        [sys.executable, "-m", "sereno.adapters.executors.worker", str(theirs.fileno()), model_file, str(workers)],
        pass_fds=[theirs.fileno()],
        cwd=find_home(Path(model_file)),  # where the functions of the model file run, in every process
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
    )
    theirs.close()
    return process, Connection(ours.detach())


class Ahead:
    """One worker, started before anybody knows whether it is needed: it imports while this process imports.

    That is half of what a run on two cores takes to start. A run that turns out to be one task lets it go.
    """

    def __init__(self, model_file: Path, workers: int) -> None:
        self._worker = start_worker(str(model_file), workers) if workers > 1 else None

    def take(self) -> tuple[subprocess.Popen[bytes], Connection]:
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return worker

    def __bool__(self) -> bool:
        return self._worker is not None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            process, connection = self._worker
            connection.close()
            process.kill()
            process.wait()


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
