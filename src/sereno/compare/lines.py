"""What the terminal shows of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sereno.batch.profile import ColumnProfile
from sereno.compare.comparison import ColumnComparison, Comparison
from sereno.foreign import harmless
from sereno.histograms import number
from sereno.lines import table_lines
from sereno.show import by_need, gate_lines, histogram_lines

CHANGES = 8
MOST = 5
REASONS = 8


def comparison_lines(found: Comparison) -> Iterator[str]:
    """Rows side by side, gates that would not pass, then column by column what differs."""
    challenger, against = found.challenger, found.against
    yield f"{harmless(Path(found.file).name)} beside version {against.version} of {against.name}, data date {challenger.data_date}"
    if challenger.data_date != against.data_date:
        yield f"  version {against.version} is of another data date: {against.data_date}"
    yield ""
    yield from (f"  {line}" for line in _counts(found))
    yield ""
    yield f"  {_verdict(found)}"
    for called, keys, names in (
        (challenger.called, found.only_challenger, found.some_only_challenger),
        (against.called, found.only_against, found.some_only_against),
    ):
        if keys:
            some = "; ".join(key_text(found.keys, key) for key in names)
            yield f"  Only {called} has {keys:,} key{'s' if keys > 1 else ''}: {some}{' …' if keys > len(names) else ''}"
    for called, names_ in (
        (challenger.called, found.outputs_only_challenger),
        (against.called, found.outputs_only_against),
    ):
        if names_:
            yield f"  Only {called} has the output{'s' if len(names_) > 1 else ''} {', '.join(map(harmless, names_))}"
    yield "Gates, were it a run"
    for gate in by_need(found.gates):
        pair = _pair(found, gate.side, gate.column)
        yield from gate_lines(gate, pair)
    for column in found.columns:
        yield from column_lines(found, column)
    yield "Time"
    yield "  " + "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in found.seconds.items())


def _counts(found: Comparison) -> Iterator[str]:
    sides = (found.challenger, found.against)
    rows = [("", *(s.called for s in sides))]
    rows += [
        (what, *(f"{count:,}" for count in counts))
        for what, counts in (
            ("rows in", [s.rows_in for s in sides]),
            ("predictions", [s.predictions for s in sides]),
            ("rejects", [s.rejects for s in sides]),
        )
    ]
    reasons = list(dict.fromkeys(reason for s in sides for reason in s.reasons))
    rows += [
        (f"  {harmless(reason, 60)}", *(f"{s.reasons.get(reason, 0):,}" for s in sides)) for reason in reasons[:REASONS]
    ]
    yield from table_lines(rows)


def _verdict(found: Comparison) -> str:
    if found.same:
        return f"The same: {found.both:,} keys, and every prediction agrees to {found.tolerance:g} of its size."
    share = found.differ / found.both if found.both else 0.0
    return (
        f"Of {found.both:,} keys that both have, {found.differ:,} ({share:.1%}) get another prediction "
        f"(floats: by more than {found.tolerance:g} of their size)."
    )


def column_lines(found: Comparison, column: ColumnComparison) -> Iterator[str]:
    """One output: what differs, the two histograms, and the keys that differ most."""
    name = harmless(column.name)
    if column.how == "types":
        yield f"{name}: not compared, it is {column.types[1]} in the challenger and {column.types[0]} in the snapshot"
        return
    stability = "" if column.psi is None else f", PSI {column.psi:.3f}"
    if not column.differ:
        yield f"{name}: the same{stability}"
        return
    nulls = f", {column.nulls:,} of them null in one of the two" if column.nulls else ""
    yield f"{name}: {column.differ:,} differ ({column.share:.1%}){nulls}{stability}"
    if column.sizes is not None:
        yield (
            f"  challenger − {found.against.called}: mean {number(column.mean)}; size: mean {number(column.mean_size)}, median "
            f"{number(column.median_size)}, greatest {number(column.greatest_size)}"
        )
    yield from (f"  {line}" for line in histogram_lines(_pair(found, "output", column.name)))
    if column.changes:
        yield "  changes"
        for before, now, rows in column.changes[:CHANGES]:
            yield f"    {rows:>9,}  {value_text(before)} → {value_text(now)}"
        rest = column.more_changes + sum(rows for _, _, rows in column.changes[CHANGES:])
        if rest:
            yield f"    {rest:>9,}  others"
    if column.most and not column.changes:
        yield "  the keys that differ most" if column.how == "numbers" else "  some of the keys"
        rows_ = [("", found.against.called, "challenger")]
        rows_ += [
            (key_text(found.keys, pair.key), value_text(pair.before), value_text(pair.now))
            for pair in column.most[:MOST]
        ]
        yield from (f"    {line}" for line in table_lines(rows_))


def _pair(found: Comparison, side: str, name: str) -> list[tuple[ColumnProfile, str]]:
    return [(column, called) for column, called in both_sides(found, side, name) if column is not None]


def both_sides(found: Comparison, side: str, name: str) -> list[tuple[ColumnProfile | None, str]]:
    """A column in the challenger and in the snapshot, as each is called."""
    sides = (found.challenger, found.against)
    return [((s.inputs if side == "input" else s.outputs).get(name), s.called) for s in sides]


def key_text(names: Sequence[str], key: Sequence[Any]) -> str:
    return ", ".join(f"{harmless(name)} {harmless(str(value), 60)}" for name, value in zip(names, key, strict=True))


def value_text(value: Any) -> str:
    """A value as it differs: of floats every digit that tells them apart."""
    return "null" if value is None else harmless(repr(value) if isinstance(value, float) else str(value), 60)
