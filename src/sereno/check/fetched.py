"""What fetch gives for the sample's keys, held against the columns that the sample's rows have."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from sereno.check.compare import Reference, differing, frames, shown
from sereno.check.published import keys_of
from sereno.check.report import Finding, Level, Outcome
from sereno.exceptions import OutputError
from sereno.fetching import UNKNOWN, Fetch, Key
from sereno.model import Model
from sereno.values import Refused

SHOWN = 3  # keys that are named of many


class Noted(Fetch):
    """A model's fetch that keeps what it answered, in the calls that the server makes.

    It is not called for the check alone: it may depend on its thread, or on the event loop.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: dict[Key, list[tuple[Any, ...]]] = {}  # key → the values of the columns, of every call
        self.asked: set[Key] = set()  # in calls that were answered
        self.others: dict[Key, None] = {}  # that it answered in calls that did not ask for them
        self.repeated: dict[Key, None] = {}  # that it answered more than once in a call, each time otherwise
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
        asking = set(self._asking)
        self.asked |= asking
        for key, values in found.items():
            if key not in asking:
                self.others[key] = None
                continue
            before = self.found.setdefault(key, [])
            if values not in before:
                before.append(values)
        return found

    @property
    def unasked(self) -> list[Key]:
        """Keys that it answered without being asked for them in any call."""
        return [key for key in self.others if key not in self.asked]

    def _pairs(self, answer: Any) -> list[tuple[Key, list[Any]]]:
        pairs = super()._pairs(answer)
        times = Counter(key for key, _ in pairs)
        if len(times) < len(pairs):
            first: dict[Key, list[Any]] = {}
            for key, values in pairs:
                if times[key] > 1 and repr(first.setdefault(key, values)) != repr(values):
                    self.repeated[key] = None
        return pairs


def about_fetch(reference: Reference, noted: Noted, outcomes: Sequence[Outcome]) -> list[Finding]:
    """What is to be said of fetch. `outcomes`: of the requests that left the Fetched columns to it."""
    return [
        *_about_error(reference, noted),
        *_about_values(reference, noted, outcomes),
        *_about_keys(reference, noted),
    ]


def _about_error(reference: Reference, noted: Noted) -> list[Finding]:
    error = noted.error
    if error is None:
        return []
    says = str(error) if isinstance(error, OutputError) else f"fetch raised {type(error).__name__}: {error}"
    names = " or ".join(c.name for c in noted.columns)
    text = f"{says.rstrip('.')}. A live request without {names} gets no prediction."
    details = () if isinstance(error, OutputError) else tuple(frames(reference.model, error))
    return [Finding(level="problem", about="fetch", text=text, details=details)]


def _about_values(reference: Reference, noted: Noted, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Every Fetched column of every row, against all that fetch answered to its key."""
    model = reference.model
    names = [c.name for c in noted.columns]
    given = "read" if model.read_function is not None else "the source"
    unknown: list[int] = []
    first: dict[str, str] = {}  # column → where it differs first
    rows: Counter[str] = Counter()  # column → how many rows differ in it
    is_order_alone = True
    for position, (row, key) in enumerate(zip(_values(reference, names), keys_of(reference), strict=True)):
        if key not in noted.asked:
            continue
        try:
            found = noted.found.get(key) or [noted.unknown()]
        except Refused:
            unknown.append(position)
            continue
        differs: dict[str, str] = {}
        for other in (dict(zip(names, one, strict=True)) for one in found):
            for path, a, b, apart in differing(row, other, {}):
                if apart > model.tolerance:
                    says = f"{reference.key(position)}: {path} is {shown(a)} by {given}, {shown(b)} by fetch"
                    differs.setdefault(re.split(r"[.[]", path)[0], says)
            is_order_alone &= all(_same_items(row[name], other[name]) for name in names)
        for name, says in differs.items():
            first.setdefault(name, says)
            rows[name] += 1
    findings = []
    if unknown:
        text = (
            f"fetch knows nothing of {len(unknown)} of the sample's {len(reference.answers)} rows, so live requests for them "
            f"are refused unless they bring {' and '.join(names)} along. Have fetch answer for every key, or declare the "
            "column as nullable, or with a default."
        )
        details = [f"The first of them is {reference.key(unknown[0])}: {UNKNOWN}."]
        if noted.unasked:  # "0042" for 42, or text with blanks behind it
            details.append(f"But it answered for {_listed(model, noted.unasked)}, which it was not asked for.")
        findings.append(Finding(level="problem", about="fetch", text=text, details=tuple(details)))
    if first:
        if is_order_alone and all(outcome.passed for outcome in outcomes):
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
        told = tuple(f"{says} ({_rows(rows[name])})" for name, says in first.items())
        findings.append(Finding(level=level, about="fetch", text=text, details=told))
    return findings


def _about_keys(reference: Reference, noted: Noted) -> list[Finding]:
    """Keys that fetch answers more than once, or without being asked."""
    findings = []
    if noted.repeated:
        text = (
            f"fetch answers some keys more than once, and not with the same values: {_listed(reference.model, noted.repeated)}. "
            "The last answer counts, whichever that is. Usual cause: a join that finds several rows of a key."
        )
        findings.append(Finding(level="warning", about="fetch", text=text))
    if noted.unasked:
        text = (
            "fetch answers keys that it was not asked for, which are read for nothing: "
            f"{_listed(reference.model, noted.unasked)}. Usual cause: a query without its WHERE."
        )
        findings.append(Finding(level="note", about="fetch", text=text))
    return findings


def _values(reference: Reference, names: Sequence[str]) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = reference.table.select(list(names)).to_pylist()
    return values


def _listed(model: Model, keys: Collection[Key]) -> str:
    names = [c.name for c in model.inputs.keys]
    some = [", ".join(f"{n} {v}" for n, v in zip(names, key, strict=True)) for key in islice(keys, SHOWN)]
    return "; ".join(some) + (f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else "")


def _rows(count: int) -> str:
    return "1 row differs" if count == 1 else f"{count} rows differ"


def _same_items(a: Any, b: Any) -> bool:
    """Whether two values are the same, or lists of the same items."""
    return a == b or (isinstance(a, list) and isinstance(b, list) and sorted(map(repr, a)) == sorted(map(repr, b)))
