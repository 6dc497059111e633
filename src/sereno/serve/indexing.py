"""Has lookups follow their tables: starts a builder wherever a table is ahead of its lookups. Nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sereno.lookup.pointer import is_behind, lock_path, lookup_folder, read_pointer
from sereno.storage import is_held

MODULE = "sereno.lookup.builder"
GRACE = 0.4  # seconds that whoever published is given to begin it
LONGEST_PAUSE = 60.0
SECONDS_TO_END = 5.0  # then it is killed; the next one goes on where it was


@dataclass
class _Followed:
    """One model's lookups."""

    home: Path
    model: str
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    due: float = 0.0
    behind_since: float | None = None


class Indexing:
    """Looks after the lookups of some models. Whoever owns it calls `look` twice a second."""

    def __init__(self, note: Callable[[str], None], failed: Callable[[str], None]) -> None:
        self._note = note
        self._failed = failed  # is told the model: an index could not be built, or was found missing or damaged
        self._followed: dict[tuple[str, str], _Followed] = {}  # by home and model
        self._ending: list[subprocess.Popen[bytes]] = []

    def serve(self, models: Iterable[tuple[str, str]]) -> None:
        """Look after these (home, model) from now on, and after no others."""
        wanted = set(models)
        for key in set(self._followed) - wanted:
            self._end(self._followed.pop(key))
        for home, model in wanted - set(self._followed):
            self._followed[home, model] = _Followed(Path(home), model)
            try:
                # that it is there tells whoever publishes that these lookups are wanted
                lookup_folder(Path(home), model).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._note(
                    f"the lookups of {model} have no folder in {home}: {error.strerror}. There are none until then."
                )
        self.look()

    def look(self) -> None:
        """Start the builders that are needed, and see what became of those that ended."""
        now = time.monotonic()
        self._ending = [process for process in self._ending if process.poll() is None]
        for one in self._followed.values():
            if one.process is not None:
                code = one.process.poll()
                if code is None:
                    continue
                one.process = None
                if code:
                    self._has_failed(one, f"ended with {code}")
                else:
                    one.failures = 0
                    one.due = now
            try:
                if one.due <= now and self._needs(one, now):
                    self._start(one)
            except OSError as error:  # the server serves, whatever became of the folder
                self._has_failed(one, f"cannot be started: {error.strerror} ({error.filename})")

    def _needs(self, one: _Followed, now: float) -> bool:
        if not is_behind(one.home, one.model):
            one.behind_since = None
            one.failures = 0  # somebody else has mended it
            return False
        if one.behind_since is None:
            one.behind_since = now
        return now - one.behind_since >= GRACE and not is_held(lock_path(one.home, one.model))

    def _start(self, one: _Followed) -> None:
        pointer = read_pointer(one.home, one.model)
        if pointer is not None and not pointer.is_there(one.home, one.model) and not one.failures:
            self._failed(one.model)
            self._note(
                f"the index {pointer.index} of the lookups of {one.model} is missing or damaged; it is built again."
            )
        command = [sys.executable, "-P", "-m", MODULE, str(one.home), one.model]
        try:
            one.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0)
        except OSError as error:
            self._has_failed(one, f"cannot be started: {error.strerror}")

    def _has_failed(self, one: _Followed, how: str) -> None:
        one.failures += 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(10, one.failures - 1))
        one.due = time.monotonic() + pause
        self._failed(one.model)
        self._note(
            f"the builder of the lookups of {one.model} {how}. What is served stays; the next try is in {pause:g} s."
        )

    def stop(self) -> None:
        """Have the builders end."""
        for one in self._followed.values():
            self._end(one)
        self._followed.clear()

    def wait(self) -> None:
        """Until they have ended."""
        deadline = time.monotonic() + SECONDS_TO_END
        for process in self._ending:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ending.clear()

    def _end(self, one: _Followed) -> None:
        if one.process is not None and one.process.poll() is None:
            one.process.terminate()
            self._ending.append(one.process)
