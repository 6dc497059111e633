"""Profile: counts of each output column, taken in the pass that writes it and merged over all tasks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sereno.checks import one_array
from sereno.schema import RowType

MOST_CATEGORIES = 50


@dataclass(kw_only=True)
class ColumnProfile:
    rows: int = 0
    nulls: int = 0
    least: Any = None  # numbers and dates (ISO text)
    greatest: Any = None
    total: float = 0.0  # of numbers, so that the mean is total / (rows − nulls)
    bins: dict[int, int] = field(default_factory=dict)  # numbers: see `_bin_of`
    categories: dict[str, int] = field(default_factory=dict)  # texts and booleans, at most MOST_CATEGORIES
    more_categories: bool = False  # there are others, which are not counted
    uncounted: bool = False  # lists, nested rows and the like: no values are compared

    @property
    def constant(self) -> bool:
        """Every value of the column is the same (several, and compared)."""
        if self.uncounted or self.more_categories or not self.rows:
            return False
        if self.categories:
            return len(self.categories) == 1 and self.nulls == 0
        if self.least is None:
            return self.nulls == self.rows
        return bool(self.least == self.greatest) and self.nulls == 0

    @property
    def mean(self) -> float | None:
        count = self.rows - self.nulls
        return self.total / count if self.bins and count else None

    def merge(self, other: ColumnProfile) -> None:
        self.rows += other.rows
        self.nulls += other.nulls
        self.total = _finite(self.total + other.total)
        if other.least is not None:
            self.least = other.least if self.least is None else min(self.least, other.least)
            self.greatest = other.greatest if self.greatest is None else max(self.greatest, other.greatest)
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count
        for name, count in other.categories.items():
            if name in self.categories or len(self.categories) < MOST_CATEGORIES:
                self.categories[name] = self.categories.get(name, 0) + count
            else:
                self.more_categories = True
        self.more_categories |= other.more_categories
        self.uncounted |= other.uncounted

    def histogram(self, bars: int) -> list[tuple[float, float, int]]:
        """(from, to, count) of equal bars over the range; the bins are finer than what a terminal shows."""
        if not self.bins or self.least is None:
            return []
        low, high = float(self.least), float(self.greatest)
        if low == high:
            return [(low, high, self.rows - self.nulls)]
        # between the two, as their difference may be beyond a float
        edges = [low * (1 - i / bars) + high * (i / bars) for i in range(bars + 1)]
        counts = [0] * bars
        for place, count in self.bins.items():
            middle = min(max(_middle_of(place), low), high)
            counts[min(max(bisect_right(edges, middle) - 1, 0), bars - 1)] += count
        return list(zip(edges[:-1], edges[1:], counts, strict=True))


Profile = dict[str, ColumnProfile]


class ProfileBuilder:
    """The profile of one task's output."""

    def __init__(self, outputs: RowType) -> None:
        self._columns = outputs.columns
        self._profile: Profile = {c.name: ColumnProfile() for c in outputs.columns}

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        for column in self._columns:
            part = _profile_of(column.kind, one_array(table.column(column.name)))
            self._profile[column.name].merge(part)

    def build(self) -> Profile:
        return self._profile


def merged(profiles: Sequence[Profile]) -> Profile:
    total: Profile = {}
    for profile in profiles:
        for name, column in profile.items():
            total.setdefault(name, ColumnProfile()).merge(column)
    return total


def _profile_of(kind: str, array: pa.Array) -> ColumnProfile:
    part = ColumnProfile(rows=len(array), nulls=array.null_count)
    if kind in ("int", "float", "decimal"):
        numbers = pc.cast(array, pa.float64(), safe=False)
        x = (numbers.drop_null() if array.null_count else numbers).to_numpy(zero_copy_only=False)
        if len(x):
            if kind == "int":  # exact: above 2**53 two values may be one float
                part.least, part.greatest = (pc.min_max(array)[k].as_py() for k in ("min", "max"))
            else:
                part.least, part.greatest = float(x.min()), float(x.max())
            with np.errstate(over="ignore", invalid="ignore"):
                part.total = _finite(float(x.sum()))
            counts = np.bincount(_bin_of(x))
            part.bins = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    elif kind in ("str", "bool"):
        counted = pc.value_counts(pc.cast(array.drop_null(), pa.string()))
        values, amounts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
        part.categories = dict(list(zip(values, amounts, strict=True))[:MOST_CATEGORIES])
        part.more_categories = len(values) > MOST_CATEGORIES
    elif kind in ("date", "datetime"):
        extremes = pc.min_max(array)
        if extremes["min"].as_py() is not None:
            part.least, part.greatest = (extremes[k].as_py().isoformat() for k in ("min", "max"))
    else:
        part.uncounted = True
    return part


def _finite(total: float) -> float:
    """JSON has neither infinity nor NaN, which is what infinities of both signs add up to."""
    return min(max(total, -1e308), 1e308) if total == total else 0.0


def _bin_of(x: Any) -> Any:
    """The bin of each number: the first 16 bits of its float64 (sign, exponent, 4 bits of mantissa).

    So bins are at most 1/16 of a value wide anywhere, need no range beforehand, and merge by addition.
    """
    return (np.ascontiguousarray(x).view(np.uint64) >> np.uint64(48)).astype(np.int64)


def _middle_of(place: int) -> float:
    first, last = np.array([place << 48, (place << 48) | ((1 << 48) - 1)], np.uint64).view(np.float64).tolist()
    return float(first / 2 + last / 2)
