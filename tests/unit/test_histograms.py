"""Histograms: the same bars for every profile of a column, and every value in one of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.profile import ColumnProfile
from sereno.histograms import Bars, bars_of, number
from tests.profiles import profile_of

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


def bars(*columns: ColumnProfile, most: int = 8) -> Bars:
    found = bars_of(columns, most)
    assert found is not None
    return found


@settings(max_examples=100, deadline=None)
@given(NUMBERS, NUMBERS, st.integers(1, 20))
def test_every_number_is_in_a_bar_of_both(first: list[float], second: list[float], most: int) -> None:
    found = bars(profile_of("float", first), profile_of("float", second), most=most)
    assert len(found.edges) == len(found.labels) + 1
    assert all(math.isfinite(edge) for edge in found.edges)
    assert sorted(found.edges) == list(found.edges)
    for shares in found.shares:
        assert len(shares) == len(found.labels)
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0


def test_the_edges_are_those_of_both() -> None:
    found = bars(profile_of("float", [0.0, 1.0]), profile_of("float", [3.0, 4.0]), most=4)
    assert found.edges == (0, 1, 2, 3, 4)
    assert found.ends == ("0", "4")
    assert found.labels[0] == "0 to 1"
    assert found.shares == ((0.5, 0.5, 0, 0), (0, 0, 0, 1))  # the last bar has its upper edge, too


def test_a_histogram_shows_the_shape() -> None:
    found = bars(profile_of("float", np.arange(1000) / 1000), most=4)
    assert all(share == pytest.approx(0.25, abs=0.01) for share in found.shares[0])


def test_a_giant_does_not_squeeze_the_others() -> None:
    found = bars(profile_of("float", [*np.arange(1000) / 1000, 1e12]), most=10)
    assert found.ends[1].startswith("≥ ")
    assert found.labels[-1].endswith(" and above")
    assert max(found.shares[0]) < 0.2
    assert sum(found.shares[0]) == pytest.approx(1)
    below = bars(profile_of("float", [*np.arange(1000) / 1000, -1e12]), most=10)
    assert below.ends[0].startswith("≤ ")
    assert below.labels[0].startswith("below ")


def test_columns_of_one_value() -> None:
    found = bars(profile_of("int", [7, 7]), profile_of("int", [7]))
    assert (found.labels, found.shares, found.ends) == (("7",), ((1,), (1,)), ("7", ""))
    moved = bars(profile_of("int", [7, 7]), profile_of("int", [9]), most=2)
    assert moved.shares == ((1, 0), (0, 1))


def test_a_side_without_numbers_is_empty() -> None:
    nulls = profile_of("float", [None, None])
    assert bars(nulls, profile_of("float", [1.0, 2.0]), most=2).shares == ((0, 0), (0.5, 0.5))
    assert bars_of([nulls], 8) is None
    assert bars_of([nulls, nulls], 8) is None


def test_the_largest_floats_and_the_smallest() -> None:
    most = 1.7976931348623157e308
    found = bars(profile_of("float", [-most, 0.0, 5e-324, most]), most=4)
    assert found.edges[0] == -most
    assert found.edges[-1] == most
    assert sum(found.shares[0]) == pytest.approx(1)


def test_what_a_file_says_of_infinities_is_left_out() -> None:
    """No row type lets them in, but a report is a file."""
    column = ColumnProfile(rows=3, kind="float", least=None, greatest=None, bins={0x7FF0: 1, 0x3FF0: 2})
    found = bars(column)
    assert all(math.isfinite(edge) for edge in found.edges)


def test_categories() -> None:
    now, before = profile_of("str", ["A"] * 6 + ["B"] * 2 + [None] * 2), profile_of("str", ["B"] * 3 + ["C"])
    found = bars(now, before)
    assert found.edges == ()
    assert found.labels == ("B", "A", "C", "(null)")
    assert found.shares[0] == pytest.approx((0.2, 0.6, 0, 0.2))
    assert found.shares[1] == pytest.approx((0.75, 0, 0.25, 0))


def test_rare_categories_are_together() -> None:
    column = profile_of("str", [c for i, c in enumerate("ABCDEF") for _ in range(6 - i)], choices=tuple("ABCDEF"))
    found = bars(column, most=3)
    assert found.labels == ("A", "B", "(others)")
    assert found.shares[0] == pytest.approx((6 / 21, 5 / 21, 10 / 21))


def test_categories_that_look_like_ours() -> None:
    assert bars(profile_of("str", ["(null)", "(null)", None])).labels == ('"(null)"', "(null)")


def test_texts_of_all_sorts_have_no_histogram() -> None:
    assert bars_of([profile_of("str", [f"name {i}" for i in range(5_000)])], 8) is None
    often = profile_of("str", ["none"] * 500 + [f"name {i}" for i in range(500)])
    assert bars(often).labels[0] == "none"


def test_what_has_no_histogram() -> None:
    assert bars_of([profile_of("date", [0, 1])], 8) is None
    assert bars_of([ColumnProfile()], 8) is None
    assert bars_of([profile_of("str", ["A"]), profile_of("float", [1.0])], 8) is None  # its type has changed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0.25, "0.25"), (1 / 3, "0.3333"), (12_345.6, "12,346"), (1e300, "1e+300"), (12_345, "12,345"),
        (10**18, "1e+18"), ("2026-05-01", "2026-05-01"), ("a\nb", "a\\x0ab"), (True, "True"), (-0.5, "-0.5"),
    ],
)  # fmt: skip
def test_numbers(value: object, shown: str) -> None:
    assert number(value) == shown
