"""What it takes to build the index of a published table, beside two bounds: encoding alone, and appending to LMDB alone."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environments import variables
from benchmarks.lookup.tables import ORDERS
from benchmarks.measure import Cost, descendants, run
from benchmarks.verify import WrongOutput
from benchmarks.workload import DATA, LOGS

if TYPE_CHECKING:
    from benchmarks.lookup.campaign import Campaign, Home

MODEL = "lookup"
BOUNDS = ("encode", "append")
EVERY = 0.02  # seconds between two looks at the memory


def build_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """From exec to exit of the process that builds the index, and the two bounds."""
    keys = max(arguments.keys)
    for _ in range(arguments.rounds):
        for order in ORDERS:
            home = campaign.home(keys, order)
            load = os.getloadavg()[0]
            anonymous = _AnonymousMemory()
            anonymous.start()
            cost = build(home)
            facts = {"anonymous_mb": anonymous.most(), "index_mb": _index_mb(home, keys)}
            _add(campaign, f"index, {order} keys", keys, cost, load, facts)
        for bound in BOUNDS:
            load = os.getloadavg()[0]
            _add(campaign, f"{bound} alone", keys, _bound(bound, keys), load, {"anonymous_mb": 0.0})


def build(home: Home) -> Cost:
    """Have the index built anew. Raises CommandFailed."""
    folder = home.folder / ".sereno" / "lookup" / MODEL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "sereno.lookup.builder", str(home.folder), MODEL]
    return run(command, env=variables(None), log=LOGS / "lookup-build.log")


def _index_mb(home: Home, keys: int) -> float:
    """Raises WrongOutput if it does not hold all keys."""
    folder = home.folder / ".sereno" / "lookup" / MODEL
    name = json.loads((folder / "served.json").read_text())["index"]
    rows = json.loads((folder / f"{name}.json").read_text())["rows"]
    if rows != keys:
        raise WrongOutput(f"the index has {rows:,} rows, expected {keys:,}")
    return (folder / f"{name}.lmdb").stat().st_size / 2**20


def _bound(name: str, keys: int) -> Cost:
    """Only its inner part counts, which it says itself."""
    log = LOGS / f"lookup-{name}.log"
    file = DATA / "output-bound.lmdb"
    file.unlink(missing_ok=True)
    try:
        run(
            [sys.executable, "-m", "benchmarks.lookup.bounds", name, str(keys), str(file)],
            env=variables(1),
            log=log,
            watch=False,
        )
    finally:
        file.unlink(missing_ok=True)
    timed = json.loads(log.read_text().splitlines()[-1])
    return Cost(seconds=timed["seconds"], cpu_seconds=timed["cpu_seconds"], rss_mb=0, pss_mb=0)


def _add(campaign: Campaign, name: str, keys: int, cost: Cost, load: float, facts: dict[str, float]) -> None:
    about = {"name": name, "rows": keys, "load": round(load, 2)}
    campaign.runs.setdefault("build", []).append(about | asdict(cost) | facts)
    print(
        f"  {name}, {keys:,} rows: {cost.seconds:.2f} s, {keys / cost.seconds / 1e6:.2f} M rows/s, {cost.rss_mb:.0f} MB"
        f" (anonymous {facts['anonymous_mb']:.0f})",
        flush=True,
    )


class _AnonymousMemory(threading.Thread):
    """The most that all children of this process together had, not counting pages of files that they map."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(EVERY):
            self.peak = max(self.peak, sum(map(_anonymous, descendants(os.getpid()))))

    def most(self) -> float:
        """In MB; ends the watch."""
        self.stopped.set()
        self.join()
        return self.peak / 2**20


def _anonymous(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("\nRssAnon:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # ended meanwhile
        return 0
