"""Lookups in an object store: each index is one object that is built once, and `served.json` says which one is served.

Whoever follows the table builds an index on its own disk, writes it as an object with a name of its own, and has
`served.json` lead to it, on condition that this is as it was read: so whatever dies at any moment leaves what was served
before, or what is served now. A lock that must be renewed keeps two from building at once; should both believe that they
have it, the condition lets one of them win. An object is removed only after a write of `served.json` that does not name it:
no write that was begun before can succeed after that, however late it arrives, so none can name what is gone.

A server never asks the store for an answer. It copies the index to its own disk, compares its SHA-256, and only then changes
over; `CopiedLookups` is what its workers read. Where the store does not answer, or has a damaged object, it goes on from the
copy that it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.adapters import durable
from sereno.adapters.lookup_folder import LookupFolder
from sereno.adapters.objects import require_objects
from sereno.exceptions import BusyError, IndexingError, StorageError
from sereno.failpoints import failpoint
from sereno.lookup.following import Following, name_of
from sereno.lookup.packed import Packed, Served, copies_home, last_look, read_served
from sereno.lookup.pointer import AS_BEFORE, Manifest, Pointer, Work, index_path, manifest_path
from sereno.object_path import ConditionError, ObjectPath
from sereno.storage import exclusive, told, write_atomically

if TYPE_CHECKING:
    from sereno.places import Place
    from sereno.snapshots import Part, Snapshot, State

LOG = logging.getLogger("sereno.lookup")

PATIENCE = 300.0  # seconds that one who builds an index may keep the next one waiting
LOCK_SECONDS = 30.0  # without a sign of life, somebody else may follow
RENEW_SECONDS = 8.0
ASK_SECONDS = 0.5  # between two looks at somebody else's lock
LOOK_SECONDS = 2.0  # between two looks at the table, while an index is built that nobody waits for
PARTS_AT_ONCE = 4
STAYS = "The publication stands, and lookups answer as before. Mend that; whoever publishes or serves next builds it."


class DamagedError(StorageError):
    """The object of an index is not what `served.json` says."""


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
        self._lock = _Lock(self.folder / "lock.json", model)
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
            self._fetch(self._served)
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
            wanted_path(self.folder).unlink(missing_ok=True)
            self.copy.clear()

    def want(self) -> None:
        """Say that a server answers from these lookups, so that whoever publishes builds them. Raises StorageError."""
        wanted = wanted_path(self.folder)
        if not wanted.is_file():
            wanted.write_bytes(b"A server answers from these lookups: whoever publishes builds an index.\n")

    def is_wanted(self) -> bool:
        """Whether a server said so. Raises StorageError."""
        return wanted_path(self.folder).is_file()

    def _told_of_writing(self) -> contextlib.AbstractContextManager[None]:
        return told(f"The lookups of {self.model!r} could not be made ready in {self.copy.folder}", STAYS)

    def _alone_here(self) -> contextlib.AbstractContextManager[None]:
        self.copy.folder.mkdir(parents=True, exist_ok=True)
        busy = f"Another process (pid {{pid}}) is building the lookups of {self.model!r}. Start this again when it is done."
        return exclusive(self.copy.folder / ".lock", busy, wait_seconds=PATIENCE)

    def _begin(self) -> None:
        try:
            self._served, self._tag = self._read()
        except DamagedError as error:
            LOG.error("%s", error)
            self._served, self._tag = Served(), _served_path(self.folder).look().tag
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
            self._tag = _served_path(self.folder).write_bytes(_json(served), only_if=self._tag)
        except ConditionError as error:
            raise _taken_over(self.model) from error
        self._served = served

    def _pointer(self) -> Pointer | None:
        return self._served.pointer

    def _point_at(self, pointer: Pointer | None) -> None:
        self._commit(pointer)
        self._fetch(self._served)

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
        with self._near(snapshot) as near:
            manifest = self.copy._build(near, alive)
        file = index_path(self.copy.folder, name)
        packed = Packed(
            **msgspec.structs.asdict(manifest), object=f"{name}-{manifest.build}.lmdb", sha256=_sha256(file)
        )
        (self.folder / packed.object).upload(file)
        self._there[packed.object] = packed.size
        self._indexes[name] = packed
        return packed

    @contextlib.contextmanager
    def _near(self, snapshot: Snapshot) -> Iterator[Snapshot]:
        """The snapshot with its parts on this machine: each is read more than once. Raises IndexingError."""
        if all(isinstance(part.path, Path) for part in snapshot.parts):
            yield snapshot
            return
        folder = self.copy.temporary(name_of(snapshot), "parts")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
                parts = tuple(threads.map(lambda part: _copied(snapshot, part, folder), snapshot.parts))
            yield dataclasses.replace(snapshot, parts=parts)
        finally:
            durable.remove(folder)

    # What is served

    def _read(self) -> tuple[Served, str]:
        """`served.json` and its tag. Raises DamagedError, and StorageError."""
        path = _served_path(self.folder)
        try:
            content, tag = path.read_tagged()
        except FileNotFoundError:
            return Served(), ""
        try:
            return read_served(content), tag
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DamagedError(
                f"{path} is damaged ({error}). {AS_BEFORE} Whoever publishes next writes it anew."
            ) from error

    def fetch(self) -> bool:
        """Have this machine's copy be what is served; say whether that changed it.

        Raises DamagedError where the object is not what it should be, and StorageError: what was there stays.
        """
        with self._told_of_writing(), self._alone_here():
            self.copy.sweep()
            for last in (False, False, True):
                served, tag = self._read()
                if not tag:  # nobody has said that there are none any more: that takes a `served.json` which says so
                    return False
                try:
                    return self._fetch(served)
                except FileNotFoundError as error:  # it was pruned, as another is served by now
                    if last:
                        raise DamagedError(
                            f"{error}, though {_served_path(self.folder)} names it. {AS_BEFORE}"
                        ) from error
        raise AssertionError

    def _fetch(self, served: Served) -> bool:
        pointer, copy = served.pointer, self.copy
        if pointer is None or not pointer.index:
            return copy.clear()
        packed = served.indexes.get(pointer.index)
        if packed is None or packed.build != pointer.build:
            raise DamagedError(f"{_served_path(self.folder)} does not say what {pointer.index} is. {AS_BEFORE}")
        is_lost = not copy.holds(packed)
        if is_lost:
            self._download(packed, pointer.index)
        return copy.serve(pointer, is_new=is_lost)

    def _download(self, packed: Packed, name: str) -> None:
        """Copy an index, and use it only if it is what it should be. What is on the way may be lost there: so, twice."""
        source, temporary = self.folder / packed.object, self.copy.temporary(name, "lmdb")
        began = time.monotonic()
        try:
            for last in (False, True):
                size = source.download(temporary).size
                damage = ""
                if size != packed.size:
                    damage = f"has {size:,} bytes, and not {packed.size:,}"
                elif _sha256(temporary) != packed.sha256:
                    damage = "has another SHA-256 than when it was built"
                if not damage:
                    break
                if last:
                    raise DamagedError(f"{source} {damage}: it is damaged, and is not used. {AS_BEFORE}")
            self.copy.take(temporary, name, packed)
        finally:
            temporary.unlink(missing_ok=True)
        LOG.info(
            "lookups of %s: version %d was fetched (%d rows, %d bytes, %.1f s).",
            self.model, packed.number, packed.rows, packed.size, time.monotonic() - began,
        )  # fmt: skip

    def catch_up(self, state: Callable[[], State], keep: Callable[[State], frozenset[int]]) -> None:
        """Fetch what is served; where it is damaged, or the table has moved on, build what is to be served.

        Raises what `follow` raises.
        """
        distrusted = None
        try:
            self.fetch()
        except DamagedError as error:
            LOG.error("%s It is built again.", error)
            distrusted = self._read_leniently()
        if distrusted is None and not self.is_behind():
            return
        now = state()
        with self._told_of_writing(), self._alone_here(), self._lock.held():
            self._begin()
            if distrusted is not None and self._served == distrusted and distrusted.pointer is not None:
                self._there.pop(_object_of(distrusted, distrusted.pointer.index), None)  # so it counts as not there
            self._follow(now, keep(now), 0)
            self._fetch(self._served)

    def _read_leniently(self) -> Served:
        try:
            return self._read()[0]
        except DamagedError:
            return Served()

    def fetching(self) -> Work | None:
        """What there is to fetch; None: nothing. Raises StorageError."""
        served, tag = self._read()
        pointer, here = served.pointer, self.copy._pointer()
        if not tag:
            return None
        if pointer is None:
            return None if here is None else Work((-1, None), ())
        if here is None and not pointer.index:
            return None
        if here is not None and _is_copy(here, pointer) and here.is_there(self.copy.home, self.model):
            return None
        return Work((pointer.table_version, int(pointer.build or "0", 16)), ())

    def building(self) -> Work | None:
        """What there is to build; None: nothing. Raises StorageError."""
        served, _ = self._read()
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
            return self._is_behind(self._read()[0])
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


class CopiedLookups(LookupFolder):
    """The copy of a server: what its workers read. Nothing here asks the store."""

    def __init__(self, home: Path, model: str) -> None:
        super().__init__(copies_home(home), model)
        self._of = home

    def is_behind(self) -> bool:
        """Whether another index is to be served, or nobody can tell: the store does not answer."""
        look = last_look(self._of, self.model)
        return look is None or look.is_behind

    def served(self) -> Manifest | None:
        """What it has, and serves."""
        pointer = self._pointer()
        return self._found(pointer.index) if pointer is not None and pointer.index else None

    def holds(self, packed: Packed) -> bool:
        """Whether there is a copy of this very index. (Whether it is undamaged is found when it is opened.)"""
        found = self._found(_name(packed))
        return found is not None and found.build == packed.build

    def take(self, file: Path, name: str, packed: Packed) -> None:
        """Have a file, that was verified, be the copy of an index."""
        with file.open("rb") as stream:
            os.fchmod(stream.fileno(), 0o444)
        manifest_path(self.folder, name).unlink(missing_ok=True)  # it would be that of another file
        file.replace(index_path(self.folder, name))
        fields = {name: getattr(packed, name) for name in Manifest.__struct_fields__}
        content = msgspec.json.encode(Manifest(**fields))
        write_atomically(manifest_path(self.folder, name), content, temporary=self.temporary(name, "json").name)

    def serve(self, pointer: Pointer, *, is_new: bool) -> bool:
        """Have an index served whose copy is there; say whether that changed anything. `is_new`: the copy is."""
        here = self._pointer()
        before = [] if here is None else [name for name in (here.index, *here.before) if name in pointer.before][:1]
        is_same = here is not None and _is_copy(here, pointer)
        if not is_same or is_new:
            # Of one that took the place of a damaged copy the workers must see that it is another.
            build = f"{pointer.build}+{secrets.token_hex(4)}" if is_same else pointer.build
            self._point_at(msgspec.structs.replace(pointer, build=build, before=before, missing=[], left_out=[]))
        self._prune({pointer.index, *before})
        return not is_same or is_new

    def clear(self) -> bool:
        """Have no index; say whether there was one."""
        if self._pointer() is None:
            return False
        self._point_at(None)
        self._prune(set())
        return True

    def temporary(self, name: str, kind: str) -> Path:
        return self._temporary(name, kind)

    def sweep(self) -> None:
        """Remove what a crash left."""
        self._sweep()


class _Lock:
    """Who builds. It is free once nobody has renewed it for a time, so that whoever dies keeps nobody from it.

    No clock is compared with another's: whoever waits sees that the object does not change.
    """

    def __init__(self, path: ObjectPath, model: str) -> None:
        self._path, self._model = path, model
        self._tag, self._who, self._beats = "", "", 0
        self._renewed = 0.0
        self._lost = threading.Event()
        self._seen: tuple[str, float] = ("", 0.0)  # somebody else's tag, and since when it has been that

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises BusyError once it has waited for too long, and StorageError."""
        self._who, self._beats = secrets.token_hex(8), 0
        deadline = time.monotonic() + PATIENCE
        while not self._take():
            if time.monotonic() > deadline:
                raise BusyError(
                    f"Another process, perhaps on another host, is building the lookups of {self._model!r}. Start this again "
                    "when it is done."
                )
            time.sleep(ASK_SECONDS)
        self._lost.clear()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if not self._lost.is_set():
                with contextlib.suppress(ConditionError, StorageError):  # else it is free after a time
                    self._write(is_free=True)

    def confirm(self) -> None:
        """Raises BusyError where somebody else may have it: above all where this process stood still."""
        if self._lost.is_set() or time.monotonic() - self._renewed > LOCK_SECONDS:
            raise _taken_over(self._model)

    def is_held(self) -> bool:
        """Whether somebody has it, and lives, as far as this process has seen."""
        return self._free_tag() is None

    def _take(self) -> bool:
        tag = self._free_tag()
        if tag is None:
            return False
        self._tag = tag
        try:
            self._write()
        except ConditionError:
            return False
        return True

    def _free_tag(self) -> str | None:
        """The tag to replace it by; None: somebody has it."""
        try:
            content, tag = self._path.read_tagged()
        except FileNotFoundError:
            return ""
        if not _field(content, "held_by"):
            return tag
        now = time.monotonic()
        if self._seen[0] != tag:
            self._seen = (tag, now)
        return tag if now - self._seen[1] > LOCK_SECONDS else None

    def _write(self, *, is_free: bool = False) -> None:
        self._beats += 1
        content = json.dumps({"held_by": "" if is_free else self._who, "by": self._who, "beat": self._beats}).encode()
        began = time.monotonic()  # whoever waits counts from when this arrives, which is later
        try:
            self._tag = self._path.write_bytes(content, only_if=self._tag)
        except ConditionError:
            if not (tag := self._own_tag()):
                raise
            # An earlier one arrived, though its answer did not.
            self._tag = self._path.write_bytes(content, only_if=tag)
        self._renewed = began

    def _own_tag(self) -> str:
        """Empty: what is there is somebody else's."""
        with contextlib.suppress(FileNotFoundError):
            content, tag = self._path.read_tagged()
            if _field(content, "by") == self._who:
                return tag
        return ""

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                self._write()
            except ConditionError:
                self._lost.set()
                return
            except StorageError:
                if time.monotonic() - self._renewed > LOCK_SECONDS:
                    self._lost.set()
                    return


def _is_copy(here: Pointer, pointer: Pointer) -> bool:
    return (here.index, here.build.partition("+")[0]) == (pointer.index, pointer.build)


def _field(content: bytes, name: str) -> str:
    """Of a lock; empty, too, where it is damaged."""
    try:
        return str(json.loads(content)[name])
    except (ValueError, KeyError, TypeError):
        return ""


def _taken_over(model: str) -> BusyError:
    return BusyError(
        f"Another process has taken over the lookups of {model!r}, because this one gave no sign of life for too long. It "
        "goes on."
    )


def _copied(snapshot: Snapshot, part: Part, folder: Path) -> Part:
    file = folder / f"{part.sha256}.parquet"
    then = f"{AS_BEFORE} Restore the object from a backup, run data date {snapshot.data_date} again, or roll back."
    what = f"Version {snapshot.number} of model {snapshot.model!r} cannot be looked up: {part.path}"
    try:
        part.path.download(file)  # type: ignore[union-attr]
    except FileNotFoundError as error:
        raise IndexingError(f"{what} is missing. {then}") from error
    if _sha256(file) != part.sha256:
        raise IndexingError(f"{what} is damaged: its SHA-256 is not that of what was published. {then}")
    return dataclasses.replace(part, path=file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _name(packed: Packed) -> str:
    return f"{packed.number:06}-{packed.attempt}"


def _object_of(served: Served, name: str) -> str:
    packed = served.indexes.get(name)
    return packed.object if packed is not None else ""


def _json(served: Served) -> bytes:
    return msgspec.json.format(msgspec.json.encode(served))


def _served_path(folder: ObjectPath) -> ObjectPath:
    return folder / "served.json"


def wanted_path(folder: ObjectPath) -> ObjectPath:
    return folder / "wanted"
