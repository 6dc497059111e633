"""`sereno compare`: a challenger on the data of a published snapshot, its output beside the snapshot's.

The challenger is scored as by a run: the same plan, tasks, rejects, profiles and gates. Only that all it writes lies in a
folder that is gone afterwards: no attempt is left, no ledger told, nothing published, and what is served is not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno import gate
from sereno.baseline import Baseline
from sereno.batch.drift import psi
from sereno.batch.finish import Outcome
from sereno.batch.gates import Gate, Judged, judge
from sereno.batch.judging import baseline_with
from sereno.batch.own_gates import Bound, bind_own, judge_own
from sereno.batch.profile import Profile
from sereno.batch.profiling import ProfileBuilder
from sereno.batch.run import Silent, Watcher
from sereno.compare.about import SERVED, check_keys, interval_of, settings_of, snapshot_of
from sereno.compare.columns import ColumnComparer, listed_keys, median_size
from sereno.compare.comparison import Comparison, Side
from sereno.compare.lots import joined
from sereno.compare.scored import Clock, score
from sereno.compare.temporary import temporary_folder
from sereno.exceptions import RunError, StorageError, WorkerError
from sereno.home import Home
from sereno.interfaces import Executor
from sereno.loader import fingerprint
from sereno.model import Model
from sereno.places import place_of, readable
from sereno.schedule import Interval
from sereno.schema import Column, Kind
from sereno.scoring import published_schema
from sereno.snapshots import Snapshot, schema_of
from sereno.storage import told

if TYPE_CHECKING:
    from sereno.settings import ModelSettings, Settings

__all__ = ["SERVED", "Comparison", "compare"]

CHALLENGER = "challenger"
KEYS = 5  # that only one of the two has, named in a report
AGAIN = "Of a comparison nothing is kept: mend that, and start it again."


def compare(
    model: Model,
    settings: Settings,
    executor: Executor,
    *,
    against: str,
    name: str | None = None,
    when: str | None = None,
    watcher: Watcher | None = None,
) -> Comparison:
    """Score the challenger on the data date of a snapshot (or another date), and hold the two outputs against each other.

    `against` is a version or "served", `name` the model that it belongs to, if not the challenger's own. Raises NotFoundError
    where there is no such snapshot, PublishError where their keys differ, SettingsError, and what scoring raises.
    """
    if model.file is None:
        raise RunError("A model that was declared in a notebook cannot be compared: save it as a .py file first.")
    name = name or model.name
    watcher = watcher or Silent()
    chosen = settings_of(model, settings, name)
    home = Home(settings, name, chosen)
    snapshot = snapshot_of(home, against, when)
    check_keys(model, snapshot)
    own_gates = bind_own(model, settings)  # what they lack is told before anything is scored
    interval = interval_of(model, chosen, snapshot, when)
    clock = Clock(watcher)
    try:
        with (
            told("The comparison stopped", AGAIN),
            temporary_folder(home.path) as folder,
            contextlib.closing(executor),
        ):
            outcome = score(model, settings, chosen, executor, interval, folder, clock)
            with clock("compare"):
                return _compare(model, own_gates, chosen, home, snapshot, interval, outcome, folder, clock.seconds)
    except (WorkerError, StorageError) as error:  # which speak of a run, that goes on where it was
        text = str(error)
        raise type(error)(text if AGAIN in text else f"{text} ({AGAIN})") from error


def _compare(
    model: Model,
    own_gates: Sequence[Bound],
    chosen: ModelSettings,
    home: Home,
    snapshot: Snapshot,
    interval: Interval,
    outcome: Outcome,
    folder: Path,
    seconds: dict[str, float],
) -> Comparison:
    baseline = baseline_with(home, home.store.state(), snapshot)
    outputs = baseline.outputs if baseline.has_profile else _profiled(model, snapshot)
    here, there = published_schema(model), schema_of(snapshot)
    common = [n for n in here.names if n in there.names and n not in snapshot.keys]
    comparers = [
        ColumnComparer(
            n,
            there.field(n).type,
            here.field(n).type,
            tolerance=model.tolerance,
            size=median_size(outputs.get(n)),
        )
        for n in common
    ]
    both = differ = only_now = only_before = 0
    some: tuple[list[tuple[object, ...]], list[tuple[object, ...]]] = ([], [])
    before, now = [part.path for part in snapshot.parts], [place_of(part.path) for part in outcome.parts]
    rows = max(snapshot.rows, outcome.answered)
    for lot in joined(before, now, snapshot.keys, folder / "lots", rows=rows):
        keys = lot.now.select(snapshot.keys)
        masks = [c.add(lot.before.column(c.name), lot.now.column(c.name), keys) for c in comparers]
        both += keys.num_rows
        if masks:
            differ += int(np.logical_or.reduce(masks).sum())
        only_now, only_before = only_now + lot.only_now.num_rows, only_before + lot.only_before.num_rows
        for found, table in zip(some, (lot.only_now, lot.only_before), strict=True):
            found += listed_keys(table, KEYS - len(found))
    columns = tuple(c.result(_psi_of(outputs, outcome.profile, c.name)) for c in comparers)
    return Comparison(
        challenger=Side(
            name=model.name,
            called=CHALLENGER,
            data_date=interval.data_date,
            predictions=outcome.answered,
            rejects=outcome.rejects,
            reasons=outcome.reasons,
            fingerprint=fingerprint(model),
            outputs=outcome.profile,
            inputs=outcome.inputs_profile,
        ),
        against=Side(
            name=snapshot.model,
            called=f"version {snapshot.number}",
            data_date=snapshot.data_date,
            predictions=snapshot.rows,
            rejects=snapshot.rejects,
            reasons=_reasons(home, snapshot),
            fingerprint=snapshot.fingerprint,
            outputs=outputs,
            inputs=baseline.inputs,
            version=snapshot.number,
        ),
        file=str(model.file),
        source=chosen.source or "read",
        keys=snapshot.keys,
        tolerance=model.tolerance,
        both=both,
        differ=differ,
        only_challenger=only_now,
        only_against=only_before,
        some_only_challenger=tuple(some[0]),
        some_only_against=tuple(some[1]),
        columns=columns,
        outputs_only_challenger=tuple(n for n in here.names if n not in there.names),
        outputs_only_against=tuple(n for n in there.names if n not in here.names),
        gates=_gates(model, own_gates, chosen, outcome, snapshot, baseline),
        seconds=seconds,
    )


def _profiled(model: Model, snapshot: Snapshot) -> Profile:
    """The profile of a snapshot that has none with it: its parts are counted now."""
    schema = schema_of(snapshot)
    declared = {c.name: c for c in model.outputs.columns}
    columns = [
        own if (own := declared.get(field.name)) and own.arrow_type == field.type else _column_of(field)
        for field in schema
        if field.name not in snapshot.keys
    ]
    builder = ProfileBuilder(columns)
    for part in snapshot.parts:
        for batch in pq.ParquetFile(readable(part.path)).iter_batches(columns=[c.name for c in columns]):
            builder.add(pa.Table.from_batches([batch]))
    return builder.build()


def _column_of(field: pa.Field) -> Column:
    kinds: tuple[tuple[Kind, bool], ...] = (
        ("int", pa.types.is_integer(field.type)),
        ("float", pa.types.is_floating(field.type)),
        ("decimal", pa.types.is_decimal(field.type)),
        ("bool", pa.types.is_boolean(field.type)),
        ("str", pa.types.is_string(field.type)),
        ("date", pa.types.is_date(field.type)),
        ("datetime", pa.types.is_timestamp(field.type)),
    )
    return Column(name=field.name, kind=next((kind for kind, so in kinds if so), "list"))


def _psi_of(before: Profile, now: Profile, name: str) -> float | None:
    return psi(before[name], now[name]) if name in before and name in now else None


def _reasons(home: Home, snapshot: Snapshot) -> dict[str, int]:
    """Of a snapshot's rejects, the most frequent first; none where their file was removed."""
    file = home.store.folder / snapshot.rejects_file
    if not snapshot.rejects_file or not file.is_file():
        return {}
    counts = pc.value_counts(pq.read_table(readable(file), columns=["reason"]).column("reason"))
    reasons = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return dict(sorted(reasons, key=lambda r: (-r[1], r[0])))


def _gates(
    model: Model,
    own_gates: Sequence[Bound],
    chosen: ModelSettings,
    outcome: Outcome,
    snapshot: Snapshot,
    baseline: Baseline,
) -> list[Gate]:
    """The gates' verdicts, were this a run and the snapshot what it is held against."""
    run = Judged(
        rows_in=outcome.rows_in,
        rejects=outcome.rejects - outcome.uncounted,
        answered=outcome.answered,
        outputs=outcome.profile,
        inputs=outcome.inputs_profile,
        last=snapshot,
        baseline=baseline,
    )
    counted = gate.Profile(inputs=outcome.inputs_profile, outputs=outcome.profile)
    return [*judge(chosen.gates, chosen.columns, run), *judge_own(own_gates, model, counted, outcome.parts)]
