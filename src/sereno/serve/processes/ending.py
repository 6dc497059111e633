"""How a process beside the workers is ended: it is asked to, given its time, and killed."""

from __future__ import annotations

import subprocess
import time


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
