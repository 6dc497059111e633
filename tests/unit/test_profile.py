"""Profiles: merged parts are the profile of the whole, and every value is in the histogram."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.profile import MOST_CATEGORIES, ColumnProfile, Profile, merged
from sereno.batch.profiling import ProfileBuilder
from sereno.schema import Column, RowType
from tests.strategies import columns, fitting_rows, row_of

MODERATE = settings(max_examples=100, deadline=None)


def profile_of(row: RowType, rows: list[dict[str, Any]]) -> Profile:
    builder = ProfileBuilder(row.columns)
    builder.add(pa.Table.from_pylist(rows, schema=row.arrow_schema()))
    return builder.build()


@st.composite
def batches(draw: st.DrawFn) -> tuple[RowType, list[list[dict[str, Any]]]]:
    row = row_of(draw(columns(name="a", depth=1)), draw(columns(name="b", kinds=("int", "float", "str", "date"))))
    return row, draw(st.lists(st.lists(fitting_rows(row), max_size=6), max_size=4))


@MODERATE
@given(batches())
def test_merged_profiles_are_the_profile_of_the_whole(given_: tuple[RowType, list[list[dict[str, Any]]]]) -> None:
    row, parts = given_
    whole = profile_of(row, [r for p in parts for r in p])
    by_task = merged([profile_of(row, p) for p in parts]) or whole
    by_batch = ProfileBuilder(row.columns)
    for part in parts:
        by_batch.add(pa.Table.from_pylist(part, schema=row.arrow_schema()))
    for name, expected in whole.items():
        for found in (by_task[name], by_batch.build()[name]):
            assert math.isclose(found.total, expected.total, rel_tol=1e-9, abs_tol=1e300)
            found.total = expected.total
            assert found.distinct == expected.distinct
            found.sketch = expected.sketch  # whose bytes depend on the order
            assert found == expected
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Profile) == whole


@MODERATE
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30), st.integers(0, 3), st.integers(1, 20))
def test_every_number_is_in_the_histogram(numbers: list[float], nulls: int, bars: int) -> None:
    part = _of("float", [*numbers, *[None] * nulls])
    assert math.isfinite(part.total)
    histogram = part.histogram(bars)
    assert sum(count for _, _, count in histogram) == len(numbers)
    if numbers:
        assert (histogram[0][0], histogram[-1][1]) == (min(numbers), max(numbers))
        assert all(low <= high for low, high, _ in histogram)


def test_a_histogram_shows_the_shape() -> None:
    part = _of("float", [i / 1000 for i in range(1000)])
    counts = [count for _, _, count in part.histogram(4)]
    assert sum(counts) == 1000
    assert all(200 < count < 300 for count in counts)
    assert part.mean == pytest.approx(0.4995)
    assert _of("float", [2.0, 2.0, None]).histogram(5) == [(2.0, 2.0, 2)]
    assert _of("str", ["a"]).histogram(5) == []
    assert _of("str", ["a"]).mean is None


TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string(), "date": pa.date32(),
    "datetime": pa.timestamp("us", "UTC"), "decimal": pa.decimal128(9, 2), "list": pa.list_(pa.int64()),
}  # fmt: skip


def _of(kind: str, values: list[Any]) -> ColumnProfile:
    column = Column(name="x", kind=kind, precision=9, scale=2)  # type: ignore[arg-type]
    builder = ProfileBuilder([column])
    builder.add(pa.table({"x": pa.array(values, TYPES[kind])}))
    return builder.build()["x"]


@pytest.mark.parametrize(
    ("kind", "values", "constant"),
    [
        ("int", [1, 1], True),
        ("int", [1, 2], False),
        ("int", [1, None], False),
        ("int", [None, None], True),
        ("int", [], False),
        ("int", [2**53, 2**53 + 1], False),
        ("float", [0.0, -0.0], True),
        ("decimal", [Decimal("1.10")] * 2, True),
        ("str", ["a", "a"], True),
        ("str", ["a", "b"], False),
        ("str", ["a", None], False),
        ("bool", [False, False], True),
        ("date", [date(2026, 5, 1)] * 2, True),
        ("datetime", [datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 1, 0, 0, 0, 5, UTC)], False),
        ("list", [[1], [1]], False),
    ],
)
def test_constant(kind: str, values: list[Any], constant: bool) -> None:
    assert _of(kind, values).constant is constant


def test_categories_beyond_the_most_are_said_to_be_there() -> None:
    part = _of("str", [str(i) for i in range(MOST_CATEGORIES)])
    assert (len(part.categories), part.more_categories) == (MOST_CATEGORIES, False)
    part.merge(_of("str", ["new", "1"]))
    assert (len(part.categories), part.more_categories, part.categories["1"]) == (MOST_CATEGORIES, True, 2)
    assert part.constant is False
