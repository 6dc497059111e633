"""The lookups of one model in an object store, as whoever follows its table, fetches or serves sees them."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.adapters.lookup_objects.copies import CopiedLookups
from sereno.adapters.lookup_objects.fetching import DamagedError, Fetching, sha256_of
from sereno.adapters.lookup_objects.lock import PATIENCE, Lock, taken_over
from sereno.adapters.lookup_objects.parts import near
from sereno.adapters.objects import require_objects
from sereno.failpoints import failpoint
from sereno.lookup.following import Following, name_of
from sereno.lookup.packed import Packed, Served
from sereno.lookup.pointer import Pointer, Work
from sereno.object_path import ConditionError, ObjectPath
from sereno.storage import exclusive, told

if TYPE_CHECKING:
    from sereno.places import Place
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")

LOOK_SECONDS = 2.0  # between two looks at the table, while an index is built that nobody waits for
STAYS = "The publication stands, and lookups answer as before. Mend that; whoever publishes or serves next builds it."


class LookupObjects(Following):
    """The lookups of one model below `root`. Several processes, on several hosts, may follow at once: one works, others wait.

    What is asked of it as of a store (`mark`, `open`) is answered from the copy on this machine.
    """

    is_far = False

    def __init__(self, home: Path, model: str, root: ObjectPath, table: Place | None = None) -> None:
        """`table`: below which the model's table lies, if not below `root`. Raises MissingExtraError."""
        require_objects(f"A lookup from {root}")
        super().__init__(home, model, table or root)
        self.folder = root / ".sereno" / "lookup" / model
        self.copy = CopiedLookups(home, model)
        self._fetching = Fetching(self.folder, self.copy)
        self._lock = Lock(self.folder / "lock.json", model)
        self._wanted = self.folder / "wanted"
        self._served, self._tag = Served(), ""  # as of the beginning of `follow`, or of its own last commit
        self._indexes: dict[str, Packed] = {}  # those, and what was built since
        self._there: dict[str, int] = {}  # objects, and their sizes

    # Following the table

    def follow(self, state: State, keep: frozenset[int], *, most: int | None = None) -> bool:
        """As `LookupStore.follow` says, and have this machine's copy be what is served then.

        Raises BusyError, too, where another process has been at it for too long, or took over. A state that is older than
        what was followed already changes nothing.
        """
        with self._told_of_writing(), self._alone_here(), self._lock.held():
            self._begin()
            changed = self._follow(state, keep, most)
            self._fetching.fetch(self._served)
            return changed

    def remove(self) -> None:
        """Remove them all: nobody wants them any more. Raises StorageError, and BusyError."""
        if not self.folder.is_dir():
            return
        with self._told_of_writing(), self._alone_here(), self._lock.held():
            self._begin()
            self._indexes = {}
            self._commit(None, anew=True)
            self._remove(self._unknown())
            self._wanted.unlink(missing_ok=True)
            self.copy.clear()

    def want(self) -> None:
        """Say that a server answers from these lookups, so that whoever publishes builds them. Raises StorageError."""
        if not self._wanted.is_file():
            self._wanted.write_bytes(b"A server answers from these lookups: whoever publishes builds an index.\n")

    def is_wanted(self) -> bool:
        """Whether a server said so. Raises StorageError."""
        return self._wanted.is_file()

    def _told_of_writing(self) -> contextlib.AbstractContextManager[None]:
        return told(f"The lookups of {self.model!r} could not be made ready in {self.copy.folder}", STAYS)

    def _alone_here(self) -> contextlib.AbstractContextManager[None]:
        self.copy.folder.mkdir(parents=True, exist_ok=True)
        busy = f"Another process (pid {{pid}}) is building the lookups of {self.model!r}. Start this again when it is done."
        return exclusive(self.copy.folder / ".lock", busy, wait_seconds=PATIENCE)

    def _begin(self) -> None:
        try:
            self._served, self._tag = self._fetching.read()
        except DamagedError as error:
            LOG.error("%s", error)
            self._served, self._tag = Served(), self._fetching.path.look().tag
        self._indexes = dict(self._served.indexes)
        self._there = {str(path.relative_to(self.folder)): found.size for path, found in self.folder.below()}

    def _commit(self, pointer: Pointer | None, *, anew: bool = False) -> None:
        """Have `served.json` say this. `anew`: even if it does already, so that whoever read it before cannot write it."""
        served = Served(pointer=pointer, indexes=dict(self._indexes), stamp=self._served.stamp)
        if served == self._served and self._tag and not anew:
            return
        served = msgspec.structs.replace(served, stamp=secrets.token_hex(8))
        self._lock.confirm()
        try:
            self._tag = self._fetching.path.write_bytes(
                msgspec.json.format(msgspec.json.encode(served)), only_if=self._tag
            )
        except ConditionError as error:
            raise taken_over(self.model) from error
        self._served = served

    def _pointer(self) -> Pointer | None:
        return self._served.pointer

    def _point_at(self, pointer: Pointer | None) -> None:
        self._commit(pointer)
        self._fetching.fetch(self._served)

    def _found(self, name: str) -> Packed | None:
        packed = self._indexes.get(name)
        return packed if packed is not None and self._there.get(packed.object) == packed.size else None

    def _sweep(self) -> None:
        self.copy.sweep()  # of the objects, what a crash left goes with the others that nobody names

    def _prune(self, stay: set[str]) -> bool:
        gone = self._indexes.keys() - stay
        self._indexes = {name: packed for name, packed in self._indexes.items() if name in stay}
        unknown = self._unknown()
        # Before they go: who reads it must find what it names, and who lost the lock while he built must not name them now.
        self._commit(self._served.pointer, anew=bool(unknown))
        failpoint("lookup_removed")
        self._remove(unknown)
        return bool(gone)

    def _unknown(self) -> list[str]:
        known = {packed.object for packed in self._indexes.values()}
        return [name for name in self._there if name.endswith(".lmdb") and name not in known]

    def _remove(self, objects: list[str]) -> None:
        """Whoever is just copying one of them finds that it is gone, and looks again."""
        for name in objects:
            (self.folder / name).unlink(missing_ok=True)
            del self._there[name]

    # Building an index

    def _build(self, snapshot: Snapshot, look: Callable[[], None] = lambda: None) -> Packed:
        looked = [time.monotonic()]

        def alive() -> None:
            self._lock.confirm()
            if time.monotonic() - looked[0] > LOOK_SECONDS:
                looked[0] = time.monotonic()
                look()

        name = name_of(snapshot)
        with near(snapshot, self.copy.temporary(name, "parts")) as copied:
            manifest, file = self.copy.build(copied, alive)
        packed = Packed(
            **msgspec.structs.asdict(manifest), object=f"{name}-{manifest.build}.lmdb", sha256=sha256_of(file)
        )
        (self.folder / packed.object).upload(file)
        self._there[packed.object] = packed.size
        self._indexes[name] = packed
        return packed

    # Fetching what is served

    def fetch(self) -> bool:
        """Have this machine's copy be what is served; say whether that changed it.

        Raises DamagedError where the object is not what it should be, and StorageError: what was there stays.
        """
        with self._told_of_writing(), self._alone_here():
            self.copy.sweep()
            return self._fetching.fetch_latest()

    def catch_up(self, state: Callable[[], State], keep: Callable[[State], frozenset[int]]) -> None:
        """Fetch what is served; where it is damaged, or the table has moved on, build what is to be served.

        Raises what `follow` raises.
        """
        distrusted = None
        try:
            self.fetch()
        except DamagedError as error:
            LOG.error("%s It is built again.", error)
            distrusted = self._fetching.read_leniently()
        if distrusted is None and not self.is_behind():
            return
        now = state()
        with self._told_of_writing(), self._alone_here(), self._lock.held():
            self._begin()
            if distrusted is not None and self._served == distrusted and distrusted.pointer is not None:
                self._there.pop(_object_of(distrusted, distrusted.pointer.index), None)  # so it counts as not there
            self._follow(now, keep(now), 0)
            self._fetching.fetch(self._served)

    # What there is to do

    def fetching(self) -> Work | None:
        """What there is to fetch; None: nothing. Raises StorageError."""
        return self._fetching.work()

    def building(self) -> Work | None:
        """What there is to build; None: nothing. Raises StorageError."""
        served, _ = self._fetching.read()
        if not self._is_behind(served):
            return None
        version = served.pointer.table_version if served.pointer is not None else -1
        return Work((version, self._commit_time(version + 1)), ())

    def is_followed(self) -> bool:
        """Whether somebody builds. Raises StorageError."""
        return self._lock.is_held()

    def is_behind(self) -> bool:
        """As `LookupStore.is_behind` says, but that it asks the store. Raises StorageError."""
        try:
            return self._is_behind(self._fetching.read()[0])
        except DamagedError:
            return True

    def _is_behind(self, served: Served) -> bool:
        pointer = served.pointer
        if pointer is None:
            return self._commit_time(0) is not None
        if (
            self._commit_time(pointer.table_version) != pointer.commit
            or self._commit_time(pointer.table_version + 1) is not None
        ):
            return True
        if not pointer.index:
            return False
        packed = served.indexes.get(pointer.index)
        try:
            return packed is None or (self.folder / packed.object).look().size != packed.size
        except FileNotFoundError:
            return True

    # Reading, from the copy

    def mark(self) -> object:
        return self.copy.mark()

    def was_rolled_back(self, number: int) -> bool:
        return self.copy.was_rolled_back(number)

    def open(self) -> Any:
        return self.copy.open()


def _object_of(served: Served, name: str) -> str:
    packed = served.indexes.get(name)
    return packed.object if packed is not None else ""
