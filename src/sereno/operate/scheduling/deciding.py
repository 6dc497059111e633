"""What becomes of the runs of a model: pure functions of its schedule, of what the ledger knows, and of the time.

Nothing here reads a clock, a file or the ledger; `scheduler.py` does what is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from sereno.ledger import Entry, Pause, RunState, Transition
from sereno.schedule import Interval, due_between, interval_between, last_interval

WHO = "sereno"  # the scheduler, where a transition or a run says who
MOST_LOOKED_AT = 10_000  # intervals, where some of them are known
MOST_SKIPPED = 366  # skipped dates that are written down at once; the reason of the first tells of those before it
# A deploy or a source that came while a run began is nothing wrong, either
INFRASTRUCTURE = (
    "StorageError", "WorkerError", "BusyError", "ExportError", "LedgerError", "LeaseLostError", "ChangedError",
)  # fmt: skip
INTERRUPTED = "WorkerError: Interrupted"  # how the reason begins of a run whose process is gone, nobody knows how
INTERRUPTIONS = 10  # a run that was interrupted goes on, whatever `retries` says; one that ends the machine does not
WRONG_USAGE = 2  # exit code of a run that was refused
BUSY_SECONDS = 30.0  # before a run is started again that somebody else works on
LONGEST_WAIT = 300.0  # seconds before another try
# Later than now by more than this is what a clock that went wrong has written.
AHEAD = timedelta(seconds=60)
# Arrivals need a moment to look, also where the deadline has passed long before (catching up).
GRACE = timedelta(seconds=60)


class Scheduled(Protocol):
    """What the scheduler knows of a model: see `Declared`."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def schedule(self) -> str: ...
    @property
    def time_zone(self) -> str: ...
    @property
    def disposition(self) -> str: ...
    @property
    def catch_up(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def retry_seconds(self) -> float: ...
    @property
    def has_arrival(self) -> bool: ...
    @property
    def deadline_seconds(self) -> float: ...
    @property
    def late(self) -> str: ...
    @property
    def run_seconds(self) -> float | None: ...
    @property
    def run_cores(self) -> int | None: ...
    @property
    def run_memory_bytes(self) -> int | None: ...


# What falls due


def missed(model: Scheduled, known: Entry | None, now: datetime, *, most: int) -> list[Interval]:
    """The intervals that ended since the newest run that is known, oldest first; at most so many, the newest.

    A model that the ledger does not know begins with the last interval that ended.
    """
    if known is None:
        return [last_interval(model.schedule, model.time_zone, now)]
    return due_between(model.schedule, model.time_zone, known.data_time, now, most=most)


def gaps(model: Scheduled, entries: Sequence[Entry], now: datetime, pause: Pause | None = None) -> list[Interval]:
    """The missed intervals of a model with a partition per date where a person ran the newest: that one run hides none.

    `entries`: all that are known until now, newest first. They are looked for since the newest that the scheduler wrote, or
    that was known when the model was paused; where there is neither, since the newest.
    """
    known = [one for one in entries if one.who == WHO or (pause is not None and one.since <= pause.since)]
    since = known[0] if known else entries[0] if entries else None
    keys = {entry.run_key for entry in entries}
    return [one for one in missed(model, since, now, most=MOST_LOOKED_AT) if one.key not in keys]


def most_missed(model: Scheduled) -> int:
    """How many missed intervals need to be looked at: one more than is ever written."""
    return MOST_SKIPPED + 2 if model.disposition == "replace" else model.catch_up + 1


def too_many(model: Scheduled, intervals: Sequence[Interval]) -> bool:
    return model.disposition == "partition" and len(intervals) > model.catch_up


def why_paused(model: Scheduled, intervals: Sequence[Interval]) -> str:
    return (
        f"More than {model.catch_up} dates were missed ('catch_up'), so nothing is run until somebody decides: "
        f"`sereno resume {model.name}` runs them all, oldest first; `sereno resume {model.name} --skip-missed` runs none of "
        f"them. The newest is {intervals[-1].label}."
    )


def fallen_due(model: Scheduled, intervals: Sequence[Interval], now: datetime) -> list[Entry]:
    """The new entries of missed intervals, in the order in which they are to be written.

    The newest comes last: should the scheduler die in between, the ledger shows what was not written yet.
    """
    if model.disposition == "partition":
        return [entry_of(model, one, "due", now) for one in intervals]
    *older, newest = intervals
    entries = []
    for number, one in enumerate(older[-MOST_SKIPPED:]):
        reason = superseded(newest.label)
        if number == 0 and len(older) > MOST_SKIPPED:
            reason += " So were all before it, which are not written down."
        entries.append(entry_of(model, one, "skipped", now, reason))
    return [*entries, entry_of(model, newest, "due", now)]


def entry_of(model: Scheduled, interval: Interval, state: RunState, now: datetime, reason: str = "") -> Entry:
    return Entry(
        model=model.name,
        run_key=interval.key,
        data_date=interval.data_date,
        data_time=interval.data_time,
        state=state,
        since=now,
        reason=reason,
        who=WHO,
        label=interval.label,
    )


# What waits


def waits(entry: Entry, model: Scheduled) -> bool:
    """Whether the run is to wait for its data: no try has begun, and no operator said to run it as it is."""
    return model.has_arrival and entry.tries == 0 and entry.not_before is None and entry.who == WHO


def is_due(entry: Entry, now: datetime) -> bool:
    """Whether the time of its next try has come. What a clock that was ahead wrote down does not count."""
    wait = entry.not_before - now if entry.not_before else timedelta()
    return not timedelta() < wait <= timedelta(seconds=LONGEST_WAIT) + AHEAD


def is_late(entry: Entry, model: Scheduled, now: datetime) -> bool:
    """Whether what is waited for has not come by its deadline."""
    return now >= late_at(entry, model, now)


def late_at(entry: Entry, model: Scheduled, now: datetime) -> datetime:
    deadline = entry.data_time + timedelta(seconds=model.deadline_seconds)
    since = entry.since if entry.since <= now else entry.data_time  # a clock that was ahead wrote it down
    return max(deadline, since + GRACE)


def without_data(entry: Entry, model: Scheduled, says: str, now: datetime) -> Entry:
    """The entry whose data is late, where it is not run as it is."""
    state: RunState = "skipped" if model.late == "skip" else "held"
    return replace(entry, state=state, since=now, reason=why_late(model, says), who=WHO)


def ends_late(entry: Entry, model: Scheduled, now: datetime) -> datetime:
    """When people are told that a run that could begin has not, or has not ended. What is caught up with has as long."""
    deadline = entry.data_time + timedelta(seconds=model.deadline_seconds)
    since = entry.since if entry.since <= now else entry.data_time
    return deadline if since <= deadline else since + timedelta(seconds=model.deadline_seconds)


def why_not_ended(entry: Entry, model: Scheduled) -> str:
    waited = f"{timedelta(seconds=round(model.deadline_seconds))}"
    if entry.state == "running":
        return f"late: {waited} after the run was due, it is still running. `run_seconds` would end one that hangs."
    return (
        f"late: {waited} after the run was due, it has not begun, as other runs go on: see `sereno runs`. `up.max_runs` says "
        "how many may at once."
    )


def took_too_long(seconds: float) -> str:
    return f"RunError: It took longer than run_seconds ({seconds:g}), and was ended. What it had finished is kept."


def why_late(model: Scheduled, says: str) -> str:
    waited = f"{timedelta(seconds=round(model.deadline_seconds))}"
    return f"late: {waited} after the run was due, {says}"


# What is run


def runnable(entries: Iterable[Entry], model: Scheduled) -> list[Entry]:
    """Of a model's runs that could begin, those that are to, the first first.

    Where the table is the latest snapshot, that is the newest; where it has every date, the oldest.
    """
    ordered = sorted(entries, key=lambda entry: entry.data_time)
    return ordered[-1:] if model.disposition == "replace" else ordered


def overtaken(entries: Iterable[Entry], by: Entry | None) -> list[Entry]:
    """Runs of a model with `replace` that are no longer wanted, as a newer one can begin, or did. An operator's word stands."""
    return [] if by is None else [one for one in entries if one.data_time < by.data_time and one.who == WHO]


def skipped(entry: Entry, reason: str, now: datetime) -> Entry:
    return replace(entry, state="skipped", since=now, reason=reason, who=WHO, not_before=None)


def is_planned(entry: Entry, model: Scheduled) -> bool:
    """Whether the run is of an interval that the schedule has, as it is now."""
    start = datetime.fromisoformat(entry.run_key)
    return interval_between(model.schedule, model.time_zone, start, entry.data_time) is not None


def unplanned(model: Scheduled) -> str:
    return f"The schedule has changed, to '{model.schedule}' ({model.time_zone}): it has no such interval."


def superseded(label: str) -> str:
    return f"A newer date, {label}, is due."


def order(entry: Entry, newest: Entry | None) -> tuple[bool, datetime]:
    """What goes first among models: the newest of each, by when it was due; then what is being caught up with."""
    return newest is not None and entry.data_time < newest.data_time, entry.data_time


# What ended


def has_failed(entry: Entry, reason: str, now: datetime, *, began: bool) -> Entry:
    """A run whose process could not say itself that it failed. What was published before stays so: exports may be behind."""
    tries = entry.tries if began else entry.tries + 1
    state: RunState = "failed" if entry.version is None else "published"
    again = None if entry.version is None else now
    return replace(entry, state=state, since=now, reason=reason, who=WHO, tries=tries, not_before=again)


def why_unbegun(code: int) -> str:
    """Of a run whose process has ended, and has told the ledger nothing. (Below 0: that signal.)"""
    if code == 0:  # the same would come of another try
        return "RunError: The run ended well, but not as what the scheduler knows: another interval, or another ledger."
    if code == WRONG_USAGE:
        return "SettingsError: The run was refused, before it began, for its settings. The log has what it said."
    how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"WorkerError: The run {how} before it began. The log has what it said."


def may_help(code: int) -> bool:
    """Whether another try may do better, of a run that ended so before it began."""
    return code not in (0, WRONG_USAGE)


def put_off(entry: Entry, now: datetime) -> Entry:
    """A run that somebody else works on: no try of ours."""
    again = now + timedelta(seconds=BUSY_SECONDS)
    reason = entry.reason if entry.state == "published" else "Another process works on it."
    return replace(entry, reason=reason, not_before=again)


def is_infrastructure(reason: str) -> bool:
    """Whether the machine failed, not the data or the model: another try may do better."""
    return reason.partition(":")[0] in INFRASTRUCTURE


def is_outdated(entry: Entry) -> bool:
    """Whether a run could not publish as a newer date is in service: it needs nobody, and is as good as skipped."""
    return entry.who == WHO and entry.reason.startswith("OlderDataError:")


def may_try_again(entry: Entry, model: Scheduled, first_failed: datetime, now: datetime) -> bool:
    """Whether a run that failed is tried again: a number of times, for a while; one that was interrupted goes on."""
    if entry.reason.startswith(INTERRUPTED):
        return entry.tries <= INTERRUPTIONS
    in_time = now < first_failed + timedelta(seconds=model.retry_seconds)
    return is_infrastructure(entry.reason) and entry.tries <= model.retries and in_time


def failed_exports(transitions: Sequence[Transition]) -> list[datetime]:
    """When the exports of a published run could not follow, one try after the other, newest first."""
    found = []
    for one in reversed(transitions):
        if one.after == "published":
            if not is_infrastructure(one.reason):
                break
            found.append(one.at)
    return found


def may_export_again(transitions: Sequence[Transition], model: Scheduled, now: datetime) -> bool:
    """The same rule for exports, which need no scoring."""
    failed = failed_exports(transitions)
    in_time = not failed or now < min(failed) + timedelta(seconds=model.retry_seconds)
    return len(failed) <= model.retries and in_time


def tried_again(entry: Entry, now: datetime, random: Callable[[], float]) -> Entry:
    """The entry of a run that failed, due again: after a random while, so that many do not come at once."""
    longest = 0.0 if entry.reason.startswith(INTERRUPTED) else min(LONGEST_WAIT, 5.0 * 2**entry.tries)
    wait = timedelta(seconds=random() * longest)
    return replace(
        entry, state="due", since=now, reason=f"Tried again after: {entry.reason}", who=WHO, not_before=now + wait
    )


def stopped(entry: Entry, now: datetime) -> Entry:
    """A run that was ended in good order: due at once, and this try does not count."""
    return replace(
        entry,
        state="due",
        since=now,
        reason="It was stopped with the scheduler, and goes on where it was.",
        who=WHO,
        tries=max(0, entry.tries - 1),
        not_before=now,
    )
