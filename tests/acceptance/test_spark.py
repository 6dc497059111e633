"""Runs on Spark: the same output as on this machine, whatever is lost on the way; or a clear failure, and nothing published."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from tests.acceptance.project import DAY, PART_ROWS, PARTS, ROWS, Project
from tests.hosts import PATIENCE
from tests.sparks import require

# What goes wrong is a file in the home, named for it, which the first worker that finds it takes away.
MODEL = """
import os, signal, socket, time
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from sereno import Key, Model
from scale import scaled


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": WEIGHT})


@model.load
def load(weight: Path, home: Path):
    print("loaded by", os.getpid(), "in", os.getcwd())
    return float(weight.read_text()), home


def asked(home, what):
    try:
        (home / "faults" / what).unlink()
    except FileNotFoundError:
        return False
    return True


@model.predict
def predict(loaded, rows: pa.Table) -> pa.Table:
    weight, home = loaded
    if asked(home, "kill-worker"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked(home, "kill-executor"):
        daemon = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(daemon, signal.SIGKILL)
        time.sleep(60)
    if (home / "faults" / "poison").exists() and pc.any(pc.equal(rows["x"], POISON)).as_py():
        os.kill(os.getpid(), signal.SIGKILL)
    if asked(home, f"wait-{socket.gethostname()}"):
        (home / "faults" / f"waits-{socket.gethostname()}").touch()
        while not (home / "faults" / "go").exists():
            time.sleep(0.02)
    return pa.table({"y": scaled(rows["x"], weight)})


if __name__ == "__main__":
    model.main()
"""
SCALE = """
import pyarrow.compute as pc


def scaled(column, weight):
    return pc.multiply(column, weight)
"""


class OnSpark(Project):
    """A project whose model may be told what is to go wrong."""

    def fault(self, *names: str) -> None:
        for name in names:
            self.write(f"faults/{name}", "")

    def waits(self, name: str) -> None:
        """Until a worker says that it waits."""
        until(lambda: (self.folder / "faults" / f"waits-{name}").exists(), f"a worker on {name}")

    def go(self) -> None:
        self.fault("go")


def until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.02)


def prepared(folder: Path, model: Path | None = None) -> OnSpark:
    """A project with its input; the model lies elsewhere if said."""
    project = OnSpark(folder)
    project.write("sereno.toml", f'values.home = "{folder}"\nmodels.total.source = "input/{{data_date}}/*.parquet"\n')
    project.rows(DAY, ROWS, parts=PARTS)
    write_model(model or folder)
    return project


def write_model(folder: Path, weight: str = "weight.txt") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "total.py").write_text(MODEL.replace("WEIGHT", repr(weight)).replace("POISON", str(PART_ROWS / 8)))
    (folder / "scale.py").write_text(SCALE)
    (folder / weight).write_text("2")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the local executor publishes."""
    project = prepared(tmp_path_factory.mktemp("local") / "project")
    project.run()
    published = project.published()
    assert published is not None
    return published


# On this machine


@pytest.fixture
def here(tmp_path: Path) -> OnSpark:
    require()
    project = prepared(tmp_path / "project")
    project.variables = {"SERENO_EXECUTOR": "spark", "SERENO_SPARK__MASTER": "local[2]"}
    return project


def test_a_batch_that_kills_its_worker(here: OnSpark, expected: pa.Table) -> None:
    here.fault("poison")
    said = here.run(code=1)
    assert said["error"] == "WorkerError"
    assert said["says"].startswith(
        f"Task 1 ({here.folder}/input/{DAY}/1.parquet, {PART_ROWS:,} rows) was tried 4 times, and each time its worker was "
        "lost: the last time on "
    )
    assert (
        "SparkException: Python worker exited unexpectedly (crashed). A batch of it may take more memory"
        in said["says"]
    )
    assert here.published() is None
    assert here.states() == ["failed"]
    (here.folder / "faults" / "poison").unlink()
    report = here.run()
    assert report["resumed_tasks"] >= 1
    assert here.published() == expected


def test_ctrl_c(here: OnSpark, expected: pa.Table) -> None:
    name = os.uname().nodename
    here.fault(f"wait-{name}")
    run = here.start("run", "total.py", "--date", DAY)
    here.waits(name)
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("java" in child.name() for child in children)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, error
    assert error.splitlines()[-1] == (
        "sereno: interrupted; finished tasks are kept, the next run goes on where this one was."
    )
    psutil.wait_procs(children, timeout=PATIENCE)
    assert not any(child.is_running() for child in children)
    assert here.published() is None
    report = here.run()
    assert report["resumed_tasks"] >= 1
    assert here.published() == expected
