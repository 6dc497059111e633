"""The Spark executor: one of our tasks is one task of Spark, scored in its Python processes, each with the model loaded once.

Spark places tasks, tries again what was lost with a process or a node, and ships the model. A worker's answer comes at once,
by an accumulator, and once more with those of its job when that ends: the first one counts. An error is an answer, too, so
that Spark does not try four times what cannot help; what Spark raises is a loss.

Jobs of Spark are small and several at a time, so that tasks are drawn as they are scored, and memory stays the same.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sereno import __version__
from sereno.adapters.bundle import bundle_name, pack
from sereno.adapters.local import Answer, raise_told
from sereno.adapters.remote import RemoteWorker
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.config import Settings
from sereno.exceptions import MissingExtraError, WorkerError
from sereno.loader import load_model
from sereno.model import Model
from sereno.shared import announce, forget, seen

try:
    from pyspark import SparkContext, SparkFiles
    from pyspark.accumulators import Accumulator, AccumulatorParam

    from sereno.adapters import spark_start
except ImportError as missing:
    raise MissingExtraError(
        "The executor 'spark' needs a package that is not installed: pip install 'sereno[spark]'."
    ) from missing

GOES_ON = "Nothing was published; finished tasks are kept: start the run again and it goes on where it was."
DRAW_SECONDS = 0.2  # tasks that are slow to be drawn do not wait for the rest of their job
LOOK_SECONDS = 1.0  # between two looks at how many workers there are
SHOWN = 3  # files named in a message

Answered = tuple[int, bytes]  # index of a task, and the worker's answer


class SparkExecutor:
    """Workers of a Spark cluster, or of a Spark that is started on this machine for the run."""

    def __init__(self, settings: Settings, model: Model | None = None) -> None:
        """`model`: that of the run; else its file is read once more."""
        self._settings = settings
        self._model = model
        self._context: SparkContext | None = None
        self._is_ours = False
        self._workers = 0

    @property
    def workers(self) -> int:
        """The most there may be; of a cluster, where none is set, as many as it gives just now: it is started to find out."""
        if self._context is None and not self._workers:
            self._workers = self._settings.workers or 0
        if not self._workers:
            self._connect()
            self._look()
        return self._workers

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """See interfaces.Executor. Progress is told when a task is done. Raises NotSharedError, too."""
        drawn = iter(tasks)
        first = next(drawn, None)
        if first is None:
            return
        context = self._connect()
        try:
            with _Run(self, context, job, self._model or load_model(Path(job.model_file))) as run:
                yield from run.results(_with(first, drawn), progress)
        finally:
            if self._is_ours:
                context.stop()
            self._context = None

    def look(self) -> tuple[int, int]:
        """How many tasks may be drawn and not done, and how many of them make a job."""
        self._look()
        return self._in_flight, max(1, self._workers // 2)

    def _look(self) -> None:
        assert self._context is not None
        slots = spark_start.slots(self._context)
        self._workers = min(slots, self._settings.workers or slots)
        # One more waits for each worker, so that it has something to do at once; but not where others would score it.
        self._in_flight = 2 * self._workers if slots <= self._workers else self._workers

    def _connect(self) -> SparkContext:
        if self._context is None:
            self._context = SparkContext._active_spark_context
            if self._context is None:
                self._context, self._chatter = spark_start.start(self._settings)
                self._is_ours = True
        return self._context


def _with(first: Task, others: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from others


# In the driver


@dataclass(eq=False)
class _Run:
    """The jobs of one run."""

    executor: SparkExecutor
    context: SparkContext
    job: Job
    model: Model
    events: queue.SimpleQueue[list[Answered] | Future[list[Answered]]] = field(default_factory=queue.SimpleQueue)
    open: dict[int, Task] = field(default_factory=dict)  # drawn and not answered
    jobs: dict[Future[list[Answered]], list[Task]] = field(default_factory=dict)
    hosts: set[bytes] = field(default_factory=set)  # what workers found of the shared folder

    def __enter__(self) -> _Run:
        job, context = self.job, self.context
        self.check = announce(Path(job.home), job.attempt)
        self.threads = ThreadPoolExecutor(max_workers=1024, thread_name_prefix="spark-job")
        self.variables_before = dict(context.environment)
        context.environment |= spark_start.variables_of(context, job.attempt)
        self.work = Work(
            version=__version__,
            job=msgspec.msgpack.encode(job),
            check=self.check,
            threads=spark_start.threads_of(context),
            bundle=_ship(context, self.model, job.fingerprint),
            answers=context.accumulator(_Arriving(self.events), Answers()),
        )
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):  # Spark itself may be gone, and they with it
            self.context.cancelJobGroup(self.job.attempt)
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.context.environment.clear()
        self.context.environment |= self.variables_before
        forget(self.check)

    def results(self, tasks: Iterator[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """Draws tasks in this thread only."""
        more, looked = True, 0.0
        most, size = 1, 1
        while more or self.open:
            if time.monotonic() - looked > LOOK_SECONDS:
                most, size = self.executor.look()
                looked = time.monotonic()
            while more and len(self.open) + size <= max(most, size):
                more = self._submit(tasks, size)
            if not self.open:
                continue
            event = self._next()
            for index, encoded in self._answers(event):
                task = self.open.pop(index, None)
                if task is None:
                    continue  # it has come before, by the other way
                yield self._heed(encoded, progress)

    def _next(self) -> list[Answered] | Future[list[Answered]]:
        while True:
            with contextlib.suppress(queue.Empty):
                return self.events.get(timeout=LOOK_SECONDS)

    def _submit(self, tasks: Iterator[Task], size: int) -> bool:
        """Draw the tasks of a job and have them scored; whether there may be more."""
        drawn: list[Task] = []
        until = time.monotonic() + DRAW_SECONDS
        more = True
        while more and len(drawn) < size and not (drawn and time.monotonic() > until):
            task = next(tasks, None)
            if task is None:
                more = False
            else:
                drawn.append(task)
        if drawn:
            self.open |= {task.index: task for task in drawn}
            future = self.threads.submit(self._score, [(t.index, msgspec.msgpack.encode(t)) for t in drawn])
            self.jobs[future] = drawn
            future.add_done_callback(self.events.put)
        return more

    def _score(self, tasks: list[tuple[int, bytes]]) -> list[Answered]:
        """In a thread of its own: one job of Spark, to its end."""
        self.context.setJobGroup(self.job.attempt, f"sereno {self.model.name}", interruptOnCancel=True)
        return self.context.parallelize(tasks, len(tasks)).mapPartitions(self.work).collect()

    def _answers(self, event: list[Answered] | Future[list[Answered]]) -> list[Answered]:
        if isinstance(event, list):
            return event
        tasks = self.jobs.pop(event)
        error = event.exception()
        if error is not None:
            raise WorkerError(_lost(error, tasks)) from error
        return event.result()

    def _heed(self, encoded: bytes, progress: Callable[[int], None]) -> TaskResult:
        answer = msgspec.msgpack.decode(encoded, type=Answer)
        _print(answer)
        raise_told(answer)
        assert answer.result is not None
        if answer.shared not in self.hosts:
            seen(self.check, answer.shared)
            self.hosts.add(answer.shared)
        progress(answer.rows)
        return answer.result


def _ship(context: SparkContext, model: Model, fingerprint: str) -> str:
    """Have Spark unpack the model's bundle on every node that scores; its name there."""
    name = f"{bundle_name(model, fingerprint)}.zip"
    if not any(name in shipped for shipped in context.listArchives):
        folder = Path(tempfile.mkdtemp(prefix="sereno-spark-"))
        pack(model, folder / name)
        context.addArchive(str(folder / name))
    return name


def _lost(error: BaseException, tasks: list[Task]) -> str:
    return f"{spark_start.first_line(error)} {GOES_ON}"


def _print(answer: Answer) -> None:
    """What the model printed there."""
    if answer.printed:
        here = answer.host in ("", socket.gethostname())
        for line in answer.printed.splitlines():
            sys.stderr.write(f"{line}\n" if here else f"({answer.host}) {line}\n")
        sys.stderr.flush()


# In the workers, and both


class _Arriving:
    """Where answers arrive in the driver: in the thread of Spark's that receives them."""

    def __init__(self, events: queue.SimpleQueue[Any]) -> None:
        self._events = events

    def extend(self, answers: list[Answered]) -> None:
        self._events.put(answers)


class Answers(AccumulatorParam[Any]):
    """The accumulator of answers: a list in a worker."""

    def zero(self, value: Any) -> list[Answered]:
        return []

    def addInPlace(self, value1: Any, value2: Any) -> Any:  # noqa: N802 - Spark's name
        value1.extend(value2)
        return value1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What Spark's Python processes do with a task. It goes to them by Spark's pickle, as everything of Spark's does."""

    version: str  # of Sereno in the driver
    job: bytes
    check: bytes
    threads: int
    bundle: str
    answers: Accumulator[Any]

    def __call__(self, tasks: Iterable[tuple[int, bytes]]) -> Iterator[Answered]:
        for index, task in tasks:
            answer = (index, self._worker().score(task))
            self.answers.add([answer])
            yield answer

    def _worker(self) -> RemoteWorker:
        key = (self.job, self.check)
        if key not in _workers:
            if self.version != __version__:
                raise RuntimeError(f"Sereno is {__version__} here, and {self.version} where the run was started")
            folder = Path(SparkFiles.get(self.bundle)).resolve()
            _workers.clear()
            _workers[key] = RemoteWorker(self.job, self.check, self.threads, folder)
        return _workers[key]


_workers: dict[tuple[bytes, bytes], RemoteWorker] = {}  # of this process: one, once it has scored
