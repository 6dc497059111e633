"""Runs one command and says what it took: seconds, CPU seconds and peak memory of all its processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CORES = 2
EVERY = 0.05  # seconds between two looks at the memory
SHARE = 0.05  # of one core: what looking may cost; above that it looks less often
PAGE = os.sysconf("SC_PAGE_SIZE")
BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float  # from exec to exit
    cpu_seconds: float  # user and system, of all processes
    rss_mb: float  # peak of the sum; memory that processes share counts in each of them
    pss_mb: float  # peak of the sum; shared memory counts once


class CommandFailed(Exception):
    """The command ended with another code than 0."""


def run(command: Sequence[str], *, env: Mapping[str, str], log: Path, watch: bool = True, limit: float = 1_800) -> Cost:
    """Run a command on CORES cores, with no other child of this process alive. Ends whatever it leaves running."""
    # Daemons whose parent ends become our children: they stay in the sum, and their CPU time comes to us.
    ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1, 0, 0, 0)
    os.sync()  # what the one before wrote is not this one's burden
    before, cores = _cpu_of_ended_children(), os.sched_getaffinity(0)
    memory = _MemoryWatch()
    with log.open("wb") as file:
        os.sched_setaffinity(0, sorted(cores)[:CORES])  # of this thread, for the child to inherit
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        os.sched_setaffinity(0, cores)
        overdue = threading.Timer(limit, process.kill)
        overdue.start()
        if watch:
            memory.start()
        try:
            _, status, _ = os.wait4(process.pid, 0)  # Popen.wait would keep the usage to itself
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            overdue.cancel()
            memory.stopped.set()
            _end_what_is_left()
    if watch:
        memory.join()
    if process.returncode != 0:
        said = log.read_text(errors="replace").strip().splitlines()
        raise CommandFailed(f"ended with {process.returncode}: {said[-1] if said else 'no word'} (see {log})")
    return Cost(
        seconds=seconds,
        cpu_seconds=_cpu_of_ended_children() - before,
        rss_mb=memory.rss / 2**20,
        pss_mb=memory.pss / 2**20,
    )


def _cpu_of_ended_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def descendants(pid: int | str) -> Iterator[str]:
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield child
                yield from descendants(child)
    except OSError:  # ended meanwhile
        return


class _MemoryWatch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rss = self.pss = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        pss_due = 0.0
        while True:
            start = time.perf_counter()
            pids = list(descendants(os.getpid()))
            self.rss = max(self.rss, sum(map(_rss, pids)))
            rss_done = time.perf_counter()
            if rss_done >= pss_due:  # walks all page tables: long for a large process
                self.pss = max(self.pss, sum(map(_pss, pids)))
                now = time.perf_counter()
                pss_due = now + (now - rss_done) / SHARE
            if self.stopped.wait(max(EVERY, (rss_done - start) / SHARE)):
                return


def _rss(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _pss(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # ended meanwhile
        return 0


def _end_what_is_left() -> None:
    """Daemons get two seconds to end by themselves; all are waited for, which brings their CPU time."""
    deadline = time.monotonic() + 2
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            if time.monotonic() > deadline:
                for pid in list(descendants(os.getpid())):
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
