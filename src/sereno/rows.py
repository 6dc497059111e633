"""JSON rows: the compiled decoder of a row type.

msgspec decodes a row and checks its types, bounds, lengths and choices in under a microsecond. What it refuses, and the
few things in which it differs from our table (it refuses 3.0 for an int), is decided by `values.py`, the reference.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from operator import itemgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import astuple

from sereno.checks import Checked, check_table
from sereno.schema import ABSENT, Column, RowType
from sereno.values import INT64, Refused, admit, admit_row, plain_value

Row = tuple[Any, ...]  # canonical values, in the order of the columns
UNSET = msgspec.UNSET  # in a live row: a column that is to be fetched

NATIVE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "date": date}
UNKNOWN_TO_MSGSPEC = re.compile(r'["\\\x00-\x1f]')  # in names of fields
EXACT = 2.0**53  # JSON's whole numbers from here on may not be what stood there, once they are floats
# A text as it stands in JSON. One that never ends reaches to the end, or each quote in it would be tried as a beginning.
JSON_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NotJsonError(Refused):
    """The text is no JSON at all."""


class RowDecoder:
    """Decodes JSON objects into rows. Built once per row type; thread-safe.

    Every method raises Refused with all the mistakes of the row. `complete=False` leaves the rules that msgspec does not
    know (patterns, bounds of dates) to `check_table`, which does them by column.
    """

    def __init__(self, row: RowType, *, complete: bool = True) -> None:
        self.row = row
        self._decode: Callable[[bytes | str], Any] = _refuse
        self._decode_list: Callable[[bytes | str], Any] = _refuse
        self._struct: Any = None
        if not any(UNKNOWN_TO_MSGSPEC.search(c.name) for c in row.columns):  # else all rows go by the reference
            fields = [_field(i, column) for i, column in enumerate(row.columns)]
            names = {f"f{i}": column.name for i, column in enumerate(row.columns)}
            self._struct = msgspec.defstruct(f"{row.name}Json", fields, rename=names, kw_only=True, gc=False)
            self._decode = msgspec.json.Decoder(self._struct).decode
            self._decode_list = msgspec.json.Decoder(list[self._struct]).decode  # type: ignore[name-defined]
        self._converted = [
            (i, c) for i, c in enumerate(row.columns) if _native(c) is Any or (complete and _has_more_rules(c))
        ]

    def decode(self, text: bytes | str) -> Row:
        """The row of one JSON object. Raises NotJsonError too."""
        try:
            row = astuple(self._decode(text))
            return self._finish(row) if self._converted else row
        except (*NOT_DECODED, Refused):
            return tuple(admit_row(self.row, json_value(text), "json").values())

    def decode_list(self, text: bytes | str) -> list[Row] | None:
        """The rows of a JSON list of objects; None where the compiled decoder cannot tell, or a row does not fit."""
        try:
            return [self._finish(astuple(row)) for row in self._decode_list(text)]
        except (*NOT_DECODED, Refused):
            return None

    def by_position(self, names: Sequence[str]) -> Callable[[bytes | str], list[Row] | None]:
        """Compile what `decode_list` is for objects, for lists whose values are those of these columns, in this order.

        Columns that are not named get their defaults, which they must have; of names that are no columns, the values are
        passed over.
        """
        columns = {c.name: c for c in self.row.columns}
        fields = [(f"f{i}", _native(columns[name]) if name in columns else Any) for i, name in enumerate(names)]
        struct: Any = msgspec.defstruct(
            f"{self.row.name}List", fields, array_like=True, forbid_unknown_fields=True, gc=False
        )
        decode = msgspec.json.Decoder(list[struct]).decode
        absent = [c for c in self.row.columns if c.name not in names]
        defaults = tuple(c.default for c in absent)
        places = {name: i for i, name in enumerate((*names, *(c.name for c in absent)))}
        order = [places[c.name] for c in self.row.columns]
        as_declared = order == list(range(len(names)))
        pick = itemgetter(*order, order[0])  # the first again, since of one place alone it would give no tuple

        def decode_lists(text: bytes | str) -> list[Row] | None:
            try:
                rows = [astuple(row) for row in decode(text)]
                if not as_declared:
                    rows = [pick(row + defaults)[:-1] for row in rows]
                return [self._finish(row) for row in rows] if self._converted else rows
            except (*NOT_DECODED, Refused):
                return None

        return decode_lists

    def convert(self, value: Any) -> Row:
        """The row of a mapping whose values came as JSON has them."""
        try:
            return self._finish(astuple(msgspec.convert(value, self._struct)))
        except (*NOT_DECODED, Refused, TypeError):
            return tuple(admit_row(self.row, value, "json").values())

    def _finish(self, row: Row) -> Row:
        if not self._converted:
            return row
        values = list(row)
        for i, column in self._converted:
            if values[i] is not column.default:
                values[i] = admit(column, values[i], "json")
        return tuple(values)


def json_value(text: bytes | str) -> Any:
    """Whatever JSON stands in the text. Raises NotJsonError."""
    try:
        return msgspec.json.decode(text)
    except NOT_DECODED as error:
        raise NotJsonError(f"row: is not JSON ({error})", [("row", "must be JSON")]) from None


def live_row(row: RowType, *, keys_needed: bool) -> RowType:
    """The row type as a live request may send it: without keys, unless they are needed, and without fetched columns."""
    columns = []
    for column in row.columns:
        if column.role == "key" and not keys_needed:
            column = dataclasses.replace(column, nullable=True, default=None)
        elif column.role == "fetched":
            column = dataclasses.replace(column, default=UNSET)
        columns.append(column)
    return dataclasses.replace(row, columns=tuple(columns))


class JsonRows:
    """Decodes JSON objects, one per text, into checked columns. Built once per row type; thread-safe."""

    def __init__(self, row: RowType) -> None:
        self.row = row
        self._decoder = RowDecoder(row, complete=False)

    def decode(self, texts: Sequence[bytes | str]) -> Checked:
        """Each text is one JSON object; positions in the result are positions in `texts`."""
        rows: list[Row] = []
        decoded: list[int] = []
        refused: list[tuple[int, str]] = []
        for position, text in enumerate(texts):
            try:
                rows.append(self._decoder.decode(text))
            except Refused as reason:
                refused.append((position, str(reason)))
            else:
                decoded.append(position)
        # the fields of a canonical table may hold nulls until the rules below have been checked
        table = table_of(self.row.columns, rows)
        checked = check_table(self.row, table, explain=lambda i: self._explain(texts[decoded[i]]))
        if not refused and checked.positions is None:
            return checked
        refused += [(decoded[i], reason) for i, reason in checked.refused]
        positions = np.array(decoded, dtype="int64")
        return Checked(
            table=checked.table,
            positions=positions if checked.positions is None else positions[checked.positions],
            refused=sorted(refused),
        )

    def _explain(self, text: bytes | str) -> str:
        try:
            self.decode_one(text)
        except Refused as reason:
            return str(reason)
        raise AssertionError("the check of a JSON row refused what `admit_row` takes")

    def decode_one(self, text: bytes | str) -> dict[str, Any]:
        """One row by the reference, with all its mistakes. Raises Refused."""
        return admit_row(self.row, json_value(text), "json")


def table_of(columns: Sequence[Column], rows: Sequence[Row]) -> pa.Table:
    """Canonical rows as columns; their nulls are not held against the columns."""
    values: Any = zip(*rows, strict=True) if rows else ((),) * len(columns)
    arrays = [pa.array(v, c.arrow_type) for c, v in zip(columns, values, strict=True)]
    return pa.Table.from_arrays(arrays, names=[c.name for c in columns])


def _refuse(text: bytes | str) -> Any:
    raise Refused


def _native(column: Column) -> Any:
    """The type that msgspec decodes a column to, with the rules that it can check; Any: as it comes, for `admit`."""
    base: Any = NATIVE.get(column.kind, Any)
    if column.choices:
        base = Literal[column.choices]
    elif column.kind == "int":
        base = _with_rules(int, _bounds(column, (INT64.start, "ge"), (INT64.stop - 1, "le")))
    elif column.kind == "float":
        base = _with_rules(float, _bounds(column, (-EXACT, "gt"), (EXACT, "lt")))
    elif column.kind == "list":
        assert column.item is not None
        item = _native(column.item) if column.item.kind in NATIVE else Any
        base = Any if item is Any else list[item]  # type: ignore[valid-type]
    if column.kind in ("str", "list") and base is not Any and not column.choices:
        base = _with_rules(base, {name: getattr(column, name) for name in ("min_length", "max_length")})
    return base | None if column.nullable and base is not Any else base


def _bounds(column: Column, lower: tuple[float, str], upper: tuple[float, str]) -> dict[str, Any]:
    """The narrower of the column's bounds and those of its kind; of two at the same value, the one that excludes it."""
    lowers = [lower, *((v, n) for n in ("ge", "gt") if (v := getattr(column, n)) is not None)]
    uppers = [upper, *((v, n) for n in ("le", "lt") if (v := getattr(column, n)) is not None)]
    least = max(lowers, key=lambda bound: (bound[0], bound[1] == "gt"))
    most = min(uppers, key=lambda bound: (bound[0], bound[1] != "lt"))
    return {least[1]: least[0], most[1]: most[0], "multiple_of": column.multiple_of}


def _with_rules(base: Any, rules: Mapping[str, Any]) -> Any:
    some = {name: value for name, value in rules.items() if value is not None}
    return Annotated[base, msgspec.Meta(**some)] if some else base


def _has_more_rules(column: Column) -> bool:
    """Whether a column has rules that msgspec does not check."""
    if column.kind == "list":
        assert column.item is not None
        return _has_more_rules(column.item)
    dated = column.kind == "date" and any(getattr(column, n) is not None for n in ("ge", "gt", "le", "lt"))
    return column.pattern is not None or dated


def _field(position: int, column: Column) -> tuple[Any, ...]:
    native = _native(column)
    field: tuple[Any, ...] = (f"f{position}", native)
    if column.default is ABSENT:
        return field
    if column.default is UNSET:
        return (field[0], native if native is Any else native | msgspec.UnsetType, UNSET)
    if isinstance(column.default, list | dict):
        return (*field, msgspec.field(default_factory=lambda: column.default))
    return (*field, column.default)


class AnswerEncoder:
    """Predictions as JSON objects. Live answers and what lookups answer from both come from here, and are the same bytes."""

    def __init__(self, names: Sequence[str]) -> None:
        encoder = msgspec.json.Encoder(decimal_format="string")
        self._encode, self._encode_lines = encoder.encode, encoder.encode_lines
        self._answer: Callable[..., Any] = lambda *answer: dict(zip(names, answer, strict=True))
        if not any(UNKNOWN_TO_MSGSPEC.search(name) for name in names):
            fields = [(f"f{i}", Any) for i in range(len(names))]  # a Struct is made and encoded faster than a dict
            renamed = {f"f{i}": name for i, name in enumerate(names)}
            self._answer = msgspec.defstruct("Answer", fields, rename=renamed, gc=False)

    def encode(self, answer: Row) -> bytes:
        """One answer, whose values are in the order of the names."""
        return self._encode(self._answer(*answer))

    def encode_many(self, answers: Sequence[Row]) -> bytes:
        """A JSON list of answers."""
        return self._encode([self._answer(*answer) for answer in answers])

    def encode_columns(self, columns: Sequence[Sequence[Any]]) -> list[bytes]:
        """What `encode` gives for each row of the columns."""
        lines = self._encode_lines(list(map(self._answer, *columns))).split(b"\n")
        lines.pop()  # each line ends with the sign, so nothing comes after the last one
        return lines


def encode(table: pa.Table) -> list[bytes]:
    """Canonical rows as JSON texts, which `JsonRows.decode` reads back to the same values."""
    encoder = msgspec.json.Encoder(decimal_format="string")
    return [encoder.encode(row) for row in table.to_pylist()]


def rows_to_table(row: RowType, rows: Sequence[Any]) -> Checked:
    """Python rows (mappings, or instances of the row type) as checked columns."""
    good: list[dict[str, Any]] = []
    positions: list[int] = []
    refused: list[tuple[int, str]] = []
    for position, value in enumerate(rows):
        try:
            good.append(admit_row(row, plain_value(value), "typed"))
        except Refused as reason:
            refused.append((position, str(reason)))
        else:
            positions.append(position)
    table = pa.Table.from_pylist(good, schema=row.arrow_schema())
    return Checked(table=table, positions=np.array(positions, dtype="int64") if refused else None, refused=refused)
