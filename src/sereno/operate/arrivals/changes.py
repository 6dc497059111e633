"""Being told of changes in folders, by the kernel. It tells nothing of a network file system: whoever asks looks, too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

STEP_MS = 100  # a change is told once there was none for so long …
MOST_MS = 500  # … or after this
GATHER = 0.1  # seconds before folders that were added are watched: there are often many at once
AGAIN = 60.0  # seconds before what the kernel refused is tried again


class Changes(threading.Thread):
    """Calls `changed` with the folders in which something has changed; with None where anything may have.

    Of a folder, what lies in it directly; what lies below is not told.
    """

    def __init__(self, changed: Callable[[frozenset[str] | None], None], refused: Callable[[str], None]) -> None:
        super().__init__(name="changes", daemon=True)
        self._changed = changed
        self._refused = refused
        self._wanted: frozenset[tuple[str, int, int]] = (
            frozenset()
        )  # path, device, inode: another folder at a path is news
        self._is_news = threading.Event()
        self._closed = threading.Event()
        self._told = ""  # what was refused last

    def watch(self, folders: Iterable[tuple[str, int, int]]) -> None:
        """Be told of these folders, and of no others."""
        wanted = frozenset(folders)
        if wanted != self._wanted:
            self._wanted = wanted
            self._is_news.set()

    def close(self) -> None:
        """Nothing is told any more."""
        self._closed.set()
        self._is_news.set()

    def run(self) -> None:
        while not self._closed.is_set():
            self._is_news.wait()
            self._closed.wait(GATHER)
            self._is_news.clear()
            paths = sorted(path for path, _, _ in self._wanted if os.path.isdir(path))
            if paths and not self._closed.is_set():
                try:
                    self._follow(paths)
                except Exception as error:  # noqa: BLE001 - whatever its library raises: looking goes on without it
                    if str(error) != self._told:
                        self._told = str(error)
                        self._refused(self._told)
                    self._is_news.wait(AGAIN)
                    self._is_news.set()

    def _follow(self, paths: list[str]) -> None:
        from watchfiles._rust_notify import RustNotify

        with RustNotify(paths, False, False, 300, False, True) as kernel:
            self._changed(None)  # what happened before the kernel was asked to tell
            while not self._is_news.is_set():
                told = kernel.watch(MOST_MS, STEP_MS, 60_000, self._is_news)
                if isinstance(told, set):
                    found = {path for _, path in told}
                    self._changed(frozenset(found | {os.path.dirname(path) for path in found}))
                elif told == "signal":
                    return
