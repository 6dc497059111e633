"""What fetch gives for the sample's keys, held against the columns that the sample's rows have."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from sereno.check.compare import Reference, differing, frames, shown
from sereno.check.report import Finding, Level, Outcome
from sereno.exceptions import OutputError
from sereno.fetching import UNKNOWN, Fetch, Key
from sereno.values import Refused


class Noted(Fetch):
    """A model's fetch that keeps what it answered, in the calls that the server makes.

    It is not called for the check alone: it may depend on its thread, or on the event loop.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: dict[Key, list[tuple[Any, ...]]] = {}  # key → the values of the columns, of every call
        self.asked: set[Key] = set()  # in calls that were answered
        self._asking: Sequence[Key] = ()  # in the call of now; there is one at a time
        self.error: BaseException | None = None  # the first that a call raised

    def call(self, keys: Sequence[Key]) -> Any:
        self._asking = keys
        try:
            answer = super().call(keys)
        except Exception as error:
            self.error = self.error or error
            raise
        return self._awaited(answer) if inspect.isawaitable(answer) else answer

    async def _awaited(self, answer: Any) -> Any:
        try:
            return await answer
        except Exception as error:
            self.error = self.error or error
            raise

    def read(self, answer: Any) -> dict[Key, tuple[Any, ...]]:
        try:
            found = super().read(answer)
        except Exception as error:
            self.error = self.error or error
            raise
        self.asked.update(self._asking)
        for key, values in found.items():
            before = self.found.setdefault(key, [])
            if values not in before:
                before.append(values)
        return found


def about_fetch(reference: Reference, noted: Noted, outcome: Outcome) -> list[Finding]:
    """What is to be said of fetch. `outcome`: of the requests that left the Fetched columns to it."""
    model, error = reference.model, noted.error
    names = [c.name for c in noted.columns]
    if error is not None:
        says = str(error) if isinstance(error, OutputError) else f"fetch raised {type(error).__name__}: {error}"
        text = f"{says.rstrip('.')}. A live request without {' or '.join(names)} gets no prediction."
        details = () if isinstance(error, OutputError) else tuple(frames(model, error))
        return [Finding(level="problem", about="fetch", text=text, details=details)]
    given = "read" if model.read_function is not None else "the source"
    values = reference.table.select(names).to_pylist()
    keys = reference.table.select([c.name for c in model.inputs.keys]).to_pylist()
    unknown: list[int] = []
    told: list[str] = []  # of each row that differs, the first difference
    is_order_alone = True
    for position, (row, key) in enumerate(zip(values, keys, strict=True)):
        if tuple(key.values()) not in noted.asked:
            continue
        try:
            found = noted.found.get(tuple(key.values())) or [noted.unknown()]
        except Refused:
            unknown.append(position)
            continue
        for other in (dict(zip(names, one, strict=True)) for one in found):
            beyond = [d for d in differing(row, other, {}) if d[3] > model.tolerance]
            if beyond:
                column, a, b, _ = beyond[0]
                told.append(f"{reference.key(position)}: {column} is {shown(a)} by {given}, {shown(b)} by fetch")
                is_order_alone &= all(_same_items(row[name], other[name]) for name in names)
                break
    findings = []
    if unknown:
        text = (
            f"fetch knows nothing of {len(unknown)} of the sample's {len(keys)} keys, so live requests for them are "
            f"refused unless they bring {' and '.join(names)} along. Have fetch answer for every key, or declare the column "
            "as nullable, or with a default."
        )
        first = f"The first of them is {reference.key(unknown[0])}: {UNKNOWN}."
        findings.append(Finding(level="problem", about="fetch", text=text, details=(first,)))
    if told:
        rows = "1 row differs" if len(told) == 1 else f"{len(told)} rows differ"
        if is_order_alone and outcome.passed:
            level: Level = "warning"
            text = (
                f"fetch gives lists in another order than {given}. No prediction of the sample changes by it; others might. "
                "Sort in both by the same columns, or in predict."
            )
        else:
            level = "problem"
            text = (
                f"fetch gives other values than {given} for the same keys, so a live request is scored on other features "
                "than a run. Usual causes: they ask other tables, or with another filter, limit or order; fetch gives a key "
                "the values of another one; or the data has changed since the interval. In that case compare with a --date "
                "since which it has not."
            )
        findings.append(Finding(level=level, about="fetch", text=text, details=(f"{told[0]} ({rows})",)))
    return findings


def _same_items(a: Any, b: Any) -> bool:
    """Whether two values are the same, or lists of the same items."""
    return a == b or (isinstance(a, list) and isinstance(b, list) and sorted(map(repr, a)) == sorted(map(repr, b)))
