"""Processes that run one model at the same time: on one host, or on several that share a home and a ledger, but no locks.

A host is pretended: its processes have a name and lock files of their own. What is left between two hosts is the lease,
its token, and the version of the table that a commit expects.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sereno import failpoints, home, storage
from sereno.adapters import export_folder
from sereno.adapters.executors.local import LocalExecutor
from sereno.batch import attempts, lease
from sereno.batch.run import Watcher, run
from sereno.config import load_settings
from sereno.exceptions import SerenoError
from sereno.loader import load_model
from sereno.scoring import open_scorer
from sereno.snapshots import store

MODEL = """
from pathlib import Path
from typing import TypedDict

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"}, source="rows.jsonl")


@model.load
def load(weight: Path):
    return float(weight.read_text())


@model.predict
def predict(weight, rows: list[Row]) -> list[Score]:
    return [{"y": row["x"] * weight} for row in rows]
"""


# Its runs are never a no-op by their revision.
PLAIN = MODEL.replace(' artifacts={"weight": "weight.txt"},', "").replace("weight: Path", "")
PLAIN = PLAIN.replace("float(weight.read_text())", "2.0")


def new_home(folder: Path, ledger: str | None = None, model: str = MODEL) -> Path:
    """A home with the model `total`, three rows for every date, and no exports."""
    folder.mkdir()
    (folder / "total.py").write_text(model)
    (folder / "weight.txt").write_text("2")
    (folder / "rows.jsonl").write_text("".join(f'{{"id": {i}, "x": {i}.5}}\n' for i in range(3)))
    kept = f"ledger = {json.dumps(ledger)}\n" if ledger else ""
    (folder / "sereno.toml").write_text(f"{kept}models.total.exports = []\n")
    return folder


def run_here(folder: Path, day: str, *, watcher: Watcher | None = None, **options: Any) -> dict[str, Any]:
    """One run in this process, as `sereno run --json` tells of it."""
    with ExitStack() as stack:
        stack.enter_context(chdir(folder))
        stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
        stack.callback(sys.modules.pop, "total", None)  # the model file is read anew each time
        model, settings = load_model(folder / "total.py"), load_settings(folder)
        executor = LocalExecutor(1, lambda: open_scorer(model, settings))
        try:
            report = run(model, settings, executor, when=day, watcher=watcher, who=socket.gethostname(), **options)
        except SerenoError as error:
            return {"state": "failed", "error": type(error).__name__, "says": str(error)}
    found: dict[str, Any] = json.loads(report.to_json())
    return found


def pretend(host: str, **times: float) -> None:
    """This process is on another host from now on. `times`: constants of `batch.lease`, shorter."""
    socket.gethostname = lambda: host
    real_exclusive, real_is_held = storage.exclusive, storage.is_held

    def here(path: Path) -> Path:
        return path.parent / host / path.name

    for module in (attempts, home, store):
        assert module.exclusive is real_exclusive
        module.exclusive = lambda path, *rest, **more: real_exclusive(here(path), *rest, **more)  # type: ignore[attr-defined]
    attempts.is_held = lambda path: real_is_held(here(path))  # type: ignore[attr-defined]
    export_folder.fcntl = SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0)  # type: ignore[attr-defined]
    for name, seconds in times.items():
        assert hasattr(lease, name)
        setattr(lease, name, seconds)


def stop_at(place: str) -> None:
    """This process stands still once it reaches a failpoint, until somebody has it go on."""
    failpoints._state.faults = failpoints._parse(f"{place}:delay@1")
    failpoints._cause = lambda name, fault: os.kill(os.getpid(), signal.SIGSTOP)


class Racer:
    """A process that runs what it is told to."""

    def __init__(self, host: str | None = None, *, stops_at: str = "", **times: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, host, stops_at, times), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, folder: Path, day: str, **options: Any) -> None:
        self._connection.send((folder, day, options))

    def end(self) -> dict[str, Any]:
        assert self._connection.poll(60), "it does not end"
        found: dict[str, Any] = self._connection.recv()
        assert "traceback" not in found, found["traceback"]
        return found

    def run(self, folder: Path, day: str, **options: Any) -> dict[str, Any]:
        self.begin(folder, day, **options)
        return self.end()

    def wait_until_it_stands(self) -> None:
        _, status = os.waitpid(self.process.pid or 0, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status

    def stand_still(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGCONT)

    def close(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.join()


@contextmanager
def racers(hosts: Sequence[str | None], **times: float) -> Iterator[list[Racer]]:
    found = [Racer(host, **times) for host in hosts]
    try:
        yield found
    finally:
        for racer in found:
            racer.close()


def _serve(connection: Connection, host: str | None, stops_at: str, times: dict[str, float]) -> None:
    sys.dont_write_bytecode = True
    if host is not None:
        pretend(host, **times)
    if stops_at:
        stop_at(stops_at)
    while True:
        try:
            folder, day, options = connection.recv()
        except EOFError:
            return
        try:
            said = run_here(folder, day, **options)
        except Exception:  # noqa: BLE001 the test shows it
            said = {"traceback": traceback.format_exc()}
        connection.send(said)
