"""A model with a column of every kind that a row type can have, to be asked anything."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal, TypedDict

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import Field

from sereno import Digits, Fetched, Key, Model


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(TypedDict):
    product: str
    price: Annotated[Decimal, Digits(9, 2), Ge(0)]
    gift: bool | None


@dataclass
class Address:
    street: str
    number: Annotated[int, Ge(1)] | None = None


@dataclass
class Visit:
    shop: Key[Annotated[str, MinLen(1), MaxLen(40)]]
    customer_id: Key[int]
    age: Annotated[int, Ge(18), Le(120)]
    pairs: Annotated[int, MultipleOf(2)] | None
    share: Annotated[float, Ge(0), Lt(1)]
    spend: Annotated[float, Gt(-1)] | None
    plan: Literal["basic", "it's"]
    level: Literal[1, 2, 3] | None
    colour: Colour
    code: Annotated[str, Field(pattern="^[A-Z]{1,3}$")]
    name: Annotated[str, MaxLen(100)]
    day: date
    since: Annotated[date, Ge(date(2000, 1, 1))] | None
    at: datetime
    owed: Annotated[Decimal, Digits(12, 2)]
    part: Annotated[Decimal, Digits(4, 4), Ge(0)] | None
    tags: Annotated[list[str], MaxLen(50)]
    scores: list[float | None] | None
    lines: list[Line]
    address: Address | None
    bought: Fetched[list[str]]
    limit: Fetched[Annotated[float, Ge(0)] | None]
    is_new: bool = True
    note: str | None = None
    first: date = date(2026, 5, 1)
    levels: list[int] = field(default_factory=lambda: [1])


class Offer(TypedDict):
    product: str
    price: Annotated[Decimal, Digits(9, 2)]
    until: date | None


class Answer(TypedDict):
    score: Annotated[float, Ge(0), Le(1)]
    rank: int | None
    band: Literal["A", "B"]
    text: str
    total: Annotated[Decimal, Digits(38, 2)]
    at: datetime
    day: date
    is_sure: bool | None
    offers: list[Offer]
    best: Offer | None


model = Model("everything", inputs=Visit, outputs=Answer)


@model.load
def load():
    return None


@model.fetch
def fetch(keys: list[tuple[str, int]]) -> dict[tuple[str, int], dict]:
    return {(shop, customer): {"bought": [shop] * (customer % 3), "limit": None} for shop, customer in keys}


@model.predict
def predict(loaded: None, rows: list[Visit]) -> list[Answer]:
    return [answer_of(row) for row in rows]


def answer_of(row: Visit) -> Answer:
    offers = [Offer(product=line["product"], price=line["price"], until=row.since) for line in row.lines]
    total = sum((line["price"] for line in row.lines), start=Decimal("0.00"))
    return Answer(
        score=row.share,
        rank=row.level,
        band="A" if row.age < 40 else "B",
        text=row.name + row.code,
        total=total,
        at=row.at.astimezone(UTC),
        day=row.day,
        is_sure=row.is_new if row.note is None else None,
        offers=offers,
        best=offers[0] if offers else None,
    )
