"""Makes a ledger again: from the tables' logs, the reports of attempts, and what a damaged file still holds.

It may be done at any time, any number of times, beside a scheduler and runs that go on: a ledger that is whole only gets
what it lacks, a damaged one is put aside and never removed. Whoever has it open finds the new one with the next
transaction. Leases are not carried over: a holder keeps its own, unless another has asked for it since, and tokens go
on growing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from sereno.adapters.ledger import ledger_file, open_at
from sereno.batch.attempts import Attempts, Report
from sereno.batch.record import WHO, label_of, published_entry
from sereno.exceptions import LedgerError, SerenoError, StorageError
from sereno.ledger import INTERRUPTED, Entry, RunState, is_here, lease_name
from sereno.snapshots import Snapshot, SnapshotStore, State
from sereno.storage import exclusive, is_held, run_lock

if TYPE_CHECKING:
    from sereno.adapters.ledger.statements import SqlLedger
    from sereno.places import Place
    from sereno.settings import Settings


@dataclass(kw_only=True)
class Repaired:
    """What was done."""

    ledger: str  # where it is kept, without any password
    damage: str = ""  # why it was put aside; "": it was not
    aside: str = ""  # where the damaged file is now
    salvaged: dict[str, int] = field(default_factory=dict)  # what was read of it: runs, transitions, pauses, notices
    added: dict[str, int] = field(default_factory=dict)  # state → runs that the ledger did not know
    changed: list[str] = field(default_factory=list)  # runs of which it knew less than the log or a report
    unread: list[str] = field(default_factory=list)  # what could not be read


def repair(settings: Settings) -> Repaired:
    """Make what the ledger of a home lacks. Raises LedgerError, StorageError; BusyError while another process does it."""
    locks = settings.home / ".sereno" / "locks"
    busy = "Another process (pid {pid}) is repairing the ledger. Wait for it."
    with exclusive(locks / "repair", busy):
        with contextlib.closing(open_at(settings.ledger, settings.home)) as ledger:
            done = Repaired(ledger=ledger.shown)
            try:
                ledger.verify()
            except LedgerError as error:
                # A database's own damage is its operator's to mend.
                if not error.damaged or settings.ledger is not None:
                    raise
                done.damage = str(error)
            if not done.damage:
                _complete(ledger, settings, done)
        if done.damage:
            _replace(settings, done)
    return done


def _replace(settings: Settings, done: Repaired) -> None:
    """Put a new ledger in the place of the damaged one, whole: whoever is killed here has changed nothing."""
    from sereno.adapters.ledger.salvage import salvage
    from sereno.adapters.ledger.sqlite import put_aside

    file = ledger_file(settings.home)
    scratch = file.with_name("ledger.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with salvage(file) as found, contextlib.closing(open_at(None, scratch)) as ledger:
            ledger.chunk = 50_000  # nobody waits for this one
            notices, pauses = list(found.notices()), list(found.pauses())
            ledger.add_kept(notices, found.token())
            for pause in pauses:
                ledger.pause(pause)
            done.salvaged = {
                "runs": ledger.add(found.entries(), are_new=False),
                "transitions": ledger.add_transitions(found.transitions()),
                "pauses": len(pauses),
                "notices": len(notices),
            }
            done.unread += found.unread
            _complete(ledger, settings, done)
        done.aside = str(put_aside(file, ledger_file(scratch)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _complete(ledger: SqlLedger, settings: Settings, done: Repaired) -> None:
    """Add and correct what the logs and reports know better."""
    added: Counter[str] = Counter(done.added)
    for model in _models(settings.root):
        known = {entry.run_key: entry for entry in ledger.entries(model=model)}
        told = _Told(settings, model, ledger, done.unread)
        entries = list(told.entries())
        added.update(Counter(entry.state for entry in entries if entry.run_key not in known))
        ledger.add([entry for entry in entries if entry.run_key not in known])
        for entry in entries:
            before = known.get(entry.run_key)
            if before is None or not told.knows_better(entry, before):
                continue
            if ledger.move(replace(entry, tries=max(entry.tries, before.tries)), expected=[before.state]):
                done.changed.append(f"{model} {entry.label}: {before.state} is {entry.state}")
    done.added = dict(sorted(added.items()))


def _models(root: Place) -> list[str]:
    places = [place for place in (root / "predictions", root / ".sereno" / "runs") if place.is_dir()]
    folders = [folder for place in places for folder in place.iterdir()]
    return sorted({folder.name for folder in folders if folder.is_dir() and not folder.name.startswith(".")})


class _Told:
    """What the log and the reports tell of one model's runs."""

    def __init__(self, settings: Settings, model: str, ledger: SqlLedger, unread: list[str]) -> None:
        self._home, self._root, self._model, self._ledger = settings.home, settings.root, model, ledger
        self._unread = unread
        self._state = State()
        try:
            self._state = SnapshotStore(self._root, model).state()
        except (SerenoError, OSError, ValueError, KeyError) as error:
            self._note(f"the log of {model}: {error}")

    def _note(self, what: str) -> None:
        if what not in self._unread:
            self._unread.append(what)

    def entries(self) -> Iterator[Entry]:
        reports: dict[str, list[Report]] = {}
        for report in sorted(self._reports(), key=lambda r: r.started_at):
            reports.setdefault(report.run_key, []).append(report)
        for run_key in sorted({s.run_key for s in self._state.snapshots.values()} | reports.keys()):
            snapshot = self._state.published_key(run_key)
            newest = reports[run_key][-1] if run_key in reports else None
            if newest is not None and (snapshot is None or self._goes_on_after(newest, snapshot)):
                entry = self._of_report(newest)
            else:
                assert snapshot is not None
                entry = published_entry(self._state, snapshot, WHO)
            yield replace(entry, tries=len(reports.get(run_key, [])))

    def _reports(self) -> Iterator[Report]:
        for file in Attempts(self._home, self._model, self._root).folder.glob("*/report.json"):
            try:
                yield msgspec.json.decode(file.read_bytes(), type=Report)
            except FileNotFoundError:
                continue  # removed since it was listed
            except (OSError, StorageError, msgspec.DecodeError) as error:
                self._note(f"{file}: {error}")

    def _goes_on(self, run_key: str) -> bool:
        """A living process works on it, here or on another host."""
        if is_held(run_lock(self._home, self._model, run_key)):
            return True
        lease = self._ledger.holder(lease_name(self._model, run_key))
        # a process of this host would hold the lock
        return lease is not None and not is_here(lease.holder)

    def _goes_on_after(self, report: Report, snapshot: Snapshot) -> bool:
        """What is published is so whatever another try came to, unless that is going on or is to be decided upon."""
        if report.attempt in self._state.attempts:
            return False
        return report.state == "held" or (report.state == "running" and self._goes_on(report.run_key))

    def _of_report(self, report: Report) -> Entry:
        state: RunState
        if report.state in ("held", "failed", "discarded"):
            state, reason = report.state, report.says
        elif report.state == "running" and self._goes_on(report.run_key):
            state, reason = "running", ""
        else:  # or it says that it is published, and the log does not
            state, reason = "failed", INTERRUPTED
        return Entry(
            model=report.model,
            run_key=report.run_key,
            data_date=report.data_date,
            data_time=report.data_time,
            state=state,
            since=report.ended_at or report.started_at,
            reason=reason,
            who=WHO,
            attempt=report.attempt,
            label=label_of(report),
        )

    def knows_better(self, entry: Entry, before: Entry) -> bool:
        """Whether the ledger was not told how a run ended: else it knows best, as people and schedules told it more."""
        if entry.state == before.state == "published":
            return (entry.version or 0) > (before.version or 0)
        if entry.state == before.state or self._goes_on(entry.run_key):
            return False
        is_untold = before.attempt == entry.attempt and before.state == "running"
        if entry.state == "published":
            is_untold = before.attempt in self._state.attempts and before.state in ("running", "held", "failed")
        return is_untold or before.since < entry.since
