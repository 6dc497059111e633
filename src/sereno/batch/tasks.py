"""Task: a piece of the input that one worker scores alone. No row crosses between processes.

A worker reads its own rows, checks them, predicts, checks the answer, and writes its own part, its rejects, the hashes
of its keys and its profile. A task may be scored more than once, even twice at the same time, as on a cluster of which a
node was cut off and comes back: every try writes files of its own, and those count that its answer names.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.adapters.files import Piece, read_piece
from sereno.batch.parts import PartWriter, RejectWriter, WrittenPart
from sereno.batch.profile import Profile
from sereno.batch.profiling import ProfileBuilder
from sereno.checks import Checked, check_table, python_value
from sereno.failpoints import failpoint
from sereno.places import place_of
from sereno.rows import JsonRows
from sereno.scoring import Scorer
from sereno.storage import told, write_atomically

if TYPE_CHECKING:
    from sereno.settings import Settings


PARTS = "parts"  # in the folder of the work: parts that are on their way to an object store


@dataclass(frozen=True, kw_only=True)
class Task:
    index: int
    pieces: tuple[Piece, ...]
    rows: int | None = None  # None: not known before it is read
    broken: tuple[tuple[str, str], ...] = ()  # (text, reason) of lines that are no rows

    @property
    def identity(self) -> str:
        # by content, not by place: a spooled piece of another attempt lies elsewhere and is the same
        known_by = [(p.identity, p.row_groups, p.span, p.partition) for p in self.pieces]
        return hashlib.sha256(msgspec.json.encode((known_by, self.broken))).hexdigest()

    def key(self, job: Job) -> str:
        """Digest of all that the task's result depends on: a finished task with this key need not be scored again."""
        return hashlib.sha256(f"{self.identity}\0{job.revision_of_model}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task of a run shares, as plain data that can be sent to a worker anywhere."""

    model_file: str
    home: str
    values: dict[str, tuple[Any, str]]  # see `sent_values`
    secrets_folder: str
    attempt: str
    parts_folder: str  # predictions/<model>/<attempt>, a path or a URL
    work_folder: str  # .sereno/runs/<model>/<attempt>
    batch_rows: int
    fingerprint: str  # of the model, when the run was planned
    revision_of_model: str  # digest of model file, siblings, artefacts and settings: what a finished task depends on
    artifacts: dict[str, str] = field(default_factory=dict)  # name → path here, of those that were fetched for the run


def sent_values(settings: Settings) -> dict[str, tuple[Any, str]]:
    """The settings' values, each with the folder that relative paths in it resolve against, so that a worker gets the same.

    A date would come as text: it is sent as its kind and its text.
    """
    return {name: (_sent(one.value), str(one.base)) for name, one in settings.values.items()}


def received_values(job: Job) -> dict[str, tuple[Any, str]]:
    return {name: (_received(value), base) for name, (value, base) in job.values.items()}


_TIMES: dict[str, type[date] | type[time_of_day]] = {"date": date, "datetime": datetime, "time": time_of_day}


def _sent(value: Any) -> Any:
    if isinstance(value, list):
        return [_sent(one) for one in value]
    return {type(value).__name__: value.isoformat()} if type(value) in _TIMES.values() else value


def _received(value: Any) -> Any:
    if isinstance(value, list):
        return [_received(one) for one in value]
    if not isinstance(value, dict):  # of settings, no value is one
        return value
    ((kind, text),) = value.items()
    return _TIMES[kind].fromisoformat(text)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    index: int
    key: str  # of the task
    part: WrittenPart | None  # None: no row of the task was answered
    rows_in: int
    rejects: int
    reasons: dict[str, int]
    rejects_file: str | None
    keys_file: str | None
    profile: Profile  # of the outputs
    # of the features of the rows that fit the input type; a task that an older version finished has none
    inputs_profile: Profile = field(default_factory=dict)
    seconds: dict[str, float]  # read, check, predict, write, profile

    @property
    def answered(self) -> int:
        return self.part.rows if self.part else 0

    @property
    def light(self) -> TaskResult:
        """Without the profiles, which are most of it: `work_folder/tasks` has them (`stored_result`)."""
        return replace(self, profile={}, inputs_profile={})


def result_file(work_folder: Path, key: str) -> Path:
    """Where the whole result of the task with that key is kept."""
    return work_folder / "tasks" / f"{key[:32]}.json"


def stored_result(work_folder: Path, key: str) -> TaskResult:
    """The whole result of a task. Raises OSError."""
    return msgspec.json.decode(result_file(work_folder, key).read_bytes(), type=TaskResult)


@told("A task could not be written")
def score_task(job: Job, task: Task, scorer: Scorer, progress: Callable[[int], None]) -> TaskResult:
    """Score one task: read, check, predict, check, write, batch by batch. Memory is bounded by the batch.

    Raises SourceError and InputError of the reading, OutputError and PredictError of the scoring, StorageError.
    """
    failpoint("task_start")
    model = scorer.model
    key_names = [c.name for c in model.inputs.keys]
    key = task.key(job)
    work = Path(job.work_folder)
    name = f"{key[:32]}-{secrets.token_hex(4)}"
    place = place_of(job.parts_folder) / f"part-{task.index:05d}-{name[:8]}{name[32:]}.parquet"
    writer = PartWriter(place, work / PARTS, work / "keys" / f"{name}.u64", scorer.schema, keys=len(key_names))
    rejects = RejectWriter(work / "rejects" / f"{name}.parquet")
    profile = ProfileBuilder(model.outputs.columns)
    inputs_profile = ProfileBuilder(model.inputs.features, sampled=True)
    json_rows = JsonRows(model.inputs) if any(p.kind == "json" for p in task.pieces) else None
    clock = Stopwatch()
    rows_in = 0
    for text, reason in task.broken:
        rejects.add(None, None, reason, text)
        rows_in += 1
    for piece in task.pieces:
        batches = iter(read_piece(piece, model.inputs, job.batch_rows))
        while True:
            with clock("read"):
                batch = next(batches, None)
            if batch is None:
                break
            with clock("check"):
                checked: Checked
                if isinstance(batch, list):
                    assert json_rows is not None
                    checked = json_rows.decode(batch)
                else:
                    checked = check_table(model.inputs, batch, "text" if piece.kind == "text" else "typed")
            with clock("profile"):  # now, while the rows are still in the processor's cache
                inputs_profile.add(checked.table, checked.extremes)
            with clock("predict"):
                scored = scorer.score(checked.table)
            with clock("write"):
                for position, reason in _all_refused(checked, scored.refused):
                    data, row_key = row_as_json(batch, position, key_names)
                    rejects.add(rows_in + position, row_key, reason, data)
                writer.write(scored.table)
            with clock("profile"):
                profile.add(scored.table)
            rows_in += len(batch)
            progress(len(batch))
    with clock("write"):
        part, keys_file = writer.close()
        failpoint("part_written")
        rejects_file = rejects.close()
    result = TaskResult(
        index=task.index,
        key=key,
        part=part,
        rows_in=rows_in,
        rejects=rejects.count,
        reasons=rejects.reasons,
        rejects_file=rejects_file,
        keys_file=keys_file,
        profile=profile.build(),
        inputs_profile=inputs_profile.build(),
        seconds=clock.seconds,
    )
    write_atomically(result_file(work, key), msgspec.json.encode(result), temporary=f".{name}.tmp")
    failpoint("task_done")
    return result


def _all_refused(checked: Checked, by_scoring: list[tuple[int, str]]) -> Iterable[tuple[int, str]]:
    """Both kinds of refusals by position in the batch as it was read, in order."""
    if not by_scoring:
        return checked.refused
    positions = checked.positions
    later = [(position if positions is None else int(positions[position]), reason) for position, reason in by_scoring]
    return sorted(checked.refused + later)


def row_as_json(batch: Any, position: int, keys: list[str]) -> tuple[str, str | None]:
    """The row as it came, as JSON, and its key as text."""
    if isinstance(batch, list):
        text: bytes = batch[position]
        try:
            row = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            row = None
        return text.decode(errors="replace"), key_text(row, keys)
    row = {}
    for name in batch.schema.names:
        row[name] = python_value(batch.column(name), position)
    return msgspec.json.encode(row, enc_hook=str).decode(), key_text(row, keys)


def key_text(row: Any, keys: list[str]) -> str | None:
    """A key as text: the value itself, or a JSON list of a composite key's values; None where it cannot be known."""
    if not isinstance(row, dict) or any(row.get(k) is None for k in keys):
        return None
    if len(keys) == 1:
        return str(row[keys[0]])
    return msgspec.json.encode([row[k] for k in keys], enc_hook=str).decode()


class Stopwatch:
    """Seconds by what they were spent on: `with clock("read"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._start = "", 0.0

    def __call__(self, name: str) -> Stopwatch:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._start
