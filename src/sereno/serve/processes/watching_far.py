"""Looks at the lookups that several hosts share, aside: whoever asks is told at once what was seen last."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from sereno.lookup.pointer import Work
from sereno.lookup.where import Where

LOG = logging.getLogger("sereno.lookup")

LOOK_SECONDS = 0.5
GRACE = 0.4  # seconds that whoever published is given to begin it


class FarWatch:
    """One model's lookups in a server. A thread looks at them; where the server does not answer, there is nothing to do."""

    grace = GRACE

    def __init__(self, where: Where, home: Path, model: str) -> None:
        self._where, self._home, self._model = where, home, model
        self._work: Work | None = None
        self._is_followed = False
        self.is_gone = False  # what is to be served is no longer there
        self.looked_at = 0.0  # when the last look began
        self.failures = 0  # of looks, as far as they are counted here: each trouble once
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=f"lookups of {model}", daemon=True).start()

    @property
    def work(self) -> Work | None:
        """What is to be done, for whom nobody else does it."""
        return self._work if not self._is_followed else None

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        from sereno.exceptions import SerenoError
        from sereno.lookup.where import redis_of

        try:
            store = redis_of(self._where, self._home, self._model)
        except SerenoError:  # which the workers tell
            return
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                work, is_gone, is_followed = store.work(), store.is_gone(), store.is_followed()
            except Exception:  # noqa: BLE001 - the workers tell it; this goes on looking, whatever it was
                work, is_gone, is_followed = None, False, False
            self._work, self.is_gone, self._is_followed, self.looked_at = work, is_gone, is_followed, began
            self._ended.wait(LOOK_SECONDS)
