"""Which worker is given which task next, where workers come, go and are lost. Bookkeeping alone: no cluster is in here.

Ray places workers and starts them again; this decides that few tasks are with each, and that the tasks of a worker that was
lost are scored by another. It is in memory what is in flight and no more, however many tasks there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sereno.batch.tasks import Task
from sereno.exceptions import WorkerError

MOST_TRIES = 4  # of a task; a worker is lost now and then, but a batch that kills each one that scores it never ends
IN_FLIGHT = 2  # tasks with a worker: the next one is there when one is done
SHOWN = 3  # files named in a message
GOES_ON = "Nothing was published; finished tasks are kept: start the run again and it goes on where it was."

W = TypeVar("W", bound=Hashable)


@dataclass(eq=False, slots=True)
class _Open(Generic[W]):
    """A task that is not done."""

    task: Task
    losses: list[tuple[W, str]] = field(default_factory=list)  # who was lost while scoring it, and how


class Dispatch(Generic[W]):
    """The open tasks of a run, and the workers (whatever tells one from another) that are ready for them.

    Tasks are drawn in the thread that calls `draw`, one at a time.
    """

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._is_drawn = False
        self._waiting: deque[_Open[W]] = deque()
        self._given: dict[W, deque[_Open[W]]] = {}  # what is with each ready worker, in the order it was given
        self._with_room: list[dict[W, None]] = [{} for _ in range(IN_FLIGHT)]  # ready workers, by how many they have
        self._in_flight = 0

    @property
    def open(self) -> int:
        """Tasks that were drawn and are not done."""
        return len(self._waiting) + self._in_flight

    @property
    def ready(self) -> int:
        """Workers that are ready."""
        return len(self._given)

    def draw(self, most: int) -> bool:
        """Draw a task, if fewer than `most` are open and there is one more; whether it did. Raises what drawing raises."""
        if self._is_drawn or self.open >= most:
            return False
        task = next(self._tasks, None)
        if task is None:
            self._is_drawn = True
            return False
        self._waiting.append(_Open(task))
        return True

    def join(self, worker: W) -> None:
        """A worker is ready."""
        self._given[worker] = deque()
        self._with_room[0][worker] = None

    def give(self, coming: int = 0) -> tuple[W, Task] | None:
        """The next task, and who is to score it; None: nobody has room, or nothing waits.

        `coming`: workers that are about to be ready. What they need is kept for them, and at the end what others need who
        are about to be done: nobody is given a task in store that another could begin.

        The worker with the fewest tasks is given it, and one that was lost over it before only if there is no other.
        """
        if not self._waiting:
            return None
        count = next((n for n, workers in enumerate(self._with_room) if workers), None)
        if count is None or (count and len(self._waiting) <= coming + (self.ready if self._is_drawn else 0)):
            return None
        workers = self._with_room[count]
        entry = self._waiting.popleft()
        lost = {worker for worker, _ in entry.losses}
        worker = next((w for w in workers if w not in lost), next(iter(workers)))
        del workers[worker]
        self._given[worker].append(entry)
        self._in_flight += 1
        if count + 1 < IN_FLIGHT:
            self._with_room[count + 1][worker] = None
        return worker, entry.task

    def done(self, worker: W, task: Task) -> None:
        """A worker has answered."""
        given = self._given[worker]
        entry = next(one for one in given if one.task is task)
        self._without_room(worker)
        given.remove(entry)
        self._in_flight -= 1
        self._with_room[len(given)][worker] = None

    def lose(self, worker: W, how: str) -> list[Task]:
        """A worker is gone, or begins anew: it is not ready any more, and others score what it had, which is returned.

        It is counted against the task that it was scoring, the first it had. Raises WorkerError once that was tried too often.
        """
        self._without_room(worker)
        given = self._given.pop(worker)
        self._in_flight -= len(given)
        if given:
            given[0].losses.append((worker, how))
            if len(given[0].losses) >= MOST_TRIES:
                raise WorkerError(_told(given[0]))
        self._waiting.extendleft(reversed(given))
        return [one.task for one in given]

    def _without_room(self, worker: W) -> None:
        for workers in self._with_room:
            workers.pop(worker, None)


def lost_too_often(task: Task, tries: int, how: str) -> str:
    """What there is to say of a task whose workers were lost, one after the other."""
    files = list(dict.fromkeys(piece.path for piece in task.pieces))
    shown = ", ".join(files[:SHOWN]) + (f" and {len(files) - SHOWN} more" if len(files) > SHOWN else "")
    rows = f", {task.rows:,} rows" if task.rows is not None else ""
    return (
        f"Task {task.index} ({shown}{rows}) was tried {tries} times, and each time its worker was lost: {how} "
        f"A batch of it may take more memory than a worker has, or end the process: see what is in those rows, or try a "
        f"smaller batch_rows. {GOES_ON}"
    )


def _told(entry: _Open[W]) -> str:
    how = " ".join(f"({number}) {how.rstrip('.')}." for number, (_, how) in enumerate(entry.losses, 1))
    return lost_too_often(entry.task, len(entry.losses), how)
