"""Starts a server, asks it, loads it with wrk, and says what it and all its processes cost."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from benchmarks.measure import BECOME_SUBREAPER, PAGE, descendants
from benchmarks.workload import FOLDER

TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.004  # seconds between two tries of a server that starts
START_LIMIT = 120.0
JSON = {"Content-Type": "application/json"}


class ServerFailed(Exception):
    """A server that does not start, or ended."""


class NotYet(Exception):
    """A server that starts gave another answer than was waited for."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of all processes together, and of the largest one."""

    rss_mb: float
    pss_mb: float
    worker_rss_mb: float
    worker_pss_mb: float


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@cache  # of before anything was pinned
def cores() -> tuple[int, int]:
    """The core of servers, and the core of whatever asks them."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return first, second


class Server:
    """A server with all the processes that it starts, on some cores; ended with the `with` block.

    One at a time: all children of this process, but those in `others`, are taken for the server's.
    """

    others: ClassVar[set[int]] = set()  # children of this process that are not the server's

    def __init__(
        self, command: Sequence[str], port: int, *, env: Mapping[str, str], on: Iterable[int], folder: Path, log: Path
    ) -> None:
        # Daemons whose parent ends become our children, so they stay in the sum.
        ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1, 0, 0, 0)
        self.port, self.log = port, log
        log.parent.mkdir(parents=True, exist_ok=True)
        before = os.sched_getaffinity(0)
        with log.open("wb") as file:
            os.sched_setaffinity(0, set(on))  # for the child to inherit
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            os.sched_setaffinity(0, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all processes: by SIGTERM to the first, and by SIGKILL what is left ten seconds later."""
        if self.process.poll() is not None and not self.pids():
            return
        self.process.terminate()
        deadline = time.monotonic() + 10
        while self.process.poll() is None or self.pids():
            for pid in self.pids():
                if time.monotonic() > deadline:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if pid != self.process.pid:  # not ours to wait for unless it was left to us
                    with suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """Of all its processes."""
        return [pid for pid in map(int, descendants(os.getpid())) if pid not in self.others]

    def until_answer(self, path: str, body: bytes | None = None) -> tuple[float, Any]:
        """Seconds from exec to the first answer with status 200, and that answer. Without a body it is a GET."""
        return self.until(lambda: _ask_for_json(self.port, path, body))

    def until(self, asked: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds from exec to the first time that `asked` raises nothing, and what it returns."""
        last: object = "nothing listened"
        while (seconds := time.perf_counter() - self.started) < START_LIMIT:
            if self.process.poll() is not None:
                break
            try:
                answer = asked()
            except (OSError, http.client.HTTPException, NotYet) as error:
                last = error
            else:
                return time.perf_counter() - self.started, answer
            time.sleep(POLL)
        said = self.log.read_text(errors="replace").strip().splitlines()
        raise ServerFailed(f"no answer in {seconds:.0f} s; last: {last}; its last words: {said[-1:]} (see {self.log})")

    def cpu_seconds(self) -> float:
        """User and system time of all processes up to now, ended ones included if their parents waited for them."""
        return sum(map(_cpu_seconds, self.pids()))

    def largest(self) -> int:
        """The process with the most memory: the worker, or one of them."""
        return max(self.pids(), key=_memory)

    def cpu_of_largest(self) -> float:
        return _cpu_seconds(self.largest())

    def memory(self) -> Memory:
        each = sorted(map(_memory, self.pids()))
        largest = each[-1] if each else (0, 0)
        rss, pss = (sum(column) for column in zip(*each, strict=True)) if each else (0, 0)
        return Memory(
            rss_mb=rss / 2**20, pss_mb=pss / 2**20, worker_rss_mb=largest[0] / 2**20, worker_pss_mb=largest[1] / 2**20
        )


def ask(port: int, path: str, body: bytes | None, timeout: float = 30) -> tuple[int, bytes]:
    """One request on a connection of its own, a GET without a body: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET" if body is None else "POST", path, body, {} if body is None else JSON)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _ask_for_json(port: int, path: str, body: bytes | None) -> Any:
    status, answer = ask(port, path, body)
    if status != 200:
        raise NotYet(f"status {status}: {answer[:200]!r}")
    return json.loads(answer)


def require_wrk() -> None:
    if not shutil.which("wrk"):
        raise SystemExit(
            "benchmarks: wrk is not here. Install it (a package of most distributions: apt-get install wrk)."
        )


@contextmanager
def pinned(on: Iterable[int]) -> Iterator[None]:
    """What is started in the block is on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(on))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wrk(url: str, bodies: Path, connections: int, seconds: float, on: Iterable[int]) -> dict[str, Any]:
    """A load of the bodies of a file, one a line, in turn; and what wrk saw."""
    return run_wrk(FOLDER / "wrk.lua", [str(bodies)], url, connections, seconds, on)


def run_wrk(
    script: Path, arguments: Sequence[str], url: str, connections: int, seconds: float, on: Iterable[int]
) -> dict[str, Any]:
    """What wrk saw, on one thread: each of so many connections sends its next request when it has its answer."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s"]
    text, cpu_seconds = run_load([*command, "-s", str(script), url, "--", *arguments], on)
    found = re.search(r"^RESULT (.*)$", text, re.MULTILINE)
    if not found:
        raise ServerFailed(f"wrk said {text.strip()[-300:]!r}")
    result: dict[str, Any] = json.loads(found[1])
    result["rate"] = result["requests"] / result["seconds"]
    result["wrk_cores"] = cpu_seconds / result["seconds"]
    return result


def run_load(command: Sequence[str], on: Iterable[int]) -> tuple[str, float]:
    """What a command that is none of the server's processes says, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pinned(on):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    Server.others.add(process.pid)
    text = process.communicate()[0]
    Server.others.discard(process.pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return text, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended meanwhile
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def _memory(pid: int) -> tuple[int, int]:
    """RSS and PSS in bytes."""
    try:
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        pss = int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # ended meanwhile
        return 0, 0
    return rss, pss
