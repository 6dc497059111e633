"""Commands of one run: show, release, discard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli.commands import DONE, Commands
from sereno.cli.health import tell_people
from sereno.cli.ledger import entry_named, ledger_there, settings_here, state_of
from sereno.cli.named import home_of_run, who
from sereno.cli.printing import output, write_page
from sereno.exceptions import LedgerError, NotFoundError, PublishError

if TYPE_CHECKING:
    from sereno.home import Home
    from sereno.ledger import Entry, Transition

    MakesPage = Callable[[Sequence[Transition]], str]  # of what happened to the run


def add(commands: Commands) -> None:
    one = commands.command(
        "show",
        _show,
        "the report of a run: rows, rejects, gates, predictions, times",
        "With -v also the input columns.",
    )
    one.add_argument("run", metavar="RUN", help="a run's id, or its data date")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")
    one.add_argument("--html", type=Path, metavar="FILE", help="write it as a page that needs nothing beside it")
    one = commands.command(
        "release", _release, "publish a held run", "Its gates are judged again against what is in service now."
    )
    one.add_argument("run", metavar="RUN")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")
    one = commands.command("discard", _discard, "drop a held run; what is in service stays")
    one.add_argument("run", metavar="RUN")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")


def _show(options: argparse.Namespace) -> int:
    from sereno.history import entry_data, entry_lines, transition_data, transitions_lines

    lines: Iterable[str]
    page: MakesPage | None = None
    try:
        lines, data, page = _report(options)
    except NotFoundError:
        entry = entry_named(options, settings_here(options))
        if entry is None:
            raise
        if options.html:
            raise NotFoundError(
                f"Run {entry.label} of {entry.model} is {entry.state}: it has no report of which a page could be made."
            ) from None
        lines, data = entry_lines(entry), entry_data(entry)
    try:
        with ledger_there(settings_here(options)) as ledger:
            happened = ledger.transitions(data["model"], data["run_key"]) if ledger is not None else []
    except LedgerError as error:  # the report is told all the same
        happened = []
        lines = chain(lines, [f"What happened to it is not known: {error}"])
    data |= {"transitions": [transition_data(one) for one in happened]}
    lines = chain(lines, transitions_lines(happened))
    if page is not None and options.html:
        lines = chain(lines, [write_page(options.html, page(happened))])
        data |= {"html": str(options.html)}
    output(options, data, lines)
    return DONE


def _report(options: argparse.Namespace) -> tuple[Iterable[str], dict[str, Any], MakesPage]:
    """The report of an attempt: as lines, as data, and what makes a page of it."""
    from sereno.baseline import baseline_of
    from sereno.report_page import report_page
    from sereno.show import run_lines
    from sereno.typed import options_of

    home = home_of_run(options)
    report = home.attempts.find(options.run)
    state = state_of(home, report, home.store.state().attempts)
    baseline = baseline_of(home, report)
    lines = run_lines(report, state=state, baseline=baseline, inputs=options.verbose)
    data = json.loads(report.to_json()) | {"state": state}

    def page(history: Sequence[Transition]) -> str:
        return report_page(report, state=state, baseline=baseline, history=history, options=options_of(home.settings))

    return lines, data, page


def _release(options: argparse.Namespace) -> int:
    from sereno.baseline import baseline_of
    from sereno.batch.publish import release, release_late
    from sereno.history import entry_data
    from sereno.show import run_lines

    if late := _late(options):
        entry = release_late(*late, who=who())
        says = [f"Run {entry.label} of {entry.model} is due, whatever there is of its input.", *_what_keeps(*late)]
        output(options, entry_data(entry), says)
        return DONE
    home, began = home_of_run(options), datetime.now(UTC)
    report = release(home, options.run, who=who())
    output(options, json.loads(report.to_json()), run_lines(report, baseline=baseline_of(home, report)))
    tell_people(settings_here(options), home.name, began, run_key=report.run_key)
    return DONE


def _discard(options: argparse.Namespace) -> int:
    from sereno.batch.publish import discard, discard_late
    from sereno.history import entry_data

    if late := _late(options):
        entry = discard_late(*late, who=who())
        output(
            options, entry_data(entry), [f"Run {entry.label} of {entry.model} is skipped; what is in service stays."]
        )
        return DONE
    report = discard(home_of_run(options), options.run, who=who())
    output(options, json.loads(report.to_json()), [f"Discarded {report.attempt}; what is in service stays."])
    return DONE


def _late(options: argparse.Namespace) -> tuple[Home, Entry] | None:
    """A run that is held as its input was late: no attempt of it is. Raises PublishError for one that has not begun."""
    from sereno.home import Home
    from sereno.typed import typed

    settings = settings_here(options)
    entry = entry_named(options, settings, "held")
    if entry is None:
        other = entry_named(options, settings, "due", "waiting", "skipped")
        if other is not None and not Home(settings, other.model).attempts.has(options.run, state="held"):
            run = typed(settings.given_options, "run", other.model, "--date", other.label)
            raise PublishError(
                f"Run {other.label} of {other.model} is {other.state}, not held{f' ({other.reason})' if other.reason else ''}. "
                f"`{run}` runs it now, with what there is of its input."
            )
        return None
    home = Home(settings, entry.model)
    if any(report.run_key == entry.run_key and report.state == "held" for report in home.attempts.all()):
        return None
    return home, entry


def _what_keeps(home: Home, entry: Entry) -> Iterator[str]:
    """What keeps a run that is due from starting."""
    from sereno.typed import typed

    with home.ledger() as ledger:
        scheduler, pause = ledger.holder("scheduler"), ledger.pauses().get(entry.model)
    options = home.settings.given_options
    if pause is not None:
        yield f"But {entry.model} is paused: `{typed(options, 'resume', entry.model)}`."
    if scheduler is None:
        run = typed(options, "run", entry.model, "--date", entry.label)
        yield f"No scheduler runs here: start `{typed(options, 'up')}`, or `{run}`."
