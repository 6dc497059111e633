"""Gates: what holds a run instead of publishing it. They look at the whole output, before the commit.

What cannot be a result fails elsewhere (a missing column, no rows, duplicate keys); gates see what may be a wrong one.
A gate may also warn: the run is published, and people are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sereno.baseline import Baseline
from sereno.batch.drift import ENOUGH, JUDGED, psi, why_not_judged
from sereno.batch.profile import ColumnProfile, Profile
from sereno.settings import ColumnSettings, GateSettings
from sereno.snapshots import Snapshot

Level = Literal["passed", "warned", "held"]
Side = Literal["output", "input"]
Columns = Mapping[str, ColumnSettings]
SHOWN = 10  # columns in a message
ENOUGH_TO_JUDGE = 10  # rows; fewer may well be equal by chance


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate's verdict."""

    name: str
    passed: bool  # it does not hold the run
    says: str  # with the numbers and the limit
    level: Level = "passed"
    column: str = ""  # which it is about; "": it is about no column
    side: Literal[Side, ""] = ""  # whose column that is
    value: float | None = None  # what was found, where it is one number
    limit: float | None = None  # what it may be at most

    def __post_init__(self) -> None:
        if not self.passed:
            object.__setattr__(self, "level", "held")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the gates look at."""

    rows_in: int
    rejects: int  # those that count
    answered: int
    outputs: Profile
    inputs: Profile
    last: Snapshot | None  # to compare the number of rows with
    baseline: Baseline | None  # None: no earlier data date is published


def judge(settings: GateSettings, columns: Columns, run: Judged) -> list[Gate]:
    """Every gate's verdict. Names of gates are unique."""
    gates = [_rejects(settings, run)]
    if run.last is not None:
        gates.append(_row_count(settings, run, run.last))
    gates += _nulls(settings, columns, run)
    gates += _constant(settings, columns, run)
    gates += _drift(settings, columns, run)
    return gates


def settings_of(columns: Columns, name: str) -> ColumnSettings:
    """The settings of a column; a variable cannot spell a capital."""
    return columns.get(name) or columns.get(name.lower()) or ColumnSettings()


def _rejects(settings: GateSettings, run: Judged) -> Gate:
    rows_in, rejects = run.rows_in, run.rejects
    # shares are divisions, which come out as the number that was written: 0.29 × 100 is less than 29, 29 / 100 is 0.29
    few = rejects <= settings.max_reject_rows or rejects / rows_in <= settings.max_reject_share
    limit = max(settings.max_reject_rows, math.floor(settings.max_reject_share * rows_in + 1e-6))
    says = f"{rejects:,} of {rows_in:,} rows ({rejects / rows_in:.2%}); at most {limit:,} may be"
    return Gate(name="rejects", passed=few, says=says, value=rejects, limit=limit)


def _row_count(settings: GateSettings, run: Judged, last: Snapshot) -> Gate:
    change, limit = (run.answered - last.rows) / last.rows, settings.max_row_change
    says = (
        f"{run.answered:,} predictions, {change:+.0%} against {last.rows:,} of version {last.number} "
        f"({last.data_date}); at most ±{_percent(limit)}"
    )
    return Gate(name="row count", passed=abs(change) <= limit, says=says, value=abs(change), limit=limit)


def _nulls(settings: GateSettings, columns: Columns, run: Judged) -> Iterator[Gate]:
    for side, name, column in _profiled(run):
        own = settings_of(columns, name).max_null_share
        limit = settings.max_null_share if own is None and side == "output" else own
        if limit is None or not column.nulls:
            continue
        share = column.nulls / column.rows
        says = f"{share:.1%} of {name} are null; at most {_percent(limit)}"
        yield Gate(
            name=f"nulls of {_called(side, name)}",
            passed=share <= limit,
            says=says,
            column=name,
            side=side,
            value=share,
            limit=limit,
        )


def _constant(settings: GateSettings, columns: Columns, run: Judged) -> Iterator[Gate]:
    asked = [c for name, c in run.outputs.items() if settings_of(columns, name).constant != "allow"]
    constant = run.answered >= ENOUGH_TO_JUDGE and bool(asked) and all(c.constant for c in asked)
    says = "every row got the same prediction" if constant else "predictions differ"
    yield Gate(name="constant", passed=not constant or settings.constant == "allow", says=says)
    for side, name, column in _profiled(run):
        if settings_of(columns, name).constant == "hold":
            constant = column.rows >= ENOUGH_TO_JUDGE and column.constant
            says = f"every row has the same {name}" if constant else f"values of {name} differ"
            name_of_gate = f"constant {_called(side, name)}"
            yield Gate(name=name_of_gate, passed=not constant, says=says, column=name, side=side)


def _drift(settings: GateSettings, columns: Columns, run: Judged) -> Iterator[Gate]:
    base = run.baseline
    if base is None:
        return
    if not base.has_profile:
        # what was published before there were profiles is no reason to hold a run. A profile that is gone or was changed
        # is: else whoever removes a file would switch the gate off
        if base.trouble:
            says = (
                f"drift could not be judged: {base.trouble} The next data date is compared with this one, once this one is "
                "released; or put the file back from a backup and run again."
            )
        else:
            says = (
                f"not judged, as {base.full_name} has no profile: it is of before profiles were kept, or older than "
                "keep_run_days"
            )
        yield Gate(name="drift", passed=not base.trouble, says=says)
        return
    told: list[Gate] = []
    others: list[Gate] = []  # features that are as before
    left_out: list[str] = []
    for side, name, now in _profiled(run):
        before = base.column(side, name)
        value = psi(before, now) if before else None
        if value is not None:
            gate = _drift_of(side, name, value, base, _limits(settings, settings_of(columns, name), side))
            (told if side == "output" or gate.level != "passed" else others).append(gate)
        elif now.kind in JUDGED:
            left_out.append(f"{_called(side, name)} ({why_not_judged(before, now)})")
    yield from told
    if others:
        most = max(others, key=lambda gate: gate.value or 0.0)
        says = f"PSI at most {most.value:.3f}, of {most.column}; {len(others):,} features against {base.full_name}"
        yield Gate(name="drift of inputs", passed=True, says=says, column=most.column, side="input", value=most.value)
    if not told and not others and (run.answered < ENOUGH or base.rows < ENOUGH):
        yield Gate(name="drift", passed=True, says=f"not judged: it takes {ENOUGH:,} rows here and in {base.full_name}")
    elif left_out:
        more = f", and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else ""
        says = f"not judged against {base.full_name}: {', '.join(left_out[:SHOWN])}{more}"
        yield Gate(name="drift", passed=True, says=says)
    elif not told and not others:
        yield Gate(
            name="drift", passed=True, says=f"not judged: no column can be compared with those of {base.full_name}"
        )


def _drift_of(side: Side, name: str, value: float, base: Baseline, limits: tuple[float | None, float | None]) -> Gate:
    warn, hold = limits
    level: Level = "passed"
    limit = hold if warn is None else warn
    if hold is not None and value > hold:
        level, limit = "held", hold
    elif warn is not None and value > warn:
        level = "warned"
    says = f"PSI {value:.3f} against {base.full_name}"
    return Gate(
        name=f"drift of {_called(side, name)}",
        passed=level != "held",
        says=says if limit is None else f"{says}; at most {limit:g}",
        level=level,
        column=name,
        side=side,
        value=value,
        limit=limit,
    )


def _limits(settings: GateSettings, own: ColumnSettings, side: Side) -> tuple[float | None, float | None]:
    """Beyond which PSI a column warns, and holds the run."""
    if side == "output":
        warn: float | None = settings.warn_output_psi
        hold: float | None = settings.hold_output_psi
    else:
        warn, hold = settings.warn_input_psi, settings.hold_input_psi
    return warn if own.warn_psi is None else own.warn_psi, hold if own.hold_psi is None else own.hold_psi


def _profiled(run: Judged) -> Iterator[tuple[Side, str, ColumnProfile]]:
    for name, column in run.outputs.items():
        yield "output", name, column
    for name, column in run.inputs.items():
        yield "input", name, column


def _called(side: Side, name: str) -> str:
    """An input may have the name of an output."""
    return name if side == "output" else f"input {name}"


def _percent(share: float) -> str:
    return f"{share * 100:.4g}%"
