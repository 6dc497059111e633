"""The sample scored whole, and other answers to the same rows held against it."""

from __future__ import annotations

import math
import re
import statistics
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sereno.batch.tasks import key_text
from sereno.check.report import Difference
from sereno.exceptions import OutputError, PredictError
from sereno.model import Model
from sereno.scoring import Scorer

PACKAGE = Path(__file__).parent.parent
Answer = dict[str, Any] | str  # of one row: its outputs, or the reason of its reject


class Reference:
    """The sample scored whole, and what is needed to hold other arrangements against it."""

    def __init__(self, scorer: Scorer, table: pa.Table) -> None:
        self.scorer, self.model, self.table = scorer, scorer.model, table
        self._outputs = [c.name for c in scorer.model.outputs.columns]
        self._keys = table.select([c.name for c in scorer.model.inputs.keys]).to_pylist()
        self.answers = self.score(table)
        self._sizes = _median_sizes(self.answers)

    def key(self, position: int) -> str:
        row = self._keys[position]
        return f"{', '.join(row)} {key_text(row, list(row))}"

    def score(self, part: pa.Table) -> list[Answer]:
        """The answer of each row."""
        scored = self.scorer.score(part)
        answers: list[Answer] = [""] * part.num_rows
        positions = range(part.num_rows) if scored.positions is None else scored.positions.tolist()
        for position, answer in zip(positions, scored.table.select(self._outputs).to_pylist(), strict=True):
            answers[position] = answer
        for position, reason in scored.refused:
            answers[position] = reason
        return answers

    def score_part(self, part: pa.Table) -> list[Answer]:
        """Like `score`; where all of a few rows raise, which fails a whole run, each is a reject here."""
        try:
            return self.score(part)
        except OutputError:
            raise
        except PredictError:
            return [answer for i in range(part.num_rows) for answer in self.score(part.slice(i, 1))]

    def compare(self, answers: list[Answer]) -> Difference | None:
        first: tuple[int, str, Any, Any] | None = None
        rows, worst = 0, 0.0
        for position, (expected, found) in enumerate(zip(self.answers, answers, strict=True)):
            beyond = [d for d in self._differing(expected, found) if d[3] > self.model.tolerance]
            if not beyond:
                continue
            rows += 1
            worst = max(worst, *(d[3] for d in beyond))
            first = first or (position, *beyond[0][:3])
        if first is None:
            return None
        position, column, *both = first
        expected, found = (shown(v) if column or not isinstance(v, str) else f"a reject ({v})" for v in both)
        return Difference(
            row=position,
            key=self.key(position),
            column=column,
            expected=expected,
            found=found,
            rows=rows,
            worst=worst,
        )

    def _differing(self, expected: Answer, found: Answer) -> Iterator[tuple[str, Any, Any, float]]:
        """(column, expected, found, how far apart) of every value, or of the row where one is a reject."""
        if isinstance(expected, str) or isinstance(found, str):
            if _kind_of(expected) != _kind_of(found):
                yield "", expected, found, math.inf
            return
        yield from differing(expected, found, self._sizes)

    def traceback_of(self, position: int) -> list[str]:
        """What predict raises on one row, in the user's frames; empty where it does not."""
        try:
            self.scorer.predict(self.table.slice(position, 1))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
            return frames(self.model, error)
        return []


def differing(
    expected: Mapping[str, Any], found: Mapping[str, Any], sizes: Mapping[str, float]
) -> Iterator[tuple[str, Any, Any, float]]:
    """(column, expected, found, how far apart) of every value that is not the same.

    Floats are apart relative to the larger of the two and of their column's size.
    """
    for name in expected:
        for path, a, b in _leaves(name, expected[name], found[name]):
            if isinstance(a, float) and isinstance(b, float):
                size = max(abs(a), abs(b), sizes.get(_column_of(path), 0.0))
                yield path, a, b, abs(a - b) / size if size else 0.0
            elif a != b:
                yield path, a, b, math.inf


def _leaves(path: str, expected: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of single values with their path, `items[2].score`; of whole lists where the lengths differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in expected:
            yield from _leaves(f"{path}.{name}", expected[name], found.get(name))
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            yield from _leaves(f"{path}[{i}]", a, b)
    else:
        yield path, expected, found


def _column_of(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def _median_sizes(answers: list[Answer]) -> dict[str, float]:
    """The median size of each float column's values other than 0: what a difference near 0 is measured by.

    The sum of numbers that cancel each other is rounding and nothing else; relative to itself it could differ by any
    factor. A median, for one giant among the answers must not hide what happens to the others.
    """
    sizes: dict[str, list[float]] = {}
    for answer in answers:
        for path, value, _ in _leaves("", answer, answer) if isinstance(answer, dict) else ():
            if isinstance(value, float) and value:
                sizes.setdefault(_column_of(path).removeprefix("."), []).append(abs(value))
    return {column: statistics.median(found) for column, found in sizes.items()}


def _kind_of(answer: Answer) -> str:
    """A reject's reason without the words of an exception, which may name a position in the batch."""
    if not isinstance(answer, str):
        return ""
    return answer.split(":")[0] if answer.startswith("predict raised") else answer


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(v)}" for name, v in value.items())
    text = repr(value) if isinstance(value, float | str | list) else "null" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def frames(model: Model, error: BaseException | None) -> list[str]:
    """The traceback of an exception, without our frames and those of libraries."""
    if error is None:
        return []
    folder = model.file.parent if model.file else Path.cwd()
    every = traceback.extract_tb(error.__traceback__)
    own = [f for f in every if _is_own(Path(f.filename), folder)]
    lines = []
    for frame in own or every[-1:]:
        lines.append(f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}")
        if frame.line:
            lines.append(f"    {frame.line}")
    lines += "".join(traceback.format_exception_only(error)).rstrip().splitlines()
    return ["", *lines]


def _is_own(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and "site-packages" not in file.parts and PACKAGE not in file.parents
