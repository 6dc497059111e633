"""Looks at the lookups in an object store, aside: what is to be fetched from there or built, and what workers know of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.lookup.pointer import Work
from sereno.lookup.where import Where
from sereno.serve.processes.watching_far import FarWatch

if TYPE_CHECKING:
    from sereno.adapters.lookup_objects.store import LookupObjects

LOOK_SECONDS = 2.0  # between two looks at what is served: one small request
TABLE_SECONDS = 20.0  # and at the table, which whoever publishes follows by himself
GRACE = 30.0  # seconds that he is given
PATIENCE = timedelta(seconds=10)  # with a store that does not answer: then it is told, and asked anew


class ObjectWatch(FarWatch):
    """One model's lookups in an object store. What is there to fetch is at once, what is to build after a time."""

    grace = 0.0  # of what is fetched; of what is built, below

    def __init__(self, where: Where, home: Path, model: str, note: Callable[[str], None]) -> None:
        self._note = note
        self._ahead_since: float | None = None  # the table of what is served
        self._building: Work | None = None
        self._table_looked = -TABLE_SECONDS
        self._is_wanted = False
        self._trouble = ""
        super().__init__(where, home, model)

    def _run(self) -> None:
        from sereno.adapters.objects import within
        from sereno.exceptions import SerenoError
        from sereno.lookup.where import objects_of

        try:
            store = objects_of(self._where, self._home, self._model)
        except SerenoError:  # which the workers tell
            return
        while not self._ended.is_set():
            began = time.monotonic()
            is_behind = True
            try:
                with within(PATIENCE):
                    self._work = self._look(store, began)
                is_behind = self._work is not None or self._building is not None
                self._is_well()
            except Exception as error:  # noqa: BLE001 - answers go on from the copy, whatever became of the store
                self._work = None
                self._say(str(error), store)
            self._tell(is_behind)
            self.looked_at = began
            self._ended.wait(LOOK_SECONDS)

    def _look(self, store: LookupObjects, now: float) -> Work | None:
        """What is to be done. Raises SerenoError."""
        fetching = store.fetching()  # first of all: it tells that there is no bucket, which some stores make by a write
        if not self._is_wanted:
            store.want()
            self._is_wanted = True
        if fetching:
            return fetching
        if now - self._table_looked >= TABLE_SECONDS or self._building is not None:
            self._building, self._table_looked = store.building(), now
            if self._building is None:
                self._ahead_since = None
            elif self._ahead_since is None:
                self._ahead_since = now
        if self._building is None or self._ahead_since is None or now - self._ahead_since < GRACE:
            return None
        return None if store.is_followed() else self._building

    def _tell(self, is_behind: bool) -> None:
        from sereno.lookup.packed import Look, tell_look

        with contextlib.suppress(OSError):  # nobody knows then, which workers take for behind
            tell_look(self._home, self._model, Look(is_behind=is_behind, is_well=not self._trouble))

    def _say(self, trouble: str, store: LookupObjects) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self.failures += 1
            self._note(f"the lookups of {self._model} cannot follow their store: {trouble} {_goes_on(store)}")

    def _is_well(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._note(f"the lookups of {self._model} follow their store again.")


def _goes_on(store: LookupObjects) -> str:
    """From what answers go on meanwhile, and how old it is."""
    known = store.copy.served()
    if known is None:
        return "There is no copy here to answer from."
    age = max(0, int(time.time() - known.data_time.timestamp()))
    return f"Answers go on from the copy of version {known.number}, whose data is {age:,} seconds old."
