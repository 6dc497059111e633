"""Commands of runs: runs, show, release, discard."""

from __future__ import annotations

import argparse
import json
from itertools import chain
from pathlib import Path

from sereno.cli.commands import DONE, Commands
from sereno.cli.named import home_of, home_of_run, who
from sereno.cli.printing import output, write_page


def add(commands: Commands) -> None:
    one = commands.command("runs", _runs, "the runs of a model, newest last")
    commands.takes_model(one, optional=True)
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


def _runs(options: argparse.Namespace) -> int:
    from sereno.show import runs_lines

    home = home_of(options)
    reports, published = home.attempts.all(), home.store.state().attempts
    states = [home.attempts.state_in_words(r, published) for r in reports]
    data = [json.loads(r.to_json()) | {"state": s} for r, s in zip(reports, states, strict=True)]
    output(options, data, runs_lines(reports, states))
    return DONE


def _show(options: argparse.Namespace) -> int:
    from sereno.baseline import baseline_of
    from sereno.show import run_lines

    home = home_of_run(options)
    report = home.attempts.find(options.run)
    state = home.attempts.state_in_words(report, home.store.state().attempts)
    baseline = baseline_of(home, report)
    lines = run_lines(report, state=state, baseline=baseline, inputs=options.verbose)
    data = json.loads(report.to_json()) | {"state": state}
    if options.html:
        from sereno.report_page import report_page

        lines = chain(lines, [write_page(options.html, report_page(report, state=state, baseline=baseline))])
        data |= {"html": str(options.html)}
    output(options, data, lines)
    return DONE


def _release(options: argparse.Namespace) -> int:
    from sereno.baseline import baseline_of
    from sereno.batch.publish import release
    from sereno.show import run_lines

    home = home_of_run(options)
    report = release(home, options.run, who=who())
    output(options, json.loads(report.to_json()), run_lines(report, baseline=baseline_of(home, report)))
    return DONE


def _discard(options: argparse.Namespace) -> int:
    from sereno.batch.publish import discard

    report = discard(home_of_run(options), options.run)
    output(options, json.loads(report.to_json()), [f"Discarded {report.attempt}; what is in service stays."])
    return DONE
