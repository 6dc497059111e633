"""The process that makes tables of the answers that workers have logged: started, started again, and ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MODULE = "sereno.answers.compactor"
QUICK = 60.0  # it failed if it ends within so many seconds
LONGEST_PAUSE = 300.0
SECONDS_TO_END = 10.0  # it finishes what it is at, then it is killed; the next one goes on where it was


class Compacting:
    """At most one such process. It ends by itself when its stdin does: when this process is gone."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started = self._due = 0.0

    def start(self, home: Path) -> None:
        """There are answers to look after, from now on."""
        if self._home is None:
            self._home = home
            self._start()

    def look(self) -> None:
        """Start it again where it ended, later each time."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._close()
            self._failures = 0 if now - self._started > QUICK else self._failures + 1
            pause = min(LONGEST_PAUSE, 2.0 ** min(10, self._failures))
            self._due = now + pause
            self._note(
                f"the compactor of the answers ended with {code}. It starts again in {pause:g} s; no answer is lost."
            )
        if self._home is not None and self._process is None and self._due <= now:
            self._start()

    def stop(self) -> None:
        """Have it end."""
        self._home = None
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        if self._process is not None:
            try:
                self._process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._close()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, str(self._home)],
            stdin=subprocess.PIPE,
            stdout=2,
            process_group=0,
        )

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
