"""A run, start to end: plan → score → finish → gates → publish → exports.

The one commit of `SnapshotStore.publish` is the only commit point. Before it nothing can be seen from outside; after it,
whoever comes next (any run, also one with nothing to do) finishes what a crash left: exports follow the table.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Literal, Protocol

from sereno.artifacts import fetch_artifacts
from sereno.batch.attempts import Report
from sereno.batch.finish import digest, finish
from sereno.batch.judging import check_columns, judge_report
from sereno.batch.lease import hold
from sereno.batch.own_gates import bind_own, judge_own
from sereno.batch.plan import Plan, make_plan
from sereno.batch.profile import StoredProfile, store_profile
from sereno.batch.publish import failed_gates, publication_of
from sereno.batch.record import Record, but_not_told, tell_published, withdrawn
from sereno.batch.tasks import Job, Task, TaskResult, sent_values
from sereno.exceptions import (
    BusyError,
    ExportError,
    LedgerError,
    OlderDataError,
    RunError,
    SerenoError,
    SettingsError,
    SourceError,
    StorageError,
)
from sereno.failpoints import failpoint
from sereno.gate import Profile
from sereno.home import Home
from sereno.interfaces import Executor
from sereno.loader import fingerprint
from sereno.model import Model
from sereno.places import name_below
from sereno.schedule import Interval, interval_for, interval_of_span, last_interval, next_end
from sereno.scoring import published_schema
from sereno.settings import Settings
from sereno.snapshots import Snapshot, State
from sereno.storage import told
from sereno.typed import typed

Once = Literal["published", "ever"]


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


def run(
    model: Model,
    settings: Settings,
    executor: Executor,
    *,
    when: str | None = None,
    force: bool = False,
    now: datetime | None = None,
    watcher: Watcher | None = None,
    who: str = "",
    span: str | None = None,
    once: Once | None = None,
) -> Report:
    """One run of an interval (by default the last one that ended). The report's state is published, held or nothing.

    `force` scores and publishes again even where a no-op, an older data date or a withdrawn revision would stop it.
    `span`: the very interval that is meant, in place of `when`, as `schedule.span` writes it. `once`: nothing is scored where
    the interval is published, whatever its revision ("ever": even if that was rolled back since).
    `who` started it, for the ledger. Raises SerenoError; the report of the failed attempt stays, and so do its finished
    tasks.
    """
    if model.file is None:
        raise RunError("A model that was declared in a notebook cannot run in batch: save it as a .py file first.")
    chosen = settings.model(model.name, model.declared, model.file.parent)
    check_columns(model, settings, chosen)
    moment = now or datetime.now(UTC)
    if span:
        interval = interval_of_span(chosen.schedule, chosen.time_zone, span, moment)
    elif when:
        interval = interval_for(chosen.schedule, chosen.time_zone, when, moment)
    else:
        interval = last_interval(chosen.schedule, chosen.time_zone, moment)
    if chosen.disposition == "partition" and not interval.alone:
        raise SettingsError(
            f'disposition = "partition" keeps one partition per data date, but the schedule {chosen.schedule!r} has several '
            'runs a day, each of which would replace the day\'s. Use disposition = "replace", or one run a day.'
        )
    home = Home(settings, model.name, chosen)
    with contextlib.closing(executor):
        return _Run(model, settings, executor, home, interval, force, watcher or Silent(), who, once).go()


@contextlib.contextmanager
def _nothing_published() -> Iterator[None]:
    """A ledger that fails this early says so, too."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"{error} Nothing was published by this run.", damaged=error.damaged) from error


class _Run:
    def __init__(
        self,
        model: Model,
        settings: Settings,
        executor: Executor,
        home: Home,
        interval: Interval,
        force: bool,
        watcher: Watcher,
        who: str,
        once: Once | None = None,
    ) -> None:
        self.model, self.settings, self.home, self.interval = model, settings, home, interval
        self.executor, self.force, self.watcher, self.who, self.once = executor, force, watcher, who, once
        self.chosen = home.chosen

    def go(self) -> Report:
        home, key = self.home, self.interval.key
        with home.used(), home.attempts.exclusive(key), home.ledger() as self.ledger:
            home.exports()  # one that cannot be made is told now, not once the table has moved on
            home.shared_lookups()  # likewise
            with contextlib.ExitStack() as lease:
                with _nothing_published():
                    self.held = lease.enter_context(hold(self.ledger, home.name, key))
                    state = home.store.state()
                    home.attempts.reconcile(state.attempts, key)
                    tell_published(self.ledger, state)
                    self.record = Record(self.ledger, home.name, self.interval, who=self.who, held=self.held)
                    self.record.reconcile(state, home.attempts)
                return self._attempt(state)

    def _attempt(self, state: State) -> Report:
        behind = self._catch_up()
        self.report = self.home.attempts.create(self.interval)
        self.snapshot: Snapshot | None = None  # that it published, or found published
        try:
            with told("The run stopped"):
                self._go(state)
        except SerenoError as failed:
            error = self._or_lost(failed) if self.report.version is None else failed
            if self.report.version is None:  # else it is published, and an export failed
                self.report.state = "failed"
            self.report.says = str(error)
            with contextlib.suppress(OSError, StorageError):  # the first error is the one to tell, say a full disk
                self._end()
            self._tell_failure(error, state, behind)
            if error is not failed:
                raise error from failed
            raise
        except BaseException as error:  # a mistake of ours, or Ctrl-C: the report is that of an interrupted attempt
            self._tell_failure(error, state, behind)
            raise
        if self.report.state == "held" and behind:
            self.report.says += f" Besides: {behind}"
        with told(*self._after_all()):
            self._end()
            self._tell_end(state, behind)
        if self.report.state == "nothing" and behind:
            raise behind
        return self.report

    def _or_lost(self, error: SerenoError) -> SerenoError:
        """Whoever took the run over has removed what this one worked on: then that is what there is to tell."""
        return self.held.lost() or error

    def _tell_failure(self, error: BaseException, state: State, behind: SerenoError | None) -> None:
        with contextlib.suppress(LedgerError):  # the first error is the one to tell; the next run tells the ledger
            if self.snapshot is not None and isinstance(error, SerenoError):
                self.record.published(self.snapshot, behind=error)
            else:
                self.record.failed(error, state, behind)

    @property
    def _next_due(self) -> datetime:
        return next_end(self.chosen.schedule, self.chosen.time_zone, self.interval.data_time)

    def _tell_end(self, state: State, behind: SerenoError | None) -> None:
        """Tell the ledger, and those who only look at the status file. Raises LedgerError; what was done is done."""
        report = self.report
        if report.state == "nothing" and not behind:
            self.home.succeeded(self._next_due)
        if report.state == "held":
            with but_not_told(f"Run {report.attempt} is held: see `{self._typed('show', report.attempt)}`."):
                self.record.held(report.attempt, report.says)
        elif self.snapshot is not None:
            failed = behind if report.state == "nothing" else None  # else exports have followed since
            with but_not_told(f"Version {report.version} is published."):
                self.record.published(self.snapshot, withdrawn(state, self.snapshot.number), failed)
        failpoint("ledger_ended")

    def _typed(self, *words: str) -> str:
        return typed(self.settings.given_options, *words)

    def _catch_up(self) -> SerenoError | None:
        """Finish what a crash or a failed export left. Should that fail again, this run's table is no worse for it."""
        try:
            self.home.follow()
        except (ExportError, BusyError) as error:
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
        if report.state == "held":
            from sereno.report_page import add_page  # others have no use for it

            if trouble := add_page(home, report):
                report.says += f" Besides: {trouble}"
        if report.state == "nothing":
            home.attempts.forget(report)
        else:
            home.attempts.save(report)
        if report.state in ("published", "held"):
            home.attempts.settle(report)
        if report.state != "failed":
            home.clean(self.ledger)
        failpoint("run_end")

    def _go(self, state: State) -> None:
        report = self.report
        if self._is_published(state):
            return
        fetch_artifacts(self.model, self.settings.home, anew=True)
        report.artifacts = {name: one.origin for name, one in sorted(self.model.fetched.items())}
        report.fingerprint = fingerprint(self.model)
        report.source = self.chosen.source or "read"
        if state.published_key(report.run_key) is None:
            self._begin()  # else it is most likely a no-op, which is not worth an entry
        self._refuse_older(state, may_be_nothing=state.published_key(report.run_key) is not None)
        self.home.store.refuse_other_kind(state, self.chosen.disposition, published_schema(self.model))
        with self._stage("plan"):
            plan = self._plan()
            if state.published_key(report.run_key):
                plan.draw()  # it may be published already: better to know before hours of scoring than after
            failpoint("plan")
        if plan.known_before and self._nothing_to_do(plan, state):
            return
        self._begin()
        self._refuse_older(state, may_be_nothing=False)
        if plan.rows is not None:
            self.watcher.total(plan.rows)
        with self._stage("score"):
            tasks, results = self._score(plan)
            failpoint("scored")
        if not plan.known_before and self._nothing_to_do(plan, state):
            return
        with self._stage("check"):
            self._finish(tasks, results)
            del tasks, results  # of many thousands, they take memory that the commit needs
            failpoint("gate_before")
            counted = Profile(inputs=report.inputs_profile, outputs=report.profile)
            own = judge_own(self.own_gates, self.model, counted, report.parts)
            report.gates = judge_report(report, self.home, self.home.store.state(), own)
            held = failed_gates(report, self.settings.given_options)
            failpoint("gate_after")
        self.held.check()
        if held:
            report.state, report.says = "held", held
            return
        with self._stage("publish"):
            self._publish(state)
        if report.state == "nothing":
            return
        with self._stage("export"), told(*self._after_all()):
            self.executor.close()  # not before the commit, which would wait for it, nor once exports take long
            self.home.follow(succeeded=True, due_at=self._next_due)

    def _is_published(self, state: State) -> bool:
        """Whether that is all that was asked for: this interval, as any revision. Then the run has nothing to do."""
        if self.once is None or self.force:
            return False
        key, end = self.interval.key, self.interval.data_time
        found = sorted(n for n, s in state.snapshots.items() if (s.run_key, s.data_time) == (key, end))
        standing = [number for number in found if number not in state.withdrawn]
        if not standing and not (found and self.once == "ever"):
            return False
        known = state.snapshots[(standing or found)[-1]]
        if standing:
            says = (
                f"Nothing to do: this interval was published as version {known.number} "
                f"({known.published_at:%Y-%m-%d %H:%M} UTC). `--force` scores and publishes again."
            )
        else:
            says = (
                f"Version {known.number} of this interval was rolled back: no schedule publishes it again. "
                f"`{self._typed('rollback', self.model.name, '--to', str(known.number))}` or `sereno run` would."
            )
        self.report.state, self.report.version, self.report.says = "nothing", known.number, says
        self.snapshot = known
        return True

    def _begin(self) -> None:
        """There is something to do: the ledger is told, once."""
        with _nothing_published():
            begins = self.record.running(self.report.attempt)
        if begins:
            failpoint("ledger_running")

    def _publish(self, state: State) -> None:
        """The commit; or nothing, where another process did this very run since this one planned."""
        report = self.report
        snapshot = self.home.store.publish(
            publication_of(report, self.home.token(self.held.lease)),
            force=self.force,
            known=state.snapshots,
            confirm=self.held.confirm,
        )
        self.snapshot, report.version = snapshot, snapshot.number
        if snapshot.attempt == report.attempt:
            report.state = "published"
        else:
            report.state = "nothing"
            report.says = (
                f"Nothing to do: {snapshot.attempt} published the same input, model and settings as version "
                f"{snapshot.number} while this run went on."
            )

    def _refuse_older(self, state: State, *, may_be_nothing: bool) -> None:
        """Before hours of scoring, not after; publishing looks again."""
        newest = state.newest
        older = newest is not None and newest.data_time > self.interval.data_time
        # what was published before is most likely a no-op, which is decided by the revision
        if newest and older and self.chosen.disposition == "replace" and not self.force and not may_be_nothing:
            raise OlderDataError(
                f"Data date {self.interval.data_date} is older than {newest.data_date}, which is in service (version "
                f"{newest.number}). Nothing was scored. `sereno run --force` puts the older one in service."
            )

    def _plan(self) -> Plan:
        self.own_gates = bind_own(self.model, self.settings)  # what they lack is told before hours of scoring
        spool = self.home.attempts.work(self.report) / "spool"
        return make_plan(self.model, self.settings, self.chosen, self.interval, spool, self.executor.workers)

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
        later = (s for n, s in state.snapshots.items() if n > known.number and n not in state.withdrawn)
        if known.number in state.withdrawn:
            says = (
                f"Version {known.number} is this very revision and was rolled back: it is not published again. "
                f"`{self._typed('rollback', self.model.name, '--to', str(known.number))}` or `sereno run --force` would."
            )
        elif any(s.run_key == report.run_key for s in later):
            return False  # another revision took its place, and this one is wanted back
        elif not self.model.artifacts:
            return False  # a model that declares no artefacts may have changed where nobody sees it
        else:
            says = (
                f"Nothing to do: the same input, model and settings were published as version {known.number} "
                f"({known.published_at:%Y-%m-%d %H:%M} UTC). `--force` scores and publishes again."
            )
        report.state, report.version, report.says = "nothing", known.number, says
        self.snapshot = known
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
                    result = home.attempts.adopt(report, known, task.index)
                    results[task.index] = result.light
                    report.resumed_tasks += 1
                    self.watcher.rows(result.rows_in)

        for result in self.executor.map(job, unfinished(), self.watcher.rows):
            results[result.index] = result.light
            self.held.check()  # it may have stood still for hours
        report.tasks = len(tasks)
        report.workers = max(1, min(self.executor.workers, len(tasks) - report.resumed_tasks))
        ordered = [results[t.index] for t in tasks]
        for result in ordered:
            for name, seconds in result.seconds.items():
                report.worker_seconds[name] = report.worker_seconds.get(name, 0.0) + seconds
        return tasks, ordered

    def _job(self) -> Job:
        settings, report = self.settings, self.report
        return Job(
            model_file=str(self.model.file),
            # resolved, as the folders below: a node may have mounted another one at a link's place
            home=str(self.home.path),
            values=sent_values(settings),
            secrets_folder=str(settings.secrets_folder),
            attempt=report.attempt,
            parts_folder=str(self.home.store.folder / report.attempt),
            work_folder=str(self.home.attempts.work(report)),
            batch_rows=self.chosen.batch_rows,
            fingerprint=report.fingerprint,
            revision_of_model=self._revision_of_model,
            artifacts={name: str(one.path) for name, one in self.model.fetched.items()},
        )

    def _finish(self, tasks: Sequence[Task], results: Sequence[TaskResult]) -> None:
        store, report = self.home.store, self.report
        outcome = finish(
            self.model,
            tasks,
            results,
            policy=self.chosen.duplicates,
            attempt=report.attempt,
            parts_folder=store.folder / report.attempt,
            work_folder=self.home.attempts.work(report),
            rejects_file=store.folder / "_rejects" / f"{report.attempt}.parquet",
            batch_rows=self.chosen.batch_rows,
        )
        report.rows_in, report.predictions, report.rejects = outcome.rows_in, outcome.answered, outcome.rejects
        report.uncounted_rejects, report.reasons = outcome.uncounted, outcome.reasons
        report.profile, report.inputs_profile = outcome.profile, outcome.inputs_profile
        stored = StoredProfile(attempt=report.attempt, inputs=outcome.inputs_profile, outputs=outcome.profile)
        with told("The profile could not be written"):
            report.profile_file, report.profile_sha256 = store_profile(store.folder, stored)
        report.parts = list(outcome.parts)
        report.keys = tuple(c.name for c in self.model.inputs.keys)
        report.disposition = self.chosen.disposition
        if outcome.rejects_file:
            report.rejects_file = name_below(outcome.rejects_file, store.folder)
            report.rejects_sha256 = outcome.rejects_sha256

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        if self.snapshot is None:
            self.held.check()
        self.watcher.stage(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.report.seconds[name] = round(perf_counter() - start, 4)
