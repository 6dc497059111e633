"""A comparison's parts, against the plainest way to do the same: rows by key in a dict, values one by one."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.profile import ColumnProfile
from sereno.compare import lots
from sereno.compare.columns import ColumnComparer, how_to_compare, median_size
from sereno.compare.comparison import ColumnComparison
from sereno.compare.lots import joined
from sereno.compare.temporary import ended_in_order, temporary_folder
from tests.profiles import profile_of

KEYS = st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=3), st.dates(date(1900, 1, 1), date(2100, 1, 1)))
SCHEMA = pa.schema([("k", pa.int64()), ("name", pa.string()), ("on", pa.date32()), ("y", pa.int64())])


def parts(folder: Path, name: str, rows: dict[Any, int], count: int) -> list[Path]:
    """The rows, in so many parts."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [(*key, y) for key, y in rows.items()]
    files = []
    for i in range(count):
        columns = [*zip(*listed[i::count], strict=True)] or [(), (), (), ()]
        files.append(folder / f"{name}{i}.parquet")
        pq.write_table(
            pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], SCHEMA), files[-1]
        )
    return files


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(KEYS, st.integers(0, 9), max_size=30),
    st.dictionaries(KEYS, st.integers(0, 9), max_size=30),
    st.integers(1, 3),
    st.sampled_from([3, 7, 1_000]),
)
def test_rows_are_joined_by_key(
    tmp_path_factory: pytest.TempPathFactory, before: dict[Any, int], now: dict[Any, int], count: int, lot_rows: int
) -> None:
    now |= {key: value + 1 for key, value in list(before.items())[::2]}
    folder = tmp_path_factory.mktemp("lots")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lots, "LOT_ROWS", lot_rows)
        sides = parts(folder, "before", before, count), parts(folder, "now", now, count)
        found = list(joined(*sides, ("k", "name", "on"), folder / "lots", rows=max(len(before), len(now))))
    assert len(found) == max(1, -(-max(len(before), len(now)) // lot_rows))
    pairs, only_before, only_now = {}, [], []
    for lot in found:
        assert lot.before.select([0, 1, 2]) == lot.now.select([0, 1, 2])
        keys = zip(*(column.to_pylist() for column in lot.before.columns[:3]), strict=True)
        values = zip(lot.before.column("y").to_pylist(), lot.now.column("y").to_pylist(), strict=True)
        pairs |= dict(zip(keys, values, strict=True))
        only_before += [tuple(row.values()) for row in lot.only_before.to_pylist()]
        only_now += [tuple(row.values()) for row in lot.only_now.to_pylist()]
    assert pairs == {key: (before[key], now[key]) for key in before.keys() & now.keys()}
    assert Counter(only_before) == Counter(before.keys() - now.keys())
    assert Counter(only_now) == Counter(now.keys() - before.keys())
    assert not list((folder / "lots").rglob("*.arrow"))  # each goes as it was read


def test_keys_with_names_like_ours(tmp_path: Path) -> None:
    names = ["_before", "__now"]
    table = pa.table({"_before": [1, 2], "__now": [3, 4], "y": [5, 6]})
    pq.write_table(table, tmp_path / "a.parquet")
    (lot,) = joined([tmp_path / "a.parquet"], [tmp_path / "a.parquet"], names, tmp_path / "lots", rows=2)
    assert lot.before == lot.now == table


def compared(
    before: list[Any],
    now: list[Any],
    kind: Any,
    *,
    to: Any = None,
    size: float = 0.0,
    lot: int = 3,
    tolerance: float = 1e-9,
) -> ColumnComparison:
    """Two columns, so many rows at a time; the key of a row is its position."""
    comparer = ColumnComparer("y", kind, to or kind, tolerance=tolerance, size=size)
    for start in range(0, max(len(before), 1), lot):
        a, b = before[start : start + lot], now[start : start + lot]
        keys = pa.table({"id": pa.array(range(start, start + len(a)), pa.int64())})
        comparer.add(pa.chunked_array([pa.array(a, kind)]), pa.chunked_array([pa.array(b, to or kind)]), keys)
    return comparer.result(None)


def test_floats() -> None:
    found = compared([1.0, 2.0, None, 4.0, None], [1.0, 2.5, 3.0, 1.0, None], pa.float64())
    assert (found.how, found.rows, found.differ, found.nulls) == ("numbers", 5, 3, 1)
    assert found.mean == pytest.approx((0.5 - 3) / 3)
    assert found.mean_size == pytest.approx(3.5 / 3)
    assert found.median_size == pytest.approx(0.5, rel=1 / 16)
    assert found.greatest_size == 3
    assert [(p.key, p.before, p.now) for p in found.most] == [((3,), 4.0, 1.0), ((1,), 2.0, 2.5), ((2,), None, 3.0)]
    assert found.share == 0.6


def test_the_tolerance_is_of_the_size_of_both_and_of_the_column() -> None:
    assert compared([1e6], [1e6 + 0.5], pa.float64(), tolerance=1e-6).differ == 0
    assert compared([1e6], [1e6 + 2], pa.float64(), tolerance=1e-6).differ == 1
    assert compared([0.0], [1e-7], pa.float64(), tolerance=1e-6).differ == 1
    assert compared([0.0], [1e-7], pa.float64(), tolerance=1e-6, size=1.0).differ == 0  # where others are about 1


def test_whole_numbers_and_decimals_are_compared_as_they_are() -> None:
    large = 2**53
    assert compared([large], [large + 1], pa.int64()).differ == 1  # which are one float
    found = compared([Decimal("0.10")], [Decimal("0.11")], pa.decimal128(9, 2))
    assert (found.how, found.differ, found.greatest_size) == ("numbers", 1, pytest.approx(0.01))
    assert compared([3], [3.0], pa.int64(), to=pa.float64()).differ == 0


def test_the_largest_numbers() -> None:
    most = 1.7e308
    found = compared([-most, most], [most, -most], pa.float64())
    assert found.differ == 2
    assert found.greatest_size == pytest.approx(1.797e308, rel=1e-3)


def test_categories() -> None:
    found = compared(["A", "A", "B", None, "A"], ["B", "B", "B", "A", None], pa.string())
    assert (found.how, found.differ, found.nulls, found.mean) == ("categories", 4, 2, None)
    assert found.changes == (("A", "B", 2), ("A", None, 1), (None, "A", 1))
    flags = compared([True, False], [True, True], pa.bool_())
    assert flags.changes == ((False, True, 1),)


def test_more_changes_than_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = [f"a{i}" for i in range(50)] + ["x"] * 3, [f"b{i}" for i in range(50)] + ["y"] * 3
    found = compared(before, now, pa.string(), lot=100)
    assert found.changes[0] == ("x", "y", 3)
    assert (len(found.changes), found.more_changes) == (20, 31)
    monkeypatch.setattr("sereno.compare.columns.MOST_CHANGES", 5)
    found = compared(before, now, pa.string(), lot=10)
    assert sum(rows for *_, rows in found.changes) + found.more_changes == 53


def test_other_values() -> None:
    on = [date(2024, 5, 1), date(2024, 5, 2), None]
    assert compared(on, [date(2024, 5, 1), None, None], pa.date32()).differ == 1
    at = [datetime(2024, 5, 1, 1), datetime(2024, 5, 1, 2)]
    assert compared(at, at[::-1], pa.timestamp("us")).differ == 2
    lists = compared([[1.0, 2.0], [1.0], None, []], [[1.0, 2.0 + 1e-12], [1.0, 2.0], None, []], pa.list_(pa.float64()))
    assert (lists.how, lists.differ) == ("other", 1)
    row = pa.struct([("a", pa.int64()), ("b", pa.string())])
    assert compared([{"a": 1, "b": "x"}], [{"a": 1, "b": "y"}], row).differ == 1
    assert compared([{"a": 1, "b": None}], [{"a": 1, "b": None}], row).differ == 0


def test_types_that_cannot_be_compared() -> None:
    assert how_to_compare(pa.string(), pa.int64()) == "types"
    assert how_to_compare(pa.date32(), pa.timestamp("us")) == "types"
    found = compared(["1"], [1], pa.string(), to=pa.int64())
    assert (found.how, found.differ, found.types) == ("types", 0, ("string", "int64"))


def test_no_key_in_common() -> None:
    found = compared([], [], pa.float64())
    assert (found.rows, found.share, found.mean, found.median_size) == (0, 0, None, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.none() | st.floats(-1e9, 1e9)] * 2), max_size=40), st.integers(1, 50))
def test_what_differs_is_what_differs_one_by_one(pairs: list[tuple[float | None, float | None]], lot: int) -> None:
    before, now = [a for a, _ in pairs], [b for _, b in pairs]
    found = compared(before, now, pa.float64(), lot=lot)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    expected = sum(abs(a - b) > 1e-9 * max(abs(a), abs(b)) for a, b in both)
    expected += sum((a is None) != (b is None) for a, b in pairs)
    assert found.differ == expected
    assert found.greatest_size == max((abs(a - b) for a, b in both), default=None)
    assert len(found.most) == min(expected, 10)
    shown = [abs(p.before - p.now) for p in found.most if p.before is not None and p.now is not None]
    assert shown == sorted(shown, reverse=True)


def test_the_median_size_of_a_column() -> None:
    assert median_size(profile_of("float", [0.0, 0.0, -1.0, 2.0, 2.0])) == pytest.approx(2, rel=1 / 16)
    assert median_size(profile_of("float", [0.0])) == 0
    assert median_size(profile_of("str", ["A"])) == 0
    assert median_size(ColumnProfile()) == 0
    assert median_size(None) == 0


def fail_in(home: Path) -> None:
    with temporary_folder(home) as folder:
        (folder / "deep" / "down").mkdir(parents=True)
        raise ValueError("no")


def test_the_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        fail_in(tmp_path)
    assert not (tmp_path / ".sereno" / "compare").exists()
    assert not list((tmp_path / ".sereno" / "locks").iterdir())
    with temporary_folder(tmp_path) as one, temporary_folder(tmp_path) as other:
        assert one != other
        assert one.is_dir()  # the second does not take it for a leftover


def end_myself(cleaned: list[bool]) -> None:
    with ended_in_order():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)


def test_sigterm_ends_a_block_as_an_error_does() -> None:
    cleaned: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        end_myself(cleaned)
    assert end.value.code == 128 + signal.SIGTERM
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before
