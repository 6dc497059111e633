"""A run, start to end: plan → score → finish → gates → publish → exports. Also what comes after: release, discard, roll back.

The one commit of `SnapshotStore.publish` is the only commit point. Before it nothing can be seen from outside; after it,
whoever comes next (any run, also one with nothing to do) finishes what a crash left: exports follow the table.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from sereno.adapters.exports import make_export
from sereno.adapters.local import Ahead, LocalExecutor, cores
from sereno.batch.attempts import Attempts, Report
from sereno.batch.finish import Outcome, digest, finish
from sereno.batch.gates import Gate, judge
from sereno.batch.plan import Plan, make_plan
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.config import ModelSettings, Settings
from sereno.exceptions import (
    ExportError,
    NotFoundError,
    OlderDataError,
    PublishError,
    RunError,
    SerenoError,
    SettingsError,
    SourceError,
)
from sereno.failpoints import failpoint
from sereno.interfaces import Export
from sereno.loader import fingerprint
from sereno.model import Model
from sereno.schedule import Interval, interval_for, last_interval
from sereno.scoring import open_scorer
from sereno.snapshots import Part, Publication, Snapshot, SnapshotStore, State
from sereno.storage import told

AS_IT_WAS = "What was in service stays. Mend that, then try again."


class Watcher(Protocol):
    """Who is told how a run gets on."""

    def stage(self, name: str) -> None:
        """A stage begins: plan, score, check, publish, export."""

    def rows(self, done: int) -> None:
        """So many rows more were scored. Called from several threads."""

    def total(self, rows: int) -> None:
        """How many rows there are in all, where that is known before they are read."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str) -> None:
        pass

    def rows(self, done: int) -> None:
        pass

    def total(self, rows: int) -> None:
        pass


class Home:
    """What belongs to one model below a home: its table, its attempts, its exports."""

    def __init__(self, settings: Settings, name: str, chosen: ModelSettings | None = None) -> None:
        self.path = settings.home
        self.name = name
        self.chosen = chosen or settings.model(name, {})
        self.store = SnapshotStore(self.path, name)
        self.attempts = Attempts(self.path, name)

    def exports(self) -> list[Export]:
        return [make_export(setting, home=self.path, model=self.name) for setting in self.chosen.exports]

    def follow(self, state: State) -> list[str]:
        """Make every export show what is served; say which ones changed. Raises ExportError after all were tried."""
        if not state.served:
            return []
        self.store.flush(state.version)
        changed, failed = [], []
        kept = state.kept(datetime.now(UTC))
        for export in self.exports():
            try:
                if export.follow(state.served, kept):
                    changed.append(export.name)
            except ExportError as error:
                failed.append(f"{export.name}: {error}")
        if failed:
            raise ExportError(
                f"Version {state.served[-1].number} is in service, but {len(failed)} of its exports could not follow: "
                f"{' '.join(failed)}"
            )
        return changed

    def clean(self) -> None:
        self.store.clean(self.attempts.needed)


def run(
    model: Model,
    settings: Settings,
    *,
    when: str | None = None,
    force: bool = False,
    now: datetime | None = None,
    watcher: Watcher | None = None,
    ahead: Ahead | None = None,
) -> Report:
    """One run of an interval (by default the last one that ended). The report's state is published, held or nothing.

    `force` scores and publishes again even where a no-op, an older data date or a withdrawn revision would stop it.
    `ahead` is a worker that was started before the model file was read.
    Raises SerenoError; the report of the failed attempt stays, and so do its finished tasks.
    """
    if model.file is None:
        raise RunError("A model that was declared in a notebook cannot run in batch: save it as a .py file first.")
    chosen = settings.model(model.name, model.declared, model.file.parent)
    moment = now or datetime.now(UTC)
    interval = (
        interval_for(chosen.schedule, chosen.time_zone, when, moment)
        if when
        else last_interval(chosen.schedule, chosen.time_zone, moment)
    )
    home = Home(settings, model.name, chosen)
    return _Run(model, settings, home, interval, force, watcher or Silent(), ahead).go()


class _Run:
    def __init__(
        self,
        model: Model,
        settings: Settings,
        home: Home,
        interval: Interval,
        force: bool,
        watcher: Watcher,
        ahead: Ahead | None,
    ) -> None:
        self.model, self.settings, self.home, self.interval = model, settings, home, interval
        self.force, self.watcher, self.ahead = force, watcher, ahead
        self.chosen = home.chosen
        self.workers = settings.workers or cores()

    def go(self) -> Report:
        home = self.home
        with told(f"The home {home.path} cannot be used"), home.attempts.exclusive(self.interval.key):
            home.exports()  # one that cannot be made is told now, not once the table has moved on
            state = home.store.state()
            home.attempts.reconcile(state.attempts, self.interval.key)
            behind = self._catch_up(state)
            self.report = home.attempts.create(self.interval)
            try:
                with told("The run stopped"):
                    self._go(state)
            except SerenoError as error:
                if self.report.version is None:  # else it is published, and an export failed
                    self.report.state = "failed"
                self.report.says = str(error)
                with contextlib.suppress(OSError):  # the first error is the one to tell, say that the disk is full
                    self._end()
                raise
            if self.report.state == "held" and behind:
                self.report.says += f" Besides: {behind}"
            with told(*self._after_all()):
                self._end()
            if self.report.state == "nothing" and behind:
                raise behind
            return self.report

    def _catch_up(self, state: State) -> ExportError | None:
        """Finish what a crash or a failed export left. Should that fail again, this run's table is no worse for it."""
        try:
            self.home.follow(state)
        except ExportError as error:
            return error
        return None

    def _after_all(self) -> tuple[str, str]:
        """What to tell of an error after everything that counts is done."""
        if self.report.state == "published":
            what = f"Version {self.report.version} is published, but the run could not be concluded"
        else:
            what = "The run could not be concluded"
        return what, "Mend that; the next `sereno run` (also one with nothing to do) concludes it."

    def _end(self) -> None:
        home, report = self.home, self.report
        report.ended_at = datetime.now(UTC)
        if report.state == "nothing":
            home.attempts.forget(report)
        else:
            home.attempts.save(report)
        if report.state in ("published", "held"):
            home.attempts.settle(report)
        if report.state != "failed":
            home.clean()
        failpoint("run_end")

    def _go(self, state: State) -> None:
        report = self.report
        report.fingerprint = fingerprint(self.model)
        report.source = self.chosen.source or "read"
        self._refuse_older(state)
        with self._stage("plan"):
            plan = self._plan()
            failpoint("plan")
        if plan.known_before and self._nothing_to_do(plan, state):
            return
        if plan.rows is not None:
            self.watcher.total(plan.rows)
        with self._stage("score"):
            tasks, results = self._score(plan)
            failpoint("scored")
        if not plan.known_before and self._nothing_to_do(plan, state):
            return
        with self._stage("check"):
            outcome = self._finish(tasks, results)
            failpoint("gate_before")
            held = self._judge(outcome, state)
            failpoint("gate_after")
        if held:
            report.state, report.says = "held", held
            return
        with self._stage("publish"):
            snapshot = self.home.store.publish(publication_of(report), force=self.force)
            report.state, report.version = "published", snapshot.number
        with self._stage("export"):
            self.home.follow(self.home.store.state())

    def _refuse_older(self, state: State) -> None:
        """Before hours of scoring, not after; publishing looks again."""
        newest = state.newest
        older = newest is not None and newest.data_date > self.interval.data_date
        if newest and older and self.chosen.disposition == "replace" and not self.force:
            known = state.published_key(self.interval.key)
            if known is not None:
                return  # most likely a no-op, which is decided by the revision
            raise OlderDataError(
                f"Data date {self.interval.data_date} is older than {newest.data_date}, which is in service (version "
                f"{newest.number}). Nothing was scored. `sereno run --force` puts the older one in service."
            )

    def _plan(self) -> Plan:
        spool = self.home.attempts.work(self.report) / "spool"
        return make_plan(self.model, self.settings, self.chosen, self.interval, spool, self.workers)

    @property
    def _revision_of_model(self) -> str:
        """What a finished task depends on beside its rows: the model, and the values that `load` is given."""
        assert self.model.load_function is not None
        asked = {p.name for p in self.model.parameters(self.model.load_function)}
        values = {n: v.value for n, v in self.settings.values.items() if n in asked}
        return digest(self.report.fingerprint, json.dumps(values, sort_keys=True, default=str))

    def _nothing_to_do(self, plan: Plan, state: State) -> bool:
        """Whether this very revision was published already (or withdrawn); sets the report's revision."""
        if not plan.inputs:
            raise SourceError(f"{self.report.source} gave no rows. Nothing was published; see what feeds it.")
        report = self.report
        report.revision = digest(self._revision_of_model, plan.input_digest, self.chosen.duplicates)
        known = state.published(report.run_key, report.revision)
        if known is None or self.force:
            return False
        if known.number in state.withdrawn:
            says = (
                f"Version {known.number} is this very revision and was rolled back: it is not published again. "
                f"`sereno rollback {self.model.name} --to {known.number}` or `sereno run --force` would."
            )
        elif not self.model.artifacts:
            return False  # a model that declares no artefacts may have changed where nobody sees it
        else:
            says = (
                f"Nothing to do: the same input, model and settings were published as version {known.number} "
                f"({known.published_at:%Y-%m-%d %H:%M} UTC). `--force` scores and publishes again."
            )
        report.state, report.version, report.says = "nothing", known.number, says
        return True

    def _score(self, plan: Plan) -> tuple[list[Task], list[TaskResult]]:
        home, report = self.home, self.report
        job = self._job()
        finished = home.attempts.finished_tasks(report.run_key)
        tasks: list[Task] = []
        results: dict[int, TaskResult] = {}

        def unfinished() -> Iterator[Task]:
            for task in plan.tasks:
                tasks.append(task)
                known = finished.get(task.key(job))
                if known is None:
                    yield task
                else:
                    results[task.index] = replace(known, index=task.index)
                    home.attempts.adopt(report, results[task.index])
                    report.resumed_tasks += 1
                    self.watcher.rows(known.rows_in)

        executor = LocalExecutor(self.workers, lambda: open_scorer(self.model, self.settings), self.ahead)
        for result in executor.map(job, unfinished(), self.watcher.rows):
            results[result.index] = result
        report.tasks = len(tasks)
        report.workers = max(1, min(self.workers, len(tasks) - report.resumed_tasks))
        ordered = [results[t.index] for t in tasks]
        for result in ordered:
            for name, seconds in result.seconds.items():
                report.worker_seconds[name] = report.worker_seconds.get(name, 0.0) + seconds
        return tasks, ordered

    def _job(self) -> Job:
        settings, report = self.settings, self.report
        return Job(
            model_file=str(self.model.file),
            home=str(settings.home),
            values={n: (v.value, str(v.base)) for n, v in settings.values.items()},
            secrets_folder=str(settings.secrets_folder),
            attempt=report.attempt,
            parts_folder=str(self.home.store.folder / report.attempt),
            work_folder=str(self.home.attempts.work(report)),
            batch_rows=self.chosen.batch_rows,
            revision_of_model=self._revision_of_model,
            threads=max(1, cores() // self.workers),
        )

    def _finish(self, tasks: Sequence[Task], results: Sequence[TaskResult]) -> Outcome:
        store, report = self.home.store, self.report
        outcome = finish(
            self.model,
            tasks,
            results,
            policy=self.chosen.duplicates,
            attempt=report.attempt,
            parts_folder=store.folder / report.attempt,
            rejects_file=store.folder / "_rejects" / f"{report.attempt}.parquet",
            batch_rows=self.chosen.batch_rows,
        )
        report.rows_in, report.predictions, report.rejects = outcome.rows_in, outcome.answered, outcome.rejects
        report.uncounted_rejects, report.reasons = outcome.uncounted, outcome.reasons
        report.profile = outcome.profile
        report.parts = list(outcome.parts)
        report.keys = tuple(c.name for c in self.model.inputs.keys)
        report.disposition = self.chosen.disposition
        if outcome.rejects_file:
            report.rejects_file = str(outcome.rejects_file.relative_to(store.folder))
            report.rejects_sha256 = outcome.rejects_sha256
        return outcome

    def _judge(self, outcome: Outcome, state: State) -> str:
        self.report.gates = judge_report(self.report, self.chosen, state)
        return _failed_gates(self.report)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.watcher.stage(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.report.seconds[name] = round(perf_counter() - start, 4)


def judge_report(report: Report, chosen: ModelSettings, state: State) -> list[Gate]:
    """The gates' verdicts on a finished attempt, against what is served now."""
    others = [s for s in state.served if s.data_date <= report.data_date]
    return judge(
        chosen.gates,
        rows_in=report.rows_in,
        rejects=report.rejects - report.uncounted_rejects,
        answered=report.predictions,
        profile=report.profile,
        last=others[-1] if others else None,
    )


def _failed_gates(report: Report) -> str:
    failed = [f"{g.name}: {g.says}" for g in report.gates if not g.passed]
    if not failed:
        return ""
    return (
        f"Held by {len(failed)} gate{'s' if len(failed) > 1 else ''} ({'; '.join(failed)}). What was in service stays. "
        f"Look at it (`sereno show {report.attempt}`), then `sereno release {report.attempt}` or `sereno discard {report.attempt}`."
    )


def publication_of(report: Report) -> Publication:
    """What a finished attempt would publish; all of it stands in its report."""
    import pyarrow.parquet as pq

    return Publication(
        attempt=report.attempt,
        run_key=report.run_key,
        revision=report.revision,
        data_date=report.data_date,
        data_time=report.data_time,
        fingerprint=report.fingerprint,
        rows=report.predictions,
        rejects=report.rejects,
        disposition=report.disposition,
        keys=report.keys,
        schema=pq.read_schema(report.parts[0].path),
        parts=tuple(
            (Part(path=Path(p.path), rows=p.rows, size=p.size, sha256=p.sha256), p.stats) for p in report.parts
        ),
        rejects_file=report.rejects_file,
        rejects_sha256=report.rejects_sha256,
    )


def release(home: Home, name: str, *, who: str = "") -> Report:
    """Publish a held run on the operator's word; its gates are judged again against what is served now, for the record.

    Raises PublishError where the run is not held, and OlderDataError where a newer data date is in service.
    """
    report = home.attempts.find(name)
    with told(f"The home {home.path} cannot be used", AS_IT_WAS), home.attempts.exclusive(report.run_key):
        report = home.attempts.find(report.attempt)
        if report.state == "held":  # a release that died after its commit published it: publishing finds that out
            state = home.store.state()
            if report.attempt not in state.attempts:
                report.gates = judge_report(report, home.chosen, state)
            failpoint("release")
            snapshot = home.store.publish(publication_of(report), force=False)
            report.state, report.version = "published", snapshot.number
            report.says = f"Released by {who or 'an operator'} at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
            home.follow(home.store.state())
            home.attempts.save(report)
            home.attempts.settle(report)
            home.clean()
            return report
        raise _not_held(home, report)


def discard(home: Home, name: str) -> Report:
    """Drop a held run; what is in service stays. Raises PublishError where the run is not held."""
    report = home.attempts.find(name)
    with told(f"The home {home.path} cannot be used", AS_IT_WAS), home.attempts.exclusive(report.run_key):
        home.attempts.reconcile(home.store.state().attempts, report.run_key)
        report = home.attempts.find(report.attempt)
        if report.state != "held":
            raise _not_held(home, report)
        report.state, report.says = "discarded", "Discarded by an operator."
        home.attempts.save(report)
        home.attempts.drop_work(report)
        home.clean()
        return report


def _not_held(home: Home, report: Report) -> PublishError:
    return PublishError(
        f"Run {report.attempt} is {report.state}, not held. `sereno runs {home.name}` shows which ones are."
    )


def rollback(
    home: Home, *, to: int | None = None, day: str | None = None, why: str = "", who: str = ""
) -> tuple[Snapshot, Snapshot | None]:
    """Put an older snapshot back in service, exports included. Returns what was in service and what is now.

    Raises NotFoundError, PublishError, and ExportError where an export could not follow.
    """
    chosen = None
    if day is not None:
        try:
            chosen = date.fromisoformat(day)
        except ValueError:
            raise SettingsError(f"{day!r} is no date; write it as 2026-05-01.") from None
    with told(f"The home {home.path} cannot be used", AS_IT_WAS):
        state = home.store.state()
        if state.last_rollback and to in (None, state.last_rollback[1]) and home.follow(state):
            # One that died, or whose exports failed, after its commit: this one finishes it, and goes no further back.
            rolled_back, now_served = state.last_rollback
            return state.snapshots[rolled_back], state.snapshots[now_served] if now_served else None
        before, served = home.store.rollback(to=to, day=chosen, why=why, who=who)
        home.follow(home.store.state())
    return before, served


def get(home: Home, key: Sequence[str], *, version: int | None = None) -> dict[str, Any]:
    """The published prediction of one key, given as texts in declared order: key, outputs, version, data date, age.

    Raises NotFoundError.
    """
    from sereno.snapshots import find_row

    state = home.store.state()
    if state.newest is None:
        raise NotFoundError(f"No snapshot of model {home.name!r} is published. `sereno run` publishes the first.")
    snapshots = list(reversed(state.served)) if version is None else [home.store.kept_snapshot(state, version)]
    for snapshot in snapshots:  # by date: the newest date that has the key
        row = find_row(snapshot, key)
        if row is not None:
            age = (datetime.now(UTC) - snapshot.data_time).total_seconds()
            return row | {
                "version": snapshot.number,
                "data_date": snapshot.data_date.isoformat(),
                "data_time": snapshot.data_time.isoformat(),
                "age_seconds": round(age),
            }
    shown = ", ".join(key)
    raise NotFoundError(
        f"Key {shown} is not in version {snapshots[0].number} of {home.name!r} ({snapshots[0].rows:,} rows)."
    )
