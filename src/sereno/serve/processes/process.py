"""A worker as the supervisor sees it: a process, the line to it, and what it has said."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from sereno.exceptions import WorkerError
from sereno.serve.processes.control import Control, Failed, Ready, ToWorker


class Phase(Enum):
    """Of a worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(eq=False)
class Worker:
    """A process, from its start to its end."""

    process: subprocess.Popen[bytes]
    control: Control
    place: int = 0  # whose sockets it takes connections from
    generation: int = 0
    slot: int = 0  # of the board
    phase: Phase = Phase.STARTING
    started_at: float = field(default_factory=time.monotonic)
    ready_at: float = 0.0
    is_late: bool = False
    ready: Ready | None = None
    failed: Failed | None = None
    belongs: list[str] = field(default_factory=list)  # what it reads, for the watcher
    accepts: set[int] = field(default_factory=set)  # places
    kill_at: float | None = None
    is_hung: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """At once, with whatever the model has started there."""
        if self.process.returncode is None:  # until somebody asked how it ended, its number is no one else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether it has. Then nothing of what the model has started there is left, and `process.returncode` tells how."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill()
            self.process.wait()
        return True

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        self.process.wait()
        self.control.close()

    def send(self, message: ToWorker, descriptors: Sequence[int] = ()) -> None:
        """Never waits, never fails."""
        with contextlib.suppress(OSError):  # it is gone, or hangs: both are seen elsewhere
            self.control.send(message, descriptors)


def start_worker() -> Worker:
    """A new interpreter, which waits for its job. The first one starts before there are settings.

    Raises WorkerError where the system has no room for another process, or this process for another descriptor.
    """
    warnings = [f"-W{option}" for option in sys.warnoptions]
    with contextlib.ExitStack() as undo:
        try:
            control, theirs = Control.pair()
            undo.callback(control.close)
            with theirs:
                # -P: a module in the folder where the server was started is not taken for one of ours
                process = subprocess.Popen(
                    [sys.executable, "-P", *warnings, "-m", "sereno.serve.processes.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a model prints is log; stdout is for what scripts read
                    process_group=0,  # Ctrl-C at a terminal is the supervisor's affair
                )
        except OSError as error:
            raise WorkerError(f"No worker can be started: {error.strerror}.") from error
        undo.pop_all()
    return Worker(process, control)
