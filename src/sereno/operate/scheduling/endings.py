"""How runs end, for the scheduler: by a process that says so, or one that is gone; then another try, or a notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

from sereno.interfaces import RunLedger
from sereno.ledger import Entry, NoticeKind, RunState, is_here
from sereno.operate.scheduling import deciding
from sereno.operate.scheduling.deciding import Scheduled
from sereno.storage import is_held, run_lock

RECENT = timedelta(days=1)  # what ended longer ago, nobody is told for the first time
MOST_PUBLISHED = 1_000  # of those by data time that a new scheduler looks at: people may wait to hear that all is well


class Ended(NamedTuple):
    """A process of this scheduler that has ended."""

    model: str
    run_key: str
    code: int  # below 0: that signal
    error: str = ""  # the class of what it said that it failed of
    reason: str = ""  # why it was ended by us


class Teller(Protocol):
    """Has people told. Of one run and kind once, however often it is asked to."""

    def tell(self, entry: Entry, kind: NoticeKind, says: str, at: datetime) -> object:
        """Something is wrong with a run. Raises LedgerError."""

    def tell_published(self, entry: Entry, at: datetime) -> object:
        """A run was published, which people want to hear if they heard before that something was wrong."""


class Endings:
    """Everything here may be done again, by whoever: a state that has changed meanwhile stays as it is."""

    def __init__(
        self,
        ledger: RunLedger,
        home: Path,
        *,
        teller: Teller,
        random: Callable[[], float],
        log: Callable[[str], None],
        is_alive: Callable[[Entry], bool] | None = None,
    ) -> None:
        """`is_alive`: whether a process of this host works on a run; by the run's lock file, if not given."""
        self.models: Mapping[str, Scheduled] = {}
        self.let_be: Set[str] = frozenset()  # models of whose runs nothing is concluded yet
        self._ledger, self._teller, self._random, self._log = ledger, teller, random, log
        self._said: dict[str, tuple[str, NoticeKind]] = {}  # model → what was logged last
        self._is_alive = is_alive or (lambda entry: is_held(run_lock(home, entry.model, entry.run_key)))

    def heed(self, ended: Ended, started: Entry | None, now: datetime) -> None:
        """One of our own processes has ended; `started`: its entry as it was when it did not work yet."""
        entry = self._ledger.entry(ended.model, ended.run_key)
        if entry is None:
            return
        how = f"ended by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
        failed = None
        is_as_it_was = started is not None and _mark(entry) == _mark(started)
        if entry.state == "running" and self.is_gone(entry):
            reason = ended.reason or f"WorkerError: The run {how}. The log has what it said."
            failed = deciding.has_failed(entry, reason, now, began=True)
        elif is_as_it_was and ended.error == "BusyError":
            self._move(deciding.put_off(entry, now), entry.state)
            return
        elif is_as_it_was and entry.state == "published" and (ended.reason or not deciding.may_help(ended.code)):
            if self._move(replace(entry, not_before=None), "published"):  # its exports stay behind
                self.tell(entry, "failed", ended.reason or deciding.why_unbegun(ended.code), now)
            return
        elif is_as_it_was:
            reason = ended.reason or deciding.why_unbegun(ended.code)
            failed = deciding.has_failed(entry, reason, now, began=False)
        if failed is not None and self._move(failed, entry.state):
            entry = failed
        self.conclude(entry, self._ledger.newest(now).get(ended.model), now)

    def is_gone(self, entry: Entry) -> bool:
        """Whether no process works on a running entry: nobody has its lease, or its holder was on this host and is dead.

        One of this host that stands still loses its lease, not its lock: it is not gone.
        """
        lease = self._ledger.holder(f"run:{entry.model}:{entry.run_key}")
        is_elsewhere = lease is not None and not is_here(lease.holder)
        return not is_elsewhere and not self._is_alive(entry)

    def look_after(self, entry: Entry, newest: Entry | None, now: datetime) -> Entry:
        """The entry of a run that is going on; where its process is gone, what then becomes of it."""
        if not self.is_gone(entry):
            return entry
        reason = f"{deciding.INTERRUPTED}: its process is gone. What it had finished is kept."
        failed = deciding.has_failed(entry, reason, now, began=True)
        if self._move(failed, "running"):
            self.conclude(failed, newest, now)
        return self._ledger.entry(entry.model, entry.run_key) or entry

    def catch_up(self, newest: Mapping[str, Entry], now: datetime) -> None:
        """Conclude what ended while nobody looked."""
        ended = self._ledger.entries(states=("failed", "held"))
        ended += self._ledger.entries(states=["published"], limit=MOST_PUBLISHED)
        for entry in sorted(ended, key=lambda one: one.since):
            if abs(now - entry.since) < RECENT:
                self.conclude(entry, newest.get(entry.model), now)

    def conclude(self, entry: Entry, newest: Entry | None, now: datetime) -> None:
        """Try again, or tell people, where a run has come to an end."""
        if entry.model in self.let_be:
            return
        if entry.state == "failed" and deciding.is_outdated(entry):
            self._move(deciding.skipped(entry, entry.reason, now), "failed")
        elif entry.state == "failed":
            if not self._try_again(entry, newest, now):
                self.tell(entry, "failed", entry.reason, now)
        elif entry.state == "held":
            self.tell(entry, "held" if entry.attempt else "late", entry.reason, now)
        elif entry.state == "published" and not deciding.is_infrastructure(
            entry.reason
        ):  # else exports could not follow
            newest_notice = self._ledger.notices(entry.model, 1)
            if newest_notice and newest_notice[0].at <= entry.since:  # what was told later is of another run
                self._teller.tell_published(entry, now)

    def _try_again(self, entry: Entry, newest: Entry | None, now: datetime) -> bool:
        model = self.models.get(entry.model)
        if model is None:
            return False
        if model.disposition == "replace" and newest is not None and newest.data_time > entry.data_time:
            return False  # a newer date takes its place
        failures = [one.at for one in self._ledger.transitions(entry.model, entry.run_key) if one.after == "failed"]
        if not deciding.may_try_again(entry, model, min(failures, default=now), now):
            return False
        return self._move(deciding.tried_again(entry, now, self._random), "failed")

    def export_again(self, entry: Entry, now: datetime) -> bool:
        """Whether a published run whose exports could not follow is run once more; else people are told."""
        if deciding.may_export_again(
            self._ledger.transitions(entry.model, entry.run_key), self.models[entry.model], now
        ):
            return True
        if self._move(replace(entry, not_before=None), "published"):
            self.tell(entry, "failed", entry.reason, now)
        return False

    def interrupt(self, ended: Ended, now: datetime) -> None:
        """One of our own processes was ended in good order, with the scheduler."""
        entry = self._ledger.entry(ended.model, ended.run_key)
        if entry is not None and entry.state == "running" and self.is_gone(entry):
            self._move(deciding.stopped(entry, now), "running")

    def _move(self, entry: Entry, before: RunState) -> bool:
        return self._ledger.move(entry, expected=(before,))

    def tell(self, entry: Entry, kind: NoticeKind, says: str, now: datetime) -> None:
        """Log it, and have people told."""
        if self._said.get(entry.model) != (entry.run_key, kind):
            self._log(f"{entry.model} {entry.label or entry.data_date}: {kind}: {says.removeprefix(f'{kind}: ')}")
            self._said[entry.model] = (entry.run_key, kind)
        self._teller.tell(entry, kind, says, now)


def _mark(entry: Entry) -> tuple[RunState, datetime, int]:
    return entry.state, entry.since, entry.tries


ENDED: tuple[RunState, ...] = ("published", "failed", "skipped", "held", "discarded")
