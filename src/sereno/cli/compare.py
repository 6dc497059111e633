"""The command that holds a challenger against what is published."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from sereno.cli.commands import DONE, Commands, add_executor, positive
from sereno.cli.named import from_here, model_of
from sereno.cli.printing import output, write_page

INTERRUPTED = 130


def add(commands: Commands) -> None:
    one = commands.command(
        "compare",
        _compare,
        "a challenger's predictions beside a published version's",
        "It is scored on the data of that version, in a folder that is gone afterwards; nothing is published.",
    )
    commands.takes_file(one)
    one.add_argument("--against", metavar="VERSION", required=True, help='a version, or "served": the one in service')
    one.add_argument("--model", metavar="MODEL", help="whose version; the model of the file, if not given")
    one.add_argument("--date", metavar="D", help="data date to score; the version's, if not given")
    one.add_argument("--html", type=Path, metavar="FILE", help="write it as a page that needs nothing beside it")
    one.add_argument("--workers", type=positive, metavar="N", help="processes; as many as cores if not given")
    add_executor(one)
    one.add_argument("--source", metavar="S", help="read from here instead")


def _compare(options: argparse.Namespace) -> int:
    from sereno.adapters.executors.choosing import make_executor
    from sereno.compare import compare
    from sereno.compare.lines import comparison_lines
    from sereno.compare.temporary import ended_in_order
    from sereno.progress import Shown

    if options.source is not None:
        options.source = from_here(options.source)
    if options.html is not None:
        options.html = options.html.absolute()  # the working folder becomes the model's
    model, settings = model_of(options)
    executor = make_executor(model, settings)
    try:
        with ended_in_order(), Shown() as watcher:
            found = compare(
                model,
                settings,
                executor,
                against=options.against,
                name=options.model,
                when=options.date,
                watcher=watcher,
            )
    except KeyboardInterrupt:
        print("sereno: interrupted; of a comparison nothing is kept.", file=sys.stderr)
        return INTERRUPTED
    lines, data = comparison_lines(found), found.to_dict()
    if options.html is not None:
        from sereno.compare.page import comparison_page

        lines = chain(lines, [write_page(options.html, comparison_page(found))])
        data |= {"html": str(options.html)}
    output(options, data, lines)
    return DONE
