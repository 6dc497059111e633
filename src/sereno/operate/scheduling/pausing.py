"""Pausing and resuming a model: what an operator says to the scheduler, through the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Pause
from sereno.operate.scheduling import deciding
from sereno.operate.scheduling.deciding import Scheduled


def resume(
    ledger: RunLedger, model: Scheduled, *, skip_missed: bool, now: datetime, who: str
) -> tuple[Pause | None, list[Entry]]:
    """End a pause; and the runs that were missed meanwhile, now due or skipped, as far as they had to be written down.

    Where the table has every date, all of them are due, however many: an operator said so. Where it is the latest snapshot,
    the scheduler finds out itself which is. May be done again where it failed in between. Raises LedgerError.
    """
    made = []
    if skip_missed or model.disposition == "partition":
        if model.disposition == "partition":
            known = ledger.entries(model=model.name, until=now + timedelta(microseconds=1))
            intervals = deciding.gaps(model, known, now, ledger.pauses().get(model.name))
        else:
            newest = ledger.newest(now).get(model.name)
            intervals = deciding.missed(model, newest, now, most=deciding.MOST_SKIPPED)
        for interval in intervals:
            entry = deciding.entry_of(model, interval, "due", now, f"Resumed by {who}.")
            if skip_missed:
                entry = replace(
                    entry, state="skipped", reason=f"Missed while paused; {who} resumed without it.", who=who
                )
            if ledger.move(entry, expected=(None,)):
                made.append(entry)
    return ledger.resume(model.name), made
