"""The gates of one attempt: what they look at is gathered here, for a run and for the release of a held one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sereno.batch.attempts import Report
from sereno.batch.gates import Baseline, Gate, Judged, judge
from sereno.batch.profile import NUMBERS, stored_profile
from sereno.config import ModelSettings, Settings
from sereno.exceptions import SettingsError, StorageError
from sereno.home import Home
from sereno.model import Model
from sereno.settings import listed, nearest
from sereno.snapshots import State


def judge_report(report: Report, home: Home, state: State, own: Sequence[Gate]) -> list[Gate]:
    """The gates' verdicts on a finished attempt, against what is served now; and its baseline is noted.

    `own` are the verdicts of the gates that the model file declares.
    """
    # what is in service; where each date is, the date before (or this one's, which it would replace)
    by_date = report.disposition == "partition"
    others = [s for s in state.served if not by_date or s.data_date <= report.data_date]
    baseline = baseline_of(home, state, report)
    report.baseline = baseline.snapshot.number if baseline else None
    run = Judged(
        rows_in=report.rows_in,
        rejects=report.rejects - report.uncounted_rejects,
        answered=report.predictions,
        outputs=report.profile,
        inputs=report.inputs_profile,
        last=others[-1] if others else None,
        baseline=baseline,
    )
    return [*judge(home.chosen.gates, home.chosen.columns, run), *own]


def baseline_of(home: Home, state: State, report: Report) -> Baseline | None:
    """What a report is compared with; None: nothing is published of an earlier data date."""
    snapshot = state.baseline(report.data_date)
    if snapshot is None:
        return None
    try:
        return Baseline(snapshot=snapshot, profile=stored_profile(home.store.folder, snapshot))
    except StorageError as error:
        if snapshot.number not in state.profiled(datetime.now(UTC), home.keep):  # of a backfill of dates long ago
            return Baseline(snapshot=snapshot)
        trouble = (
            f"drift could not be judged: {error} The next data date is compared with this one, once this one is released; "
            "or put the file back from a backup and run again."
        )
        return Baseline(snapshot=snapshot, trouble=trouble)


def check_columns(model: Model, settings: Settings, chosen: ModelSettings) -> None:
    """Raise SettingsError where a setting of a column names none of the model's, or would have no effect on it."""
    columns = {c.name: c for c in (*model.outputs.columns, *model.inputs.features)}
    for name, own in chosen.columns.items():
        found = columns.get(name) or next((c for n, c in columns.items() if n.lower() == name), None)
        if found is None:
            is_key = name in (c.name for c in model.inputs.keys)
            origin = next(
                (o for k, o in settings.origins.items() if k.startswith(f"models.{model.name}.columns.{name}.")), ""
            )
            said = "a key, and keys are not judged" if is_key else "no output or feature of it"
            raise SettingsError(
                f"'models.{model.name}.columns.{name}'{f', from {origin},' if origin else ''} is {said}.{nearest(name, columns)} "
                f"Valid there: {listed(columns)}."
            )
        if found.kind not in (*NUMBERS, "str", "bool") and (own.warn_psi is not None or own.hold_psi is not None):
            raise SettingsError(
                f"'models.{model.name}.columns.{name}' has a limit for drift, but {name} is of kind {found.kind}, whose drift is not "
                "judged. Leave warn_psi and hold_psi out."
            )
