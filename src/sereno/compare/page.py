"""The page of a comparison: the same as in the terminal, with every column of both over each other."""

from __future__ import annotations

from datetime import UTC, datetime

from sereno import __version__
from sereno.compare.comparison import ColumnComparison, Comparison
from sereno.compare.lines import both_sides, key_text, value_text
from sereno.histograms import number
from sereno.page_parts import chart, column_table, document, facts, gates_table, percent, table, text

REASONS = 50


def comparison_page(found: Comparison) -> str:
    """The comparison as one HTML file that needs nothing beside it."""
    title = f"{found.challenger.name} beside version {found.against.version} of {found.against.name}"
    parts = [
        _head(found, title),
        f"<h2>Gates, were it a run</h2>\n{gates_table(found.gates)}",
        _columns(found),
        _inputs(found),
        _times(found),
    ]
    foot = f"Sereno {text(__version__)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Nothing was published."
    return document(f"{title}, {found.challenger.data_date}", "\n".join(p for p in parts if p), foot)


def _head(found: Comparison, title: str) -> str:
    sides = (found.challenger, found.against)
    rows = [
        ("data date", *(str(s.data_date) for s in sides)),
        ("model", *(f"{text(s.name)} <code>{text(s.fingerprint[:12])}</code>" for s in sides)),
        ("rows in", *(f"{s.rows_in:,}" for s in sides)),
        ("predictions", *(f"{s.predictions:,}" for s in sides)),
        ("rejects", *(f"{s.rejects:,}" for s in sides)),
    ]
    reasons = list(dict.fromkeys(reason for s in sides for reason in s.reasons))[:REASONS]
    rows += [(f"— {text(reason)}", *(f"{s.reasons.get(reason, 0):,}" for s in sides)) for reason in reasons]
    share = percent(found.differ / found.both) if found.both else "0%"
    keys = [
        ("file", f"<code>{text(found.file)}</code>"),
        ("source", f"<code>{text(found.source)}</code>"),
        ("keys that both have", f"{found.both:,}"),
        ("of which differ", f"{found.differ:,} ({share})"),
        ("tolerance", f"{found.tolerance:g} of the size, of floats"),
        *(
            (f"keys that only {side.called} has", f"{count:,}: {text(_keys(found, some))}" if count else "")
            for side, count, some in (
                (found.challenger, found.only_challenger, found.some_only_challenger),
                (found.against, found.only_against, found.some_only_against),
            )
        ),
        *(
            (f"outputs that only {side.called} has", ", ".join(f"<code>{text(n)}</code>" for n in names))
            for side, names in (
                (found.challenger, found.outputs_only_challenger),
                (found.against, found.outputs_only_against),
            )
        ),
    ]
    word = "the same" if found.same else f"{share} differ"
    return (
        f"<h1>{text(title)}</h1>\n<p><b>{word}</b></p>\n{facts(keys)}\n<h2>Rows</h2>\n"
        f"{table(('', *(text(s.called) for s in sides)), rows, (1, 2))}"
    )


def _keys(found: Comparison, some: tuple[tuple[object, ...], ...]) -> str:
    return "; ".join(key_text(found.keys, key) for key in some)


def _columns(found: Comparison) -> str:
    """Those that differ most come first."""
    panels = [_column(found, c) for c in sorted(found.columns, key=lambda c: -c.share)]
    others = [*found.outputs_only_challenger, *found.outputs_only_against]
    panels += [_panel(found, "output", name, "") for name in others]
    return "<h2>Predictions</h2>\n" + "\n".join(panels)


def _column(found: Comparison, column: ColumnComparison) -> str:
    if column.how == "types":
        types = f"{column.types[1]} in the challenger, {column.types[0]} in the snapshot"
        return _panel(found, "output", column.name, f"<p>Not compared: it is {text(types)}.</p>")
    rows = [
        ("differ", f"{column.differ:,} of {column.rows:,} ({percent(column.share)})"),
        ("null in one of the two", f"{column.nulls:,}" if column.nulls else ""),
        ("PSI", "" if column.psi is None else f"{column.psi:.3f}"),
    ]
    if column.sizes is not None:
        rows += [
            (f"mean of challenger − {found.against.called}", number(column.mean)),
            ("mean size of the differences", number(column.mean_size)),
            ("median size", number(column.median_size)),
            ("greatest size", number(column.greatest_size)),
        ]
    shown = facts(rows)
    if column.changes:
        changes = [(f"{n:,}", text(value_text(a)), text(value_text(b))) for a, b, n in column.changes]
        if column.more_changes:
            changes.append((f"{column.more_changes:,}", '<span class="soft">others</span>', ""))
        shown += f"\n{table(('rows', found.against.called, 'challenger'), changes, (0,))}"
    if column.most:
        most = [
            (text(key_text(found.keys, p.key)), text(value_text(p.before)), text(value_text(p.now)))
            for p in column.most
        ]
        head = "keys that differ most" if column.how == "numbers" else "some of the keys"
        shown += f"\n{table((head, found.against.called, 'challenger'), most, (1, 2))}"
    return _panel(found, "output", column.name, shown)


def _inputs(found: Comparison) -> str:
    names = list(dict.fromkeys((*found.challenger.inputs, *found.against.inputs)))
    if not names:
        return ""
    return "<h2>Inputs</h2>\n" + "\n".join(_panel(found, "input", name, "") for name in names)


def _panel(found: Comparison, side: str, name: str, shown: str) -> str:
    columns = [(column, called) for column, called in both_sides(found, side, name) if column is not None]
    return f'<section class="panel"><h3>{text(name)}</h3>\n{chart(name, columns)}\n{shown}\n{column_table(columns)}</section>'


def _times(found: Comparison) -> str:
    rows = [(text(stage), f"{seconds:.2f} s") for stage, seconds in found.seconds.items()]
    return f"<h2>Time</h2>\n{table(('stage', 'time'), rows, (1,))}"
