"""The compactor: a process beside the server that puts finished segments into their tables. One for each home.

    python -m sereno.answers.compactor HOME [--days MODEL=N]… [--storage PLACE]

It waits and looks; each pass over a model is a process of its own (`--once MODEL`), so that nothing heavy stays in the
memory, and a model whose pass dies keeps no other from its own. `--days`: how long a model's answers are kept; without it,
as long as a server of this home last said, else for ever. It ends by SIGTERM, or when the process that started it is gone
(`--parent`: its number, as it may be gone before this one can ask); a second one waits until the first has ended.

`--storage`: below which the tables lie, in an object store, say. This machine's disk need not last then: so at its end it waits
until the workers have handed over what they have, and puts that into the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sereno.answers.folder import (
    PENDING,
    SEGMENT_BYTES,
    SEGMENT_SECONDS,
    days_kept,
    finished_segments,
    is_tidy,
    open_segments,
    remember_days,
    segments_folder,
    total_size,
)
from sereno.exceptions import BusyError
from sereno.operate.tied import tied

SEALED_SECONDS = 3  # after workers have sealed their segments by the clock
LOOK_SECONDS = 2.0
LAST_SECONDS = 60.0  # that workers are given to end; a server that goes on has another compactor by then
NICE = 19  # answers to callers come first; it catches up when there is time
LONGEST_PAUSE = 600.0  # after passes that failed

LOG = logging.getLogger("sereno.answers")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(format="sereno: %(message)s")
    home = options.home.resolve()
    days = dict(options.days)
    if options.once:
        return _pass(home, options.once, days.get(options.once), options.storage)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked by who started it, until it is heeded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server decides when to end
    for model, number in options.days:
        with contextlib.suppress(OSError):  # it is known to this one
            remember_days(segments_folder(home, model), number)
    with contextlib.suppress(OSError):
        os.nice(NICE)
        os.sched_setscheduler(
            0, os.SCHED_IDLE, os.sched_param(0)
        )  # a slice of its own is some milliseconds to a caller
    watch = Watch(home, days, options.every, options.bytes, options.storage)
    watch.run(stop, options.parent)
    if options.storage:
        watch.end()
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sereno.answers.compactor", description="Run by `sereno serve`.")
    parser.add_argument("home", type=Path, metavar="HOME")
    parser.add_argument("--days", type=_days, action="append", default=[], metavar="MODEL=N")
    parser.add_argument("--parent", type=int, default=os.getppid(), metavar="PID")
    parser.add_argument("--storage", default="", metavar="PLACE", help="below which the tables lie, if not below HOME")
    parser.add_argument("--once", metavar="MODEL", help="one pass over this model")
    parser.add_argument("--every", type=float, default=SEGMENT_SECONDS, metavar="SECONDS")
    parser.add_argument("--bytes", type=int, default=SEGMENT_BYTES, metavar="N")
    return parser.parse_args(arguments)


def _days(text: str) -> tuple[str, int]:
    model, _, number = text.partition("=")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=N")
    return model, int(number)


def _pass(home: Path, model: str, days: int | None, storage: str) -> int:
    import gc

    from sereno.answers.compact import Compactor
    from sereno.exceptions import SerenoError
    from sereno.places import place_of

    gc.disable()  # it would walk through the rows again and again, and there is nothing to be found
    try:
        compactor = Compactor(home, model, place_of(storage) if storage else None)
        compactor.compact(days=days_kept(compactor.segments) if days is None else days)
    except SerenoError as error:
        LOG.error("%s", error)
        return 1
    return 0


class Watch:
    """Decides when a pass is due, and starts it."""

    def __init__(self, home: Path, days: dict[str, int], every: float, size: int, storage: str = "") -> None:
        self._home, self._days, self._every, self._size, self._storage = home, days, every, size, storage
        self._slot = -1.0
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def run(self, stop: threading.Event, parent: int) -> None:
        """Until it is told to stop, or its parent is another process than this."""
        from sereno.storage import exclusive

        said = ""
        lock = self._home / ".sereno" / "locks" / "compactor"
        while not stop.is_set() and os.getppid() == parent:
            try:
                with exclusive(lock, "another one works"):
                    while not stop.wait(min(LOOK_SECONDS, self._every)) and os.getppid() == parent:
                        self.look(stop)
            except BusyError:
                stop.wait(LOOK_SECONDS)
            except OSError as error:  # the disk is read-only, say
                if str(error) != said:
                    said = str(error)
                    LOG.error("The answers in %s cannot be put into tables: %s. It is tried again.", self._home, said)
                stop.wait(LOOK_SECONDS)

    def look(self, stop: threading.Event) -> None:
        """Start the passes that are due."""
        slot = (time.time() - min(SEALED_SECONDS, self._every)) // self._every
        by_time, self._slot = slot != self._slot, slot
        for model, size in self._waiting():
            if stop.is_set() or time.monotonic() < self._not_before.get(model, 0):
                continue
            if by_time or size >= self._size or self._failures.get(model):
                self._start(model, stop)

    def _waiting(self) -> Iterator[tuple[str, int]]:
        """Models that have something to be put into their table, and its size; or old days to be dropped."""
        for folder in sorted((self._home / ".sereno" / "answers").glob("*")):
            finished = finished_segments(folder)
            days = self._days.get(folder.name, days_kept(folder))
            has_table = bool(self._storage) or (self._home / "answers" / folder.name).is_dir()
            is_done = not has_table or is_tidy(folder, days)
            if finished or (folder / PENDING).exists() or not is_done:
                yield folder.name, total_size(finished)

    def end(self) -> None:
        """Put what the workers leave into the tables, once they have left it; again where that fails, while there is time."""
        from sereno.storage import exclusive

        never = threading.Event()
        folders = [folder for folder in (self._home / ".sereno" / "answers").glob("*") if folder.is_dir()]
        with (
            contextlib.suppress(BusyError),
            exclusive(self._home / ".sereno" / "locks" / "compactor", "another one works"),
        ):
            deadline = time.monotonic() + LAST_SECONDS
            while any(map(open_segments, folders)) and time.monotonic() < deadline:
                time.sleep(0.1)
            models = [model for model, _ in self._waiting()]
            while models:
                for model in models:
                    self._start(model, never)
                models = [model for model in models if self._failures.get(model) and time.monotonic() < deadline]

    def _start(self, model: str, stop: threading.Event) -> None:
        options = [f"--days={model}={self._days[model]}"] if model in self._days else []
        options += [f"--storage={self._storage}"] if self._storage else []
        command = [sys.executable, "-P", "-m", "sereno.answers.compactor", str(self._home), "--once", model, *options]
        # tied: a store that does not answer keeps it for longer than this one is given to end
        with subprocess.Popen(tied(command)) as process:
            while process.poll() is None:
                if stop.wait(0.1):
                    process.terminate()  # what it began is finished or undone by the next one
        if process.returncode == 0 or stop.is_set():
            self._failures.pop(model, None)
            self._not_before.pop(model, None)
            return
        failures = self._failures[model] = self._failures.get(model, 0) + 1
        self._not_before[model] = time.monotonic() + min(LONGEST_PAUSE, min(5.0, self._every) * 2**failures)
        LOG.error("The pass over the answers of %s ended with %d; it is tried again.", model, process.returncode)


if __name__ == "__main__":
    sys.exit(main())
