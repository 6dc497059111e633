"""Task: a piece of the input that one worker scores alone. No row crosses between processes.

A worker reads its own rows, checks them, predicts, checks the answer, and writes its own part, its rejects, the hashes
of its keys and its profile. `score_task` is idempotent: names come from the attempt and the task.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.batch.keys import hash_keys
from sereno.batch.profile import Profile, ProfileBuilder
from sereno.checks import Checked, check_table, python_value
from sereno.failpoints import failpoint
from sereno.rows import JsonRows
from sereno.scoring import Scorer
from sereno.storage import fsync, told, write_atomically

ROW_GROUP = 131_072  # rows of a part's row groups
REJECTS = pa.schema(
    [
        pa.field("row", pa.int64()),  # position in the task; in the run, once merged; null: a line that is no row
        pa.field("key", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("data", pa.string()),  # the row as JSON
    ]
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one file."""

    kind: Literal["parquet", "text", "json"]  # text: a Parquet file of CSV's texts
    path: str
    row_groups: tuple[int, ...] | None = None  # of a Parquet file; None: all
    span: tuple[int, int] | None = None  # bytes of a file of JSON lines, from a line's start to a line's end
    partition: dict[str, str | None] = field(default_factory=dict)  # columns that stand in the path
    fingerprint: str = ""  # of the file's content, or of its name, size and time


@dataclass(frozen=True, kw_only=True)
class Task:
    index: int
    pieces: tuple[Piece, ...]
    rows: int | None = None  # None: not known before it is read
    broken: tuple[tuple[str, str], ...] = ()  # (text, reason) of lines that are no rows

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(msgspec.json.encode((self.pieces, self.broken))).hexdigest()

    def key(self, job: Job) -> str:
        """Digest of all that the task's result depends on: a finished task with this key need not be scored again."""
        return hashlib.sha256(f"{self.fingerprint}\0{job.revision_of_model}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task of a run shares, as plain data that can be sent to a worker anywhere."""

    model_file: str
    home: str
    values: dict[str, tuple[Any, str]]  # value and the folder that relative paths in it resolve against
    secrets_folder: str
    attempt: str
    parts_folder: str  # predictions/<model>/<attempt>
    work_folder: str  # .sereno/runs/<model>/<attempt>
    batch_rows: int
    revision_of_model: str  # digest of model file, siblings, artefacts and settings: what a finished task depends on
    threads: int  # that the model's libraries may use in each worker


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    path: str  # absolute
    rows: int
    size: int
    sha256: str
    stats: str  # Delta's JSON statistics


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    index: int
    fingerprint: str
    part: WrittenPart | None  # None: no row of the task was answered
    rows_in: int
    rejects: int
    reasons: dict[str, int]
    rejects_file: str | None
    keys_file: str | None
    profile: Profile
    seconds: dict[str, float]  # read, check, predict, write

    @property
    def answered(self) -> int:
        return self.part.rows if self.part else 0


@told("A task could not be written")
def score_task(job: Job, task: Task, scorer: Scorer, progress: Callable[[int], None]) -> TaskResult:
    """Score one task: read, check, predict, check, write, batch by batch. Memory is bounded by the batch.

    Raises SourceError and InputError of the reading, OutputError and PredictError of the scoring, StorageError.
    """
    from sereno.adapters.files import read_piece

    failpoint("task_start")
    model = scorer.model
    key = task.key(job)
    work = Path(job.work_folder)
    writer = PartWriter(job, task, scorer.schema, keys=len(model.inputs.keys))
    rejects = RejectWriter(work / "rejects" / f"{key[:32]}.parquet")
    profile = ProfileBuilder(model.outputs)
    json_rows = JsonRows(model.inputs) if any(p.kind == "json" for p in task.pieces) else None
    key_names = [c.name for c in model.inputs.keys]
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
            with clock("predict"):
                scored = scorer.score(checked.table)
            with clock("write"):
                for position, reason in _all_refused(checked, scored.refused):
                    data, row_key = row_as_json(batch, position, key_names)
                    rejects.add(rows_in + position, row_key, reason, data)
                writer.write(scored.table)
                profile.add(scored.table)
            rows_in += len(batch)
            progress(len(batch))
    with clock("write"):
        part, keys_file = writer.close()
        failpoint("part_written")
        rejects_file = rejects.close()
    result = TaskResult(
        index=task.index,
        fingerprint=key,
        part=part,
        rows_in=rows_in,
        rejects=rejects.count,
        reasons=rejects.reasons,
        rejects_file=rejects_file,
        keys_file=keys_file,
        profile=profile.build(),
        seconds=clock.seconds,
    )
    write_atomically(work / "tasks" / f"{key[:32]}.json", msgspec.json.encode(result))
    failpoint("task_done")
    return result


def _all_refused(checked: Checked, by_scoring: list[tuple[int, str]]) -> Iterable[tuple[int, str]]:
    """Both kinds of refusals by position in the batch as it was read, in order."""
    if not by_scoring:
        return checked.refused
    kept = checked.kept
    later = [(position if kept is None else int(kept[position]), reason) for position, reason in by_scoring]
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


class PartWriter:
    """Writes one part (Parquet) and the sorted hashes of its keys; on disk for good once it is closed."""

    def __init__(self, job: Job, task: Task, schema: pa.Schema, *, keys: int) -> None:
        self._path = Path(job.parts_folder) / f"part-{task.index:05d}-{task.key(job)[:8]}.parquet"
        self._keys_path = Path(job.work_folder) / "keys" / f"{task.key(job)[:32]}.npy"
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._hashes: list[np.ndarray[Any, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._key_count = keys  # the first columns
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self.rows += table.num_rows
        if self._waiting_rows >= ROW_GROUP:
            self._flush()

    def close(self) -> tuple[WrittenPart | None, str | None]:
        self._flush()
        if self._writer is None:
            return None, None
        self._writer.close()
        fsync(self._path)
        hashes = np.concatenate(self._hashes)
        hashes.sort()
        self._keys_path.parent.mkdir(parents=True, exist_ok=True)
        np.save(self._keys_path, hashes)
        with self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        part = WrittenPart(
            path=str(self._path),
            rows=self.rows,
            size=os.path.getsize(self._path),
            sha256=digest,
            stats=delta_stats(self._path),
        )
        return part, str(self._keys_path)

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = open_part(self._path, self._schema, self._key_count)
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._hashes.append(hash_keys(table.select(range(self._key_count))))


def open_part(path: Path, schema: pa.Schema, keys: int) -> pq.ParquetWriter:
    """A writer of parts, whose first `keys` columns are the keys."""
    # a dictionary of values that all differ, as keys and scores do, is built for nothing: it took most of the time
    dictionary = [f.name for f in list(schema)[keys:] if not pa.types.is_floating(f.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary)


def delta_stats(path: Path) -> str:
    """Rows, and the least and greatest of whole-number columns, so that readers skip parts without their key."""
    metadata = pq.read_metadata(path)
    least: dict[str, int] = {}
    greatest: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for c in range(metadata.num_columns):
            column = metadata.row_group(group).column(c)
            stats = column.statistics
            if (
                column.physical_type != "INT64"
                or "." in column.path_in_schema
                or stats is None
                or not stats.has_min_max
            ):
                continue
            if not isinstance(stats.min, int):
                continue
            name = column.path_in_schema
            least[name] = min(stats.min, least.get(name, stats.min))
            greatest[name] = max(stats.max, greatest.get(name, stats.max))
    stats_json = {"numRecords": metadata.num_rows, "minValues": least, "maxValues": greatest}
    return msgspec.json.encode(stats_json).decode()


class RejectWriter:
    """Rejects of a task, in a Parquet file that is made with the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[dict[str, Any]] = []
        self.count = 0
        self.reasons: dict[str, int] = {}

    def add(self, row: int | None, key: str | None, reason: str, data: str) -> None:
        self._waiting.append({"row": row, "key": key, "reason": reason, "data": data})
        self.count += 1
        # lines of a file are told apart by their number, which would make every reason another one
        short = reason if len(self.reasons) < 100 or reason in self.reasons else "other reasons"
        self.reasons[short] = self.reasons.get(short, 0) + 1
        if len(self._waiting) >= 10_000:
            self._flush()

    def close(self) -> str | None:
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        fsync(self._path)
        return str(self._path)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, REJECTS)
        self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=REJECTS))
        self._waiting = []
