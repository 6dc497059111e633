"""Profile: what is counted of each column of a run, so that gates and people can judge it without reading it again.

Profiles of tasks are merged into the profile of the run. Everything in one merges by addition, so that the order and the
size of tasks do not matter; `profiling.py` counts.
"""

from __future__ import annotations

import base64
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from sereno.exceptions import StorageError
from sereno.places import ObjectPath, Place
from sereno.storage import write_atomically

PROFILES = "_profiles"  # in the folder of the table
MOST_CATEGORIES = 50  # a column of declared choices has as many as it declares
MOST_BINS = 512
SKETCH_BITS = 11  # of a HyperLogLog sketch: 2**11 registers, whose estimate is within 5 % 19 times out of 20
NUMBERS = ("int", "float", "decimal")

Floats = npt.NDArray[np.float64]
Bins = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]  # places and counts


@dataclass(kw_only=True)
class ColumnProfile:
    """One column. Rows, nulls, least and greatest are exact.

    The rest is counted over `looked_at` rows: all of them, or a sample that stands for them, whose counts are scaled up.
    """

    rows: int = 0
    nulls: int = 0
    kind: str = ""  # of the column in its row type; "": not known, of a profile before there were kinds
    choices: int = 0  # how many it declares; 0: it declares none
    least: Any = None  # numbers and dates (ISO text)
    greatest: Any = None
    total: float = 0.0  # of numbers
    looked_at: int = 0
    bins: dict[int, int] = field(default_factory=dict)  # numbers: see `place_of`
    shift: int = 48  # of the bins: how many bits of a number they leave out
    categories: dict[str, int] = field(default_factory=dict)  # texts and booleans: the most frequent
    others: int = 0  # rows with texts that are not among them
    uncounted: bool = (
        False  # lists, nested rows and the like: of their values, it is only known whether they are all the same
    )
    same: str = ""  # of those: the digest of the one value that all rows have; "": they differ
    distinct_of: int = 0  # rows that `sketch` has seen
    sketch: str = ""  # of different values: a HyperLogLog sketch of datasketches, as base64

    @property
    def more_categories(self) -> bool:
        """There are other texts than `categories`."""
        return self.others > 0

    @property
    def is_free_text(self) -> bool:
        """Texts of all sorts, as names or remarks are: their shares say nothing."""
        return self.others > 0 and not self.choices

    @property
    def constant(self) -> bool:
        """Every value of the column is the same."""
        if self.uncounted:
            return self.rows > 0 and self.same != ""
        if self.more_categories or not self.rows:
            return False
        if self.categories:
            return len(self.categories) == 1 and self.nulls == 0
        if self.least is None:
            return self.nulls == self.rows
        return bool(self.least == self.greatest) and self.nulls == 0

    @property
    def mean(self) -> float | None:
        """Of numbers; None: there are none."""
        count = sum(self.bins.values())  # rows − nulls; of a sample, those that it stands for
        return self.total / count if count else None

    @property
    def distinct(self) -> int | None:
        """An estimate of how many different values there are among `distinct_of` rows; None: they were not counted."""
        if not self.sketch:
            return None
        from datasketches import hll_sketch

        sketch = hll_sketch.deserialize(base64.b64decode(self.sketch))
        return round(float(sketch.get_estimate()))

    def quantile(self, share: float) -> float | None:
        """The number that so many of the column's numbers (0 to 1) lie below; None: it has none."""
        low, high, counts = self.ends()
        if not len(counts):
            return None
        place = min(max(share, 0.0), 1.0) * counts.sum()
        before = np.cumsum(counts) - counts
        at = max(int(np.searchsorted(before, place, side="right")) - 1, 0)
        within = min(max((place - before[at]) / counts[at], 0.0), 1.0)
        between = low[at] * (1 - within) + high[at] * within
        return float(min(max(between, low[at]), high[at]))  # the least numbers are rounded beyond the two

    def ends(self) -> tuple[Floats, Floats, Floats]:
        """Least, greatest and count of each bin, in the order of their numbers, no wider than the column's own range."""
        places = np.array(list(self.bins), np.uint64)
        counts = np.array(list(self.bins.values()), np.float64)
        low, high = ends_of(places, self.shift)
        order = np.argsort(low, kind="stable")
        low, high, counts = low[order], high[order], counts[order]
        if isinstance(self.least, int | float) and isinstance(self.greatest, int | float):
            low, high = (np.clip(x, float(self.least), float(self.greatest)) for x in (low, high))
        return low, high, counts

    def merge(self, other: ColumnProfile) -> None:
        """Add what another task counted."""
        for name, value in vars(_merged([self, other])).items():
            setattr(self, name, value)

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
        for first, last, count in zip(*self.ends(), strict=True):
            counts[min(max(bisect_right(edges, first / 2 + last / 2) - 1, 0), bars - 1)] += int(count)
        return list(zip(edges[:-1], edges[1:], counts, strict=True))


Profile = dict[str, ColumnProfile]


@dataclass(kw_only=True)
class StoredProfile:
    """The profile of a run as it is kept with its snapshot."""

    attempt: str
    inputs: Profile  # of the features of all rows that fit the input type; keys are no features
    outputs: Profile  # of the published rows


def merged(profiles: Sequence[Profile]) -> Profile:
    names = dict.fromkeys(name for profile in profiles for name in profile)
    return {name: _merged([p[name] for p in profiles if name in p]) for name in names}


def store_profile(folder: Place, profile: StoredProfile) -> tuple[str, str]:
    """Write a run's profile beside the table in `folder`, to last: its name there, and its SHA-256.

    Raises OSError, StorageError.
    """
    content = msgspec.json.encode(profile)
    file = folder / PROFILES / f"{profile.attempt}.json"
    if isinstance(file, ObjectPath):
        file.write_bytes(content)
    else:  # cleaning knows by the name whose it is
        write_atomically(file, content, temporary=f"{profile.attempt}.tmp")
    return f"{PROFILES}/{file.name}", hashlib.sha256(content).hexdigest()


class Keeps(Protocol):
    """A snapshot or a report: what names the file that its profile is kept in."""

    @property
    def attempt(self) -> str: ...
    @property
    def profile_file(self) -> str: ...
    @property
    def profile_sha256(self) -> str: ...


def stored_profile(folder: Place, owner: Keeps) -> StoredProfile | None:
    """The profile that was stored with a snapshot or an attempt of the table in `folder`; None: it has none.

    Raises StorageError where it is missing or is not what was stored.
    """
    if not owner.profile_file:
        return None
    file = folder / owner.profile_file
    try:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == owner.profile_sha256:
            return msgspec.json.decode(content, type=StoredProfile)
        what = "is not what was stored: its SHA-256 is another"
    except FileNotFoundError:
        what = "is missing"
    except (OSError, msgspec.MsgspecError) as error:
        what = f"cannot be read: {error}"
    raise StorageError(f"The profile of {owner.attempt} in {file} {what}.")


# Bins. A number's place is the first bits of its float64: sign, exponent, and as many bits of the mantissa as leave at
# most MOST_BINS places in use. So bins need no range beforehand, are narrow where numbers lie close together (years,
# scores), at most 1/16 of a number wide otherwise unless they span hundreds of magnitudes, and merge by addition: the
# fewest bits that all of them need is the same whichever are merged first.

FINEST = 32  # bits that are always left out
LARGEST = np.array([np.finfo(np.float64).max]).view(np.uint64)[0]
SIGN = np.uint64(1 << 63)


def place_of(numbers: Floats, shift: int) -> npt.NDArray[np.uint64]:
    """The bin of each number; -0.0 is 0.0."""
    return np.asarray((numbers + 0.0).view(np.uint64) >> np.uint64(shift))


def ends_of(places: npt.NDArray[np.uint64], shift: int) -> tuple[Floats, Floats]:
    """The least and the greatest number of each bin."""
    first = places << np.uint64(shift)
    last = first | np.uint64((1 << shift) - 1)
    # of two numbers of one sign, the one with more bits is farther from zero
    near, far = (((x & SIGN) | np.minimum(x & ~SIGN, LARGEST)).view(np.float64) for x in (first, last))
    return np.minimum(near, far), np.maximum(near, far)


def counted(places: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64] | None = None) -> Bins:
    """How often each place is there, in order of the places; with counts, their sums."""
    if counts is None:
        found, amounts = np.unique(places, return_counts=True)
        return found, amounts.astype(np.int64)
    order = np.argsort(places, kind="stable")
    places, counts = places[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], places[1:] != places[:-1])))
    return places[starts], np.add.reduceat(counts, starts)


def coarsened(bins: Bins, shift: int) -> tuple[Bins, int]:
    """The bins, as fine as at most MOST_BINS can be, and their shift. `bins` are in order of their places."""
    places, counts = bins
    if len(places) <= MOST_BINS:
        return bins, shift
    # two neighbours are in one bin once all the bits in which they differ are left out
    apart = np.frexp((places[1:] ^ places[:-1]).astype(np.float64))[1]
    more = int(np.sort(apart)[-MOST_BINS])
    return counted(places >> np.uint64(more), counts), shift + more


def at_shift(bins: dict[int, int], before: int, shift: int) -> dict[int, int]:
    """Bins as coarse as those of another profile."""
    if shift == before:
        return bins
    coarse: dict[int, int] = {}
    for place, count in bins.items():
        coarse[place >> (shift - before)] = coarse.get(place >> (shift - before), 0) + count
    return coarse


def as_dict(bins: Bins) -> dict[int, int]:
    return dict(zip(bins[0].tolist(), bins[1].tolist(), strict=True))


def finite(total: float) -> float:
    """JSON has neither infinity nor NaN, which is what infinities of both signs add up to."""
    return min(max(total, -1e308), 1e308) if total == total else 0.0


# Merging


def _merged(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    first = parts[0]
    if len(parts) == 1:
        return first
    kind = next((p.kind for p in parts if p.kind), "")
    bounds = [p for p in parts if p.least is not None]
    same = {p.same for p in parts if p.rows}
    bins, shift = _merged_bins([p for p in parts if p.bins])
    categories, others = most_frequent(parts)
    return ColumnProfile(
        rows=sum(p.rows for p in parts),
        nulls=sum(p.nulls for p in parts),
        kind=kind,
        choices=max(p.choices for p in parts),
        least=min((p.least for p in bounds), default=None),
        greatest=max((p.greatest for p in bounds), default=None),
        total=finite(sum(p.total for p in parts)),
        looked_at=sum(p.looked_at for p in parts),
        bins=bins,
        shift=shift,
        categories=categories,
        others=others,
        uncounted=any(p.uncounted for p in parts),
        same=same.pop() if len(same) == 1 else "",
        distinct_of=sum(p.distinct_of for p in parts),
        sketch=_merged_sketch([p.sketch for p in parts if p.sketch]),
    )


def _merged_bins(parts: Sequence[ColumnProfile]) -> tuple[dict[int, int], int]:
    if not parts:
        return {}, ColumnProfile.shift
    shift = max(p.shift for p in parts)
    places = [np.array(list(p.bins), np.uint64) >> np.uint64(shift - p.shift) for p in parts]
    counts = [np.array(list(p.bins.values()), np.int64) for p in parts]
    bins, shift = coarsened(counted(np.concatenate(places), np.concatenate(counts)), shift)
    return as_dict(bins), shift


def most_frequent(parts: Sequence[ColumnProfile]) -> tuple[dict[str, int], int]:
    """The most frequent texts of all, and how many rows have others."""
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.categories.items():
            counts[name] = counts.get(name, 0) + count
    others = sum(p.others for p in parts)
    most = max(MOST_CATEGORIES, *(p.choices for p in parts))
    ranked = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    return dict(ranked[:most]), others + sum(count for _, count in ranked[most:])


def _merged_sketch(sketches: Sequence[str]) -> str:
    if len(sketches) < 2:
        return "".join(sketches)
    from datasketches import hll_sketch, hll_union

    union = hll_union(SKETCH_BITS)
    for one in sketches:
        union.update(hll_sketch.deserialize(base64.b64decode(one)))
    return base64.b64encode(union.get_result().serialize_compact()).decode()
