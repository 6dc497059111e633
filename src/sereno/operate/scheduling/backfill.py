"""Backfill: the runs of many data dates, oldest first, one at a time, each in a process of its own.

A date that fails or is held keeps no other from being run. Beside a scheduler it gives way: what is due of the model, and
what of it is running, goes first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from sereno.exceptions import SettingsError
from sereno.interfaces import RunLedger
from sereno.ledger import BEAT_SECONDS
from sereno.operate.scheduling.deciding import Scheduled
from sereno.operate.scheduling.scheduler import LEASE
from sereno.operate.tied import tied
from sereno.schedule import Interval, due_between, last_interval, span

State = Literal["published", "nothing", "held", "failed"]
WRONG_USAGE = 2  # the exit code of a run that would fail for every date
PATIENCE = 3 * BEAT_SECONDS  # for a scheduler to start what is due
LOOK_SECONDS = 0.5
_MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What became of one date."""

    label: str
    state: State
    version: int | None = None
    rows: int = 0  # that were published
    says: str = ""


def intervals_of(model: Scheduled, first: date, last: date, now: datetime) -> list[Interval]:
    """The intervals that start from one local date to another, oldest first.

    Raises SettingsError where there is none, one has not ended, or the table has no place for them.
    """
    if model.disposition != "partition":
        raise SettingsError(
            f'Model {model.name!r} has disposition = "replace": its table is the latest snapshot and has no place for other '
            f'dates. For a partition per data date set disposition = "partition" in [models.{model.name}]. To put one older '
            f"date in service, `sereno run {model.name} --date D --force`."
        )
    if first > last:
        raise SettingsError(f"--from {first} is later than --to {last}. Turn them round.")
    newest = last_interval(model.schedule, model.time_zone, now)
    if last > newest.data_date:
        raise SettingsError(f"The interval of {last} has not ended. The last one that has is {newest.label}.")
    midnight = datetime(first.year, first.month, first.day, tzinfo=ZoneInfo(model.time_zone))
    found = due_between(model.schedule, model.time_zone, midnight.astimezone(UTC) - timedelta(days=1), now, most=_MOST)
    chosen = [one for one in found if first <= one.data_date <= last]
    if not chosen:
        raise SettingsError(f"No interval starts from {first} to {last} with the schedule '{model.schedule}'.")
    several = next((one for one in chosen if not one.alone), None)
    if several is not None:
        raise SettingsError(
            f"{several.data_date} has several runs with the schedule '{model.schedule}', each of which would replace the day's "
            'partition. Use one run a day, or disposition = "replace".'
        )
    return chosen


def backfill(
    model: Scheduled,
    intervals: Sequence[Interval],
    options: Sequence[str],
    *,
    ledger: RunLedger,
    note: Callable[[str], None],
) -> Iterator[Filled]:
    """Run those that are not published, and tell of each. `options`: of `sereno run`; with --force all are run.

    Raises SettingsError where no date can be run, LedgerError.
    """
    for interval in intervals:
        give_way(ledger, model.name, note)
        command = [sys.executable, "-P", *(f"-W{one}" for one in sys.warnoptions), "-m", "sereno", "run", model.file]
        done = subprocess.run(
            tied([*command, "--span", span(interval.key, interval.data_time), "--once=published", "--json", *options]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
        filled = filled_of(interval, done.returncode, done.stdout)
        if done.returncode == WRONG_USAGE:
            raise SettingsError(filled.says)
        yield filled


def filled_of(interval: Interval, code: int, output: bytes) -> Filled:
    """What a run's exit code and output say."""
    try:
        told = json.loads(output)
    except ValueError:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Filled(label=interval.label, state="failed", says=f"Its process {how}.")
    if "error" in told:
        return Filled(label=interval.label, state="failed", says=told["says"])
    state = told["state"]
    return Filled(
        label=interval.label, state=state, version=told["version"], rows=told["predictions"], says=told["says"]
    )


def give_way(ledger: RunLedger, name: str, note: Callable[[str], None]) -> None:
    """Wait while another run of the model goes on, and let the scheduler start what is due: it would else wait for all."""
    started = time.monotonic()
    told = ""
    while True:
        now = datetime.now(UTC)
        entries = [one for one in ledger.open_entries() if one.model == name]
        going = next(
            (one for one in entries if one.state == "running" and ledger.holder(f"run:{name}:{one.run_key}")), None
        )
        is_due = any(one.state == "due" and (one.not_before is None or one.not_before <= now) for one in entries)
        is_scheduled = name not in ledger.pauses() and ledger.holder(LEASE) is not None
        if going is None and not (is_due and is_scheduled and time.monotonic() - started < PATIENCE):
            return
        if going is not None and told != going.label:
            told = going.label
            note(f"waits for the run of {told}, which is going on")
        time.sleep(LOOK_SECONDS)
