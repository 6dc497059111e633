"""`sereno up`: from what was typed to the API and the scheduler, side by side, for months."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sereno.config import find_home
from sereno.exceptions import SettingsError
from sereno.operate.up.children import Child, Children
from sereno.serve.options import Options
from sereno.serve.processes.ending import AFTER_DRAIN_SECONDS
from sereno.serve.processes.sockets import refuse_openness
from sereno.settings import FILE_NAME, Settings
from sereno.shared import file_system, is_network
from sereno.storage import exclusive, told

API, SCHEDULER = "the API", "the scheduler"
COMMAND = (sys.executable, "-P", "-m")  # -P: a module in the folder where it was started is not taken for one of ours


def up(
    options: Options,
    *,
    workers: int | None,
    api: bool,
    schedule: bool,
    verbose: bool,
    as_json: bool,
    tell: Callable[[str], None],
    note: Callable[[str], None],
    scheduler: Sequence[str] = ("sereno.operate.scheduling.process",),
    silence: float = 60.0,
) -> int:
    """Keep both running until a signal ends it; the exit code. `tell` prints for whoever started it. Raises SerenoError.

    `workers`: of the API. `scheduler`: the module that is started, and arguments of its own (for tests).
    `silence`: seconds after which a scheduler that has not said that it lives is replaced.
    """

    def read_settings() -> Settings:
        settings = options.settings()
        if not any(model.file for model in settings.models.values()):
            raise SettingsError(
                f"There is nothing to run: no model of sereno.toml in {settings.home} has a file. Add [models.NAME] with "
                'file = "NAME.py".'
            )
        for name, model in settings.models.items():
            if model.file is not None and (home := options.settings(model.file).home) != settings.home:
                raise SettingsError(
                    f"The file of model '{name}', {model.file}, is not below the folder of that sereno.toml: its home would be "
                    f"{home}, not {settings.home}. Move it there, or say --home {settings.home}."
                )
            real = model.file.resolve() if model.file is not None else None
            if real is not None and (home := options.settings(real).home).resolve() != settings.home.resolve():
                raise SettingsError(
                    f"The file of model '{name}', {model.file}, is a link to {real}. A run works where that lies: its home "
                    f"would be {home}, not {settings.home}. Put the file itself there, or say --home {settings.home}."
                )
        if api:
            refuse_openness(settings)
        return settings

    if not api and not schedule:
        raise SettingsError("With --no-api and --no-schedule there is nothing to run. Leave one of them out.")
    settings = read_settings()
    for line in warnings_of(settings):
        note(line)
    given = [f"-W{one}" for one in sys.warnoptions]
    common = _again(options)
    children = []
    if api:
        serve = ["serve", "--json", "--watch", *common, *(["--workers", str(workers)] if workers else [])]
        command = [*COMMAND[:2], *given, COMMAND[2], "sereno", *serve, *(["-v"] if verbose else [])]
        takes_any = not settings.serve.port and settings.serve.unix is None
        again = _same_port if takes_any else lambda _: []
        children.append(
            Child(
                API,
                command,
                lambda now: now.serve.drain_seconds + AFTER_DRAIN_SECONDS,
                reads_changes=True,
                may_fail=True,
                again=again,
            )
        )
    if schedule:
        api_workers = (workers or settings.workers or 1) if api else 0
        command = [*COMMAND[:2], *given, COMMAND[2], *scheduler, *common, "--beats", "--api-workers", str(api_workers)]
        children.append(Child(SCHEDULER, command, lambda now: now.up.stop_seconds, silence=silence))

    def announce(said: Mapping[str, Mapping[str, Any]]) -> None:
        for line in [_data(said, settings)] if as_json else _lines(said, api=api):
            tell(line)

    with told(f"The home {settings.home} cannot be used"):
        lock = settings.home / ".sereno" / f"up.{_host()}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
    busy = (
        f"`sereno up` runs already for {settings.home} on this machine (pid {{pid}}). Send it a SIGHUP if it should read its "
        "files again, or end it first."
    )
    with exclusive(lock, busy):
        return Children(
            children,
            settings,
            read_settings=read_settings,
            watched=lambda now: list(_files(options, now)),
            announce=announce,
            note=note,
        ).run()


def warnings_of(settings: Settings) -> Iterable[str]:
    """What is to be known of a home before it is lived in for months."""
    kind = file_system(settings.home)
    if settings.ledger is None and is_network(kind):
        yield (
            f"The home {settings.home} lies on a network file system ({kind}), and the ledger in it is a SQLite file: no other "
            'host must use it. Set ledger = "postgresql://…" where several do.'
        )


def _again(options: Options) -> list[str]:
    """What was typed, for another command."""
    home = ["--home", str(options.home)] if options.home is not None else []
    env = ["--env", options.env] if options.env is not None else []
    return [*home, *env, *(f"--set={key}={value}" for key, value in options.overrides.items())]


def _same_port(said: Mapping[str, Any]) -> list[str]:
    """Where port 0 was to take a free one, callers know that one now."""
    return [f"--port={str(said['url']).rpartition(':')[2]}"]


def _files(options: Options, settings: Settings) -> Iterable[Path]:
    """Those whose change is a reload. Files that a model file imports belong to whoever reads it."""
    yield find_home(options.start) / FILE_NAME
    yield settings.home / FILE_NAME
    yield from (model.file for model in settings.models.values() if model.file is not None)


def _host() -> str:
    """This machine's name, as part of a file's name: a home may lie where several machines reach it."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _data(said: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    return json.dumps(
        {"pid": os.getpid(), "home": str(settings.home), "api": said.get(API), "scheduler": said.get(SCHEDULER)}
    )


def _lines(said: Mapping[str, Mapping[str, Any]], *, api: bool) -> Iterable[str]:
    served, scheduler = said.get(API), said.get(SCHEDULER)
    if served is not None:
        names = ", ".join(model["name"] for model in served["models"])
        yield f"Serving {names} on {served['says']}."
    elif api:
        yield "The API does not answer yet: the log says why. It is started again until it does."
    if scheduler is not None:
        yield str(scheduler["says"])
    yield "Ctrl-C ends it."
