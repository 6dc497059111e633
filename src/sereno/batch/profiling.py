"""Counting: the profile of a task's rows, in the pass that scores them.

Outputs are counted whole. Of inputs, rows, nulls, least and greatest are exact; the total, bins and categories are counted
over a sample: at most SAMPLE rows of each batch, one at random from each of as many equal stretches, which stands for its
stretch. The same rows are always the same sample. Different values, which are dear to count, are counted over fewer yet.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sereno.batch.profile import (
    FINEST,
    MOST_BINS,
    MOST_CATEGORIES,
    NUMBERS,
    SKETCH_BITS,
    Bins,
    ColumnProfile,
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

SAMPLE = 1_024  # rows of a batch
AT_ONCE = 32_768  # rows (of samples) that are counted at once, which costs little more than counting a few
FEW = 256  # of them, whose different values are counted; of a task's first ones, SAMPLE
WIDEST = 65_536  # apart: whole numbers that are counted without being sorted
NOT_KNOWN: Mapping[str, tuple[float, float]] = MappingProxyType({})


class ProfileBuilder:
    """The profile of some columns of one task."""

    def __init__(self, columns: Sequence[Column], *, sampled: bool = False) -> None:
        self._columns = [_counter(c) for c in columns]
        self._names = [c.name for c in columns]
        self._sampled = sampled
        self._spread = np.empty(0, np.int64)  # positions of the sample in the largest batch so far
        self._largest = 0
        self._weight = 1  # how many rows one of the sample stands for
        self._few = SAMPLE
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, table: pa.Table, extremes: Mapping[str, tuple[float, float]] = NOT_KNOWN) -> None:
        """Count a batch of rows, which has the columns among others. `extremes`: the least and the greatest number of some."""
        rows = table.num_rows
        if not rows:
            return
        if self._sampled and rows > self._largest:
            self._flush()
            self._largest, self._weight = rows, -(-rows // SAMPLE)
            self._spread = _spread(rows, self._weight)
        if self._waiting_rows + rows // self._weight > AT_ONCE:
            self._flush()
        table = table.select(self._names)
        for counter, column in zip(self._columns, table.columns, strict=True):
            counter.add(column, extremes.get(counter.column.name))
        if self._weight > 1:
            table = table.take(pa.array(self._spread[: np.searchsorted(self._spread, rows)]))
        self._waiting.append(table)
        self._waiting_rows += table.num_rows

    def build(self) -> Profile:
        self._flush()
        return {c.column.name: c.build() for c in self._columns}

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting)
        few, self._few = slice(None, None, -(-table.num_rows // self._few)), FEW
        self._waiting, self._waiting_rows = [], 0
        for counter, column in zip(self._columns, table.columns, strict=True):
            counter.profile.looked_at += table.num_rows
            counter.count(one_array(column), self._weight, few)


class _Counter:
    """What all columns have: rows and nulls."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.profile = ColumnProfile(kind=column.kind, choices=len(column.choices))
        self._sketch: hll_sketch | None = None

    def add(self, batch: pa.ChunkedArray, extremes: tuple[Any, Any] | None) -> None:
        """What is exact, of all rows."""
        self.profile.rows += len(batch)
        self.profile.nulls += batch.null_count

    def count(self, array: pa.Array, weight: int, few: slice) -> None:
        """The rest, of all rows or a sample, each of which stands for `weight` rows."""

    def build(self) -> ColumnProfile:
        if self._sketch is not None:
            self.profile.sketch = base64.b64encode(self._sketch.serialize_compact()).decode()
        return self.profile

    def widen(self, extremes: tuple[Any, Any] | None) -> None:
        """Take account of a least and a greatest value."""
        if extremes is None:
            return
        profile, (least, greatest) = self.profile, extremes
        profile.least = least if profile.least is None or least < profile.least else profile.least
        profile.greatest = greatest if profile.greatest is None or greatest > profile.greatest else profile.greatest

    def tell_apart(self, values: list[Any], rows: int) -> None:
        """Count different values of so many rows."""
        if self._sketch is None:
            from datasketches import hll_sketch

            self._sketch = hll_sketch(SKETCH_BITS)
        deque(map(self._sketch.update, values), maxlen=0)  # the fastest loop that there is
        self.profile.distinct_of += rows


class _Numbers(_Counter):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._bins: list[Bins] = []
        self._shift = -1

    def add(self, batch: pa.ChunkedArray, extremes: tuple[Any, Any] | None) -> None:
        super().add(batch, extremes)
        self.widen(extremes or _extremes(one_array(batch)))

    def count(self, array: pa.Array, weight: int, few: slice) -> None:
        if self.column.kind == "decimal":
            array = pc.cast(array, pa.float64(), safe=False)
        some = array[few]
        self.tell_apart(some.drop_null().to_numpy().tolist(), len(some))
        x = array.to_numpy(zero_copy_only=False)  # nulls become NaN
        if array.null_count:
            x = x[~np.isnan(x)]
        if not len(x):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self.profile.total = finite(self.profile.total + float(x.sum(dtype=np.float64)) * weight)
        if self._shift < 0:  # a few tell how fine bins can be: at the finest, all would have to be sorted
            self._shift = coarsened(counted(place_of(x[:SAMPLE].astype(np.float64), FINEST)), FINEST)[1]
        if x.dtype.kind == "i":
            numbers, counts = _counted(x)
            new = counted(place_of(numbers.astype(np.float64), self._shift), counts)
        else:
            new = _counted(place_of(x, self._shift))
        self._bins.append((new[0], new[1] * weight))
        if sum(len(places) for places, _ in self._bins) > 16 * MOST_BINS:
            self._join()

    def build(self) -> ColumnProfile:
        if self._bins:
            self._join()
            self.profile.bins, self.profile.shift = as_dict(self._bins[0]), self._shift
        return super().build()

    def _join(self) -> None:
        places, counts = (np.concatenate(some) for some in zip(*self._bins, strict=True))
        joined, self._shift = coarsened(counted(places, counts), self._shift)
        self._bins = [joined]


class _Texts(_Counter):
    """Texts and booleans."""

    def count(self, array: pa.Array, weight: int, few: slice) -> None:
        values = pc.value_counts(array.drop_null())
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
            some = array[few]
            self.tell_apart(pc.unique(some.drop_null()).to_pylist(), len(some))


class _Dates(_Counter):
    def add(self, batch: pa.ChunkedArray, extremes: tuple[Any, Any] | None) -> None:
        super().add(batch, extremes)
        found = _extremes(batch)
        self.widen(found and (found[0].isoformat(), found[1].isoformat()))

    def count(self, array: pa.Array, weight: int, few: slice) -> None:
        pass  # their distribution moves with every data date


class _Others(_Counter):
    """Lists, nested rows and the like: whether all of them are the same. Once two differ, nothing is looked at any more."""

    def add(self, batch: pa.ChunkedArray, extremes: tuple[Any, Any] | None) -> None:
        is_first = not self.profile.rows
        super().add(batch, extremes)
        self.profile.uncounted = True
        if not (is_first or self.profile.same):
            return
        array = one_array(batch)
        is_one = array[:-1].equals(
            array[1:]
        )  # each row with the next one: nothing is copied, the first difference ends it
        digest = _digest(array[0].as_py()) if is_one else ""
        self.profile.same = digest if is_first or digest == self.profile.same else ""


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_unsigned(value)).encode()).hexdigest()[:16]


def _unsigned(value: Any) -> Any:
    """The value without -0.0, which is 0.0."""
    if isinstance(value, dict):
        return {name: _unsigned(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_unsigned(one) for one in value]
    return value + 0.0 if isinstance(value, float) else value


def _counter(column: Column) -> _Counter:
    if column.kind in NUMBERS:
        return _Numbers(column)
    if column.kind in ("str", "bool"):
        return _Texts(column)
    return _Dates(column) if column.kind in ("date", "datetime") else _Others(column)


def _spread(rows: int, stride: int) -> npt.NDArray[np.int64]:
    """A position from each stretch of so many rows."""
    starts: npt.NDArray[np.int64] = np.arange(0, rows, stride)
    # at random, as rows may well come in turns: every second one a guarantor, say
    starts += np.random.default_rng(0).integers(0, stride, len(starts))
    return np.minimum(starts, rows - 1, out=starts)


def _extremes(array: pa.Array | pa.ChunkedArray) -> tuple[Any, Any] | None:
    """The least and the greatest value; None: there are only nulls."""
    if isinstance(array, pa.DoubleArray | pa.Int64Array) and array.null_count == 0:  # numpy is ten times as fast
        x = array.to_numpy()
        return x.min().item(), x.max().item()
    found = pc.min_max(array)
    least, greatest = found["min"].as_py(), found["max"].as_py()
    if least is None:
        return None
    return (float(least), float(greatest)) if pa.types.is_decimal(array.type) else (least, greatest)


def _counted(x: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """Each of some whole numbers, and how often it is there."""
    least = x.min()
    if int(x.max()) - int(least) >= WIDEST:
        return counted(x)
    counts = np.bincount((x - least).view(np.int64))
    found = np.flatnonzero(counts)
    return found.view(x.dtype) + least, counts[found]
