"""What the terminal shows of the ledger: runs, and what happened to one. Light: no report is read for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sereno.foreign import harmless
from sereno.ledger import Entry, Transition
from sereno.lines import table_lines

if TYPE_CHECKING:
    from sereno.batch.attempts import Report

NEVER_RAN = ("due", "waiting", "skipped")  # states without an attempt, or whose next one has not begun
SHOWN = 100  # characters of a reason in a table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `sereno runs`: an attempt, or a run that has none."""

    at: datetime  # when it began, or came into its state: rows stand in this order
    data_time: datetime
    state: str
    data: dict[str, Any]  # for JSON
    cells: tuple[str, ...]


def row_of_report(report: Report, state: str, data: dict[str, Any]) -> Row:
    r = report
    counts = (f"{r.rows_in:,}", f"{r.predictions:,}", f"{r.rejects:,}") if r.rows_in else ("", "", "")
    says = harmless(r.says, SHOWN) if state == "failed" else ""
    cells = (r.attempt, state, str(r.version or ""), *counts, _minute(r.started_at), says)
    return Row(at=r.started_at, data_time=r.data_time, state=state, data=data | {"state": state}, cells=cells)


def row_of_entry(entry: Entry) -> Row:
    run = entry.label if entry.state in NEVER_RAN else entry.attempt or entry.label
    cells = (run, entry.state, str(entry.version or ""), "", "", "", _minute(entry.since))
    return Row(
        at=entry.since,
        data_time=entry.data_time,
        state=entry.state,
        data=entry_data(entry),
        cells=(*cells, harmless(entry.reason, SHOWN)),
    )


def without_report(entries: Iterable[Entry], reports: Iterable[Report]) -> list[Entry]:
    """Those that no report tells of: what is due or was skipped, and attempts that were removed since."""
    told = {report.run_key for report in reports}
    return [entry for entry in entries if entry.state in NEVER_RAN or entry.run_key not in told]


def rows_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The runs of one model, oldest first."""
    heads = ("run", "state", "version", "rows in", "predictions", "rejects", "started (UTC)", "")
    yield from table_lines([heads, *(row.cells for row in rows)])


def entries_lines(entries: Sequence[Entry]) -> Iterator[str]:
    """The runs of several models, oldest first."""
    rows = [("model", "run", "state", "version", "since (UTC)", "by", "")]
    rows += [
        (e.model, e.label, e.state, str(e.version or ""), _minute(e.since), harmless(e.who), harmless(e.reason, SHOWN))
        for e in entries
    ]
    yield from table_lines(rows)


def entry_lines(entry: Entry) -> Iterator[str]:
    """A run without a report."""
    yield f"Run {entry.label} of {entry.model}: {entry.state}" + (
        f" as version {entry.version}" if entry.version else ""
    )
    if entry.reason:
        yield f"  {harmless(entry.reason, 2_000)}"
    yield f"  data date {entry.data_date}, data time {_minute(entry.data_time)} UTC; nothing was scored, or its report was removed"


def transitions_lines(transitions: Iterable[Transition]) -> Iterator[str]:
    rows = [
        (
            "",
            f"{t.at:%Y-%m-%d %H:%M:%S}",
            f"{t.before or 'new'} → {t.after}",
            harmless(t.who),
            harmless(t.reason, SHOWN),
        )
        for t in transitions
    ]
    if rows:
        yield "History (UTC)"
        yield from table_lines(rows)


def entry_data(entry: Entry) -> dict[str, Any]:
    """As JSON has it; reports call the reason `says`."""
    data = {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in asdict(entry).items()}
    return data | {"says": data.pop("reason")}


def transition_data(transition: Transition) -> dict[str, Any]:
    return {
        "at": transition.at.isoformat(),
        "before": transition.before,
        "after": transition.after,
        "who": transition.who,
        "says": transition.reason,
        "attempt": transition.attempt,
    }


def _minute(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M}"
