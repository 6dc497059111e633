"""Counting: the profile of a task's rows, in the pass that scores them.

Outputs are counted whole. Of inputs, rows, nulls, least, greatest and total are exact; bins, categories and different
values are counted over a sample: at most SAMPLE rows of each batch, one at random from each of as many equal stretches.
The same rows are always the same sample.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sereno.batch.profile import (
    FINEST,
    MOST_CATEGORIES,
    NUMBERS,
    SKETCH_BITS,
    Bins,
    ColumnProfile,
    Floats,
    Profile,
    as_dict,
    coarsened,
    counted,
    finite,
    most_frequent,
    place_of,
)
from sereno.checks import one_array
from sereno.schema import Column

if TYPE_CHECKING:
    from datasketches import hll_sketch

SAMPLE = 2_048  # rows of a batch
FEW = 256  # of them, whose different values are counted; of a task's first batch, all
AT_ONCE = 262_144  # numbers that are waiting to be put into bins

Positions = npt.NDArray[np.int64]


class ProfileBuilder:
    """The profile of some columns of one task."""

    def __init__(self, columns: Sequence[Column], *, sampled: bool = False) -> None:
        self._columns = [_counter(c) for c in columns]
        self._sampled = sampled
        self._random = np.random.default_rng(0)
        self._is_first = True

    def add(self, table: pa.Table) -> None:
        """Count a batch of rows, which has the columns among others."""
        rows = table.num_rows
        if not rows:
            return
        stride = max(1, -(-rows // SAMPLE))
        spread = self._spread(rows, stride)  # of a whole profile, too: different values are dear to count
        few = spread if self._is_first else spread[:: max(1, -(-len(spread) // FEW))]
        self._is_first = False
        sample, weight = (spread, stride) if self._sampled and stride > 1 else (None, 1)
        for counter in self._columns:
            array = one_array(table.column(counter.column.name))
            counter.add(array, sample, weight, few if len(few) < rows else None)

    def build(self) -> Profile:
        return {c.column.name: c.build() for c in self._columns}

    def _spread(self, rows: int, stride: int) -> Positions:
        """A position from each stretch of so many rows."""
        starts: Positions = np.arange(0, rows, stride)
        if stride == 1:
            return starts
        # at random, as rows may well come in turns: every second one a guarantor, say
        starts += self._random.integers(0, stride, len(starts))
        return np.minimum(starts, rows - 1, out=starts)


class _Counter:
    """What all columns have: rows and nulls. Of lists, nested rows and the like, nothing else."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.profile = ColumnProfile(kind=column.kind, choices=len(column.choices))

    def add(self, array: pa.Array, sample: Positions | None, weight: int, few: Positions | None) -> None:
        """Count a batch. `sample` and `few` are positions in it; None: all."""
        self.profile.rows += len(array)
        self.profile.nulls += array.null_count
        self.profile.looked_at += len(array) if sample is None else len(sample)
        self.count(array, sample, weight, few)

    def count(self, array: pa.Array, sample: Positions | None, weight: int, few: Positions | None) -> None:
        self.profile.uncounted = True

    def build(self) -> ColumnProfile:
        return self.profile

    def widen(self, least: Any, greatest: Any) -> None:
        p = self.profile
        p.least = least if p.least is None else min(p.least, least)
        p.greatest = greatest if p.greatest is None else max(p.greatest, greatest)


class _Sketch:
    """An estimate of how many different values there are."""

    def __init__(self) -> None:
        self._sketch: hll_sketch | None = None
        self.rows = 0

    def add(self, values: list[Any], rows: int) -> None:
        if self._sketch is None:
            from datasketches import hll_sketch

            self._sketch = hll_sketch(SKETCH_BITS)
        deque(map(self._sketch.update, values), maxlen=0)  # the fastest loop that there is
        self.rows += rows

    def put_into(self, profile: ColumnProfile) -> None:
        if self._sketch is not None:
            profile.sketch = base64.b64encode(self._sketch.serialize_compact()).decode()
            profile.distinct_of = self.rows


class _Numbers(_Counter):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._waiting: list[Floats] = []
        self._waiting_rows, self._weight = 0, 1
        self._bins: Bins = (np.empty(0, np.uint64), np.empty(0, np.int64))
        self._shift = FINEST
        self._sketch = _Sketch()

    def count(self, array: pa.Array, sample: Positions | None, weight: int, few: Positions | None) -> None:
        profile = self.profile
        numbers = pc.cast(array, pa.float64(), safe=False) if self.column.kind != "float" else array
        missing: Any = None
        if array.null_count:
            missing = array.is_null().to_numpy(zero_copy_only=False)
            numbers = numbers.fill_null(0.0)
        x: Floats = numbers.to_numpy(zero_copy_only=False)
        known = x if missing is None else x[~missing]
        if len(known):
            if self.column.kind == "int":  # exact: above 2**53 two values may be one float
                self.widen(*(pc.min_max(array)[k].as_py() for k in ("min", "max")))
            else:
                self.widen(float(known.min()), float(known.max()))
            with np.errstate(over="ignore", invalid="ignore"):
                profile.total = finite(profile.total + float(known.sum()))
        self._wait(known if sample is None else _without(x, sample, missing), weight)
        exact = array if self.column.kind == "int" and array.null_count == 0 else None
        seen = _without(x if exact is None else exact.to_numpy(), few, missing)
        self._sketch.add(seen.tolist(), len(array) if few is None else len(few))

    def build(self) -> ColumnProfile:
        self._flush()
        if len(self._bins[0]):
            self.profile.bins, self.profile.shift = as_dict(self._bins), self._shift
        self._sketch.put_into(self.profile)
        return self.profile

    def _wait(self, x: Floats, weight: int) -> None:
        """Many batches are put into bins at once: that costs as much as one."""
        if weight != self._weight or self._waiting_rows + len(x) > AT_ONCE:
            self._flush()
        self._weight = weight
        self._waiting.append(x)
        self._waiting_rows += len(x)

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        places = place_of(np.concatenate(self._waiting), self._shift)
        self._waiting, self._waiting_rows = [], 0
        least = places.min()
        if places.max() - least < 4 * len(places):  # else it would be mostly counts of nothing
            counts = np.bincount((places - least).astype(np.int64))
            found = np.flatnonzero(counts)
            new = (found.astype(np.uint64) + least, counts[found] * self._weight)
        else:
            new = counted(places)
            new = (new[0], new[1] * self._weight)
        both = (np.concatenate([a, b]) for a, b in zip(self._bins, new, strict=True))
        self._bins, self._shift = coarsened(counted(*both), self._shift)


class _Texts(_Counter):
    """Texts and booleans."""

    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._sketch = _Sketch()

    def count(self, array: pa.Array, sample: Positions | None, weight: int, few: Positions | None) -> None:
        looked = array if sample is None else array.take(pa.array(sample))
        values = pc.value_counts(looked.drop_null())
        names, amounts = values.field("values"), values.field("counts").to_numpy() * weight
        most = max(MOST_CATEGORIES, len(self.column.choices))
        part = ColumnProfile(choices=self.profile.choices)
        if len(names) > 4 * most:  # of all sorts: the most frequent of them will do
            order = np.sort(np.argsort(-amounts, kind="stable")[: 4 * most])
            part.others = int(amounts.sum() - amounts[order].sum())
            names, amounts = names.take(pa.array(order)), amounts[order]
        texts = pc.cast(names, pa.string()).to_pylist()
        part.categories = dict(zip(texts, amounts.tolist(), strict=True))
        self.profile.categories, self.profile.others = most_frequent([self.profile, part])
        if self.column.kind == "str":
            seen = array if few is None else array.take(pa.array(few))
            self._sketch.add(pc.unique(seen.drop_null()).to_pylist(), len(seen))

    def build(self) -> ColumnProfile:
        self._sketch.put_into(self.profile)
        return self.profile


class _Dates(_Counter):
    def count(self, array: pa.Array, sample: Positions | None, weight: int, few: Positions | None) -> None:
        extremes = pc.min_max(array)
        if extremes["min"].as_py() is not None:
            self.widen(*(extremes[k].as_py().isoformat() for k in ("min", "max")))


def _counter(column: Column) -> _Counter:
    if column.kind in NUMBERS:
        return _Numbers(column)
    if column.kind in ("str", "bool"):
        return _Texts(column)
    return _Dates(column) if column.kind in ("date", "datetime") else _Counter(column)


def _without(x: Any, positions: Positions | None, missing: Any) -> Any:
    """Those of the values at the positions (None: of all) that are not missing."""
    if positions is None:
        return x if missing is None else x[~missing]
    return x[positions] if missing is None else x[positions][~missing[positions]]
