"""The Ray executor: workers are actors of a Ray cluster, each with the model loaded once.

Ray places them, on whatever node has room, and starts them again, there or elsewhere, when a process or a node dies. What
it is not asked to do is to call a task again: it would wait for the very worker that it was given to, which may have no
node to come back to, while others are idle. So the task of a lost worker goes to another one (`dispatch.py`).

No row crosses: a task is a path, an answer is where a part lies. An error is an answer, too; what Ray raises is a loss.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.adapters.dispatch import IN_FLIGHT, MOST_TRIES, Dispatch
from sereno.adapters.local import Answer, raise_told
from sereno.adapters.spawn import cores
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.exceptions import MissingExtraError, SettingsError, WorkerError
from sereno.shared import announce, forget, seen

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.settings import RaySettings

LOOK_SECONDS = 2.0  # between two looks at the nodes of a cluster: it may have grown
TELL_SECONDS = 10.0  # without any worker, until somebody is told what is waited for
WAIT_SECONDS = 900.0  # without any worker, until the run ends: a cluster that grows needs minutes for a node
RECONNECT = (
    "RAY_gcs_rpc_server_reconnect_timeout_s"  # after so long without its head, Ray ends this process: 60 s, if not set
)
HEAD_SHARE = 0.75  # of it, after which the run ends by itself, and says so
OBJECT_STORE_BYTES = 100 << 20  # of a Ray that is started here: nothing large goes through it
GOES_ON = "Nothing was published; finished tasks are kept: start the run again and it goes on where it was."


class RayExecutor:
    """Workers on the nodes of a Ray cluster, or of a Ray that is started on this machine for the run."""

    def __init__(self, settings: Settings) -> None:
        """Raises MissingExtraError where Ray is not installed, SettingsError for settings that cannot be."""
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError(
                "The executor 'ray' needs a package that is not installed: pip install 'sereno[ray]'."
            )
        self._settings = settings
        self._address = settings.ray.address or os.environ.get("RAY_ADDRESS") or None
        if self._address and "://" in self._address:
            raise SettingsError(
                f'ray.address is {self._address!r}; valid is the head\'s host and port, "host:6379". The process that runs '
                "works on a node of the cluster, which may be one without CPUs for others: `ray start --address=host:6379 "
                "--num-cpus=0`."
            )
        self._runtime_env = _runtime_env(settings.ray.runtime_env)
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
        cluster = self._connected()
        try:
            with _Pool(self, cluster, job) as pool:
                yield from pool.run(_with(first, drawn), progress)
                self._used = max(1, pool.most_ready)
        finally:
            cluster.close()
            self._cluster = None

    def _connected(self) -> _Cluster:
        if self._cluster is None:
            self._cluster = _Cluster(self._settings, self._address, self.workers if self._address is None else 0)
        return self._cluster

    def most(self, cluster: _Cluster) -> int:
        """How many workers there may be now."""
        return self._settings.workers or (self.workers if self._address is None else max(1, cluster.room))

    def start(self, job: bytes, check: bytes) -> Any:
        """A new worker, once Ray has room for it."""
        import ray

        from sereno.adapters.remote import RemoteWorker

        asked = self._settings.ray
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
        return ray.remote(RemoteWorker).options(**options).remote(job, check, max(1, int(asked.worker_cpus)))


def _with(first: Task, others: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from others


def _runtime_env(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"ray.runtime_env is {file}, which cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise SettingsError(f'ray.runtime_env is {file}, which holds no object. Write {{"env_vars": {{…}}}}, say.')
    return found


class _Cluster:
    """The connection to Ray, and what is known of its nodes: a thread asks the head now and then."""

    def __init__(self, settings: Settings, address: str | None, workers: int) -> None:
        self._ray = settings.ray
        self.address = address
        self.room = 0  # workers that its nodes have room for in all, taken or not
        self.heard_at = time.monotonic()  # of its head
        self.nodes = ""  # what there is, in words
        self._folder: Path | None = None
        self.is_lost = False
        self._is_ours = self._connect(workers)
        self._over = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._watch, name="ray-nodes", daemon=True)
        self._thread.start()

    def _connect(self, workers: int) -> bool:
        """Whether the connection is ours: somebody may have made one before, in a notebook, say."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do; else it says so at length
        import ray

        if ray.is_initialized():
            return False
        if self.address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            self._folder = Path(tempfile.mkdtemp(prefix="sereno-ray-"))
            options: dict[str, Any] = {
                "address": "local",
                "num_cpus": max(1, workers * max(1, int(self._ray.worker_cpus))),
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": str(self._folder),
            }
        else:
            options = {"address": self.address}
        with _signals_kept():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            except ray.exceptions.AuthenticationError as error:
                raise SettingsError(
                    f"The Ray cluster {self.address} asks for another token. Set RAY_AUTH_TOKEN to that of the cluster, or "
                    "RAY_AUTH_TOKEN_PATH to the file that has it."
                ) from error
            except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
                raise WorkerError(
                    f"The Ray cluster {self.address or 'on this machine'} cannot be used: {_first_lines(error)} {GOES_ON}"
                ) from error
            # What Ray itself says of each node that is lost comes on standard output and in colours. We say it in a line.
            with contextlib.suppress(Exception):
                ray._private.worker._worker_logs_enabled = False
        return True

    def close(self) -> None:
        import ray

        self._over.set()
        if (
            self._is_ours and not self.is_lost
        ):  # without its head, Ray does not come to an end before it ends the process
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        """Raise WorkerError where the head has not answered for long."""
        silent = time.monotonic() - self.heard_at
        if silent > HEAD_SHARE * float(os.environ.get(RECONNECT, 60)):
            self.is_lost = True
            raise WorkerError(
                f"The head of the Ray cluster {self.address} has not answered for {silent:.0f} s. {GOES_ON}"
            )

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the head does not answer, which `check` tells
                self._look()

    def _look(self) -> None:
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self.room = sum(_fit(self._ray, resources) for resources in alive)
        largest = max((resources.get("CPU", 0) for resources in alive), default=0)
        self.nodes = f"{len(alive)} nodes, of which the largest has {largest:g} CPUs"
        self.heard_at = time.monotonic()


def _fit(asked: RaySettings, resources: dict[str, float]) -> int:
    """How many workers fit on a node."""
    wanted = {"CPU": asked.worker_cpus, "GPU": asked.worker_gpus, "memory": asked.worker_memory_bytes or 0}
    limits = [int(resources.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount]
    return min(limits) if limits else int(resources.get("CPU", 0))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets what SIGTERM does; here that is for the command to say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text[:500] + " …" if len(text) > 500 else text).rstrip(".") + "."


@dataclass(eq=False)
class _Worker:
    """An actor. Ray starts it again when it dies: then its life is another one."""

    actor: Any
    number: int
    life: int = 0
    died_loading: int = 0  # times, one after the other


@dataclass(frozen=True)
class _Event:
    """A call has ended."""

    worker: _Worker
    life: int
    task: Task | None  # None: it was asked whether it is ready
    answer: bytes | None
    error: BaseException | None


@dataclass
class _Pool:
    """The workers of one run."""

    executor: RayExecutor
    cluster: _Cluster
    job: Job
    workers: dict[_Worker, None] = field(default_factory=dict)
    events: queue.SimpleQueue[_Event] = field(default_factory=queue.SimpleQueue)
    started: int = 0
    most_ready: int = 0  # workers at once
    alone_since: float = 0.0  # when there was a worker last
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
            yield from self._heed(self._ended(1.0), progress)
            self._look_around()

    def _employ(self, most: int) -> None:
        """Have as many workers as there are tasks for, and no more than `most`."""
        while len(self.workers) < min(most, self.dispatch.open):
            self.started += 1
            worker = _Worker(self.executor.start(self.encoded, self.check), self.started)
            self.workers[worker] = None
            self._call(worker, None)

    def _give(self) -> None:
        while (given := self.dispatch.give()) is not None:
            self._call(*given)

    def _call(self, worker: _Worker, task: Task | None) -> None:
        life = worker.life
        if task is None:
            ref = worker.actor.ready.remote()
        else:
            ref = worker.actor.score.remote(msgspec.msgpack.encode(task))

        def ended(future: Any) -> None:
            error = future.exception()
            self.events.put(_Event(worker, life, task, None if error else future.result(), error))

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
            assert event.answer is not None
            answer = msgspec.msgpack.decode(event.answer, type=Answer)
            _print(answer)
            raise_told(answer)
            if event.task is None:
                seen(self.check, answer.shared)
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
        """A worker's process, or its node, is gone. Ray starts it again, and says so by answering that it is ready."""
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
            raise WorkerError(
                f"A worker could not start on the Ray cluster: {_first_lines(error)} {GOES_ON}"
            ) from error
        worker.life += 1
        if event.task is None:
            worker.died_loading += 1
            if worker.died_loading >= MOST_TRIES:
                raise WorkerError(
                    f"A worker was lost {MOST_TRIES} times while it loaded the model: {_first_lines(error)} "
                    f"The model may take more memory than a worker has. {GOES_ON}"
                ) from error
        else:
            lost_tasks = self.dispatch.lose(worker, _first_lines(error))
            which = ", ".join(str(task.index) for task in lost_tasks)
            sys.stderr.write(
                f"sereno: a worker is lost; others score what it had (task {which}): {_first_lines(error)}\n"
            )
        if isinstance(error, exceptions.ActorDiedError):
            del self.workers[worker]  # for good: another one takes its place
        else:
            self._call(worker, None)

    def _look_around(self) -> None:
        """Raise WorkerError where nothing will come of it: the head is lost, or no worker comes."""
        if self.dispatch.ready:
            self.alone_since, self.told = time.monotonic(), False
        self.cluster.check()
        alone = time.monotonic() - self.alone_since
        if alone < TELL_SECONDS:
            return
        asked = self.executor._settings.ray
        wanted = [f"{asked.worker_cpus:g} CPUs"]
        wanted += [f"{asked.worker_gpus:g} GPUs"] if asked.worker_gpus else []
        wanted += [f"{asked.worker_memory_bytes:,} bytes of memory"] if asked.worker_memory_bytes else []
        says = (
            f"a worker asks for {' and '.join(wanted)}; the Ray cluster has {self.cluster.nodes}, which others may use."
        )
        if alone > WAIT_SECONDS:
            raise WorkerError(f"No worker was there for {alone:.0f} s: {says} {GOES_ON}")
        if not self.told:
            self.told = True
            sys.stderr.write(f"sereno: waiting for a worker: {says}\n")


def _never_began(error: BaseException) -> bool:
    """Whether the worker's class could not even be imported there: no other try would fare better."""
    return "creation task" in str(error)


def _print(answer: Answer) -> None:
    """What the model printed there."""
    if answer.printed:
        here = answer.host in ("", socket.gethostname())
        for line in answer.printed.splitlines():
            sys.stderr.write(f"{line}\n" if here else f"({answer.host}) {line}\n")
        sys.stderr.flush()
