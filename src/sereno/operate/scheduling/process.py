"""The scheduler's process: `python -P -m sereno.operate.scheduling.process`, as `sereno up` starts it. Not for people.

It prints one line of JSON once it schedules; with --beats also empty lines, as long as it does not stand still. SIGTERM ends
it, with its runs, which go on when the next one starts; SIGHUP has it read settings and model files again. One thread does
all of it; what takes long other processes do: read model files, repair the ledger. Light: nothing heavy is imported, as it
is there for months.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sereno.exceptions import LedgerError, SerenoError, WorkerError
from sereno.interfaces import RunLedger
from sereno.ledger import BEAT_SECONDS, open_ledger
from sereno.operate.arrivals.arrivals import Arrivals
from sereno.operate.declared import Declared, Failed, Reading, settled
from sereno.operate.mending import Mending
from sereno.operate.notices.sending import Sending
from sereno.operate.notices.unread import Unread, tell_unread, unread_now, write_unread
from sereno.operate.notices.words import Teller
from sereno.operate.scheduling.daily import Daily
from sereno.operate.scheduling.deciding import WHO
from sereno.operate.scheduling.runs import Runs
from sereno.operate.scheduling.scheduler import Scheduler
from sereno.serve.options import Options
from sereno.settings import Settings
from sereno.signals import Signals

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
WRONG_SETTINGS = 2
NEWS_SECONDS = 1.0  # between two times that models are taken up
LONGEST_START = 30.0  # seconds after which it is ready, whatever is still read


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 where the settings are wrong, 1 where another one is to start in its place."""
    parser = argparse.ArgumentParser(prog="python -m sereno.operate.scheduling.process", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--env")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--beats", action="store_true")
    parser.add_argument("--api-workers", type=int, default=0)
    given = parser.parse_args(arguments)
    overrides = dict(one.split("=", 1) for one in given.set)
    options = Options(files=[], home=given.home, env=given.env, overrides=overrides)
    try:
        return Process(options, options.settings(), beats=given.beats, api_workers=given.api_workers).run()
    except SerenoError as error:
        _note(str(error))
        return WRONG_SETTINGS


@dataclass(kw_only=True)
class _Working:
    """What there is once the model files were read."""

    scheduler: Scheduler
    arrivals: Arrivals


class Process:
    """See the module."""

    def __init__(self, options: Options, settings: Settings, *, beats: bool = False, api_workers: int = 0) -> None:
        self._options, self._settings = options, settings
        self._beats, self._beat_due = beats, 0.0
        self._command = [sys.executable, "-P", *(f"-W{one}" for one in sys.warnoptions), "-m", "sereno"]
        self._given = [
            *(["--home", str(options.home)] if options.home else []),
            *(["--env", options.env] if options.env else []),
            *(f"--set={key}={value}" for key, value in options.overrides.items()),
        ]
        self._signals = Signals()
        self._ledger: RunLedger = open_ledger(settings)
        self._mending = Mending(self._ledger, settings, [*self._command, "repair", "--json", *self._given], _note)
        self._models: dict[str, Declared] = {}  # file → what it declares
        self._reading: Reading | None = None
        self._files: list[str] = []  # that are read, or were read last
        self._found: dict[str, Declared | Failed] = {}  # file → what became known of it
        self._has_news = False  # of which something is not taken up yet
        self._taken_up = self._began_reading = -LONGEST_START
        self._said: set[str] = set()  # files of which was said that they take long
        self._said_failed: set[str] = set()
        self._is_ready = False
        self._unread: dict[str, Unread] = {}  # model → its file, which does not load
        self._unread_is_known = False  # to people, and to `sereno health`
        self._idle: set[str] = set()  # files that are not scheduled, and of which that was said
        self._runs = Runs(
            settings.up,
            [*self._given, "--who", WHO],
            api_workers=api_workers,
            workers=settings.workers,
            executor=settings.executor,
        )
        self._teller = Teller(self._ledger, settings)
        self._sending = Sending(settings, self._ledger, _note)
        self._daily = Daily(self._ledger, [*self._command, "prune", "--json", *self._given], _note)
        self._working: _Working | None = None
        self._trouble = ""  # what the ledger said last
        self._code: int | None = None  # how to end

    def run(self) -> int:
        """Until a signal ends it; the exit code."""
        with self._signals.caught(SIGNALS):
            self._read_models()
            while self._code is None:
                self._turn()
            self._end()
        return self._code

    def _turn(self) -> None:
        self._wait()
        self._beat()
        self._heed_signals()
        self._read_on()
        if self._working is not None and self._code is None:
            if self._mending.ended():
                self._working.scheduler.begin_anew()
            self._tick(self._working.scheduler)

    def _wait(self) -> None:
        """Until something happens, or is due; the clock may have been set meanwhile."""
        pause = BEAT_SECONDS
        if self._working is not None and not self._mending.is_needed and not self._trouble:
            wake = self._working.scheduler.next_wake()
            pause = min(pause, max(0.0, (wake - _now()).total_seconds()))
        if self._reading is not None:
            news = self._taken_up + NEWS_SECONDS - time.monotonic() if self._has_news else self._reading.pause
            pause = min(pause, max(0.0, news))
        waited_for: list[Signals | Reading] = [self._signals]
        if self._reading is not None:
            waited_for.append(self._reading)
        select.select(waited_for, [], [], pause)

    def _beat(self) -> None:
        """An empty line for whoever wants to know that this process does not stand still."""
        if self._beats and time.monotonic() >= self._beat_due and select.select([], [sys.stdout], [], 0)[1]:
            self._beat_due = time.monotonic() + 1.0
            os.write(sys.stdout.fileno(), b"\n")

    def _heed_signals(self) -> None:
        try:
            numbers = self._signals.read()
        except BlockingIOError:
            return
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._code = 0
        elif signal.SIGHUP in numbers:
            self._reload()

    # Settings and model files

    def _reload(self) -> None:
        try:
            settings = self._options.settings()
        except SerenoError as error:
            _note(f"the settings were read again and refused; those before stay: {error}")
            return
        if (settings.home, settings.ledger) != (self._settings.home, self._settings.ledger):
            _note("the home or the ledger is another one now: the scheduler starts again.")
            self._code = 1
            return
        self._settings = self._teller.settings = self._sending.settings = settings
        self._runs.limits, self._runs.workers, self._runs.executor = settings.up, settings.workers, settings.executor
        self._read_models()

    def _read_models(self) -> None:
        """Begin to read them; who is still at it has read what may have changed since."""
        files = [model.file for model in self._settings.models.values() if model.file is not None]
        options = self._options
        if self._reading is not None:
            self._reading.close()
        self._reading = Reading(files, home=options.home, env=options.env, overrides=options.overrides)
        self._files, self._found, self._has_news = self._reading.files, {}, True
        self._began_reading, self._said = time.monotonic(), set()

    def _read_on(self) -> None:
        """Take up each model as its word comes, or some at once where many come."""
        if self._reading is None:
            return
        known = len(self._reading.long)
        try:
            words = self._reading.step()
        except WorkerError as error:
            words = {file: Failed(file=file, says=str(error), belongs=(file,)) for file in self._reading.left}
            self._reading.close()
        self._found |= words
        self._has_news |= bool(words) or len(self._reading.long) > known
        for file in (set(self._reading.left) & self._reading.long) - self._said:
            self._said.add(file)
            _note(
                f"{file} takes long to be read; the others do not wait for it. Load what takes long under `@model.load`."
            )
        if self._reading.is_done:
            self._reading.close()
            self._reading = None
        if self._has_news and (self._reading is None or time.monotonic() - self._taken_up >= NEWS_SECONDS):
            self._take_up()
            self._has_news, self._taken_up = False, time.monotonic()

    def _take_up(self) -> None:
        """From now on these models are scheduled; what a file declared before stays if it fails, and until it is read."""
        found = settled(self._files, self._found)
        before, models = self._models, {one.file: one for one in found.models}
        for one in found.failed:
            if one.file not in self._said_failed:
                stays = " as it is now: what it declared before stays" if one.file in before else ""
                _note(f"{one.file} is not scheduled{stays}. {one.says}")
        self._said_failed = {one.file for one in found.failed} if self._reading is not None else set()
        self._models = {
            file: models.get(file) or before[file] for file in self._files if file in models or file in before
        }
        self._keep_unread(found.failed)
        for idle in self._models.values():
            if not idle.has_input and idle.file not in self._idle:
                self._idle.add(idle.file)
                _note(f"{idle.name} is not scheduled: it has no source and no `read`.")
        chosen = [one for one in self._models.values() if one.scheduled and one.has_input]
        for late in chosen:
            if late.file in self._said and late.file in models:
                self._said.remove(late.file)
                _note(f"{late.file} was read: {late.name} is scheduled.")
        self._sending.files = {one.name: Path(one.file) for one in chosen}
        if self._working is None:
            self._begin(chosen)
        else:
            self._working.arrivals.update(chosen)
            self._working.scheduler.reload(chosen)
            self._working.scheduler.most_runs = self._settings.up.max_runs
        self._let_be(self._working.scheduler)  # type: ignore[union-attr]
        self._say_ready(chosen)

    def _let_be(self, scheduler: Scheduler) -> None:
        """What becomes of the runs of a model is decided once it is known what it declares."""
        names = {
            name
            for name, model in self._settings.models.items()
            if model.file and (file := os.path.abspath(model.file)) not in self._found and file not in self._models
        }
        if scheduler.let_be - names:
            scheduler.begin_anew()
        scheduler.let_be = names

    def _say_ready(self, chosen: Sequence[Declared]) -> None:
        """Once, when all is read but what takes long."""
        left = [] if self._reading is None else self._reading.left
        if self._is_ready or (not self._reading_long(left) and time.monotonic() - self._began_reading < LONGEST_START):
            return
        self._is_ready = True
        names = [one.name for one in chosen]
        says = f"Schedules {', '.join(names)}." if names else "Schedules nothing: see the log."
        if left:
            says += f" Still to be read: {', '.join(Path(file).name for file in left)}."
        sys.stdout.write(json.dumps({"pid": os.getpid(), "models": names, "says": says}) + "\n")
        sys.stdout.flush()

    def _reading_long(self, left: Sequence[str]) -> bool:
        """Whether nothing is left but what takes long."""
        return self._reading is None or self._reading.long.issuperset(left)

    def _keep_unread(self, failed: Sequence[Failed]) -> None:
        names = {os.path.abspath(m.file): name for name, m in self._settings.models.items() if m.file and m.scheduled}
        found = [(names[one.file], one) for one in failed if one.file in names]
        stays = {
            name: one for name, one in self._unread.items() if one.file in self._files and one.file not in self._found
        }
        self._unread = stays | {name: unread_now(name, one, self._unread.get(name), _now()) for name, one in found}
        self._unread_is_known = False

    def _look_at_unread(self, *, leads: bool) -> None:
        """Have it known which files do not load, by the one that schedules. Raises LedgerError."""
        if not leads:
            self._unread_is_known = False  # another one reads them, and says which
        elif not self._unread_is_known:
            try:
                write_unread(self._settings.home, self._unread.values())
            except OSError as error:
                _note(f"`sereno health` cannot know which model files do not load: {error.strerror}.")
            read = [one.name for one in self._models.values() if one.name not in self._unread]
            tell_unread(self._ledger, self._settings, self._unread, read, _now())
            self._unread_is_known = True

    def _begin(self, chosen: Sequence[Declared]) -> None:
        options = self._options
        arrivals = Arrivals(chosen, home=options.home, env=options.env, overrides=options.overrides, tell=_note)
        threading.Thread(target=self._pass_on, args=[arrivals], name="woken", daemon=True).start()
        scheduler = Scheduler(
            self._ledger,
            chosen,
            home=self._settings.home.resolve(),
            starter=self._runs,
            arrivals=arrivals,
            teller=self._teller,
            clock=_now,
            random=random.random,
            most_runs=self._settings.up.max_runs,
            log=_note,
        )
        self._working = _Working(scheduler=scheduler, arrivals=arrivals)

    def _pass_on(self, arrivals: Arrivals) -> None:
        """What wakes those who wait for an event, for one who waits for a signal."""
        while arrivals.woken.wait():
            arrivals.woken.clear()
            self._signals.wake()

    # The ledger

    def _tick(self, scheduler: Scheduler) -> None:
        if self._mending.has_begun:
            return
        try:
            if not self._mending.is_whole():
                self._mending.start()
                return
            scheduler.tick()
            self._look_at_unread(leads=scheduler.leads)
            self._sending.look()
            if scheduler.leads:
                self._daily.look(quiet=not self._runs.busy)
        except LedgerError as error:
            self._stumble(error)
        else:
            if self._trouble:
                _note("the ledger can be used again.")
            self._trouble = ""
            self._mending.is_well()

    def _stumble(self, error: LedgerError) -> None:
        """Said once; the next beat tries again, and goes on where this one was."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            _note(self._trouble)
        if error.damaged:
            self._mending.start()

    # The end

    def _end(self) -> None:
        ended = self._runs.stop(self._settings.up.stop_seconds)
        if self._working is not None:
            self._working.arrivals.close()
            try:
                self._working.scheduler.stop(ended)
            except LedgerError as error:
                _note(f"what was going on is found out by the next scheduler: {error}")
        if self._reading is not None:
            self._reading.close()
        self._mending.stop()
        self._sending.stop()
        self._daily.stop()
        self._ledger.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _note(text: str) -> None:
    """A line of the log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"sereno: {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
