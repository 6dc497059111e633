"""What a check found, as data and as lines for a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["problem", "warning", "note"]
# of an arrangement: what a difference would say the answer depends on
Kind = Literal["state", "batch", "order", "json", "http", "keys", "lookup", "fetch", "alone"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the check has to say; a problem fails it."""

    level: Level
    about: Literal["script block", "source", "rejects", "duplicates", "predict", "parity", "fetch", "lookup"]
    text: str  # one paragraph
    details: tuple[str, ...] = ()  # lines below it, such as a traceback


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first row that one arrangement answers otherwise."""

    row: int  # its position in the sample
    key: str
    column: str  # "" where one of the two is a reject
    expected: str  # scored whole
    found: str  # in the arrangement
    rows: int  # that differ in all
    worst: float  # largest difference, relative; infinite where it is none of numbers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one arrangement."""

    name: str
    kind: Kind
    difference: Difference | None = None
    error: str = ""  # the answer was none that could be compared

    @property
    def passed(self) -> bool:
        return self.difference is None and not self.error


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `sereno check` found."""

    model: str
    origin: str  # where the rows are from
    rows: int  # of the sample that fit the input type, and were scored
    tolerance: float
    outcomes: list[Outcome] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(f.level == "problem" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        plain = asdict(self)
        for outcome, shown in zip(self.outcomes, plain["outcomes"], strict=True):
            shown["passed"] = outcome.passed
            if shown["difference"] and not math.isfinite(shown["difference"]["worst"]):
                shown["difference"]["worst"] = None
        return {"ok": self.ok, **plain}


def render(report: CheckReport) -> list[str]:
    """The report as lines for a terminal."""
    lines = [f"{report.model}: {report.origin}"]
    if report.outcomes:
        lines += [f"{report.rows} scored in one batch, and compared with the same rows", ""]
    for outcome in report.outcomes:
        lines.append(f"  {'passed ' if outcome.passed else 'differs'}  {outcome.name}")
        lines += [f"           {line}" for line in told(outcome)]
    for finding in report.findings:
        lines += ["", f"{finding.level}: {finding.text}", *(f"  {line}".rstrip() for line in finding.details)]
    lines += ["", _verdict(report)]
    return lines


def _verdict(report: CheckReport) -> str:
    if not report.ok:
        return f"{report.model} does not pass."
    return (
        f"{report.model} passes: floats agree to {report.tolerance:g} of their size (near 0, of the column's median size), "
        "all else exactly."
    )


def told(outcome: Outcome) -> list[str]:
    if outcome.error:
        return [outcome.error]
    found = outcome.difference
    if found is None:
        return []
    about = f"{found.key}: {found.column}".rstrip(": ")
    rows = "1 row differs" if found.rows == 1 else f"{found.rows} rows differ"
    return [f"{about} is {found.expected} in one batch, {found.found} here ({rows})"]
