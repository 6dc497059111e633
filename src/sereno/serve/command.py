"""`sereno serve`: from what was typed to a supervisor that runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sereno.serve.options import Options
from sereno.serve.platforms import connects_early, on_platform
from sereno.serve.processes.control import Ready
from sereno.serve.processes.process import start_worker
from sereno.serve.processes.sockets import Listening, listen, refuse_openness
from sereno.serve.processes.supervisor import Supervisor
from sereno.settings import Settings
from sereno.unmeant import unmeant_models


def serve(options: Options, *, watch: bool, verbose: bool, as_json: bool, tell: Callable[[str], None]) -> int:
    """Serve until a signal ends it; the exit code. `tell` prints for whoever started it. Raises SerenoError."""
    options = on_platform(options, os.environ)
    first = start_worker()  # imports what it needs while this process reads settings
    try:
        options.model_files()
        settings = options.settings()
        refuse_openness(settings)
        listening = listen(settings.serve, settings.workers or 1)
        if connects_early(os.environ):
            listening.open()
    except BaseException:
        first.end()
        raise

    def announce(ready: Ready) -> None:
        for line in [json.dumps(_data(listening, ready, settings))] if as_json else _lines(listening, ready, settings):
            tell(line)
        for line in unmeant_models(settings, [model.name for model in ready.models]):
            note(line)
        for model in ready.models:
            if model.awaits_run:
                note(f"lookups of {model.name} answer 503 until a run publishes in {model.storage or model.home}.")

    supervisor = Supervisor(
        options, settings, listening, first=first, watch=watch, verbose=verbose, announce=announce, note=note
    )
    return supervisor.run()


def note(text: str) -> None:
    """A line of the log."""
    with contextlib.suppress(OSError):  # nobody reads it any more; the server goes on
        sys.stderr.write(f"sereno: {text}\n")
        sys.stderr.flush()


def replace_process(file: Path, arguments: Sequence[str]) -> NoReturn:
    """Become `sereno serve FILE`, of a process that has run the model file: it would keep all that the file imported."""
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    if flags[-1:] == ["-m"]:  # python -m credit_scoring serve
        flags.pop()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *flags, "-P", "-m", "sereno", "serve", str(file), *arguments])


def _data(listening: Listening, ready: Ready, settings: Settings) -> Mapping[str, Any]:
    return {
        "url": listening.url,
        "says": listening.says,
        "unix": str(listening.unix) if listening.unix is not None else None,
        "docs": f"{listening.url}/docs",
        "pid": os.getpid(),
        "workers": settings.workers or 1,
        "models": [{"name": model.name, "fingerprint": model.fingerprint} for model in ready.models],
    }


def _lines(listening: Listening, ready: Ready, settings: Settings) -> list[str]:
    url, count = listening.url, settings.workers or 1
    names = ", ".join(model.name for model in ready.models)
    with_unix = f"--unix-socket {listening.unix} " if listening.unix is not None else ""
    lines = [
        f"Serving {names} on {listening.says}, {count} worker{'s' if count > 1 else ''}. Ctrl-C ends it.",
        f"Docs: {url}/docs",
    ]
    lines += [f"Try:  {model.tries.replace('URL', with_unix + url, 1)}" for model in ready.models[:3] if model.tries]
    return lines
