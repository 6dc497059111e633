"""The Ray executor: workers are actors of a Ray cluster, each with the model loaded once.

Ray places them, on whatever node has room, and starts them again, there or elsewhere, when a process or a node dies. What
it is not asked to do is to call a task again: it would wait for the very worker that it was given to, which may have no
node to come back to, while others are idle. So the task of a lost worker goes to another one (`dispatch.py`).

No row crosses: a task is a path, an answer is where a part lies. An error is an answer, too; what Ray raises is a loss.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sereno.adapters.executors.dispatch import GOES_ON, IN_FLIGHT, MOST_TRIES, Dispatch
from sereno.adapters.executors.local import Answer, raise_told
from sereno.adapters.executors.ray_connection import (
    RECONNECT,
    RayConnection,
    address_of,
    in_short,
    named,
    require_ray,
    runtime_env_of,
)
from sereno.adapters.executors.remote import RemoteWorker, show_printed
from sereno.adapters.executors.spawn import cores
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.exceptions import SettingsError, WorkerError
from sereno.shared import announce, forget, seen

if TYPE_CHECKING:
    from sereno.settings import RaySettings, Settings

ASK_SECONDS = 0.5  # between two questions to a worker that was lost whether it is there again
LOOK_SECONDS = 2.0  # between two looks at the nodes of a cluster: it may have grown
TELL_SECONDS = 10.0  # without any worker, until somebody is told what is waited for
WAIT_SECONDS = 900.0  # without any worker, until the run ends: a cluster that grows needs minutes for a node
# Of the time that a process of Ray's lives on without its head: after so much of it the run ends by itself, and says so.
HEAD_SHARE = 0.75
LAST_SHARE = 0.1  # of it, for the last look: where this process itself stood still, the head answers as it goes on
FINEST = 0.0001  # part of a CPU or GPU


class RayExecutor:
    """Workers on the nodes of a Ray cluster, or of a Ray that is started on this machine for the run."""

    def __init__(self, settings: Settings) -> None:
        """Raises MissingExtraError where Ray is not installed, SettingsError for settings that cannot be."""
        require_ray("The executor 'ray'")
        self._settings = settings
        _refuse_parts(settings.ray)
        self._address = address_of(settings.ray)
        self._runtime_env = runtime_env_of(settings.ray)
        self._cluster: _Cluster | None = None
        self._used: int | None = None

    @property
    def workers(self) -> int:
        """The most there may be; of a cluster, where none is set, as many as it has room for just now.

        After a run: as many as there were at once.
        """
        if self._used is not None:
            return self._used
        if self._settings.workers:
            return self._settings.workers
        if self._address is None:
            return max(1, int(cores() / (self._settings.ray.worker_cpus or 1)))
        return max(1, self._connected().room)

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """See interfaces.Executor. Progress is told when a task is done. Raises NotSharedError, too."""
        drawn = iter(tasks)
        first = next(drawn, None)
        if first is None:
            return
        with _Pool(self, self._connected(), job) as pool:
            yield from pool.run(_with(first, drawn), progress)
            self._used = max(1, pool.most_ready)

    def close(self) -> None:
        """See interfaces.Executor. A Ray that was found running goes on."""
        if self._cluster is not None:
            cluster, self._cluster = self._cluster, None
            cluster.close()

    def _connected(self) -> _Cluster:
        if self._cluster is None:
            self._cluster = _Cluster(self._settings.ray, self._address, self.workers if self._address is None else 0)
        return self._cluster

    @property
    def asked(self) -> RaySettings:
        """What a worker asks for."""
        return self._settings.ray

    def most(self, cluster: _Cluster) -> int:
        """How many workers there may be now."""
        return self._settings.workers or (self.workers if self._address is None else max(1, cluster.room))

    def start(self, job: bytes, check: bytes) -> Any:
        """A new worker, once Ray has room for it. Raises SettingsError for an environment that cannot be."""
        import ray

        asked = self.asked
        options: dict[str, Any] = {
            "num_cpus": asked.worker_cpus,
            "num_gpus": asked.worker_gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if asked.worker_memory_bytes:
            options["memory"] = asked.worker_memory_bytes
        if self._runtime_env:
            options["runtime_env"] = self._runtime_env
        threads = max(1, int(asked.worker_cpus))
        try:
            return ray.remote(RemoteWorker).options(**options).remote(job, check, threads)
        except (ValueError, TypeError, RuntimeError) as error:
            if not self._runtime_env:
                raise
            raise SettingsError(
                f"Ray refuses what ray.runtime_env says ({asked.runtime_env}): {in_short(error)}"
            ) from error


def _refuse_parts(asked: RaySettings) -> None:
    """Raise SettingsError for what Ray refuses, of parts of a CPU or a GPU."""
    for name, amount in (("worker_cpus", asked.worker_cpus), ("worker_gpus", asked.worker_gpus)):
        if 0 < amount < FINEST:
            raise SettingsError(f"ray.{name} is {amount:g}; valid is 0, or {FINEST} or more.")
    if asked.worker_gpus > 1 and asked.worker_gpus % 1:
        raise SettingsError(
            f"ray.worker_gpus is {asked.worker_gpus:g}; valid is a whole number, or a part of one GPU, as 0.5: Ray divides "
            "no more than one among workers."
        )


def _with(first: Task, others: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from others


class _Cluster:
    """What is known of the cluster's nodes: a thread asks the head now and then."""

    def __init__(self, settings: RaySettings, address: str | None, workers: int) -> None:
        self._settings = settings
        self.address = address
        self.is_lost = False  # its head is
        self.room = 0  # workers that its nodes have room for in all, taken or not
        self.nodes = ""  # what there is, in words
        self._connection = RayConnection(address, num_cpus=max(1, math.ceil(workers * settings.worker_cpus)))
        self._over = threading.Event()
        self._look()
        threading.Thread(target=self._watch, name="ray-nodes", daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._connection.close(is_lost=self.is_lost)

    def check(self) -> None:
        """Raise WorkerError where the head has not answered for long."""
        patience = float(os.environ.get(RECONNECT, 60))
        heard_at = self._heard_at
        if time.monotonic() - heard_at < HEAD_SHARE * patience:
            return
        deadline = time.monotonic() + LAST_SHARE * patience
        while time.monotonic() < deadline:
            if self._heard_at > heard_at:
                return
            time.sleep(0.05)
        self.is_lost = True
        silent = time.monotonic() - heard_at
        raise WorkerError(
            f"{named(self.address)} has lost its head, which has not answered for {silent:.0f} s. {GOES_ON}"
        )

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the head does not answer, which `check` tells
                self._look()

    def _look(self) -> None:
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self.room = sum(_fit(self._settings, resources) for resources in alive)
        largest = max((resources.get("CPU", 0) for resources in alive), default=0)
        self.nodes = f"{_count(len(alive), 'node')}, of which the largest has {_count(largest, 'CPU')}"
        self._heard_at = time.monotonic()


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}" + ("" if amount == 1 else "s")


def _fit(asked: RaySettings, resources: dict[str, float]) -> int:
    """How many workers fit on a node."""
    wanted = {"CPU": asked.worker_cpus, "GPU": asked.worker_gpus, "memory": asked.worker_memory_bytes or 0}
    limits = [int(resources.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount]
    return min(limits) if limits else int(resources.get("CPU", 0))


Call = Literal[
    "begin", "load", "score"
]  # what a worker is asked: whether its process is there, to load the model, a task


@dataclass(eq=False)
class _Worker:
    """An actor. Ray starts it again when it dies: then its life is another one."""

    actor: Any
    host: str = ""  # where it was last
    life: int = 0
    has_begun: bool = False  # its process is there; the model may not be
    died_loading: int = 0  # times, one after the other


@dataclass(frozen=True)
class _Event:
    """A call has ended."""

    worker: _Worker
    life: int
    call: Call
    task: Task | None
    answer: bytes | None
    error: BaseException | None


@dataclass
class _Pool:
    """The workers of one run."""

    executor: RayExecutor
    cluster: _Cluster
    job: Job
    workers: dict[_Worker, None] = field(default_factory=dict)
    lost: dict[_Worker, None] = field(default_factory=dict)  # those that Ray is about to start again
    events: queue.SimpleQueue[_Event] = field(default_factory=queue.SimpleQueue)
    most_ready: int = 0  # workers at once
    alone_since: float = 0.0  # when there was a worker last
    looked_at: float = 0.0
    told: bool = False

    def __enter__(self) -> _Pool:
        self.encoded = msgspec.msgpack.encode(self.job)
        self.check = announce(Path(self.job.home), self.job.attempt)
        self.alone_since = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        for worker in self.workers if not self.cluster.is_lost else ():
            with contextlib.suppress(Exception):  # Ray itself may be gone, and they with it
                ray.kill(worker.actor)
        forget(self.check)

    def run(self, tasks: Iterator[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        self.dispatch: Dispatch[_Worker] = Dispatch(tasks)
        while True:
            most = self.executor.most(self.cluster)
            while self.dispatch.draw(IN_FLIGHT * most):
                self._employ(most)
                self._give()
                yield from self._heed(self._ended(0.0), progress)
            self._employ(most)
            self._give()
            if not self.dispatch.open:
                return
            yield from self._heed(self._ended(ASK_SECONDS), progress)
            self._look_around()

    def _employ(self, most: int) -> None:
        """Have as many workers as there are tasks for, and no more than `most`."""
        while len(self.workers) < min(most, self.dispatch.open):
            worker = _Worker(self.executor.start(self.encoded, self.check))
            self.workers[worker] = None
            self._call(worker, "begin")

    def _give(self) -> None:
        coming = len(self.workers) - self.dispatch.ready - len(self.lost)
        while (given := self.dispatch.give(coming)) is not None:
            worker, task = given
            self._call(worker, "score", task)

    def _call(self, worker: _Worker, call: Call, task: Task | None = None) -> None:
        life, actor = worker.life, worker.actor
        if call == "begin":
            ref = actor.__ray_ready__.remote()
        elif call == "load":
            ref = actor.ready.remote()
        else:
            ref = actor.score.remote(msgspec.msgpack.encode(task))

        def ended(future: Any) -> None:
            error = future.exception()
            answer = None if error or call == "begin" else future.result()
            self.events.put(_Event(worker, life, call, task, answer, error))

        ref.future().add_done_callback(ended)

    def _ended(self, patience: float) -> Iterator[_Event]:
        """The calls that have ended; waits so long for the first one."""
        with contextlib.suppress(queue.Empty):
            yield self.events.get(timeout=patience) if patience else self.events.get_nowait()
            while True:
                yield self.events.get_nowait()

    def _heed(self, events: Iterator[_Event], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        for event in events:
            worker = event.worker
            if event.life != worker.life or worker not in self.workers:
                continue  # of a life that is over: others score what it had
            if event.error is not None:
                self._lose(event)
                continue
            if event.call == "begin":
                worker.has_begun = True
                self._call(worker, "load")
                continue
            assert event.answer is not None
            answer = msgspec.msgpack.decode(event.answer, type=Answer)
            show_printed(answer)
            raise_told(answer)
            if event.task is None:
                seen(self.check, answer.shared)
                worker.host = answer.host
                self.dispatch.join(worker)
                self.most_ready = max(self.most_ready, self.dispatch.ready)
            else:
                assert answer.result is not None
                worker.died_loading = 0
                self.dispatch.done(worker, event.task)
                progress(answer.rows)
                yield answer.result
            self._give()

    def _lose(self, event: _Event) -> None:
        """A worker's process, or its node, is gone. Ray starts it again, there or elsewhere."""
        from ray import exceptions

        worker, error = event.worker, event.error
        assert error is not None
        lost = (
            exceptions.RayActorError,
            exceptions.OutOfMemoryError,
            exceptions.NodeDiedError,
            exceptions.WorkerCrashedError,
        )
        if not isinstance(error, lost) or _never_began(error):
            raise WorkerError(f"A worker could not start on the Ray cluster: {in_short(error)} {GOES_ON}") from error
        worker.life += 1
        if worker.has_begun:
            self.alone_since, worker.has_begun = time.monotonic(), False
        if event.call == "load":
            worker.died_loading += 1
            if worker.died_loading >= MOST_TRIES:
                raise WorkerError(
                    f"A worker was lost {MOST_TRIES} times while it loaded the model: {_how_lost(error)}. "
                    f"The model may take more memory than a worker has. {GOES_ON}"
                ) from error
        elif event.call == "score":
            how = f"on {worker.host}, {_how_lost(error)}"
            which = ", ".join(str(task.index) for task in self.dispatch.lose(worker, how))
            sys.stderr.write(f"sereno: a worker is lost ({how}). Others score what it had: task {which}.\n")
        if isinstance(error, exceptions.ActorDiedError):
            del self.workers[worker]  # for good: another one takes its place
        else:
            self.lost[worker] = None

    def _look_around(self) -> None:
        """Ask again those that were lost. Raise WorkerError where nothing comes of it: no head, or no worker."""
        now = time.monotonic()
        if now - self.looked_at < ASK_SECONDS:
            return
        self.looked_at = now
        for worker in self.lost:
            # Until Ray has found out that a node is gone, it says at once that its worker is. Then it waits for the new one.
            self._call(worker, "begin")
        self.lost.clear()
        if any(worker.has_begun for worker in self.workers):
            self.alone_since, self.told = now, False
        self.cluster.check()
        alone = now - self.alone_since
        if alone < TELL_SECONDS:
            return
        asked = self.executor.asked
        wanted = [_count(asked.worker_cpus, "CPU")]
        wanted += [_count(asked.worker_gpus, "GPU")] if asked.worker_gpus else []
        wanted += [f"{asked.worker_memory_bytes:,} bytes of memory"] if asked.worker_memory_bytes else []
        says = (
            f"a worker asks for {' and '.join(wanted)}; the Ray cluster has {self.cluster.nodes}, which others may use."
        )
        if alone > WAIT_SECONDS:
            raise WorkerError(f"No worker was there for {alone:.0f} s: {says} {GOES_ON}")
        if not self.told:
            self.told = True
            sys.stderr.write(f"sereno: waiting for a worker: {says}\n")


def _how_lost(error: BaseException) -> str:
    """In a few words, where Ray says it in many."""
    found = re.search(r"(?:RPC error|IOError): (.+?)(?: rpc_code|\. The task may)", str(error))
    return f"its process or its node ended ({found[1]})" if found else in_short(error).rstrip(".")


def _never_began(error: BaseException) -> bool:
    """Whether the worker's class could not even be imported there: no other try would fare better."""
    return "creation task" in str(error)
