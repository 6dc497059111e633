"""How long to wait before a process that has ended is started again."""

from __future__ import annotations

LONGEST_PAUSE = 30.0  # seconds
QUICK = 10.0  # a process that ends within so many seconds after it was ready counts as failing …
LIGHT = 0.25  # … but for little: it did get ready


class BackOff:
    """Of one process and those in its place, one after the other: at once, then 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self._failures = 0.0

    def pause(self, worked: float | None) -> float:
        """Before the next one, now that this one has ended; `worked`: for how long it was ready (None: it never was)."""
        if worked is not None and worked > QUICK:
            self._failures = 0.0
        pause = 0.0 if self._failures < 1 else min(LONGEST_PAUSE, 2.0 ** min(10.0, self._failures - 1))
        self._failures += 1.0 if worked is None else LIGHT
        return pause
