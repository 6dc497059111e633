"""What the terminal shows of runs and snapshots: lines of text, made from reports. No logic beyond the words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from sereno.batch.attempts import Report
from sereno.batch.profile import ColumnProfile
from sereno.snapshots import State

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 24


def run_lines(report: Report, *, state: str | None = None) -> Iterator[str]:
    """A run report: what it was, what came of each row, the gates, each output column with its histogram, and times."""
    yield f"Run {report.attempt} of {report.model}: {state or report.state}" + (
        f" as version {report.version}" if report.version else ""
    )
    if report.says:
        yield f"  {report.says}"
    yield f"  data date {report.data_date}, data time {report.data_time:%Y-%m-%d %H:%M} UTC, source {report.source}"
    if not report.rows_in:
        return
    resumed = f", {report.resumed_tasks} taken over from an earlier attempt" if report.resumed_tasks else ""
    tasks = f"{report.tasks} task{'s' if report.tasks != 1 else ''}{resumed}"
    counts = f"{report.predictions:,} predictions + {report.rejects:,} rejects"
    yield f"  {report.rows_in:,} rows in = {counts} ({tasks})"
    if report.reasons:
        yield "Rejects"
        yield from (f"  {count:>9,}  {reason}" for reason, count in list(report.reasons.items())[:20])
    if report.gates:
        yield "Gates"
        yield from (f"  {'passed' if gate.passed else 'FAILED'}  {gate.name}: {gate.says}" for gate in report.gates)
    if report.profile:
        yield "Predictions"
        for name, column in report.profile.items():
            yield from column_lines(name, column)
    yield "Time"
    stages = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    yield f"  {stages}"
    if report.worker_seconds:
        spent = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in report.worker_seconds.items())
        yield f"  of which in {report.workers} worker{'s' if report.workers > 1 else ''}: {spent}"


def column_lines(name: str, column: ColumnProfile) -> Iterator[str]:
    nulls = f", {column.nulls:,} null" if column.nulls else ""
    if column.bins:
        mean = column.mean or 0.0
        yield f"  {name}: {_number(column.least)} to {_number(column.greatest)}, mean {_number(mean)}{nulls}"
        counts = [count for _, _, count in column.histogram(WIDTH)]
        most = max(counts)
        bars = "".join(BARS[0 if c == 0 else 1 + (c * (len(BARS) - 2)) // most] for c in counts)
        yield f"    {_number(column.least):>8} {bars} {_number(column.greatest)}"
    elif column.categories:
        more = " and others" if column.more_categories else ""
        yield f"  {name}: {len(column.categories)} values{more}{nulls}"
        most = max(column.categories.values())
        for value, count in sorted(column.categories.items(), key=lambda c: -c[1])[:8]:
            share = count / column.rows
            yield f"    {value[:16]:<16} {BARS[-1] * max(1, count * WIDTH // most):<{WIDTH}} {share:>6.1%}"
    elif column.least is not None:
        yield f"  {name}: {column.least} to {column.greatest}{nulls}"
    else:
        yield f"  {name}: {column.rows:,} values{nulls}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def runs_lines(reports: Sequence[Report], states: Iterable[str]) -> Iterator[str]:
    rows = [("run", "state", "version", "rows in", "predictions", "rejects", "started (UTC)")]
    for r, state in zip(reports, states, strict=True):
        version = str(r.version or "")
        counts = (f"{r.rows_in:,}", f"{r.predictions:,}", f"{r.rejects:,}") if r.rows_in else ("", "", "")
        rows.append((r.attempt, state, version, *counts, f"{r.started_at:%Y-%m-%d %H:%M}"))
    yield from table_lines(rows)


def versions_lines(state: State) -> Iterator[str]:
    now = datetime.now(UTC)
    kept = state.kept(now)
    served = {s.number for s in state.served}
    rows = [("version", "data date", "rows", "rejects", "published (UTC)", "age", "")]
    for number in sorted(state.snapshots, reverse=True):
        s = state.snapshots[number]
        notes = [
            word
            for word, holds in (
                ("in service", number in served),
                (f"withdrawn by {state.why_withdrawn.get(number)}", number in state.withdrawn),
                ("parts removed", number not in kept),
            )
            if holds
        ]
        rows.append(
            (
                str(number),
                s.data_date.isoformat(),
                f"{s.rows:,}",
                f"{s.rejects:,}",
                f"{s.published_at:%Y-%m-%d %H:%M}",
                age(now, s.data_time),
                ", ".join(notes),
            )
        )
    yield from table_lines(rows)


def age(now: datetime, data_time: datetime) -> str:
    """How old data is: now − data time."""
    seconds = int((now - data_time).total_seconds())
    days, rest = divmod(max(seconds, 0), 86_400)
    return f"{days} d {rest // 3600} h" if days else f"{rest // 3600} h {rest % 3600 // 60} min"


def table_lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
