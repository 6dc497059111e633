"""Sereno and its peers over HTTP, one row a request: how many requests, how soon answered, at what cost."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import environments, live_report, prepare, report
from benchmarks.peers_live.known import FILES, PEERS, Peer
from benchmarks.server import Server, ServerFailed, cores, free_port, require_wrk, wrk
from benchmarks.verify import WrongOutput, check_answers
from benchmarks.workload import DATA, FOLDER, LOGS

CONNECTIONS = (1, 16, 64)
ROUNDS, SECONDS = 3, 4  # with fewer it is but a try
WARM_SECONDS = 1
# A peer that fails so is left out, the others go on. Lookup and value errors: an answer of another shape than expected.
LEAVE_OUT = (ServerFailed, WrongOutput, environments.CannotInstall, HTTPException, ImportError, OSError)
LEAVE_OUT += (LookupError, TypeError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that has answered rightly."""

    peer: Peer
    server: Server
    folder: Path  # its own, until the `with` block ends
    bodies: Path  # one request body a line
    texts: Sequence[bytes]  # the same, apart
    right: Sequence[float]  # the probabilities in their answers
    seconds: float  # from exec to the first right answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}{self.peer.path}"

    def check(self) -> None:
        """Raise WrongOutput if answers are not right."""
        check_answers(self.server.port, self.peer.path, self.texts, self.right, self.peer.answer)


@cache
def rows_and_answers() -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    return prepare.requests()


@contextmanager
def running(
    name: str,
    model: str,
    *,
    workers: int = 1,
    on: Sequence[int] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start one of PEERS for a model, on the core of servers if not said otherwise, and check its answers."""
    peer, port = PEERS[name], free_port()
    rows, right = rows_and_answers()
    python = peer.python()
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text:
        folder = Path(text)
        names = {"python": python, "bin": python.parent, "here": Path(__file__).parent / "peers_live", "port": port}
        names |= {"model": model, "name": FILES.get(model, model), "models": FOLDER / "models", "folder": folder}
        names |= {"workers": workers}
        env = environments.variables(None if peer.kind == "sereno" else 1) | {"MODEL": model} | dict(environ or {})
        env |= {key: value.format(**names) for key, value in peer.environ.items()}
        env["PATH"] = os.pathsep.join([str(python.parent), env.get("PATH", "")])
        bodies = [json.dumps(peer.body(row)).encode() for row in rows]
        file = folder / "bodies"
        file.write_bytes(b"\n".join(bodies) + b"\n")
        command = [part.format(**names) for part in peer.command]
        first, last = cores()
        os.sched_setaffinity(0, {last})  # whatever asks stays off the server's core
        try:
            log = LOGS / f"live-{name}-{model}.log"
            with Server(command, port, env=env, on=on or [first], folder=folder, log=log) as server:
                seconds, answer = server.until_answer(peer.path, bodies[0])
                if not abs(peer.answer(answer) - right[model][0]) <= 1e-9:
                    raise WrongOutput(f"the first answer differs from direct prediction: {answer}")
                one = Running(
                    peer=peer,
                    server=server,
                    folder=folder,
                    bodies=file,
                    texts=bodies,
                    right=right[model],
                    seconds=seconds,
                )
                one.check()
                yield one
        finally:
            os.sched_setaffinity(0, {first, last})


def measure(one: Running, connections: int, seconds: float, on: Sequence[int]) -> dict[str, Any]:
    load = os.getloadavg()[0]
    before = one.server.cpu_seconds(), one.server.cpu_of_largest()
    result = wrk(one.url, one.bodies, connections, seconds, on)
    after = one.server.cpu_seconds(), one.server.cpu_of_largest()
    each, worker_each = (
        (end - start) / max(result["requests"], 1) * 1e6 for start, end in zip(before, after, strict=True)
    )
    result |= {"connections": connections, "cpu_us": each, "worker_cpu_us": worker_each, "load": round(load, 2)}
    return result


def kept(folder: Path, model: str) -> int:
    """How many answers of a model are in the log of a home whose server has ended."""
    from deltalake import DeltaTable

    command = [sys.executable, "-m", "sereno.answers.compactor", str(folder), "--once", model]
    subprocess.run(command, check=True, capture_output=True, env=environments.variables(None))
    actions = DeltaTable(folder / "answers" / model).get_add_actions(flatten=True)
    return sum(pa.table(actions)["num_records"].to_pylist())


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One that takes part: a peer in an arrangement of its own."""

    name: str  # in the tables
    peer: str
    workers: int = 1
    on: tuple[int, ...] = ()  # the server's cores; none: the first
    load_on: tuple[int, ...] = ()  # the load's cores; none: the last
    environ: tuple[tuple[str, str], ...] = ()


class Campaign:
    """Rounds, what was measured in them, and who is left out and why."""

    def __init__(self) -> None:
        self.conditions = report.conditions()
        self.left_out: dict[str, str] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.python: dict[str, dict[str, str]] = {}  # environment → its packages

    def rounds(
        self, part: str, entries: Sequence[Entry], model: str, *, connections: Sequence[int], seconds: int, rounds: int
    ) -> None:
        """Each entry once per round, every round beginning with another; the first round is a try that does not count."""
        for number in range(rounds + 1):
            turn = number % len(entries)
            for entry in [*entries[turn:], *entries[:turn]]:
                if f"{part}: {entry.name}" in self.left_out:
                    continue
                try:
                    self._once(part, entry, model, connections, seconds, number)
                except LEAVE_OUT as error:
                    self.left_out[f"{part}: {entry.name}"] = f"{type(error).__name__}: {error}"
                    print(f"LEFT OUT: {part}: {entry.name}: {error}", flush=True)
                    self.runs[part] = [run for run in self.runs.get(part, []) if run["name"] != entry.name]

    def _once(self, part: str, entry: Entry, model: str, connections: Sequence[int], seconds: int, number: int) -> None:
        first, last = cores()
        load_on = entry.load_on or (last,)
        with running(
            entry.peer, model, workers=entry.workers, on=entry.on or (first,), environ=dict(entry.environ)
        ) as one:
            if not number:  # compiled modules and page cache are warm now
                return
            warmed = wrk(one.url, one.bodies, 16, WARM_SECONDS, load_on)
            measured = [measure(one, count, seconds, load_on) for count in connections]
            costs = asdict(one.server.memory()) | {"start": one.seconds}
            if part == "log" and entry.name != "sereno-off":
                one.server.stop()
                answered = sum(run["requests"] - run["refused"] for run in [warmed, *measured])
                costs["kept"] = kept(one.folder, FILES[model]) / answered  # a little over 1: wrk leaves when time is up
        if one.peer.venv and one.peer.venv not in self.python:
            self.python[one.peer.venv] = environments.installed(one.peer.venv)
        for run in measured:
            self.runs.setdefault(part, []).append(
                {"name": entry.name, "kind": one.peer.kind, "round": number, **run, **costs}
            )
            print(
                f"  {part} · {entry.name}, {run['connections']}: {run['rate']:,.0f} req/s, p50 {run['p50_ms']:.3f} ms,"
                f" {run['cpu_us']:.1f} µs CPU each, start {one.seconds:.2f} s, {costs['worker_rss_mb']:.0f} MB",
                flush=True,
            )


def peers_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """LightGBM, 23 numbers a row: everybody."""
    entries = [Entry(name=name, peer=name) for name in arguments.peers or MAIN]
    _rounds(campaign, "peers", entries, "heavy", arguments, arguments.concurrency)


def frame_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """A scikit-learn pipeline whose `predict` is given a DataFrame."""
    entries = [Entry(name=name, peer=name) for name in ("sereno", "fastapi-pandas")]
    _rounds(campaign, "frame", entries, "frame", arguments, [64])


def log_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """What it costs to have answers on disk before they leave."""
    entries = [Entry(name=name, peer=name) for name in ("sereno", "sereno-sync", "sereno-off")]
    _rounds(campaign, "log", entries, "heavy", arguments, [64])


def start_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """From exec to the first right answer, and the memory after a second of 16 connections."""
    entries = [Entry(name=name, peer=name) for name in ("sereno", "fastapi-numpy", "limit")]
    campaign.rounds("start", entries, "heavy", connections=[16], seconds=1, rounds=2 * arguments.rounds + 1)


def workers_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """Two workers on two cores. The load must share them, so the model takes long and the load little.

    One worker has a core to itself and wrk the other; two workers and wrk have both. So what wrk takes is at the
    expense of the two, and the ratio is rather too low.
    """
    both = cores()
    slow = (("MILLISECONDS", "0.25"),)
    one = Entry(name="1 worker", peer="sereno", environ=slow)
    two = Entry(name="2 workers", peer="sereno", workers=2, on=both, load_on=both, environ=slow)
    _rounds(campaign, "workers", [one, two], "slow", arguments, [32])


def _rounds(
    campaign: Campaign,
    part: str,
    entries: Sequence[Entry],
    model: str,
    arguments: argparse.Namespace,
    connections: Sequence[int],
) -> None:
    campaign.rounds(part, entries, model, connections=connections, seconds=arguments.seconds, rounds=arguments.rounds)


MAIN = [name for name in PEERS if name not in ("sereno-sync", "sereno-off")]
PARTS: dict[str, Callable[[Campaign, argparse.Namespace], None]] = {
    "peers": peers_part,
    "frame": frame_part,
    "log": log_part,
    "start": start_part,
    "workers": workers_part,
}


def live(arguments: argparse.Namespace) -> None:
    require_wrk()
    campaign = Campaign()
    parts = arguments.parts or (["peers"] if arguments.peers else list(PARTS))
    try:
        for part in parts:
            PARTS[part](campaign, arguments)
    finally:  # what was measured is kept even if the rest cannot be
        _save(campaign, arguments)


def _save(campaign: Campaign, arguments: argparse.Namespace) -> None:
    tables = {
        f"{part}: {PARTS[part].__doc__.splitlines()[0]}": live_report.table(runs)
        for part, runs in campaign.runs.items()
    }
    tables["Targets"] = live_report.targets_table(campaign.runs)
    facts = {"conditions": campaign.conditions, "left_out": campaign.left_out, "environments": campaign.python}
    is_try = arguments.peers or arguments.seconds < SECONDS or arguments.rounds < ROUNDS
    folder = DATA / "results" if is_try else report.RESULTS
    report.save("live", vars(arguments), tables, facts | {"runs": campaign.runs}, folder)
