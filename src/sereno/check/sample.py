"""A sample of a model's rows to test it with, from its source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from sereno.adapters.files import Piece, open_parquet, read_piece
from sereno.batch.plan import SPOOL_ROWS, Plan, make_plan
from sereno.batch.tasks import key_text
from sereno.checks import Checked, check_table, python_value
from sereno.model import Model
from sereno.rows import JsonRows
from sereno.schedule import interval_for, last_interval
from sereno.schema import RowType

if TYPE_CHECKING:
    from sereno.settings import ModelSettings, Settings

PLACES = 8  # stretches of the data that a sample is taken from
STRETCH = 8_192  # rows that are read of each to choose from


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of a model, checked."""

    table: pa.Table  # the rows that fit the input type
    origin: str  # "200 rows of 2026-05-01, from the source"
    refused: tuple[tuple[str | None, str], ...] = ()  # key and reason of each row that does not fit
    is_made_up: bool = False


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
