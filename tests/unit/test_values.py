"""The table of lossless coercions, value by value: what each door takes, and what it makes of it."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sereno.exceptions import MOST_TOLD
from sereno.schema import Column
from sereno.values import Refused, admit, admit_row, plain_value
from tests.strategies import row_of

INT = Column(name="x", kind="int")
FLOAT = Column(name="x", kind="float")
BOOL = Column(name="x", kind="bool")
STR = Column(name="x", kind="str")
DATE = Column(name="x", kind="date")
DATETIME = Column(name="x", kind="datetime")
DECIMAL = Column(name="x", kind="decimal", precision=6, scale=2)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("column", "door", "value", "expected"),
    [
        (INT, "typed", 3.0, 3),
        (INT, "typed", Decimal("3.00"), 3),
        (INT, "json", 3.0, 3),
        (INT, "text", " +3.0 ", 3),
        (INT, "text", "-9223372036854775808", -(2**63)),
        (FLOAT, "typed", 3, 3.0),
        (FLOAT, "typed", Decimal("0.1"), 0.1),
        (FLOAT, "json", 2**53, 2.0**53),
        (FLOAT, "text", "1e-3", 0.001),
        (FLOAT, "text", ".5", 0.5),
        (BOOL, "typed", True, True),
        (BOOL, "text", "TRUE", True),
        (STR, "typed", "", ""),
        (STR, "text", " a ", " a "),
        (DATE, "typed", date(2026, 5, 1), date(2026, 5, 1)),
        (DATE, "typed", datetime(2026, 5, 1), date(2026, 5, 1)),
        (DATE, "json", "2026-05-01", date(2026, 5, 1)),
        (DATETIME, "typed", NOON, NOON),
        (DATETIME, "json", "2026-05-01T14:00:00+02:00", NOON),
        (DATETIME, "text", "2026-05-01 12:00Z", NOON),
        (DECIMAL, "typed", 5, Decimal("5.00")),
        (DECIMAL, "typed", Decimal("1E+2"), Decimal("100.00")),
        (DECIMAL, "json", 0.1, Decimal("0.10")),
        (DECIMAL, "json", "1234.50", Decimal("1234.50")),
        (DECIMAL, "text", "1234.5", Decimal("1234.50")),
    ],
)
def test_what_is_taken(column: Column, door: Any, value: Any, expected: Any) -> None:
    admitted = admit(column, value, door)
    assert admitted == expected
    assert type(admitted) is type(expected)


@pytest.mark.parametrize(
    ("column", "door", "value", "reason"),
    [
        (INT, "typed", True, "x: must be a whole number"),
        (INT, "typed", "3", "x: must be a whole number"),
        (INT, "json", "3", "x: must be a whole number"),
        (INT, "typed", 3.5, "x: must be a whole number"),
        (INT, "typed", 2**63, "x: must be a whole number: it is beyond 64 bits"),
        (INT, "typed", float("inf"), "x: must be a whole number: it is beyond 64 bits"),
        (INT, "typed", Decimal("1e999999"), "x: must be a whole number: it is beyond 64 bits"),
        (INT, "typed", float("nan"), "x: is missing (null)"),
        (INT, "text", "0x10", "x: must be a whole number"),
        (INT, "text", "1_000", "x: must be a whole number"),
        (INT, "text", "1e3", "x: must be a whole number"),
        (INT, "text", "１", "x: must be a whole number"),
        (INT, "text", "", "x: is missing (null)"),
        (INT, "text", "\xa0", "x: must be a whole number"),
        (INT, "text", "9" * 40, "x: must be a whole number: it is beyond 64 bits"),
        (FLOAT, "json", True, "x: must be a number"),
        (FLOAT, "json", "0.5", "x: must be a number"),
        (FLOAT, "typed", 2**53 + 1, "x: must be a number: a float cannot hold it exactly"),
        (FLOAT, "typed", 10**400, "x: must be a number"),
        (FLOAT, "typed", float("inf"), "x: must be a number: it must be finite"),
        (FLOAT, "typed", Decimal("0.1234567890123456"), "x: must be a number: a float cannot hold it exactly"),
        (FLOAT, "text", "1e400", "x: must be a number: it must be finite"),
        (FLOAT, "text", "nan", "x: must be a number"),
        (FLOAT, "typed", float("nan"), "x: is missing (null)"),
        (BOOL, "typed", 1, "x: must be true or false"),
        (BOOL, "text", "yes", "x: must be true or false"),
        (STR, "typed", 5, "x: must be text"),
        (STR, "typed", "\ud800", "x: must be text"),
        (STR, "typed", None, "x: is missing (null)"),
        (DATE, "typed", "2026-05-01", "x: must be a date (YYYY-MM-DD)"),
        (DATE, "json", "2026-02-30", "x: must be a date (YYYY-MM-DD)"),
        (DATE, "json", "20260501", "x: must be a date (YYYY-MM-DD)"),
        (DATE, "typed", NOON, "x: must be a date (YYYY-MM-DD): it has a time of day"),
        (DATETIME, "typed", datetime(2026, 5, 1), "it has no time zone"),
        (DATETIME, "json", "2026-05-01T12:00:00", "it has no time zone"),
        (DATETIME, "json", "2026-05-01T12:00:00.1234567Z", "to the microsecond"),
        (DATETIME, "json", "0001-01-01T00:00:00+05:00", "x: must be a date and time"),
        (DATETIME, "typed", pd.Timestamp("2026-05-01T00:00:00.000000001Z"), "it has nanoseconds"),
        (DECIMAL, "typed", 0.1, "x: must be a decimal number"),
        (DECIMAL, "typed", Decimal("0.001"), "it has more than 2 digits behind the point"),
        (DECIMAL, "typed", Decimal("12345.00"), "it has more than 6 digits"),
        (DECIMAL, "typed", Decimal("NaN"), "it must be finite"),
        (DECIMAL, "json", 12345678901234.5678, "beyond 15 digits, write it as text"),
        (DECIMAL, "text", "1e999999", "x: must be a decimal number"),
    ],
)
def test_what_is_refused(column: Column, door: Any, value: Any, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        admit(column, value, door)
    assert reason in str(caught.value)


def test_a_row_is_told_every_mistake() -> None:
    item = row_of(Column(name="price", kind="float", ge=0.0))
    row = row_of(
        Column(name="n", kind="int", ge=1, le=9),
        Column(name="band", kind="str", choices=("A", "B")),
        Column(name="basket", kind="list", min_length=2, item=Column(name="basket[]", kind="row", row=item)),
        Column(name="gone", kind="int"),
    )
    with pytest.raises(Refused) as caught:
        admit_row(row, {"n": 0, "band": "C", "basket": [{"price": -1}]}, "json")
    assert str(caught.value) == (
        "n: must be at least 1; band: must be one of A, B; basket: must have at least 2 items; "
        "basket[0].price: must be at least 0.0; gone: is absent"
    )


def test_a_row_of_ever_so_many_mistakes_is_told_the_first_of_them() -> None:
    inner = Column(name="xs[][]", kind="int")
    row = row_of(Column(name="xs", kind="list", item=Column(name="xs[]", kind="list", item=inner)))
    for most in (MOST_TOLD, MOST_TOLD + 1, 100_000):
        with pytest.raises(Refused) as caught:
            admit_row(row, {"xs": [[1, ""] * most]}, "json")
        mistakes = caught.value.mistakes
        assert len(mistakes) == MOST_TOLD
        assert mistakes[MOST_TOLD - 2] == ("xs[0][197]", "must be a whole number")
        assert (mistakes[-1] == ("row", "has more mistakes")) == (most > MOST_TOLD)


def test_no_reason_holds_the_value() -> None:
    with pytest.raises(Refused) as caught:
        admit(INT, "4000 1234 5678 9010", "json")
    assert "4000" not in str(caught.value)


def test_a_row_that_is_none() -> None:
    with pytest.raises(Refused, match="row: must be an object"):
        admit_row(row_of(INT), [1], "json")


def test_values_of_numpy_pandas_and_enums_are_pythons_own() -> None:
    class Band(enum.Enum):
        A = "a"

    given = {"n": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True), "s": np.str_("a"), "l": np.array([1, 2])}
    assert plain_value(given) == {"n": 3, "x": 0.5, "b": True, "s": "a", "l": [1, 2]}
    assert [type(v) for v in plain_value(given).values()] == [int, float, bool, str, list]
    assert plain_value([pd.NA, pd.NaT, Band.A, (Band.A,)]) == [None, None, "a", ["a"]]
    assert plain_value(np.datetime64("2026-05-01", "ns")) == np.datetime64("2026-05-01", "ns")
