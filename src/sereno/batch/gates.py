"""Gates: what holds a run instead of publishing it. They look at the whole output, before the commit.

What cannot be a result fails elsewhere (a missing column, no rows, duplicate keys); gates see what may be a wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sereno.batch.profile import Profile
from sereno.settings import GateSettings
from sereno.snapshots import Snapshot

Level = Literal["passed", "warned", "held"]
ENOUGH_TO_JUDGE = 10  # rows; fewer may well be equal by chance


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate's verdict."""

    name: str
    passed: bool  # it does not hold the run
    says: str  # with the numbers and the limit
    level: Level = "passed"
    column: str = ""  # which it is about; "": it is about no column
    side: Literal["output", "input", ""] = ""  # whose column that is
    value: float | None = None  # what was found, where it is one number
    limit: float | None = None  # what it may be at most

    def __post_init__(self) -> None:
        if not self.passed:
            object.__setattr__(self, "level", "held")


def judge(
    settings: GateSettings, *, rows_in: int, rejects: int, answered: int, profile: Profile, last: Snapshot | None
) -> list[Gate]:
    """Every gate's verdict. `rejects` are those that count; `last` is the snapshot to compare the number of rows with."""
    gates = []
    # shares are divisions, which come out as the number that was written: 0.29 × 100 is less than 29, 29 / 100 is 0.29
    few = rejects <= settings.max_reject_rows or rejects / rows_in <= settings.max_reject_share
    limit = max(settings.max_reject_rows, math.floor(settings.max_reject_share * rows_in + 1e-6))
    says = f"{rejects:,} of {rows_in:,} rows ({rejects / rows_in:.2%}); at most {limit:,} may be"
    gates.append(Gate(name="rejects", passed=few, says=says))
    if last is not None:
        change = (answered - last.rows) / last.rows
        says = (
            f"{answered:,} predictions, {change:+.0%} against {last.rows:,} of version {last.number} "
            f"({last.data_date}); at most ±{settings.max_row_change:.0%}"
        )
        gates.append(Gate(name="row count", passed=abs(change) <= settings.max_row_change, says=says))
    for name, column in profile.items():
        share = column.nulls / column.rows if column.rows else 0.0
        if column.nulls:
            says = f"{share:.1%} of {name} are null; at most {settings.max_null_share:.0%}"
            gates.append(Gate(name=f"nulls of {name}", passed=share <= settings.max_null_share, says=says))
    constant = answered >= ENOUGH_TO_JUDGE and all(c.constant for c in profile.values())
    says = "every row got the same prediction" if constant else "predictions differ"
    gates.append(Gate(name="constant", passed=not constant or settings.constant == "allow", says=says))
    return gates
