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

from sereno.batch.profile import MOST_CATEGORIES, NUMBERS, ColumnProfile, at_shift

ENOUGH = 1_000  # rows on either side
CLASSES = 10  # of numbers
LEAST_SHARE = 0.01  # of a class of categories, of the rows before
LEAST_ROWS = (
    20  # of one; together with as many times the ratio of the rows, so that a PSI without change is about 0.05 at most
)
JUDGED = (*NUMBERS, "str", "bool")  # kinds of columns


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
    return now.kind in JUDGED and not why_not_judged(before, now)


def why_not_judged(before: ColumnProfile | None, now: ColumnProfile) -> str:
    """Why a column of a kind that is judged is not, for a message; "": it is. `before` is None where it was not there."""
    if before is None:
        return "it is not there"
    if before.kind != now.kind:
        return f"it is of kind {before.kind} there" if before.kind else "its kind there is not known"
    if min(before.rows, now.rows) < ENOUGH:
        return f"fewer than {ENOUGH:,} rows"
    if before.is_free_text:
        return f"it has more than {MOST_CATEGORIES} different texts there"
    # texts that were counted one by one, as they were declared, and now are not
    if now.others and len(before.categories) > max(MOST_CATEGORIES, now.choices):
        return "it declared its choices there"
    return ""


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
    """The categories of before, rare ones put together, then whatever else there is, and nulls.

    Which of the rare ones are together goes by their names. By how often they were there, those would come together that
    were so by chance, which looks like drift on the next night.
    """
    totals = [sum(c.categories.values()) + c.others for c in (before, now)]
    # counts may be of a sample, the number of nulls is exact
    values = [(c.rows - c.nulls) / c.rows for c in (before, now)]
    looked_at = [_looked_at(c) for c in (before, now)]
    enough = max(LEAST_SHARE, LEAST_ROWS * (1 / looked_at[0] + 1 / looked_at[1]))

    def share(count: int, side: int) -> float:
        return count / max(totals[side], 1) * values[side]

    classes: list[tuple[int, int]] = []  # rows before and now
    together: list[tuple[int, int]] = []
    is_open = False  # the last of those together has too few
    names = {**before.categories, **now.categories} if before.choices else before.categories
    for name in sorted(names):
        both = (before.categories.get(name, 0), now.categories.get(name, 0))
        if share(both[0], 0) >= enough:
            classes.append(both)
        # of texts without choices, those that are hardly ever there are as others that never were
        elif before.choices or share(both[0], 0) * looked_at[0] >= LEAST_ROWS:
            last = together.pop() if is_open else (0, 0)
            together.append((last[0] + both[0], last[1] + both[1]))
            is_open = share(together[-1][0], 0) < enough
    if is_open and len(together) > 1:
        last, other = together.pop(), together.pop()
        together.append((last[0] + other[0], last[1] + other[1]))
    classes += together
    classes.append((totals[0] - sum(c[0] for c in classes), totals[1] - sum(c[1] for c in classes)))
    return [*((share(a, 0), share(b, 1)) for a, b in classes), (1 - values[0], 1 - values[1])]


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
