"""How commands are declared: each module beside this one has an `add`, which gives its commands their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sereno.urls import is_url

DONE, FAILED, USAGE, HELD, LASTING = 0, 1, 2, 3, 4
SETTING = "setting:"  # an option whose destination begins so sets the setting of that name


class Parser(argparse.ArgumentParser):
    """Refuses itself what it does not know, so that the options are shown that this command has."""

    siblings: Mapping[str, Parser] = {}

    def __init__(self, **named: Any) -> None:
        super().__init__(allow_abbrev=False, **named)  # `--dat` may be meant for `--date`, or for another

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            hint = self._known_elsewhere(option) or _nearest(option, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _nearest(str(value), [str(one) for one in action.choices or ()])
            raise

    def _known_elsewhere(self, option: str) -> str:
        there = [one.prog for one in self.siblings.values() if option in one._option_string_actions]
        return f" ({option} is of `{'`, `'.join(there)}`)" if there else ""


def _nearest(word: str, known: Iterable[str]) -> str:
    from sereno.settings import nearest

    hint = nearest(word, known)
    return f".{hint}" if hint else ""


class Commands:
    """What the modules add their commands to."""

    def __init__(self, parser: argparse.ArgumentParser, *, own: bool, word: str = "COMMAND") -> None:
        self.own = own  # a model file was started itself, so that commands do not ask for it
        self._commands = parser.add_subparsers(
            title=f"{word.lower()}s", metavar=word, required=True, parser_class=Parser
        )

    def group(self, name: str, about: str, more: str, *, word: str) -> Commands:
        """A command that is several, of which a second `word` names one: `sereno deploy server`."""
        one = self._commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}")
        return Commands(one, own=self.own, word=word)

    def command(self, name: str, function: Callable[[argparse.Namespace], int], about: str, more: str = "") -> Any:
        """A command with the options that all have."""
        described = f"{about[0].upper()}{about[1:]}. {more}"
        one = self._commands.add_parser(name, help=about, description=described, add_help=True)
        one.siblings = self._commands.choices
        one.set_defaults(command=function, named=name)
        one.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        one.add_argument("--home", type=folder, metavar="DIR", help="where predictions, exports and .sereno lie")
        one.add_argument("--env", metavar="NAME", help="the [env.NAME] of sereno.toml (or SERENO_ENV)")
        one.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. values.warehouse=/data"
        )
        one.add_argument("--json", action="store_true", help="print JSON for scripts")
        return one

    def takes_file(self, one: Any) -> None:
        if not self.own:
            one.add_argument("file", metavar="FILE", help="the model file, or the name of a model in sereno.toml")

    def takes_model(self, one: Any, *, optional: bool = False) -> None:
        if not self.own:
            more = "; the only one there is, if not given" if optional else ""
            one.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=f"the model's name{more}")


def folder(text: str) -> Path:
    if is_url(text):
        from sereno.settings import redact

        raise argparse.ArgumentTypeError(
            f"{redact(text)!r} is no folder of this machine. For what lies there, give it as the storage: "
            f"--set storage={redact(text)}, or SERENO_STORAGE"
        )
    return Path(text)


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number


def add_executor(one: Any) -> None:
    """The option of commands that score in batch."""
    one.add_argument(
        "--executor", dest=SETTING + "executor", metavar="KIND", help="local, ray or spark: who hands out the tasks"
    )
