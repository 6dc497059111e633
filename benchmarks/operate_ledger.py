"""What the ledger of a large home costs: 1,000 models, a night each for a year.

`sereno runs` as a whole process; and what a scheduler asks at each tick, in a process that has the ledger open.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.environments import variables
from benchmarks.measure import run
from benchmarks.workload import DATA, LOGS
from sereno.adapters.ledger import open_at
from sereno.ledger import Entry, Transition

ROUNDS = 15
COMMANDS = {
    "sereno runs": ["runs"],
    "sereno runs --state failed --limit 50 --json": ["runs", "--state", "failed", "--limit", "50", "--json"],
    "sereno runs --since 2025-06-01 --until 2025-06-01": ["runs", "--since", "2025-06-01", "--until", "2025-06-01"],
}
LIMITS = {"sereno runs": 300.0, "newest + open_entries + pauses": 20.0}  # ms
MOST_MB = 100
FIRST = datetime(2025, 5, 2, tzinfo=UTC)

# What the scheduler asks of it; prints the milliseconds of each call, and the process's peak memory.
ASK = """
import json, re, sys, time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from sereno.adapters.ledger import open_at

ledger, now = open_at(None, Path(sys.argv[1])), datetime(2030, 1, 1, tzinfo=UTC)
lease = ledger.acquire("scheduler", "me", 60)
one = ledger.entries(limit=1)[0]
asks = {
    "newest + open_entries + pauses": lambda n: (ledger.newest(now), ledger.open_entries(), ledger.pauses()),
    "entries of one model": lambda n: ledger.entries(model=one.model),
    "transitions of one run": lambda n: ledger.transitions(one.model, one.run_key),
    "move (flushed to the disk)": lambda n: ledger.move(replace(one, reason=str(n))),
    "renew (flushed to the disk)": lambda n: ledger.renew(lease, 60),
}
told = {}
for name, ask in asks.items():
    told[name] = []
    for n in range(int(sys.argv[2]) + 1):
        began = time.perf_counter()
        ask(n)
        told[name].append((time.perf_counter() - began) * 1e3)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"ms": {name: times[1:] for name, times in told.items()}, "mb": int(peak[1]) / 1024}))
"""


def entries(models: int, nights: int) -> Iterator[Entry]:
    for night in range(nights):
        end = FIRST + timedelta(days=night)
        day = (end - timedelta(days=1)).date()
        for number in range(models):
            failed = (night * 31 + number) % 97 == 0
            yield Entry(
                model=f"model-{number:04}",
                run_key=f"{end - timedelta(days=1):%Y-%m-%dT%H:%MZ}",
                data_date=day,
                data_time=end,
                state="failed" if failed else "due" if night == nights - 1 and number % 50 == 0 else "published",
                since=end + timedelta(minutes=3),
                reason="StorageError: The disk is full." if failed else "",
                who="sereno",
                attempt=f"{day}-3f9a2c",
                version=None if failed else night + 1,
                tries=1,
                label=day.isoformat(),
            )


def transitions(models: int, nights: int) -> Iterator[Transition]:
    for entry in entries(models, nights):
        for before, after, minutes in ((None, "due", 0), ("due", "running", 1), ("running", entry.state, 3)):
            yield Transition(
                model=entry.model,
                run_key=entry.run_key,
                at=entry.data_time + timedelta(minutes=minutes),
                before=before,  # type: ignore[arg-type]
                after=after,  # type: ignore[arg-type]
                reason=entry.reason if minutes == 3 else "",
                who="sereno",
                attempt=entry.attempt,
            )


def fill(home: Path, models: int, nights: int) -> None:
    ledger = open_at(None, home)
    ledger.chunk = 50_000
    ledger.add(entries(models, nights), are_new=False)
    ledger.add_transitions(transitions(models, nights))
    ledger.close()


def ledger(arguments: argparse.Namespace) -> None:
    conditions, runs = report.conditions(), []
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text:
        home = Path(text)
        fill(home, arguments.models, arguments.nights)
        for name, command in COMMANDS.items():
            for _ in range(arguments.rounds):
                load = round(os.getloadavg()[0], 2)
                cost = run(
                    [sys.executable, "-m", "sereno", *command, "--home", text],
                    env=variables(None),
                    log=LOGS / "ledger.log",
                )
                runs.append({"name": name, "ms": cost.seconds * 1e3, "mb": cost.rss_mb, "load": load})
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK, text, str(arguments.rounds * 10)],
            check=True,
            capture_output=True,
            text=True,
        )
        told = json.loads(done.stdout)
        size = (home / ".sereno" / "ledger.sqlite").stat().st_size
    for name, times in told["ms"].items():
        runs += [{"name": name, "ms": one, "mb": told["mb"]} for one in times]
    rows = arguments.models * arguments.nights
    title = f"{arguments.models:,} models × {arguments.nights} nights: {rows:,} runs, {size / 1e6:,.0f} MB"
    is_try = arguments.rounds < ROUNDS or rows < 365_000
    facts = {"conditions": conditions, "left_out": {}, "runs": runs}
    folder = DATA / "results" if is_try else report.RESULTS
    report.save("operate-ledger", vars(arguments), {title: table(runs)}, facts, folder)


def table(runs: list[dict[str, Any]]) -> str:
    lines = [["", "median ms", "slowest of 20 ms", "peak MB"], ["---", "---:", "---:", "---:"]]
    for name in dict.fromkeys(one["name"] for one in runs):
        times = sorted(one["ms"] for one in runs if one["name"] == name)
        most = max(one["mb"] for one in runs if one["name"] == name)
        middle = statistics.median(times)
        missed = middle > LIMITS.get(name, middle) or most > MOST_MB
        lines.append(
            [
                name,
                f"{middle:.2f}" + (" MISSED" if missed else ""),
                f"{times[len(times) * 19 // 20]:.2f}",
                f"{most:.0f}",
            ]
        )
    return report.markdown(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What `ledger` needs to know."""
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--nights", type=int, default=365)
    parser.set_defaults(command=ledger)
