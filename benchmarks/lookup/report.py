"""What was measured of lookups, as tables; and what is to be reached, beside what was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.live_report import ratio
from benchmarks.report import Run, markdown

BUSY = 64  # connections: where targets are
COMPARED = {"limit": "× limit", "fastapi-sqlite": "× FastAPI + SQLite", "feast": "× best Feast"}  # names, or kinds
Runs = dict[str, list[Run]]


def tables(runs: Runs) -> dict[str, str]:
    """By title."""
    told = {}
    peers = runs.get("peers", [])
    for keys in sorted({run["keys"] for run in peers}):
        here = [run for run in peers if run["keys"] == keys]
        told[f"peers: {keys:,} keys, one a request, uniformly random"] = "\n\n".join(
            _peers([run for run in here if run["connections"] == count])
            for count in sorted({run["connections"] for run in here})
        )
    if build := runs.get("build"):
        told[f"build: the index of {build[0]['rows']:,} rows"] = _build(build)
    if swap := runs.get("swap"):
        told[f"swap: from a commit to answers, {swap[0]['keys']:,} keys, 2 workers, 1,000 lookups/s"] = _swaps(swap)
    if any(target.measured(runs) is not None for target in TARGETS):
        told["Targets"] = _targets(runs)
    return told


def _peers(runs: list[Run]) -> str:
    connections, names = runs[0]["connections"], {run["name"]: run["kind"] for run in runs}
    middle = {name: _medians([run for run in runs if run["name"] == name]) for name in names}
    heads = [f"{connections} connection{'s' * (connections > 1)}", "req/s (min–max)", *COMPARED.values()]
    heads += ["p50 ms", "p99 ms", "CPU µs each", "largest RSS MB", "all PSS MB"]
    heads += ["not answered", "load's cores", "load", "rounds"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name in sorted(middle, key=lambda name: -middle[name]["rate"]):
        its, rounds = middle[name], [run for run in runs if run["name"] == name]
        rates = [run["rate"] for run in rounds]
        against = [ratio(runs, connections, "rate", name, other) for other in COMPARED]
        cells = [f"{name} ({names[name]})" if names[name] in ("limit", "bound") else name]
        cells += [f"{its['rate']:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"]
        cells += ["–" if one is None else f"{one:.2f}" for one in against]
        cells += [f"{its['p50_ms']:.3g}", f"{its['p99_ms']:.3g}", f"{its['cpu_us']:.1f}"]
        cells += [f"{its['worker_rss_mb']:.0f}", f"{its['pss_mb']:.0f}"]
        cells += [f"{sum(run['refused'] + run['broken'] for run in rounds)}", f"{its['wrk_cores']:.2f}"]
        lines.append([*cells, f"{its['load']:.1f}", str(len(rates))])
    return markdown(lines)


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0] if key not in ("name", "kind")}


def _build(runs: list[Run]) -> str:
    heads = [
        "",
        "seconds (min–max)",
        "million rows/s",
        "CPU s",
        "peak RSS MB",
        "of it anonymous MB",
        "peak PSS MB",
        "load",
    ]
    lines = [[*heads, "rounds"], ["---"] + ["---:"] * len(heads)]
    for name in dict.fromkeys(run["name"] for run in runs):
        rounds = [run for run in runs if run["name"] == name]
        its, seconds = _medians([_numbers(run) for run in rounds]), [run["seconds"] for run in rounds]
        cells = [name, f"{its['seconds']:.3g} ({min(seconds):.3g}–{max(seconds):.3g})"]
        cells += [f"{its['rows'] / its['seconds'] / 1e6:.3g}", f"{its['cpu_seconds']:.3g}"]
        cells += [f"{its[key]:.0f}" if its[key] else "–" for key in ("rss_mb", "anonymous_mb", "pss_mb")]
        lines.append([*cells, f"{its['load']:.1f}", str(len(rounds))])
    return markdown(lines)


def _numbers(run: Run) -> Run:
    return {key: value for key, value in run.items() if not isinstance(value, str)}


def _swaps(runs: list[Run]) -> str:
    heads = ["", "commit → index served, s", "→ every worker answers, s", "both, s"]
    heads += ["slowest answer in the swap, ms", "from the start of the command, ms", "not answered", "times"]
    lines = [[*heads], ["---"] + ["---:"] * (len(heads) - 1)]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        here = [run for run in runs if run["kind"] == kind]
        cells = [kind]
        for figure in ("until_served", "until_answered", "in_all", "slowest_ms", "slowest_in_all_ms"):
            values = [run[figure] for run in here]
            cells.append(f"{statistics.median(values):.3g} (most {max(values):.3g})")
        lines.append([*cells, str(sum(run["not_answered"] for run in here)), str(len(here))])
    one = runs[0]
    told = f"Before, while nothing was published: p50 {one['calm_p50_ms']:.2f} ms, p99 {one['calm_p99_ms']:.2f} ms,"
    told += (
        f" slowest {one['calm_most_ms']:.2f} ms, of it at most {one['calm_late_ms']:.2f} ms the asking program's own;"
    )
    return f"{markdown(lines)}\n\n{told} load of the machine {one['load']:.1f}."


@dataclass(frozen=True, kw_only=True)
class Target:
    what: str
    least: float | None = None
    most: float | None = None
    measured: Callable[[Runs], float | None]


def _of_peers(runs: Runs, which: Callable[[Sequence[int]], int] = min) -> list[Run]:
    """Of the fewest keys that were measured, or the most."""
    peers = runs.get("peers", [])
    return [run for run in peers if run["keys"] == which([run["keys"] for run in peers])]


def _times(what: str, against: str, least: float, of: str = "sereno") -> Target:
    return Target(what=what, least=least, measured=lambda runs: ratio(_of_peers(runs), BUSY, "rate", of, against))


def _of_sereno(runs: Runs, figure: str) -> float | None:
    found = [run[figure] for run in _of_peers(runs) if run["name"] == "sereno" and run["connections"] == BUSY]
    return statistics.median(found) if found else None


def growth(runs: Sequence[Run], connections: int, name: str) -> float | None:
    """By how much the p50 of the most keys is that of the fewest: the median over the rounds."""
    here = [run for run in runs if run["name"] == name and run["connections"] == connections]
    keys = sorted({run["keys"] for run in here})
    if len(keys) < 2:
        return None
    p50 = {(run["keys"], run["round"]): run["p50_ms"] for run in here}
    both = [number for few, number in p50 if few == keys[0] and (keys[-1], number) in p50]
    return statistics.median(p50[keys[-1], number] / p50[keys[0], number] for number in both)


def _of_build(runs: Runs, order: str, figure: Callable[[Run], float]) -> float | None:
    found = [figure(run) for run in runs.get("build", []) if run["name"] == f"index, {order} keys"]
    return statistics.median(found) if found else None


def _worst_swap(runs: Runs, figure: str, kind: str = "") -> float | None:
    return max((run[figure] for run in runs.get("swap", []) if kind in run["kind"]), default=None)


def _build_targets(order: str) -> list[Target]:
    def rate(runs: Runs) -> float | None:
        return _of_build(runs, order, lambda run: run["rows"] / run["seconds"] / 1e6)

    def memory(runs: Runs) -> float | None:
        return _of_build(runs, order, lambda run: run["rss_mb"])

    return [
        Target(what=f"build, {order} keys, million rows/s", least=0.7, measured=rate),
        Target(what=f"build, {order} keys, peak RSS, MB", most=500, measured=memory),
    ]


TARGETS = [
    _times("requests/s at 64 connections, × limit", "limit", 0.75),
    _times("requests/s at 64 connections, × FastAPI + SQLite", "fastapi-sqlite", 12),
    _times("requests/s at 64 connections, × best Feast", "feast", 50),
    _times(
        "with its lookups in Redis, requests/s at 64 connections, × FastAPI + Redis", "fastapi-redis", 4, "sereno-redis"
    ),
    Target(what="p99 at 64 connections, ms", most=2.5, measured=lambda runs: _of_sereno(runs, "p99_ms")),
    Target(
        what="p50 of the most keys at 64 connections, × of the fewest",
        most=1.15,
        measured=lambda runs: growth(runs.get("peers", []), BUSY, "sereno"),
    ),
    *_build_targets("shuffled"),
    *_build_targets("sorted"),
    Target(
        what="publish: index served → every worker answers with it, the longest, s",
        most=1,
        measured=lambda runs: _worst_swap(runs, "until_answered", "publish"),
    ),
    Target(
        what="rollback: commit → every worker answers with it, the longest, s",
        most=1,
        measured=lambda runs: _worst_swap(runs, "in_all", "rollback"),
    ),
    Target(what="slowest answer in a swap, ms", most=50, measured=lambda runs: _worst_swap(runs, "slowest_ms")),
    Target(what="lookups not answered meanwhile", most=0, measured=lambda runs: _worst_swap(runs, "not_answered")),
]


def _targets(runs: Runs) -> str:
    """Those that something was measured for."""
    lines = [["what", "to reach", "measured", ""], ["---", "---:", "---:", "---"]]
    for target in TARGETS:
        measured = target.measured(runs)
        if measured is None:
            continue
        bound = f"≥ {target.least:g}" if target.least is not None else f"≤ {target.most:g}"
        reached = measured >= (target.least or 0) and (target.most is None or measured <= target.most)
        lines.append([target.what, bound, f"{measured:.3g}", "reached" if reached else "**missed**"])
    more = [
        f"{name} at {connections}: {found:.3f}"
        for name in ("sereno", "limit")
        for connections in sorted({run["connections"] for run in runs.get("peers", [])})
        if (found := growth(runs["peers"], connections, name)) is not None
    ]
    told = f"\n\np50 of the most keys, × of the fewest: {', '.join(more)}." if more else ""
    return markdown(lines) + told
