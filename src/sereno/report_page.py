"""The page of a run's report: what did not pass first, then rows, gates, every column, times and parts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sereno import __version__
from sereno.baseline import THIS_RUN, Baseline, baseline_of
from sereno.batch.attempts import Report
from sereno.batch.gates import Gate
from sereno.page_parts import (
    chart,
    column_panel,
    document,
    facts,
    gates_table,
    paragraphs,
    table,
    text,
    two_columns,
)
from sereno.places import write_place
from sereno.show import by_need, column_of, verdict
from sereno.typed import options_of, typed

if TYPE_CHECKING:
    from sereno.home import Home
    from sereno.ledger import Transition

NAME = "report.html"  # beside report.json
SHOWN = 50  # reasons of rejects


def report_page(
    report: Report,
    *,
    state: str | None = None,
    baseline: Baseline | None = None,
    history: Sequence[Transition] = (),
    options: tuple[str, ...] = (),
) -> str:
    """The report as one HTML file that needs nothing beside it.

    `state` is the run's as people are told it; `baseline` what its columns are drawn over; `history` what happened to it;
    `options` those of the commands that it says to type: see `options_of`.
    """
    state = state or report.state
    parts = [
        _head(report, state),
        _not_passed(report, state, baseline, options),
        _rows(report),
        _gates(report.gates),
        _columns("Predictions", report, "output", baseline),
        _columns("Inputs", report, "input", baseline),
        _times(report),
        _parts(report),
        _history(history),
    ]
    foot = f"Sereno {text(__version__)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return document(f"{report.model}, {report.data_date}: {state}", "\n".join(p for p in parts if p), foot)


def add_page(home: Home, report: Report) -> str:
    """Write the page of a run beside its report; what went wrong, in words, or nothing.

    It is for whoever looks at a held run, and never a reason for the run to fail.
    """
    try:
        page = report_page(report, baseline=baseline_of(home, report), options=options_of(home.settings))
        write_place(home.attempts.lasting(report) / NAME, page.encode(errors="backslashreplace"))
    except Exception as error:  # noqa: BLE001 - the run is what counts, and says what became of its page
        return f"Its page {NAME} could not be written ({type(error).__name__}: {error})."
    return ""


def _head(report: Report, state: str) -> str:
    version = "" if report.version is None else f"as version {report.version}"
    ended = "" if report.ended_at is None else f"{report.ended_at:%Y-%m-%d %H:%M} UTC"
    pairs = [
        ("run", f"<code>{text(report.attempt)}</code>"),
        ("data time", f"{report.data_time:%Y-%m-%d %H:%M} UTC"),
        ("started", f"{report.started_at:%Y-%m-%d %H:%M} UTC"),
        ("ended", ended),
        ("source", f"<code>{text(report.source)}</code>" if report.source else ""),
        ("disposition", text(report.disposition)),
        ("model", f"<code>{text(report.fingerprint[:12])}</code>" if report.fingerprint else ""),
        *((f"artefact {name}", f"<code>{text(lay, 2000)}</code>") for name, lay in report.artifacts.items()),
        ("revision", f"<code>{text(report.revision[:12])}</code>" if report.revision else ""),
    ]
    return (
        f"<h1>{text(report.model)}, {report.data_date}</h1>\n"
        f'<p><b class="state {text(state)}">{text(state)}</b> {version}</p>\n{paragraphs(report.says)}{facts(pairs)}'
    )


def _not_passed(report: Report, state: str, baseline: Baseline | None, options: tuple[str, ...]) -> str:
    """What has to be looked at, with its histograms; and what can be done about a held run."""
    gates = [gate for gate in by_need(report.gates) if gate.level != "passed"]
    if not gates:
        return ""
    panels = "\n".join(_gate_panel(report, gate, baseline) for gate in gates)
    what_next = ""
    if state == "held":
        release, discard = (text(typed(options, what, report.attempt)) for what in ("release", "discard"))
        what_next = (
            f"<pre>{release}   # publish it, on your word\n{discard}   # drop it; what is in service stays</pre>"
        )
    return f"<h2>What did not pass</h2>\n{panels}\n{what_next}"


def _gate_panel(report: Report, gate: Gate, baseline: Baseline | None) -> str:
    level = gate.level
    columns = column_of(report, gate, baseline)
    drawn = chart(gate.column, columns) if columns else ""
    return (
        f'<section class="panel {level}"><h3>{text(gate.name)}</h3>\n'
        f'<p><b class="state {level}">{verdict(gate)}</b> {text(gate.says, 2000)}</p>\n{drawn}</section>'
    )


def _rows(report: Report) -> str:
    if not report.rows_in:
        return ""
    counts = facts(
        [
            ("rows in", f"{report.rows_in:,}"),
            ("predictions", f"{report.predictions:,}"),
            ("rejects", f"{report.rejects:,} ({report.rejects / report.rows_in:.2%})"),
            ("of which no gate counts", f"{report.uncounted_rejects:,}" if report.uncounted_rejects else ""),
            ("rejects are in", f"<code>{text(report.rejects_file)}</code>" if report.rejects_file else ""),
        ]
    )
    if not report.reasons:
        return f"<h2>Rows</h2>\n{counts}"
    rows = [(f"{count:,}", text(reason)) for reason, count in list(report.reasons.items())[:SHOWN]]
    if len(report.reasons) > SHOWN:
        rows.append((f"{sum(list(report.reasons.values())[SHOWN:]):,}", '<span class="soft">other reasons</span>'))
    return f"<h2>Rows</h2>\n{counts}\n{table(('rejects', 'reason'), rows)}"


def _gates(gates: Sequence[Gate]) -> str:
    return f"<h2>Gates</h2>\n{gates_table(gates)}" if gates else ""


def _columns(title: str, report: Report, side: str, baseline: Baseline | None) -> str:
    """A panel for each column, those of the run first, then those that only the baseline has."""
    profile = report.profile if side == "output" else report.inputs_profile
    others = (baseline.outputs if side == "output" else baseline.inputs) if baseline else {}
    if not profile:
        return ""
    names = [THIS_RUN, baseline.name] if baseline and others else [THIS_RUN]
    panels = [column_panel(n, two_columns(c, others.get(n), names)) for n, c in profile.items()]
    gone = [n for n in others if n not in profile]
    note = f"<p>Only {text(names[-1])} has {', '.join(f'<code>{text(n)}</code>' for n in gone)}.</p>\n" if gone else ""
    held_against = (
        f'<p class="soft">{text(names[0])}, over {text(names[1])} of {baseline.data_date}</p>\n'
        if others and baseline
        else ""
    )
    return f"<h2>{title}</h2>\n{held_against}{note}" + "\n".join(panels)


def _times(report: Report) -> str:
    if not report.seconds:
        return ""
    rows = [(text(stage), f"{seconds:.2f} s") for stage, seconds in report.seconds.items()]
    shown = table(("stage", "time"), rows, [1])
    if report.worker_seconds:
        rows = [(text(what), f"{seconds:.2f} s") for what, seconds in report.worker_seconds.items()]
        workers = f"in {report.workers} worker{'s' if report.workers > 1 else ''}"
        resumed = f", {report.resumed_tasks} of them taken over from an earlier attempt" if report.resumed_tasks else ""
        shown += (
            f'\n<p class="soft">{report.tasks} tasks{resumed}</p>\n{table((workers, "time, all together"), rows, [1])}'
        )
    return f"<h2>Time</h2>\n{shown}"


def _parts(report: Report) -> str:
    if not report.parts:
        return ""
    rows = [
        (f"<code>{text(Path(p.path).name)}</code>", f"{p.rows:,}", f"{p.size:,}", f"<code>{text(p.sha256[:12])}</code>")
        for p in report.parts
    ]
    return f"<h2>Parts</h2>\n{table(('file', 'rows', 'bytes', 'SHA-256'), rows, [1, 2])}"


def _history(history: Sequence[Transition]) -> str:
    if not history:
        return ""
    rows = [(f"{t.at:%Y-%m-%d %H:%M:%S}", text(t.after), text(t.who), text(t.reason, 2000)) for t in history]
    return f"<h2>History</h2>\n{table(('UTC', 'state', 'by', 'why'), rows)}"
