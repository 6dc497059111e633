"""What a run is held against: the profiles of the nearest earlier data date that is published and was not withdrawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from sereno.batch.profile import ColumnProfile, Profile, stored_profile
from sereno.exceptions import StorageError

if TYPE_CHECKING:
    from sereno.batch.attempts import Report
    from sereno.home import Home
    from sereno.snapshots import Snapshot

THIS_RUN = "this run"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The snapshot to compare with, as far as it is still known."""

    version: int
    data_date: date
    outputs: Profile = field(default_factory=dict)
    inputs: Profile = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"version {self.version}"

    def column(self, side: str, name: str) -> ColumnProfile | None:
        """The profile of an "input" or an "output"; None: it does not have that column."""
        return (self.inputs if side == "input" else self.outputs).get(name)


def baseline_of(home: Home, report: Report) -> Baseline | None:
    """The baseline of a report; None: it had none, or what is known of it was removed since."""
    snapshot = home.store.state().snapshots.get(report.baseline) if report.baseline is not None else None
    return baseline_from(home, snapshot) if snapshot is not None else None


def baseline_from(home: Home, snapshot: Snapshot) -> Baseline | None:
    """What was kept with a snapshot; None: nothing was (it is of before there were profiles), or it was removed since."""
    try:
        stored = stored_profile(home.store.folder, snapshot)
    except StorageError:
        return None
    if stored is None:
        return None
    return Baseline(version=snapshot.number, data_date=snapshot.data_date, outputs=stored.outputs, inputs=stored.inputs)
