"""Has senders started: beside a scheduler for as long as it lives, and at the end of a run that somebody started.

Light: apprise is imported by the senders alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sereno.exceptions import SerenoError
from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Notice, is_here, open_ledger
from sereno.operate.notices.sender import LEASE, job_of
from sereno.operate.notices.words import add_outcome, addresses, is_anyone_told, is_pending, told_to
from sereno.operate.tied import tied
from sereno.settings import Settings

LOOK_SECONDS = 1.0
LONGEST_PAUSE = 300.0  # after senders that ended without telling all
SECONDS_TO_END = 5.0
PATIENCE = 15.0  # seconds that a run waits at its end for people to be told

LOG = logging.getLogger("sereno.operate")


class Sending:
    """Starts a sender whenever there is something to tell, and no other sender is at it. For one thread.

    `settings` and `files` (model → its file) may be replaced at any time; a sender that is at it goes on with the old.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: RunLedger,
        note: Callable[[str], None],
        *,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.settings, self.files = settings, files
        self._ledger, self._note = ledger, note
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._due = 0.0

    def look(self) -> None:
        """To be called often: it does something once a second. Raises LedgerError."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return
            self._process = None
            if code:
                self._failures += 1
                pause = min(LONGEST_PAUSE, 2.0 ** min(10, self._failures))
                self._due = now + pause
                self._note(
                    f"the sender of notices ended with {code}; it starts again in {pause:g} s. No notice is lost."
                )
                return
            self._failures = 0
        if is_due(self._ledger, self.settings):
            try:
                self._process = start_sender(self.settings, self.files)
            except OSError as error:
                self._note(f"the sender of notices cannot be started: {error.strerror}. It is tried again.")

    def stop(self) -> None:
        """Have it end: what it has not told is told by the next one."""
        if self._process is not None:
            end(self._process)
            self._process = None


def is_due(ledger: RunLedger, settings: Settings) -> bool:
    """Whether there is something to tell, and no sender is at it. Raises LedgerError."""
    if not is_anyone_told(settings):
        return False
    pending = any(is_pending(one, addresses(settings, one.model)) for one in ledger.untold())
    return pending and ledger.holder(LEASE) is None


def start_sender(
    settings: Settings, files: Mapping[str, Path] | None = None, *options: str, silent: bool = False
) -> subprocess.Popen[bytes]:
    """Start one, in a process group of its own. A silent one may outlive this process; others are gone with it.

    Raises OSError.
    """
    command = [sys.executable, "-P", "-m", "sereno.operate.notices.sender", *options]
    process = subprocess.Popen(
        command if silent else tied(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if silent else 2,
        stderr=subprocess.DEVNULL if silent else None,
        process_group=0,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # its exit code will tell
        process.stdin.write(job_of(settings, files))
    return process


def test_everyone(settings: Settings) -> list[tuple[str, str]]:
    """Send a test to every address: what it is called, and what went wrong, or nothing. Raises MissingExtraError, OSError.

    In a process of its own: what hangs there keeps nobody here from ending.
    """
    from sereno.adapters.channels import import_apprise

    import_apprise()
    command = tied([sys.executable, "-P", "-m", "sereno.operate.notices.sender", "--test"])
    done = subprocess.run(command, input=job_of(settings), stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=list[tuple[str, str]])


def tell_again(ledger: RunLedger, settings: Settings) -> tuple[int, list[Notice]]:
    """Try all that is untold, also what was given up: how many were told, and what is left.

    Raises LedgerError, MissingExtraError, OSError.
    """
    from sereno.adapters.channels import import_apprise

    import_apprise()
    before = {one.number for one in ledger.untold() if addresses(settings, one.model)}
    if before:
        start_sender(settings, None, "--once", "--again").wait()
    left = [one for one in ledger.untold() if addresses(settings, one.model)]
    return len(before - {one.number for one in left}), left


def end(process: subprocess.Popen[bytes], seconds: float = SECONDS_TO_END) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def after_run(
    settings: Settings, model: str, since: datetime, *, file: Path | None = None, run_key: str | None = None
) -> str:
    """Have people told how a run of a model ended that began at `since`; whatever keeps that from happening, in words.

    Never raises, waits no longer than PATIENCE, and costs nothing where nobody is to be told. A run that a scheduler has
    started tells nobody: the scheduler does, when it does not try again.
    """
    if not addresses(settings, model):
        return ""
    try:
        with contextlib.closing(open_ledger(settings)) as ledger:
            scheduler = ledger.holder("scheduler")
            if scheduler is not None and _is_our_parent(scheduler.holder):
                return ""
            for entry in _ended(ledger, model, since, run_key):
                add_outcome(ledger, settings, entry, datetime.now(UTC))
            if scheduler is not None or not is_due(ledger, settings):
                return ""  # the scheduler has it sent
            return _send(ledger, settings, model, {} if file is None else {model: file})
    except (SerenoError, OSError) as error:
        return f"People could not be told: {error}"


def _ended(ledger: RunLedger, model: str, since: datetime, run_key: str | None) -> list[Entry]:
    """What came to its end since then; a run that found nothing to do may have ended before, and is named."""
    found = ledger.entries(model=model, states=("failed", "held", "published"))
    return [one for one in found if one.since >= since or one.run_key == run_key]


def _send(ledger: RunLedger, settings: Settings, model: str, files: Mapping[str, Path]) -> str:
    # It is silent, and in a group of its own: whoever reads our output must not wait for it, should it outlive us.
    process = start_sender(settings, files, "--once", silent=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    code = process.returncode
    if code is None:
        process.returncode = 0  # it is left on purpose, and nothing is to be said about that
    mine = [one for one in ledger.untold() if one.model == model]
    if not mine:
        return ""
    given = addresses(settings, model)
    reasons = {
        f"{label}: {told.says}"
        for one in mine
        for label, told in told_to(one, given).items()
        if told.tries and not told.told
    }
    if code is None:
        reasons.add(f"the sender is still at it after {PATIENCE:g} s")
    elif code:
        reasons.add("`sereno notify` tells why")
    return f"People could not be told yet ({'; '.join(sorted(reasons))}). The next run tries again; so does `sereno notify`."


def _is_our_parent(holder: str) -> bool:
    return is_here(holder) and holder.split(":")[1:2] == [str(os.getppid())]
