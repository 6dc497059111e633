"""The sample as a run would publish it, in a home of its own: scored, written, committed, and indexed for lookups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from sereno.adapters.files import Piece
from sereno.adapters.lookup_folder import LookupFolder
from sereno.batch.attempts import Attempts, Report
from sereno.batch.finish import finish
from sereno.batch.publish import publication_of
from sereno.batch.tasks import Job, Task, score_task
from sereno.check.compare import Reference
from sereno.exceptions import DataError, IndexingError, PredictError
from sereno.lookup.keys import Key
from sereno.schedule import last_interval
from sereno.settings import DAILY
from sereno.snapshots import SnapshotStore

if TYPE_CHECKING:
    from sereno.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Published:
    """Homes for lookups, and what they are to find there."""

    served: Path  # has the sample published; where it could not be, it is the one below
    nothing: Path  # a home in which nothing was ever published
    positions: dict[Key, int]  # key → its row in the sample; of several with a prediction, the one that a run publishes
    error: str = ""  # why it could not be published

    @property
    def is_served(self) -> bool:
        return self.served != self.nothing


def publish(reference: Reference, settings: Settings, folder: Path) -> Published:
    """Publish the sample below a folder, if the model's lookups are not off."""
    model = reference.model
    chosen = settings.model(model.name, model.declared, model.file.parent if model.file else None)
    # a run that refuses duplicates publishes nothing: what its first rows would give can be looked at all the same
    policy = "last" if chosen.duplicates == "last" else "first"
    positions = rows_that_count(reference, policy)
    nothing, served, error = folder / "nothing", folder / "published", ""
    if chosen.lookup == "off" or all(isinstance(answer, str) for answer in reference.answers):
        served = nothing
    else:
        try:
            _publish(reference, served, policy=policy, disposition=chosen.disposition, batch_rows=chosen.batch_rows)
        except pa.ArrowException as raised:  # Parquet cannot hold it: a run of these rows would end with it
            served, error = nothing, f"The predictions cannot be written as a run writes them: {raised}"
        except (PredictError, DataError, IndexingError) as raised:
            cause = raised.__cause__
            is_own = isinstance(raised, PredictError) and cause is not None  # what predict itself raised
            served, error = nothing, f"predict raised {type(cause).__name__}: {cause}" if is_own else str(raised)
    return Published(served=served, nothing=nothing, positions=positions, error=error)


def keys_of(reference: Reference) -> list[Key]:
    """The key of each row."""
    columns = [reference.table.column(c.name).to_pylist() for c in reference.model.inputs.keys]
    return list(zip(*columns, strict=True))


def rows_that_count(reference: Reference, policy: str) -> dict[Key, int]:
    """Key → the row whose prediction a run publishes under it; its first row where none has a prediction."""
    found: dict[Key, int] = {}
    for position, key in enumerate(keys_of(reference)):
        before = found.setdefault(key, position)
        if isinstance(reference.answers[position], str):
            continue
        if policy == "last" or isinstance(reference.answers[before], str):
            found[key] = position
    return found


def _publish(reference: Reference, home: Path, *, policy: str, disposition: str, batch_rows: int) -> None:
    """The way of a run, from a file of the sample to the index, without gates and exports.

    Raises PredictError and DataError of the scoring, and IndexingError.
    """
    model = reference.model
    attempts, store = Attempts(home, model.name), SnapshotStore(home, model.name)
    report = attempts.create(last_interval(DAILY, "UTC", datetime.now(UTC)))
    rows = home / "sample.parquet"
    # made anew: below a nested row that is null, nothing may be null that its type does not let be
    pq.write_table(pa.Table.from_pylist(reference.table.to_pylist(), reference.table.schema), rows)
    task = Task(index=0, pieces=(Piece(kind="parquet", path=str(rows)),), rows=reference.table.num_rows)
    parts = home / "predictions" / model.name / report.attempt
    result = score_task(
        _job(report, parts, attempts.work(report), batch_rows), task, reference.scorer, lambda rows: None
    )
    outcome = finish(
        model,
        [task],
        [result],
        policy=policy,
        attempt=report.attempt,
        parts_folder=parts,
        work_folder=attempts.work(report),
        rejects_file=attempts.work(report) / "rejects.parquet",
        batch_rows=batch_rows,
    )
    report.rows_in, report.predictions, report.rejects = outcome.rows_in, outcome.answered, outcome.rejects
    report.parts, report.disposition = list(outcome.parts), disposition
    report.keys = tuple(c.name for c in model.inputs.keys)
    store.publish(publication_of(report), force=False)
    state = store.state()
    LookupFolder(home, model.name).follow(state, state.kept(datetime.now(UTC)))


def _job(report: Report, parts: Path, work: Path, batch_rows: int) -> Job:
    return Job(
        model_file="",  # the model is loaded already
        home="",
        values={},
        secrets_folder="",
        attempt=report.attempt,
        parts_folder=str(parts),
        work_folder=str(work),
        batch_rows=batch_rows,
        fingerprint="",
        revision_of_model="",
    )
