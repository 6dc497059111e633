"""Whole columns against their row type: a batch of rows in, canonical columns and refused rows out.

Fast where nothing is wrong (a few passes of numpy and pyarrow.compute over each column). Where a value does not fit,
the vector only finds it; the reason comes from `values.py`, the reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sereno.exceptions import InputError
from sereno.schema import ABSENT, Column, RowType
from sereno.values import EXACT_DIGITS, FLOAT_TEXT, INT64, INT_TEXT, NOUNS, Door, Refused, admit

Mask = npt.NDArray[np.bool_]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ANYTHING: dict[str, Any] = {  # kind → one value of it
    "int": 0, "float": 0.0, "bool": False, "str": "", "date": EPOCH.date(), "datetime": EPOCH, "decimal": Decimal(0), "list": [],
}  # fmt: skip
ALL_FINE: Mask | None = None  # no mask at all: nothing to allocate, nothing to combine


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What became of a batch of rows."""

    table: pa.Table  # the rows that fit, in canonical types
    positions: npt.NDArray[np.int64] | None  # of these rows in the batch; None: all of it
    refused: list[tuple[int, str]]  # position and reason of each other row
    # the least and the greatest number of columns, of those where checking found them anyway
    extremes: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


def check_table(
    row: RowType,
    table: pa.Table | pa.RecordBatch,
    door: Door = "typed",
    *,
    columns: Iterable[Column] | None = None,
    explain: Callable[[int], str] | None = None,
) -> Checked:
    """Check every row of `table` against `row` (or some columns of it); columns beyond it are ignored.

    `explain` gives the reason of a row by its position, where the table is not the original (JSON rows).
    Raises InputError where a whole column is missing or of a type that none of its values could have.
    """
    chosen = row.columns if columns is None else tuple(columns)
    given = set(table.schema.names)
    arrays: list[pa.Array] = []
    originals: list[pa.Array | None] = []
    masks: list[Mask | None] = []
    extremes: dict[str, tuple[float, float]] = {}
    for column in chosen:
        if column.name not in given:
            arrays.append(default_array(column, table.num_rows))
            originals.append(None)
            masks.append(ALL_FINE)
            continue
        original = one_array(column_of(table, column.name))
        array, bad = check_column(column, original, door, extremes)
        arrays.append(array)
        originals.append(original)
        masks.append(bad)
    canonical = pa.Table.from_arrays(arrays, schema=row.arrow_schema(chosen))
    found = [m for m in masks if m is not None]
    if not found:
        return Checked(table=canonical, positions=None, refused=[], extremes=extremes)
    bad_rows = np.logical_or.reduce(found)
    refused = []
    for position in np.flatnonzero(bad_rows).tolist():
        reason = explain(position) if explain else _reason(chosen, originals, masks, position, door)
        refused.append((position, reason))
    fit = np.flatnonzero(~bad_rows)
    return Checked(table=canonical.take(pa.array(fit)), positions=fit, refused=refused)


def _reason(
    columns: Iterable[Column], originals: list[pa.Array | None], masks: list[Mask | None], position: int, door: Door
) -> str:
    reasons = []
    for column, original, mask in zip(columns, originals, masks, strict=True):
        if original is None or mask is None or not mask[position]:
            continue
        try:
            admit(column, python_value(original, position), door)
        except Refused as refused:
            reasons.append(str(refused))
        else:  # finer or larger than Python's values, so that the one shown fits
            reasons.append(f"{column.name}: must be {NOUNS[column.kind]}")
    return "; ".join(reasons)


def python_value(array: pa.Array, position: int) -> Any:
    """One value as Python; as text where Python has none (the year 10000, nanoseconds, bytes that are no UTF-8)."""
    try:
        return array[position].as_py()
    except (ValueError, OverflowError):
        one = array.slice(position, 1)
        if pa.types.is_string(one.type) or pa.types.is_large_string(one.type):
            return one.cast(pa.large_binary())[0].as_py().decode(errors="replace")
        return one.to_string()


def check_column(
    column: Column, array: pa.Array, door: Door = "typed", extremes: dict[str, tuple[float, float]] | None = None
) -> tuple[pa.Array, Mask | None]:
    """The canonical array (null where a value does not fit) and which values do not fit.

    Where it finds out the least and the greatest number anyway, it puts them into `extremes`, under the column's name.
    Raises InputError where the array's type is none that the column's values could have.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        # `pa.nulls` would have nulls in the fields of rows, too
        nulls = (
            pa.array([None] * len(array), column.arrow_type) if column.row else pa.nulls(len(array), column.arrow_type)
        )
        converted, bad = nulls, ALL_FINE
    elif door == "text":
        converted, bad = _parse(column, array)
    else:
        converted, bad = (_fine_floats(column, array, extremes) if extremes is not None else None) or _convert(
            column, array
        )
    if converted.null_count and not column.nullable:
        bad = _or(bad, _mask(pc.is_null(converted)))
    return converted, _or(
        bad, _broken_rules(column, converted, None if extremes is None else extremes.get(column.name))
    )


def _fine_floats(
    column: Column, array: pa.Array, extremes: dict[str, tuple[float, float]]
) -> tuple[pa.Array, Mask | None] | None:
    """What `_convert` gives for numbers without a null, NaN or infinity: at the same price, it tells the extremes."""
    if column.kind != "float" or not pa.types.is_float64(array.type) or array.null_count or not len(array):
        return None
    x = array.to_numpy()
    least, greatest = float(x.min()), float(x.max())  # NaN, should there be one
    if not (math.isfinite(least) and math.isfinite(greatest)):
        return None
    extremes[column.name] = (least, greatest)
    return array, ALL_FINE


def mistyped(column: Column, found: pa.DataType) -> InputError:
    takes = {
        "int": "integers, or floats that are whole",
        "float": "numbers",
        "bool": "booleans",
        "str": "text",
        "date": "dates, or timestamps at midnight without a time zone",
        "datetime": "timestamps with a time zone",
        "decimal": "decimals or integers",
        "list": "lists",
        "row": "structs",
    }[column.kind]
    return InputError(
        f"Column {column.name!r} is {found} here, but is declared {column.kind}, which takes {takes}. "
        "Convert it, or declare another type."
    )


def default_array(column: Column, rows: int) -> pa.Array:
    """What a table without the column has in it: the declared default. Raises InputError where there is none."""
    if column.default is ABSENT:
        raise InputError(f"Column {column.name!r} is missing. Read it too, or give it a default in the row type.")
    return pa.array([column.default] * rows, column.arrow_type)


def column_of(table: pa.Table | pa.RecordBatch, name: str) -> pa.ChunkedArray | pa.Array:
    """Raises InputError where two columns have the name."""
    if table.schema.get_field_index(name) < 0:
        raise InputError(f"Column {name!r} is there twice. Rename or leave out one of them where the rows are read.")
    return table.column(name)


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
        )
    return column


def _convert(column: Column, array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """The typed door of the table of coercions, on a whole column."""
    found = array.type
    types = pa.types
    match column.kind:
        case "float" if types.is_floating(found):
            return _floats(array)
        case "float" if types.is_integer(found):
            floats = pc.cast(array, pa.float64(), safe=False)
            return floats, ALL_FINE if found.bit_width <= 32 else _rounded(array)
        case "float" if types.is_decimal(found) and found.precision <= EXACT_DIGITS:
            return floats_of_decimals(array), ALL_FINE
        case "int" if types.is_uint64(found):
            return _where_fits(column, array, np.asarray(array.fill_null(0)) < np.uint64(INT64.stop))
        case "int" if types.is_integer(found):
            return pc.cast(array, pa.int64()), ALL_FINE
        case "int" if types.is_floating(found):
            floats, bad = _floats(array)
            x = np.nan_to_num(floats.to_numpy(zero_copy_only=False), nan=0.0)
            whole = (np.floor(x) == x) & (x >= -(2.0**63)) & (x < 2.0**63)
            integers = pa.array(np.where(whole, x, 0).astype("int64"), mask=_mask(floats.is_null()))
            return integers, _or(bad, _any(~whole))
        case "bool" if types.is_boolean(found):
            return array, ALL_FINE
        case "str" if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
            return _texts(column, pc.cast(array, pa.string()))
        case "date" if types.is_date(found) or (types.is_timestamp(found) and found.tz is None):
            return _where_fits(column, array, _are_times(array, "day"))
        case "datetime" if types.is_timestamp(found) and found.tz is not None:
            return _where_fits(column, array, _are_times(array, "us"))
        case "decimal" if types.is_decimal(found) or types.is_integer(found):
            try:
                return pc.cast(array, column.arrow_type), ALL_FINE
            except pa.ArrowInvalid:  # one value or more does not fit, or the type might not: value by value
                return _one_by_one(column, array, "typed")
        case "int" | "float" if types.is_decimal(found):
            return _one_by_one(column, array, "typed")
        case "list" if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
            return _lists(column, array)
        case "row" if types.is_struct(found):
            return _rows(column, array)
    raise mistyped(column, found)


def _floats(array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """Float64; NaN is a missing value, infinity does not fit."""
    array = pc.cast(array, pa.float64())
    x = array.to_numpy(zero_copy_only=False)
    finite = np.isfinite(x)
    if finite.all() or np.count_nonzero(~finite) == array.null_count:
        return array, ALL_FINE
    infinite = np.isinf(x)
    return pa.array(x, mask=~finite), _any(infinite)


def floats_of_decimals(array: pa.Array) -> pa.Array:
    """The nearest float of each decimal, which Arrow's own cast may miss."""
    found = array.type
    if found.precision > EXACT_DIGITS or not 0 <= found.scale <= 22:  # 10**22 is the last power that a float holds
        return pa.array([None if v is None else float(v) for v in array.to_pylist()], pa.float64())
    wide = pc.cast(array, pa.decimal128(38, found.scale))
    low_words = np.frombuffer(wide.buffers()[1], np.int64)[::2][wide.offset : wide.offset + len(wide)]
    return pa.array(low_words / 10.0**found.scale, mask=_mask(array.is_null()))


def _rounded(array: pa.Array) -> Mask | None:
    """Which integers of 64 bits a float cannot hold exactly."""
    x = np.asarray(array.fill_null(0))
    floats = x.astype("float64")
    inside = floats < 2.0 ** (63 if x.dtype.kind == "i" else 64)  # the largest round up to what no integer holds
    return _any(~inside | (np.where(inside, floats, 0).astype(x.dtype) != x))


def _texts(column: Column, array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """Text as it is, but for what is no UTF-8, which Parquet files may hold."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        decodes = [b is None or _decodes(b) for b in array.cast(pa.binary()).to_pylist()]
        return _where_fits(column, array, np.array(decodes))
    return array, ALL_FINE


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# ticks of an Arrow type in a day; Python's years 1 to 9999, in days since 1970
TICKS = {"day": 1, "s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
DAYS = range((date.min - date(1970, 1, 1)).days, (date.max - date(1970, 1, 1)).days + 1)


def _are_times(array: pa.Array, unit: str) -> Mask:
    """Which dates and times Python has, at whole days or microseconds."""
    found = array.type
    ticks = TICKS["day" if pa.types.is_date32(found) else "ms" if pa.types.is_date64(found) else found.unit]
    x = np.asarray(array.cast(pa.int32() if pa.types.is_date32(found) else pa.int64()).fill_null(0))
    fits = (x >= max(DAYS.start * ticks, INT64.start)) & (x <= min(DAYS.stop * ticks - 1, INT64.stop - 1))
    return fits if ticks <= TICKS[unit] else fits & (x % (ticks // TICKS[unit]) == 0)


def _where_fits(column: Column, array: pa.Array, fits: Mask) -> tuple[pa.Array, Mask | None]:
    """Cast what fits, null elsewhere."""
    safe = array if fits.all() else pc.if_else(pa.array(fits), array, pa.scalar(None, array.type))
    return pc.cast(safe, column.arrow_type), _any(~fits)


def _lists(column: Column, array: pa.Array) -> tuple[pa.Array, Mask | None]:
    assert column.item is not None
    items, bad_items = check_column(column.item, array.flatten())
    lengths = np.asarray(pc.cast(pc.list_value_length(array), pa.int64()).fill_null(0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype("int32"))
    nulls = pc.is_null(array) if array.null_count else None
    # assembled from the type, so that the item's own nullability is kept
    lists = pa.ListArray.from_arrays(offsets, items, type=column.arrow_type, mask=nulls)
    if bad_items is None:
        return lists, ALL_FINE
    bad = np.zeros(len(array), dtype=bool)
    bad[np.repeat(np.arange(len(array)), lengths)[bad_items]] = True
    return lists, bad


def _rows(column: Column, array: pa.Array) -> tuple[pa.Array, Mask | None]:
    assert column.row is not None
    nulls = _mask(pc.is_null(array)) if array.null_count else None
    arrays, bad = [], ALL_FINE
    for field in column.row.columns:
        if array.type.get_field_index(field.name) < 0:
            arrays.append(default_array(field, len(array)))
            continue
        values, bad_field = check_column(field, pc.struct_field(array, field.name))
        if nulls is not None and not field.nullable and values.null_count:
            # below a row that is null, where nobody sees it, Parquet's writer still wants a value
            values = pc.if_else(pa.array(nulls), pa.scalar(_something(field), field.arrow_type), values)
        arrays.append(values)
        if bad_field is not None:  # a row that is null has no fields to be missing
            bad = _or(bad, bad_field if nulls is None else bad_field & ~nulls)
    mask = None if nulls is None else pa.array(nulls)
    structs = pa.StructArray.from_arrays(arrays, fields=list(column.arrow_type), mask=mask)
    return structs, None if bad is None else _any(bad)


def _something(column: Column) -> Any:
    """Any value of the column's kind."""
    if column.row is not None:
        return {c.name: None if c.nullable else _something(c) for c in column.row.columns}
    return ANYTHING[column.kind]


def _parse(column: Column, array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """The text door of the table of coercions, on a whole column of text."""
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise mistyped(column, array.type)
    if column.kind == "str":
        return pc.cast(array, pa.string()), ALL_FINE
    if column.kind in ("int", "float"):
        text = pc.ascii_trim_whitespace(array)
        shape = INT_TEXT if column.kind == "int" else FLOAT_TEXT
        fits = _mask(pc.match_substring_regex(text, f"^({shape.pattern})$").fill_null(True))
        if fits.all():
            plain = pc.replace_substring_regex(text, r"^\+", "")
            if column.kind == "int":
                plain = pc.replace_substring_regex(plain, r"\.0+$", "")
            try:
                parsed = pc.cast(plain, column.arrow_type)
            except pa.ArrowInvalid:  # beyond 64 bits somewhere
                return _one_by_one(column, array, "text")
            return _floats(parsed) if column.kind == "float" else (parsed, ALL_FINE)
    return _one_by_one(column, array, "text")


def _one_by_one(column: Column, array: pa.Array, door: Door) -> tuple[pa.Array, Mask | None]:
    """By the reference, for what has no vector form or where a value is known not to fit."""
    loose = Column(name=column.name, kind=column.kind, nullable=True, precision=column.precision, scale=column.scale)
    values: list[Any] = []
    bad = np.zeros(len(array), dtype=bool)
    for position, value in enumerate(array.to_pylist()):
        try:
            values.append(admit(loose, value, door))
        except Refused:
            values.append(None)
            bad[position] = True
    return pa.array(values, column.arrow_type), _any(bad)


def _broken_rules(column: Column, array: pa.Array, extremes: tuple[float, float] | None) -> Mask | None:
    """Bounds, choices, lengths and patterns; nulls break none."""
    bad = ALL_FINE
    if any(getattr(column, name) is not None for name in ("ge", "gt", "le", "lt")):
        bad = _or(bad, _out_of_bounds(column, array, extremes))
    if column.choices:
        known = pc.is_in(array, value_set=pa.array(column.choices, column.arrow_type))
        bad = _or(bad, _any(~_mask(pc.or_(known, array.is_null()))))
    if column.multiple_of is not None:
        bad = _or(bad, _any(np.asarray(array.fill_null(0)) % column.multiple_of != 0))
    if column.min_length is not None or column.max_length is not None:
        lengths = pc.utf8_length(array) if column.kind == "str" else pc.list_value_length(array)
        if column.min_length is not None:
            bad = _or(bad, _any(_mask(pc.less(lengths, column.min_length).fill_null(False))))
        if column.max_length is not None:
            bad = _or(bad, _any(_mask(pc.greater(lengths, column.max_length).fill_null(False))))
    if column.pattern is not None:
        bad = _or(bad, _any(~_mask(pc.match_substring_regex(array, column.pattern).fill_null(True))))
    return bad


def _out_of_bounds(column: Column, array: pa.Array, extremes: tuple[float, float] | None) -> Mask | None:
    low, high = extremes or (pc.min_max(array)[name].as_py() for name in ("min", "max"))
    if low is None:
        return ALL_FINE
    # whole columns first: two comparisons tell whether any value is out, and mostly none is
    inside = (
        (column.ge is None or low >= column.ge)
        and (column.gt is None or low > column.gt)
        and (column.le is None or high <= column.le)
        and (column.lt is None or high < column.lt)
    )
    if inside:
        return ALL_FINE
    bad = ALL_FINE
    for bound, compare in (
        (column.ge, pc.less),
        (column.gt, pc.less_equal),
        (column.le, pc.greater),
        (column.lt, pc.greater_equal),
    ):
        if bound is not None:
            bad = _or(bad, _mask(compare(array, pa.scalar(bound)).fill_null(False)))
    return None if bad is None else _any(bad)


def _mask(array: pa.Array | pa.ChunkedArray) -> Mask:
    return cast(Mask, array.to_numpy(zero_copy_only=False))


def _any(mask: Mask) -> Mask | None:
    return mask if mask.any() else ALL_FINE


def _or(a: Mask | None, b: Mask | None) -> Mask | None:
    if a is None or b is None:
        return b if a is None else a
    return a | b
