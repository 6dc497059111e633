"""Commands of the online API: serve, log, key."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sereno.cli.commands import DONE, SETTING, Commands, positive
from sereno.cli.named import file_of, overrides_of, settings_of
from sereno.cli.printing import output, write
from sereno.exceptions import SettingsError

SERVE_OPTIONS = (
    ("host", "ADDRESS", "the address to listen on (127.0.0.1)"),
    ("port", "P", "the port (8000); 0 takes a free one"),
    ("unix", "PATH", "a Unix socket to listen on instead"),
    ("tls_certificate", "FILE", "speak TLS, with this certificate"),
    ("tls_key", "FILE", "and this key"),
    ("keys_file", "FILE", "who asks needs a key whose hash is in there; `sereno key` makes one"),
)
SERVE_SWITCHES = (
    ("no_auth", "an open address without keys: whoever reaches it may ask"),
    ("tls_terminated_upstream", "an open address without TLS: something in front of it speaks TLS with the callers"),
)


def add(commands: Commands) -> None:
    one = commands.command(
        "serve",
        _serve,
        "the online API: predictions over HTTP",
        "Without FILE it serves the models of sereno.toml. SIGTERM drains it, SIGHUP has it read its files again.",
    )
    if not commands.own:
        one.add_argument("file", metavar="FILE", nargs="*", help="model files, or names of models in sereno.toml")
    one.add_argument("--workers", type=positive, metavar="N", help="processes that answer (1)")
    takes_serve_settings(one)
    one.add_argument("--watch", action="store_true", help="read the files again when one of them changes")
    one.add_argument("--on", choices=["ray"], help="serve on nodes of a Ray cluster, in place of this machine")
    one.add_argument("--replicas", type=positive, metavar="N", help="on how many of them (1)")
    one = commands.command(
        "log",
        _log,
        "what the online API answered, newest last",
        "T is 2026-05-01, 2026-05-01T12:00 (UTC) or, for how long ago, 15m, 2h, 3d.",
    )
    commands.takes_model(one)
    one.add_argument("--since", metavar="T", help="only answers from this time on")
    one.add_argument("--until", metavar="T", help="only answers before this time; of a date: until its end")
    one.add_argument("--key", nargs="+", metavar="KEY", help="only answers of this key: its values, in declared order")
    one.add_argument("--request", metavar="ID", help="only answers to this request")
    one.add_argument("--limit", type=positive, metavar="N", help="how many, the newest (20)")
    one.add_argument("--compact", action="store_true", help="put all that was answered into the table now")
    one.add_argument("--erase", nargs="+", metavar="KEY", help="remove the answers of this key for good: a person's")
    if not commands.own:
        one = commands.command(
            "key",
            _key,
            "a new key for a caller of the online API",
            "It is shown once; the server keeps its hash, in the file that the setting serve.keys_file names.",
        )
        one.add_argument("name", metavar="NAME", nargs="?", default="", help="whose it is, for your own records")


def takes_serve_settings(one: Any) -> None:
    """The settings of the online API that have an option of their own."""
    for name, placeholder, about in SERVE_OPTIONS:
        one.add_argument(f"--{name.replace('_', '-')}", dest=f"{SETTING}serve.{name}", metavar=placeholder, help=about)
    for name, about in SERVE_SWITCHES:
        dest = f"{SETTING}serve.{name}"
        one.add_argument(f"--{name.replace('_', '-')}", dest=dest, action="store_const", const="true", help=about)


def _serve(options: argparse.Namespace) -> int:
    from sereno.serve.command import replace_process, serve
    from sereno.serve.options import Options

    if options.model_itself is not None:
        replace_process(options.model_itself.file, options.given[options.given.index("serve") + 1 :])
    served = Options(
        files=[file_of(options, named).absolute() for named in options.file],
        home=options.home,
        env=options.env,
        overrides=overrides_of(options),
    )
    if options.on is not None:
        from sereno.serve.on_ray.command import serve_on_ray

        return serve_on_ray(
            served,
            replicas=options.replicas or 1,
            watch=options.watch,
            verbose=options.verbose,
            as_json=options.json,
            tell=lambda line: write(options, line),
        )
    if options.replicas is not None:
        raise SettingsError(
            "--replicas is the number of nodes of a cluster. Say --on ray, too, or --workers for processes here."
        )
    return serve(
        served,
        watch=options.watch,
        verbose=options.verbose,
        as_json=options.json,
        tell=lambda line: write(options, line),
    )


def _log(options: argparse.Namespace) -> int:
    from sereno.answers.command import log

    own = options.model_itself
    model = own.name if own is not None else options.model
    settings = settings_of(options, own.file if own is not None else Path.cwd())
    data, lines, notes = log(
        settings,
        model,
        {name: getattr(options, name) for name in ("since", "until", "key", "request", "limit")},
        compact=options.compact,
        without=options.erase,
    )
    output(options, data, lines)
    for note in notes:
        print(f"sereno: {note}", file=sys.stderr)
    return DONE


def _key(options: argparse.Namespace) -> int:
    from sereno.serve.guard import new_key

    key, line = new_key(options.name)
    says = [
        "The key, for the caller. It is not shown again:",
        key,
        "Its line for the file that the setting serve.keys_file names; started or reloaded, the server knows it:",
        line,
    ]
    output(options, {"key": key, "line": line}, says)
    return DONE
