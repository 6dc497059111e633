"""Runs the benchmarks.

python -m benchmarks [batch]   Sereno, its peers and the limits on many rows, side by side
python -m benchmarks memory    Sereno's peak memory on many rows and on four times as many
python -m benchmarks small     what a run of 1,000 rows, an import and --help cost
python -m benchmarks live      Sereno, its peers and the limit over HTTP
python -m benchmarks lookup    Sereno, its peers and the limit, one key a request; building an index, and swapping it
python -m benchmarks load      campaigns against the server: too much to do, slow callers, killed workers, hostile requests
python -m benchmarks operate   how long callers of the API wait while a run of `sereno up` takes all that it may
python -m benchmarks ledger    what the ledger of 1,000 models and a year of nights costs
python -m benchmarks cluster   Sereno's executors, ray.data and Spark with MLflow's UDF on many rows, start-up told apart
python -m benchmarks cold-start  a pod with an empty disk: index fetched from a bucket, model loaded, first answer
python -m benchmarks objects   a run from and to an S3 server beside the same from and to disk
python -m benchmarks scale     what many tasks, files and parts cost the process that drives a run; placement simulated
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks import cluster, cold_start, objects, operate_api, operate_ledger, prepare, report
from benchmarks.environments import CannotInstall, variables
from benchmarks.live import CONNECTIONS, PARTS, ROUNDS, SECONDS, live
from benchmarks.load import CAMPAIGNS, load
from benchmarks.lookup import campaign as lookups
from benchmarks.measure import CORES, CommandFailed, Cost, run
from benchmarks.peers import PEERS, python_of
from benchmarks.peers_live.known import PEERS as LIVE_PEERS
from benchmarks.peers_lookup.known import PEERS as LOOKUP_PEERS
from benchmarks.scale import campaign as scale
from benchmarks.verify import WrongOutput, check_output, parquet_files, published_files
from benchmarks.workload import DATA, FOLDER, LOGS, MODELS

FEW = 1_000  # rows
NAMES = ["sereno", *PEERS]


def score(name: str, model: str, rows: int) -> Cost:
    """Let one of NAMES score so many rows, check what it wrote, and say what it cost."""
    source, expected = prepare.rows(rows)
    for file in source.iterdir():
        file.read_bytes()  # the same warm page cache for all
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}-{model}.log"
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as folder:
        output = Path(folder)
        if name == "sereno":
            file = FOLDER / "models" / f"{model}.py"
            options = ["--source", str(source), "--home", folder, "--workers", str(CORES)]
            cost = run([sys.executable, "-m", "sereno", "run", str(file), *options], env=variables(None), log=log)
            check_output(published_files(output, model), expected, model)
            return cost
        peer = PEERS[name]
        command = [str(python_of(peer)), "-m", f"benchmarks.peers.{peer.script}", model, str(source), folder]
        env = variables(peer.threads) | {"PYSPARK_PYTHON": command[0]}
        cost = run([*command, peer.option], env=env, log=log)
        check_output(parquet_files(output), expected, model, keys_only=peer.keys_only)
        if name == "limit-predict":  # only its inner part counts
            timed = json.loads(log.read_text().splitlines()[-1])
            cost = Cost(**asdict(cost) | timed)
        return cost


class Campaign:
    """Runs in turn, what they cost, and who is left out and why."""

    def __init__(self) -> None:
        self.conditions = report.conditions()
        self.left_out: dict[str, str] = {}
        self.runs: dict[str, list[report.Run]] = {}

    def leave_out(self, name: str, why: Exception) -> None:
        self.left_out[name] = f"{type(why).__name__}: {why}"
        print(f"LEFT OUT: {name}: {self.left_out[name]}", flush=True)

    def add(self, title: str, name: str, cost: Cost, load: float) -> None:
        self.runs.setdefault(title, []).append({"name": name, **asdict(cost), "load": round(load, 2)})
        print(f"  {title} · {name}: {cost.seconds:.3f} s, {cost.pss_mb:.0f} MB", flush=True)

    def score(self, title: str, names: list[str], model: str, rows: int, rounds: int) -> None:
        """Each of `names` once per round, every round beginning with another; first a try on few rows."""
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if f"{name}, {model}" in self.left_out:
                    continue
                load = os.getloadavg()[0]
                try:
                    cost = score(name, model, rows if number else FEW)  # the try also compiles modules, warms caches
                except (CommandFailed, WrongOutput, CannotInstall, ImportError, OSError) as error:
                    self.leave_out(f"{name}, {model}", error)
                    self.runs[title] = [run for run in self.runs.get(title, []) if run["name"] != name]
                    continue
                if number:
                    self.add(title, name, cost, load)

    def save(self, kind: str, arguments: argparse.Namespace, tables: dict[str, str]) -> None:
        facts = {"conditions": self.conditions, "left_out": self.left_out, "runs": self.runs}
        report.save(kind, vars(arguments), tables, facts)


def batch(arguments: argparse.Namespace) -> None:
    campaign, tables = Campaign(), {}
    for model in MODELS if arguments.model == "both" else [arguments.model]:
        title = f"{model} model, {arguments.rows:,} rows"
        prepare.rows(arguments.rows)
        campaign.score(title, arguments.peers, model, arguments.rows, arguments.rounds)
        runs = campaign.runs.get(title, [])
        tables[title] = report.table(runs, ["limit-predict", "arrow-loop", "sereno"], arguments.rows)
    campaign.save("batch", arguments, tables)


def memory(arguments: argparse.Namespace) -> None:
    campaign, tables, peaks = Campaign(), {}, []
    for rows in (arguments.rows, arguments.rows * 4):
        title = f"{arguments.model} model, {rows:,} rows"
        prepare.rows(rows)
        campaign.score(title, ["sereno"], arguments.model, rows, arguments.rounds)
        runs = campaign.runs.get(title, [])
        tables[title] = report.table(runs, [], rows)
        peaks.append(max((run["pss_mb"] for run in runs), default=0.0))
    if all(peaks):
        tables["Growth"] = f"Four times the rows take {peaks[1] / peaks[0]:.2f} times the memory (peak PSS)."
    campaign.save("memory", arguments, tables)


def small(arguments: argparse.Namespace) -> None:
    campaign, tables = Campaign(), {}
    for model in MODELS:
        title = f"{model} model, {FEW:,} rows, whole process"
        campaign.score(title, ["sereno", "pandas-at-once"], model, FEW, arguments.rounds)
        tables[title] = report.table(campaign.runs.get(title, []), ["pandas-at-once"])
    title = "start-up"
    starts = {"python -c pass": ["-c", "pass"], "import sereno": ["-c", "import sereno"]}
    starts |= {"sereno --help": ["-m", "sereno", "--help"]}
    for number in range(arguments.rounds + 1):
        for name, command in starts.items():
            if name not in campaign.left_out:
                load = os.getloadavg()[0]
                try:
                    cost = run([sys.executable, *command], env=variables(None), log=LOGS / "start.log", watch=False)
                except CommandFailed as error:
                    campaign.leave_out(name, error)
                    continue
                if number:
                    campaign.add(title, name, cost, load)
    tables[title] = report.table(campaign.runs[title], ["python -c pass"])
    campaign.save("small", arguments, tables)


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if wrong := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"no {', '.join(sorted(wrong))}; there are {', '.join(known)}")
        return chosen

    return names


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True)
    for command, rows, rounds in ((batch, 10_000_000, 3), (memory, 10_000_000, 1), (small, None, 11)):
        options = commands.add_parser(command.__name__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        options.set_defaults(command=command)
        options.add_argument("--rounds", type=int, default=rounds)
        if rows:
            options.add_argument("--rows", type=int, default=rows)
        if command is memory:
            options.add_argument("--model", choices=MODELS, default="heavy")
        if command is batch:
            options.add_argument("--model", choices=[*MODELS, "both"], default="both")
            options.add_argument(
                "--peers", type=names_among(NAMES), default=NAMES, help="comma-separated, of those below (all)"
            )
            options.epilog = ", ".join(NAMES)
    options = commands.add_parser("live", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.set_defaults(command=live)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--seconds", type=int, default=SECONDS, help="of each measurement")
    options.add_argument(
        "--peers", type=names_among(LIVE_PEERS), help="comma-separated; the part `peers` with these only"
    )
    options.add_argument(
        "--concurrency", type=numbers, default=list(CONNECTIONS), help="connections, in the part `peers`"
    )
    options.epilog = ", ".join(LIVE_PEERS)
    options = commands.add_parser("lookup", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.set_defaults(command=lookups.lookup)
    every = ", ".join(lookups.PARTS)
    options.add_argument("parts", nargs="*", choices=[*lookups.PARTS, []], metavar="PART", help=f"of {every} (all)")
    options.add_argument("--rounds", type=int, default=lookups.ROUNDS)
    options.add_argument("--seconds", type=int, default=lookups.SECONDS, help="of each measurement")
    options.add_argument(
        "--keys", type=numbers, default=list(lookups.KEYS), help="how many; the fewest are swapped, the most built"
    )
    options.add_argument(
        "--peers", type=names_among(LOOKUP_PEERS), help="comma-separated; the part `peers` with these only"
    )
    options.add_argument("--concurrency", type=numbers, default=list(lookups.CONNECTIONS), help="connections")
    options.epilog = ", ".join(LOOKUP_PEERS)
    options = commands.add_parser("load", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.set_defaults(command=load)
    every = ", ".join(CAMPAIGNS)
    options.add_argument("campaigns", nargs="*", choices=[*CAMPAIGNS, []], metavar="CAMPAIGN", help=f"of {every} (all)")
    options.add_argument("--seconds", type=int, help="shorter than the campaign is meant to be, for a try")
    options.add_argument("--requests", type=int, default=120_000, help="hostile ones")
    cold_start.options(commands.add_parser("cold-start", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    objects.options(commands.add_parser("objects", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    operate_ledger.options(commands.add_parser("ledger", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    operate_api.options(commands.add_parser("operate", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    cluster.options(commands.add_parser("cluster", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    scale.options(commands.add_parser("scale", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    given = sys.argv[1:]
    if not given or given[0] not in (*commands.choices, "-h", "--help"):
        given = ["batch", *given]
    arguments = parser.parse_args(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that what runs is ended too
    for left in DATA.glob("output-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    command = arguments.command
    del arguments.command
    command(arguments)


if __name__ == "__main__":
    main()
