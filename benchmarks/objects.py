"""`make bench ARGS="objects"`: the same run from and to this machine's disk, and from and to a real S3 server on the same machine.

The server shares the two cores with the run, and there is no network between them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import prepare, report
from benchmarks.environments import variables
from benchmarks.measure import CORES
from benchmarks.verify import check_output, parquet_files, published_files
from benchmarks.workload import DATA, FOLDER, LOGS, MODELS
from sereno.object_path import ObjectPath
from tests.objects import S3Server, s3_server

ROWS, ROUNDS, FEW = 10_000_000, 3, 20_000
NAMES = {
    "disk": "from disk to disk",
    "read": "from S3 to disk",
    "write": "from disk to S3",
    "both": "from S3 to S3",
}
LIMIT = 1.3  # × disk


def objects(arguments: argparse.Namespace) -> None:
    facts: dict[str, Any] = {"conditions": report.conditions(), "left_out": {}, "runs": {}}
    tables = {}
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as folder, s3_server(Path(folder) / "s3") as s3:
        for rows in (FEW, arguments.rows):
            _upload(s3, rows)
        s3.make_bucket()
        for model in MODELS if arguments.model == "both" else [arguments.model]:
            title = f"{model} model, {arguments.rows:,} rows"
            facts["runs"][title] = runs = []
            for number in range(arguments.rounds + 1):
                turn = number % len(NAMES)
                for name in [*NAMES][turn:] + [*NAMES][:turn]:
                    load = round(os.getloadavg()[0], 2)
                    rows = arguments.rows if number else FEW  # first a try
                    told = score(s3, name, model, rows)
                    if number:
                        runs.append({"name": name, "round": number, "load": load, **told})
                        print(f"  {model} · {NAMES[name]}: {told['seconds']:.2f} s", flush=True)
            tables[title] = table(runs)
    is_try = arguments.rounds < ROUNDS or arguments.rows < ROWS
    report.save("objects", vars(arguments), tables, facts, DATA / "results" if is_try else report.RESULTS)


def _upload(s3: S3Server, rows: int) -> None:
    source, _ = prepare.rows(rows)
    s3.make_bucket(f"rows-{rows}")
    with s3.reached():
        for file in parquet_files(source):
            ObjectPath.of(f"s3://rows-{rows}/{file.name}").upload(file)


def score(s3: S3Server, name: str, model: str, rows: int) -> dict[str, float]:
    """Seconds from exec to exit of a run whose output is right, and CPU seconds of it and of the server. Raises WrongOutput."""
    source, expected = prepare.rows(rows)
    for file in source.iterdir():
        file.read_bytes()  # the same warm page cache for all
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text:
        home, env = Path(text), {**variables(None), **s3.environment}
        storage = home
        if name in ("write", "both"):
            env["SERENO_STORAGE"] = f"s3://{s3.buckets[-1]}/{home.name}"
        given = f"s3://rows-{rows}/" if name in ("read", "both") else str(source)
        file = FOLDER / "models" / f"{model}.py"
        options = ["--source", given, "--home", str(home), "--workers", str(CORES)]
        os.sync()  # what the one before wrote is not this one's burden
        with (LOGS / f"objects-{name}-{model}.log").open("wb") as log:
            began, of_run, of_server = time.perf_counter(), _cpu_of_children(), _cpu(s3)
            command = [sys.executable, "-m", "sereno", "run", str(file), *options]
            subprocess.run(command, env=env, stdout=log, stderr=log, check=True)
            told = {"seconds": time.perf_counter() - began}
            told |= {"cpu": _cpu_of_children() - of_run, "server_cpu": _cpu(s3) - of_server}
        if "SERENO_STORAGE" in env:
            storage = home / "fetched"
            table = f"{env['SERENO_STORAGE']}/predictions/{model}"
            with s3.reached():
                _fetch(ObjectPath.of(table), storage / "predictions" / model)
                ObjectPath.of(env["SERENO_STORAGE"]).remove_below()
        check_output(published_files(storage, model), expected, model)
    return told


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended
    return used.ru_utime + used.ru_stime


def _cpu(s3: S3Server) -> float:
    assert s3.process is not None
    fields = Path(f"/proc/{s3.process.pid}/stat").read_text().rpartition(") ")[2].split()  # see proc(5)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fetch(table: ObjectPath, folder: Path) -> None:
    for path, _ in table.below():
        file = folder / path.relative_to(table)
        file.parent.mkdir(parents=True, exist_ok=True)
        path.download(file)


def table(runs: list[dict[str, Any]]) -> str:
    lines = [["", "seconds (min–max)", "CPU s", "the server's", "ratio to disk (min–max)", "at most", ""]]
    lines.append(["---", *["---:"] * 5, "---"])
    seconds = {(one["name"], one["round"]): one["seconds"] for one in runs}
    rounds = sorted({one["round"] for one in runs})
    for name, says in NAMES.items():
        its = [seconds[name, number] for number in rounds]
        ratios = [seconds[name, number] / seconds["disk", number] for number in rounds]
        middle = statistics.median(ratios)
        cells = [says, f"{statistics.median(its):.2f} ({min(its):.2f}–{max(its):.2f})"]
        for key in ("cpu", "server_cpu"):
            cells += [f"{statistics.median(one[key] for one in runs if one['name'] == name):.1f}"]
        cells += [f"{middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"]
        lines.append([*cells, f"{LIMIT:.2f}", "" if middle <= LIMIT else "MISSED"])
    return report.markdown(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What `objects` needs to know."""
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.set_defaults(command=objects)
