"""Commands of the ledger: runs, repair."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sereno.cli.commands import DONE, FAILED, Commands, positive
from sereno.cli.named import home_of, models_in, settings_of
from sereno.cli.printing import output, write
from sereno.exceptions import LedgerError, NotFoundError, SettingsError
from sereno.ledger import RunState

if TYPE_CHECKING:
    from sereno.batch.attempts import Report
    from sereno.history import Row
    from sereno.home import Home
    from sereno.interfaces import RunLedger
    from sereno.ledger import Entry
    from sereno.operate.repair import Repaired
    from sereno.settings import Settings

LONGEST = timedelta(days=33)  # interval of a model that is not named
MOST = 100  # runs of several models that are shown, unless more are asked for


def add(commands: Commands) -> None:
    one = commands.command(
        "runs",
        _runs,
        "the runs of a model, newest last",
        "Its attempts, and what is due, waits or was skipped. Without MODEL, where there are several: the newest runs of all. "
        "A run is due at its data time, the end of its interval.",
    )
    commands.takes_model(one, optional=True)
    states = get_args(RunState)
    one.add_argument(
        "--state",
        action="append",
        choices=states,
        metavar="S",
        help=f"only these; may be repeated: {', '.join(states)}",
    )
    one.add_argument("--since", metavar="T", help="due from then on: 2026-05-01, 2026-05-01T12:00 (UTC), or 3d ago")
    one.add_argument("--until", metavar="T", help="due before then, or on that day")
    one.add_argument(
        "--limit", type=positive, metavar="N", help=f"the newest N; of several models {MOST}, if not given"
    )
    one.add_argument("--attempts", action="store_true", help="only attempts, from their reports: needs no ledger")
    commands.command(
        "repair",
        _repair,
        "make what the ledger of runs lacks",
        "From what was published, the reports of attempts and, where it is damaged, what can still be read of it; it is put "
        "aside then. May be done at any time.",
    )


def settings_here(options: argparse.Namespace) -> Settings:
    own = options.model_itself
    return settings_of(options, own.file if own is not None else Path.cwd())


@contextlib.contextmanager
def ledger_there(settings: Settings) -> Iterator[RunLedger | None]:
    """The ledger; None where there is none, as commands that only look make none. Raises LedgerError."""
    from sereno.adapters.ledger import ledger_file
    from sereno.ledger import open_ledger

    if settings.ledger is None and not ledger_file(settings.home).exists():
        yield None
        return
    with contextlib.closing(open_ledger(settings)) as ledger:
        yield ledger


def state_of(home: Home, report: Report, published: Mapping[str, int]) -> str:
    """The state of an attempt in words, also from another host, or container, than the one that it is on."""
    from sereno.ledger import is_left, lease_name

    state = home.attempts.state_in_words(report, published)
    if state == "interrupted":
        with contextlib.suppress(LedgerError), ledger_there(home.settings) as ledger:
            lease = ledger.holder(lease_name(home.name, report.run_key)) if ledger is not None else None
            if lease is not None and not is_left(lease):
                return report.state
    return state


def entry_named(options: argparse.Namespace, settings: Settings, *states: RunState) -> Entry | None:
    """The newest run that the ledger has under the date (or label, or attempt) which the command names.

    Raises NotFoundError where several models have one, and LedgerError.
    """
    own = options.model_itself
    try:
        day = datetime.fromisoformat(options.run[:10]).replace(tzinfo=UTC)
    except ValueError:
        return None
    name = own.name if own is not None else options.model
    until = None if name else day + LONGEST
    with ledger_there(settings) as ledger:
        entries = (
            ledger.entries(model=name, states=states, since=day - timedelta(days=1), until=until) if ledger else []
        )
    found = [e for e in entries if options.run in (e.label, e.data_date.isoformat(), e.attempt)]
    models = sorted({entry.model for entry in found})
    if len(models) > 1:
        raise NotFoundError(f"{', '.join(models)} have a run {options.run!r} each. Say which with --model.")
    return found[0] if found else None


def _runs(options: argparse.Namespace) -> int:
    settings = settings_here(options)
    there = models_in(settings)
    if options.model_itself is None and options.model is None and len(there) != 1:
        return _runs_of_all(options, settings, there)
    from sereno.history import row_of_entry, rows_lines, without_report

    name = options.model_itself.name if options.model_itself is not None else options.model or there[0]
    failed = None
    entries: list[Entry] = []
    if not options.attempts:
        try:
            with ledger_there(settings) as ledger:
                entries = ledger.entries(model=name) if ledger is not None else []
        except LedgerError as error:  # attempts are listed all the same
            failed = error
    attempts = _attempts(options) if name in there or not entries else []
    rows = [row for _, row in attempts]
    rows += [row_of_entry(entry) for entry in without_report(entries, (report for report, _ in attempts))]
    rows = _chosen(options, rows)
    output(options, [row.data for row in rows], rows_lines(rows))
    if any(entry.state == "published" for entry in entries) and name not in there:
        from sereno.operate.health import lies_elsewhere, says_elsewhere

        if lies_elsewhere(settings, name):
            print(
                f"sereno: {says_elsewhere(settings, name)} Name that one, or give this one another --home.",
                file=sys.stderr,
            )
    if failed is not None:
        print(f"sereno: {failed} Only attempts are listed.", file=sys.stderr)
        return FAILED
    return DONE


def _attempts(options: argparse.Namespace) -> list[tuple[Report, Row]]:
    from sereno.history import row_of_report

    home = home_of(options)
    published = home.store.state().attempts
    found = []
    for report in home.attempts.all():
        state = state_of(home, report, published)
        found.append((report, row_of_report(report, state, json.loads(report.to_json()))))
    return found


def _chosen(options: argparse.Namespace, rows: list[Row]) -> list[Row]:
    since, until = _times(options)
    chosen = [
        row
        for row in sorted(rows, key=lambda row: row.at)
        # an attempt that was interrupted has failed; its report could not say so
        if (not options.state or {"interrupted": "failed"}.get(row.state, row.state) in options.state)
        and (since is None or row.data_time >= since)
        and (until is None or row.data_time < until)
    ]
    return chosen[-(options.limit or len(chosen)) :]


def _times(options: argparse.Namespace) -> tuple[datetime | None, datetime | None]:
    from sereno.moments import time_of

    return (
        None if options.since is None else time_of(options.since, "--since"),
        None if options.until is None else time_of(options.until, "--until", end=True),
    )


def _runs_of_all(options: argparse.Namespace, settings: Settings, there: list[str]) -> int:
    """Those that the ledger knows. Nothing else is read, however many models there are."""
    from sereno.history import entries_lines, entry_data

    if options.attempts:
        raise SettingsError(f"Say whose attempts: in {settings.home} there are {', '.join(there) or 'no models'}.")
    since, until = _times(options)
    most = options.limit or MOST
    with ledger_there(settings) as ledger:
        if ledger is None and not there:
            raise SettingsError(f"Say which model: in {settings.home} there are none.")
        if ledger is None:
            raise NotFoundError(
                f"There is no ledger of runs in {settings.home}. `sereno repair` makes one from what was published; "
                "`sereno runs MODEL --attempts` does without."
            )
        entries = ledger.entries(states=options.state or (), since=since, until=until, limit=most + 1)
    shown = entries[:most][::-1]
    output(options, [entry_data(entry) for entry in shown], entries_lines(shown))
    if len(entries) > most and not options.json:
        write(options, "There are older ones: --limit N shows the newest N, `sereno runs MODEL` those of one model.")
    return DONE


def _repair(options: argparse.Namespace) -> int:
    from sereno.operate.repair import repair

    done = repair(settings_here(options))
    output(options, asdict(done), _repair_lines(done))
    return DONE


def _repair_lines(done: Repaired) -> Iterator[str]:
    if done.damage:
        yield done.damage.partition(". ")[0] + "."
        yield f"It is now {done.aside}; remove it when nothing of it is missed."
        yield f"Read of it: {_counted(done.salvaged)}."
    yield f"The ledger {done.ledger} {f'has got {_counted(done.added)}' if done.added else 'lacked no run'}."
    yield from (f"  {changed}" for changed in done.changed)
    if done.unread:
        yield "What could not be read:"
        yield from (f"  {what}" for what in done.unread)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what.removesuffix('s') if count == 1 else what}" for what, count in counts.items())
