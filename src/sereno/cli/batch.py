"""Commands that score: new, check, run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sereno.cli.commands import DONE, FAILED, HELD, Commands, add_executor, positive
from sereno.cli.health import tell_people
from sereno.cli.named import file_of, from_here, model_of, settings_of, who
from sereno.cli.printing import output, write


def add(commands: Commands) -> None:
    if not commands.own:
        one = commands.command(
            "new", _new, "a model file to start from", "With --from-data its row types are those of your data."
        )
        one.add_argument("name", metavar="NAME")
        one.add_argument(
            "--from-data", type=Path, metavar="FILE", help="Parquet, CSV or JSON lines to infer row types from"
        )
    one = commands.command(
        "check",
        _check,
        "load a model file, score a sample in every arrangement, compare",
        "A predict that depends on its batch, on the order of rows or on what it scored before is caught.",
    )
    commands.takes_file(one)
    one.add_argument("--date", metavar="D", help="data date of the sample; the last interval if not given")
    one.add_argument("--rows", type=positive, default=200, metavar="N", help="rows of the sample (200)")
    one.add_argument("--source", metavar="S", help="read from here instead")
    one = commands.command(
        "run",
        _run_batch,
        "one batch run: read, score, check, publish, export",
        "A run that was killed goes on where it was. Exit code 3: held by a gate; what was in service stays. Exit code 4: failed "
        "of what another try would meet again.",
    )
    commands.takes_file(one)
    one.add_argument("--date", metavar="D", help="data date (2026-05-01, or 2026-05-01T13:00 of an hourly schedule)")
    one.add_argument(
        "--force", action="store_true", help="score and publish even what is published, older or withdrawn"
    )
    one.add_argument("--workers", type=positive, metavar="N", help="processes; as many as cores if not given")
    add_executor(one)
    one.add_argument("--source", metavar="S", help="read from here instead")
    one.add_argument("--who", metavar="NAME", help="who starts it, for the ledger; the user if not given")
    # for a scheduler and backfill: the very interval that is meant, and not again if it is published
    one.add_argument("--span", help=argparse.SUPPRESS)
    one.add_argument("--once", choices=("published", "ever"), help=argparse.SUPPRESS)


def _new(options: argparse.Namespace) -> int:
    from sereno.new import new

    written = new(options.name, Path.cwd(), options.from_data)
    shown = os.path.relpath(written)
    if options.json:
        write(options, json.dumps({"file": shown}))
    else:
        write(options, f"Wrote {shown}. Next: sereno check {shown}, then sereno run {shown}")
    return DONE


def _check(options: argparse.Namespace) -> int:
    from sereno.check import check, render

    if options.source is not None:
        options.source = from_here(options.source)
    model, settings = model_of(options)
    report = check(model, settings, date=options.date, rows=options.rows)
    output(options, report.to_dict(), render(report))
    return DONE if report.ok else FAILED


def _run_batch(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as at_the_end:  # however it ended, after all was printed
        return _run_one(options, at_the_end)


def _run_one(options: argparse.Namespace, at_the_end: contextlib.ExitStack) -> int:
    if options.source is not None:
        options.source = from_here(options.source)
    began, run_key = datetime.now(UTC), None
    with _ahead(options) as ahead:  # before anything heavy is imported here
        from sereno.adapters.executors.choosing import make_executor
        from sereno.baseline import baseline_of
        from sereno.batch.run import run
        from sereno.home import Home
        from sereno.progress import Shown
        from sereno.show import run_lines

        model, settings = model_of(options)
        at_the_end.callback(lambda: tell_people(settings, model.name, began, file=model.file, run_key=run_key))
        executor = make_executor(model, settings, ahead)
        with Shown() as watcher:
            report = run(
                model,
                settings,
                executor,
                when=options.date,
                force=options.force,
                watcher=watcher,
                who=options.who or who(),
                span=options.span,
                once=options.once,
            )
    run_key = report.run_key
    if options.json:
        write(options, report.to_json().decode())
    elif report.state == "nothing":
        write(options, report.says)
    else:
        write(options, "\n".join(run_lines(report, baseline=baseline_of(Home(settings, model.name), report))))
    return HELD if report.state == "held" else DONE


@contextlib.contextmanager
def _ahead(options: argparse.Namespace) -> Iterator[Any]:
    """A second worker that imports what the model file imports while this process does; none where that is for nothing."""
    from sereno.adapters.executors.spawn import Ahead, cores

    if options.model_itself is not None:
        yield None
        return
    file = file_of(options)
    settings = settings_of(options, file)
    workers = settings.workers or cores()
    if workers == 1 or settings.executor != "local" or not file.is_file():
        yield None
        return
    with Ahead(file.resolve(), workers) as ahead:
        yield ahead
