"""Has lookups follow their tables: starts a builder wherever a table is ahead of its lookups. Nothing heavy is imported."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sereno.lookup.pointer import Work, is_behind, lock_path, lookup_folder, read_pointer, work
from sereno.lookup.where import VARIABLES, Where
from sereno.serve.processes.ending import BUILDER_SECONDS, Ending
from sereno.serve.processes.watching_far import FarWatch
from sereno.serve.processes.watching_objects import ObjectWatch
from sereno.storage import is_held

MODULE = "sereno.lookup.builder"
GRACE = 0.4  # seconds that whoever published to a folder is given to begin it
LONGEST_PAUSE = 600.0  # between two tries of the same: where a part is damaged, each reads all parts
SETTLED = 60.0  # seconds after which an index that was built is taken to be sound


@dataclass
class _Followed:
    """One model's lookups."""

    home: Path
    model: str
    where: Where | None = None  # None: in the home's folder
    watch: FarWatch | None = None  # of those that several hosts share
    ended: float = math.inf  # when it was seen that the process had
    process: subprocess.Popen[bytes] | None = None
    found: Work | None = None  # what is to be done, when it was last looked
    since: float = 0.0
    tried: Work | None = None  # what the last builder was to do
    built: float = -math.inf  # when it had done it
    failures: int = 0
    due: float = 0.0
    counted: int = 0  # of the watch's failures


class Indexing:
    """Looks after the lookups of some models. Whoever owns it calls `look` twice a second.

    One builder at a time, which builds one index: of all that is not answered yet, what has waited longest; only then
    what a rollback might ask for.
    """

    def __init__(self, note: Callable[[str], None], failed: Callable[[str], None]) -> None:
        self._note = note
        self._failed = (
            failed  # is told the model: an index could not be built, or was damaged; or its bucket not be read
        )
        self._followed: dict[tuple[str, str], _Followed] = {}  # by home and model
        self._ending = Ending(BUILDER_SECONDS)

    def serve(self, models: Iterable[tuple[str, str, Where | None]]) -> None:
        """Look after these (home, model, where its lookups are) from now on, and after no others."""
        wanted = {(home, model): where for home, model, where in models}  # in their order: the first is indexed first
        for key, one in list(self._followed.items()):
            if key not in wanted or wanted[key] != one.where:
                self._leave(self._followed.pop(key))
        for home, model in [key for key in wanted if key not in self._followed]:
            where = wanted[home, model]
            if where is not None:
                watch = (
                    ObjectWatch(where, Path(home), model, self._note)
                    if where.is_objects
                    else FarWatch(where, Path(home), model)
                )
                self._followed[home, model] = _Followed(Path(home), model, where, watch)
                continue
            self._followed[home, model] = _Followed(Path(home), model)
            try:
                # that it is there tells whoever publishes that these lookups are wanted
                lookup_folder(Path(home), model).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if is_behind(Path(home), model):  # else there is nothing to look up, either
                    self._note(
                        f"the lookups of {model} have no folder in {home}: {error.strerror}. There are none until then."
                    )
        self.look()

    def look(self) -> None:
        """Start the builder that is needed, and see what became of the one that ended."""
        now = time.monotonic()
        needed = []
        for one in self._followed.values():
            if one.watch is not None and one.watch.failures > one.counted:
                one.counted = one.watch.failures
                self._failed(one.model)
            if one.process is not None and (code := one.process.poll()) is not None:
                one.ended = min(one.ended, now)
                if one.watch is None or one.watch.looked_at >= one.ended:  # else what it has done is not seen yet
                    one.process, one.ended = None, math.inf
                    self._has_ended(one, code, now)
            try:
                if one.process is None and self._needs(one, now):
                    needed.append(one)
            except OSError as error:  # the server serves, whatever became of the folder
                self._has_failed(one, f"cannot be started: {error.strerror} ({error.filename})")
        if needed and not self._ending and all(one.process is None for one in self._followed.values()):
            self._start(min(needed, key=lambda one: (bool(one.found and one.found.missing), one.since)))

    def _has_ended(self, one: _Followed, code: int, now: float) -> None:
        if code:
            self._has_failed(one, f"ended with {code}")
        elif _work(one) == one.tried:
            how = "has ended, and left all to be done"
            self._has_failed(one, how, is_new=not one.failures)
        else:
            one.built = now
            one.due = now + _pause(one.failures) if one.failures else now

    def _needs(self, one: _Followed, now: float) -> bool:
        found, before = _work(one), one.found
        one.found = found
        if found is None:
            if now - one.built >= SETTLED:
                one.failures, one.due = 0, 0.0  # somebody else has mended it
            return False
        if found != before:
            one.since = now
            if found != one.tried:  # the table has moved on: this may be something else that can be done
                one.failures, one.due = 0, 0.0
        if one.due > now or now - one.since < (GRACE if one.watch is None else one.watch.grace):
            return False
        return one.watch is not None or not is_held(lock_path(one.home, one.model))

    def _start(self, one: _Followed) -> None:
        is_lost_again = one.found == one.tried and one.since - one.built < SETTLED
        lost = _lost(one)
        if lost and (is_lost_again or not one.failures):
            self._failed(one.model)
            self._note(f"{lost} of the lookups of {one.model} is missing or damaged; it is built again.")
        one.failures += is_lost_again
        one.tried = one.found
        command = [sys.executable, "-P", "-m", MODULE, str(one.home), one.model]
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environ |= one.where.environ() if one.where is not None else {}
        try:
            one.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0, env=environ)
        except OSError as error:
            self._has_failed(one, f"cannot be started: {error.strerror}")

    def _has_failed(self, one: _Followed, how: str, *, is_new: bool = True) -> None:
        one.failures += 1
        one.built = -math.inf
        pause = _pause(one.failures)
        one.due = time.monotonic() + pause
        self._failed(one.model)
        if is_new:
            self._note(
                f"the builder of the lookups of {one.model} {how}. What is served stays; the next try is in {pause:g} s."
            )

    @property
    def pids(self) -> Iterator[int]:
        """Of the processes whose end was not seen yet."""
        yield from (one.process.pid for one in self._followed.values() if one.process is not None)
        yield from self._ending.pids

    def stop(self) -> None:
        """Have the builders end."""
        for one in self._followed.values():
            self._leave(one)
        self._followed.clear()

    def _leave(self, one: _Followed) -> None:
        if one.watch is not None:
            one.watch.stop()
        self._ending.end(one.process)

    def wait(self) -> None:
        """Until they have ended."""
        self._ending.wait()


def _work(one: _Followed) -> Work | None:
    return one.watch.work if one.watch is not None else work(one.home, one.model)


def _lost(one: _Followed) -> str:
    """The index that is to be served and cannot be; empty: there is none such."""
    if one.watch is not None:
        return "what is in service" if one.watch.is_gone else ""
    pointer = read_pointer(one.home, one.model)
    return f"the index {pointer.index}" if pointer is not None and not pointer.is_there(one.home, one.model) else ""


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE, 2.0 ** min(10, failures - 1))
