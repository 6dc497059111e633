"""What interfaces.Executor promises, asked of every executor, with one worker and with several."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters.executors.local import Ahead, LocalExecutor
from sereno.adapters.executors.ray_executor import RayExecutor
from sereno.adapters.files import Piece
from sereno.batch.tasks import Job, Task, TaskResult, stored_result
from sereno.exceptions import OutputError, PredictError, SourceError, WorkerError
from sereno.interfaces import Executor
from sereno.loader import fingerprint, load_model
from sereno.scoring import open_scorer
from sereno.settings import Settings
from tests.rays import started_ray
from tests.sparks import started_spark

ROWS, BATCH_ROWS = 1_000, 300
MODEL = """
import os, signal
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    x: float

class Score(TypedDict):
    y: float

model = Model("double", inputs=Row, outputs=Score)

@model.load
def load(): return 2.0

@model.predict
def predict(factor, rows: pa.Table):
    if pc.any(pc.equal(rows["x"], -1.0)).as_py():
        return 7
    if pc.any(pc.equal(rows["x"], -2.0)).as_py():
        raise RuntimeError("this row again")
    if pc.any(pc.equal(rows["x"], -3.0)).as_py():
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.table({"y": pc.multiply(rows["x"], factor)})
"""

NUMBERS = count()
Make = Callable[[], Executor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def file(folder: Path) -> Path:
    """The model file. A thread of an executor that failed may read it after its test, so each has a name of its own."""
    path = folder / f"double_{next(NUMBERS)}.py"
    path.write_text(MODEL)
    return path


@pytest.fixture
def job(folder: Path, file: Path) -> Job:
    return Job(
        model_file=str(file),
        home=str(folder),
        values={},
        secrets_folder=str(folder),
        attempt="2026-05-01-abcdef",
        parts_folder=str(folder / "parts"),
        work_folder=str(folder / "work"),
        batch_rows=BATCH_ROWS,
        fingerprint=fingerprint(load_model(file)),
        revision_of_model="r",
    )


LOCAL = ["1 worker", "2 workers", "3 workers", "2 workers, one ahead"]
RAY = ["2 workers on Ray"]
SPARK = ["2 workers on Spark"]


@pytest.fixture(params=[*LOCAL, *RAY, *SPARK])
def make(request: pytest.FixtureRequest, folder: Path, file: Path) -> Iterator[Make]:
    workers = int(request.param[0])
    if "Ray" in request.param:
        request.getfixturevalue("ray")
        yield lambda: RayExecutor(Settings(home=folder, workers=workers))
        return
    if "Spark" in request.param:
        request.getfixturevalue("spark")
        from sereno.adapters.executors.spark_executor import SparkExecutor

        yield lambda: SparkExecutor(Settings(home=folder, workers=workers))
        return

    def load_here() -> object:
        return open_scorer(load_model(file), Settings(home=folder))

    with Ahead(file, workers if "ahead" in request.param else 1) as ahead:
        yield lambda: LocalExecutor(workers, load_here, ahead)  # type: ignore[arg-type, return-value]


@pytest.fixture
def is_here(request: pytest.FixtureRequest) -> bool:
    """Whether the workers are on this machine, so that progress is told of each batch."""
    return request.node.callspec.params["make"] in LOCAL


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray in this process, which the executors find; else each of them would start one."""
    with started_ray(cpus=2):
        yield


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same of Spark."""
    with started_spark(tmp_path_factory.mktemp("spark"), workers=2):
        yield


def task(folder: Path, index: int, *, first: float | None = None) -> Task:
    """A task of ROWS rows; `first` is the x of its first row."""
    ids = np.arange(index * ROWS, (index + 1) * ROWS)
    x = ids / 4
    if first is not None:
        x[0] = first
    path = folder / f"{index}.parquet"
    pq.write_table(pa.table({"id": ids, "x": x}), path)
    return Task(index=index, pieces=(Piece(kind="parquet", path=str(path), digest=str(index)),), rows=ROWS)


def test_every_task_once(make: Make, job: Job, folder: Path, is_here: bool) -> None:
    seen: list[int] = []
    results = list(make().map(job, [task(folder, i) for i in range(7)], seen.append))
    assert sorted(r.index for r in results) == list(range(7))
    for result in results:
        part = result.part
        assert part is not None
        table = pq.read_table(part.path)
        assert table.column("id").to_pylist() == list(range(result.index * ROWS, (result.index + 1) * ROWS))
        assert table.column("y").to_pylist() == [i / 2 for i in table.column("id").to_pylist()]
        assert (result.rows_in, result.answered, result.rejects) == (ROWS, ROWS, 0)
    assert sum(seen) == 7 * ROWS
    assert set(seen) == ({BATCH_ROWS, ROWS % BATCH_ROWS} if is_here else {ROWS})


def test_the_same_whatever_the_number_of_workers(make: Make, job: Job, folder: Path, file: Path) -> None:
    tasks = [task(folder, i) for i in range(3)]
    alone = replace(job, parts_folder=str(folder / "alone"), work_folder=str(folder / "alone"))
    scorer = open_scorer(load_model(file), Settings(home=folder))
    wanted = {r.index: r for r in LocalExecutor(1, lambda: scorer).map(alone, tasks, ignore)}
    for result in make().map(job, tasks, ignore):
        assert content(result, job) == content(wanted[result.index], alone)


def content(result: TaskResult, job: Job) -> tuple[object, ...]:
    assert result.part is not None
    whole = stored_result(Path(job.work_folder), result.key)
    return result.part.sha256, result.part.stats, result.key, whole.profile, whole.inputs_profile, result.reasons


def ignore(rows: int) -> None:
    pass


@pytest.mark.parametrize("tasks", [0, 1, 2])
def test_few_tasks(make: Make, job: Job, folder: Path, tasks: int) -> None:
    results = list(make().map(job, (task(folder, i) for i in range(tasks)), ignore))
    assert sorted(r.index for r in results) == list(range(tasks))


def test_tasks_are_drawn_lazily_and_in_one_thread(make: Make, job: Job, folder: Path) -> None:
    drawn: list[int] = []
    threads = set()

    def tasks() -> Iterator[Task]:
        for index in range(12):
            drawn.append(index)
            threads.add(threading.get_ident())
            yield task(folder, index)

    executor = make()
    results = executor.map(job, tasks(), ignore)
    assert drawn == []
    next(results)
    assert len(drawn) <= 2 * executor.workers
    assert len(list(results)) == 11
    assert drawn == list(range(12))
    assert threads == {threading.get_ident()}  # a cursor may not leave the thread that opened it


def test_what_drawing_raises_is_raised(make: Make, job: Job, folder: Path) -> None:
    def tasks() -> Iterator[Task]:
        for index in range(3):
            yield task(folder, index)
        raise SourceError("the cursor broke")

    with pytest.raises(SourceError, match="the cursor broke"):
        list(make().map(job, tasks(), ignore))


@pytest.mark.parametrize("index", [0, 3, 5])
def test_errors_of_tasks_by_their_type(make: Make, job: Job, folder: Path, index: int) -> None:
    """Whichever process meets them."""

    def tasks(bad: Task) -> list[Task]:
        return [bad if i == index else task(folder, i) for i in range(6)]

    with pytest.raises(OutputError, match=r"double_\d+\.py:\d+: .*int"):
        list(make().map(job, tasks(task(folder, index, first=-1.0)), ignore))
    missing = task(folder, index)
    Path(missing.pieces[0].path).unlink()
    with pytest.raises(SourceError, match=rf"{index}\.parquet"):
        list(make().map(job, tasks(missing), ignore))


def test_a_row_that_raises_is_a_reject(make: Make, job: Job, folder: Path) -> None:
    tasks = [task(folder, i, first=-2.0) for i in range(3)]
    for result in make().map(job, tasks, ignore):
        assert (result.answered, result.rejects) == (ROWS - 1, 1)
        assert result.reasons == {"predict raised RuntimeError: this row again": 1}


def test_a_load_that_raises(make: Make, job: Job, folder: Path, file: Path) -> None:
    file.write_text(MODEL.replace("return 2.0", 'raise ValueError("no weights")'))
    sys.modules.pop(file.stem)  # the job's fixture read it
    job = replace(job, fingerprint=fingerprint(load_model(file)))
    with pytest.raises(PredictError, match=r"double_\d+\.py:\d+: load raised ValueError: no weights"):
        list(make().map(job, [task(folder, i) for i in range(4)], ignore))


@pytest.mark.parametrize("workers", [2, 3])
def test_a_process_that_dies(job: Job, folder: Path, file: Path, workers: int) -> None:
    """The first worker is this process, which is slow here, so that another meets the row that kills."""
    loading = threading.Event()

    def load_slowly() -> object:
        loading.wait(30)
        return open_scorer(load_model(file), Settings(home=folder))

    executor = LocalExecutor(workers, load_slowly)  # type: ignore[arg-type]
    with pytest.raises(WorkerError, match=r"A worker process was ended by signal 9 while it scored task 1\."):
        list(executor.map(job, [task(folder, 0), task(folder, 1, first=-3.0)], ignore))
    loading.set()


def test_finished_tasks_stay_when_another_fails(make: Make, job: Job, folder: Path) -> None:
    done: list[TaskResult] = []
    tasks = [task(folder, 0), task(folder, 1), task(folder, 2, first=-1.0)]
    with pytest.raises(OutputError):
        done.extend(make().map(job, tasks, ignore))
    for result in done:  # a run that goes on takes them over
        assert Path(job.work_folder, "tasks", f"{result.key[:32]}.json").is_file()
        assert result.part is not None
        assert Path(result.part.path).is_file()
