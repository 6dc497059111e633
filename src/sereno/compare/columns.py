"""One output column in two outputs: how many values differ, by how much, and which most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sereno.batch.profile import ColumnProfile
from sereno.batch.profiling import ProfileBuilder
from sereno.check.compare import differing
from sereno.checks import one_array, python_value
from sereno.compare.comparison import ColumnComparison, How, Pair
from sereno.schema import Column

SHOWN = 10  # keys that differ most, of each column
CHANGES = 20  # of categories
MOST_CHANGES = 10_000  # of them that are counted one by one
DIFFERENCE = (Column(name="difference", kind="float"), Column(name="size", kind="float"))
LARGEST = float(np.finfo(np.float64).max)

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def how_to_compare(before: pa.DataType, now: pa.DataType) -> How:
    """By what two columns of one name can be compared."""
    if _is_number(before) and _is_number(now):
        return "numbers"
    if before != now:
        return "types"
    if pa.types.is_string(before) or pa.types.is_boolean(before):
        return "categories"
    return "other"


class ColumnComparer:
    """Takes the two columns lot by lot."""

    def __init__(self, name: str, before: pa.DataType, now: pa.DataType, *, tolerance: float, size: float) -> None:
        self.name, self.how = name, how_to_compare(before, now)
        self._types = (str(before), str(now))
        self._exact = not (pa.types.is_floating(before) or pa.types.is_floating(now))
        self._tolerance, self._size = tolerance, size
        self._rows = self._differ = self._nulls = self._equal = 0
        self._sizes = ProfileBuilder(DIFFERENCE)
        self._changes: dict[tuple[Any, Any], int] = {}
        self._more_changes = 0
        self._most: list[tuple[float, int, Pair]] = []  # a heap, the smallest first
        self._order = count(0, -1)  # of equal sizes the first ones stay

    def add(self, before: pa.ChunkedArray, now: pa.ChunkedArray, keys: pa.Table) -> Mask:
        """Compare a lot; which rows differ."""
        a, b = one_array(before), one_array(now)
        self._rows += len(a)
        if self.how == "types":
            return np.zeros(len(a), bool)
        unlike = _mask(pc.xor(a.is_null(), b.is_null()))
        self._nulls += int(unlike.sum())
        sizes: Floats | None = None
        match self.how:
            case "numbers":
                differs, sizes = self._numbers(a, b)
            case "categories":
                differs = _mask(pc.fill_null(pc.not_equal(a, b), False))
            case _:
                differs = self._others(a, b)
        differs |= unlike
        self._differ += int(differs.sum())
        if self.how == "categories" and differs.any():
            self._count_changes(a.filter(pa.array(differs)), b.filter(pa.array(differs)))
        self._keep_most(a, b, keys, differs, sizes)
        return differs

    def result(self, psi: float | None) -> ColumnComparison:
        profile = self._sizes.build()
        difference, size = profile["difference"], profile["size"]
        known = self.how == "numbers" and size.rows > 0
        changes = sorted(self._changes.items(), key=lambda c: (-c[1], str(c[0])))
        most = [pair for _, _, pair in sorted(self._most, key=lambda m: m[:2], reverse=True)]
        return ColumnComparison(
            name=self.name,
            how=self.how,
            types=self._types,
            rows=self._rows,
            differ=self._differ,
            nulls=self._nulls,
            mean=difference.mean if known else None,
            mean_size=size.mean if known else None,
            median_size=(0.0 if 2 * self._equal >= size.rows else size.quantile(0.5)) if known else None,
            greatest_size=size.greatest if known else None,
            sizes=size if known else None,
            changes=tuple((a, b, rows) for (a, b), rows in changes[:CHANGES]),
            more_changes=self._more_changes + sum(rows for _, rows in changes[CHANGES:]),
            most=tuple(most),
            psi=psi,
        )

    def _numbers(self, a: pa.Array, b: pa.Array) -> tuple[Mask, Floats]:
        """Floats differ beyond the tolerance of their size (near 0, of the column's); whole numbers and decimals at all."""
        valid = _mask(pc.and_(a.is_valid(), b.is_valid()))
        x, y = (
            pc.fill_null(pc.cast(side, pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False) for side in (a, b)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            difference = np.clip(y - x, -LARGEST, LARGEST)
        difference[~valid] = 0.0
        sizes = np.abs(difference)
        if self._exact:
            differs = _mask(pc.fill_null(pc.not_equal(a, b), False))
        else:
            differs = sizes > self._tolerance * np.maximum(np.maximum(np.abs(x), np.abs(y)), self._size)
        self._sizes.add(pa.table({"difference": difference[valid], "size": sizes[valid]}))
        self._equal += int((valid & (sizes == 0)).sum())
        return differs & valid, sizes

    def _others(self, a: pa.Array, b: pa.Array) -> Mask:
        """Dates; lists and nested rows, whose floats have the same tolerance."""
        if not pa.types.is_nested(a.type):
            return _mask(pc.fill_null(pc.not_equal(a, b), False))
        unlike = [
            x is not None
            and y is not None
            and x != y
            and any(far > self._tolerance for *_, far in differing({"": x}, {"": y}, {}))
            for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)
        ]
        return np.array(unlike, bool)

    def _count_changes(self, a: pa.Array, b: pa.Array) -> None:
        both = pa.table({"a": a, "b": b}).group_by(["a", "b"]).aggregate([([], "count_all")])
        for one, other, rows in zip(*(both.column(c).to_pylist() for c in ("a", "b", "count_all")), strict=True):
            if (one, other) in self._changes or len(self._changes) < MOST_CHANGES:
                self._changes[one, other] = self._changes.get((one, other), 0) + rows
            else:
                self._more_changes += rows

    def _keep_most(self, a: pa.Array, b: pa.Array, keys: pa.Table, differs: Mask, sizes: Floats | None) -> None:
        at = np.flatnonzero(differs)
        if sizes is None:
            at = at[:SHOWN]
        else:
            at = at[np.argsort(-sizes[at], kind="stable")[:SHOWN]]
        for i in at.tolist():
            size = 0.0 if sizes is None else float(sizes[i])
            if len(self._most) == SHOWN and size <= self._most[0][0]:
                continue
            key = tuple(python_value(column, i) for column in keys.columns)
            pair = Pair(key=key, before=python_value(a, i), now=python_value(b, i))
            (heapq.heappush if len(self._most) < SHOWN else heapq.heapreplace)(
                self._most, (size, next(self._order), pair)
            )


def median_size(column: ColumnProfile | None) -> float:
    """The median size of a column's numbers other than 0: what a difference near 0 is measured by, as in `sereno check`."""
    if column is None or not column.bins:
        return 0.0
    low, high, counts = column.ends()
    sizes = np.abs(low / 2 + high / 2)
    some = (low > 0) | (high < 0)  # the bin around 0 has the zeros
    if not some.any():
        return 0.0
    order = np.argsort(sizes[some])
    below = np.cumsum(counts[some][order])
    return float(sizes[some][order][np.searchsorted(below, below[-1] / 2)])


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _mask(array: pa.Array) -> Mask:
    mask: Mask = array.to_numpy(zero_copy_only=False)
    return np.array(mask, bool)  # a copy, which may be written to


def listed_keys(table: pa.Table, most: int) -> list[tuple[Any, ...]]:
    """The first keys of a table."""
    few: Sequence[Any] = [column.to_pylist() for column in table.slice(0, most).columns]
    return list(zip(*few, strict=True))
