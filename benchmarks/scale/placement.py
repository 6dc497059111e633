"""Placement, simulated: what the executors' own bookkeeping does with many tasks on nodes that are lost at random.

Time is made up, the decisions are those of `sereno.adapters.executors.dispatch`. A node that is lost takes its workers' tasks with it; as
many workers come back later. One that was only cut off answers late what others have scored since: nobody listens.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from sereno.adapters.executors.dispatch import IN_FLIGHT, MOST_TRIES, Dispatch
from sereno.batch.tasks import Task

LOAD_SECONDS = 20.0  # until a worker is ready
AWAY_SECONDS = 300.0  # until a lost node, or another in its place, is there
NOTICE_SECONDS = 10.0  # until a loss is noticed
SPREAD = 0.3  # of the logarithm of tasks' durations
SLOW_NODES, SLOWER = 0.02, 3.0  # share of nodes that take so many times as long


@dataclass(frozen=True, kw_only=True)
class Cluster:
    nodes: int
    workers_each: int = 16
    lost_per_node_hour: float = 0.0
    seconds_each: float = 10.0  # of a task, on average

    @property
    def workers(self) -> int:
        return self.nodes * self.workers_each


@dataclass(kw_only=True)
class Outcome:
    tasks: int
    answers: int = 0
    twice: int = 0  # tasks that were answered more than once; there must be none
    nodes_lost: int = 0
    tries_lost: int = 0  # tasks given to a worker that was lost before it answered
    most_losses: int = 0  # of one task
    late: int = 0  # answers of workers that were given up
    most_open: int = 0  # tasks that were in memory at once
    seconds: float = 0.0  # made up: until the last answer
    ideal: float = 0.0  # were no node lost, and no worker ever idle
    real_seconds: float = 0.0  # of this process

    @property
    def longer(self) -> float:
        return self.seconds / self.ideal


@dataclass(eq=False)
class _Worker:
    """A life of a worker: one that comes back is another."""

    node: int
    queue: list[tuple[Task, float]] = field(default_factory=list)  # with the seconds each takes
    is_busy: bool = False
    is_cut_off: bool = False
    is_dead: bool = False


class Simulation:
    """One run of `tasks` tasks. `seed` decides everything."""

    def __init__(self, tasks: int, cluster: Cluster, seed: int = 1) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.outcome = Outcome(tasks=tasks)
        self.dispatch: Dispatch[_Worker] = Dispatch(self._tasks())
        self.slow = {n for n in range(cluster.nodes) if self.random.random() < SLOW_NODES}
        self.now = 0.0
        self.events: list[tuple[float, int, str, object]] = []
        self.numbers = count()
        self.workers: dict[int, list[_Worker]] = {n: [] for n in range(cluster.nodes)}
        self.answered: set[int] = set()
        self.losses: dict[int, int] = {}

    def go(self) -> Outcome:
        """Raises WorkerError, as a run would."""
        start = time.perf_counter()
        for node in range(self.cluster.nodes):
            self._at(LOAD_SECONDS * self.random.uniform(0.5, 1.5), "ready", node)
            self._expect_loss(node)
        while True:
            while self.dispatch.draw(IN_FLIGHT * self.cluster.workers):
                pass
            while (given := self.dispatch.give()) is not None:
                self._give(*given)
            self.outcome.most_open = max(self.outcome.most_open, self.dispatch.open)
            if not self.dispatch.open:
                break
            self.now, _, what, about = heapq.heappop(self.events)
            getattr(self, f"_{what}")(about)
        outcome = self.outcome
        outcome.seconds, outcome.real_seconds = self.now, time.perf_counter() - start
        speed = (
            sum(1 / SLOWER if n in self.slow else 1.0 for n in range(self.cluster.nodes)) * self.cluster.workers_each
        )
        outcome.ideal = LOAD_SECONDS + outcome.tasks * self.cluster.seconds_each / speed
        outcome.answers, outcome.most_losses = len(self.answered), max(self.losses.values(), default=0)
        return outcome

    def _tasks(self) -> Iterator[Task]:
        for index in range(self.outcome.tasks):
            yield Task(index=index, pieces=())

    def _at(self, moment: float, what: str, about: object) -> None:
        heapq.heappush(self.events, (moment, next(self.numbers), what, about))

    def _expect_loss(self, node: int) -> None:
        if rate := self.cluster.lost_per_node_hour / 3600:
            self._at(self.now + self.random.expovariate(rate), "loss", node)

    def _ready(self, node: object) -> None:
        assert isinstance(node, int)
        self.workers[node] = [_Worker(node) for _ in range(self.cluster.workers_each)]
        for worker in self.workers[node]:
            self.dispatch.join(worker)

    def _give(self, worker: _Worker, task: Task) -> None:
        """Also to one that is lost already, which is not known yet."""
        seconds = self.cluster.seconds_each * self.random.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        worker.queue.append((task, seconds * (SLOWER if worker.node in self.slow else 1.0)))
        self._work(worker)

    def _work(self, worker: _Worker) -> None:
        if worker.queue and not (worker.is_busy or worker.is_dead):
            worker.is_busy = True
            self._at(self.now + worker.queue[0][1], "answer", worker)

    def _answer(self, worker: object) -> None:
        assert isinstance(worker, _Worker)
        self.outcome.late += worker.is_cut_off
        if worker.is_cut_off or worker.is_dead:
            return
        task, _ = worker.queue.pop(0)
        worker.is_busy = False
        self.outcome.twice += task.index in self.answered
        self.answered.add(task.index)
        self.dispatch.done(worker, task)
        self._work(worker)

    def _loss(self, node: object) -> None:
        """A node is lost: half of them die, half are cut off and work on. It is noticed a moment later."""
        assert isinstance(node, int)
        workers = self.workers[node]
        if workers:
            self.outcome.nodes_lost += 1
            self.workers[node] = []
            self._at(self.now + NOTICE_SECONDS, "noticed", workers)
            self._at(self.now + AWAY_SECONDS + LOAD_SECONDS, "ready", node)
            is_cut_off = self.random.random() < 0.5
            for worker in workers:
                worker.is_cut_off, worker.is_dead = is_cut_off, not is_cut_off
        self._expect_loss(node)

    def _noticed(self, workers: object) -> None:
        assert isinstance(workers, list)
        for worker in workers:
            if worker.queue:
                task = worker.queue[0][0]
                self.outcome.tries_lost += 1
                self.losses[task.index] = self.losses.get(task.index, 0) + 1
            self.dispatch.lose(worker, f"Node {worker.node} was lost.")


def chance_of_failure(tasks: int, lost_per_node_hour: float, seconds_each: float) -> float:
    """That some task is lost MOST_TRIES times, though nothing is wrong with it."""
    once = lost_per_node_hour / 3600 * seconds_each
    return 1 - (1 - once**MOST_TRIES) ** tasks
