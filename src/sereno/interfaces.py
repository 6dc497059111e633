"""The seams: what the core asks of the outside, each with its promises and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sereno.batch.tasks import Job, Task, TaskResult
    from sereno.snapshots import Snapshot


class Executor(Protocol):
    """Scores tasks somewhere. One executor serves one run."""

    @property
    def workers(self) -> int:
        """How many tasks it scores at once."""
        ...

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """Score every task once and yield its result as it is done, in any order.

        `tasks` is drawn lazily, so scoring starts before planning ends. `progress` is told the number of
        rows of each batch that was scored. Raises what `score_task` raised, and WorkerError when a process died.
        """
        ...


class Export(Protocol):
    """A copy of what is published, in a form that other systems read."""

    @property
    def name(self) -> str:
        """As in the setting `exports`, without secrets: "parquet", "postgresql://bank/offers"."""
        ...

    def follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        """Make the outside show exactly the served snapshots, atomically; say whether anything changed.

        `served` is one snapshot (disposition `replace`) or one per data date, oldest first (`partition`).
        Idempotent: it looks at what is there and does what is missing, so whoever calls it next finishes what
        a crash left. Snapshots that are neither served nor in `keep` are removed afterwards.
        A reader sees what was served before or what is served now, never a mixture, never nothing.
        Raises ExportError.
        """
        ...
