"""Between the last task and the gates: the tasks' results become one result, and every row is accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.adapters.files import read_piece
from sereno.batch.keys import duplicates
from sereno.batch.parts import (
    MOST_REASONS,
    OTHER_REASONS,
    REJECTS,
    WrittenPart,
    open_part,
    settle,
    settled_part,
    working_file,
)
from sereno.batch.profile import Profile, merged
from sereno.batch.profiling import ProfileBuilder
from sereno.batch.tasks import PARTS, Task, TaskResult, row_as_json, stored_result
from sereno.exceptions import DataError, DuplicateKeysError, PredictError, RunError, SourceError
from sereno.loader import file_digest
from sereno.model import Model
from sereno.places import Place, place_of, readable
from sereno.storage import fsync, told

MERGED_REJECTS = pa.schema([pa.field("run", pa.string(), nullable=False), *REJECTS])
SHOWN = 5  # duplicate keys named in a message
ENOUGH = 10_000  # duplicate keys to look up for it
MERGED_AT_ONCE = 64  # profiles


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A row that is not published because another row with its key is."""

    task: int
    position: int  # in the part
    key: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run's tasks came to, before the gates."""

    rows_in: int
    answered: int
    rejects: int
    uncounted: int  # rejects that no gate counts
    reasons: dict[str, int]
    parts: tuple[WrittenPart, ...]
    profile: Profile  # of the outputs
    inputs_profile: Profile
    rejects_file: Place | None
    rejects_sha256: str


def finish(
    model: Model,
    tasks: Sequence[Task],
    results: Sequence[TaskResult],
    *,
    policy: str,
    attempt: str,
    parts_folder: Place,
    work_folder: Path,
    rejects_file: Place,
    batch_rows: int,
) -> Outcome:
    """One result of all tasks, in the order of the source. Their results may be light: their files have the profiles.

    Raises SourceError where there are no rows, DuplicateKeysError (policy "fail"), DataError where no row could be
    scored (PredictError where predict raised), and RunError should a row be lost.
    """
    rows_in = sum(r.rows_in for r in results)
    if not rows_in:
        raise SourceError("The source has no rows. Nothing was published; see what feeds it.")
    dropped = _duplicates(model, results, policy)
    kept = [_without(model, r, dropped.get(i, []), parts_folder, work_folder / PARTS) for i, r in enumerate(results)]
    reasons: dict[str, int] = {}
    for result in results:
        for reason, count in result.reasons.items():
            short = reason if reason in reasons or len(reasons) < MOST_REASONS else OTHER_REASONS
            reasons[short] = reasons.get(short, 0) + count
    uncounted = sum(len(d) for d in dropped.values())
    if uncounted:
        reasons[_duplicate_reason(policy)] = uncounted
    answered = sum(r.answered for r in kept)
    rejects = sum(r.rejects for r in results) + uncounted
    if rows_in != answered + rejects:  # the promise; there is no known way to get here
        raise RunError(
            f"{rows_in} rows came in, but {answered} predictions and {rejects} rejects came out. Nothing was published."
        )
    if not answered:
        first = max(reasons, key=lambda r: reasons[r], default="")
        raised = any(reason.startswith("predict raised ") for reason in reasons)  # of what another try may not meet
        raise (PredictError if raised else DataError)(
            f"None of the {rows_in:,} rows could be scored; the most frequent reason is “{first}”. Nothing was published. "
            "See whether the source is the right one, or the row type asks too much."
        )
    digest = ""
    if rejects:
        with told("The rejects could not be written"):
            file = working_file(rejects_file, work_folder / "rejects")
            _merge_rejects(file, attempt, tasks, results, dropped, policy, model, batch_rows)
            digest = file_digest(file)
            settle(file, rejects_file)
            if isinstance(rejects_file, Path):
                fsync(rejects_file.parent)
    profile, inputs_profile = _profiles(kept, work_folder)
    return Outcome(
        rows_in=rows_in,
        answered=answered,
        rejects=rejects,
        uncounted=uncounted,
        reasons=dict(sorted(reasons.items(), key=lambda r: -r[1])),
        parts=tuple(r.part for r in kept if r.part),
        profile=profile,
        inputs_profile=inputs_profile,
        rejects_file=rejects_file if rejects else None,
        rejects_sha256=digest,
    )


@told("The profiles of the tasks could not be read")
def _profiles(results: Sequence[TaskResult], work_folder: Path) -> tuple[Profile, Profile]:
    """Those of the outputs and of the inputs, over all tasks. Few are in memory at once, however many tasks there are."""
    outputs: list[Profile] = []
    inputs: list[Profile] = []
    for result in results:
        whole = result if result.profile and result.inputs_profile else stored_result(work_folder, result.key)
        outputs.append(result.profile or whole.profile)
        inputs.append(whole.inputs_profile)
        if len(outputs) == MERGED_AT_ONCE:
            outputs, inputs = [merged(outputs)], [merged(inputs)]
    return merged(outputs), merged(inputs)


def _duplicates(model: Model, results: Sequence[TaskResult], policy: str) -> dict[int, list[Dropped]]:
    """Which rows go, by task, for keys that occur more than once."""
    with_part = [i for i, r in enumerate(results) if r.part]
    parts = [place_of(results[i].part.path) for i in with_part]  # type: ignore[union-attr]
    files = [Path(results[i].keys_file) for i in with_part]  # type: ignore[arg-type]
    names = [c.name for c in model.inputs.keys]
    found, every_one = duplicates(parts, files, names, enough=ENOUGH if policy == "fail" else None)
    if not found:
        return {}
    rows = [Dropped(task=with_part[p], position=at, key=key) for p, some in sorted(found.items()) for at, key in some]
    if policy == "fail":
        keys = list(dict.fromkeys(r.key for r in rows))
        shown = ", ".join(", ".join(f"{n}={v!r}" for n, v in zip(names, key, strict=True)) for key in keys[:SHOWN])
        raise DuplicateKeysError(
            f"{'' if every_one else 'At least '}{len(keys):,} keys occur more than once, in {len(rows):,} rows: {shown}"
            f"{' …' if len(keys) > SHOWN else ''}. "
            'Mend the source, or set duplicates = "first" or "last" to keep one row of each. Nothing was published.'
        )
    counts = {r.key: r for r in (rows if policy == "last" else reversed(rows))}  # the row that stays
    dropped: dict[int, list[Dropped]] = {}
    for row in rows:
        if counts[row.key] is not row:
            dropped.setdefault(row.task, []).append(row)
    return dropped


def _without(model: Model, result: TaskResult, dropped: Sequence[Dropped], folder: Place, work: Path) -> TaskResult:
    """The task's result without the dropped rows, in a part of its own; nothing is overwritten."""
    if not dropped or result.part is None:
        return result
    table = pq.read_table(readable(place_of(result.part.path)))
    stays = np.ones(table.num_rows, dtype=bool)
    stays[[d.position for d in dropped]] = False
    table = table.filter(pa.array(stays))
    profile = ProfileBuilder(model.outputs.columns)
    profile.add(table.combine_chunks())
    if not table.num_rows:
        return replace(result, part=None, profile=profile.build())
    place = folder / f"{Path(result.part.path).stem}-unique.parquet"
    with told("A part without its duplicates could not be written"):
        file = working_file(place, work)
        with open_part(file, table.schema, len(model.inputs.keys)) as writer:
            writer.write_table(table)
        part = settled_part(file, place, table.num_rows)
    return replace(result, part=part, profile=profile.build())


def _duplicate_reason(policy: str) -> str:
    return f"duplicate key: the {policy} row with it counts"


def _merge_rejects(
    path: Path,
    attempt: str,
    tasks: Sequence[Task],
    results: Sequence[TaskResult],
    dropped: dict[int, list[Dropped]],
    policy: str,
    model: Model,
    batch_rows: int,
) -> None:
    """All rejects of the run in one file, in the order of the source, with row numbers that count over all tasks."""
    first_row = 0
    with pq.ParquetWriter(path, MERGED_REJECTS, compression="zstd") as writer:
        for index, result in enumerate(results):
            tables = [pq.read_table(result.rejects_file)] if result.rejects_file else []
            if index in dropped:
                tables.append(_rejects_of(tasks[index], result, dropped[index], policy, model, batch_rows))
            for table in tables:
                rows = pc.add(table.column("row"), first_row)
                columns = [pa.array([attempt] * table.num_rows), rows, *table.columns[1:]]
                writer.write_table(pa.Table.from_arrays(columns, schema=MERGED_REJECTS))
            first_row += result.rows_in


def _rejects_of(
    task: Task, result: TaskResult, dropped: Sequence[Dropped], policy: str, model: Model, batch_rows: int
) -> pa.Table:
    """Rejects for the dropped rows of a task: the rows themselves are read again from the source."""
    answered = np.ones(result.rows_in, dtype=bool)
    answered[: len(task.broken)] = False
    if result.rejects_file:
        refused = pq.read_table(result.rejects_file, columns=["row"]).column("row").drop_null()
        answered[refused.to_numpy()] = False
    positions = np.flatnonzero(answered)[[d.position for d in dropped]]
    names = [c.name for c in model.inputs.keys]
    rows = []
    for position, (data, key) in zip(
        positions.tolist(), _read_rows(task, positions, model, names, batch_rows), strict=True
    ):
        rows.append({"row": position, "key": key, "reason": _duplicate_reason(policy), "data": data})
    return pa.Table.from_pylist(rows, schema=REJECTS)


def _read_rows(
    task: Task, positions: Any, model: Model, names: list[str], batch_rows: int
) -> Iterator[tuple[str, str | None]]:
    start = len(task.broken)
    for piece in task.pieces:
        for batch in read_piece(piece, model.inputs, batch_rows):
            for position in positions[(positions >= start) & (positions < start + len(batch))].tolist():
                yield row_as_json(batch, position - start, names)
            start += len(batch)


def digest(*texts: str) -> str:
    """SHA-256 (hex) of several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
