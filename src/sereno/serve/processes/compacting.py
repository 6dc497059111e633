"""The processes that make tables of the answers that workers have logged: started, started again, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sereno.serve.processes.control import Served
from sereno.serve.processes.ending import COMPACTOR_SECONDS, Ending

MODULE = "sereno.answers.compactor"
QUICK = 60.0  # it failed if it ends within so many seconds
LONGEST_PAUSE = 300.0


@dataclass
class _Compactor:
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    due: float = 0.0


class Compacting:
    """One process for each home. They end by themselves when this process is gone."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._compactors: dict[str, _Compactor] = {}  # by home
        self._ending = Ending(COMPACTOR_SECONDS)

    def serve(self, models: Iterable[Served]) -> None:
        """Look after the answers of these models, from now on."""
        wanted: dict[str, list[str]] = {}
        for model in models:
            if model.log_days is not None:
                there = [f"--storage={model.storage}"] if model.storage else []
                wanted.setdefault(model.home, there).append(f"--days={model.name}={model.log_days}")
        for home, compactor in list(self._compactors.items()):
            if compactor.arguments != wanted.get(home):
                self._ending.end(self._compactors.pop(home).process)
        for home, arguments in wanted.items():
            if home not in self._compactors:
                self._compactors[home] = _Compactor(arguments)
        self.look()

    def look(self) -> None:
        """Start what has to run; what ended, later each time."""
        now = time.monotonic()
        for home, compactor in self._compactors.items():
            if compactor.process is not None and (code := compactor.process.poll()) is not None:
                compactor.process = None
                self._has_failed(home, compactor, f"ended with {code}")
            if compactor.process is None and compactor.due <= now:
                compactor.started = now
                try:
                    compactor.process = _start([home, f"--parent={os.getpid()}", *compactor.arguments])
                except OSError as error:
                    self._has_failed(home, compactor, f"cannot be started: {error.strerror}")

    def _has_failed(self, home: str, compactor: _Compactor, how: str) -> None:
        now = time.monotonic()
        compactor.failures = 0 if now - compactor.started > QUICK else compactor.failures + 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(10, compactor.failures))
        compactor.due = now + pause
        self._note(f"the compactor of the answers in {home} {how}. It starts again in {pause:g} s; no answer is lost.")

    @property
    def pids(self) -> Iterator[int]:
        """Of the processes whose end was not seen yet."""
        yield from (one.process.pid for one in self._compactors.values() if one.process is not None)
        yield from self._ending.pids

    def stop(self) -> None:
        """Have them end."""
        for compactor in self._compactors.values():
            self._ending.end(compactor.process)
        self._compactors.clear()

    def wait(self) -> None:
        """Until they have ended."""
        self._ending.wait()


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A compactor to which a SIGTERM comes late rather than too soon: it is to put away what is there before it ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # who is started has it so, too
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, *arguments], stdin=subprocess.DEVNULL, stdout=2, process_group=0
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
