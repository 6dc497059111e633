"""Attempts: every try of a run leaves a folder with its report, so that it can be shown, resumed, released or discarded.

What must last, the report and its page, lies where the table lies. The work (finished tasks, spooled rows) lies on this
machine: where the table is in an object store, another machine begins anew.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from sereno.batch.gates import Gate
from sereno.batch.parts import WrittenPart
from sereno.batch.profile import Profile, stored_profile
from sereno.batch.tasks import PARTS as UPLOADS
from sereno.batch.tasks import TaskResult, result_file
from sereno.exceptions import NotFoundError, StorageError
from sereno.places import ObjectPath, Place, place_of, write_place
from sereno.presence import Contents, sizes
from sereno.schedule import Interval
from sereno.storage import exclusive, is_held, run_lock, write_atomically

RunState = Literal["running", "held", "published", "failed", "nothing", "discarded"]
KEPT_FOR = timedelta(days=7)  # the finished tasks of an attempt that nobody resumes
RESUMED_FOR = timedelta(days=6)  # where other machines remove its parts once they are older than that
LEFT_ALONE = timedelta(hours=1)  # after a report was written: another machine may be about to publish it
REPORT = "report.json"
MOST_PARTS, PARTS = 100, "parts.json"  # in a report; and where more of them are, beside it
WORK = ("tasks", "spool", "rejects", "keys", UPLOADS)


@dataclass(kw_only=True)
class Report:
    """What a run did. Written at each change of state; `sereno show` prints it, `--json` is it."""

    attempt: str
    model: str
    run_key: str  # start of the interval, UTC
    data_date: date
    data_time: datetime  # end of the interval, UTC
    started_at: datetime
    label: str = ""  # Interval.label, what --date takes for it
    state: RunState = "running"
    ended_at: datetime | None = None
    revision: str = ""
    fingerprint: str = ""
    artifacts: dict[str, str] = field(
        default_factory=dict
    )  # name → what was fetched: a URL with SHA-256, models:/credit/7
    source: str = ""
    workers: int = 0
    tasks: int = 0
    resumed_tasks: int = 0  # taken over from an earlier attempt
    rows_in: int = 0
    predictions: int = 0
    rejects: int = 0
    uncounted_rejects: int = 0  # dropped duplicates, which no gate counts
    reasons: dict[str, int] = field(default_factory=dict)
    rejects_file: str = ""
    rejects_sha256: str = ""
    gates: list[Gate] = field(default_factory=list)
    profile: Profile = field(default_factory=dict)  # of the outputs
    inputs_profile: Profile = field(default_factory=dict)  # of the features; kept in `profile_file` only
    profile_file: str = ""  # both, relative to the table, with its SHA-256 beside it
    profile_sha256: str = ""
    baseline: int | None = None  # version of the snapshot that its profiles were compared with
    seconds: dict[str, float] = field(default_factory=dict)  # stage → wall seconds
    worker_seconds: dict[str, float] = field(default_factory=dict)  # read, check, predict, write; summed over workers
    keys: tuple[str, ...] = ()
    disposition: str = "replace"
    parts: list[WrittenPart] = field(default_factory=list)
    parts_file: str = ""  # where they are, if they are too many for the report itself
    version: int | None = None  # of the snapshot it published, or found published
    says: str = ""  # in words: why it failed, was held, or had nothing to do

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


class Attempts:
    """The attempts of one model, in `.sereno/runs/<model>`: of the root what must last, of the home their work."""

    def __init__(self, home: Path, model: str, root: Place | None = None) -> None:
        root = home if root is None else root
        self.folder = root / ".sereno" / "runs" / model
        self._home = home
        self._work = home / ".sereno" / "runs" / model
        self._table = root / "predictions" / model
        self._model = model
        self._reports: Contents[bytes] | None = None
        if isinstance(self.folder, ObjectPath):
            self._reports = Contents(self.folder, lambda path: path.name == REPORT, ObjectPath.read_bytes)

    def create(self, interval: Interval) -> Report:
        """A new attempt, with its folder."""
        start = f"{interval.start:%Y-%m-%d}" if interval.alone else f"{interval.start:%Y-%m-%dT%H%M}"
        report = Report(
            attempt=f"{start}-{secrets.token_hex(3)}",
            model=self._model,
            run_key=interval.key,
            data_date=interval.data_date,
            data_time=interval.data_time,
            started_at=datetime.now(UTC),
            label=interval.label,
        )
        self.work(report).mkdir(parents=True)
        self.save(report)
        return report

    def exclusive(self, run_key: str) -> AbstractContextManager[None]:
        """Hold the run key. Raises BusyError: one run per key at a time."""
        return exclusive(
            self._lock(run_key),
            f"A run of model {self._model!r} for this interval is going on already (pid {{pid}}). Wait for it, or end it.",
        )

    def _lock(self, run_key: str) -> Path:
        return run_lock(self._home, self._model, run_key)

    def save(self, report: Report) -> None:
        """Write the report, without what is kept in a file of its own: every run reads all reports."""
        if len(report.parts) > MOST_PARTS:
            report.parts_file = PARTS
            write_place(self.lasting(report) / PARTS, msgspec.json.encode(report.parts))
        parts = [] if report.parts_file else report.parts
        light = replace(report, inputs_profile={}, parts=parts)
        write_place(self.lasting(report) / REPORT, light.to_json())

    def lasting(self, report: Report) -> Place:
        """Where its report lies, and what else must last."""
        return self.folder / report.attempt

    def work(self, report: Report) -> Path:
        """Where it works, on this machine."""
        return self._work / report.attempt

    def all(self) -> list[Report]:
        """Every attempt, oldest first; of those with many parts, without them."""
        found = [report for report, _ in self._all()]
        for report in found:
            report.parts = [self._here(part) for part in report.parts]
        return sorted(found, key=lambda r: r.started_at)

    def _all(self) -> Iterator[tuple[Report, datetime | None]]:
        """Reports as they were written, and when, if they are in an object store."""
        if self._reports is None:
            for file in self.folder.glob(f"*/{REPORT}"):
                if report := _read(file, Report):
                    yield report, None
            return
        for meta, content in self._reports.read().values():
            yield msgspec.json.decode(content, type=Report), meta.modified_at

    def _parts(self, report: Report) -> list[WrittenPart]:
        if not report.parts_file:
            return report.parts
        return [self._here(part) for part in _read(self.lasting(report) / report.parts_file, list[WrittenPart]) or []]

    def _here(self, part: WrittenPart) -> WrittenPart:
        """A home may have been moved, or restored elsewhere, since a report was written."""
        path = Path(part.path)
        return replace(part, path=str(self._table / path.parent.name / path.name))

    def find(self, name: str, *, state: RunState | None = None) -> Report:
        """An attempt by its id, or the newest of a data date (if there is one in `state`, that). Raises NotFoundError."""
        reports = self.all()
        newest_first = reports[::-1]
        for report in sorted(newest_first, key=lambda r: r.state != state):
            if name in (report.attempt, report.data_date.isoformat()):
                with contextlib.suppress(
                    StorageError
                ):  # it is shown without; who judges by it reads it again, and tells
                    stored = stored_profile(self._table, report)
                    report.inputs_profile = stored.inputs if stored else {}
                report.parts = self._parts(report)
                return report
        shown = ", ".join(r.attempt for r in reports[-5:]) or "none"
        raise NotFoundError(f"Model {self._model!r} has no run {name!r}. The latest are: {shown}. See `sereno runs`.")

    def has(self, name: str, *, state: RunState) -> bool:
        """Whether one of that id or data date is in that state."""
        return any(r.state == state and name in (r.attempt, r.data_date.isoformat()) for r in self.all())

    def going_on(self, report: Report) -> bool:
        """A living process works on its run key."""
        return report.state == "running" and is_held(self._lock(report.run_key))

    def state_in_words(self, report: Report, published: Mapping[str, int]) -> str:
        """The state for people. After a crash, the table's log and the locks know more than the report could say."""
        if report.attempt in published:
            return "published"
        return "interrupted" if report.state == "running" and not self.going_on(report) else report.state

    def finished_tasks(self, run_key: str) -> dict[str, Path]:
        """Key → result file of the tasks that earlier attempts of this run finished, where all their files still stand.

        A key holds all that a result depends on, so it does not matter which attempt it comes from.
        """
        found: dict[str, Path] = {}
        oldest = datetime.now(UTC) - RESUMED_FOR if isinstance(self.folder, ObjectPath) else None
        for report in self.all():
            if report.run_key != run_key or report.state not in ("running", "failed", "held"):
                continue
            if oldest is not None and report.started_at < oldest:
                continue
            results = [(file, r.light) for file in self._result_files(report) if (r := _read(file, TaskResult))]
            there = sizes(place_of(result.part.path) for _, result in results if result.part)
            found |= {result.key: file for file, result in results if _whole(result, there)}
        return found

    def _result_files(self, report: Report) -> Iterator[Path]:
        return (self.work(report) / "tasks").glob("*.json")

    def results(self, report: Report) -> Iterator[TaskResult]:
        for file in self._result_files(report):
            if result := _read(file, TaskResult):
                yield result

    def adopt(self, report: Report, file: Path, index: int) -> TaskResult:
        """Take over a task that an earlier attempt finished, as task `index` of this one."""
        result = replace(msgspec.json.decode(file.read_bytes(), type=TaskResult), index=index)
        write_atomically(result_file(self.work(report), result.key), msgspec.json.encode(result))
        return result

    def forget(self, report: Report, *, ignore_errors: bool = True) -> None:
        """An attempt leaves no trace: it had nothing to do, or was long ago. Raises OSError, unless ignored, and StorageError."""
        lasting = self.lasting(report)
        for folder in {self.work(report), lasting}:
            if isinstance(folder, ObjectPath):
                folder.remove_below()
            elif folder == lasting or folder.is_dir():
                shutil.rmtree(folder, ignore_errors=ignore_errors)

    def reconcile(self, published: Mapping[str, int], run_key: str) -> None:
        """Attempts of a run key that were published before their report could say so (the log knows) say so now.

        The caller holds the key. What they left is settled too: no later attempt may take over a part that is published.
        """
        for report in self.all():
            if report.run_key == run_key and report.attempt in published and report.state != "published":
                report.state, report.version, report.says = "published", published[report.attempt], ""
                report.ended_at = report.ended_at or datetime.now(UTC)
                self.save(report)
                self.settle(report)

    def settle(self, report: Report) -> None:
        """The run key has an outcome: what other attempts of it left is of no use any more; held ones are discarded."""
        for other in self.all():
            if other.run_key == report.run_key and other.attempt != report.attempt:
                if other.state == "held":
                    other.state, other.says = "discarded", f"Replaced by {report.attempt}."
                    self.save(other)
                elif other.state == "running":
                    other.state, other.says = "failed", f"Interrupted; {report.attempt} went on where it was."
                    self.save(other)
                self.drop_work(other)
        if report.state != "held":
            self.drop_work(report)

    def drop_work(self, report: Report) -> None:
        for name in WORK:
            shutil.rmtree(self.work(report) / name, ignore_errors=True)

    def needed(self, elsewhere: Callable[[str], bool] = lambda run_key: False) -> tuple[set[str], set[Place]]:
        """What no cleaning may touch: attempts that are going on, and files of others that may be resumed or released.

        `elsewhere`: whether another host works on a run key, of whose locks nothing is seen here. In an object store there
        may be machines of which not even that is known: what they may be about to publish stays for a while.
        """
        now = datetime.now(UTC)
        attempts: set[str] = set()
        files: set[Place] = set()
        for report, written_at in self._all():
            if report.state == "held":
                files |= {place_of(self._here(p).path) for p in self._parts(report)}
                attempts.add(report.attempt)
            elif written_at is not None and self._may_go_on_elsewhere(report, written_at, now):
                attempts.add(report.attempt)
            elif report.state in ("running", "failed"):
                if report.state == "running" and (self.going_on(report) or elsewhere(report.run_key)):
                    attempts.add(report.attempt)
                elif now - report.started_at > KEPT_FOR and not is_held(self._lock(report.run_key)):
                    self.drop_work(report)  # unless another attempt of its key is taking it over at this moment
                files |= {place_of(r.part.path) for r in self.results(report) if r.part}
        return attempts, files

    def _may_go_on_elsewhere(self, report: Report, written_at: datetime, now: datetime) -> bool:
        if self.work(report).is_dir():  # it is this machine's
            return report.state == "discarded" and now - written_at < LEFT_ALONE
        is_open = report.state in ("running", "failed") and now - report.started_at < KEPT_FOR
        return is_open or now - written_at < LEFT_ALONE


T = TypeVar("T")


def _read(file: Place, kind: type[T]) -> T | None:
    """None: another process removed it since it was listed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def _whole(result: TaskResult, there: Mapping[Place, int]) -> bool:
    """Whether every file of a finished task still stands as it was written; a power cut may have taken some.

    `there`: the parts that stand, and their sizes.
    """
    if result.rejects_file and not Path(result.rejects_file).is_file():
        return False
    if result.part is None:
        return True
    assert result.keys_file is not None
    keys_file = Path(result.keys_file)
    if not keys_file.is_file() or keys_file.stat().st_size != 8 * result.part.rows:
        return False
    return there.get(place_of(result.part.path)) == result.part.size
