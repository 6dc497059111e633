"""Rows made up from a row type fit it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import pytest
from annotated_types import Ge, Le, Len
from hypothesis import given, settings

from sereno import Digits, Key
from sereno.exceptions import ModelFileError
from sereno.madeup import made_up, made_up_row
from sereno.schema import RowType, row_type
from sereno.values import admit_row
from tests.strategies import row_types


class Line(TypedDict):
    product: str
    price: Annotated[Decimal, Digits(6, 2), Ge(0)]


class Visit(TypedDict):
    customer_id: Key[int]
    age: Annotated[int, Ge(18), Le(120)]
    share: Annotated[float, Ge(0), Le(1)] | None
    plan: Literal["basic", "family"]
    day: date
    at: datetime
    is_new: bool
    lines: list[Line]
    codes: Annotated[list[Literal["a", "b", "c"]], Len(3, 3)]


def test_a_row_of_ordinary_values() -> None:
    row = made_up_row(row_type(Visit))
    assert row == {
        "customer_id": 2, "age": 110, "share": 0.5, "plan": "basic", "day": date(2026, 5, 1),
        "at": datetime(2026, 5, 1, 12, tzinfo=UTC), "is_new": True,
        "lines": [{"product": "abc", "price": Decimal("1.00")}] * 2, "codes": ["a", "b", "c"],
    }  # fmt: skip


@given(row_types())
@settings(deadline=None)
def test_it_fits(row: RowType) -> None:
    one, some = made_up_row(row), made_up(row, 5)
    assert admit_row(row, one, "typed") == one
    assert some.schema == row.arrow_schema()
    fits: Any = [admit_row(row, value, "typed") for value in some.to_pylist()]
    assert fits == some.to_pylist()


def test_what_cannot_be_made_up() -> None:
    class Row(TypedDict):
        code: Annotated[str, Len(10_001, 10_002)]

    with pytest.raises(ModelFileError, match=r"Row\.code: no value of this column can be made up\."):
        made_up_row(row_type(Row))
