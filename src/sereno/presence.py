"""What is there of many files at once: on a disk each is asked for, of objects a folder is listed with a thousand in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Generic, TypeVar

from sereno.object_path import Object, ObjectPath
from sereno.places import Place

AT_ONCE = 16  # small objects that are read together
T = TypeVar("T")
U = TypeVar("U")


def together(do: Callable[[T], U], some: Sequence[T]) -> list[U]:
    """What `do` gives for each, in their order; several at once, as each waits for a store. Raises what it raises.

    A deadline of who asks (`objects.within`) is theirs, too.
    """
    if not some:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(some))) as threads:
        return list(threads.map(lambda context, one: context.run(do, one), [copy_context() for _ in some], some))


def sizes(files: Iterable[Place]) -> dict[Place, int]:
    """Bytes of those of the files that are there. Raises OSError, StorageError.

    It asks whoever keeps them: that a file is there, this host may only remember of a file server.
    """
    found: dict[Place, int] = {}
    listed: dict[ObjectPath, dict[ObjectPath, int]] = {}
    for file in files:
        if isinstance(file, ObjectPath):
            if file.parent not in listed:
                listed[file.parent] = {path: meta.size for path, meta in file.parent.below()}
            size = listed[file.parent].get(file)
        else:
            size = _size(file)
        if size is not None:
            found[file] = size
    return found


def _size(file: os.PathLike[str]) -> int | None:
    try:
        with open(file, "rb") as stream:
            return os.fstat(stream.fileno()).st_size
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise
        return None


def remove(files: Iterable[Place]) -> None:
    """Remove files, objects a thousand in a request; one that is gone is no matter. Raises OSError, StorageError."""
    from sereno.adapters import objects

    keys: dict[str, list[str]] = {}
    for file in files:
        if isinstance(file, ObjectPath):
            keys.setdefault(f"{file.scheme}://{file.bucket}", []).append(file.key)
        else:
            file.unlink(missing_ok=True)
    for root, some in keys.items():
        objects.delete(root, some, f"{root}/{some[0]}")


class Contents(Generic[T]):
    """Small objects below a folder, for who asks again and again: only what has changed is read again, several at once."""

    def __init__(
        self, folder: ObjectPath, wanted: Callable[[ObjectPath], bool], read: Callable[[ObjectPath], T]
    ) -> None:
        """`wanted`: which of them. `read` gives what is kept of one."""
        self._folder, self._wanted, self._read = folder, wanted, read
        self._known: dict[ObjectPath, tuple[Object, T]] = {}

    def read(self) -> dict[ObjectPath, tuple[Object, T]]:
        """What is there, in the order of the names; without what was removed meanwhile. Raises what `read` raises, StorageError."""
        there = {path: meta for path, meta in self._folder.below() if self._wanted(path)}
        known = {
            path: (meta, self._known[path][1])
            for path, meta in there.items()
            if path in self._known and self._known[path][0].tag == meta.tag
        }
        new = [path for path in there if path not in known]
        for path, content in zip(new, together(self._content, new), strict=True):
            if content:
                known[path] = there[path], content[0]
        self._known = known
        return dict(sorted(known.items()))

    def _content(self, path: ObjectPath) -> tuple[T, ...]:
        try:
            return (self._read(path),)
        except FileNotFoundError:
            return ()
