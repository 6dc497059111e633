"""What the terminal shows of runs and snapshots: lines of text, made from reports. No logic beyond the words.

Names of columns, categories and reasons come from data, so they are made harmless before a terminal sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from math import ceil

from sereno.baseline import THIS_RUN, Baseline
from sereno.batch.attempts import Report
from sereno.batch.gates import Gate
from sereno.batch.profile import ColumnProfile
from sereno.foreign import harmless
from sereno.histograms import bars_of, number
from sereno.lines import age as age
from sereno.lines import table_lines as table_lines
from sereno.presence import together
from sereno.snapshots import State

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 24
CATEGORIES = 8
NEED = ("held", "warned", "passed")  # what has to be looked at comes first


def run_lines(
    report: Report, *, state: str | None = None, baseline: Baseline | None = None, inputs: bool = False
) -> Iterator[str]:
    """A run report: what it was, what came of each row, the gates, each output column with its histogram, and times.

    A gate that did not pass shows its column's histogram over the baseline's. `inputs`: the input columns, too.
    """
    yield f"Run {report.attempt} of {report.model}: {state or report.state}" + (
        f" as version {report.version}" if report.version else ""
    )
    yield from (f"  {harmless(line, 2000)}" for line in report.says.splitlines())
    yield f"  data date {report.data_date}, data time {report.data_time:%Y-%m-%d %H:%M} UTC, source {harmless(report.source, 2000)}"
    if report.fingerprint:
        yield f"  model {harmless(report.fingerprint[:12])}"
    for name, lay in report.artifacts.items():
        yield f"  artefact {harmless(name)}: {harmless(lay, 2000)}"
    if not report.rows_in:
        return
    resumed = f", {report.resumed_tasks} taken over from an earlier attempt" if report.resumed_tasks else ""
    tasks = f"{report.tasks} task{'s' if report.tasks != 1 else ''}{resumed}"
    counts = f"{report.predictions:,} predictions + {report.rejects:,} rejects"
    yield f"  {report.rows_in:,} rows in = {counts} ({tasks})"
    if report.reasons:
        yield "Rejects"
        yield from (f"  {count:>9,}  {harmless(reason)}" for reason, count in list(report.reasons.items())[:20])
    if report.gates:
        yield "Gates"
        for gate in by_need(report.gates):
            yield from gate_lines(gate, column_of(report, gate, baseline))
    if report.profile:
        yield "Predictions"
        for name, column in report.profile.items():
            yield from column_lines(name, column)
    if inputs and report.inputs_profile:
        yield "Inputs"
        for name, column in report.inputs_profile.items():
            yield from column_lines(name, column)
    yield "Time"
    stages = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    yield f"  {stages}"
    if report.worker_seconds:
        spent = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in report.worker_seconds.items())
        yield f"  of which in {report.workers} worker{'s' if report.workers > 1 else ''}: {spent}"


def by_need(gates: Iterable[Gate]) -> list[Gate]:
    """What held the run first, then warnings."""
    return sorted(gates, key=lambda gate: NEED.index(gate.level))


def verdict(gate: Gate) -> str:
    """The level as it is shown: what held a run stands out."""
    return "HELD" if gate.level == "held" else gate.level


def column_of(report: Report, gate: Gate, baseline: Baseline | None) -> list[tuple[ColumnProfile, str]]:
    """The column that a gate is about, in this run and in its baseline; empty where it is about none."""
    now = (report.inputs_profile if gate.side == "input" else report.profile).get(gate.column)
    before = baseline.column(gate.side, gate.column) if baseline else None
    found = [(now, THIS_RUN), (before, baseline.name if baseline else "")]
    return [(column, called) for column, called in found if column is not None]


def gate_lines(gate: Gate, columns: Sequence[tuple[ColumnProfile, str]] = ()) -> Iterator[str]:
    """A gate's verdict; if it did not pass, with the histograms of its column in this run and in the baseline."""
    yield f"  {verdict(gate):<6}  {harmless(gate.name)}: {harmless(gate.says, 2000)}"
    if gate.level != "passed":
        yield from (f"          {line}" for line in histogram_lines(columns))


def histogram_lines(columns: Sequence[tuple[ColumnProfile, str]]) -> Iterator[str]:
    """The histograms of one column in several profiles, one above the other over the same bars; categories beside
    each other."""
    profiles, names = [c for c, _ in columns], [n for _, n in columns]
    bars = bars_of(profiles, WIDTH if any(c.bins for c in profiles) else CATEGORIES)
    if bars is None:
        return
    wide = max(len(n) for n in names)
    if bars.edges:
        for name, column, shares in zip(names, profiles, bars.shares, strict=True):
            mean = "" if column.mean is None else f"  mean {number(column.mean)}"
            yield f"{name:<{wide}}  {spark(shares, bars.most)}{mean}".rstrip()
        yield f"{'':<{wide}}  {bars.ends[0]:<{WIDTH // 2}}{bars.ends[1]:>{WIDTH - WIDTH // 2}}".rstrip()
        return
    label_wide = max(len(label[:WIDTH]) for label in bars.labels)
    yield f"{'':<{label_wide}}  " + "  ".join(f"{n:<{WIDTH}}" for n in names).rstrip()
    for i, label in enumerate(bars.labels):
        cells = [f"{shares[i]:>6.1%} {bar(shares[i], bars.most, WIDTH - 7)}" for shares in bars.shares]
        yield f"{label[:WIDTH]:<{label_wide}}  " + "  ".join(f"{c:<{WIDTH}}" for c in cells).rstrip()


def spark(shares: Sequence[float], most: float) -> str:
    """One character for each bar; what is there at all is seen."""
    return "".join(BARS[0 if s <= 0 else min(ceil(s * (len(BARS) - 1) / most), len(BARS) - 1)] for s in shares)


def bar(share: float, most: float, width: int) -> str:
    return BARS[-1] * max(1, round(share * width / most)) if share > 0 else ""


def column_lines(name: str, column: ColumnProfile) -> Iterator[str]:
    nulls = f", {column.nulls:,} null" if column.nulls else ""
    shown = harmless(name)
    bars = bars_of([column], WIDTH if column.bins else CATEGORIES)
    if bars is not None and bars.edges:
        mean = column.mean or 0.0
        yield f"  {shown}: {number(column.least)} to {number(column.greatest)}, mean {number(mean)}{nulls}"
        yield f"    {bars.ends[0]:>8} {spark(bars.shares[0], bars.most)} {bars.ends[1]}".rstrip()
    elif bars is not None:
        more = " and others" if column.more_categories else ""
        yield f"  {shown}: {len(column.categories)} values{more}{nulls}"
        for label, share in zip(bars.labels, bars.shares[0], strict=True):
            yield f"    {label[:16]:<16} {bar(share, bars.most, WIDTH):<{WIDTH}} {share:>6.1%}"
    elif column.least is not None:
        yield f"  {shown}: {number(column.least)} to {number(column.greatest)}{nulls}"
    else:
        yield f"  {shown}: {column.rows:,} values{nulls}"


def versions_lines(state: State) -> Iterator[str]:
    now = datetime.now(UTC)
    served = {s.number for s in state.served}
    versions = sorted(state.snapshots, reverse=True)
    kept = dict(zip(versions, together(lambda v: state.snapshots[v].parts[0].path.is_file(), versions), strict=True))
    rows = [("version", "data date", "rows", "rejects", "published (UTC)", "age", "")]
    for version in versions:
        s = state.snapshots[version]
        notes = [
            word
            for word, holds in (
                ("in service", version in served),
                (f"withdrawn by {state.why_withdrawn.get(version)}", version in state.withdrawn),
                ("parts removed", not kept[version]),
            )
            if holds
        ]
        rows.append(
            (
                str(version),
                s.data_date.isoformat(),
                f"{s.rows:,}",
                f"{s.rejects:,}",
                f"{s.published_at:%Y-%m-%d %H:%M}",
                age(now, s.data_time),
                ", ".join(notes),
            )
        )
    yield from table_lines(rows)
