"""A sample of a model's rows to test it with: from its source, or made up from its row types."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from sereno.adapters.files import Piece, open_parquet, read_piece
from sereno.batch.plan import SPOOL_ROWS, Plan, make_plan
from sereno.batch.tasks import key_text
from sereno.checks import Checked, check_table, python_value
from sereno.exceptions import ModelFileError
from sereno.model import Model
from sereno.rows import JsonRows
from sereno.schedule import interval_for, last_interval
from sereno.schema import Column, RowType
from sereno.values import Refused, admit

if TYPE_CHECKING:
    from sereno.config import ModelSettings, Settings

PLACES = 8  # stretches of the data that a sample is taken from
STRETCH = 8_192  # rows that are read of each to choose from


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of a model, checked."""

    table: pa.Table  # the rows that fit the input type
    origin: str  # "200 rows of 2026-05-01, from the source"
    refused: tuple[tuple[str | None, str], ...] = ()  # key and reason of each row that does not fit


def has_source(model: Model, settings: Settings) -> bool:
    return model.read_function is not None or _chosen(model, settings).source is not None


def take_sample(model: Model, settings: Settings, date_: str | None, rows: int) -> Sample:
    """About `rows` rows of an interval (the last one that ended, if no date is given), spread over its data.

    Raises what reading raises: SourceError, InputError, SettingsError, and PredictError where `read` raises.
    """
    chosen = _chosen(model, settings)
    now = datetime.now(UTC)
    if date_ is None:
        interval = last_interval(chosen.schedule, chosen.time_zone, now)
    else:
        interval = interval_for(chosen.schedule, chosen.time_zone, date_, now)
    with tempfile.TemporaryDirectory(prefix="sereno-check-") as spool:
        plan = make_plan(model, settings, chosen, interval, Path(spool), workers=1)
        taken, broken = _taken(plan, model.inputs, rows)
    table = pa.concat_tables([model.inputs.arrow_schema().empty_table(), *(c.table for c, _ in taken)])
    refused = [(keys[position], reason) for checked, keys in taken for position, reason in checked.refused]
    refused += [(None, reason) for _, reason in broken]
    count = table.num_rows + len(refused)
    return Sample(
        table=table.combine_chunks(),
        origin=f"{count} row{'' if count == 1 else 's'} of {interval.label}, from the source",
        refused=tuple(refused),
    )


def _chosen(model: Model, settings: Settings) -> ModelSettings:
    return settings.model(model.name, model.declared, model.file.parent if model.file else None)


def _taken(plan: Plan, row: RowType, rows: int) -> tuple[list[tuple[Checked, list[str | None]]], list[tuple[str, str]]]:
    """Checked rows with the keys of all that were read; and the lines that are no rows."""
    if plan.known_before:
        tasks = list(plan.tasks)
        units = [unit for task in tasks for piece in task.pieces for unit in _units(piece)]
    else:  # the source flows: its first stretch is all that is cheap to have
        tasks = [task for task in [next(plan.tasks, None)] if task]
        units = [piece for task in tasks for piece in task.pieces]
    places = [units[i] for i in spread(len(units), min(PLACES, rows))]
    taken = []
    for number, piece in enumerate(places):
        quota = rows // len(places) + (number < rows % len(places))
        batch = next(iter(read_piece(piece, row, STRETCH if plan.known_before else SPOOL_ROWS)), None)
        if batch is not None and len(batch):
            taken.append(_checked(piece, row, batch, spread(len(batch), quota)))
    if not plan.known_before:
        plan.tasks.close()  # type: ignore[attr-defined] # a generator, which closes its cursor or file
    return taken, [line for task in tasks for line in task.broken][:rows]


def _units(piece: Piece) -> Iterator[Piece]:
    """The row groups of a Parquet file one by one; other pieces as they are."""
    if piece.kind != "parquet":
        yield piece
        return
    groups = piece.row_groups
    if groups is None:
        groups = tuple(range(open_parquet(piece.path).num_row_groups))
    for group in groups:
        yield replace(piece, row_groups=(group,))


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the positions 0 … count-1, evenly apart."""
    if count <= wanted:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, wanted)]


def _checked(piece: Piece, row: RowType, batch: Any, positions: list[int]) -> tuple[Checked, list[str | None]]:
    names = [c.name for c in row.keys]
    if isinstance(batch, list):
        texts = [batch[i] for i in positions]
        return JsonRows(row).decode(texts), [_key_of_json(text, names) for text in texts]
    part = batch.take(pa.array(positions))
    there = [n for n in names if n in part.schema.names]
    keys = [key_text({n: python_value(part.column(n), i) for n in there}, names) for i in range(part.num_rows)]
    return check_table(row, part, "text" if piece.kind == "text" else "typed"), keys


def _key_of_json(text: bytes, names: list[str]) -> str | None:
    try:
        return key_text(msgspec.json.decode(text), names)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# Made-up rows


def made_up(row: RowType, rows: int, seed: int = 0) -> pa.Table:
    """Rows that the type admits: the edges of its bounds, every choice, nulls where they may be; else small values.

    Raises ModelFileError for a column whose values cannot be made up, which are those of most patterns.
    """
    rng = random.Random(seed)
    columns = [_values(row.name, column, rows, rng) for column in row.columns]
    schema = row.arrow_schema()
    return pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)


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
                date(2026, 5, 1),
            ]
        case "datetime":
            moments = [datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC), datetime(1970, 1, 1, tzinfo=UTC)]
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
