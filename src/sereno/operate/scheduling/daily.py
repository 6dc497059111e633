"""What is done once a day beside the runs: `sereno prune`. Once, however many schedulers there are, on whatever host."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence

from sereno.interfaces import RunLedger
from sereno.ledger import Lease, holder_here
from sereno.operate.notices.sending import end
from sereno.operate.tied import tied

LEASE = "daily"
DAY = 86_400.0
LOOK_SECONDS = 60.0
NICE = 19


class Daily:
    """Starts it when nothing runs and a day has passed. For one thread, which lives as long as its process.

    A lease says that it was done: it is not given back, and its time is over after a day.
    """

    def __init__(self, ledger: RunLedger, command: Sequence[str], note: Callable[[str], None]) -> None:
        self._ledger, self._command, self._note = ledger, list(command), note
        self._process: subprocess.Popen[bytes] | None = None
        self._due = time.monotonic() + LOOK_SECONDS  # not while all is starting
        self._lease: Lease | None = None

    def look(self, *, quiet: bool) -> None:
        """To be called often. `quiet`: no run goes on. Raises LedgerError."""
        if self._process is not None:
            self._hear()
        elif quiet and time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK_SECONDS
            self._lease = self._ledger.acquire(LEASE, holder_here(), DAY)
            if self._lease is not None:
                self._start()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                tied(self._command, nice=NICE), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0
            )
        except OSError as error:
            self._note(f"`sereno prune` cannot be started: {error.strerror}. It is tried again tomorrow.")

    def _hear(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self._process = None
            if code:
                self._note(f"`sereno prune` ended with {code}. It is tried again tomorrow.")

    def stop(self) -> None:
        """Have it end: what it has not done is done tomorrow."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                end(self._process)
            self._process = None
