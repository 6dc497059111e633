"""Campaigns against `sereno serve`: too many requests, callers that drip, a killed worker, hostile requests.

Reloads and SIGTERMs under load are soak tests: `make soak`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import report
from benchmarks.environments import variables
from benchmarks.live import Running, measure, running
from benchmarks.openloop import Offer
from benchmarks.server import Memory, Server, cores, require_wrk
from benchmarks.workload import DATA

TIMES_TOO_MANY = 10
SLOW = {"MILLISECONDS": "2"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    what: str
    least: float | None = None
    most: float | None = None
    measured: float

    @property
    def is_reached(self) -> bool:
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a campaign found, in words that are printed too, and all that it measured."""

    findings: list[Finding]
    facts: Mapping[str, Any]


class Offering:
    """A load under way, in a process of its own on the load's core."""

    def __init__(self, offer: Offer) -> None:
        command = [sys.executable, "-m", "benchmarks.openloop", json.dumps(asdict(offer))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables(1))
        Server.others.add(self.process.pid)

    def outcome(self) -> dict[str, Any]:
        text = self.process.communicate()[0]
        Server.others.discard(self.process.pid)
        if self.process.returncode:
            raise RuntimeError(f"the load ended with {self.process.returncode}")
        found: dict[str, Any] = json.loads(text)
        return found


class MemoryWatch(threading.Thread):
    """The most that the server took since the start of the watch."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.stopped = server, threading.Event()
        self.seen: list[Memory] = []

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.seen.append(self.server.memory())

    def most(self, of: Callable[[Memory], float]) -> float:
        self.stopped.set()
        self.join()
        return max(map(of, self.seen))


def offer(one: Running, rate: float, seconds: float, **more: Any) -> Offering:
    path, bodies = one.peer.path, str(one.bodies)
    return Offering(Offer(port=one.server.port, path=path, bodies=bodies, rate=rate, seconds=seconds, **more))


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def overload(arguments: argparse.Namespace) -> Told:
    """Ten times what it can do, from callers that do not wait, with a model of 2 ms a row."""
    seconds = arguments.seconds or 60
    with running("sereno", "slow", environ=SLOW) as one:
        peaks = [measure(one, 32, max(seconds // 6, 2), [cores()[1]])["rate"] for _ in range(2)]
        before = one.server.memory()
        say(f"peak {max(peaks):,.0f} req/s; all processes {before.rss_mb:.0f} MB")
        calm, after = 5.0, 10.0
        probe = offer(one, 20, calm + seconds + after, every=True, seed=2)
        time.sleep(calm)
        watch = MemoryWatch(one.server)
        watch.start()
        cpu = one.server.cpu_seconds()
        flood = offer(one, max(peaks) * TIMES_TOO_MANY, seconds).outcome()
        flood["server_cpu_share"] = (one.server.cpu_seconds() - cpu) / (time.monotonic() - flood["started"])
        memory = watch.most(lambda memory: memory.rss_mb)
        probed = probe.outcome()
        peaks += [measure(one, 32, max(seconds // 6, 2), [cores()[1]])["rate"] for _ in range(2)]
    peak = statistics.median(peaks)
    flooded, ended = flood["started"] - probed["started"], flood["started"] + seconds - probed["started"]
    usual = [took for due, status, took in probed["each"] if status == 200 and due < flooded]
    wrong = [moment for moment, is_usual in _halves(probed["each"], ended, 2 * max(usual)) if not is_usual]
    facts = {"peaks": peaks, "memory_before": asdict(before), "flood": flood, "usual_ms": _ms(usual), "probed": probed}
    say(f"offered {flood['offered']:,} in {seconds} s: {flood['statuses']}; a refusal took {flood['refused_ms']} ms")
    say(f"of the load's core: {flood['cpu_share']:.2f}; late by (ms) {flood['lag_ms']}")
    say(f"answers took {flood['good_ms']} ms; of the server's core: {flood['server_cpu_share']:.2f}")
    say(f"usual {facts['usual_ms']} ms")
    return Told(
        findings=[
            Finding(what="overload: answers a second, × peak", least=0.9, measured=flood["good_rate"] / peak),
            Finding(what="overload: memory of all processes, × before", most=1.2, measured=memory / before.rss_mb),
            Finding(what="overload: seconds until as before", most=2, measured=max(wrong, default=0.0)),
            Finding(what="overload: no answer at all, requests", most=0, measured=_count(flood, "late", "broken")),
        ],
        facts=facts,
    )


def drip(arguments: argparse.Namespace) -> Told:
    """1,000 sockets that send a byte a second: what others notice of it."""
    seconds = arguments.seconds or 20
    found: dict[int, list[dict[str, Any]]] = {0: [], 1_000: []}
    with running("sereno", "heavy") as one:
        for _ in range(5):
            for sockets, outcomes in found.items():
                outcomes.append(offer(one, 1_000, seconds, is_precise=True, dripping=sockets).outcome())
                say(f"{sockets} dripping: {outcomes[-1]['statuses']}, ms {outcomes[-1]['good_ms']}")
    tails = [
        dripping["good_ms"]["p99"] / none["good_ms"]["p99"] for none, dripping in zip(*found.values(), strict=True)
    ]
    failed = sum(outcome["offered"] - outcome["statuses"].get("200", 0) for outcome in found[1_000])
    return Told(
        findings=[
            Finding(what="1,000 dripping sockets: others' p99, × without", most=1.2, measured=statistics.median(tails)),
            Finding(what="1,000 dripping sockets: others' requests that failed", most=0, measured=failed),
        ],
        facts={"outcomes": found},
    )


def kill(arguments: argparse.Namespace) -> Told:
    """kill -9 of a worker: how long until everything is answered again."""
    findings, facts = [], {}
    for workers in (1, 2):
        with running("sereno", "heavy", workers=workers) as one:
            probe = offer(one, 200, 20, every=True, patience=5)
            time.sleep(5)
            victim = one.server.largest()
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            probed = probe.outcome()
            is_new = victim not in one.server.pids()
        wrong = [probed["started"] + due - killed for due, status, _ in probed["each"] if status != 200]
        slow = [probed["started"] + due + took - killed for due, status, took in probed["each"] if took > 1]
        say(f"{workers} workers: {probed['statuses']}, ms {probed['good_ms']}")
        name = f"kill -9 of {'the' if workers == 1 else 'one of 2'} worker{'s' * (workers > 1)}"
        back = max(wrong + slow, default=0.0) if is_new else float("inf")
        findings.append(Finding(what=f"{name}: seconds until all is answered again", most=5, measured=back))
        facts[f"{workers} workers"] = probed
    return Told(findings=findings, facts=facts)


def hostile(arguments: argparse.Namespace) -> Told:
    """Broken, oversized, lying and half-finished requests, and right ones between them."""
    count = arguments.requests
    facts: dict[str, Any] = {"pieces": []}
    with running("sereno", "heavy") as one:
        pieces, memory = 10, []
        worker = one.server.largest()
        for piece in range(pieces):
            command = [
                sys.executable,
                "-m",
                "benchmarks.hostile",
                str(one.server.port),
                str(count // pieces),
                str(piece),
            ]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables(1))
            Server.others.add(process.pid)
            outcome = json.loads(process.communicate()[0])
            Server.others.discard(process.pid)
            memory.append(one.server.memory())
            facts["pieces"].append(outcome | {"memory": asdict(memory[-1])})
            say(f"{outcome['requests']:,} requests: {outcome['statuses']}; {memory[-1].rss_mb:.1f} MB")
        still = worker in one.server.pids()
        one.check()  # raises if answers are no longer right
    settled = memory[1].rss_mb  # the first pieces fill caches and pools
    return Told(
        findings=[
            Finding(
                what=f"{count:,} hostile requests: answers 500 to 599, but 503", most=0, measured=_sum(facts, "bugs")
            ),
            Finding(what="hostile: right requests between them that failed", most=0, measured=_sum(facts, "wronged")),
            Finding(what="hostile: workers that ended", most=0, measured=0 if still else 1),
            Finding(
                what="hostile: memory at the end, × after a fifth", most=1.05, measured=memory[-1].rss_mb / settled
            ),
            Finding(what="hostile: requests neither answered nor closed in 25 s", most=0, measured=_sum(facts, "held")),
        ],
        facts=facts,
    )


CAMPAIGNS: dict[str, Callable[[argparse.Namespace], Told]] = {
    "overload": overload,
    "drip": drip,
    "kill": kill,
    "hostile": hostile,
}


def load(arguments: argparse.Namespace) -> None:
    require_wrk()
    conditions = report.conditions()
    lines, facts = [["what", "to reach", "measured", ""], ["---", "---:", "---:", "---"]], {}
    for name in arguments.campaigns or CAMPAIGNS:
        print(f"{name}: {CAMPAIGNS[name].__doc__}", flush=True)
        told = CAMPAIGNS[name](arguments)
        facts[name] = told.facts
        for finding in told.findings:
            bound = f"≥ {finding.least:g}" if finding.least is not None else f"≤ {finding.most:g}"
            reached = "reached" if finding.is_reached else "**missed**"
            lines.append([finding.what, bound, f"{finding.measured:.3g}", reached])
    is_short = bool(arguments.seconds or arguments.campaigns)
    folder = DATA / "results" if is_short else report.RESULTS
    all_facts = {"conditions": conditions, "left_out": {}, "campaigns": facts}
    report.save("load", vars(arguments), {"Campaigns": report.markdown(lines)}, all_facts, folder)


def _halves(each: Sequence[tuple[float, int, float]], start: float, bound: float) -> Iterator[tuple[float, bool]]:
    """For every half second after `start`: its end, and whether all in it was answered, and most of it within `bound`."""
    number = 0
    while half := [one for one in each if 0 <= one[0] - start - number / 2 < 0.5]:
        number += 1
        is_usual = (
            all(status == 200 for _, status, _ in half) and statistics.median(took for _, _, took in half) <= bound
        )
        yield number / 2, is_usual


def _count(outcome: Mapping[str, Any], *names: str) -> int:
    return sum(outcome["statuses"].get(name, 0) for name in names)


def _sum(facts: Mapping[str, Any], name: str) -> int:
    return sum(piece[name] for piece in facts["pieces"])


def _ms(seconds: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(seconds) * 1e3, "most": max(seconds) * 1e3}
