"""How a store of lookups follows its table, wherever it keeps its indexes: what is built, what is served, what goes."""

from __future__ import annotations

import errno
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.exceptions import IndexingError
from sereno.failpoints import failpoint
from sereno.lookup.pointer import AS_BEFORE, Described, Pointer, commit_time
from sereno.snapshots import KEPT

if TYPE_CHECKING:
    from sereno.lookup.keys import KeyCodec
    from sereno.places import Place
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")


class OvertakenError(Exception):
    """The table has moved on: what is being built can wait, and those who moved it cannot."""


class Following(ABC):
    """A store of one model's lookups, as whoever makes it follow the table sees it. One process at a time does."""

    def __init__(self, home: Path, model: str, root: Place | None = None) -> None:
        """`root`: below which the model's table lies, if not below the home."""
        self.home, self.model = home, model
        self.log: Place = (root or home) / "predictions" / model / "_delta_log"

    @abstractmethod
    def _pointer(self) -> Pointer | None: ...

    @abstractmethod
    def _point_at(self, pointer: Pointer | None) -> None:
        """Have this one served, in one step; None: nothing is, and nothing is known of a table."""

    @abstractmethod
    def _found(self, name: str) -> Described | None:
        """An index, if it is there whole."""

    @abstractmethod
    def _build(self, snapshot: Snapshot, look: Callable[[], None] = ...) -> Described:
        """Build an index, and call `look` all the time: what it raises ends the work."""

    def _commit_time(self, version: int) -> int | None:
        """When a version of the table was committed (ns, by whoever keeps its log); None: it has no such version.

        Raises StorageError where it lies in an object store that does not answer.
        """
        if isinstance(self.log, Path):
            return commit_time(self.log, version)
        try:
            return int((self.log / f"{version:020d}.json").look().modified_at.timestamp() * 1e9)
        except FileNotFoundError:
            return None

    @abstractmethod
    def _sweep(self) -> None:
        """Remove what a crash left."""

    @abstractmethod
    def _prune(self, stay: set[str]) -> bool:
        """Remove all indexes but these; say whether there were any."""

    def _follow(self, state: State, keep: frozenset[int], most: int | None) -> bool:
        pointer = self._pointer()
        if pointer and pointer.table_version > state.table_version and self._is_current(pointer):
            return False
        self._sweep()
        newest = state.newest
        if newest is None:
            return self._serve_nothing(state, pointer) | self._prune(set())
        manifest = self._found(name_of(newest))
        built = manifest is None or manifest.attempt != newest.attempt
        if manifest is None or built:
            manifest = self._build(newest)
        stay = self._stay(state, keep) & state.snapshots.keys()
        others = [
            state.snapshots[number]
            for number in sorted(stay - state.withdrawn - {newest.number}, reverse=True)
            # of a table that is published to all day long, many more are kept than are worth an index that is not there
            if number in _latest(state) or self._found(name_of(state.snapshots[number]))
        ]
        left_out = set(pointer.left_out) if pointer is not None else set()
        failpoint("lookup_swap_before")
        now = Pointer(
            index=name_of(newest),
            build=manifest.build,
            table_version=state.table_version,
            commit=self._commit_time(state.table_version) or 0,
            before=[],
        )
        now = self._point(now, others, left_out, was=pointer)
        failpoint("lookup_swapped")
        pruned = self._prune({name_of(state.snapshots[n]) for n in stay})
        if now.missing:
            built |= self._complete(now, others, most if most is None else most - built)
        return pruned or built or pointer is None or (pointer.index, pointer.build) != (now.index, now.build)

    def _point(
        self, wanted: Pointer, others: Sequence[Snapshot], left_out: set[str], *, was: Pointer | None
    ) -> Pointer:
        """Have the pointer say what is wanted, and what there is of the other snapshots."""
        names = [name_of(snapshot) for snapshot in others]
        there = {name for name in names if self._found(name)}
        number = int(wanted.index.partition("-")[0])
        wanted = msgspec.structs.replace(
            wanted,
            before=[name_of(s) for s in others if s.number < number and name_of(s) in there],
            missing=[name for name in names if name not in there | left_out],
            left_out=[name for name in names if name in left_out - there],
        )
        if wanted != was:
            self._point_at(wanted)
        return wanted

    def _complete(self, pointer: Pointer, others: Sequence[Snapshot], most: int | None) -> bool:
        """Build what is missing, newest first: a rollback to any of them only moves the pointer then."""

        def look() -> None:
            if self.is_behind():
                raise OvertakenError

        built = 0
        left_out = set(pointer.left_out)
        for snapshot in others:
            if name_of(snapshot) not in pointer.missing:
                continue
            if most is not None and built >= most:
                break
            try:
                self._build(snapshot, look)
                built += 1
            except OvertakenError:
                break  # whoever moved the table on is about to wait for this
            except (IndexingError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.EIO:
                    raise
                what = str(error).partition(f" {AS_BEFORE}")[0]
                LOG.warning("lookups of %s: a version that is not in service has no index. %s", self.model, what)
                left_out.add(name_of(snapshot))
            pointer = self._point(pointer, others, left_out, was=pointer)
        return built > 0

    def _stay(self, state: State, keep: frozenset[int]) -> frozenset[int]:
        """Whose indexes are kept, once they were built: all of `keep`, but for long past dates that are served still.

        Nobody looks up in those, and a table of dates would keep an index for each of them for ever.
        """
        past = {snapshot.number for snapshot in state.served[:-1]} - _latest(state)
        return keep - past | {snapshot.number for snapshot in state.served[-1:]}

    def _is_current(self, pointer: Pointer) -> bool:
        """Whether the table is still the one that was followed, and not another that was begun in its place."""
        return self._commit_time(pointer.table_version) == pointer.commit

    def _serve_nothing(self, state: State, pointer: Pointer | None) -> bool:
        """There is no table, or one in which nothing of ours was ever published."""
        if state.table_version < 0:
            self._point_at(None)
        else:
            commit = self._commit_time(state.table_version) or 0
            empty = Pointer(index="", build="", table_version=state.table_version, commit=commit, before=[])
            if pointer != empty:
                self._point_at(empty)
        return pointer is not None and bool(pointer.index)

    def _sick(self, snapshot: Snapshot, what: str) -> IndexingError:
        return IndexingError(
            f"Version {snapshot.number} of model {self.model!r} cannot be looked up: it {what}. {AS_BEFORE} Run "
            f"data date {snapshot.data_date} again, or roll back."
        )

    @abstractmethod
    def is_behind(self) -> bool:
        """As `LookupStore.is_behind` says."""


def _latest(state: State) -> set[int]:
    return set(sorted(state.snapshots)[-KEPT:])


def name_of(snapshot: Snapshot) -> str:
    """What the index of a snapshot is called."""
    return f"{snapshot.number:06}-{snapshot.attempt}"


def described(snapshot: Snapshot, keys: KeyCodec) -> dict[str, Any]:
    """What a Described says of a new index."""
    return {
        "number": snapshot.number,
        "attempt": snapshot.attempt,
        "data_date": snapshot.data_date,
        "data_time": snapshot.data_time,
        "fingerprint": snapshot.fingerprint,
        "rows": snapshot.rows,
        "keys": list(zip(keys.names, keys.kinds, strict=True)),
        "build": secrets.token_hex(8),
    }
