"""The challenger's output: what a run does between its plan and its gates, in a folder of the comparison's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from sereno.artifacts import fetch_artifacts
from sereno.batch.finish import Outcome, finish
from sereno.batch.plan import make_plan
from sereno.batch.run import Watcher
from sereno.batch.tasks import Job, Task, sent_values
from sereno.exceptions import SourceError, WorkerError
from sereno.interfaces import Executor
from sereno.loader import fingerprint
from sereno.model import Model
from sereno.schedule import Interval

if TYPE_CHECKING:
    from sereno.settings import ModelSettings, Settings


class Clock:
    """Seconds by stage, told to the watcher: `with clock("score"): …`."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.watcher.stage(stage)
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(perf_counter() - start, 4)


def score(
    model: Model,
    settings: Settings,
    chosen: ModelSettings,
    executor: Executor,
    interval: Interval,
    folder: Path,
    clock: Clock,
) -> Outcome:
    """Score the interval and count every row. Raises what a run raises."""
    fetch_artifacts(model, settings.home)
    print_ = fingerprint(model)
    job = Job(
        model_file=str(model.file),
        home=str(settings.home.resolve()),
        values=sent_values(settings),
        secrets_folder=str(settings.secrets_folder),
        attempt=folder.name,
        parts_folder=str(folder / "parts"),
        work_folder=str(folder / "work"),
        batch_rows=chosen.batch_rows,
        fingerprint=print_,
        revision_of_model=print_,
        artifacts={name: str(one.path) for name, one in model.fetched.items()},
    )
    stopped = _Stopped()

    def progress(rows: int) -> None:
        stopped.check()
        clock.watcher.rows(rows)

    with clock("plan"):
        plan = make_plan(model, settings, chosen, interval, folder / "spool", executor.workers)
        if plan.rows is not None:
            clock.watcher.total(plan.rows)
    tasks: list[Task] = []

    def drawn() -> Iterator[Task]:
        for task in plan.tasks:
            tasks.append(task)
            yield task

    with stopped, clock("score"):
        results = {result.index: result.light for result in executor.map(job, drawn(), progress)}
    if not tasks:
        raise SourceError(f"{chosen.source or 'read'} gave no rows, so there is nothing to compare.")
    with clock("check"):
        return finish(
            model,
            tasks,
            [results[task.index] for task in tasks],
            policy=chosen.duplicates,
            attempt=folder.name,
            parts_folder=folder / "parts",
            work_folder=folder / "work",
            rejects_file=folder / "rejects.parquet",
            batch_rows=chosen.batch_rows,
        )


class _Stopped:
    """Ends a thread that still scores, at its next batch, once the block was left by an error: its folder is about to go."""

    def __init__(self) -> None:
        self._is_over = False

    def check(self) -> None:
        if self._is_over:
            raise WorkerError("The comparison was stopped.")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._is_over = kind is not None
