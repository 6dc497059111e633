"""The command that runs a project for good: up."""

from __future__ import annotations

import argparse

from sereno.cli.commands import Commands, positive
from sereno.cli.named import overrides_of
from sereno.cli.printing import write
from sereno.cli.serving import takes_serve_settings


def add(commands: Commands) -> None:
    if commands.own:
        return
    one = commands.command(
        "up",
        _up,
        "all of it, for months: runs by their schedules, and the online API",
        "For the models of sereno.toml that have a file. What dies is started again. SIGTERM ends it, SIGHUP has it read "
        "its files again; so does a change of one.",
    )
    one.add_argument("--no-api", action="store_true", help="only runs")
    one.add_argument("--no-schedule", action="store_true", help="only the online API")
    one.add_argument(
        "--workers", dest="api_workers", type=positive, metavar="N", help="processes of the API that answer (1)"
    )
    takes_serve_settings(one)


def _up(options: argparse.Namespace) -> int:
    from sereno.operate.up.command import up
    from sereno.serve.command import note
    from sereno.serve.options import Options

    return up(
        Options(files=[], home=options.home, env=options.env, overrides=overrides_of(options)),
        workers=options.api_workers,
        api=not options.no_api,
        schedule=not options.no_schedule,
        verbose=options.verbose,
        as_json=options.json,
        tell=lambda line: write(options, line),
        note=note,
    )
