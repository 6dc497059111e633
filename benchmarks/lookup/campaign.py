"""Sereno and its peers, one key a request: how many requests, how soon answered, at what cost."""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments, report
from benchmarks.live import LEAVE_OUT
from benchmarks.lookup import redis, tables
from benchmarks.lookup import report as lookup_report
from benchmarks.lookup.build import build_part
from benchmarks.lookup.swap import swap_part
from benchmarks.measure import CORES, CommandFailed
from benchmarks.peers_lookup.known import PEERS, Peer
from benchmarks.server import Server, ServerFailed, cores, free_port, pinned, require_wrk, run_load, run_wrk
from benchmarks.verify import WrongOutput
from benchmarks.workload import DATA, FOLDER, LOGS

CONNECTIONS = (1, 16, 64)
KEYS = (1_000_000, 10_000_000)
ROUNDS, SECONDS = 3, 4  # with fewer it is but a try
WARM_SECONDS = 1
CHECKED, CALLERS = 320, 16
MODEL_FILE = FOLDER / "models" / "lookup.py"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that has answered rightly."""

    peer: Peer
    server: Server
    keys: int
    seconds: float  # from exec to the first answer

    def check(self) -> None:
        """Raise WrongOutput unless random keys, asked by several callers at once, get their own predictions."""
        drawn = random.Random(self.keys)
        asked = [0, self.keys - 1, *(drawn.randrange(self.keys) for _ in range(CHECKED - 2))]
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda first: self._ask_in_turn(asked[first::CALLERS]), range(CALLERS)))

    def _ask_in_turn(self, keys: Sequence[int]) -> None:
        its = tables.table(self.keys)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        for key in keys:
            found = self._found_in_redis(key) if self.peer.speaks_redis else self._found(connection, key)
            right = its.outputs(key)
            if not self.peer.is_constant and (found[1:] != right[1:] or not abs(found[0] - right[0]) <= 1e-9):
                raise WrongOutput(f"key {key}: {found}, expected {right}")
        connection.close()

    def _found(self, connection: http.client.HTTPConnection, key: int) -> tables.Outputs:
        path, body = (part.replace("{key}", str(key)) for part in (self.peer.path, self.peer.body))
        if body:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
        else:
            connection.request("GET", path)
        response = connection.getresponse()
        answer = response.read()
        missing = [name for name in self.peer.headers if response.getheader(name) is None]
        if response.status != 200 or missing:
            raise WrongOutput(f"key {key}: status {response.status}, headers missing: {missing}; {answer[:300]!r}")
        return self.peer.answer(json.loads(answer))

    def _found_in_redis(self, key: int) -> tables.Outputs:
        client = redis.Client(self.server.port)
        answer = client.get(redis.name_of(key))
        client.close()
        if answer is None:
            raise WrongOutput(f"key {key} is unknown")
        return self.peer.answer(json.loads(answer))

    def load(self, connections: int, seconds: float, seed: int) -> dict[str, Any]:
        """What whoever asks for random keys saw."""
        on = [cores()[1]]
        if self.peer.speaks_redis:
            return self._redis_load(connections, seconds, on)
        arguments = [str(self.keys), str(seed), self.peer.path, *filter(None, [self.peer.body])]
        url = f"http://127.0.0.1:{self.server.port}"
        return run_wrk(Path(__file__).with_name("random_keys.lua"), arguments, url, connections, seconds, on)

    def _redis_load(self, connections: int, seconds: float, on: Sequence[int]) -> dict[str, Any]:
        command = [
            "redis-benchmark",
            "-p",
            str(self.server.port),
            "-c",
            str(connections),
            "-r",
            str(self.keys),
            "--csv",
        ]
        found: dict[str, float] = {}
        count, cpu_seconds = 20_000, 0.0  # it must be told how many, not how long
        for _ in range(2):
            text, cpu_seconds = run_load([*command, "-n", str(count), "GET", "prediction:__rand_int__"], on)
            lines = [line for line in text.splitlines() if line.startswith('"')]
            if len(lines) != 2:
                raise ServerFailed(f"redis-benchmark said {text.strip()[-300:]!r}")
            found = {key: float(value) for key, value in next(csv.DictReader(lines)).items() if key != "test"}
            requests, count = count, int(found["rps"] * seconds)
        took = requests / found["rps"]
        times = {"p50_ms": found["p50_latency_ms"], "p99_ms": found["p99_latency_ms"]}
        counts = {"requests": requests, "seconds": took, "rate": found["rps"], "refused": 0, "broken": 0}
        return counts | times | {"wrk_cores": cpu_seconds / took}

    def measure(self, connections: int, seconds: float, seed: int) -> dict[str, Any]:
        """The same, and the processor time that the server took for it."""
        load = os.getloadavg()[0]
        before = self.server.cpu_seconds()
        result = self.load(connections, seconds, seed)
        each = (self.server.cpu_seconds() - before) / max(result["requests"], 1) * 1e6
        return result | {"connections": connections, "cpu_us": each, "load": round(load, 2)}


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where Sereno has published predictions of all keys."""

    folder: Path
    source: Path

    def publish(self, *options: str, on: Sequence[int] | None = None) -> None:
        """Score all rows and publish them. Raises CalledProcessError."""
        run = ["run", str(MODEL_FILE), "--source", str(self.source), "--workers", str(len(on) if on else CORES)]
        self.sereno(*run, *options, on=on)

    def sereno(self, *command: str, on: Sequence[int] | None = None) -> None:
        """Raises CommandFailed."""
        log = LOGS / "lookup-sereno.log"
        full = [sys.executable, "-m", "sereno", *command, "--home", str(self.folder)]
        with log.open("wb") as file, pinned(on or cores()):
            process = subprocess.Popen(full, env=environments.variables(None), stdout=file, stderr=subprocess.STDOUT)
        Server.others.add(process.pid)
        ended = process.wait()
        Server.others.discard(process.pid)
        if ended:
            raise CommandFailed(f"sereno {command[0]} ended with {ended}: {log.read_text(errors='replace')[-300:]}")


class Campaign:
    """Rounds, what was measured in them, and who is left out and why."""

    def __init__(self, stack: ExitStack) -> None:
        self.conditions = report.conditions()
        self.left_out: dict[str, str] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.python: dict[str, dict[str, str]] = {}  # environment → its packages
        self._stack = stack
        self._homes: dict[tuple[int, str], Home] = {}

    def home(self, keys: int, order: str = "shuffled") -> Home:
        """One for the whole campaign; published by a real run when first asked for. Raises CommandFailed."""
        if (keys, order) not in self._homes:
            LOGS.mkdir(parents=True, exist_ok=True)
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(dir=DATA, prefix="output-home-"))
            home = Home(folder=Path(folder), source=tables.source(keys, order))
            print(f"publishing {keys:,} predictions", flush=True)
            home.publish()
            self._homes[keys, order] = home
        return self._homes[keys, order]

    def leave_out(self, name: str, why: Exception) -> None:
        self.left_out[name] = f"{type(why).__name__}: {why}"
        print(f"LEFT OUT: {name}: {self.left_out[name]}", flush=True)

    @contextmanager
    def running(self, name: str, keys: int, *, workers: int = 1, on: Sequence[int] | None = None) -> Iterator[Running]:
        """Start one of PEERS, on the core of servers if not said otherwise, and check its answers."""
        peer, python = PEERS[name], PEERS[name].python()
        home = self.home(keys).folder if peer.kind == "sereno" else ""
        port, first, last = free_port(), *cores()
        names = {"python": python, "bin": python.parent, "port": port, "port2": free_port(), "home": home}
        names |= {"store": tables.store(keys, peer.store) if peer.store else "", "file": MODEL_FILE, "workers": workers}
        with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as folder, pinned([last]):
            names["folder"] = folder
            env = environments.variables(None if peer.kind == "sereno" else 1)
            env |= {key: value.format(**names) for key, value in peer.environ.items()}
            command = [part.format(**names) for part in peer.command]
            log = LOGS / f"lookup-{name}.log"
            with Server(command, port, env=env, on=on or [first], folder=Path(folder), log=log) as server:
                if peer.speaks_redis:
                    seconds, _ = server.until(lambda: redis.connected(port))
                else:
                    path, body = (part.replace("{key}", "0") for part in (peer.path, peer.body))
                    seconds, _ = server.until_answer(path, body.encode() if body else None)
                one = Running(peer=peer, server=server, keys=keys, seconds=seconds)
                one.check()
                yield one

    def rounds(self, entries: Sequence[tuple[str, int]], connections: Sequence[int], seconds: int, rounds: int) -> None:
        """Each peer and number of keys once per round, every round beginning with another; the first is a try that does not
        count."""
        for number in range(rounds + 1):
            turn = number % len(entries)
            for name, keys in [*entries[turn:], *entries[:turn]]:
                title = f"{name}, {keys:,} keys"
                if title in self.left_out:
                    continue
                try:
                    self._once(name, keys, connections, seconds, number)
                except (*LEAVE_OUT, CommandFailed) as error:
                    self.leave_out(title, error)
                    kept = [run for run in self.runs.get("peers", []) if (run["name"], run["keys"]) != (name, keys)]
                    self.runs["peers"] = kept

    def _once(self, name: str, keys: int, connections: Sequence[int], seconds: int, number: int) -> None:
        with self.running(name, keys) as one:
            if not number:  # its store, index and compiled modules are there now
                return
            one.load(16, WARM_SECONDS, number)
            measured = [one.measure(count, seconds, 1_000 * number + count) for count in connections]
            costs = asdict(one.server.memory()) | {"start": one.seconds}
        if one.peer.venv and one.peer.venv not in self.python:
            self.python[one.peer.venv] = environments.installed(f"{one.peer.venv}-lookup")
        for run in measured:
            about = {"name": name, "kind": one.peer.kind, "keys": keys, "round": number}
            self.runs.setdefault("peers", []).append(about | run | costs)
            print(
                f"  {name}, {keys:,} keys, {run['connections']}: {run['rate']:,.0f} req/s, p50 {run['p50_ms']:.3f} ms,"
                f" p99 {run['p99_ms']:.3f} ms, {run['cpu_us']:.1f} µs CPU each, {costs['worker_rss_mb']:.0f} MB",
                flush=True,
            )


def peers_part(campaign: Campaign, arguments: argparse.Namespace) -> None:
    """One key a request, uniformly random: everybody."""
    names, few = arguments.peers or list(PEERS), min(arguments.keys)
    entries = []
    for keys in arguments.keys:
        for name in names:
            most = PEERS[name].most_keys
            if arguments.peers or keys == few or most is None or keys <= most:
                entries.append((name, keys))
    campaign.rounds(entries, arguments.concurrency, arguments.seconds, arguments.rounds)


PARTS: dict[str, Callable[[Campaign, argparse.Namespace], None]] = {
    "peers": peers_part,
    "build": build_part,
    "swap": swap_part,
}


def lookup(arguments: argparse.Namespace) -> None:
    require_wrk()
    DATA.mkdir(exist_ok=True)
    with ExitStack() as stack:
        campaign = Campaign(stack)
        try:
            for part in arguments.parts or (["peers"] if arguments.peers else list(PARTS)):
                try:
                    PARTS[part](campaign, arguments)
                except (*LEAVE_OUT, CommandFailed) as error:
                    campaign.leave_out(part, error)
        finally:  # what was measured is kept even if the rest cannot be
            _save(campaign, arguments)


def _save(campaign: Campaign, arguments: argparse.Namespace) -> None:
    told = lookup_report.tables(campaign.runs)
    facts = {"conditions": campaign.conditions, "left_out": campaign.left_out, "environments": campaign.python}
    is_try = arguments.peers or arguments.parts or arguments.seconds < SECONDS or arguments.rounds < ROUNDS
    folder = DATA / "results" if is_try or tuple(arguments.keys) != KEYS else report.RESULTS
    report.save("lookup", vars(arguments), told, facts | {"runs": campaign.runs}, folder)
