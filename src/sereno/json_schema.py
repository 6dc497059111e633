"""Row types as JSON Schema (draft 2020-12, as in OpenAPI 3.1).

The schema of a row takes what its decoder takes, but for four rules that JSON Schema cannot say and a description says:
bounds of dates and times; of decimals in text; the exact digits of a decimal in a number; and that a whole number in a
float's place is one that a float can hold exactly. A property test holds the two together.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec

from sereno.schema import ABSENT, Column, RowType

WORDS = (
    ("ge", "minimum", "at least"),
    ("gt", "exclusiveMinimum", "more than"),
    ("le", "maximum", "at most"),
    ("lt", "exclusiveMaximum", "less than"),
)
ROLES = {"key": "identifies the row", "fetched": "fetched by key where it is left out"}


def row_schema(row: RowType) -> dict[str, Any]:
    """Of a row that comes in. Unknown fields are ignored."""
    return {
        "type": "object",
        "title": row.name,
        "properties": {c.name: _column(c) for c in row.columns},
        "required": [c.name for c in row.columns if c.default is ABSENT],
    }


def answer_schema(row: RowType) -> dict[str, Any]:
    """Of a row that goes out: every column is there, and decimals are text."""
    return {
        "type": "object",
        "title": row.name,
        "properties": {c.name: _column(c, is_answer=True) for c in row.columns},
        "required": [c.name for c in row.columns],
    }


def _column(column: Column, *, is_answer: bool = False) -> dict[str, Any]:
    out = _kind(column, is_answer)
    notes = [ROLES[column.role]] if column.role in ROLES and not is_answer else []
    if column.choices:
        out["enum"] = list(column.choices)
    for name, word, words in WORDS:
        bound = getattr(column, name)
        if bound is None:
            continue
        if column.kind in ("int", "float"):
            out[word] = bound
        elif isinstance(bound, date):
            notes.append(f"{words} {bound.isoformat()}")
        else:  # a decimal: the bound is of those that come as numbers
            notes.append(f"{words} {bound}")
            if not is_answer:
                out[word] = float(bound)
    if column.multiple_of is not None:
        out["multipleOf"] = column.multiple_of
    for name, text, many in (("min_length", "minLength", "minItems"), ("max_length", "maxLength", "maxItems")):
        bound = getattr(column, name)
        if bound is not None:
            out[many if column.kind == "list" else text] = bound
    if column.pattern is not None:
        out["pattern"] = column.pattern
    if column.kind == "decimal":
        notes.append(f"{column.precision} digits, {column.scale} of them behind the point")
    if column.nullable:
        out = {"anyOf": [out, {"type": "null"}]}
    if notes:
        out["description"] = "; ".join(notes)
    if column.default is not ABSENT and column.default is not msgspec.UNSET and not is_answer:
        out["default"] = msgspec.to_builtins(column.default)
    return out


def _kind(column: Column, is_answer: bool) -> dict[str, Any]:
    match column.kind:
        case "int":
            return {"type": "integer", "format": "int64"}
        case "float":
            return {"type": "number"}
        case "bool":
            return {"type": "boolean"}
        case "str":
            return {"type": "string"}
        case "date":
            return {"type": "string", "format": "date"}
        case "datetime":
            return {"type": "string", "format": "date-time"}
        case "decimal":
            kinds: Any = "string" if is_answer else ["string", "number"]
            return {"type": kinds, "format": "decimal", "pattern": decimal_pattern(column.precision, column.scale)}
        case "list":
            assert column.item is not None
            return {"type": "array", "items": _column(column.item, is_answer=is_answer)}
        case "row":
            assert column.row is not None
            return answer_schema(column.row) if is_answer else row_schema(column.row)


def decimal_pattern(precision: int, scale: int) -> str:
    """The usual way to write a decimal: no exponent, and a digit before the point."""
    whole = precision - scale
    digits = f"0*[0-9]{{1,{whole}}}" if whole else "0+"
    return rf"^[+-]?{digits}(\.[0-9]{{0,{scale}}}0*)?$"
