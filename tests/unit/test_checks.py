"""Whole columns, JSON rows and the reference for one value: the same verdict and the same value, whatever comes."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.checks import DAYS, TICKS, check_column, check_table, python_value
from sereno.exceptions import InputError
from sereno.madeup import made_up
from sereno.rows import JsonRows, encode, rows_to_table
from sereno.schema import Column
from sereno.values import Refused, admit, admit_row
from tests.models import everything
from tests.strategies import (
    EDGE_FLOATS,
    EDGE_INTS,
    EDGE_TEXTS,
    JSON_SCALARS,
    RULES,
    SCALARS,
    TEXTS,
    TYPES,
    WIDE,
    columns,
    fitting_rows,
    from_python,
    hostile_rows,
    row_of,
    row_types,
    typed_arrays,
)

MODERATE = settings(max_examples=300, deadline=None)


def admitted(column: Column, value: Any, door: Any) -> tuple[bool, Any]:
    try:
        return True, admit(column, value, door)
    except Refused:
        return False, None


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, to the sign of zero."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return isinstance(b, float) and a == b and math.copysign(1, a) == math.copysign(1, b)
    return a == b and (type(a) is type(b) or isinstance(a, date))


def agree(column: Column, array: pa.Array, door: Any) -> None:
    """Each value of the array by the reference, beside the whole column."""
    canonical, bad = check_column(column, array, door)
    canonical.validate(full=True)
    assert canonical.type == column.arrow_type
    for position in range(len(array)):
        refused = bad is not None and bool(bad[position])
        value = python_value(array, position)
        if has_finer(array, position):
            continue  # Python has no value to ask the reference about
        fits, expected = admitted(column, value, door)
        assert fits == (not refused), (value, array.type)
        if fits:
            assert same(canonical[position].as_py(), expected), (value, array.type)


def has_finer(array: pa.Array, position: int) -> bool:
    try:
        value = array[position].as_py()
    except (ValueError, OverflowError):
        return True
    return (
        "nanosecond" in str(array.type)
        or "[ns" in str(array.type)
        or ("date64" in str(array.type) and value is not None)
    )


@MODERATE
@given(st.data())
def test_whole_columns_agree_with_the_reference(data: st.DataObject) -> None:
    column = data.draw(columns())
    array = data.draw(typed_arrays(column))
    agree(column, array, "typed")


@MODERATE
@given(st.data())
def test_columns_of_text_agree_with_the_reference(data: st.DataObject) -> None:
    column = data.draw(columns(kinds=("int", "float", "bool", "str", "date", "datetime", "decimal")))
    texts = data.draw(st.lists(st.one_of(st.none(), TEXTS), max_size=6))
    agree(column, pa.array(texts, data.draw(st.sampled_from([pa.string(), pa.large_string()]))), "text")


COLUMNS = [
    Column(**{"name": "x", "kind": kind, "nullable": nullable, **rules})
    for kind in TYPES
    for rules in RULES.get(kind, [{}])
    for nullable in (False, True)
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda c: c.kind)
def test_every_edge_meets_every_column(column: Column) -> None:
    for found in TYPES[column.kind]:
        agree(column, edges_of(found), "typed")
        agree(column, pa.concat_arrays([pa.nulls(1, found), edges_of(found)]).slice(1), "typed")
        listed = Column(name="x", kind="list", item=column)
        agree(listed, pa.array([[v] for v in edges_of(found)], pa.list_(found)), "typed")
    agree(column, pa.array(EDGE_TEXTS), "text")
    texts = [
        msgspec.json.encode(v)
        for v in (*EDGE_INTS, *(f for f in EDGE_FLOATS if math.isfinite(f)), *EDGE_TEXTS, True, None)
    ]
    checked = JsonRows(row_of(column)).decode([b'{"x":' + text + b"}" for text in texts])
    expected = [admitted(column, msgspec.json.decode(text), "json") for text in texts]
    assert same(checked.table.column("x").to_pylist(), [value for fits, value in expected if fits])
    assert [p for p, _ in checked.refused] == [p for p, (fits, _) in enumerate(expected) if not fits]


def edges_of(found: pa.DataType) -> pa.Array:
    t = pa.types
    if t.is_integer(found):
        return pa.array([i for i in EDGE_INTS if fits_in(i, found)], found)
    if t.is_floating(found):
        return pa.array(EDGE_FLOATS).cast(found, safe=False)
    if t.is_decimal(found):
        most = 10**found.precision - 1
        return pa.array([Decimal(i).scaleb(-found.scale, WIDE) for i in (0, 1, 10, 100, 12345, most, -most)], found)
    if t.is_temporal(found):
        day = 1 if t.is_date32(found) else 86_400_000 if t.is_date64(found) else TICKS[found.unit]
        low, high = DAYS.start * day, DAYS.stop * day
        ticks = [0, 1, 999, 1000, day, 20_000 * day, 10_957 * day, 21_915 * day, low - 1, low, high - 1, high]
        return from_python([i for i in ticks if fits_in(i, pa.int32() if t.is_date32(found) else pa.int64())], found)
    if t.is_boolean(found):
        return pa.array([True, False])
    return pa.array(EDGE_TEXTS).cast(found)


def fits_in(number: int, found: pa.DataType) -> bool:
    signed = pa.types.is_signed_integer(found)
    return -(2 ** (found.bit_width - 1)) * signed <= number < 2 ** (found.bit_width - signed)


@MODERATE
@given(st.data())
def test_json_rows_agree_with_the_reference(data: st.DataObject) -> None:
    row = data.draw(row_types())
    rows = data.draw(st.lists(hostile_rows(row, JSON_SCALARS), max_size=4))
    texts = [msgspec.json.encode(r) for r in rows]
    checked = JsonRows(row).decode(texts)
    expected, kept, refused = [], [], []
    for position, text in enumerate(texts):
        try:
            expected.append(admit_row(row, msgspec.json.decode(text), "json"))
            kept.append(position)
        except Refused as reason:
            refused.append((position, str(reason)))
    assert checked.refused == refused
    assert same(checked.table.to_pylist(), expected)
    assert checked.table.schema == row.arrow_schema()
    assert (list(range(len(rows))) if checked.positions is None else checked.positions.tolist()) == kept


@MODERATE
@given(st.data())
def test_python_rows_agree_with_the_reference(data: st.DataObject) -> None:
    row = data.draw(row_types())
    rows = data.draw(st.lists(hostile_rows(row, SCALARS), max_size=4))
    checked = rows_to_table(row, rows)
    positions = set(range(len(rows))) if checked.positions is None else set(checked.positions.tolist())
    assert positions | {p for p, _ in checked.refused} == set(range(len(rows)))
    assert checked.table.num_rows == len(positions) == len(rows) - len(checked.refused)
    assert check_table(row, checked.table).refused == []


@MODERATE
@given(st.data())
def test_canonical_rows_are_the_same_again_by_every_way(data: st.DataObject) -> None:
    row = data.draw(row_types())
    rows = data.draw(st.lists(fitting_rows(row), max_size=4))
    table = pa.Table.from_pylist(rows, schema=row.arrow_schema())
    for checked in (JsonRows(row).decode(encode(table)), rows_to_table(row, rows), check_table(row, table)):
        assert checked.refused == []
        assert checked.positions is None
        assert same(checked.table.to_pylist(), table.to_pylist())
        assert checked.table.schema == row.arrow_schema()


def test_times_that_python_has_not() -> None:
    row = row_of(Column(name="day", kind="date"), Column(name="at", kind="datetime"))
    table = pa.table(
        {
            "day": pa.array([20_000, 10_000_000, 20_000, 20_000], pa.int32()).cast(pa.date32()),
            "at": pa.array([0, 0, 1, 10**18], pa.int64()).cast(pa.timestamp("ns", "UTC")),
        }
    )
    checked = check_table(row, table)
    assert checked.positions is not None
    assert checked.positions.tolist() == [0, 3]
    assert checked.refused == [
        (1, "day: must be a date (YYYY-MM-DD)"),
        (
            2,
            "at: must be a date and time with a time zone, to the microsecond (2026-05-01T00:00:00Z): it has nanoseconds",
        ),
    ]


def test_text_that_is_no_utf8() -> None:
    column = Column(name="name", kind="str")
    broken = pa.array([b"fine", b"\xff", None, b"also"], pa.binary()).view(pa.string())
    checked = check_table(row_of(column), pa.table({"name": broken}))
    assert checked.table.column("name").to_pylist() == ["fine", "also"]
    assert checked.refused == [(1, "name: must be text"), (2, "name: is missing (null)")]
    assert python_value(broken, 1) == "\ufffd"


@pytest.mark.parametrize(
    ("column", "array", "takes"),
    [
        (Column(name="x", kind="int"), pa.array(["3"]), "integers, or floats that are whole"),
        (Column(name="x", kind="float"), pa.array(["0.5"]), "numbers"),
        (Column(name="x", kind="bool"), pa.array([1]), "booleans"),
        (Column(name="x", kind="str"), pa.array([b"a"]), "text"),
        (Column(name="x", kind="date"), pa.array(["2026-05-01"]), "dates, or timestamps at midnight without a"),
        (Column(name="x", kind="date"), pa.array([datetime(2026, 5, 1, tzinfo=UTC)]), "dates, or timestamps at"),
        (Column(name="x", kind="datetime"), pa.array([datetime(2026, 5, 1)]), "timestamps with a time zone"),
        (Column(name="x", kind="decimal", precision=9, scale=2), pa.array([0.5]), "decimals or integers"),
        (Column(name="x", kind="list", item=Column(name="x[]", kind="int")), pa.array([1]), "lists"),
        (Column(name="x", kind="row", row=row_of(Column(name="a", kind="int"))), pa.array([1]), "structs"),
    ],
)
def test_a_column_of_another_type_is_told(column: Column, array: pa.Array, takes: str) -> None:
    with pytest.raises(InputError) as caught:
        check_table(row_of(column), pa.table({"x": array}))
    assert f"Column 'x' is {array.type} here, but is declared {column.kind}, which takes {takes}" in str(caught.value)


def test_columns_that_are_missing_twice_or_too_many() -> None:
    row = row_of(Column(name="a", kind="int"), Column(name="b", kind="float", default=0.5))
    assert check_table(row, pa.table({"a": [1], "z": ["x"]})).table.to_pylist() == [{"a": 1, "b": 0.5}]
    with pytest.raises(InputError, match="Column 'a' is missing"):
        check_table(row, pa.table({"b": [0.5]}))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(InputError, match="Column 'a' is there twice"):
        check_table(row, twice)


def test_columns_in_chunks_dictionaries_and_none() -> None:
    row = row_of(Column(name="a", kind="str", choices=("x", "y")))
    chunks = pa.chunked_array([pa.array(["x"]).dictionary_encode(), pa.array(["y", "z"]).dictionary_encode()])
    checked = check_table(row, pa.table({"a": chunks}))
    assert checked.table.column("a").to_pylist() == ["x", "y"]
    assert checked.refused == [(2, "a: must be one of x, y")]
    assert check_table(row, pa.table({"a": pa.chunked_array([], pa.string())})).table.num_rows == 0


@pytest.mark.parametrize("column", [Column(name="x", kind="int"), Column(name="x", kind="float")])
def test_nan_is_a_missing_value_and_infinity_is_none(column: Column) -> None:
    row = row_of(column)
    array = pa.array([1.0, math.nan, math.inf, None])
    assert [p for p, _ in check_table(row, pa.table({"x": array})).refused] == [1, 2, 3]
    nullable = row_of(Column(name="x", kind=column.kind, nullable=True))
    checked = check_table(nullable, pa.table({"x": array}))
    assert checked.table.column("x").to_pylist() == [1, None, None]
    assert [p for p, _ in checked.refused] == [2]


def test_decimals_become_the_nearest_floats() -> None:
    row = row_of(Column(name="x", kind="float", nullable=True))
    values = [Decimal("0.051"), None, Decimal("-999999999999.999"), Decimal("0.1")]
    for found in (pa.decimal128(15, 3), pa.decimal128(38, 3), pa.decimal64(15, 3), pa.decimal256(50, 30)):
        array = pa.array([Decimal(0), *values], found).slice(1)
        assert check_table(row, pa.table({"x": array})).table.column("x").to_pylist() == [
            0.051,
            None,
            -999999999999.999,
            0.1,
        ]


def test_large_integers_and_floats_are_exact_or_refused() -> None:
    row = row_of(Column(name="x", kind="float"))
    values = [2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
    assert [p for p, _ in check_table(row, pa.table({"x": pa.array(values)})).refused] == [1, 2]
    values = [2**63, 2**63 + 1, 2**64 - 1]
    assert [p for p, _ in check_table(row, pa.table({"x": pa.array(values, pa.uint64())})).refused] == [1, 2]
    whole = row_of(Column(name="x", kind="int"))
    assert [p for p, _ in check_table(whole, pa.table({"x": pa.array(values, pa.uint64())})).refused] == [0, 1, 2]


def test_a_default_stands_for_an_absent_column_and_not_for_null() -> None:
    column = Column(name="x", kind="list", default=[1], item=Column(name="x[]", kind="int"))
    row = row_of(Column(name="a", kind="int"), column)
    checked = JsonRows(row).decode([b'{"a": 1}', b'{"a": 2, "x": null}', b'{"a": 3, "x": []}'])
    assert checked.table.to_pylist() == [{"a": 1, "x": [1]}, {"a": 3, "x": []}]
    assert checked.refused == [(1, "x: is missing (null)")]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nul",
        b"[1]",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": 1',
        b'{"a": "\\ud800"}',
        b'{"a": true}',
        b"{}",
    ],
)
def test_json_that_is_no_row(text: bytes) -> None:
    checked = JsonRows(row_of(Column(name="a", kind="float"))).decode([text, b'{"a": 0.5}'])
    assert checked.table.to_pylist() == [{"a": 0.5}]
    ((position, reason),) = checked.refused
    assert position == 0
    assert reason.startswith(("row: ", "a: "))


def test_json_bounds_and_values_beyond_a_float() -> None:
    row = row_of(Column(name="n", kind="int"), Column(name="x", kind="float"), Column(name="d", kind="decimal", precision=30, scale=2))  # fmt: skip # noqa: E501
    texts = [
        b'{"n": 3.0, "x": 9007199254740992, "d": 0.1}',
        b'{"n": 9223372036854775808, "x": 0, "d": 0}',
        b'{"n": 1, "x": 9007199254740993, "d": 0}',
        b'{"n": 1, "x": 1e300, "d": "1234567890123456789.01"}',
        b'{"n": 1, "x": 1, "d": 123456789012345.67}',
    ]
    checked = JsonRows(row).decode(texts)
    assert checked.table.to_pylist() == [
        {"n": 3, "x": 2.0**53, "d": Decimal("0.10")},
        {"n": 1, "x": 1e300, "d": Decimal("1234567890123456789.01")},
    ]
    assert [r for _, r in checked.refused] == [
        "n: must be a whole number: it is beyond 64 bits",
        "x: must be a number: a float cannot hold it exactly",
        "d: must be a decimal number: beyond 15 digits, write it as text",
    ]


def test_a_column_after_one_with_a_default() -> None:
    row = row_of(Column(name="a", kind="int", default=7), Column(name="b", kind="int"))
    assert JsonRows(row).decode([b'{"b": 1}']).table.to_pylist() == [{"a": 7, "b": 1}]


def test_a_nested_row_that_is_null_can_be_published(tmp_path: Path) -> None:
    """Parquet's writer looks below a null, too: fields that may not be null must have a value there."""
    row = everything.model.outputs
    checked = check_table(row, made_up(row, 200))
    nested = [c.name for c in row.columns if c.row is not None and c.nullable]
    assert nested
    assert all(checked.table[name].null_count for name in nested)
    pq.write_table(checked.table, tmp_path / "part.parquet")
    assert pq.read_table(tmp_path / "part.parquet").to_pylist() == checked.table.to_pylist()
