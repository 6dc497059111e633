"""JSON rows: the compiled decoder of a row type.

msgspec decodes and checks the types of a row in under a microsecond. What it refuses, and the few things in which it
differs from our table (it refuses 3.0 for an int, it rounds large integers to floats), is decided by `values.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sereno.checks import Checked, check_table
from sereno.schema import ABSENT, Column, RowType
from sereno.values import INT64, Refused, admit, admit_row, plain_value

NATIVE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "date": date}
UNKNOWN_TO_MSGSPEC = re.compile(r'["\\\x00-\x1f]')  # in names of fields


class JsonRows:
    """Decodes JSON objects, one per text, into checked columns. Built once per row type; thread-safe."""

    def __init__(self, row: RowType) -> None:
        self.row = row
        fields = [_field(i, column) for i, column in enumerate(row.columns)]
        names = {f"f{i}": column.name for i, column in enumerate(row.columns)}
        if any(UNKNOWN_TO_MSGSPEC.search(c.name) for c in row.columns):
            self._decode: Callable[..., Any] = _refuse  # all rows by the reference
        else:
            struct = msgspec.defstruct(f"{row.name}Json", fields, rename=names, kw_only=True, gc=False)
            self._decode = msgspec.json.Decoder(struct).decode
        self._by_admit = [c for c in row.columns if _native(c) is Any]
        self._floats = [c for c in row.columns if c.kind == "float" or (c.item and c.item.kind == "float")]

    def decode(self, texts: Sequence[bytes | str]) -> Checked:
        """Each text is one JSON object; positions in the result are positions in `texts`."""
        rows: list[tuple[Any, ...]] = []
        positions: list[int] = []
        refused: list[tuple[int, str]] = []
        for position, text in enumerate(texts):
            try:
                row = self._fast(text)
            except (msgspec.MsgspecError, Refused, UnicodeDecodeError):
                try:
                    row = tuple(self.decode_one(text).values())
                except Refused as reason:
                    refused.append((position, str(reason)))
                    continue
            rows.append(row)
            positions.append(position)
        values = zip(*rows, strict=True) if rows else ((),) * len(self.row.columns)
        arrays = [pa.array(v, c.arrow_type) for c, v in zip(self.row.columns, values, strict=True)]
        # the fields of a canonical table may hold nulls until the rules below have been checked
        table = pa.Table.from_arrays(arrays, names=[c.name for c in self.row.columns])
        checked = check_table(self.row, table, explain=lambda i: self._explain(texts[positions[i]]))
        if not refused and checked.kept is None:
            return checked
        refused += [(positions[i], reason) for i, reason in checked.refused]
        kept = np.array(positions, dtype="int64")
        return Checked(
            table=checked.table,
            kept=kept if checked.kept is None else kept[checked.kept],
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
        try:
            value = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Refused(f"row: is not JSON ({error})") from None
        return admit_row(self.row, value, "json")

    def _fast(self, text: bytes | str) -> tuple[Any, ...]:
        row = msgspec.structs.astuple(self._decode(text))
        for column, value in zip(self.row.columns, row, strict=True):
            # what msgspec lets through and columns cannot hold, or not exactly: the reference decides
            if value is None:
                continue
            if column.kind == "int" and value not in INT64:
                raise Refused
            if column.kind == "float" and not -(2.0**53) < value < 2.0**53:
                raise Refused
            if column.kind == "list" and not _plain(column, value):
                raise Refused
        if not self._by_admit:
            return row
        return tuple(
            admit(c, v, "json") if v is not c.default and _native(c) is Any else v
            for c, v in zip(self.row.columns, row, strict=True)
        )


def _refuse(text: bytes | str) -> Any:
    raise Refused


def _plain(column: Column, values: list[Any]) -> bool:
    assert column.item is not None
    if column.item.kind == "int":
        return all(v is None or v in INT64 for v in values)
    if column.item.kind == "float":
        return all(v is None or -(2.0**53) < v < 2.0**53 for v in values)
    return True


def _native(column: Column) -> Any:
    """The type that msgspec decodes a column to; Any: as it comes, for `admit`."""
    base: Any = NATIVE.get(column.kind, Any)
    if column.kind == "list":
        assert column.item is not None
        item = _native(column.item) if column.item.kind in NATIVE else Any
        base = Any if item is Any else list[item]  # type: ignore[valid-type]
    return base | None if column.nullable and base is not Any else base


def _field(position: int, column: Column) -> tuple[Any, ...]:
    field: tuple[Any, ...] = (f"f{position}", _native(column))
    if column.default is ABSENT:
        return field
    if isinstance(column.default, list | dict):
        return (*field, msgspec.field(default_factory=lambda: column.default))
    return (*field, column.default)


def encode(table: pa.Table) -> list[bytes]:
    """Canonical rows as JSON texts, which `JsonRows.decode` reads back to the same values."""
    encoder = msgspec.json.Encoder(decimal_format="string")
    return [encoder.encode(row) for row in table.to_pylist()]


def rows_to_table(row: RowType, rows: Sequence[Any]) -> Checked:
    """Python rows (mappings, or instances of the row type) as checked columns."""
    good: list[dict[str, Any]] = []
    kept: list[int] = []
    refused: list[tuple[int, str]] = []
    for position, value in enumerate(rows):
        try:
            good.append(admit_row(row, plain_value(value), "typed"))
        except Refused as reason:
            refused.append((position, str(reason)))
        else:
            kept.append(position)
    table = pa.Table.from_pylist(good, schema=row.arrow_schema())
    return Checked(table=table, kept=np.array(kept, dtype="int64") if refused else None, refused=refused)
