"""The processes of `sereno up`, as the one that was started sees them: started, started again, reloaded and ended.

It dies of nothing that they do, and they do not outlive it: each is tied to it, and what one of them leaves behind becomes
its own child, which it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sereno.backoff import BackOff
from sereno.exceptions import SerenoError
from sereno.operate.tied import adopt_orphans, tied
from sereno.operate.up.systemd import Systemd
from sereno.orphans import children_of
from sereno.serve.processes.watching import Watcher
from sereno.settings import Settings
from sereno.signals import OTHER, Signals, has_terminal

ONE_WORD = 0.5  # seconds: what wraps us may tell us the same twice, alone and with all of its group
GRACE = 5.0  # seconds that a child may take longer to end than what it waits for itself
WRONG_SETTINGS = 2  # the exit code of a child that cannot start as it is set up: it has said why
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass(eq=False)
class Child:
    """One process, and the next one in its place."""

    name: str  # in the log: "the API"
    command: list[str]
    seconds_to_end: Callable[[Settings], float]  # what it waits for, once it was told to end
    reads_changes: bool = False  # it sees by itself that files have changed
    may_fail: bool = False  # the others are announced all the same
    silence: float | None = (
        None  # seconds after which it stands still, if it has written nothing; None: it need not write
    )
    again: Callable[[Mapping[str, Any]], list[str]] = (
        lambda _: []
    )  # more arguments of the next, from what the first told
    process: subprocess.Popen[bytes] | None = None
    told: Mapping[str, Any] | None = None  # the line of JSON that the one that runs has printed: it is ready
    was_told: Mapping[str, Any] | None = None  # that of the first one
    ready_at: float = 0.0
    back_off: BackOff = field(default_factory=BackOff)
    due: float | None = None  # when the next one is started
    kill_at: float | None = None
    has_failed: bool = False  # before it was ever ready
    heard_at: float = 0.0
    stands_still: bool = False  # and was killed for that
    heard: bytearray = field(default_factory=bytearray)

    @property
    def pid(self) -> int | None:
        """Of the one that runs."""
        return self.process.pid if self.process is not None else None

    def kill(self) -> None:
        """At once, with what is in its group."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        """A signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Children:
    """Runs until it is told to end. One thread, which waits for signals, words and times."""

    def __init__(
        self,
        children: Sequence[Child],
        settings: Settings,
        *,
        read_settings: Callable[[], Settings],
        watched: Callable[[Settings], Sequence[Path]],  # files whose change is a reload
        announce: Callable[[Mapping[str, Mapping[str, Any]]], None],  # all are ready: what each has told, by name
        note: Callable[[str], None],
    ) -> None:
        self._children = children
        self._settings = settings
        self._read_settings, self._watched = read_settings, watched
        self._announce, self._note = announce, note
        self._is_announced = False
        self._is_ending = False
        self._told_to_end: dict[int, float] = {}  # signal → when it came first
        self._code = 0
        self._orphans_due: float | None = None  # when those that a child has left behind are killed
        self._selector = selectors.DefaultSelector()
        self._signals = Signals()
        self._watcher = Watcher(self._signals.wake)
        self._systemd = Systemd()
        self._alive_due = self._looked = time.monotonic()

    def run(self) -> int:
        """Until a signal ends it: 0, or 1 where one of them was cut off; 2 where one cannot start as it is set up."""
        adopt_orphans()
        with self._signals.caught(SIGNALS) as before:
            self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            self._has_terminal = has_terminal() and before[signal.SIGHUP] is not signal.SIG_IGN  # else under nohup
            self._watch()
            self._watcher.start()
            try:
                for child in self._children:
                    self._start(child)
                while not self._is_ending or any(child.process is not None for child in self._children):
                    for key, _ in self._selector.select(self._pause()):
                        key.data()
                    self._look()
            finally:
                self._end()
        return self._code

    # They come and go

    def _start(self, child: Child) -> None:
        child.due, child.told, child.stands_still = None, None, False
        child.heard_at = time.monotonic()
        child.heard.clear()
        try:
            process = child.process = subprocess.Popen(
                tied([*child.command, *(child.again(child.was_told) if child.was_told is not None else [])]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                process_group=0,  # Ctrl-C at a terminal is our affair
            )
        except OSError as error:
            self._start_later(child, f"{child.name} cannot be started: {error.strerror}.")
            return
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)

        def has_words() -> None:
            if child.process is process:  # else it was buried since the selector has looked
                self._hear(child)

        self._selector.register(process.stdout, selectors.EVENT_READ, has_words)

    def _start_later(self, child: Child, why: str) -> None:
        pause = child.back_off.pause(time.monotonic() - child.ready_at if child.told is not None else None)
        child.due = time.monotonic() + pause
        when = f"in {pause:.2g} s" if pause else "now"
        self._note(f"{why} Another one starts {when}.")

    def _hear(self, child: Child) -> None:
        """What it has printed: one line, once it is ready."""
        assert child.process is not None
        assert child.process.stdout is not None
        try:
            content = os.read(child.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not content:
            self._selector.unregister(child.process.stdout)
            child.process.stdout.close()
            return
        child.heard_at = time.monotonic()
        if child.told is not None:
            return
        child.heard += content
        del child.heard[: len(child.heard) - len(child.heard.lstrip(b"\n"))]  # those lines only say that it lives
        line, newline, _ = child.heard.partition(b"\n")
        if not newline:
            return
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            self._note(f"{child.name} (pid {child.pid}) printed what is no JSON; it is killed.")
            child.kill()
            return
        if "error" in told:  # a command that fails prints that, too; it ends
            return
        child.told = told
        child.ready_at = time.monotonic()
        if child.was_told is not None:
            self._note(f"{child.name} is back (pid {child.pid}).")
        elif self._is_announced:
            self._note(
                f"{child.name} is ready now (pid {child.pid}){f' on {url}' if (url := told.get('url')) else ''}."
            )
        child.was_told = child.was_told or child.told
        self._announce_once()

    def _announce_once(self) -> None:
        """All are ready, but those that failed and need not be: they are started until they are."""
        ready = {one.name: one.told for one in self._children if one.told is not None}
        failed = [one for one in self._children if one.told is None and one.may_fail and one.has_failed]
        if self._is_announced or self._is_ending or not ready or len(ready) + len(failed) < len(self._children):
            return
        self._is_announced = True
        self._announce(ready)
        self._systemd.tell("READY=1")

    def _bury(self) -> None:
        """Take leave of the processes that have ended: children, and the orphans that became ours."""
        known = {child.pid: child for child in self._children if child.process is not None}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            child = known.pop(found.si_pid, None)
            if child is None:
                os.waitpid(found.si_pid, 0)
            else:
                self._is_gone(child)

    def _is_gone(self, child: Child) -> None:
        assert child.process is not None
        assert child.process.stdout is not None
        while not child.process.stdout.closed and child.told is None and self._has_words(child):
            self._hear(child)  # its last word
        child.kill()  # until we have asked how it ended, its group's number is no one else's
        code = child.process.wait()
        if not child.process.stdout.closed:
            self._selector.unregister(child.process.stdout)
            child.process.stdout.close()
        child.process = None
        self._orphans_due = time.monotonic() + self._settings.serve.drain_seconds + GRACE
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._is_ending:
            if code and (child.told is not None or child.kill_at is None):
                self._code = self._code or 1
                self._note(f"{child.name} {how}.")
            child.kill_at = None
        elif code == WRONG_SETTINGS and child.was_told is None and not self._is_announced:
            self._code = WRONG_SETTINGS
            self._stop(signal.SIGTERM)
        else:
            self._start_later(child, f"{child.name} {how}.")
            child.has_failed |= child.was_told is None
            self._announce_once()

    def _has_words(self, child: Child) -> bool:
        assert child.process is not None
        return any(key.fileobj is child.process.stdout for key, _ in self._selector.select(0))

    # Times and signals

    def _pause(self) -> float | None:
        times = [one for child in self._children for one in (child.due, child.kill_at) if one is not None]
        times += [self._orphans_due] if self._orphans_due is not None else []
        times += [self._looked + limit / 4 for child in self._children if (limit := self._silence(child)) is not None]
        times += [self._alive_due] if self._systemd.every is not None and self._is_well else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _look(self) -> None:
        """What has come due."""
        now = time.monotonic()
        self._look_who_stands_still(now)
        if self._systemd.every is not None and self._alive_due <= now and self._is_well:
            self._alive_due = now + self._systemd.every
            self._systemd.tell("WATCHDOG=1")
        for child in self._children:
            if child.kill_at is not None and child.kill_at <= now:
                child.kill_at = None
                child.kill()
            if child.due is not None and child.due <= now:
                self._start(child)
        if self._orphans_due is not None and self._orphans_due <= now:
            self._orphans_due = None
            for pid in self._orphans():
                self._note(f"process {pid}, which was left behind, is killed.")
                _kill(pid)

    @property
    def _is_well(self) -> bool:
        """Where one that stands still cannot even be killed, whoever watches us is to start all of it anew."""
        return not any(child.stands_still for child in self._children)

    def _silence(self, child: Child) -> float | None:
        """How long it may say nothing; None: as long as it likes, for now."""
        if child.silence is None or child.process is None or child.stands_still or self._is_ending:
            return None
        return max(child.silence, child.seconds_to_end(self._settings) + GRACE)  # it may be about to end by itself

    def _look_who_stands_still(self, now: float) -> None:
        before, self._looked = self._looked, now
        for child in self._children:
            limit = self._silence(child)
            if limit is None:
                continue
            if now - before > limit / 2:  # we stood still ourselves
                child.heard_at = now
            elif now - child.heard_at > limit:
                self._note(f"{child.name} (pid {child.pid}) has stood still for {limit:g} s; it is killed.")
                child.stands_still = True
                child.kill()

    def _orphans(self) -> list[int]:
        """Processes that became our children when a child of ours had ended."""
        own = {child.pid for child in self._children}
        with contextlib.suppress(OSError):  # a kernel that does not tell
            return [pid for pid in children_of(os.getpid()) if pid not in own]
        return []

    def _on_signals(self) -> None:
        numbers = self._signals.read()
        if signal.SIGCHLD in numbers:
            self._bury()
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                told = self._told_to_end.setdefault(number, time.monotonic())
                if time.monotonic() - told > ONE_WORD:
                    self._kill()
                self._stop(number)
        if signal.SIGHUP in numbers and self._has_terminal and not has_terminal():
            self._stop(signal.SIGTERM)  # whoever started it has closed the window
        elif signal.SIGHUP in numbers:
            self._reload(asked=True)
        elif OTHER in numbers:
            self._reload(asked=False)

    def _reload(self, *, asked: bool) -> None:
        """Read the settings again, and have the children do so."""
        if self._is_ending:
            return
        try:
            self._settings = self._read_settings()
        except SerenoError as error:
            self._note(f"the settings were read again and refused; those before stay: {error}")
            return
        self._watch()
        now = time.monotonic()
        for child in self._children:
            if child.due is not None:
                child.due = now  # what was changed may be what kept it from starting
            elif child.told is not None and (asked or not child.reads_changes):
                child.send(signal.SIGHUP)

    def _watch(self) -> None:
        self._watcher.serve([str(path) for path in self._watched(self._settings)], None)

    # The end

    def _stop(self, number: int) -> None:
        """Have all of them end, once."""
        if self._is_ending:
            return
        self._is_ending = True
        self._systemd.tell("STOPPING=1")
        self._watcher.stop()
        now = time.monotonic()
        for child in self._children:
            child.due = None
            if child.process is not None:
                child.kill_at = now + child.seconds_to_end(self._settings) + GRACE
                # one that has not been ready yet has nothing to finish, and may not know that signal yet
                child.send(number if child.told is not None else signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.kill_at = time.monotonic()

    def _end(self) -> None:
        """Nothing that was started is left, whatever ended us."""
        self._watcher.stop()
        for child in self._children:
            child.kill()
            if child.process is not None:
                child.process.wait()
                if child.process.stdout is not None:
                    child.process.stdout.close()
        for _ in range(100):  # what an orphan has started becomes an orphan in turn
            left = self._orphans()
            for pid in left:
                _kill(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            if not left:
                break
        self._selector.close()
        self._signals.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
