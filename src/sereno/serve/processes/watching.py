"""--watch: whether the files that a server reads have changed.

By looking at them, not by being told: the kernel tells nothing of a network file system, and a look at some dozens of
files costs less than a millisecond. It happens in a thread of its own, because such a file system may let it wait.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

SECONDS = 0.5  # between two looks


class Watcher(threading.Thread):
    """Calls `changed` when files are other than they were and no longer change: a file that is still written has to wait."""

    def __init__(self, changed: Callable[[], None], seconds: float = SECONDS) -> None:
        super().__init__(name="watcher", daemon=True)
        self._changed = changed
        self._seconds = seconds
        self._paths: frozenset[str] = frozenset()
        self._known = ""  # how the files looked that are in service, or were refused
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def belong(self, paths: Iterable[str]) -> None:
        """Look at these, files and folders, too."""
        with self._lock:
            more = self._paths | frozenset(paths)
            if more != self._paths:
                as_before = self._known == looks(self._paths)
                self._paths = more
                if as_before:
                    self._known = looks(more)

    def serve(self, paths: Iterable[str], seen: str | None) -> None:
        """These are in service as they looked then (None: as they look now); look at no others."""
        with self._lock:
            self._paths = frozenset(paths)
            self._known = looks(self._paths) if seen is None else seen

    def stop(self) -> None:
        """No word comes any more, but perhaps the one that is on its way."""
        self._stopped.set()

    def run(self) -> None:
        before = ""
        while not self._stopped.wait(self._seconds):
            with self._lock:
                now = looks(self._paths)
                has_changed = now != self._known and now == before
                if has_changed:
                    self._known = now
            before = now
            if has_changed:
                self._changed()


def looks(paths: Iterable[str]) -> str:
    """A digest of the size, time and identity of all these files, and of those in these folders."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        for file in _files(path):
            try:
                found = os.stat(file)
            except OSError:
                continue
            digest.update(
                f"{file}\0{found.st_ino} {found.st_size} {found.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()


def changed_since(paths: Iterable[str], start_ns: int) -> bool:
    """Whether one of them was written since that time."""
    now = time.time_ns()  # a time to come is that of another machine's clock, and says nothing
    for path in paths:
        for file in _files(path):
            try:
                if start_ns <= os.stat(file).st_mtime_ns <= now:
                    return True
            except OSError:
                continue
    return False


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            yield os.path.join(folder, name)
