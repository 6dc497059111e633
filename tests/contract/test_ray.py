"""What is set of Ray, and how its executor ends where no worker comes or none can load the model."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.adapters.executors import ray_executor
from sereno.adapters.executors.choosing import make_executor
from sereno.adapters.executors.ray_executor import RayExecutor
from sereno.adapters.files import Piece
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.exceptions import MissingExtraError, SettingsError, WorkerError
from sereno.loader import fingerprint, load_model
from sereno.settings import RaySettings, Settings
from tests.rays import started_ray

MODEL = """
import os, signal
from typing import TypedDict

from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    x: float

class Score(TypedDict):
    y: float

model = Model("double", inputs=Row, outputs=Score)

@model.load
def load():
    if os.environ.get("MINE") == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "CUDA_VISIBLE_DEVICES", "MINE"):
        print(name, os.environ.get(name))

@model.predict
def predict(loaded, rows: list[Row]) -> list[Score]:
    return [{"y": 2 * row["x"]} for row in rows]
"""
CPUS = 4


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with started_ray(CPUS, gpus=1):
        yield


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    file = tmp_path / f"{request.node.name}.py"
    file.write_text(MODEL)
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "x": 3}')
    return Job(
        model_file=str(file),
        home=str(tmp_path),
        values={},
        secrets_folder=str(tmp_path),
        attempt="2026-05-01-abcdef",
        parts_folder=str(tmp_path / "parts"),
        work_folder=str(tmp_path / "work"),
        batch_rows=10,
        fingerprint=fingerprint(load_model(file)),
        revision_of_model="r",
    )


def settings(job: Job, **of_ray: object) -> Settings:
    return Settings(home=Path(job.home), executor="ray", workers=1, ray=RaySettings(**of_ray))  # type: ignore[arg-type]


def run(executor: RayExecutor, job: Job) -> list[TaskResult]:
    piece = Piece(kind="json", path=f"{job.home}/rows.jsonl")
    return list(executor.map(job, iter([Task(index=0, pieces=(piece,))]), lambda rows: None))


def test_what_a_worker_takes_and_where_it_runs(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    (tmp_path / "env.json").write_text(json.dumps({"env_vars": {"MINE": "from the file"}}))
    taken: dict[str, float] = {}
    whole = ray.available_resources()

    def look(*_: object) -> None:
        """While the worker is there."""
        deadline = time.monotonic() + 30
        while not taken.get("CPU") and time.monotonic() < deadline:
            now = ray.available_resources()
            taken.update({name: whole[name] - now.get(name, 0) for name in ("CPU", "GPU", "memory")})

    monkeypatch.setattr(ray_executor, "seen", look)
    asked = settings(
        job, worker_cpus=2, worker_gpus=0.5, worker_memory_bytes=64 << 20, runtime_env=tmp_path / "env.json"
    )
    (result,) = run(RayExecutor(asked), job)
    assert result.answered == 1
    assert taken == {"CPU": 2, "GPU": 0.5, "memory": 64 << 20}
    assert capsys.readouterr().err.splitlines() == [
        "OMP_NUM_THREADS 2",
        "POLARS_MAX_THREADS 2",
        "CUDA_VISIBLE_DEVICES 0",
        "MINE from the file",
    ]


@pytest.mark.parametrize(
    ("workers", "of_ray", "most"),
    [
        (None, {}, CPUS),
        (None, {"worker_cpus": 1.5}, 2),
        (None, {"worker_cpus": 0}, CPUS),
        (None, {"worker_gpus": 1}, 1),
        (None, {"worker_gpus": 0.25, "worker_cpus": 0.5}, 4),
        (None, {"worker_memory_bytes": 1 << 60}, 1),  # none fits: one is asked for, so that a cluster may grow
        (7, {}, 7),
    ],
)
def test_how_many_workers_there_are(workers: int | None, of_ray: dict[str, object], most: int, tmp_path: Path) -> None:
    asked = RaySettings(address="auto", **of_ray)  # type: ignore[arg-type]
    assert RayExecutor(Settings(home=tmp_path, workers=workers, ray=asked)).workers == most


def test_without_a_cluster_there_are_as_many_as_cores(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert RayExecutor(Settings(home=tmp_path)).workers == cores
    assert RayExecutor(Settings(home=tmp_path, ray=RaySettings(worker_cpus=cores + 1))).workers == 1


def test_the_address_may_come_from_ray_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://node1:10001")
    with pytest.raises(SettingsError, match=r"RAY_ADDRESS is 'ray://node1:10001'; valid is the head's host and port"):
        RayExecutor(Settings(home=tmp_path))


@pytest.mark.parametrize(
    ("name", "amount", "valid"),
    [
        ("worker_gpus", 1.5, "a whole number, or a part of one GPU"),
        ("worker_gpus", 0.00001, "0, or 0.0001 or more"),
        ("worker_cpus", 0.00001, "0, or 0.0001 or more"),
    ],
)
def test_parts_that_ray_does_not_give(job: Job, name: str, amount: float, valid: str) -> None:
    with pytest.raises(SettingsError, match=f"ray.{name} is {amount:g}; valid is {valid}"):
        RayExecutor(settings(job, **{name: amount}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"env.json, which cannot be read as JSON: "), ("[]", r"env.json, which holds no object")],
)
def test_an_environment_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "env.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        RayExecutor(Settings(home=tmp_path, ray=RaySettings(runtime_env=tmp_path / "env.json")))


def test_an_environment_that_ray_does_not_know(job: Job, tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text('{"working_dir": "/not/there"}')
    asked = settings(job, runtime_env=tmp_path / "env.json")
    with pytest.raises(SettingsError, match=r"Ray refuses what ray.runtime_env says \(.*env.json\): .*/not/there"):
        run(RayExecutor(asked), job)


def test_ray_is_not_installed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"The executor 'ray' needs .*: pip install 'sereno\[ray\]'\."):
        make_executor(load_model(Path(job.model_file)), settings(job))


def test_no_worker_comes(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody is told what is waited for; in the end the run fails."""
    monkeypatch.setattr(ray_executor, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(ray_executor, "WAIT_SECONDS", 1.5)
    asked = settings(job, worker_cpus=64, worker_gpus=2, worker_memory_bytes=1 << 20)
    with pytest.raises(WorkerError, match=r"No worker was there for 2 s: a worker asks for 64 CPUs and 2 GPUs and "):
        run(RayExecutor(asked), job)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sereno: waiting for a worker: a worker asks for 64 CPUs and 2 GPUs and 1,048,576 bytes of ")
    assert line.endswith("the Ray cluster has 1 node, of which the largest has 4 CPUs, which others may use.")


def test_a_load_that_kills_each_worker(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "env.json").write_text('{"env_vars": {"MINE": "dies"}}')
    asked = settings(job, runtime_env=tmp_path / "env.json")
    with pytest.raises(
        WorkerError, match=r"A worker was lost 4 times while it loaded the model: its process or its node"
    ):
        run(RayExecutor(asked), job)
    assert "waiting for a worker" not in capsys.readouterr().err
