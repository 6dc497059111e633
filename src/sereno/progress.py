"""Progress of a run in the terminal: stage, rows, rate, remaining time."""

from __future__ import annotations

import threading
from types import TracebackType

from tqdm import tqdm


class Bar:
    """A watcher (see batch/run.py) that draws one line on standard error and leaves nothing behind."""

    def __init__(self) -> None:
        self._bar = tqdm(unit=" rows", unit_scale=True, leave=False, dynamic_ncols=True)
        self._lock = threading.Lock()  # rows are told from several threads

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def stage(self, name: str) -> None:
        self._bar.set_description(name)

    def rows(self, done: int) -> None:
        with self._lock:
            self._bar.update(done)

    def total(self, rows: int) -> None:
        self._bar.total = rows
        self._bar.refresh()
