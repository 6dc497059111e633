"""Drift: how far a column's values are distributed otherwise than on the last data date. One number, the PSI.

PSI (population stability index) = Σ (now − before) · ln(now / before) over the classes of a column, where *before* and
*now* are the shares of the rows in a class: the relative entropy, both ways, added up (Jeffreys' divergence). It is the
measure that credit scoring watches its models with; N. Siddiqi, Credit Risk Scorecards (2006), reads less than 0.1 as no
change, and more than 0.25 as a change that asks for action. B. Yurdakul and J. Naranjo, Statistical properties of the
population stability index, Journal of Risk Model Validation 14 (2020): without any change it comes to about
(classes − 1) · (1/rows before + 1/rows now), which is why few rows are not judged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf, log

from sereno.batch.profile import NUMBERS, ColumnProfile, at_shift

ENOUGH = 1_000  # rows on either side
CLASSES = 10  # of numbers


def psi(before: ColumnProfile, now: ColumnProfile) -> float | None:
    """The PSI of a column between two profiles; None where it would say nothing.

    That is: dates, lists and nested rows, free text, columns of another kind than before, and fewer than ENOUGH rows.
    """
    if not is_judged(before, now):
        return None
    if now.kind in NUMBERS:
        classes = _classes_of_numbers(before, now)
    else:
        classes = _classes_of_categories(before, now)
    return _psi(classes, _looked_at(before), _looked_at(now))


def is_judged(before: ColumnProfile, now: ColumnProfile) -> bool:
    """Whether the two can be compared by their PSI."""
    if min(before.rows, now.rows) < ENOUGH or before.kind != now.kind:
        return False
    if now.kind in ("str", "bool"):
        return not (before.is_free_text or now.is_free_text)
    return now.kind in NUMBERS


def _looked_at(column: ColumnProfile) -> int:
    return column.looked_at or column.rows


def _psi(classes: Sequence[tuple[float, float]], rows_before: int, rows_now: int) -> float:
    """Of (share before, share now) of each class. An empty class counts as half a row: ln(0) is not a number."""
    total = 0.0
    for before, now in classes:
        if before or now:
            before, now = before or 0.5 / rows_before, now or 0.5 / rows_now
            total += (now - before) * log(now / before)
    return total


def _classes_of_categories(before: ColumnProfile, now: ColumnProfile) -> list[tuple[float, float]]:
    """Each category of before, whatever else there is together, and nulls."""
    known = list(before.categories)
    rows = [max(sum(c.categories.values()) + c.others, 1) for c in (before, now)]
    values = [
        (c.rows - c.nulls) / c.rows for c in (before, now)
    ]  # counts may be of a sample, the number of nulls is exact

    def shares(first: int, second: int) -> tuple[float, float]:
        return first / rows[0] * values[0], second / rows[1] * values[1]

    classes = [shares(before.categories[name], now.categories.get(name, 0)) for name in known]
    new = sum(count for name, count in now.categories.items() if name not in before.categories)
    return [*classes, shares(before.others, now.others + new), (1 - values[0], 1 - values[1])]


def _classes_of_numbers(before: ColumnProfile, now: ColumnProfile) -> list[tuple[float, float]]:
    """About tenths of before, whose edges are those of bins, and nulls."""
    shift = max((c.shift for c in (before, now) if c.bins), default=0)
    ordered = [sorted(_in_order(at_shift(c.bins, c.shift, shift), shift)) for c in (before, now)]
    tops = _tops(ordered[0])
    shares = []
    for column, bins in zip((before, now), ordered, strict=True):
        counts = [0] * len(tops)
        for position, count in bins:
            counts[bisect_left(tops, position)] += count
        numbers = (column.rows - column.nulls) / column.rows
        total = max(sum(counts), 1)
        shares.append([*(count / total * numbers for count in counts), column.nulls / column.rows])
    return list(zip(*shares, strict=True))


def _in_order(bins: dict[int, int], shift: int) -> Iterator[tuple[int, int]]:
    """(position, count) of bins, where positions are ordered as the numbers are: the first bit of a float64 is its sign."""
    sign = 1 << (63 - shift)
    for place, count in bins.items():
        yield (sign - place - 1 if place & sign else place), count


def _tops(bins: Sequence[tuple[int, int]]) -> list[float]:
    """The last position of each class, in order; the last class has no end.

    Bins are put together until they hold a tenth of the rows. A bin that holds so many alone (the many zeros of an
    amount, a flag) is a class of its own, so that values next to it, where there were none before, are seen.
    """
    tenth = sum(count for _, count in bins) / CLASSES
    tops: list[float] = []
    gathered = 0
    for position, count in bins:
        if count >= tenth:
            if not tops or tops[-1] < position - 1:
                tops.append(position - 1)
            tops.append(position)
            gathered = 0
        else:
            gathered += count
            if gathered >= tenth:
                tops.append(position)
                gathered = 0
    return [*tops, inf]
