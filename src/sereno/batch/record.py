"""What the ledger is told of a run: that it begins, how it ends, what an operator decided. Only the lease's holder tells.

The Delta log stays the truth about what is published: where it knows better than the ledger, the ledger is corrected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from sereno.batch.attempts import Attempts, Report
from sereno.batch.lease import HeldLease
from sereno.exceptions import ExportError, LedgerError, SerenoError
from sereno.interfaces import RunLedger
from sereno.ledger import INTERRUPTED, Entry, RunState
from sereno.schedule import Interval
from sereno.snapshots import Snapshot, State

AGAIN_SECONDS = 60.0  # until exports that failed are tried again
WHO = "sereno"  # who tells what is no one's doing
MOST_REASON = 2_000  # characters: a report has all of them
ENDED = ("published", "held", "skipped", "discarded")  # what comes after is not another try of the same


class Record:
    """The entry of one run."""

    def __init__(self, ledger: RunLedger, model: str, run: Interval | Report, *, who: str, held: HeldLease) -> None:
        self._ledger, self._held, self._who = ledger, held, who
        self._began = False
        run_key = run.key if isinstance(run, Interval) else run.run_key
        self.entry = ledger.entry(model, run_key) or Entry(
            model=model,
            run_key=run_key,
            data_date=run.data_date,
            data_time=run.data_time,
            state="due",  # never written: what comes first is another state
            since=datetime.now(UTC),
            label=label_of(run),
        )

    def reconcile(self, state: State, attempts: Attempts) -> None:
        """Say how an attempt ended that was killed before it could."""
        entry = self.entry
        if entry.attempt in state.attempts and entry.state in ("running", "held", "failed"):
            self.published(state.snapshots[state.attempts[entry.attempt]])
        elif entry.state == "running":
            report = next((r for r in attempts.all() if r.attempt == entry.attempt), None)
            if report is not None and report.state == "held":
                self._move("held", report.says)
            else:
                self._move("failed", INTERRUPTED)

    def running(self, attempt: str) -> bool:
        """An attempt begins to work; False: that is known. Raises LeaseLostError where somebody else does by now."""
        if self.entry.state == "running" and self.entry.attempt == attempt:
            return False
        tries = 1 if self.entry.state in ENDED else self.entry.tries + 1
        if not self._move("running", attempt=attempt, tries=tries):
            self._held.confirm()
        self._began = True
        return True

    def held(self, attempt: str, says: str) -> None:
        self._move("held", says, attempt=attempt)

    def discarded(self, says: str, state: State) -> None:
        self._move("discarded", says)
        self._still_published(state)

    def failed(self, error: BaseException, state: State, behind: SerenoError | None = None) -> None:
        """The reason begins with the error's class, by which a scheduler knows whether another try may help.

        `behind`: exports that could not follow what was published before.
        """
        reason = f"{type(error).__name__}: {error}"
        self._move("failed", reason)
        self._still_published(state, f"The last try failed: {reason}", behind)

    def published(self, snapshot: Snapshot, says: str = "", behind: SerenoError | None = None) -> None:
        """`behind`: exports that could not follow, which another run finishes."""
        if behind is not None:
            says = f"{type(behind).__name__}: {behind}"
        again = datetime.now(UTC) + timedelta(seconds=AGAIN_SECONDS) if isinstance(behind, ExportError) else None
        # a run that had nothing to do but to bring exports up to date, and could not, was a try too
        tries = self.entry.tries + (again is not None and not self._began)
        self._move("published", says, attempt=snapshot.attempt, version=snapshot.number, tries=tries, not_before=again)

    def _still_published(self, state: State, says: str = "", behind: SerenoError | None = None) -> None:
        """The log has the last word: another try of what is published does not make it less so."""
        if snapshot := state.published_key(self.entry.run_key):
            self.published(snapshot, withdrawn(state, snapshot.number) or says, behind)

    def _move(
        self,
        to: RunState,
        reason: str = "",
        *,
        attempt: str | None = None,
        tries: int | None = None,
        version: int | None = None,
        not_before: datetime | None = None,
    ) -> bool:
        """False: the lease was lost, and the entry is somebody else's."""
        before = self.entry
        entry = replace(
            before,
            state=to,
            reason=reason if len(reason) <= MOST_REASON else f"{reason[: MOST_REASON - 1]}…",
            who=self._who,
            attempt=before.attempt if attempt is None else attempt,
            tries=before.tries if tries is None else tries,
            version=before.version if version is None else version,
            not_before=not_before,
        )
        if entry == replace(before, who=self._who):
            return True  # nothing new
        entry = replace(entry, since=datetime.now(UTC))
        if not self._ledger.move(entry, lease=self._held.lease):
            return False
        self.entry = entry
        return True


def label_of(run: Interval | Report) -> str:
    """What --date takes for a run."""
    return run.label if isinstance(run, Interval) else run.label or label_of_attempt(run.attempt, run.run_key)


def label_of_attempt(attempt: str, run_key: str) -> str:
    """The same where no report says it: the attempt's name has the local time, and the run key tells how far that is off UTC.

    With the offset, as nobody knows whether the time came twice that day.
    """
    name = attempt.rpartition("-")[0]
    if "T" not in name:
        return name
    start = datetime.fromisoformat(run_key)
    local = datetime.strptime(f"{name} +0000", "%Y-%m-%dT%H%M %z")
    return start.astimezone(timezone(local - start)).isoformat(timespec="minutes")


def published_entry(state: State, snapshot: Snapshot, who: str) -> Entry:
    """What the ledger has to know of a run that the log knows."""
    return Entry(
        model=snapshot.model,
        run_key=snapshot.run_key,
        data_date=snapshot.data_date,
        data_time=snapshot.data_time,
        state="published",
        since=snapshot.published_at,
        reason=withdrawn(state, snapshot.number),
        who=who,
        attempt=snapshot.attempt,
        version=snapshot.number,
        tries=1,
        label=label_of_attempt(snapshot.attempt, snapshot.run_key),
    )


def tell_published(ledger: RunLedger, state: State) -> None:
    """Tell a ledger that was lost, and has begun anew, what else the log has; one that knows the newest knows the others."""
    latest = {snapshot.run_key: snapshot for _, snapshot in sorted(state.snapshots.items())}
    last = max(latest.values(), key=lambda one: one.number, default=None)
    newest = max(latest.values(), key=lambda one: one.data_time, default=None)
    known = [ledger.entry(one.model, one.run_key) for one in (last, newest) if one is not None]
    if any(entry is None or entry.version is None for entry in known):
        ledger.add(published_entry(state, one, WHO) for one in latest.values())


def tell_rollbacks(ledger: RunLedger, model: str, state: State, who: str) -> None:
    """Correct what the ledger says of published runs: whose version was rolled back, and whose is wanted again."""
    for entry in ledger.entries(model=model, states=["published"]):
        snapshot = state.published_key(entry.run_key)
        if snapshot is None:
            continue
        reason = withdrawn(state, snapshot.number)
        if not reason and entry.reason.startswith(f"Version {snapshot.number} was rolled back"):
            reason = f"Version {snapshot.number} was rolled back to."
        if reason and reason != entry.reason:
            after = replace(entry, reason=reason[:MOST_REASON], who=who, since=datetime.now(UTC), not_before=None)
            ledger.move(after, expected=["published"])


@contextlib.contextmanager
def but_not_told(done: str) -> Iterator[None]:
    """What was asked for is done, whatever becomes of the ledger: a LedgerError says both."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(
            f"{done} But the ledger of runs does not know: {error} The next `sereno run` of its date, or `sereno repair`, "
            "tells it.",
            damaged=error.damaged,
        ) from error


def withdrawn(state: State, number: int) -> str:
    """In words, of a snapshot that was rolled back; nothing of one that was not."""
    if number not in state.withdrawn:
        return ""
    told_by = state.why_withdrawn.get(number, "")
    return f"Version {number} was rolled back{f' by {told_by}' if told_by else ''}."
