"""`make bench ARGS="scale"`: what grows with tasks, files and parts in the process that drives a run, and placement simulated."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import prepare, report
from benchmarks.environments import variables
from benchmarks.measure import CommandFailed, run
from benchmarks.scale import driver
from benchmarks.scale.constants import MEASURED
from benchmarks.scale.placement import Cluster, Simulation, chance_of_failure
from benchmarks.workload import DATA, LOGS

PARTS = ("constants", "driver", "placement")
COUNT, ROUNDS = 10_000, 3
TASKS = (1, 100, 1_000, 10_000)
STAGES = ("plan", "score", "check", "publish", "export")
LIMIT = 3_600.0  # seconds, of one run
CLUSTERS = [  # nodes, tasks, nodes lost per node and hour
    *((1, 1_000, 0.0), (10, 10_000, 0.1), (100, 100_000, 0.1), (100, 100_000, 5.0)),
    *((1_000, 100_000, 0.1), (1_000, 100_000, 5.0)),
]


def _told_by(module: str, *arguments: str) -> dict[str, Any]:
    log = LOGS / "scale.log"
    command = [sys.executable, "-m", f"benchmarks.scale.{module}", *arguments]
    run(command, env=variables(None), log=log, watch=False, limit=LIMIT)
    told: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return told


def constants(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each in a process of its own, interleaved."""
    runs = []
    for _ in range(arguments.rounds):
        for name in MEASURED:
            with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as folder:
                runs.append({"name": name} | _told_by("constants", folder, name, str(arguments.count)))
                print(f"  {runs[-1]}", flush=True)
    return runs


def constants_table(runs: list[dict[str, Any]], count: int) -> str:
    lines = [["", "s per 1,000", "memory grew, bytes each", "of which kept"], ["---", "---:", "---:", "---:"]]
    for name, work in MEASURED.items():
        its = [one for one in runs if one["name"] == name]
        seconds, grown, kept = (statistics.median(r[key] for r in its) for key in ("seconds", "grown_mb", "kept_bytes"))
        about = (work.__doc__ or "").partition("\n")[0]
        cells = [f"{seconds / count * 1_000:.3g}", f"{grown * 2**20 / count:,.0f}"]
        lines.append([f"`{name}`: {about}", *cells, f"{kept / count:,.0f}" if kept else "–"])
    return report.markdown(lines)


def drive(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    runs = []
    for tasks in arguments.tasks:
        with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text:
            source, home = Path(text) / "rows", Path(text) / "home"
            driver.make_rows(tasks, source)
            home.mkdir()
            (home / "sereno.toml").touch()
            runs.append(_told_by("driver", str(tasks), str(source), str(home)))
            print(f"  {runs[-1]}", flush=True)
    return runs


def driver_table(runs: list[dict[str, Any]]) -> str:
    lines = [
        ["tasks", *(f"{s} s" for s in STAGES), "MB before", *(f"after {s}" for s in STAGES), "peak", "bytes a task"]
    ]
    lines.append(["---:"] * len(lines[0]))
    first = runs[0]
    for one in runs:
        memory, after = one["memory"], [*STAGES[1:], "end"]
        grown = (memory["end"]["peak"] - first["memory"]["end"]["peak"]) * 2**20 / one["tasks"]
        cells = [f"{one['seconds'][s]:.2f}" for s in STAGES]
        cells += [f"{memory['plan']['now']:.0f}", *(f"{memory[s]['now']:.0f}" for s in after)]
        cells += [f"{memory['end']['peak']:.0f}", f"{grown:,.0f}" if one is not first else "–"]
        lines.append([f"{one['tasks']:,}", *cells])
    return report.markdown(lines)


def placement() -> list[dict[str, Any]]:
    runs = []
    for nodes, tasks, lost in CLUSTERS:
        outcome = Simulation(tasks, Cluster(nodes=nodes, lost_per_node_hour=lost)).go()
        runs.append({"nodes": nodes, "lost_per_node_hour": lost, "longer": outcome.longer, **vars(outcome)})
    return runs


def placement_table(runs: list[dict[str, Any]]) -> str:
    lines = [
        [
            "nodes",
            "tasks",
            "lost per node and hour",
            "nodes lost",
            "tries lost",
            "of one task, most",
            "open at once, most",
        ],
    ]
    lines[0] += ["time / ideal", "µs a task, of the driver", "chance that a run fails for it"]
    lines.append(["---:"] * len(lines[0]))
    for one in runs:
        chance = chance_of_failure(one["tasks"], one["lost_per_node_hour"], Cluster(nodes=1).seconds_each)
        whole = [f"{one[key]:,}" for key in ("nodes", "tasks", "lost_per_node_hour", "nodes_lost", "tries_lost")]
        whole += [f"{one[key]:,}" for key in ("most_losses", "most_open")]
        lines.append(
            [*whole, f"{one['longer']:.2f}", f"{one['real_seconds'] / one['tasks'] * 1e6:.0f}", f"{chance:.1g}"]
        )
    return report.markdown(lines)


def scale(arguments: argparse.Namespace) -> None:
    conditions, tables, runs, left_out = report.conditions(), {}, {}, {}
    LOGS.mkdir(parents=True, exist_ok=True)
    prepare.models()
    for part in arguments.parts or PARTS:
        try:
            if part == "constants":
                runs[part] = constants(arguments)
                tables[f"Each of {arguments.count:,}"] = constants_table(runs[part], arguments.count)
            elif part == "driver":
                runs[part] = drive(arguments)
                tables["A run of many small tasks, local executor, one worker"] = driver_table(runs[part])
            else:
                runs[part] = placement()
                tables["Placement, simulated: 16 workers a node, tasks of 10 s"] = placement_table(runs[part])
        except CommandFailed as error:
            left_out[part] = str(error)
            print(f"LEFT OUT: {part}: {error}", flush=True)
    is_try = bool(arguments.parts) or arguments.rounds < ROUNDS or tuple(arguments.tasks) != TASKS
    facts = {"conditions": conditions, "left_out": left_out, "runs": runs}
    report.save("scale", vars(arguments), tables, facts, DATA / "results" if is_try else report.RESULTS)


def options(parser: argparse.ArgumentParser) -> None:
    """What `scale` needs to know."""
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the constants")
    parser.add_argument("--count", type=int, default=COUNT, help="files, tasks, parts, in the constants")
    parser.add_argument("--tasks", type=int, nargs="*", default=list(TASKS), help="of the runs")
    parser.set_defaults(command=scale)
