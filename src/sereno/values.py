"""The table of lossless coercions for one value, and the mistakes for which a value is refused.

This is the reference: whole columns (`checks.py`) and JSON rows (`rows.py`) find the values that do not fit quickly,
and come here for the reason; a property test holds the three to the same verdict. `docs/rows.md` shows the table.

A value arrives by one of three doors, which differ only in what text may become:

    typed   a Python value or an Arrow column: text is text
    json    JSON has no dates and no exact decimals: there, text is one where the column says so
    text    CSV and folder names (`day=2026-05-01`): everything is text
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from enum import Enum
from typing import Any, Literal

from sereno.exceptions import MOST_TOLD
from sereno.schema import ABSENT, Column, RowType

Door = Literal["typed", "json", "text"]

INT64 = range(-(2**63), 2**63)
WIDE = Context(prec=100)  # decimals of 38 digits pass through exactly
INT_TEXT = re.compile(r"[+-]?[0-9]+(\.0+)?", re.ASCII)
FLOAT_TEXT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
DATE_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
DATETIME_TEXT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6}0*)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})",
    re.ASCII,
)
BLANKS = " \t\n\r\v\f"
EXACT_DIGITS = 15  # a decimal of so many digits becomes a float and is the same decimal again
NOUNS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "date": "a date (YYYY-MM-DD)",
    "datetime": "a date and time with a time zone, to the microsecond (2026-05-01T00:00:00Z)",
    "decimal": "a decimal number",
    "list": "a list",
    "row": "an object",
}


Mistake = tuple[str, str]  # the column, with its path in nested rows (`items[2].price`), and what would be valid


class Refused(Exception):
    """A value does not fit its column; the message says what would, never the value.

    `mistakes` has all that is wrong with a row, where the row as a whole was refused: up to MOST_TOLD, of which the last
    says so if there are more.
    """

    def __init__(self, says: str = "", mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(says or "; ".join(f"{where}: {expected}" for where, expected in mistakes))
        self.mistakes = tuple(mistakes)


def admit(column: Column, value: Any, door: Door = "typed") -> Any:
    """The canonical Python value of `value` in `column`. Raises Refused with all mistakes, the first one first.

    Canonical are int, float, bool, str, date, datetime in UTC, Decimal, list, dict and None.
    """
    mistakes: list[Mistake] = []
    admitted = _admit(column, column.name, value, door, mistakes)
    if mistakes:
        raise Refused(mistakes=_told(mistakes))
    return admitted


def admit_row(row: RowType, value: Any, door: Door) -> dict[str, Any]:
    """The canonical row of a mapping. Raises Refused with the mistakes of all its columns."""
    mistakes: list[Mistake] = []
    admitted = _admit_fields(row, "", value, door, mistakes)
    if mistakes:
        raise Refused(mistakes=_told(mistakes))
    return admitted


def _told(mistakes: list[Mistake]) -> list[Mistake]:
    if len(mistakes) <= MOST_TOLD:
        return mistakes
    return [*mistakes[: MOST_TOLD - 1], ("row", "has more mistakes")]


def _admit(column: Column, where: str, value: Any, door: Door, mistakes: list[Mistake]) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if _is_missing(column, value, door):
        if not column.nullable:
            mistakes.append((where, "is missing (null)"))
        return None
    try:
        admitted = _convert(column, value, door)
    except (ValueError, ArithmeticError, Refused) as error:
        detail = f": {error}" if isinstance(error, Refused) and str(error) else ""
        mistakes.append((where, f"must be {NOUNS[column.kind]}{detail}"))
        return None
    if column.choices and admitted not in column.choices:
        shown = ", ".join(str(c) for c in column.choices[:12]) + (", …" if len(column.choices) > 12 else "")
        mistakes.append((where, f"must be one of {shown}"))
    mistakes += [(where, rule) for rule in _broken_rules(column, admitted)]
    if column.kind == "list":
        assert column.item is not None
        items, admitted = admitted, []
        for i, item in enumerate(items):
            admitted.append(_admit(column.item, f"{where}[{i}]", item, door, mistakes))
            if len(mistakes) > MOST_TOLD:
                break  # the row is refused; nobody is told more
    elif column.kind == "row":
        assert column.row is not None
        admitted = _admit_fields(column.row, f"{where}.", admitted, door, mistakes)
    return admitted


def _is_missing(column: Column, value: Any, door: Door) -> bool:
    if door == "text" and isinstance(value, str):  # an empty field of a CSV file; in a text column it is one in quotes
        return column.kind != "str" and not value.strip(BLANKS)
    return value is None or (column.kind in ("int", "float") and isinstance(value, float) and math.isnan(value))


def _admit_fields(row: RowType, prefix: str, value: Any, door: Door, mistakes: list[Mistake]) -> dict[str, Any]:
    if not isinstance(value, dict):
        mistakes.append((prefix.rstrip(".") or "row", "must be an object"))
        return {}
    out = {}
    for column in row.columns:
        given = value.get(column.name, ABSENT)
        if given is not ABSENT:
            out[column.name] = _admit(column, prefix + column.name, given, door, mistakes)
        elif column.default is not ABSENT:
            out[column.name] = column.default
        else:
            mistakes.append((f"{prefix}{column.name}", "is absent"))
    return out


def _convert(column: Column, value: Any, door: Door) -> Any:
    """The table of coercions. Raises Refused or ValueError where the value is none of the column's kind."""
    if door == "text":
        if column.kind != "str":
            value = _from_text(column, value.strip(BLANKS))
    elif door == "json" and isinstance(value, str) and column.kind in ("date", "datetime", "decimal"):
        value = _from_text(column, value)
    match column.kind:
        case "int":
            if isinstance(value, float | Decimal):
                # the size comes first: int(Decimal("1e999999")) would fill the memory
                if not INT64.start <= value < INT64.stop:
                    raise Refused("it is beyond 64 bits")
                if value == int(value):
                    value = int(value)
            if type(value) is int:
                if value not in INT64:
                    raise Refused("it is beyond 64 bits")
                return value
        case "float":
            if type(value) is int:
                if int(float(value)) != value:
                    raise Refused("a float cannot hold it exactly")
                return float(value)
            if isinstance(value, Decimal):
                if len(value.normalize(WIDE).as_tuple().digits) > EXACT_DIGITS:
                    raise Refused("a float cannot hold it exactly")
                value = float(value)
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise Refused("it must be finite")
                return float(value)
        case "bool":
            if isinstance(value, bool):
                return value
        case "str":
            if isinstance(value, str):
                value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
                return value
        case "date":
            if isinstance(value, datetime):
                if value.tzinfo is None and value.time() == datetime.min.time():
                    return value.date()
                raise Refused("it has a time of day")
            if isinstance(value, date):
                return value
        case "datetime":
            if isinstance(value, datetime):
                if value.tzinfo is None:
                    raise Refused("it has no time zone")
                if getattr(value, "nanosecond", 0):  # pandas' Timestamp
                    raise Refused("it has nanoseconds")
                return value.astimezone(UTC)
        case "decimal":
            return _decimal(column, value, door)
        case "list":
            if isinstance(value, list | tuple):
                return list(value)
        case "row":
            if isinstance(value, dict):
                return value
    raise Refused


def _from_text(column: Column, text: str) -> Any:
    match column.kind:
        case "int":
            if INT_TEXT.fullmatch(text):
                return int(text.split(".")[0])
        case "float":
            if FLOAT_TEXT.fullmatch(text):
                return float(text)
        case "bool":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        case "date":
            if DATE_TEXT.fullmatch(text):
                return date.fromisoformat(text)
        case "datetime":
            if DATETIME_TEXT.fullmatch(text):
                return datetime.fromisoformat(text.upper())
            if DATETIME_TEXT.fullmatch(text + "Z"):
                raise Refused("it has no time zone")
        case "decimal":
            if FLOAT_TEXT.fullmatch(text):
                return Decimal(text)
        case "list" | "row":
            raise Refused("text cannot hold one: use Parquet or JSON lines")
    raise Refused


def _decimal(column: Column, value: Any, door: Door) -> Decimal:
    if type(value) is int:
        value = Decimal(value)
    elif isinstance(value, float) and door == "json":
        value = Decimal(repr(value))  # the shortest text of the number, which is what stood in the JSON
        if len(value.as_tuple().digits) > EXACT_DIGITS:
            raise Refused(f"beyond {EXACT_DIGITS} digits, write it as text")
    if not isinstance(value, Decimal):
        raise Refused
    if not value.is_finite():
        raise Refused("it must be finite")
    scaled = value.quantize(Decimal(1).scaleb(-column.scale), context=WIDE)  # InvalidOperation beyond 100 digits
    if scaled != value:
        raise Refused(f"it has more than {column.scale} digits behind the point")
    if len(scaled.as_tuple().digits) > column.precision:
        raise Refused(f"it has more than {column.precision} digits")
    return scaled


def plain_value(value: Any) -> Any:
    """Python's own value: of an enum's member, a nested row, or what numpy and pandas have for one; to any depth."""
    if isinstance(value, Enum):
        return plain_value(value.value)
    if isinstance(value, dict):
        return {name: plain_value(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    fields = getattr(value, "__pydantic_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain_value(getattr(value, name)) for name in fields if hasattr(value, name)}
    module, name = type(value).__module__, type(value).__name__
    if module == "numpy" and value.dtype.kind not in "mM":  # times would become numbers
        return value.tolist()
    return None if module.startswith("pandas.") and name in ("NAType", "NaTType") else value


def _broken_rules(column: Column, value: Any) -> list[str]:
    shown = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    broken = []
    for name, words in shown.items():
        bound = getattr(column, name)
        if bound is None:
            continue
        fits = {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[name]
        if not fits:
            broken.append(f"must be {words} {bound.isoformat() if isinstance(bound, date) else bound}")
    if column.multiple_of is not None and value % column.multiple_of:
        broken.append(f"must be a multiple of {column.multiple_of}")
    of = "characters" if column.kind == "str" else "items"
    if column.min_length is not None and len(value) < column.min_length:
        broken.append(f"must have at least {column.min_length} {of}")
    if column.max_length is not None and len(value) > column.max_length:
        broken.append(f"must have at most {column.max_length} {of}")
    if column.pattern is not None and not matches(column.pattern, value):
        broken.append(f"must match {column.pattern}")
    return broken


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern is found in the text; by RE2 as on whole columns, since Python's `re` has another syntax."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.match_substring_regex(pa.scalar(text), pattern=pattern).as_py())
