"""Columns of every kind, and values that do and do not fit them: what the property tests draw from."""

from __future__ import annotations

import enum
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from sereno.schema import Column, Kind, RowType

WIDE = Context(prec=80)
ZONES = [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=11))]
# What is most often got wrong: each of these meets each column in a test, and the strategies draw from them.
EDGES = [0, 1, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**30]
EDGE_INTS = [*EDGES, *(-e for e in EDGES), 2, 3, 5, 6]
EDGE_FLOATS = [
    0.0, -0.0, 3.0, 17.5, 0.1, 1.0, -1.0, 5e-324, -1e-300, 1e18, 1e300, 2.0**53, 2.0**53 + 2, 2.0**63 - 1024, 2.0**63, -(2.0**63),
    -(2.0**64), math.inf, -math.inf, math.nan,
]  # fmt: skip
EDGE_TEXTS = [
    "", " ", "a", "A", "b", "red", "ab", "abc", "é", "日本", "𝛼", "a\nb", "\0", "\xa03", "\x1c3", "0x10", "1_000", "nan", "inf",
    "3", "+3", "-0", " 3 ", "3.0", "3.", ".5", "+.5", "-.0", "1e5", "1E+2", "1e400", "-1e400", "1e-400", "3.10", "007",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "\t7\r\n", "１", "1e", "--1", "1,5",
    "true", "FALSE", " True", "yes", "0", "2026-02-28", "2026-02-30", "0000-01-01", "9999-12-31", "10000-01-01", "2026-2-3",
    "20260203", "2026-05-01T00:00:00", "2026-05-01T00:00:00Z", "2026-05-01t10:20z", "2026-05-01 10:20:30.5+02:00",
    "2026-05-01T10:20:30.1234567Z", "2026-05-01T10:20:30.12345600Z", "2026-05-01T24:00:00Z", "2026-05-01T10:20:60Z",
    "0001-01-01T00:00:00+05:00", "2026-05-01T10:20:30+0200", "2026-05-01T10:20:30+24:00",
]  # fmt: skip
INTS = st.one_of(st.sampled_from(EDGE_INTS), st.integers(-5, 5), st.integers(-(2**66), 2**66))
FLOATS = st.one_of(st.sampled_from(EDGE_FLOATS), st.floats(), st.integers(-(2**69), 2**69).map(float))
TEXTS = st.one_of(
    st.sampled_from(EDGE_TEXTS),
    st.text(st.characters(codec="utf-8"), max_size=4),
    INTS.map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**6), max_value=10**6).map(str),
    st.dates().map(str),
    st.datetimes(timezones=st.sampled_from(ZONES)).map(datetime.isoformat),
)
DECIMALS = st.one_of(
    st.sampled_from(
        [
            Decimal(t)
            for t in ("0", "-0.00", "1.10", "1E+2", "0.001", "1E+30", "NaN", "Infinity", "12345678.90", "9" * 16)
        ]
    ),
    st.decimals(places=2, min_value=-(10**13), max_value=10**13),
    st.decimals(),
)
DATES = st.one_of(st.dates(), st.sampled_from([date.min, date.max]))
DATETIMES = st.one_of(
    st.datetimes(timezones=st.sampled_from(ZONES)),
    st.datetimes(),
    st.dates().map(lambda d: datetime(d.year, d.month, d.day)),
    st.sampled_from([datetime.min.replace(tzinfo=ZONES[1]), datetime.max.replace(tzinfo=ZONES[2])]),
)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def row_of(*columns: Column) -> RowType:
    return RowType(name="Row", cls=dict, style="typeddict", columns=columns)


RULES: dict[Kind, list[dict[str, Any]]] = {
    "int": [
        {}, {"ge": 0}, {"gt": -1, "le": 5}, {"lt": 2**53 + 1}, {"gt": 2**53}, {"multiple_of": 3}, {"choices": (1, 2, 3)},
        {"choices": (1, 2), "enum": Level},
    ],
    "float": [{}, {"ge": 0.0, "le": 1.0}, {"gt": 0.1}, {"gt": 0.0, "lt": 2.0**53}],
    "str": [
        {}, {"choices": ("a", "b", "")}, {"choices": ("red", "green"), "enum": Colour}, {"min_length": 1, "max_length": 2},
        {"pattern": "^[a-z]+$"},
    ],
    "date": [{}, {"ge": date(2000, 1, 1), "lt": date(2030, 1, 1)}],
    "datetime": [{}, {"gt": datetime(2000, 1, 1, tzinfo=UTC)}],
    "decimal": [{"precision": 9, "scale": 2}, {"precision": 9, "scale": 2, "ge": Decimal(0), "lt": Decimal("1.50")}],
    "list": [{}, {"min_length": 1, "max_length": 2}],
}  # fmt: skip


@st.composite
def columns(draw: st.DrawFn, name: str = "x", kinds: tuple[Kind, ...] = (), depth: int = 2) -> Column:
    """Any column that a row type can declare, but for its role."""
    every: tuple[Kind, ...] = ("int", "float", "bool", "str", "date", "datetime", "decimal")
    kind = draw(st.sampled_from(kinds or ((*every, "list", "row") if depth else every)))
    rules: dict[str, Any] = {"name": name, "kind": kind, "nullable": draw(st.booleans())}
    rules |= draw(st.sampled_from(RULES.get(kind, [{}])))
    match kind:
        case "list":
            rules["item"] = draw(columns(name=f"{name}[]", depth=depth - 1))
        case "row":
            rules["row"] = draw(row_types(depth=depth - 1, most=2))
    column = Column(**rules)
    if draw(st.integers(0, 4)) == 0 and "[]" not in name:
        rules["default"] = draw(fitting(column))
    return Column(**rules)


@st.composite
def row_types(draw: st.DrawFn, depth: int = 2, most: int = 4) -> RowType:
    names = ["a", "b", "c", "d"][: draw(st.integers(1, most))]
    return RowType(
        name="Row", cls=dict, style="typeddict", columns=tuple(draw(columns(name=n, depth=depth)) for n in names)
    )


def fitting(column: Column) -> st.SearchStrategy[Any]:
    """Canonical values that the column takes."""
    values = _of_kind(column)
    if column.nullable:
        values = st.one_of(st.none(), values)
    return values


def _of_kind(column: Column) -> st.SearchStrategy[Any]:
    if column.choices:
        return st.sampled_from(column.choices)
    match column.kind:
        case "int":
            low, high = -(2**63), 2**63 - 1
            low = max(low, column.ge if column.ge is not None else low, column.gt + 1 if column.gt is not None else low)
            high = min(
                high, column.le if column.le is not None else high, column.lt - 1 if column.lt is not None else high
            )
            step = column.multiple_of or 1
            return st.integers(-(-low // step), high // step).map(lambda i: i * step)
        case "float":
            low = column.ge if column.ge is not None else column.gt
            high = column.le if column.le is not None else column.lt
            out = (column.gt, column.lt)
            return st.floats(low, high, allow_nan=False, allow_infinity=False).filter(lambda v: v not in out)
        case "bool":
            return st.booleans()
        case "str":
            if column.pattern:
                return st.text("abc", min_size=1, max_size=3)
            return st.text(
                st.characters(codec="utf-8"), min_size=column.min_length or 0, max_size=column.max_length or 4
            )
        case "date":
            return st.dates(date(2000, 1, 1), date(2029, 12, 31)) if column.ge else DATES
        case "datetime":
            earliest = datetime(2001, 1, 1) if column.gt else datetime(1, 1, 1)
            return st.datetimes(earliest, timezones=st.just(UTC))
        case "decimal":
            low, high = (
                (0, Decimal("1.49")) if column.ge is not None else (Decimal("-9999999.99"), Decimal("9999999.99"))
            )
            return st.decimals(low, high, places=2)
        case "list":
            assert column.item is not None
            return st.lists(fitting(column.item), min_size=column.min_length or 0, max_size=column.max_length or 3)
        case "row":
            assert column.row is not None
            return st.fixed_dictionaries({c.name: fitting(c) for c in column.row.columns})


def fitting_rows(row: RowType) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({c.name: fitting(c) for c in row.columns})


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    FLOATS,
    TEXTS,
    DECIMALS,
    DATES,
    DATETIMES,
    st.just("\ud800"),
    st.just(b"a"),
    st.just(math.nan),
)
JSON_SCALARS = st.one_of(st.none(), st.booleans(), INTS, st.floats(allow_nan=False, allow_infinity=False), TEXTS)


def hostile(column: Column, scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Anything, often of the column's shape."""
    shaped = scalars
    if column.item is not None:
        shaped = st.lists(hostile(column.item, scalars), max_size=3)
    elif column.row is not None:
        shaped = hostile_rows(column.row, scalars)
    return st.one_of(fitting(column), fitting(column), shaped, scalars)


def hostile_rows(row: RowType, scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Rows with wrong values, and some without a column."""
    some = {c.name: hostile(c, scalars) for c in row.columns}
    return st.one_of(
        st.fixed_dictionaries({c.name: fitting(c) for c in row.columns}),
        st.fixed_dictionaries(some),
        st.fixed_dictionaries({}, optional=some),
    )


TYPES: dict[Kind, list[pa.DataType]] = {
    "int": [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(25, 2)],
    "float": [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
              pa.decimal128(15, 3), pa.decimal128(38, 10)],
    "bool": [pa.bool_()],
    "str": [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    "date": [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")],
    "datetime": [pa.timestamp(u, z) for u in ("s", "ms", "us", "ns") for z in ("UTC", "Europe/Madrid")],
    "decimal": [pa.int16(), pa.int64(), pa.decimal128(9, 2), pa.decimal128(30, 5), pa.decimal256(50, 4), pa.decimal128(5, 0)],
}  # fmt: skip


@st.composite
def typed_arrays(draw: st.DrawFn, column: Column) -> pa.Array:
    """An Arrow array of a type that the column might take, sliced or not."""
    found = draw(typed(column))
    values = draw(st.lists(st.one_of(st.none(), of_type(found)), max_size=6))
    array = from_python(values, found)
    start = draw(st.integers(0, len(array)))
    return draw(st.sampled_from([array, array, array.slice(start), array.slice(0, start)]))


def typed(column: Column) -> st.SearchStrategy[pa.DataType]:
    if column.item is not None:
        return typed(column.item).flatmap(lambda t: st.sampled_from([pa.list_(t), pa.large_list(t), pa.list_(t, 2)]))
    if column.row is not None:
        fields = list(column.row.columns)
        return st.tuples(*(typed(c) for c in fields)).map(
            lambda ts: pa.struct([pa.field(c.name, t) for c, t in zip(fields, ts, strict=True)])
        )
    return st.sampled_from([pa.null(), *TYPES[column.kind] * 4])


def of_type(found: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of an Arrow type: integers stand for dates and times, so that there are more than Python has."""
    t = pa.types
    if t.is_null(found):
        return st.none()
    if t.is_boolean(found):
        return st.booleans()
    if t.is_integer(found):
        signed = t.is_signed_integer(found)
        low = -(2 ** (found.bit_width - 1)) if signed else 0
        high = 2 ** (found.bit_width - signed) - 1
        return st.one_of(st.integers(low, high), INTS.filter(lambda i: low <= i <= high))
    if t.is_floating(found):
        return st.floats(width=found.bit_width) if found.bit_width < 64 else FLOATS
    if t.is_decimal(found):
        most = 10**found.precision - 1
        one = Decimal(1).scaleb(-found.scale)
        return st.one_of(st.integers(-most, most), st.integers(-300, 300)).map(lambda i: WIDE.multiply(i, one))
    if t.is_list(found) or t.is_large_list(found):
        return st.lists(st.one_of(st.none(), of_type(found.value_type)), max_size=3)
    if t.is_fixed_size_list(found):
        return st.lists(st.one_of(st.none(), of_type(found.value_type)), min_size=2, max_size=2)
    if t.is_struct(found):
        return st.fixed_dictionaries({f.name: st.one_of(st.none(), of_type(f.type)) for f in found})
    if t.is_temporal(found):
        if t.is_date32(found):
            return st.one_of(st.integers(-1_000_000, 4_000_000), st.integers(10_000, 20_000))
        per_day = 86_400_000 if t.is_date64(found) else 86_400 * 1000 ** ("s", "ms", "us", "ns").index(found.unit)
        days = st.one_of(st.integers(-1_000_000, 4_000_000), st.integers(10_000, 20_000))
        near = st.builds(lambda d, t: d * per_day + t, days, st.sampled_from([0, 0, 1, 1000, 500_000]))
        return near.filter(lambda i: -(2**63) <= i < 2**63)
    return TEXTS.filter(lambda text: "\ud800" not in text)


def from_python(values: list[Any], found: pa.DataType) -> pa.Array:
    """As `pa.array`, but integers become dates and times at any depth."""
    t = pa.types
    if t.is_struct(found):
        mask = pa.array([v is None for v in values], pa.bool_())
        children = [from_python([None if v is None else v[f.name] for v in values], f.type) for f in found]
        return pa.StructArray.from_arrays(children, fields=list(found), mask=mask)
    if t.is_list(found) or t.is_large_list(found):
        child = from_python([i for v in values for i in v or []], found.value_type)
        ends = [0]
        for v in values:
            ends.append(ends[-1] + len(v or []))
        kind = pa.LargeListArray if t.is_large_list(found) else pa.ListArray
        width = pa.int64() if t.is_large_list(found) else pa.int32()
        mask = pa.array([v is None for v in values], pa.bool_())
        return kind.from_arrays(pa.array(ends, width), child, type=found, mask=mask)
    if t.is_fixed_size_list(found):
        child = from_python([i for v in values for i in (v or [None, None])], found.value_type)
        mask = pa.array([v is None for v in values], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(child, type=found, mask=mask)
    if t.is_date32(found):
        return pa.array(values, pa.int32()).cast(found)
    if t.is_date64(found) or t.is_timestamp(found):
        return pa.array(values, pa.int64()).view(found)
    return pa.array(values, found)
