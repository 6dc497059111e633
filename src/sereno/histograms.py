"""Histograms of one column in several profiles over the same bars, so that they can be held against each other.

A profile's numbers lie in bins (see `batch/profile.py`), each of which is spread evenly over the bars that it covers.
Shares are of the values of their own profile: two runs need not have equally many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sereno.batch.profile import ColumnProfile, Floats
from sereno.foreign import harmless

TAIL = 0.005  # of the values, at either end, that must not squeeze all the others into one bar
FAR = 4.0  # how many times the range of the others they have to take for that
WORTH_SHOWING = 0.01  # of the rows: what the most frequent of texts of all sorts has to have
ROUNDING = 1e-9
NULL, OTHERS = "(null)", "(others)"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One column's histograms over the same bars."""

    labels: tuple[str, ...]  # of each bar
    shares: tuple[tuple[float, ...], ...]  # of each profile: the share of its values in each bar, 0 to 1
    edges: tuple[float, ...] = ()  # of numbers: one more than there are bars; none of categories
    ends: tuple[str, str] = ("", "")  # of numbers: what stands below the first and the last bar

    @property
    def most(self) -> float:
        """The largest share of any bar."""
        return max((share for shares in self.shares for share in shares), default=0.0)


def bars_of(columns: Sequence[ColumnProfile], most: int) -> Bars | None:
    """At most so many bars over all the profiles of a column; None where there is nothing to draw.

    Dates, lists and nested rows have no histogram, nor has a column of nulls alone.
    """
    if any(c.bins for c in columns) and not any(c.categories for c in columns):
        return _of_numbers(columns, most)
    if any(c.categories for c in columns) and not any(c.bins for c in columns):
        return _of_categories(columns, most)
    return None


def number(value: Any) -> str:
    """A number as people read it, in four digits; of other values (dates are texts) the text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return harmless(str(value), 40)
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _of_numbers(columns: Sequence[ColumnProfile], most: int) -> Bars:
    all_ends = [c.ends() for c in columns]
    known = [ends for ends in all_ends if len(ends[0])]
    low, high = min(float(low[0]) for low, _, _ in known), max(float(high[-1]) for _, high, _ in known)
    left, right = low, high
    if low < high:
        # one giant among a million must not leave all the others in one bar
        tails = [[c.quantile(share) for c in columns if c.bins] for share in (TAIL, 1 - TAIL)]
        inner_low, inner_high = min(q for q in tails[0] if q is not None), max(q for q in tails[1] if q is not None)
        if inner_low < inner_high and high / 2 - low / 2 > FAR * (inner_high / 2 - inner_low / 2):
            left, right = float(inner_low), float(inner_high)
    count = most if left < right else 1
    steps = np.arange(count + 1) / count
    edges = left * (1 - steps) + right * steps  # between the two, as their difference may be beyond a float
    shares = tuple(tuple(_spread(e, edges).tolist()) if len(e[0]) else (0.0,) * count for e in all_ends)
    labels = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges.tolist())]
    ends = [number(left), number(right)]
    if left == right:
        labels, ends[1] = [number(left)], ""
    if left > low:
        labels[0], ends[0] = f"below {number(float(edges[1]))}", f"≤ {number(left)}"
    if right < high:
        labels[-1], ends[1] = f"{number(float(edges[-2]))} and above", f"≥ {number(right)}"
    return Bars(labels=tuple(labels), shares=shares, edges=tuple(edges.tolist()), ends=(ends[0], ends[1]))


def _spread(ends: tuple[Floats, Floats, Floats], edges: Floats) -> Floats:
    """The share of the values in each bar. What lies beyond the edges is in the outermost bars."""
    low, high, counts = ends
    below = np.empty(len(edges))  # how many values are less than each edge
    for i, edge in enumerate(edges):
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            part = np.where(high > low, (edge / 2 - low / 2) / (high / 2 - low / 2), np.where(low < edge, 1.0, 0.0))
        below[i] = (np.clip(part, 0.0, 1.0) * counts).sum()
    below[0], below[-1] = 0.0, counts.sum()
    shares: Floats = np.diff(below) / counts.sum()
    return shares


def _of_categories(columns: Sequence[ColumnProfile], most: int) -> Bars | None:
    found = [_shares(c) for c in columns]
    known = sorted({name for shares in found for name in shares}, key=lambda n: (-max(f.get(n, 0.0) for f in found), n))
    if all(c.is_free_text for c in columns) and max(f.get(known[0], 0.0) for f in found) < WORTH_SHOWING:
        return None
    chosen = known if len(known) <= most else known[: most - 1]
    labels = [f'"{name}"' if name in (NULL, OTHERS) else harmless(name) for name in chosen]
    shares = [[f.get(name, 0.0) for name in chosen] for f in found]
    nulls = [c.nulls / c.rows if c.rows else 0.0 for c in columns]
    # what is left of each: beyond what was chosen here, and what the profile itself did not count one by one
    others = [max(1 - n - sum(s), 0.0) if c.rows else 0.0 for c, n, s in zip(columns, nulls, shares, strict=True)]
    for label, rest in ((OTHERS, others), (NULL, nulls)):
        if any(share > ROUNDING for share in rest):
            labels.append(label)
            for one, share in zip(shares, rest, strict=True):
                one.append(share)
    return Bars(labels=tuple(labels), shares=tuple(tuple(s) for s in shares))


def _shares(column: ColumnProfile) -> dict[str, float]:
    """The share of all rows that each category has. Of a sample, counts are estimates; rows and nulls are exact."""
    counted = sum(column.categories.values()) + column.others
    if not counted or not column.rows:
        return {}
    scale = (1 - column.nulls / column.rows) / counted
    return {name: count * scale for name, count in column.categories.items()}
