"""The gates of one attempt: what they look at is gathered here, for a run and for the release of a held one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime

from sereno.baseline import Baseline, baseline_from
from sereno.batch.attempts import Report
from sereno.batch.gates import Gate, Judged, judge
from sereno.batch.profile import NUMBERS
from sereno.exceptions import SettingsError
from sereno.home import Home
from sereno.model import Model
from sereno.settings import ModelSettings, Settings, listed, nearest
from sereno.snapshots import Snapshot, State


def judge_report(report: Report, home: Home, state: State, own: Sequence[Gate]) -> list[Gate]:
    """The gates' verdicts on a finished attempt, against what is served now; and its baseline is noted.

    `own` are the verdicts of the gates that the model file declares.
    """
    # what is in service; where each date is, the date before (or this one's, which it would replace)
    by_date = report.disposition == "partition"
    others = [s for s in state.served if not by_date or s.data_date <= report.data_date]
    baseline = held_against(home, state, report.data_date)
    report.baseline = baseline.version if baseline else None
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


def held_against(home: Home, state: State, data_date: date) -> Baseline | None:
    """What a run of a data date is compared with; None: nothing is published of an earlier one."""
    snapshot = state.baseline(data_date)
    return baseline_with(home, state, snapshot) if snapshot is not None else None


def baseline_with(home: Home, state: State, snapshot: Snapshot) -> Baseline:
    """A snapshot as a baseline. That its profile is gone is no trouble where it was not to be kept any longer."""
    baseline = baseline_from(home, snapshot)
    if baseline.trouble and snapshot.number not in state.profiled(datetime.now(UTC), home.keep):
        return replace(baseline, trouble="")  # of a backfill of dates long ago
    return baseline


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
