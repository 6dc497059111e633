"""What a comparison found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal

from sereno.batch.gates import Gate
from sereno.batch.profile import ColumnProfile, Profile

How = Literal["numbers", "categories", "other", "types"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """The challenger's output, or the snapshot's."""

    name: str  # of the model
    called: str  # in tables: "challenger", "version 3"
    data_date: date
    predictions: int
    rejects: int
    reasons: dict[str, int]  # of the rejects; empty where their file was removed
    fingerprint: str
    outputs: Profile
    inputs: Profile
    version: int | None = None  # None: the challenger

    @property
    def rows_in(self) -> int:
        return self.predictions + self.rejects


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One key's two values."""

    key: tuple[Any, ...]
    before: Any  # of the snapshot
    now: Any  # of the challenger


@dataclass(frozen=True, kw_only=True)
class ColumnComparison:
    """One output column, over the keys that both have."""

    name: str
    how: How  # its values are compared; "types": they cannot be, for they are of two types
    types: tuple[str, str]  # of the snapshot's and the challenger's values
    rows: int = 0  # keys that both have
    differ: int = 0  # of them, whose values differ beyond the tolerance
    nulls: int = 0  # of these, where one of the two is null
    mean: float | None = None  # of the differences of numbers, challenger − snapshot
    mean_size: float | None = None  # of their sizes, and so on
    median_size: float | None = None
    greatest_size: float | None = None
    sizes: ColumnProfile | None = None  # all of them
    changes: tuple[tuple[Any, Any, int], ...] = ()  # of categories: from, to, rows; the most frequent first
    more_changes: int = 0  # rows with other changes
    most: tuple[Pair, ...] = ()  # the keys that differ most; of values that are no numbers, some
    psi: float | None = None  # between the two profiles; None: not judged

    @property
    def share(self) -> float:
        return self.differ / self.rows if self.rows else 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A challenger beside a snapshot, on the same data date."""

    challenger: Side
    against: Side
    file: str  # the challenger's
    source: str
    keys: tuple[str, ...]
    tolerance: float
    both: int  # keys that both have
    differ: int  # of them, with any output that differs
    only_challenger: int
    only_against: int
    some_only_challenger: tuple[tuple[Any, ...], ...]  # a few of these keys
    some_only_against: tuple[tuple[Any, ...], ...]
    columns: tuple[ColumnComparison, ...]  # that both have
    outputs_only_challenger: tuple[str, ...]
    outputs_only_against: tuple[str, ...]
    gates: list[Gate]  # the challenger's, judged against the snapshot
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Nothing differs: the same keys with the same predictions."""
        others = self.only_challenger or self.only_against or self.outputs_only_challenger or self.outputs_only_against
        return not self.differ and not others and not any(c.how == "types" for c in self.columns)

    @property
    def would_be_held(self) -> bool:
        return any(not gate.passed for gate in self.gates)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        plain = {"same": self.same, "would_be_held": self.would_be_held, **asdict(self)}
        for column, shown in zip(self.columns, plain["columns"], strict=True):
            shown["share"] = column.share
            del shown["sizes"]
        for side, shown in ((self.challenger, plain["challenger"]), (self.against, plain["against"])):
            shown["rows_in"] = side.rows_in
        return plain
