"""What pages of reports are made of: one HTML file that needs nothing beside it, no network and no script.

Every text goes through `text`, for names of columns, categories and reasons come from data. The page also forbids the
browser, in its own head, to load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from sereno.batch.gates import Gate
from sereno.batch.profile import ColumnProfile
from sereno.foreign import harmless
from sereno.histograms import Bars, bars_of, number
from sereno.show import by_need, verdict

BARS = 40
CATEGORIES = 20
CHART_WIDTH, CHART_HEIGHT = 640, 150  # of the drawing's own units
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1c2024; --soft: #60646c; --line: #d9d9e0; --now: #3e63dd;
  --before: #b4552d; --bad: #b91c1c; --warn: #8a5a00; --good: #18794e; --panel: #f6f6f9; }
@media (prefers-color-scheme: dark) { :root { --back: #111113; --fore: #edeef0; --soft: #b0b4ba; --line: #363a3f;
  --now: #5b7bf0; --before: #f0a070; --bad: #ff9592; --warn: #ffca16; --good: #3dd68c; --panel: #18191b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--fore);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; font-family: ui-monospace, monospace; }
p { margin: .5rem 0; max-width: 48rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
pre { margin: .5rem 0; padding: .5rem .75rem; background: var(--panel); border-radius: 6px; white-space: pre-wrap; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; max-width: 100%; margin: .5rem 0; overflow-wrap: normal; }
th, td { padding: .2rem .75rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 500; }
td.n, th.n { text-align: right; white-space: nowrap; }
.bar { width: 40%; min-width: 8rem; }
.panel { margin: 1rem 0; padding: .75rem 1rem; background: var(--panel); border-radius: 8px; break-inside: avoid; }
.panel.held { border-left: 4px solid var(--bad); }
.panel.warned { border-left: 4px solid var(--warn); }
.held, .failed, .interrupted { color: var(--bad); }
.panel.held, .panel.warned { color: inherit; }
.warned, .running { color: var(--warn); }
.passed, .published { color: var(--good); }
b.state { text-transform: uppercase; letter-spacing: .03em; font-size: .85em; }
svg { display: block; width: 100%; height: auto; }
svg.line { height: 14px; }
.soft { color: var(--soft); }
.now { fill: var(--now); }
.before { fill: none; stroke: var(--before); stroke-width: 2; }
.mark { fill: var(--before); }
.axis { stroke: var(--line); }
.ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; background: var(--now); }
.key.outline { background: none; border: 2px solid var(--before); }
footer { margin-top: 3rem; font-size: .85rem; color: var(--soft); }
@media print { :root { color-scheme: light; --back: #fff; --fore: #000; --soft: #444; --line: #bbb; --now: #6f8be8;
  --before: #a03d10; --bad: #a00; --warn: #740; --good: #063; --panel: #fff; }
  body { font-size: 11pt; max-width: none; padding: 0; } .panel { border: 1px solid var(--line); }
  .now, .mark, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
# Nothing may be loaded, run, sent or framed; the one style sheet is known by its hash.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def text(value: object, most: int = 200) -> str:
    """Anything as text of a page: escaped, in one line, with nothing in it that turns the direction of writing."""
    return escape(harmless(str(value), most))


def paragraphs(value: str) -> str:
    """A message of several lines."""
    return "".join(f"<p>{text(line, 2000)}</p>\n" for line in value.splitlines() if line.strip())


def document(title: str, body: str, foot: str) -> str:
    """A whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<footer>{foot}</footer>
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns at `numbers` are set to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag}{" class=n" if i in numbers else ""}>{cell}</{tag}>' for i, cell in enumerate(row)
        )  # fmt: skip

    top = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>\n{lines}\n</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values; those without a value are left out. Values are HTML already."""
    return table((), [(f'<span class="soft">{text(name)}</span>', value) for name, value in pairs if value])


def gates_table(gates: Iterable[Gate]) -> str:
    """Every gate with its verdict, what held the run first."""
    rows = [(f'<b class="state {g.level}">{verdict(g)}</b>', text(g.name), text(g.says, 2000)) for g in by_need(gates)]
    return table((), rows)


def percent(share: float) -> str:
    """A share as people read it: 12.3%, and never 0% of what is there."""
    return "0%" if not share else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def legend(names: Sequence[str]) -> str:
    """Which histogram is whose, where there are two."""
    if len(names) < 2:
        return ""
    return f'<p class="soft"><span class="key"></span>{text(names[0])}<span class="key outline"></span>{text(names[1])}</p>'


Named = Sequence[tuple[ColumnProfile, str]]  # one column in one profile or two, with what each is called


def two_columns(now: ColumnProfile | None, before: ColumnProfile | None, names: Sequence[str]) -> Named:
    """One column of two profiles; without those that do not have it."""
    return [(c, n) for c, n in zip((now, before), names, strict=False) if c is not None]


def column_panel(name: str, columns: Named, note: str = "") -> str:
    """One column: its histogram, over that of the other profile where there is one, and its numbers beside each other."""
    drawn = chart(name, columns)
    return f'<section class="panel"><h3>{text(name)}</h3>\n{note}{drawn}\n{column_table(columns)}</section>'


def chart(name: str, columns: Named) -> str:
    """The histograms of a column over the same bars; empty where it has none."""
    profiles, names = [c for c, _ in columns], [n for _, n in columns]
    bars = bars_of(profiles, BARS if any(c.bins for c in profiles) else CATEGORIES)
    if bars is None:
        return ""
    drawn = _numbers_chart(name, bars, names) if bars.edges else _categories_chart(bars, names)
    return legend(names) + drawn


def _numbers_chart(name: str, bars: Bars, names: Sequence[str]) -> str:
    most, count = bars.most or 1.0, len(bars.labels)
    width = CHART_WIDTH / count

    def top(share: float) -> float:
        return CHART_HEIGHT * (1 - share / most)

    told = [
        f"{label}: " + ", ".join(f"{percent(shares[i])} of {n}" for n, shares in zip(names, bars.shares, strict=True))
        for i, label in enumerate(bars.labels)
    ]
    parts = [
        f'<rect class="now" x="{i * width:.2f}" y="{top(share):.2f}" width="{max(width - 1, 1):.2f}" '
        f'height="{CHART_HEIGHT - top(share):.2f}"/>'
        for i, share in enumerate(bars.shares[0])
        if share
    ]
    for shares in bars.shares[1:]:
        steps = "".join(f"V{top(share):.2f}H{(i + 1) * width:.2f}" for i, share in enumerate(shares))
        parts.append(f'<path class="before" d="M0 {CHART_HEIGHT}{steps}V{CHART_HEIGHT}"/>')
    # what the pointer finds: the whole height of a bar, however small the bar
    parts += [
        f'<rect x="{i * width:.2f}" y="0" width="{width:.2f}" height="{CHART_HEIGHT}" fill="transparent">'
        f"<title>{text(line)}</title></rect>"
        for i, line in enumerate(told)
    ]
    ends = f'<div class="ends"><span>{text(bars.ends[0])}</span><span>{text(bars.ends[1])}</span></div>'
    peak = max(range(count), key=lambda i: bars.shares[0][i])
    label = f"Histogram of {name}: most of {names[0]} is at {bars.labels[peak]}"
    return (
        f'<svg role="img" aria-label="{text(label)}" viewBox="0 -4 {CHART_WIDTH} {CHART_HEIGHT + 6}">'
        f'<line class="axis" x1="0" x2="{CHART_WIDTH}" y1="{CHART_HEIGHT}" y2="{CHART_HEIGHT}"/>'
        f"{''.join(parts)}</svg>{ends}"
    )


def _categories_chart(bars: Bars, names: Sequence[str]) -> str:
    most = bars.most or 1.0

    def line(shares: Sequence[float]) -> str:
        bar = f'<rect class="now" x="0" y="1" height="12" width="{100 * shares[0] / most:.2f}%"/>'
        if len(shares) > 1:
            at = min(100 * shares[1] / most, 99.4)
            bar += f'<rect class="mark" x="{at:.2f}%" y="0" height="14" width="3"/>'
        return f'<svg class="line" aria-hidden="true">{bar}</svg>'

    rows = []
    for i, label in enumerate(bars.labels):
        shares = [s[i] for s in bars.shares]
        rows.append((text(label), *(percent(s) for s in shares), line(shares)))
    cells = "".join(
        f"<tr><td>{row[0]}</td>"
        + "".join(f'<td class="n">{cell}</td>' for cell in row[1:-1])
        + f'<td class="bar">{row[-1]}</td></tr>'
        for row in rows
    )
    head = "<th></th>" + "".join(f'<th class="n">{text(n)}</th>' for n in names) + "<th></th>"
    return f'<div class="wide"><table width="100%"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def column_table(columns: Named) -> str:
    """The numbers of a column, of each profile beside the other's."""
    rows = [[label, *values] for label, *values in _rows_of([c for c, _ in columns]) if any(v for v in values)]
    return table(("", *(text(n) for _, n in columns)), rows, range(1, len(columns) + 1))


def _rows_of(columns: Sequence[ColumnProfile]) -> Iterator[list[str]]:
    yield ["rows", *(f"{c.rows:,}" for c in columns)]
    yield ["nulls", *(f"{c.nulls:,} ({percent(c.nulls / c.rows)})" if c.rows and c.nulls else "0" for c in columns)]
    yield ["different values", *(_distinct(c) for c in columns)]
    yield ["least", *("" if c.least is None else text(number(c.least)) for c in columns)]
    if any(c.bins for c in columns):
        for share in QUANTILES:
            found = [c.quantile(share) for c in columns]
            yield [f"{share:.0%} are below", *("" if q is None else text(number(q)) for q in found)]
    yield ["greatest", *("" if c.greatest is None else text(number(c.greatest)) for c in columns)]
    yield ["mean", *("" if c.mean is None else text(number(float(c.mean))) for c in columns)]


def _distinct(column: ColumnProfile) -> str:
    if column.distinct is None:
        return ""
    if column.distinct_of < column.rows:
        return f"≈ {min(column.distinct, column.distinct_of):,} in {column.distinct_of:,}"
    return f"≈ {column.distinct:,}"
