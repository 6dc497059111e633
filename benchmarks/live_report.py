"""What was measured over HTTP, as tables; and what is to be reached, beside what was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.report import Run, markdown

HIGHER: tuple[str, ...] = ("rate",)  # of these, more is better


def table(runs: list[Run]) -> str:
    """Medians over the rounds, for every number of connections, most requests first."""
    return "\n\n".join(_table_of(runs, count) for count in sorted({run["connections"] for run in runs}))


def _table_of(runs: list[Run], connections: int) -> str:
    here = [run for run in runs if run["connections"] == connections]
    heads = [f"{connections} connection{'s' * (connections > 1)}", "req/s (min–max)", "× limit", "× best by hand"]
    heads += [
        "p50 ms",
        "p99 ms",
        "p99 / p50",
        "CPU µs each",
        "of it worker",
        "worker RSS MB",
        "worker PSS MB",
        "all PSS MB",
        "start s",
    ]
    heads += ["not answered", "wrk cores", "load", "rounds"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    middle = {name: _medians([run for run in here if run["name"] == name]) for name in {run["name"] for run in here}}
    for name in sorted(middle, key=lambda name: -middle[name]["rate"]):
        its, kind = middle[name], next(run["kind"] for run in here if run["name"] == name)
        rates = [run["rate"] for run in here if run["name"] == name]
        against = [ratio(here, connections, "rate", name, kind) for kind in ("limit", "by hand")]
        cells = [f"{name} ({kind})" if kind in ("limit", "by hand") else name]
        cells += [f"{its['rate']:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"]
        cells += ["–" if one is None else f"{one:.2f}" for one in against]
        cells += [f"{its['p50_ms']:.3g}", f"{its['p99_ms']:.3g}", f"{its['p99_ms'] / its['p50_ms']:.1f}"]
        cells += [
            f"{its['cpu_us']:.1f}",
            f"{its['worker_cpu_us']:.1f}",
            f"{its['worker_rss_mb']:.0f}",
            f"{its['worker_pss_mb']:.0f}",
        ]
        cells += [f"{its['pss_mb']:.0f}", f"{its['start']:.2f}"]
        cells += [f"{sum(run['refused'] + run['broken'] for run in here if run['name'] == name)}"]
        lines.append([*cells, f"{its['wrk_cores']:.2f}", f"{its['load']:.1f}", str(len(rates))])
    return markdown(lines)


def _medians(runs: list[Run]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0] if key not in ("name", "kind")}


def ratio(runs: Iterable[Run], connections: int, figure: str, name: str, against: str) -> float | None:
    """By how much a figure of `name` is that of `against` (a name, or the best of a kind): the median over the rounds.

    Round by round, because the machine is not as fast in one as in another.
    """
    here = [run for run in runs if run["connections"] == connections]
    best = max if figure in HIGHER else min
    found = []
    for number in {run["round"] for run in here}:
        its = [run[figure] for run in here if run["round"] == number and run["name"] == name]
        others = [run[figure] for run in here if run["round"] == number and against in (run["name"], run["kind"])]
        if its and others:
            found.append(its[0] / best(others))
    return statistics.median(found) if found else None


def _median(runs: Iterable[Run], connections: int, name: str, figure: Callable[[Run], float]) -> float | None:
    found = [figure(run) for run in runs if run["name"] == name and run["connections"] == connections]
    return statistics.median(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Target:
    part: str
    what: str
    least: float | None = None
    most: float | None = None
    measured: Callable[[list[Run]], float | None]


def _times(
    part: str, what: str, connections: int, name: str, against: str, figure: str = "rate", **bound: float
) -> Target:
    return Target(part=part, what=what, measured=lambda runs: ratio(runs, connections, figure, name, against), **bound)


def _tail(connections: int) -> Target:
    return Target(
        part="peers",
        what=f"p99 / p50 at {connections}",
        most=4,
        measured=lambda runs: _median(runs, connections, "sereno", lambda run: run["p99_ms"] / run["p50_ms"]),
    )


def _kept(name: str, what: str) -> Target:
    return Target(
        part="log", what=what, least=1, measured=lambda runs: _median(runs, 64, name, lambda run: run.get("kept", 0.0))
    )


TARGETS = [
    _times("peers", "requests/s at 16 connections, × limit", 16, "sereno", "limit", least=0.7),
    _times("peers", "requests/s at 64 connections, × limit", 64, "sereno", "limit", least=0.7),
    _times("peers", "requests/s at 16 connections, × best by hand", 16, "sereno", "by hand", least=8),
    _times("peers", "requests/s at 64 connections, × best by hand", 64, "sereno", "by hand", least=8),
    _times("peers", "requests/s at 64 connections, × best framework", 64, "sereno", "framework", least=1),
    _times("peers", "requests/s at 1 connection, × best framework", 1, "sereno", "framework", least=1),
    Target(
        part="peers",
        what="p50 at 1 connection, ms",
        most=0.14,
        measured=lambda runs: _median(runs, 1, "sereno", lambda run: run["p50_ms"]),
    ),
    _times(
        "peers",
        "p50 at 1 connection, × limit (0.14 ms where the limit takes 0.10)",
        1,
        "sereno",
        "limit",
        "p50_ms",
        most=1.4,
    ),
    *map(_tail, (1, 16, 64)),
    _times(
        "frame", "`predict` on pandas, 64 connections, × FastAPI and pandas by hand", 64, "sereno", "by hand", least=5
    ),
    _times("log", "`log = sync` at 64 connections, × `async`", 64, "sereno-sync", "sereno", least=0.3),
    _kept("sereno", "`log = async`: answers in the log afterwards, × answered"),
    _kept("sereno-sync", "`log = sync`: answers in the log afterwards, × answered"),
    _times(
        "start", "exec to first right answer, × FastAPI and numpy by hand", 16, "sereno", "by hand", "start", most=1.15
    ),
    _times("start", "worker RSS, × FastAPI and numpy by hand", 16, "sereno", "by hand", "worker_rss_mb", most=1.15),
    _times("start", "worker PSS, × FastAPI and numpy by hand", 16, "sereno", "by hand", "worker_pss_mb", most=1.15),
    _times("workers", "2 workers on 2 cores, × 1 worker", 32, "2 workers", "1 worker", least=1.7),
]


def targets_table(runs: dict[str, list[Run]]) -> str:
    """What is to be reached beside what was; targets that nothing was measured for are left out."""
    lines = [["what", "to reach", "measured", ""], ["---", "---:", "---:", "---"]]
    for target in TARGETS:
        measured = target.measured(runs.get(target.part, []))
        if measured is None:
            continue
        bound = f"≥ {target.least:g}" if target.least is not None else f"≤ {target.most:g}"
        reached = measured >= (target.least or 0) and (target.most is None or measured <= target.most)
        lines.append([target.what, bound, f"{measured:.3g}", "reached" if reached else "**missed**"])
    return markdown(lines)
