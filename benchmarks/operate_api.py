"""How long callers of the API wait while a run beside it takes all that it may.

Idle and busy alternate, as the machine's own mood changes within minutes. The API is that of `sereno up`, the run is
started as the scheduler starts it: in the same session, as Linux may share cores among sessions before it looks at
priorities. The load is wrk, on the same cores: it takes from both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import psutil

from benchmarks import prepare, report
from benchmarks.live import rows_and_answers
from benchmarks.server import Server, require_wrk, run_wrk
from benchmarks.workload import DATA, FOLDER
from sereno.ledger import Entry
from sereno.operate.scheduling.runs import Runs
from sereno.settings import UpSettings

CONNECTIONS = (1, 16)
ROUNDS, SECONDS = 7, 3  # with fewer it is but a try
VARIANTS = {
    "default": UpSettings(),
    **{f"nice-{nice}": UpSettings(run_nice=nice, run_cores=os.cpu_count()) for nice in (0, 10, 18, 19)},
}
MOST = 3.0  # times the p99 of an idle machine


class Scheduled:
    file = str(FOLDER / "models" / "heavy.py")
    run_seconds = run_cores = run_memory_bytes = None


@contextlib.contextmanager
def up(folder: Path) -> Iterator[str]:
    """The API of `sereno up`, and where it answers."""
    (folder / "sereno.toml").write_text(f'[models.live]\nfile = "{FOLDER}/models/live.py"\n')
    command = [sys.executable, "-m", "sereno", "up", "--no-schedule", "--port", "0", "--json", "--home", str(folder)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        Server.others.add(process.pid)
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["api"]["url"] + "/predict"
        finally:
            process.terminate()


@contextlib.contextmanager
def run(limits: UpSettings, source: Path) -> Iterator[psutil.Process]:
    """A run that goes on, within limits."""
    now = datetime.now(UTC)
    day = now.date().replace(month=1, day=1)
    end = datetime.combine(day + timedelta(days=1), time_of_day(), UTC)
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as home:
        runs = Runs(limits, ["--home", home, f"--set=models.heavy.source={source}"], api_workers=1)
        runs.start(
            Entry(model="heavy", run_key=f"{day}T00:00Z", data_date=day, data_time=end, state="due", since=now),
            Scheduled(),
        )
        try:
            process = psutil.Process(runs.pids["heavy"])
            while _cpu_seconds(process) < 3:  # it scores: what it imports is no work for both cores
                time.sleep(0.05)
                if ended := runs.ended():
                    raise RuntimeError(f"the run ended with {ended[0][2]}")
            yield process
            if runs.ended():
                raise RuntimeError("the run ended while it was measured: give it more --rows")
        finally:
            runs.stop(0)


def _cpu_seconds(process: psutil.Process) -> float:
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


def measure(url: str, bodies: Path, connections: int, seconds: int) -> dict[str, Any]:
    cores = os.sched_getaffinity(0)
    return run_wrk(FOLDER / "wrk.lua", [str(bodies)], url, connections, seconds, cores)


def api(arguments: argparse.Namespace) -> None:
    require_wrk()
    source, _ = prepare.rows(arguments.rows)
    conditions, runs = report.conditions(), []
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text:
        folder = Path(text)
        bodies = folder / "bodies"
        bodies.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows_and_answers()[0]))
        with up(folder) as url:
            measure(url, bodies, 16, 1)
            for _ in range(arguments.rounds):
                for name in arguments.variants:
                    for connections in CONNECTIONS:
                        load = os.getloadavg()[0]
                        idle = measure(url, bodies, connections, arguments.seconds)
                        with run(VARIANTS[name], source) as process:
                            before, started = _cpu_seconds(process), time.monotonic()
                            busy = measure(url, bodies, connections, arguments.seconds)
                            share = (_cpu_seconds(process) - before) / (time.monotonic() - started)
                        one = {"name": name, "connections": connections, "idle": idle, "busy": busy}
                        runs.append(one | {"cores_of_run": share, "load": round(load, 2)})
                        print(
                            f"  {name}, {connections}: {_told(idle, busy)}; the run had {share:.2f} cores", flush=True
                        )
    tables = {"p99 of the API while a run goes on": table(runs)}
    is_try = arguments.rounds < ROUNDS or arguments.seconds < SECONDS
    facts = {"conditions": conditions, "left_out": {}, "runs": runs}
    report.save("operate-api", vars(arguments), tables, facts, DATA / "results" if is_try else report.RESULTS)


def _told(idle: dict[str, Any], busy: dict[str, Any]) -> str:
    return f"p99 {idle['p99_ms']:.2f} → {busy['p99_ms']:.2f} ms, {idle['rate']:,.0f} → {busy['rate']:,.0f} req/s"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Medians; the ratio is that of the medians."""
    lines = [["runs", "connections", "p99 idle ms", "p99 busy ms", "×", "req/s idle", "req/s busy", "cores of the run"]]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for name, connections in dict.fromkeys((one["name"], one["connections"]) for one in runs):
        its = [one for one in runs if (one["name"], one["connections"]) == (name, connections)]
        middle = {
            (when, key): statistics.median(one[when][key] for one in its)
            for when in ("idle", "busy")
            for key in ("p99_ms", "rate")
        }
        ratio = middle["busy", "p99_ms"] / middle["idle", "p99_ms"]
        cells = [f"{middle['idle', 'p99_ms']:.2f}", f"{middle['busy', 'p99_ms']:.2f}"]
        cells.append(f"{ratio:.2f}" + ("" if ratio <= MOST else " MISSED"))
        cells += [f"{middle['idle', 'rate']:,.0f}", f"{middle['busy', 'rate']:,.0f}"]
        lines.append([name, str(connections), *cells, f"{statistics.median(o['cores_of_run'] for o in its):.2f}"])
    return report.markdown(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What `api` needs to know."""
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each measurement")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the run: enough for it not to end")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["default"])
    parser.set_defaults(command=api)
