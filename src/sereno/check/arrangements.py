"""The arrangements that batch could give a sample, each scored and compared."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa

from sereno.check.compare import Answer, Reference
from sereno.check.report import Kind, Outcome
from sereno.exceptions import OutputError
from sereno.rows import JsonRows, encode

CHUNKS = (2, 7, 64, 512, 4096)


def outcomes(reference: Reference) -> list[Outcome]:
    count = reference.table.num_rows
    rng = random.Random(0)
    backwards = list(range(count))[::-1]
    shuffled = rng.sample(range(count), count)
    out = [again(reference, "again, in the same batch")]
    out.append(_arranged(reference, "one at a time", "batch", [range(i, i + 1) for i in range(count)]))
    for size in CHUNKS:
        if size < count:
            chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
            out.append(_arranged(reference, f"in batches of {size}", "batch", chunks))
    out.append(_arranged(reference, "in reverse order", "order", [backwards]))
    out.append(_arranged(reference, "in random order", "order", [shuffled]))
    out.append(_through_json(reference))
    return out


def again(reference: Reference, name: str) -> Outcome:
    """The sample as it was scored first."""
    return _arranged(reference, name, "state", [range(reference.table.num_rows)])


def _arranged(reference: Reference, name: str, kind: Kind, parts: Sequence[Sequence[int]]) -> Outcome:
    answers: list[Answer] = [""] * reference.table.num_rows
    try:
        for part in parts:
            for position, answer in zip(part, reference.score_part(_rows_of(reference.table, part)), strict=True):
                answers[position] = answer
    except OutputError as error:
        return Outcome(name=name, kind=kind, error=str(error))
    return Outcome(name=name, kind=kind, difference=reference.compare(answers))


def _rows_of(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    if isinstance(positions, range):
        return table.slice(positions.start, len(positions))
    return table.take(pa.array(positions))


def _through_json(reference: Reference) -> Outcome:
    name = "as JSON, like requests"
    checked = JsonRows(reference.model.inputs).decode(encode(reference.table))
    answers: list[Answer] = [""] * reference.table.num_rows
    for position, reason in checked.refused:
        answers[position] = f"JSON row: {reason}"
    positions = range(len(answers)) if checked.positions is None else checked.positions.tolist()
    try:
        for position, answer in zip(positions, reference.score_part(checked.table), strict=True):
            answers[position] = answer
    except OutputError as error:
        return Outcome(name=name, kind="json", error=str(error))
    return Outcome(name=name, kind="json", difference=reference.compare(answers))
