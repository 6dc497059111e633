"""Row types: what each annotation becomes, and what is refused, with words that help."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, Required, TypedDict

import annotated_types as at
import pyarrow as pa
import pydantic
import pytest
import typing_extensions
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf, Predicate, Unit

from sereno import Digits, Fetched, Key
from sereno.exceptions import RowTypeError
from sereno.schema import ABSENT, Column, row_type


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Item(TypedDict):
    name: str
    price: Annotated[float, Ge(0)]


CustomerId = NewType("CustomerId", int)


def column_of(annotation: Any) -> Column:
    """The column of one annotation, by a row type made for it."""
    (column,) = row_type(TypedDict("Row", {"x": annotation})).columns  # type: ignore[operator, misc]
    return column


@pytest.mark.parametrize(
    ("annotation", "kind", "nullable", "arrow"),
    [
        (int, "int", False, pa.int64()),
        (float | None, "float", True, pa.float64()),
        (Optional[bool], "bool", True, pa.bool_()),  # noqa: UP045
        (str, "str", False, pa.string()),
        (date, "date", False, pa.date32()),
        (datetime, "datetime", False, pa.timestamp("us", "UTC")),
        (Annotated[Decimal, Digits(12, 2)], "decimal", False, pa.decimal128(12, 2)),
        (Literal["a", "b"], "str", False, pa.string()),
        (Literal[1, 2], "int", False, pa.int64()),
        (Literal["a", None], "str", True, pa.string()),
        (Colour, "str", False, pa.string()),
        (Level | None, "int", True, pa.int64()),
        (list[int | None], "list", False, pa.list_(pa.field("item", pa.int64()))),
        (list[str], "list", False, pa.list_(pa.field("item", pa.string(), nullable=False))),
        (Item, "row", False, pa.struct([pa.field("name", pa.string(), False), pa.field("price", pa.float64(), False)])),
        (CustomerId, "int", False, pa.int64()),
        (Annotated[int | None, Ge(0)], "int", True, pa.int64()),
        (Annotated[int, Ge(0)] | None, "int", True, pa.int64()),
    ],
)
def test_what_an_annotation_becomes(annotation: Any, kind: str, nullable: bool, arrow: pa.DataType) -> None:
    column = column_of(annotation)
    assert (column.kind, column.nullable, column.arrow_type) == (kind, nullable, arrow)


@pytest.mark.parametrize(
    ("annotation", "rules"),
    [
        (Annotated[int, Ge(1), Le(120)], {"ge": 1, "le": 120}),
        (Annotated[int, Gt(0.0)], {"gt": 0}),
        (Annotated[float, Interval(ge=0, lt=1)], {"ge": 0.0, "lt": 1.0}),
        (Annotated[int, MultipleOf(5)], {"multiple_of": 5}),
        (Annotated[str, MinLen(1), MaxLen(3)], {"min_length": 1, "max_length": 3}),
        (Annotated[list[str], Len(2, 4)], {"min_length": 2, "max_length": 4}),
        (Annotated[date, Ge(date(2000, 1, 1))], {"ge": date(2000, 1, 1)}),
        (Annotated[Decimal, Digits(6, 2), Lt(Decimal("0.5"))], {"lt": Decimal("0.50")}),
        (Annotated[Decimal, Digits(6, 2), Gt(0), Lt(1.5)], {"gt": Decimal(0), "lt": Decimal("1.5")}),
        (Annotated[float, Unit("EUR"), at.doc("what is owed"), "a remark"], {}),
        (Annotated[int, pydantic.Field(ge=1, description="in months")], {"ge": 1}),
        (Annotated[str, pydantic.Field(pattern="^[A-Z]{2}$")], {"pattern": "^[A-Z]{2}$"}),
        (Annotated[str, pydantic.StringConstraints(min_length=2)], {"min_length": 2}),
        (Annotated[Decimal, pydantic.Field(max_digits=6, decimal_places=2)], {"precision": 6, "scale": 2}),
        (pydantic.PositiveInt, {"gt": 0}),
        (pydantic.conint(ge=3), {"ge": 3}),
        (Colour, {"choices": ("red", "blue"), "enum": Colour}),
    ],
)
def test_rules_in_annotations(annotation: Any, rules: dict[str, Any]) -> None:
    column = column_of(annotation)
    assert {name: getattr(column, name) for name in rules} == rules


class Absent(TypedDict):
    x: NotRequired[int]


class AbsentAll(TypedDict, total=False):
    x: int


class NoRow:
    x: int


class Empty(TypedDict):
    pass


@dataclass
class Validated:
    x: int

    def __post_init__(self) -> None:
        assert self.x


class Custom(pydantic.BaseModel):
    x: int

    @pydantic.field_validator("x")
    @classmethod
    def check_x(cls, value: int) -> int:
        return value


class Whole(pydantic.BaseModel):
    x: int

    @pydantic.model_validator(mode="after")
    def check_all(self) -> Whole:
        return self


class Aliased(pydantic.BaseModel):
    x: int = pydantic.Field(alias="y")


class Stripped(pydantic.BaseModel, str_strip_whitespace=True):
    x: str


class NestedKey(TypedDict):
    x: Key[int]


@dataclass
class BadDefault:
    x: Annotated[int, Ge(1)] = 0


@dataclass
class NoneDefault:
    x: int = None  # type: ignore[assignment]


@dataclass
class KeyDefault:
    x: Key[int] = 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (bytes, ("Row.x: bytes cannot be a column", "pass a path or an id as `str`")),
        (timedelta, ("timedelta cannot be", "number of seconds as `float`")),
        (time, ("time cannot be", "minutes since midnight")),
        (dict[str, int], ("dict[str, int] cannot be", "Write a row type")),
        (tuple[int, ...], ("tuple[int, ...] cannot be", "Write `list[float]`")),
        (list, ("list cannot be", "`list[str]`")),
        (Any, ("Any cannot be", "Say what it is")),
        (object, ("object cannot be", "Valid are int, float, bool, str, date")),
        (int | str, ("int | str has several types", "Write one type, with `| None`")),
        (Optional[int | str], ("has several types",)),  # noqa: UP045
        (None | Literal[1, "a"], ("must be all text or all whole numbers",)),
        (Literal[True], ("must be all text or all whole numbers",)),
        (Literal[2**63], ("the choice 9223372036854775808 does not fit", "beyond 64 bits")),
        (Decimal, ("a Decimal needs its precision", "Annotated[Decimal, Digits(12, 2)]")),
        (Annotated[Decimal, Digits(2, 4)], ("a Decimal needs its precision",)),
        (Annotated[Decimal, Digits(4, 2), Ge(Decimal("0.001"))], ("more than 2 digits behind the point",)),
        (
            Annotated[datetime, Ge(datetime(2026, 1, 1))],
            ("the bound datetime.datetime(2026, 1, 1", "it has no time zone"),
        ),
        (Annotated[date, Ge(datetime(2026, 1, 1, 12, tzinfo=UTC))], ("the bound", "it has a time of day")),
        (Annotated[int, Ge("a")], ("the bound 'a' does not fit: it must be a whole number",)),
        (Annotated[int, Ge(17.5)], ("the bound 17.5 does not fit",)),
        (Annotated[float, Le(float("nan"))], ("the bound nan does not fit: it is missing",)),
        (Annotated[bool, Ge(0)], ("a bound (Ge) needs numbers",)),
        (Annotated[Literal[1, 2], Ge(0)], ("a bound (Ge) needs numbers",)),
        (Annotated[float, MultipleOf(0.1)], ("MultipleOf is checked on whole numbers only",)),
        (Annotated[int, MultipleOf(0)], ("the factor 0 does not fit: it must be at least 1",)),
        (Annotated[int, MinLen(1)], ("a length needs text or a list, not int",)),
        (Annotated[int, pydantic.Field(pattern="a")], ("a pattern needs text, not int",)),
        (Annotated[str, pydantic.Field(pattern="(?=a)")], ("is not RE2", "no look-around")),
        (Annotated[int, Predicate(bool)], ("Predicate", "cannot be enforced on a column", "Valid are Ge, Gt")),
        (Annotated[int, pydantic.AfterValidator(abs)], ("AfterValidator", "cannot be enforced on a column")),
        (Annotated[int, pydantic.Field(strict=True)], ("cannot be enforced",)),
        (Annotated[str, pydantic.StringConstraints(strip_whitespace=True)], ("strip_whitespace", "Leave it out")),
        (Key[float], ("a key is int, str or date and never null; this is float",)),
        (Key[int | None], ("this is int | None",)),
        (list[Key[int]], ("Row.x[]: only a column of its own is a key",)),
        (NestedKey, ("Row.x: NestedKey is nested here",)),
        (Absent, ("Absent.x may be left out", "Write `x: X | None`")),
        (AbsentAll, ("AbsentAll.x may be left out",)),
        (NoRow, ("Row.x: NoRow cannot be a column",)),
        (Empty, ("Row type Empty has no fields",)),
        (Validated, ("Validated has `__post_init__`", "check it in `predict`")),
        (Custom, ("Custom has the validator `check_x`", "Ge, Le, MinLen")),
        (Whole, ("Whole has the validator `check_all`",)),
        (Aliased, ("Aliased.x has an alias", "Rename the field")),
        (Stripped, ("Stripped sets str_strip_whitespace",)),
        (BadDefault, ("BadDefault.x: the default 0 does not fit: it must be at least 1",)),
        (NoneDefault, ("the default is None", "Write `int | None`")),
        (KeyDefault, ("a key has no default",)),
    ],
)
def test_what_cannot_be_enforced_is_refused(what: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(RowTypeError) as caught:
        column_of(what)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("what", "words"), [(NoRow, "neither a TypedDict"), (3, "3 is no row type"), (Item(), "no row type")])  # type: ignore[typeddict-item] # fmt: skip
def test_what_is_no_row_type(what: Any, words: str) -> None:
    with pytest.raises(RowTypeError, match=words):
        row_type(what)


def test_required_in_a_row_type_that_is_not_total() -> None:
    class Some(TypedDict, total=False):
        x: Required[int]

    assert row_type(Some).columns[0].kind == "int"


def test_a_typeddict_of_typing_extensions() -> None:
    class Some(typing_extensions.TypedDict):
        x: int

    class Outer(TypedDict):
        some: Some

    Outer.__annotations__["some"] = Some
    assert row_type(Outer).columns[0].row == row_type(Some)


def test_an_unknown_name_in_an_annotation() -> None:
    class Lost(TypedDict):
        x: Nowhere  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(RowTypeError, match=r"Row type Lost: name 'Nowhere' is not defined. Import the name at the top"):
        row_type(Lost)


def test_roles() -> None:
    class Shopper(TypedDict):
        customer_id: Key[int]
        day: Key[date]
        basket: list[str]
        recent: Fetched[list[str]]

    row = row_type(Shopper)
    assert [c.name for c in row.keys] == ["customer_id", "day"]
    assert [c.name for c in row.features] == ["basket", "recent"]


class Thing(pydantic.BaseModel):
    name: str


@dataclass(frozen=True, slots=True)
class Plain:
    n: int
    level: Level = Level.LOW
    tags: list[str] = field(default_factory=list)
    item: Thing | None = None
    seen: datetime = datetime(2026, 1, 1, tzinfo=UTC)


class Modelled(pydantic.BaseModel):
    n: int
    level: Level = Level.LOW
    tags: list[str] = pydantic.Field(default_factory=list)
    item: Thing | None = None
    seen: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@pydantic.dataclasses.dataclass
class Both:
    n: int
    level: Level = Level.LOW
    tags: list[str] = pydantic.Field(default_factory=list)
    item: Thing | None = None
    seen: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("cls", "style"), [(Plain, "dataclass"), (Modelled, "pydantic"), (Both, "dataclass")])
def test_defaults_are_canonical(cls: type, style: str) -> None:
    row = row_type(cls)
    assert row.style == style
    assert [c.default for c in row.columns] == [ABSENT, 1, [], None, datetime(2026, 1, 1, tzinfo=UTC)]
