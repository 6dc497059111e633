"""Lookups in a folder: one LMDB file per kept snapshot, and a pointer to the one that is served.

    .sereno/lookup/<model>/000012-<attempt>.lmdb, 000012-<attempt>.json (its manifest), served.json (the pointer)

A file is written under another name, flushed, read back and renamed; then comes its manifest, then the pointer, each in one
step. Nothing that has its name is changed afterwards. Whoever reads verifies the whole file against the manifest before the
first answer, which also brings it into memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import msgspec

from sereno.adapters import durable
from sereno.failpoints import failpoint
from sereno.lookup.following import Following, described, name_of
from sereno.lookup.keys import KeyCodec
from sereno.lookup.pointer import (
    Manifest,
    Pointer,
    index_path,
    is_behind,
    lock_path,
    lookup_folder,
    manifest_path,
    pointer_path,
    read_manifest,
    read_pointer,
)
from sereno.storage import age, exclusive, fsync, host_name, told, write_atomically

if TYPE_CHECKING:
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")

PATIENCE = 300.0  # seconds that one who builds an index may keep the next one waiting
MAP_SIZE = 1 << 40  # addresses, not bytes: what an index may grow to
READ_BYTES = 4 << 20
MADV_POPULATE_READ = 22  # of Linux, madvise(2)
LEFT_SECONDS = 86_400  # after which what another host has begun is taken for left
TRIES = 5  # to open what another process is replacing


class LookupFolder(Following):
    """The lookups of one model below a home. Several processes may follow at once: one works, the others wait."""

    is_far = False

    def __init__(self, home: Path, model: str) -> None:
        super().__init__(home, model)
        self.folder = lookup_folder(home, model)

    # Following the table

    def follow(self, state: State, keep: frozenset[int], *, most: int | None = None) -> bool:
        """As `LookupStore.follow` says. Raises BusyError, too, where another process has been at it for too long.

        A state that is older than what was followed already changes nothing. Indexes of snapshots that are not in service
        are left to the next who follows once `most` were built, and as soon as the table has moved on.
        """
        with (
            told(
                f"The index of lookups in {self.folder} could not be written",
                "The publication stands, and lookups answer as before. Mend that; whoever publishes or serves next builds it.",
            ),
            self._alone(),
        ):
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._follow(state, keep, most)

    def remove(self) -> None:
        """Remove them all: nobody wants them any more. Whoever has one open goes on reading it.

        Raises StorageError, and BusyError.
        """
        if not self.folder.is_dir():
            return
        with told(f"The lookups in {self.folder} could not be removed", "Remove that folder."), self._alone():
            pointer_path(self.folder).unlink(missing_ok=True)
            self._sweep()
            self._prune(set())
            with contextlib.suppress(OSError):  # somebody put a file of his own there
                self.folder.rmdir()

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        busy = f"Another process (pid {{pid}}) is building the lookups of {self.model!r}. Start this again when it is done."
        return exclusive(lock_path(self.home, self.model), busy, wait_seconds=PATIENCE)

    def _point_at(self, pointer: Pointer | None) -> None:
        if pointer is not None:
            own = self._temporary("served", "json").name
            write_atomically(pointer_path(self.folder), msgspec.json.encode(pointer), temporary=own)
        else:
            pointer_path(self.folder).unlink(missing_ok=True)
            fsync(self.folder)

    def _pointer(self) -> Pointer | None:
        return read_pointer(self.home, self.model)

    def _found(self, name: str) -> Manifest | None:
        """The manifest of an index, if it and its file are there."""
        manifest = read_manifest(self.folder, name)
        try:
            if manifest is not None and index_path(self.folder, name).stat().st_size == manifest.size:
                return manifest
        except FileNotFoundError:
            pass
        return None

    def _sweep(self) -> None:
        """Remove what a crash left. Nobody else on this host writes here now; of another host's nothing is known."""
        for path in self.folder.glob(".*.tmp"):
            host = ".".join(path.name.split(".")[2:-2])
            with contextlib.suppress(FileNotFoundError):  # that host is at work, and has renamed it
                if host in ("", host_name()) or age(path) > LEFT_SECONDS:
                    durable.remove(path)

    def _temporary(self, name: str, kind: str) -> Path:
        """A name that another host, whose lock may be its own, does not use at the same time."""
        return self.folder / f".{name}.{host_name()}.{kind}.tmp"

    def _prune(self, stay: set[str]) -> bool:
        """Remove the indexes that nobody needs any more, and files of indexes without a manifest."""
        pruned = False
        for path in sorted(self.folder.glob("[0-9]*.json")):  # first: a file without a manifest is no index
            if path.stem not in stay:
                path.unlink(missing_ok=True)
                pruned = True
        for path in self.folder.glob("[0-9]*.lmdb"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)  # who has it open goes on reading it
        failpoint("lookup_removed")
        return pruned

    # Building an index

    def _build(self, snapshot: Snapshot, look: Callable[[], None] = lambda: None) -> Manifest:
        """Build an index, and call `look` all the time: what it raises ends the work."""
        name = name_of(snapshot)
        temporary, scratch = self._temporary(name, "lmdb"), self._temporary(name, "rows")
        try:
            keys = self._fill(temporary, scratch, snapshot, look)
            with temporary.open("rb") as stream:
                durable.seal(stream.fileno())
                size, crc32 = os.fstat(stream.fileno()).st_size, checksum(stream.fileno())
            failpoint("lookup_built")
            manifest_path(self.folder, name).unlink(missing_ok=True)  # it would be that of another file
            temporary.replace(index_path(self.folder, name))
            fsync(self.folder)
        except BaseException:
            temporary.unlink(missing_ok=True)  # above all where the disk is full
            raise
        manifest = Manifest(**described(snapshot, keys), size=size, crc32=crc32)
        failpoint("lookup_manifest")
        own = self._temporary(name, "json").name
        write_atomically(manifest_path(self.folder, name), msgspec.json.encode(manifest), temporary=own)
        LOG.info("lookups of %s: version %d is indexed (%d rows).", self.model, snapshot.number, snapshot.rows)
        return manifest

    def _fill(self, path: Path, scratch: Path, snapshot: Snapshot, look: Callable[[], None]) -> KeyCodec:
        """Write an index, flushed but for its metadata. Returns what its keys are."""
        from sereno.lookup.entries import Entries

        entries = Entries(snapshot, look)
        rows = 0
        with self._translated(snapshot, path), contextlib.closing(_new_environment(path)) as environment, _no_cycles():
            for keys, predictions in entries.chunks(scratch):
                with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                    # stops silently at a key that is not greater than the one before it
                    _, added = cursor.putmulti(zip(keys, predictions, strict=True), append=True)
                if added != len(keys):
                    raise self._sick(snapshot, "has two rows with the same key")
                rows += added
                environment.set_mapsize(MAP_SIZE)  # maps it anew: nothing of what was written is looked at again
                failpoint("lookup_build")
            environment.sync(True)
        if rows != snapshot.rows:
            raise self._sick(snapshot, f"has {rows:,} rows in its parts, and not {snapshot.rows:,}")
        return entries.keys

    @contextlib.contextmanager
    def _translated(self, snapshot: Snapshot, path: Path) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            if error.code > 0:
                code = _cause(path) if error.code == errno.EIO else error.code
                raise OSError(code, os.strerror(code), str(path)) from error
            raise self._sick(snapshot, f"does not fit an index ({error})") from error

    # Reading

    def mark(self) -> object:
        return _mark_of(read_pointer(self.home, self.model))

    def is_behind(self) -> bool:
        return is_behind(self.home, self.model)

    def was_rolled_back(self, number: int) -> bool:
        pointer = read_pointer(self.home, self.model)
        return pointer is not None and bool(pointer.index) and number > int(pointer.index.partition("-")[0])

    def open(self) -> FolderIndex | None:
        for last in (*(False,) * (TRIES - 1), True):
            pointer = read_pointer(self.home, self.model)
            if pointer is None and os.path.exists(pointer_path(self.folder)):
                LOG.error("%s is damaged: no lookups until the table was followed again.", pointer_path(self.folder))
            if pointer is None or not pointer.index:
                return None
            index = self._open(pointer.index, pointer)
            if index is not None:
                return index
            if read_pointer(self.home, self.model) == pointer or last:
                return self._open_older(pointer)
        return None

    def _open_older(self, pointer: Pointer) -> FolderIndex | None:
        for name in pointer.before:
            index = self._open(name, pointer)
            if index is not None:
                LOG.warning("lookups of %s answer from %s, until %s is there again.", self.model, name, pointer.index)
                return index
        return None

    def _open(self, name: str, pointer: Pointer) -> FolderIndex | None:
        """An index, verified; None: it is not there, or is damaged and was put aside."""
        manifest = read_manifest(self.folder, name)
        path = index_path(self.folder, name)
        if manifest is None:
            if os.path.exists(manifest_path(self.folder, name)):
                self._put_aside(name, "has a manifest that cannot be read")
            return None
        try:
            with path.open("rb") as stream:
                there = os.fstat(stream.fileno())
                damage = ""
                if there.st_size != manifest.size:
                    damage = f"has {there.st_size:,} bytes, and not {manifest.size:,}"
                else:
                    damage = _damage(stream.fileno(), manifest)
                opened = _share(path, there) if not damage else None
            # else it was just replaced
            if damage and _is(path, (there.st_dev, there.st_ino)) and read_manifest(self.folder, name) == manifest:
                self._put_aside(name, damage)
        except FileNotFoundError:
            return None
        return FolderIndex(manifest, opened, _mark_of(pointer)) if opened is not None else None

    def _put_aside(self, name: str, damage: str) -> None:
        """Have a damaged index built again, by whoever follows next: without its manifest, it is none."""
        path = index_path(self.folder, name)
        LOG.error("%s %s: it is damaged, and is not used. It is built again.", path, damage)
        try:
            manifest_path(self.folder, name).unlink(missing_ok=True)
        except OSError as error:
            LOG.error(
                "%s cannot be removed (%s), so %s stays as it is. Remove both.",
                manifest_path(self.folder, name),
                error.strerror,
                path.name,
            )


class FolderIndex:
    """An index that is open. `get` is LMDB's own, with nothing in between."""

    def __init__(self, manifest: Manifest, opened: _Opened, mark: object) -> None:
        self.mark = mark
        self.number = manifest.number
        self.data_date = manifest.data_date
        self.data_time = manifest.data_time
        self.rows = manifest.rows
        self.keys = manifest.codec
        self._opened: _Opened | None = opened
        self.get: Callable[[bytes], bytes | None] = opened.transaction.get

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self.get, keys))

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            del self.get
            _let_go(opened)


class _Opened:
    """A file that this process has open. LMDB must not open one twice, so all who read it share it."""

    def __init__(self, path: Path, file: tuple[int, int], size: int) -> None:
        self.file = file
        self.users = 1
        self.environment = lmdb.open(
            str(path),
            subdir=False,
            readonly=True,
            lock=False,
            readahead=False,
            create=False,
            map_size=size,
            max_spare_txns=1,
        )
        self.transaction = self.environment.begin()  # one for all, as long as it is open: the file never changes
        _map_pages(file[1])

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


def _map_pages(inode: int) -> None:
    """Have the pages of a file that is mapped, and in memory already, found by the processor at once.

    Else the first answers from each of them take half as long again, for minutes in an index of gigabytes. What cannot be
    done (a kernel before 5.14) is left to them.
    """
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        areas = [fields[0].split("-") for line in maps if (fields := line.split(None, 5))[4] == str(inode)]
    advise = ctypes.CDLL(None).madvise
    for start, end in areas:
        advise(ctypes.c_void_p(int(start, 16)), ctypes.c_size_t(int(end, 16) - int(start, 16)), MADV_POPULATE_READ)


_opened: dict[tuple[int, int], _Opened] = {}  # by device and inode
_opening = threading.Lock()


def _share(path: Path, there: os.stat_result) -> _Opened | None:
    """Open the file that was verified; None: it was replaced since."""
    file = (there.st_dev, there.st_ino)
    with _opening:
        if file in _opened:
            _opened[file].users += 1
            return _opened[file]
        try:
            opened = _Opened(path, file, there.st_size)
        except lmdb.Error:
            if _is(path, file):
                raise
            return None
        if not _is(path, file):
            opened.close()
            return None
        return _opened.setdefault(file, opened)


def _is(path: Path, file: tuple[int, int]) -> bool:
    """Whether that file has the path now."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == file


def _let_go(opened: _Opened) -> None:
    with _opening:
        opened.users -= 1
        if not opened.users:
            del _opened[opened.file]
            opened.close()


def _mark_of(pointer: Pointer | None) -> object:
    return (pointer.index, pointer.build) if pointer is not None else None


def checksum(descriptor: int) -> int:
    """The CRC-32 of a file, whose content is in memory then."""
    view = memoryview(bytearray(READ_BYTES))
    crc32 = 0
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        stream.seek(0)
        while count := stream.readinto(view):
            crc32 = zlib.crc32(view[:count], crc32)
    return crc32


def _damage(descriptor: int, manifest: Manifest) -> str:
    """What is wrong with the content of an index. Raises OSError where that cannot be said."""
    try:
        return "" if checksum(descriptor) == manifest.crc32 else "has another checksum than when it was built"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "cannot be read: the disk reports an error"


def _cause(path: Path) -> int:
    """Why a file could not be written, where LMDB calls it EIO: it does so of a disk that has room for a part, too."""
    try:
        with path.open("ab") as stream:
            stream.write(bytes(1 << 20))
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


def _new_environment(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), map_size=MAP_SIZE, subdir=False, lock=False, sync=False, metasync=False, mode=0o644)


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """Without the search for cycles of objects: millions are made here, and there are none among them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
