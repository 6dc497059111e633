"""From a commit to the answers of every worker, and what callers notice meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.environments import variables
from benchmarks.lookup.build import MODEL
from benchmarks.lookup.steady import Steady
from benchmarks.peers_lookup.known import PEERS
from benchmarks.server import Server, ServerFailed, cores, pinned
from benchmarks.workload import DATA

if TYPE_CHECKING:
    from benchmarks.lookup.campaign import Campaign, Home

WORKERS = 2
CALM_SECONDS = 5.0
AFTER_SECONDS = 2.0  # the load goes on for so long after a new index is served
LIMIT_SECONDS = 120.0  # for an index to be served after a command ended
POLL = 0.002


class Answer(NamedTuple):
    due: float  # by the clock of the machine, as all moments here
    seconds: float
    status: int
    version: int | None
    worker: str
    late: float  # of it the load's own: how much later than due it was sent

    @property
    def came(self) -> float:
        return self.due + self.seconds


class Served(NamedTuple):
    at: float  # when the pointer was put in its place
    version: int


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One change of what is served. Seconds are infinite where a worker never answered with the new version."""

    kind: str  # "publish" or "rollback"
    version: int
    started: float
    commit: float
    served: float
    workers: dict[str, float]  # when each first answered with it
    last_old: float  # when the last answer of another version came after that
    slowest_ms: float  # answer, from the pointer's change until half a second after the last worker's
    slowest_in_all_ms: float  # from the start of the command
    answers: int
    not_answered: int

    @property
    def ended(self) -> float:
        return max(self.workers.values())

    def figures(self) -> dict[str, Any]:
        seconds = {"until_served": self.served - self.commit, "until_answered": self.ended - self.served}
        return asdict(self) | seconds | {"in_all": self.ended - self.commit}


class PointerWatch(threading.Thread):
    """Which index is served, and since when."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self.file = home / ".sereno" / "lookup" / MODEL / "served.json"
        self.seen: list[Served] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while True:
            with suppress(FileNotFoundError), self.file.open("rb") as file:
                # A rename is a change of the file too. What was opened stays what it is.
                found = Served(os.fstat(file.fileno()).st_ctime, int(json.load(file)["index"].partition("-")[0]))
                if not self.seen or self.seen[-1].version != found.version:
                    self.seen.append(found)
            if self.stopped.wait(POLL):
                return

    def after(self, version: int) -> Served:
        """What is served instead of a version. Raises ServerFailed when nothing is after a while."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.seen[-1].version == version:
            if time.monotonic() > deadline:
                raise ServerFailed(f"version {version} is still served after {LIMIT_SECONDS:.0f} s")
            time.sleep(POLL)
        return self.seen[-1]


def swap_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """Two workers under a load of 1,000 lookups a second, while a new version is published, and rolled back.

    The workers, and whoever publishes or builds an index, share one core; the load has the other.
    """
    keys, server_on, load = min(arguments.keys), [cores()[0]], round(os.getloadavg()[0], 2)
    with campaign.running("sereno", keys, workers=WORKERS, on=server_on) as one:
        home = campaign.home(keys)
        watch = PointerWatch(home.folder)
        watch.start()
        file = DATA / "output-answers.json"
        made: list[tuple[str, float, float, Served]] = []
        try:
            with _load(Steady(port=one.server.port, path=PEERS["sereno"].path, keys=keys, file=str(file))):
                began = time.time()
                time.sleep(CALM_SECONDS)
                for _ in range(2 * arguments.rounds):
                    publish = _change("publish", home, watch, lambda: home.publish("--force", on=server_on))
                    back = _change("rollback", home, watch, lambda: home.sereno("rollback", MODEL, on=server_on))
                    to = str(publish[3].version)
                    there = _change(
                        "rollback", home, watch, lambda to=to: home.sereno("rollback", MODEL, "--to", to, on=server_on)
                    )
                    made += [publish, back, there]
        finally:
            watch.stopped.set()
    answers = [Answer(*answer) for answer in json.loads(file.read_text())]
    file.unlink()
    calm = [answer for answer in answers if answer.due < began + CALM_SECONDS]
    ends = [*(started for _, started, _, _ in made[1:]), float("inf")]
    swaps = [_swap(*change, answers, end) for change, end in zip(made, ends, strict=True)]
    campaign.runs["swap"] = [{"keys": keys, "load": load, **_calm(calm), **swap.figures()} for swap in swaps]


@contextmanager
def _load(steady: Steady) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.lookup.steady", json.dumps(asdict(steady))]
    with pinned([cores()[1]]):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables(1))
    Server.others.add(process.pid)
    try:
        yield
    finally:
        process.stdin.close()
        ended = process.wait()
        Server.others.discard(process.pid)
    if ended:
        raise ServerFailed(f"the load ended with {ended}")


def _change(
    kind: str, home: Home, watch: PointerWatch, command: Callable[[], None]
) -> tuple[str, float, float, Served]:
    """Its kind, when its command started, when it was committed, and what is served since."""
    before, commits = watch.seen[-1].version, _commits(home)
    started = time.time()
    command()
    served = watch.after(before)
    time.sleep(max(served.at + AFTER_SECONDS - time.time(), AFTER_SECONDS / 2))
    new = [at for name, at in _commits(home).items() if name not in commits and at <= served.at]
    commit = max(new, default=float("nan"))
    print(f"  {kind} of version {served.version}: served {served.at - commit:.2f} s after the commit", flush=True)
    return kind, started, commit, served


def _commits(home: Home) -> dict[str, float]:
    return {
        file.name: file.stat().st_mtime for file in (home.folder / "predictions" / MODEL / "_delta_log").glob("*.json")
    }


def _swap(kind: str, started: float, commit: float, served: Served, answers: Sequence[Answer], end: float) -> Swap:
    here = [answer for answer in answers if answer.came >= started and answer.due < end]
    workers = {answer.worker: float("inf") for answer in here if answer.worker}
    for answer in here:
        if answer.version == served.version and answer.came >= commit:
            workers[answer.worker] = min(workers[answer.worker], answer.came)
    is_whole = len(workers) >= WORKERS
    ended = max(workers.values()) if is_whole else float("inf")
    during = [answer for answer in here if answer.came >= served.at and answer.due <= ended + 0.5]
    old = [answer.came for answer in during if answer.version not in (None, served.version)]
    return Swap(
        kind=kind,
        version=served.version,
        started=started,
        commit=commit,
        served=served.at,
        workers=workers if is_whole else workers | {"another": float("inf")},
        last_old=max(old, default=served.at),
        slowest_ms=max((answer.seconds for answer in during), default=float("inf")) * 1e3,
        slowest_in_all_ms=max((answer.seconds for answer in here), default=float("inf")) * 1e3,
        answers=len(here),
        not_answered=sum(answer.status != 200 for answer in here),
    )


def _calm(answers: Sequence[Answer]) -> dict[str, float]:
    """How answers are, and how late the load is by itself, while nothing is published."""
    ordered = sorted(answer.seconds * 1e3 for answer in answers)
    late = max(answer.late for answer in answers) * 1e3
    at_99 = ordered[int(len(ordered) * 0.99)]
    return {
        "calm_p50_ms": statistics.median(ordered),
        "calm_p99_ms": at_99,
        "calm_most_ms": ordered[-1],
        "calm_late_ms": late,
    }
