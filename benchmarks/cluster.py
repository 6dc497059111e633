"""`make bench ARGS="cluster"`: the same rows by Sereno's three executors, by ray.data and by Spark with MLflow's UDF, in turn.

Start-up and scoring are told apart by what anybody can see: a process notes when it has loaded the model (`workload.note_loaded`,
and the model files), and the output is whole when the last file of it was written (for Sereno, the commit).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import prepare, report
from benchmarks.environments import CannotInstall, variables
from benchmarks.measure import CORES, CommandFailed, run
from benchmarks.peers import ON_CLUSTERS, python_of
from benchmarks.verify import WrongOutput, check_output, parquet_files, published_files
from benchmarks.workload import DATA, FOLDER, LOGS, MODELS

EXECUTORS = {"local": "local", "ray": "ray", "spark": "spark"}
NAMES = [*EXECUTORS, *ON_CLUSTERS]
ROWS, ROUNDS, FEW = 10_000_000, 3, 20_000
# (name, compared with, what, at most): scoring of the first ≤ limit × that of the second
LIMITS = [
    ("ray", "local", 1.15),
    ("spark", "local", 1.3),
    ("ray", "ray-data", 1 / 2),
    ("ray", "spark-mlflow", 1 / 2),
]


def score(name: str, model: str, rows: int) -> dict[str, Any]:
    """Let one of NAMES score so many rows, check what it wrote, and say how long what took."""
    source, expected = prepare.rows(rows)
    for file in source.iterdir():
        file.read_bytes()  # the same warm page cache for all
    log = LOGS / f"cluster-{name}-{model}.log"
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as folder:
        output, loaded = Path(folder, "output"), Path(folder, "loaded")
        output.mkdir()
        loaded.mkdir()
        command, env = _command(name, model, source, output)
        began = time.time()
        cost = run(command, env=env | {"LOADED": str(loaded)}, log=log)
        if name in EXECUTORS:
            check_output(published_files(output, model), expected, model)
            written = list((output / "predictions" / model / "_delta_log").glob("*.json"))
        else:
            check_output(parquet_files(output), expected, model)
            written = [*parquet_files(output), *output.glob("_SUCCESS")]
        ready = sorted(file.stat().st_mtime for file in loaded.iterdir())
        whole = max(file.stat().st_mtime for file in written)
    return asdict(cost) | {
        "name": name,
        "start": ready[0] - began,  # until the first worker had the model
        "second": ready[min(1, len(ready) - 1)] - began,  # until the second had it
        "scoring": whole - ready[0],  # from then on until the output was whole
        "end": began + cost.seconds - whole,
        "processes": len(ready),  # that loaded the model
    }


def _command(name: str, model: str, source: Path, output: Path) -> tuple[list[str], dict[str, str]]:
    if name in EXECUTORS:
        file = FOLDER / "models" / f"{model}.py"
        (output / "sereno.toml").write_text(f'[spark]\nmaster = "local[{CORES}]"\n')
        options = ["--source", str(source), "--home", str(output), "--workers", str(CORES)]
        command = [sys.executable, "-m", "sereno", "run", str(file), *options, "--executor", EXECUTORS[name]]
        return command, variables(None)
    peer = ON_CLUSTERS[name]
    python = str(python_of(peer))
    command = [python, "-m", f"benchmarks.peers.{peer.script}", model, str(source), str(output), peer.option]
    return command, variables(peer.threads) | {"PYSPARK_PYTHON": python}


def cluster(arguments: argparse.Namespace) -> None:
    facts: dict[str, Any] = {"conditions": report.conditions(), "left_out": {}, "runs": {}}
    tables = {}
    LOGS.mkdir(parents=True, exist_ok=True)
    for model in MODELS if arguments.model == "both" else [arguments.model]:
        prepare.rows(arguments.rows)
        title = f"{model} model, {arguments.rows:,} rows"
        facts["runs"][title] = runs = _rounds(arguments, model, facts["left_out"])
        tables[title] = f"{table(runs, arguments.rows)}\n\n{ratios(runs)}"
    is_try = arguments.rounds < ROUNDS or arguments.rows < ROWS or arguments.peers != NAMES
    report.save("cluster", vars(arguments), tables, facts, DATA / "results" if is_try else report.RESULTS)


def _rounds(arguments: argparse.Namespace, model: str, left_out: dict[str, str]) -> list[dict[str, Any]]:
    """Each once per round, every round beginning with another; first a try on few rows."""
    runs: list[dict[str, Any]] = []
    names = arguments.peers
    for number in range(arguments.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if f"{name}, {model}" in left_out:
                continue
            load = round(os.getloadavg()[0], 2)
            try:
                one = score(name, model, arguments.rows if number else FEW)
            except (CommandFailed, WrongOutput, CannotInstall, ImportError, OSError) as error:
                left_out[f"{name}, {model}"] = f"{type(error).__name__}: {error}"
                print(f"LEFT OUT: {name}, {model}: {error}", flush=True)
                runs = [one for one in runs if one["name"] != name]
                continue
            if number:
                runs.append(one | {"round": number, "load": load})
                shown = {key: round(one[key], 2) for key in ("start", "second", "scoring", "end", "pss_mb")}
                print(f"  {model} · {name}: {shown}", flush=True)
    return runs


def table(runs: list[dict[str, Any]], rows: int) -> str:
    """Medians by name, fastest first."""
    lines = [
        ["", "scoring s (min–max)", "million rows/s", "start-up s", "second worker s", "end s", "whole s", "CPU s"]
    ]
    lines[0] += ["peak PSS MB", "processes", "load", "rounds"]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    by_name = {name: [one for one in runs if one["name"] == name] for name in {one["name"]: None for one in runs}}
    middle = {
        name: {key: statistics.median(one[key] for one in its) for key in its[0] if key != "name"}
        for name, its in by_name.items()
    }
    for name in sorted(middle, key=lambda name: middle[name]["scoring"]):
        m, its = middle[name], [one["scoring"] for one in by_name[name]]
        cells = [name, f"{m['scoring']:.2f} ({min(its):.2f}–{max(its):.2f})", f"{rows / m['scoring'] / 1e6:.2f}"]
        cells += [f"{m[key]:.1f}" for key in ("start", "second", "end", "seconds", "cpu_seconds")]
        lines.append([*cells, f"{m['pss_mb']:.0f}", f"{m['processes']:.0f}", f"{m['load']:.1f}", str(len(its))])
    return report.markdown(lines)


def ratios(runs: list[dict[str, Any]]) -> str:
    """Of scoring, medians of the rounds' ratios, against what was promised."""
    lines = [["scoring", "ratio (min–max)", "at most", ""], ["---", "---:", "---:", "---"]]
    seconds = {(one["name"], one["round"]): one["scoring"] for one in runs}
    rounds = sorted({one["round"] for one in runs})
    for name, other, most in LIMITS:
        its = [
            seconds[name, number] / seconds[other, number]
            for number in rounds
            if (name, number) in seconds and (other, number) in seconds
        ]
        if its:
            middle = statistics.median(its)
            told = f"{middle:.2f} ({min(its):.2f}–{max(its):.2f})"
            lines.append([f"{name} / {other}", told, f"{most:.2f}", "" if middle <= most else "MISSED"])
    return report.markdown(lines)


def names_among(text: str) -> list[str]:
    chosen = text.split(",")
    if wrong := set(chosen) - set(NAMES):
        raise argparse.ArgumentTypeError(f"no {', '.join(sorted(wrong))}; there are {', '.join(NAMES)}")
    return chosen


def options(parser: argparse.ArgumentParser) -> None:
    """What `cluster` needs to know."""
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--peers", type=names_among, default=NAMES, help="comma-separated, of those below (all)")
    parser.epilog = ", ".join(NAMES)
    parser.set_defaults(command=cluster)
