"""How a process beside the workers is ended: it is asked to, given its time, and killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

COMPACTOR_SECONDS = 10.0  # a compactor finishes what it is at; then it is killed, and the next one goes on where it was
BUILDER_SECONDS = 5.0  # the same of a builder
AFTER_DRAIN_SECONDS = COMPACTOR_SECONDS + BUILDER_SECONDS  # what a server may take beyond `serve.drain_seconds`


class Ending:
    """The processes that were told to end and may not have yet. `seconds`: what they are given, all together."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._processes: list[subprocess.Popen[bytes]] = []

    def __bool__(self) -> bool:
        """Whether one of them is still there."""
        self._processes = [process for process in self._processes if process.poll() is None]
        return bool(self._processes)

    def end(self, process: subprocess.Popen[bytes] | None) -> None:
        """Tell it to end, if it runs."""
        if process is not None and process.poll() is None:
            process.terminate()
            self._processes.append(process)

    @property
    def pids(self) -> Iterator[int]:
        """Of those whose end was not seen yet."""
        return (process.pid for process in self._processes if process.returncode is None)

    def wait(self) -> None:
        """Until they have ended."""
        deadline = time.monotonic() + self._seconds
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
