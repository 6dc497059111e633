"""Sees to it that the scheduler uses a ledger that is whole: one that was removed, replaced or damaged is made again first.

Another process does it (`sereno repair`), as often as it takes: it may fail, as it finds the disk full, say.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from sereno.adapters.ledger import ledger_file
from sereno.exceptions import LedgerError, StorageError
from sereno.interfaces import RunLedger
from sereno.operate.notices.sending import end
from sereno.operate.tied import tied
from sereno.places import Place
from sereno.settings import Settings
from sereno.status import read_statuses

SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds, before a repair that failed is tried again


class Mending:
    """For one thread, which lives as long as its process."""

    def __init__(
        self, ledger: RunLedger, settings: Settings, command: Sequence[str], note: Callable[[str], None]
    ) -> None:
        """`command`: which repairs, and prints JSON."""
        self._ledger, self._settings, self._command, self._note = ledger, settings, list(command), note
        self._which: tuple[object, ...] | None = None  # the ledger that is known to be whole
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._is_whole = True  # at the last look
        self._failures = 0
        self._due = 0.0

    @property
    def is_needed(self) -> bool:
        """Whether it is being repaired, or has to be."""
        return self._process is not None or not self._is_whole

    @property
    def has_begun(self) -> bool:
        """Whether another process works on it."""
        return self._process is not None

    def is_whole(self) -> bool:
        """Whether it is the ledger that it was, or knows at first sight what is published. Raises LedgerError."""
        which = self._now()
        try:
            if self._which is None and not lacks(self._ledger, self._settings.root):
                self._which = which
        except StorageError:  # it is asked again; runs tell the ledger what they publish in any case
            return True
        self._is_whole = which == self._which
        return self._is_whole

    def is_well(self) -> None:
        """It was used, and nothing failed."""
        self._failures = 0

    def start(self) -> None:
        """Have it repaired, unless that has just failed."""
        if self._process is not None or time.monotonic() < self._due:
            return
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could be full, and nobody would read it
        try:
            self._process = subprocess.Popen(
                tied(self._command), stdin=subprocess.DEVNULL, stdout=self._said, process_group=0
            )
        except OSError as error:
            self._said.close()
            self._has_failed(f": {error.strerror}")

    def ended(self) -> bool:
        """Whether a repair has just ended well: the ledger is another one. To be asked often."""
        if self._process is None or self._said is None:
            return False
        code = self._process.poll()
        if code is None:
            return False
        self._process = None
        with self._said as said:
            said.seek(0)
            content = said.read()
        if code:
            self._has_failed("")  # the log has why
            return False
        self._due = time.monotonic() + self._pause()  # one that does not help is not done again at once
        self._which, self._is_whole = None, True
        with contextlib.suppress(LedgerError):  # then it is looked at again
            self._which = self._now()
        told = json.loads(content)
        aside = f" What was damaged is at {told['aside']}." if told["aside"] else ""
        self._note(f"the ledger was made whole from what is published ({sum(told['added'].values())} runs).{aside}")
        return True

    def stop(self) -> None:
        """Who comes next does it: a repair that is cut off has changed nothing, or has only added."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                end(self._process)
            self._process = None
        if self._said is not None:
            self._said.close()

    def _pause(self) -> float:
        self._failures += 1
        return min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(10, self._failures - 1))

    def _has_failed(self, why: str) -> None:
        pause = self._pause()
        self._due = time.monotonic() + pause
        self._note(f"the ledger could not be repaired{why}. The next try is in {pause:g} s.")

    def _now(self) -> tuple[object, ...]:
        """Which ledger it is. Where it lies in a file, also that which a backup has put there."""
        began = self._ledger.began()
        return (began,) if self._settings.ledger is not None else (began, *_identity(ledger_file(self._settings.home)))


def lacks(ledger: RunLedger, root: Place) -> bool:
    """Whether it does not know what is published of some model: by the status files, not the logs.

    Raises LedgerError, and StorageError of an object store.
    """
    known, statuses = ledger.versions(), read_statuses(root)
    for model in _with_tables(root):
        status = statuses.get(model)
        if model not in known or (status is not None and (status.version or 0) > known[model]):
            return True
    return False


def _with_tables(root: Place) -> list[str]:
    if isinstance(root, Path):
        return [log.parent.name for log in root.glob("predictions/*/_delta_log")]
    return [folder.name for folder in (root / "predictions").iterdir()]


def _identity(file: Path) -> tuple[int, ...]:
    try:
        known = os.stat(file)
    except OSError:
        return ()
    return known.st_dev, known.st_ino
