"""Rows made up from a row type: to test a model that has no source, and as examples on the pages of the API."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sereno.exceptions import ModelFileError
from sereno.schema import Column, RowType
from sereno.values import Refused, admit

if TYPE_CHECKING:
    import pyarrow as pa

DAY = date(2026, 5, 1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def made_up(row: RowType, rows: int, seed: int = 0) -> pa.Table:
    """Rows that the type admits: the edges of its bounds, every choice, nulls where they may be; else small values.

    Raises ModelFileError for a column whose values cannot be made up, which are those of most patterns.
    """
    import pyarrow as pa

    rng = random.Random(seed)
    columns = [_values(row.name, column, rows, rng) for column in row.columns]
    schema = row.arrow_schema()
    return pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)


def made_up_row(row: RowType) -> dict[str, Any]:
    """One row that the type admits, of values that look ordinary. Raises ModelFileError as `made_up` does."""
    return {column.name: _ordinary(row.name, column) for column in row.columns}


def _ordinary(owner: str, column: Column) -> Any:
    """A value between the edges: not the least one, not null, not an empty text."""
    if column.row is not None:
        return made_up_row(column.row)
    if column.item is not None:
        items = list(column.item.choices) or [_ordinary(owner, column.item)]
        least, most = column.min_length or 0, 2 if column.max_length is None else column.max_length
        return [items[i % len(items)] for i in range(max(least, min(2, most)))]
    if column.choices:
        return column.choices[0]
    found = [v for v in _edges(owner, column) if v is not None]
    usual = {"str": "abc", "date": DAY, "datetime": NOON}.get(column.kind)
    return usual if usual in found else sorted(found)[len(found) // 2]


def _values(owner: str, column: Column, rows: int, rng: random.Random) -> list[Any]:
    """A column's values: each edge once in a random place, the rest drawn from edges and from between them."""
    if column.role == "key":
        return _keys(owner, column, rows)
    edges = _edges(owner, column)
    values: list[Any] = edges[:rows]
    between = [v for v in edges if v is not None] if column.kind in ("int", "float") and not column.choices else []
    while len(values) < rows:
        values.append(_between(column, between, rng) if between and rng.random() < 0.7 else rng.choice(edges))
    rng.shuffle(values)
    return values


def _keys(owner: str, column: Column, rows: int) -> list[Any]:
    """Values that differ, as long as there are enough of them."""
    edges = _edges(owner, column)
    if column.choices:
        found = edges
    elif column.kind == "int":
        step = column.multiple_of or 1
        down = column.le is not None or column.lt is not None
        start, step = (max(edges), -step) if down else (min(edges, key=abs), step)
        found = _admitted(column, [start + step * i for i in range(rows)])
    elif column.kind == "date":
        found = _admitted(column, [edges[0] + timedelta(days=sign * d) for d in range(rows) for sign in (1, -1)])[:rows]
    else:
        width = max(min(column.max_length or 8, 8), column.min_length or 0)
        found = _admitted(column, [f"{i:0{width}d}" for i in range(rows)]) or edges
    return [found[i % len(found)] for i in range(rows)]


def _between(column: Column, edges: list[Any], rng: random.Random) -> Any:
    drawn = rng.uniform(float(min(edges)), float(max(edges)))
    value = round(drawn) if column.kind == "int" else drawn
    return next(iter(_admitted(column, [value])), None) if not column.multiple_of else rng.choice(edges)


def _edges(owner: str, column: Column) -> list[Any]:
    found = _admitted(column, _candidates(owner, column))
    if not found:
        raise ModelFileError(
            f"{owner}.{column.name}: no value of this column can be made up"
            + (f" (its pattern is {column.pattern})" if column.pattern else "")
            + ". Give the model a source, or run where its data is."
        )
    return [*found, None] if column.nullable else found


def _admitted(column: Column, candidates: list[Any]) -> list[Any]:
    """The candidates that fit the column, once each, in order."""
    found: dict[str, Any] = {}
    for candidate in candidates:
        try:
            value = admit(column, candidate)
        except Refused:
            continue
        if value is not None:
            found.setdefault(repr(value), value)
    return list(found.values())


def _candidates(owner: str, column: Column) -> list[Any]:
    """Values worth trying; which of them fit is for `admit` to say."""
    if column.choices:
        return list(column.choices)
    bounds = [b for b in (column.ge, column.gt, column.le, column.lt) if b is not None]
    match column.kind:
        case "int":
            near = [int(b) + d for b in bounds for d in (-1, 0, 1)]
            far = [int(b) + d for b in bounds for d in (-1000, -10, 10, 1000)]
            step = column.multiple_of or 1
            return [
                n // step * step + s for n in [*near, 0, 1, -1, 2, 17, 1000, *far] for s in (0, step)[: 1 + (step > 1)]
            ]
        case "float":
            ends = [float(b) for b in bounds]
            inside = [
                math.nextafter(float(b), to)
                for b, to in ((column.gt, math.inf), (column.lt, -math.inf))
                if b is not None
            ]
            middle = [(a + b) / 2 for a in ends for b in ends]
            return [*ends, *inside, 0.0, 1.0, -1.0, 0.5, 100.25, *middle, *(b + d for b in ends for d in (-100, 100))]
        case "bool":
            return [False, True]
        case "str":
            return _texts(column)
        case "date":
            return [
                *_moved(bounds, timedelta(days=1)),
                date(2024, 2, 29),
                date(1970, 1, 1),
                date(1969, 12, 31),
                DAY,
            ]
        case "datetime":
            moments = [datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC), datetime(1970, 1, 1, tzinfo=UTC), NOON]
            return [*_moved(bounds, timedelta(microseconds=1)), *moments]
        case "decimal":
            last = Decimal(1).scaleb(-column.scale)  # its last digit
            close = [Decimal(b) + d for b in bounds for d in (-last, 0, last)]
            return [*close, Decimal(0), last, Decimal(1), Decimal(100) + last, -last]
        case "list":
            assert column.item is not None
            items = _edges(owner, column.item)
            lengths = {column.min_length or 0, min(column.max_length or 3, 100), (column.min_length or 0) + 1, 2}
            return [
                [items[(i + j) % len(items)] for j in range(n)]
                for n in sorted(lengths)
                for i in range(min(len(items), 8))
            ]
        case "row":
            assert column.row is not None
            fields = {c.name: _edges(f"{owner}.{column.name}", c) for c in column.row.columns}
            most = max(len(v) for v in fields.values())
            return [{name: v[i % len(v)] for name, v in fields.items()} for i in range(most)]


def _moved(bounds: list[Any], step: timedelta) -> list[Any]:
    """Each bound, and a step before and after it, where the calendar goes that far."""
    found = list(bounds)
    for bound in bounds:
        with suppress(OverflowError):
            found.append(bound + step)
        with suppress(OverflowError):
            found.append(bound - step)
    return found


def _texts(column: Column) -> list[str]:
    shapes = [
        "",
        "a",
        "Z",
        "0",
        "abc",
        "Ñandú 東京",
        "ABC-123",
        "someone@example.org",
        "https://example.org",
        "2026-05-01",
    ]
    lengths = {n for n in (column.min_length, column.max_length, 10) if n is not None and n <= 10_000}
    return [*shapes, *(letter * n for n in sorted(lengths) for letter in "aA0")]
