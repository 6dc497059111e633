"""Drift: the PSI against a calculation by hand, and against numpy on the values themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.drift import psi
from sereno.batch.profile import MOST_CATEGORIES, ColumnProfile, merged
from sereno.batch.profiling import ProfileBuilder
from sereno.schema import Column, Kind

Floats = npt.NDArray[np.float64]
MODERATE = settings(max_examples=25, deadline=None)


def profile_of(
    values: Any, kind: Kind = "float", *, sampled: bool = False, rows: int = 4_096, **column: Any
) -> ColumnProfile:
    """The profile of a column, counted batch by batch."""
    builder = ProfileBuilder([Column(name="x", kind=kind, nullable=True, **column)], sampled=sampled)
    array = pa.array(values, Column(name="x", kind=kind).arrow_type)
    for start in range(0, len(array), rows):
        builder.add(pa.table({"x": array.slice(start, rows)}))
    return builder.build()["x"]


def by_numpy(before: Floats, now: Floats) -> float:
    """The PSI as textbooks have it: classes between the deciles of before, of the values themselves."""
    edges = np.unique(np.quantile(before, np.arange(1, 10) / 10))
    counts = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (before, now)]
    a, b = (np.maximum(c, 0.5) / c.sum() for c in counts)
    return float(((b - a) * np.log(b / a)).sum())


def test_by_hand() -> None:
    """600 × a, 400 × b; then 500 × a, 300 × b, 200 × null."""
    before = profile_of(["a"] * 600 + ["b"] * 400, "str")
    now = profile_of(["a"] * 500 + ["b"] * 300 + [None] * 200, "str")
    expected = (
        (0.5 - 0.6) * math.log(0.5 / 0.6)
        + (0.3 - 0.4) * math.log(0.3 / 0.4)
        + (0.2 - 0.0005) * math.log(0.2 / 0.0005)  # no null before counts as half a row of 1,000
    )
    assert psi(before, now) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(1.24230, abs=1e-5)


def test_numbers_by_hand() -> None:
    """Ten numbers, each a tenth; then the first half only."""
    before = profile_of(list(range(10)) * 100, "int")
    now = profile_of(list(range(5)) * 200, "int")
    expected = 5 * (0.2 - 0.1) * math.log(2) + 5 * (0.0005 - 0.1) * math.log(0.0005 / 0.1)
    assert psi(before, now) == pytest.approx(expected, rel=1e-12)


SHAPES = {
    "normal": lambda r, n, d: r.normal(d, 1, n),
    "scores": lambda r, n, d: r.normal(700 + 3 * d, 3, n),  # narrow, far from zero
    "probabilities": lambda r, n, d: r.beta(2 + 2 * d, 5, n),
    "amounts": lambda r, n, d: r.lognormal(8 + d, 2, n),
    "negative": lambda r, n, d: -r.gamma(2 + d, 100, n),
}


@MODERATE
@given(st.sampled_from(sorted(SHAPES)), st.floats(0, 1), st.integers(0, 2**32), st.integers(1_000, 30_000))
def test_against_numpy(shape: str, shift: float, seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    before, now = SHAPES[shape](random, rows, 0), SHAPES[shape](random, rows + 500, shift)
    found, expected = psi(profile_of(before), profile_of(now)), by_numpy(before, now)
    assert found is not None
    # classes end where bins do, not at the deciles themselves, hence not all the same
    assert abs(found - expected) < 0.02 + 0.12 * expected


@MODERATE
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 2**32), st.booleans())
def test_small_where_nothing_changed_and_large_where_much_did(shape: str, seed: int, sampled: bool) -> None:
    random = np.random.default_rng(seed)
    before, same, other = (SHAPES[shape](random, 20_000, d) for d in (0, 0, 1.5))
    found = [psi(profile_of(before, sampled=sampled), profile_of(x, sampled=sampled)) for x in (same, other)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] < 0.05
    assert found[1] > 0.25


def test_what_was_never_there_is_seen() -> None:
    zeros, ones = [0.0] * 2_000, [0.0] * 1_000 + [1.0] * 1_000
    assert (psi(profile_of(zeros), profile_of(zeros)) or 0) == 0
    for now in (ones, [-x for x in ones]):  # a constant has no deciles: on either side of it is a class
        assert (psi(profile_of(zeros), profile_of(now)) or 0) > 1
    years = [2015 + i % 10 for i in range(5_000)]
    assert (psi(profile_of(years, "int"), profile_of([y + 1 for y in years], "int")) or 0) > 0.25
    new = profile_of(["a"] * 900 + ["new"] * 100, "str")
    assert (psi(profile_of(["a"] * 1_000, "str"), new) or 0) > 0.25


def test_far_numbers_of_either_sign() -> None:
    wide = [-1e300, -1.0, -1e-300, -0.0, 0.0, 1e-300, 1.0, 1e300] * 200
    assert psi(profile_of(wide), profile_of(wide)) == 0
    assert (psi(profile_of(wide), profile_of([-1e300] * 1_600)) or 0) > 1


def test_merged_profiles_have_the_drift_of_the_whole() -> None:
    random = np.random.default_rng(3)
    before, now = random.normal(0, 1, 9_000), random.normal(0.3, 1, 9_000)
    parts = merged([{"x": profile_of(part)} for part in np.array_split(now, 7)])["x"]
    assert psi(profile_of(before), parts) == psi(profile_of(before), profile_of(now))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (profile_of([1.0] * 999), profile_of([1.0] * 5_000)),
        (profile_of([1.0] * 5_000), profile_of([1.0] * 999)),
        (profile_of([1.0] * 1_000), profile_of([1] * 1_000, "int")),
        (profile_of([str(i) for i in range(1_000)], "str"), profile_of(["a"] * 1_000, "str")),  # free text
        (profile_of([True] * 1_000, "bool"), profile_of(["true"] * 1_000, "str")),
        (profile_of([0] * 1_000, "date"), profile_of([1] * 1_000, "date")),
        (profile_of([0] * 1_000, "datetime"), profile_of([1] * 1_000, "datetime")),
    ],
    ids=["few before", "few now", "another kind", "free text", "booleans and texts", "dates", "times"],
)
def test_what_is_not_judged(before: ColumnProfile, now: ColumnProfile) -> None:
    assert psi(before, now) is None
    assert psi(before, before) is None or before.kind not in ("date", "datetime")


def test_declared_choices_are_judged_however_many() -> None:
    choices = tuple(f"c{i:02}" for i in range(80))
    values = [choices[i % 80] for i in range(8_000)]
    before = profile_of(values, "str", choices=choices)
    assert (len(before.categories), before.others) == (80, 0)
    assert psi(before, before) == 0
    assert (psi(before, profile_of(values[:40] * 200, "str", choices=choices)) or 0) > 0.25
    assert psi(profile_of(values, "str"), profile_of(values, "str")) is None  # undeclared, they are free text


def test_texts_of_all_sorts_where_there_were_a_few_are_drift() -> None:
    before = profile_of(["A", "B", "C"] * 1_000, "str")
    garbage = profile_of([f"error {i}" for i in range(3_000)], "str")
    assert (psi(before, garbage) or 0) > 5
    typos = [f"Aa{i}" for i in range(MOST_CATEGORIES + 1)]
    assert (psi(before, profile_of(["A"] * 3_000 + typos, "str")) or 0) > 1  # B and C are gone
    few = psi(before, profile_of(["A", "B", "C"] * 1_000 + typos, "str"))
    assert few is not None
    assert few < 0.1
    # choices that are no longer declared are no longer counted one by one
    choices = tuple(f"c{i:02}" for i in range(80))
    declared = profile_of(choices * 20, "str", choices=choices)
    assert psi(declared, profile_of(choices * 20, "str")) is None


def test_names_that_hardly_any_row_has_are_others_on_either_side() -> None:
    """Remarks that most rows do not have: few enough to be counted, and other ones each night."""
    nights = [[f"{night} {i}" for i in range(40)] + [None] * 1_000 for night in (1, 2)]
    assert psi(*(profile_of(values, "str") for values in nights)) == pytest.approx(0)


@pytest.mark.parametrize("shape", ["even", "uneven"])
@pytest.mark.parametrize(("rows", "rows_now"), [(1_000, 1_000), (1_200, 1_200), (1_000, 20_000), (20_000, 1_000)])
def test_many_categories_alone_are_no_drift(rows: int, rows_now: int, shape: str) -> None:
    random = np.random.default_rng([rows, rows_now])
    for choices in (2, 12, 50, 200):
        names = tuple(f"c{i:03}" for i in range(choices))
        shares = np.ones(choices) if shape == "even" else 1 / np.arange(1, choices + 1)
        shares = random.permutation(shares / shares.sum())
        other = shares * np.where(np.arange(choices) < choices / 2, 0.2, 1)
        for _ in range(4):
            before, same, shifted = (
                profile_of(random.choice(names, n, p=p / p.sum()).tolist(), "str", choices=names)
                for n, p in ((rows, shares), (rows_now, shares), (rows_now, other))
            )
            assert (psi(before, same) or 0) < 0.1
            assert (psi(before, shifted) or 0) > 0.1


def test_booleans_and_nulls() -> None:
    before = profile_of([True, False] * 500, "bool")
    assert psi(before, before) == 0
    assert (psi(before, profile_of([True] * 1_000, "bool")) or 0) > 0.25
    assert (psi(profile_of([1.0, 2.0] * 500), profile_of([None] * 1_000)) or 0) > 1
    assert psi(profile_of([None] * 1_000), profile_of([None] * 1_000)) == 0
