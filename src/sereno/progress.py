"""Progress of a run: a bar where somebody looks, a line now and then where a log is written."""

from __future__ import annotations

import contextlib
import sys
import threading
from time import monotonic
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

EVERY_SECONDS = 10.0  # between two lines in a log; a short run writes none


class Bar:
    """A watcher (see batch/run.py) that draws one line in the terminal and leaves nothing behind."""

    def __init__(self) -> None:
        self._bar = tqdm(unit=" rows", unit_scale=True, leave=False, dynamic_ncols=True)
        self._lock = threading.Lock()  # rows are told from several threads

    def stage(self, name: str) -> None:
        self._bar.set_description(name)

    def rows(self, done: int) -> None:
        with self._lock:
            self._bar.update(done)

    def total(self, rows: int) -> None:
        self._bar.total = rows
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A watcher that writes a line every ten seconds: rows, rate, remaining time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._stage, self._done, self._total = "", 0, 0
        self._started = self._told = monotonic()

    def stage(self, name: str) -> None:
        self._stage = name

    def rows(self, done: int) -> None:
        with self._lock:
            self._done += done
            now = monotonic()
            if now - self._told < EVERY_SECONDS:
                return
            self._told = now
            line = progress_line(self._stage, self._done, self._total, now - self._started)
            with contextlib.suppress(OSError):  # nobody reads it any more; that must not end a run
                print(line, file=self._stream, flush=True)

    def total(self, rows: int) -> None:
        self._total = rows

    def close(self) -> None:
        pass


def progress_line(stage: str, done: int, total: int, seconds: float) -> str:
    """`score: 1,200,000 of 10,000,000 rows, 330,000 rows/s, 27 s left`; `total` 0: not known."""
    rate = done / seconds if seconds else 0.0
    of = f" of {total:,}" if total else ""
    left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
    return f"{stage}: {done:,}{of} rows, {rate:,.0f} rows/s{left}"


class Shown:
    """The watcher that fits standard error, for as long as a run lasts."""

    def __enter__(self) -> Bar | Lines:
        self._watcher = Bar() if sys.stderr.isatty() else Lines(sys.stderr)
        return self._watcher

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.close()
