"""The command line. Thin: parse, call, print. Nothing heavy is imported before a command needs it.

`commands.py` says how a command is declared, `named.py` finds what it names; the other modules have the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sereno import __version__
from sereno.cli import batch, compare, config, deploy, health, ledger, operate, published, runs, schedule, serving
from sereno.cli.commands import FAILED, LASTING, USAGE, Commands, Parser
from sereno.cli.owner import refuse_root
from sereno.cli.printing import write
from sereno.exceptions import (
    DataError,
    ModelFileError,
    NotFoundError,
    OlderDataError,
    OutputError,
    SerenoError,
    SettingsError,
    SourceError,
)
from sereno.lines import whole_lines

if TYPE_CHECKING:
    from sereno.model import Model

ABOUT = """\
Puts a trained model into production: one plain Python file, scored by night, published whole or not at all.

  sereno new churn                      a model file to start from
  sereno check churn.py                 the same prediction in every arrangement and through every door?
  sereno run churn.py                   read, score, check, publish the last interval that ended
  sereno versions churn                 what was published, what is in service
  sereno rollback churn                 the version before, back in service
  sereno serve churn.py                 predictions over HTTP
  sereno up                             all of it, for months: runs by their schedules, and the API
"""
AFTER = """\
Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 3 held by a gate, 4 a run failed of what another try would meet again.
`sereno COMMAND --help` tells more."""
# What a run fails of that stays as it is until somebody mends the model or the data. A source may come later, and what code of
# the model raises may be of a service that it asks.
STAYS = (ModelFileError, OutputError, DataError, NotFoundError, OlderDataError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return _start(parser_of(), given, None)


def main_of(model: Model, arguments: Sequence[str]) -> int:
    """The command line of a model file that was started itself: `python credit_scoring.py run`."""
    return _start(parser_of(model), arguments, model)


def _start(parser: argparse.ArgumentParser, arguments: Sequence[str], model: Model | None) -> int:
    if not arguments:
        parser.print_help()
        return USAGE
    whole_lines(sys.stderr)
    _heed_sigterm()
    options = parser.parse_args(arguments)
    options.given = list(arguments)
    return _run(options, model)


def _heed_sigterm() -> None:
    """Have a SIGTERM end the first process of a container as it ends any other; the kernel keeps it from that one.

    Commands that do more on a SIGTERM have handlers of their own, later.
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def _run(options: argparse.Namespace, model: Model | None) -> int:
    options.model_itself = model
    options.out = sys.stdout
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        # what the model's own code prints must not end up between the braces of our JSON
        with _working_folder(), contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            refuse_root(options)
            return command(options)
    except SerenoError as error:
        if options.json:
            write(options, json.dumps({"error": type(error).__name__, "says": str(error)}))
        print(f"sereno: {error}", file=sys.stderr)
        if options.verbose:
            raise
        cause = error.__cause__
        if cause is not None and not isinstance(cause, SerenoError | OSError):
            print("  (-v shows the traceback)", file=sys.stderr)
        return code_of(error, options.named)
    except SystemExit as end:
        if end.code:
            raise
        # code of a model's, or of a library, that ends the program: it was not done, whatever it says
        says = "sys.exit was called while the command was at work, so it did not come to its end."
        if options.json:
            write(options, json.dumps({"error": "SystemExit", "says": says}))
        print(f"sereno: {says}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("sereno: interrupted; finished tasks are kept, the next run goes on where this one was.", file=sys.stderr)
        return 130


def code_of(error: SerenoError, command: str) -> int:
    """The exit code. That of a run tells whoever starts runs whether to start another one."""
    if isinstance(error, SettingsError):
        return USAGE
    stays = isinstance(error, STAYS) and not isinstance(error, SourceError)
    return LASTING if stays and command == "run" else FAILED


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Commands may change the working folder (to a model's home); it is put back for whoever called us in-process."""
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)


def parser_of(own: Model | None = None) -> argparse.ArgumentParser:
    """`own`: the model whose file was started itself, so that commands do not ask for it."""
    name = "sereno" if own is None or own.file is None else f"python {own.file.name}"
    parser = Parser(prog=name, description=ABOUT, epilog=AFTER, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sereno {__version__}")
    commands = Commands(parser, own=own is not None)
    for module in (batch, compare, serving, operate, schedule, ledger, runs, published, deploy, config, health):
        module.add(commands)
    return parser
