"""Profiles: merged parts are the profile of the whole, and every value is in the histogram."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.profile import (
    MOST_BINS,
    MOST_CATEGORIES,
    ColumnProfile,
    Profile,
    StoredProfile,
    merged,
    store_profile,
    stored_profile,
)
from sereno.batch.profiling import ProfileBuilder
from sereno.exceptions import StorageError
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
        ("list", [[1], [1]], True),
        ("list", [[1], [2]], False),
        ("list", [[], [], []], True),
        ("list", [None, None], True),
        ("list", [None, []], False),
        ("list", [[1], None], False),
        ("list", [], False),
    ],
)
def test_constant(kind: str, values: list[Any], constant: bool) -> None:
    assert _of(kind, values).constant is constant


def test_nested_values_that_are_all_the_same_are_seen_across_tasks() -> None:
    type_ = pa.list_(pa.struct([("sku", pa.string()), ("score", pa.float64())]))

    def of(*batches: list[Any]) -> ColumnProfile:
        builder = ProfileBuilder([Column(name="x", kind="list")])
        for batch in batches:
            builder.add(pa.table({"x": pa.array(batch, type_)}))
        return builder.build()["x"]

    ham, zero, egg = ([{"sku": sku, "score": score}] for sku, score in (("ham", 0.0), ("ham", -0.0), ("egg", 0.0)))
    assert of([ham] * 5, [ham], [zero] * 3).constant
    assert not of([ham] * 5, [egg] * 5).constant
    assert not of([ham] * 5 + [egg], [ham]).constant
    for parts, constant in (
        ([of([ham]), of([ham, zero]), of()], True),
        ([of([ham]), of([egg])], False),
        ([of([ham, egg]), of([ham])], False),
        # a task that was counted before there was a digest: nobody knows
        ([of([ham]), ColumnProfile(rows=1, uncounted=True)], False),
    ):
        assert merged([{"x": part} for part in parts])["x"].constant is constant


def test_categories_beyond_the_most_are_said_to_be_there() -> None:
    part = _of("str", [str(i) for i in range(MOST_CATEGORIES)])
    assert (len(part.categories), part.more_categories) == (MOST_CATEGORIES, False)
    part.merge(_of("str", ["new", "1"]))
    assert (len(part.categories), part.more_categories, part.categories["1"]) == (MOST_CATEGORIES, True, 2)
    assert part.constant is False


# Samples


def test_a_sample_stands_for_all() -> None:
    random = np.random.default_rng(5)
    rows = 100_000
    table = pa.table(
        {
            "x": random.normal(50, 10, rows),
            "y": pa.array(random.integers(0, 4, rows), mask=random.random(rows) < 0.25),
            "z": pa.array(random.choice(["A", "B", "C"], rows, p=[0.7, 0.2, 0.1])),
        }
    )
    columns = [
        Column(name="x", kind="float"),
        Column(name="y", kind="int", nullable=True),
        Column(name="z", kind="str"),
    ]
    whole, sampled = ProfileBuilder(columns), ProfileBuilder(columns, sampled=True)
    for batch in table.to_batches(max_chunksize=32_768):
        whole.add(pa.table(batch))
        sampled.add(pa.table(batch))
    expected, found = whole.build(), sampled.build()
    for name in ("x", "y", "z"):
        exact = [(p[name].rows, p[name].nulls, p[name].least, p[name].greatest) for p in (expected, found)]
        assert exact[0] == exact[1]
        assert (expected[name].looked_at, found[name].looked_at) == (rows, 3_125)
    assert found["x"].mean == pytest.approx(expected["x"].mean, rel=0.02)
    assert found["x"].quantile(0.9) == pytest.approx(float(np.quantile(table["x"], 0.9)), rel=0.03)
    assert expected["x"].quantile(0.9) == pytest.approx(float(np.quantile(table["x"], 0.9)), rel=0.005)
    assert sum(found["x"].bins.values()) == pytest.approx(rows, rel=0.01)
    assert sum(found["y"].bins.values()) == pytest.approx(rows - found["y"].nulls, rel=0.05)
    assert found["y"].distinct == found["z"].distinct + 1 == 4  # type: ignore[operator]
    for name, count in expected["z"].categories.items():
        assert found["z"].categories[name] == pytest.approx(count, rel=0.15)
    again = ProfileBuilder(columns, sampled=True)
    for batch in table.to_batches(max_chunksize=32_768):
        again.add(pa.table(batch))
    assert again.build() == found


def test_rows_that_take_turns_are_all_in_the_sample() -> None:
    builder = ProfileBuilder([Column(name="x", kind="int")], sampled=True)
    builder.add(pa.table({"x": np.arange(32_768) % 32}))  # as many as one of the sample stands for
    profile = builder.build()["x"]
    assert len(profile.bins) == 32
    assert max(profile.bins.values()) < 2.5 * 1_024


def test_batches_that_grow() -> None:
    """A first batch of few rows does not decide how those after it are looked at."""
    builder = ProfileBuilder([Column(name="x", kind="float")], sampled=True)
    for rows in (100, 1_024, 10_240, 7, 10_240):
        builder.add(pa.table({"x": np.full(rows, 3.5)}))
    profile = builder.build()["x"]
    assert profile.rows == 100 + 1_024 + 2 * 10_240 + 7
    assert profile.looked_at == pytest.approx(100 + 1_024 + 2 * 1_024, abs=1)
    assert sum(profile.bins.values()) == pytest.approx(profile.rows, abs=20)


def test_extremes_that_are_given_are_taken() -> None:
    builder = ProfileBuilder([Column(name="x", kind="float")])
    builder.add(pa.table({"x": [1.0, 2.0]}), {"x": (0.5, 2.5)})
    assert (builder.build()["x"].least, builder.build()["x"].greatest) == (0.5, 2.5)


# Bins


@MODERATE
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_bins_hold_their_numbers(numbers: list[float]) -> None:
    profile = _of("float", numbers)
    low, high, counts = profile.ends()
    assert counts.sum() == len(numbers)
    assert np.all(np.diff(low) >= 0)
    for number in numbers:
        assert ((low <= number) & (number <= high)).any()
    for share in (0.0, 0.25, 0.5, 1.0):
        assert min(numbers) <= (profile.quantile(share) or 0.0) <= max(numbers)


def test_a_quantile_is_between_the_least_and_the_greatest() -> None:
    least_normal = 2.2250738585072014e-308  # below it the halves of a number do not add up to it
    assert _of("float", [0.0, 0.0, *[least_normal] * 3]).quantile(0.5) == least_normal


def test_bins_are_as_fine_as_few_can_be() -> None:
    years = _of("int", list(range(1900, 2030)))
    assert len(years.bins) == 130  # one each, though a float's first digits are the same
    wide = _of("float", np.geomspace(1e-300, 1e300, 50_000).tolist())
    assert len(wide.bins) <= MOST_BINS
    both = _of("float", [*(-np.geomspace(1, 1e6, 5_000)), *np.geomspace(1, 1e6, 5_000), 0.0])
    assert 200 < len(both.bins) <= MOST_BINS


@MODERATE
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=400), min_size=1, max_size=5), st.randoms())
def test_bins_are_the_same_whatever_is_merged_first(parts: list[list[float]], random: Any) -> None:
    whole = _of("float", [x for part in parts for x in part])
    profiles = [{"x": _of("float", part)} for part in parts]
    random.shuffle(profiles)
    found = merged(profiles)["x"]
    assert (found.bins, found.shift) == (whole.bins, whole.shift)


def test_no_numbers_no_quantile() -> None:
    assert _of("str", ["a"]).quantile(0.5) is None
    assert _of("float", [None]).quantile(0.5) is None
    assert _of("list", [[1]]).distinct is None


def test_different_values_are_estimated() -> None:
    parts = [{"x": _of("str", [f"v{i}" for i in range(k, k + 1_000)])} for k in range(0, 20_000, 500)]
    assert merged(parts)["x"].distinct == pytest.approx(20_500, rel=0.06)
    assert merged(parts)["x"].distinct_of == 40_000
    assert merged([{"x": _of("int", [1, None, 2])}, {"x": _of("int", [2, 3])}])["x"].distinct == 3


# What is kept of it


def test_a_profile_is_stored_and_read_again(tmp_path: Path) -> None:
    stored = StoredProfile(attempt="2026-05-01-abcdef", inputs={"x": _of("float", [1.5, None])}, outputs={})
    file, digest = store_profile(tmp_path, stored)
    owner = SimpleNamespace(attempt=stored.attempt, profile_file=file, profile_sha256=digest)
    assert file == "_profiles/2026-05-01-abcdef.json"
    assert [p.name for p in tmp_path.glob("_profiles/*")] == ["2026-05-01-abcdef.json"]
    assert stored_profile(tmp_path, owner) == stored
    assert stored_profile(tmp_path, SimpleNamespace(attempt="a", profile_file="", profile_sha256="")) is None
    (tmp_path / file).write_text((tmp_path / file).read_text().replace("1.5", "2.5"))
    with pytest.raises(StorageError, match=r"2026-05-01-abcdef\.json is not what was stored: its SHA-256 is another\."):
        stored_profile(tmp_path, owner)
    (tmp_path / file).unlink()
    with pytest.raises(StorageError, match=r"The profile of 2026-05-01-abcdef in .* is missing\."):
        stored_profile(tmp_path, owner)


def test_a_profile_from_before_there_were_kinds_is_read() -> None:
    """As reports of an earlier version hold it: bins of 16 bits."""
    old = b'{"rows":3,"nulls":1,"least":1.0,"greatest":2.0,"total":3.0,"bins":{"16368":1,"16384":1},"more_categories":false}'
    profile = msgspec.json.decode(old, type=ColumnProfile)
    assert (profile.mean, profile.constant, profile.distinct) == (1.5, False, None)
    assert profile.quantile(1) == 2
    assert [count for _, _, count in profile.histogram(2)] == [1, 1]
