"""JSON Schema of row types: it takes what the decoder takes."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno import Digits, Fetched, Key
from sereno.json_schema import answer_schema, decimal_pattern, row_schema
from sereno.rows import RowDecoder, encode, live_row
from sereno.schema import Column, RowType, row_type
from sereno.values import Refused
from tests.strategies import JSON_SCALARS, fitting_rows, hostile_rows, row_types

FORMATS = jsonschema.FormatChecker(["date", "date-time"])
FORMATS.checks("int64")(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**63)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(TypedDict):
    name: str
    price: Annotated[float, Ge(0)]


class Applicant(TypedDict):
    customer_id: Key[int]
    months: Annotated[int, Ge(1), Lt(120), MultipleOf(3)]
    share: Annotated[float, Gt(0), Le(1)] | None
    code: Annotated[str, MinLen(1), MaxLen(5), pydantic.Field(pattern="^a")]
    colour: Colour
    born: Annotated[date, Ge(date(1900, 1, 1))]
    owed: Annotated[Decimal, Digits(6, 2), Ge(0)]
    items: Annotated[list[Item], MaxLen(9)]
    bought: Fetched[list[str]]


@dataclass
class Plain:
    level: int = 1
    day: date = date(2026, 5, 1)
    owed: Annotated[Decimal, Digits(6, 2)] = Decimal("1.50")
    tags: list[str] = field(default_factory=lambda: ["a"])
    item: Item | None = None


ITEM = {
    "type": "object",
    "title": "Item",
    "properties": {"name": {"type": "string"}, "price": {"type": "number", "minimum": 0.0}},
    "required": ["name", "price"],
}
DIGITS = r"^[+-]?0*[0-9]{1,4}(\.[0-9]{0,2}0*)?$"


def test_a_row_that_comes_in() -> None:
    schema = row_schema(row_type(Applicant))
    assert (schema["type"], schema["title"]) == ("object", "Applicant")
    assert schema["required"] == list(schema["properties"])
    assert schema["properties"] == {
        "customer_id": {"type": "integer", "format": "int64", "description": "identifies the row"},
        "months": {"type": "integer", "format": "int64", "minimum": 1, "exclusiveMaximum": 120, "multipleOf": 3},
        "share": {"anyOf": [{"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}, {"type": "null"}]},
        "code": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a"},
        "colour": {"type": "string", "enum": ["red", "blue"]},
        "born": {"type": "string", "format": "date", "description": "at least 1900-01-01"},
        "owed": {
            "type": ["string", "number"],
            "format": "decimal",
            "pattern": DIGITS,
            "minimum": 0.0,
            "description": "at least 0.00; 6 digits, 2 of them behind the point",
        },
        "items": {"type": "array", "maxItems": 9, "items": ITEM},
        "bought": {
            "type": "array",
            "items": {"type": "string"},
            "description": "fetched by key where it is left out",
        },
    }


def test_what_a_live_request_may_leave_out() -> None:
    schema = row_schema(live_row(row_type(Applicant), keys_needed=False))
    assert schema["required"] == ["months", "share", "code", "colour", "born", "owed", "items"]
    assert schema["properties"]["customer_id"] == {
        "anyOf": [{"type": "integer", "format": "int64"}, {"type": "null"}],
        "description": "identifies the row",
        "default": None,
    }
    schema = row_schema(live_row(row_type(Applicant), keys_needed=True))
    assert schema["required"][0] == "customer_id"


def test_defaults() -> None:
    schema = row_schema(row_type(Plain))
    assert schema["required"] == []
    defaults = {name: column["default"] for name, column in schema["properties"].items()}
    assert defaults == {"level": 1, "day": "2026-05-01", "owed": "1.50", "tags": ["a"], "item": None}


def test_a_row_that_goes_out() -> None:
    schema = answer_schema(row_type(Plain))
    assert schema["required"] == ["level", "day", "owed", "tags", "item"]
    assert not any("default" in column for column in schema["properties"].values())
    assert schema["properties"]["owed"] == {
        "type": "string",
        "format": "decimal",
        "pattern": DIGITS,
        "description": "6 digits, 2 of them behind the point",
    }
    assert schema["properties"]["item"] == {"anyOf": [ITEM, {"type": "null"}]}


@pytest.mark.parametrize(("digits", "fits"), [((9, 2), "1234567.50"), ((2, 2), "0.25"), ((3, 0), "999.0")])
def test_decimals_in_text(digits: tuple[int, int], fits: str) -> None:
    column = Column(name="x", kind="decimal", precision=digits[0], scale=digits[1])
    row = RowType(name="Row", cls=dict, style="typeddict", columns=(column,))
    validator = jsonschema.Draft202012Validator(row_schema(row))
    for text in (fits, f"00{fits}0", "0", "-0.0", "0."):
        assert validator.is_valid({"x": text})
        RowDecoder(row).convert({"x": text})
    for text in ("", ".", "a", f"1{fits}", f"{fits}1", "0.001", "NaN"):
        assert not validator.is_valid({"x": text})
        with pytest.raises(Refused):
            RowDecoder(row).convert({"x": text})
    assert decimal_pattern(2, 2) == r"^[+-]?0+(\.[0-9]{0,2}0*)?$"


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid(value)


def kinds(row: RowType) -> set[str]:
    """Of all columns, at any depth."""
    found = set()
    for column in row.columns:
        while column.item is not None:
            column = column.item
        found |= kinds(column.row) if column.row is not None else {column.kind}
    return found


@given(st.data())
@settings(deadline=None)
def test_it_takes_what_the_decoder_takes(data: st.DataObject) -> None:
    row = data.draw(row_types())
    value = msgspec.json.decode(msgspec.json.encode(data.draw(hostile_rows(row, JSON_SCALARS))))
    try:
        RowDecoder(row).convert(value)
        mistakes: tuple[tuple[str, str], ...] = ()
    except Refused as refused:
        mistakes = refused.mistakes
    by_schema = is_valid(row_schema(row), value)
    if by_schema == (not mistakes):
        return
    if by_schema:  # what JSON Schema cannot say
        unsaid = (
            "a float cannot hold it exactly", "must be a decimal number: ", "must be at least 2", "must be less than 2",
            "must be more than 2", "must be at least 0", "must be less than 1.50", "it must be finite",
        )  # fmt: skip
        assert all(any(text in expected for text in unsaid) for _, expected in mistakes), mistakes
        assert kinds(row) & {"float", "decimal", "date", "datetime"}
    else:  # ways to write decimals and times that the schema does not mention
        assert kinds(row) & {"decimal", "datetime"}, value


@given(st.data())
@settings(deadline=None)
def test_it_takes_every_answer(data: st.DataObject) -> None:
    import pyarrow as pa

    row = data.draw(row_types())
    table = pa.Table.from_pylist([data.draw(fitting_rows(row))], schema=row.arrow_schema())
    (answer,) = [json.loads(text) for text in encode(table)]
    assert is_valid(answer_schema(row), answer)
