"""The Spark executor: one of our tasks is one task of Spark, scored in its Python processes, each with the model loaded once.

Spark places tasks, tries again what was lost with a process or a node, and ships the model. A worker's answer comes at once,
by an accumulator, and once more with those of its job when that ends: the first one counts. An error is an answer, too, so
that Spark does not try four times what cannot help; what Spark raises is a loss.

Jobs of Spark are small and several at a time, so that tasks are drawn as they are scored, and memory stays the same.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import queue
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sereno import __version__
from sereno.adapters.executors.bundle import bundle_name, pack
from sereno.adapters.executors.dispatch import GOES_ON, lost_too_often
from sereno.adapters.executors.leftovers import own_folder
from sereno.adapters.executors.local import Answer, raise_told
from sereno.adapters.executors.remote import RemoteWorker, show_printed
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.exceptions import MissingExtraError, WorkerError
from sereno.loader import load_model
from sereno.model import Model
from sereno.settings import Settings
from sereno.shared import announce, forget, seen

try:
    from pyspark import SparkContext, SparkFiles
    from pyspark.accumulators import Accumulator, AccumulatorParam

    from sereno.adapters.executors import spark_start
except ImportError as missing:
    raise MissingExtraError(
        "The executor 'spark' needs a package that is not installed: pip install 'sereno[spark]'."
    ) from missing

DRAW_SECONDS = 0.2  # tasks that are slow to be drawn do not wait for the rest of their job
LOOK_SECONDS = 1.0  # between two looks at how many workers there are
TELL_SECONDS = 10.0  # without any worker, until somebody is told
WAIT_SECONDS = 900.0  # without any worker, until the run ends: a cluster that grows needs minutes for a node
CANCEL_SECONDS = 10.0  # for what goes on to end
FAILED = re.compile(  # in the words of Spark's scheduler
    r"Task (?P<place>\d+) in stage \S+ failed (?P<times>\d+) times, most recent failure: "
    r"Lost task \S+ in stage \S+ \(TID \d+\) \((?P<host>\S+) executor \S+\): (?P<how>.*)",
    re.DOTALL,
)

PYTHON = ("PYTHON_EXCEPTION", "PythonException", "Cannot run program")  # what none of our answers is

Answered = tuple[int, bytes]  # index of a task, and the worker's answer
_ours: weakref.WeakSet[SparkContext] = weakref.WeakSet()  # contexts that executors of this process have started


class SparkExecutor:
    """Workers of a Spark cluster, or of a Spark that is started on this machine for the run."""

    def __init__(self, settings: Settings, model: Model | None = None) -> None:
        """`model`: that of the run; else its file is read once more."""
        self._settings = settings
        self._model = model
        self._context: SparkContext | None = None
        self._is_ours = False
        self._workers = settings.workers or 0

    @property
    def workers(self) -> int:
        """The most there may be; of a cluster, where none is set, as many as it gives just now: it is started to find out."""
        if not self._workers:
            self.limits(self._connect())
        return self._workers

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """See interfaces.Executor. Progress is told when a task is done. Raises NotSharedError, too."""
        drawn = iter(tasks)
        first = next(drawn, None)
        if first is None:
            return
        model = self._model or load_model(Path(job.model_file))
        context = self._connect()
        with contextlib.ExitStack() as at_the_end:
            run = _Run(self, context, job, model, at_the_end)
            yield from run.results(_with(first, drawn), progress)

    def limits(self, context: SparkContext) -> tuple[int, int]:
        """How many tasks may be drawn and not done, and how many of them make a job of Spark."""
        slots = spark_start.slots(context)
        self._workers = min(slots, self._settings.workers or slots)
        # One more waits for each worker, so that it has something to do at once; but not where others would score it.
        most = 2 * self._workers if slots <= self._workers else self._workers
        return most, max(1, self._workers // 2)

    def _connect(self) -> SparkContext:
        if self._context is None:
            self._context = SparkContext._active_spark_context  # of the caller's own, in a notebook, say
            if self._context is not None and self._context in _ours:  # of a run that has left it open
                self._context.stop()
                self._context = None
            if self._context is None:
                self._context, self._is_ours = spark_start.start(self._settings), True
                _ours.add(self._context)
        return self._context

    def close(self) -> None:
        """See interfaces.Executor. A Spark that the caller started goes on."""
        if self._is_ours and self._context is not None:
            with contextlib.suppress(Exception):  # its process may be gone
                self._context.stop()
        self._context, self._is_ours = None, False


def _with(first: Task, others: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from others


# In the driver


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A job of Spark has ended, or there is no more hope."""

    tasks: list[Task]
    answers: list[Answered] = field(default_factory=list)
    error: BaseException | None = None


class _Run:
    """The jobs of one run.

    Java is spoken to in threads of their own, once it runs: Ctrl-C comes to the main thread, and a call that it interrupts
    leaves its answer behind, for the next one to read.
    """

    def __init__(
        self, executor: SparkExecutor, context: SparkContext, job: Job, model: Model, at_the_end: contextlib.ExitStack
    ) -> None:
        self._executor, self._context, self._job, self._model = executor, context, job, model
        self._events: queue.SimpleQueue[list[Answered] | _Ended] = queue.SimpleQueue()
        self._open: dict[int, Task] = {}  # drawn and not answered
        self._threads: set[threading.Thread] = set()  # one for each job that goes on
        self._found: set[bytes] = set()  # what workers told of the shared folder, and was found
        self._check = announce(Path(job.home), job.attempt)
        at_the_end.callback(forget, self._check)
        variables = dict(context.environment)
        at_the_end.callback(context.environment.update, variables)
        at_the_end.callback(context.environment.clear)
        context.environment |= spark_start.variables_of(context, job.attempt)
        self._work = Work(
            version=__version__,
            job=msgspec.msgpack.encode(job),
            check=self._check,
            threads=spark_start.threads_of(context),
            bundle=_ship(context, model, job.fingerprint),
            answers=context.accumulator(_Arriving(self._events), Answers()),
        )
        self._most, self._size = executor.limits(context)
        self._over = threading.Event()
        at_the_end.callback(self._cancel)
        threading.Thread(target=self._watch, name="spark-workers", daemon=True).start()

    def results(self, tasks: Iterator[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """Draws tasks in this thread only."""
        more = True
        while more or self._open:
            while more and len(self._open) + self._size <= max(self._most, self._size):
                more = self._submit(tasks)
            if not self._open:
                continue
            for index, encoded in self._answers(self._events.get()):
                if self._open.pop(index, None) is not None:  # else it has come before, the other way
                    yield self._heed(encoded, progress)

    def _submit(self, tasks: Iterator[Task]) -> bool:
        """Draw the tasks of a job, and have them scored; whether there may be more."""
        drawn: list[Task] = []
        until = time.monotonic() + DRAW_SECONDS
        more = True
        while more and len(drawn) < self._size and not (drawn and time.monotonic() > until):
            task = next(tasks, None)
            if task is None:
                more = False
            else:
                drawn.append(task)
        if drawn:
            self._open |= {task.index: task for task in drawn}
            thread = threading.Thread(target=self._score, args=(drawn,), name="spark-job", daemon=True)
            self._threads.add(thread)
            thread.start()
        return more

    def _score(self, tasks: list[Task]) -> None:
        """In a thread of its own: one job of Spark, to its end."""
        sent = [(task.index, msgspec.msgpack.encode(task)) for task in tasks]
        try:
            self._context.setJobGroup(self._job.attempt, f"sereno {self._model.name}", interruptOnCancel=True)
            answers = self._context.parallelize(sent, len(sent)).mapPartitions(self._work).collect()
            self._events.put(_Ended(tasks=tasks, answers=answers))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            self._events.put(_Ended(tasks=tasks, error=error))

    def _watch(self) -> None:
        """In a thread of its own: how many workers there are, and whether there are any."""
        alone_since, told = time.monotonic(), False
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._most, self._size = self._executor.limits(self._context)
                if spark_start.has_workers(self._context):
                    alone_since, told = time.monotonic(), False
            except Exception:  # noqa: BLE001 - Spark has ended, which its jobs tell
                return
            alone = time.monotonic() - alone_since
            if alone > WAIT_SECONDS:
                says = f"No worker was there for {alone:.0f} s: {self._context.master} gives none. {GOES_ON}"
                self._events.put(_Ended(tasks=[], error=WorkerError(says)))
                return
            if alone > TELL_SECONDS and not told:
                told = True
                sys.stderr.write(f"sereno: waiting for a worker, of which {self._context.master} has given none.\n")
                sys.stderr.flush()

    def _cancel(self) -> None:
        """End what goes on. A job that is about to begin would outlive the end of Spark otherwise, and never be told."""
        self._over.set()
        until = time.monotonic() + CANCEL_SECONDS
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < until:
            try:
                self._context.cancelJobGroup(self._job.attempt)
            except Exception:  # noqa: BLE001 - Spark itself is gone, and they with it
                return
            for thread in self._threads:
                thread.join(0.1)

    def _answers(self, event: list[Answered] | _Ended) -> list[Answered]:
        if isinstance(event, list):
            return event
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        if isinstance(event.error, WorkerError):
            raise event.error
        if event.error is not None:
            raise WorkerError(_lost(event.error, event.tasks)) from event.error
        return event.answers

    def _heed(self, encoded: bytes, progress: Callable[[int], None]) -> TaskResult:
        answer = msgspec.msgpack.decode(encoded, type=Answer)
        show_printed(answer)
        raise_told(answer)
        assert answer.result is not None
        if answer.shared not in self._found:
            seen(self._check, answer.shared)
            self._found.add(answer.shared)
        progress(answer.rows)
        return answer.result


def _ship(context: SparkContext, model: Model, fingerprint: str) -> str:
    """Have Spark unpack the model's bundle on every node that scores; its name there."""
    name = f"{bundle_name(model, fingerprint)}.zip"
    if not any(name in shipped for shipped in context.listArchives):
        folder = own_folder(spark_start.PREFIX)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # a worker that comes later asks for it, too
        pack(model, folder / name)
        context.addArchive(str(folder / name))
    return name


def _lost(error: BaseException, tasks: list[Task]) -> str:
    """What Spark raises where a task has failed as often as it tries, and else."""
    text = spark_start.text_of(error)
    found = FAILED.search(text)
    how = (found["how"] if found else text).split("\n\tat ")[0]
    where = f"on {found['host']} " if found else ""
    if any(word in how for word in PYTHON):
        # The last line of the traceback, or Java's own.
        raised = re.findall(r"^(?!\s|Traceback)\w[\w.]*(?::.*)?$", how, re.MULTILINE)
        last = _without_package(raised[-1] if raised else how.splitlines()[0])
        return (
            f"The Python processes of Spark cannot score; {where}they ended with {last}. Every node needs Sereno {__version__} "
            f"and what the model imports, under the Python that PYSPARK_PYTHON names. {GOES_ON}"
        )
    if found is None:
        return f"Spark ended: {spark_start.first_line(text)} {GOES_ON}"
    last = _without_package(how.splitlines()[0])
    return lost_too_often(tasks[int(found["place"])], int(found["times"]), f"the last time on {found['host']}, {last}.")


def _without_package(line: str) -> str:
    """An exception's line, without its package and the stop at its end."""
    return re.sub(r"^(?:\w+\.)+(?=\w+:)", "", line).strip(" .:")


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
            if (
                not gc.get_freeze_count()
            ):  # Spark collects garbage after each task: not among all that is loaded for good
                gc.collect(1)  # what the first task left; all else came to stay
                gc.freeze()
            self.answers.add([answer])
            yield answer

    def _worker(self) -> RemoteWorker:
        key = (self.job, self.check)
        if key not in _workers:
            if self.version != __version__:
                raise RuntimeError(f"Sereno is {__version__} here, and {self.version} where the run was started")
            folder = Path(SparkFiles.get(self.bundle)).resolve()
            _workers.clear()
            gc.unfreeze()
            _workers[key] = RemoteWorker(self.job, self.check, self.threads, folder)
        return _workers[key]


_workers: dict[tuple[bytes, bytes], RemoteWorker] = {}  # of this process: one, once it has scored
