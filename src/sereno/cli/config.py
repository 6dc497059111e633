"""The command that tells which settings count, and where they come from: config."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli.commands import DONE, FAILED, Commands
from sereno.cli.named import file_of, overrides_of, settings_of
from sereno.cli.printing import output

if TYPE_CHECKING:
    from sereno.operate.effective import Effectives


def add(commands: Commands) -> None:
    one = commands.command(
        "config",
        _config,
        "the settings that count, and where each comes from",
        "Passwords and secrets are masked. Without FILE, those of all models that the settings name.",
    )
    if not commands.own:
        one.add_argument(
            "file", metavar="FILE", nargs="?", help="the model file, or the name of a model in sereno.toml"
        )


def _config(options: argparse.Namespace) -> int:
    from sereno.operate.effective import effective
    from sereno.serve.options import Options
    from sereno.serve.platforms import platform_for

    own = options.model_itself
    file = Path(own.file) if own is not None else file_of(options).absolute() if options.file is not None else None
    served = Options(
        files=[file] if file is not None else [],
        home=options.home,
        env=options.env,
        overrides=overrides_of(options),
    )
    platform = platform_for(served, os.environ)
    added = platform.unset(os.environ) if platform is not None else {}
    os.environ.update(added)
    try:
        found = effective(
            lambda start: settings_of(options, start),
            file or Path.cwd(),
            file=file,
            env=options.env or os.environ.get("SERENO_ENV"),
        )
    finally:
        for name in added:
            del os.environ[name]
    if platform is not None:
        found.say_platform(added, platform.said_by)
    data = {
        "settings": [one.to_dict() for one in found.settings],
        "secrets": [asdict(one) for one in found.secrets],
        "troubles": found.troubles,
    }
    output(options, data, _lines(found))
    if not options.json:
        for trouble in found.troubles:
            print(f"sereno: {trouble}", file=sys.stderr)
    return FAILED if found.troubles else DONE


def _lines(found: Effectives) -> Iterator[str]:
    from sereno.lines import table_lines

    rows = [("setting", "value", "from")]
    rows += [(one.name, _text(one.value), str(one.origin)) for one in found.settings]
    yield from table_lines(rows)
    if found.secrets:
        yield ""
        rows = [("secret", "wanted by", "from")]
        rows += [(one.name, one.wanted_by, one.where or "nowhere") for one in found.secrets]
        yield from table_lines(rows)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
