"""The local executor: this process and others beside it, each with the model loaded once.

The process that was started is the first worker, so a run on two cores costs one start of Python more, not two. The
others are new interpreters (never forks: delta-rs and OpenMP do not survive one), fed one task at a time.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from sereno import exceptions
from sereno.adapters.executors.spawn import Ahead, cores, start_worker, threads_each
from sereno.batch.tasks import Job, Task, TaskResult, score_task
from sereno.exceptions import ChangedError, SerenoError, WorkerError
from sereno.loader import fingerprint
from sereno.scoring import Scorer


class Request(msgspec.Struct):
    """To a worker: the job once, then one task at a time."""

    job: Job | None = None
    task: Task | None = None


class Answer(msgspec.Struct):
    """From a worker."""

    rows: int = 0  # progress
    result: TaskResult | None = None
    error: str | None = None  # name of the exception
    message: str = ""
    # of a worker elsewhere
    host: str = ""
    printed: str = ""  # what the model printed there
    shared: bytes = b""  # what `shared.confirm` gave


class LocalExecutor:
    """`workers` processes on this machine, this one among them."""

    def __init__(self, workers: int, load: Callable[[], Scorer], ahead: Ahead | None = None) -> None:
        self.workers = workers
        self._load = load
        self._ahead = ahead

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """See interfaces.Executor. A single task stays in this process and may use every core."""
        drawn = iter(tasks)
        first = next(drawn, None)
        second = next(drawn, None) if self.workers > 1 and first is not None else None
        if first is None:
            return
        if second is None:
            with loaded_with(job, cores(), self._load) as scorer:
                for task in _chain(first, drawn):
                    yield score_task(job, task, scorer, progress)
            return
        with _Lanes(job, self.workers, self._load, progress, self._ahead) as lanes:
            yield from lanes.run(_chain(first, second, drawn))

    def close(self) -> None:
        """Nothing outlives `map`."""


def _chain(*parts: Any) -> Iterator[Task]:
    for part in parts:
        yield from [part] if isinstance(part, Task) else part


@dataclass
class _Lanes:
    """One thread for each worker: it takes a task from the queue, has it scored, and puts the result in the other."""

    job: Job
    workers: int
    load: Callable[[], Scorer]
    progress: Callable[[int], None]
    ahead: Ahead | None
    waiting: queue.Queue[Task | None] = field(default_factory=queue.Queue)
    done: queue.Queue[TaskResult | BaseException] = field(default_factory=queue.Queue)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopping: bool = False

    def __enter__(self) -> _Lanes:
        for _ in range(self.workers - 1):
            process, connection = self.ahead.take() if self.ahead else start_worker(self.job.model_file, self.workers)
            self.ahead = None
            self.processes.append(process)
            self._start(self._feed_process, process, connection)
        self._start(self._score_here)
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping = True
        for _ in range(self.workers):
            self.waiting.put(None)
        for process in self.processes:
            if error[0] is not None:
                process.kill()
            process.wait()

    def run(self, tasks: Iterator[Task]) -> Iterator[TaskResult]:
        """Draws tasks in this thread only (a generator over a database stays in the thread that opened it)."""
        in_flight, more = 0, True
        while more or in_flight:
            while more and in_flight < 2 * self.workers:
                task = next(tasks, None)
                if task is None:
                    more = False
                else:
                    self.waiting.put(task)
                    in_flight += 1
            if in_flight:
                result = self.done.get()
                if isinstance(result, BaseException):
                    raise result
                in_flight -= 1
                yield result

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _score_here(self) -> None:
        try:
            with loaded_with(self.job, threads_each(self.workers), self.load) as scorer:
                while (task := self.waiting.get()) is not None and not self.stopping:
                    self.done.put(score_task(self.job, task, scorer, self.progress))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            self.done.put(error)

    def _feed_process(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        try:
            with connection:  # the worker ends when nothing more can come
                self._send(connection, Request(job=self.job))
                while (task := self.waiting.get()) is not None:
                    self._send(connection, Request(task=task))
                    self.done.put(self._wait_for(connection, process, task))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            self.done.put(error)

    def _send(self, connection: Connection, request: Request) -> None:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it is gone; what it said last waits to be read
            connection.send_bytes(msgspec.msgpack.encode(request))

    def _wait_for(self, connection: Connection, process: subprocess.Popen[bytes], task: Task) -> TaskResult:
        while True:
            try:
                answer = msgspec.msgpack.decode(connection.recv_bytes(), type=Answer)
            except (EOFError, OSError) as error:
                raise WorkerError(_died(process, task)) from error
            if answer.result is not None:
                return answer.result
            raise_told(answer)
            self.progress(answer.rows)


def _died(process: subprocess.Popen[bytes], task: Task) -> str:
    code = process.wait()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = (
        " The machine may have run out of memory: try fewer --workers, or a smaller batch_rows." if code == -9 else ""
    )
    return (
        f"A worker process {how} while it scored task {task.index}.{hint} Nothing was published; finished tasks are kept: "
        "start the run again and it goes on where it was."
    )


def raise_told(answer: Answer) -> None:
    """Raise the error that a worker told, if it did."""
    if answer.error is not None:
        kind = getattr(exceptions, answer.error, None)
        raise kind(answer.message) if kind else WorkerError(answer.message)


def error_answer(error: BaseException) -> Answer:
    if isinstance(error, SerenoError):
        return Answer(error=type(error).__name__, message=str(error))
    import traceback

    return Answer(error="WorkerError", message="A worker failed:\n" + "".join(traceback.format_exception(error)))


@contextlib.contextmanager
def loaded_with(job: Job, threads: int, load: Callable[[], Scorer]) -> Iterator[Scorer]:
    """The loaded model, whose libraries use so many threads while the context lasts (in the calling thread).

    Raises ChangedError where it is no longer the model that the run was planned with: its predictions would be
    published under another fingerprint, or beside those of another model.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads):
        scorer = load()
        if fingerprint(scorer.model) != job.fingerprint:
            raise ChangedError(
                f"The file of model {scorer.model.name!r}, a module beside it or an artefact changed while the run was "
                "starting. Nothing was published; start the run again."
            )
        with threadpool_limits(limits=threads):  # libraries that `load` imported itself came too late for the first
            yield scorer
