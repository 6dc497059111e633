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
    """The snapshot to compare with, and its profiles as far as they are there."""

    version: int
    data_date: date
    rows: int = 0  # predictions
    outputs: Profile = field(default_factory=dict)
    inputs: Profile = field(default_factory=dict)
    has_profile: bool = True
    trouble: str = ""  # in reading the profile

    @property
    def name(self) -> str:
        return f"version {self.version}"

    @property
    def full_name(self) -> str:
        return f"{self.name} ({self.data_date})"

    def column(self, side: str, name: str) -> ColumnProfile | None:
        """The profile of an "input" or an "output"; None: it does not have that column."""
        return (self.inputs if side == "input" else self.outputs).get(name)


def baseline_of(home: Home, report: Report) -> Baseline | None:
    """The baseline of a report; None: it had none, or the log does not know it any more."""
    snapshot = home.store.state().snapshots.get(report.baseline) if report.baseline is not None else None
    return baseline_from(home, snapshot) if snapshot is not None else None


def baseline_from(home: Home, snapshot: Snapshot) -> Baseline:
    """A snapshot, and what was kept with it: nothing where it is of before profiles were kept, trouble where it should be
    there and is not as it was stored."""
    version, data_date, rows = snapshot.number, snapshot.data_date, snapshot.rows
    try:
        stored = stored_profile(home.store.folder, snapshot)
    except StorageError as error:
        return Baseline(version=version, data_date=data_date, rows=rows, has_profile=False, trouble=str(error))
    if stored is None:
        return Baseline(version=version, data_date=data_date, rows=rows, has_profile=False)
    return Baseline(version=version, data_date=data_date, rows=rows, outputs=stored.outputs, inputs=stored.inputs)
