"""Looking for what is waited for: once, at one path. And the threads that look, since a file system may let them wait."""

from __future__ import annotations

import glob
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from sereno.exceptions import SerenoError
from sereno.places import ObjectPath, is_url
from sereno.sources import (
    fixed_part,
    is_delta_table,
    is_hidden,
    iter_files,
    iter_objects,
    match_objects,
    place_before_pattern,
)

if TYPE_CHECKING:
    from sereno.object_path import Object

STUCK = 5.0  # seconds after which a look no longer keeps other looks waiting
IDLE = 60.0  # seconds between two questions whether one is stuck, where nothing waits
MOST_LOOKERS = 32


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look has found."""

    found: bool
    says: str  # "X is not there"; "X is there"
    digest: str = ""  # of the names, sizes and times of what was found, where it was asked for
    changed: float = 0.0  # when the newest file of it was, by its own time; asked for with the digest
    folder: tuple[str, int, int] | None = (
        None  # whose change is news: path, device and inode of the nearest one there is
    )


def look(path: str, *, is_source: bool, in_full: bool) -> Look:
    """Whether there is what `path` says, a path or a URL: a file, a folder with a file in it, or a pattern's match.

    Of a source, what its run would read; else a marker, which may be hidden. `in_full`: all that is there, for the digest.
    """
    if is_url(path):
        return _look_at_objects(path, is_source=is_source, in_full=in_full)
    digest = hashlib.blake2b(digest_size=16)
    found, changed = 0, 0.0
    try:
        files = _source(path) if is_source else _marker(path)
        for file in sorted(files) if in_full else files:
            if not os.access(file, os.R_OK):
                return Look(found=False, says=f"{file} may not be read by this user", folder=_folder(path))
            found += 1
            if not in_full:
                break
            known = _as_it_is(file)
            changed = max(changed, known.st_mtime)
            digest.update(
                f"{file}\0{known.st_ino} {known.st_size} {known.st_mtime_ns}\0".encode(errors="surrogateescape")
            )
    except FileNotFoundError:  # gone again while it was looked at
        found = 0
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told as the reason, and looked at again
        why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        return Look(found=False, says=f"{path} cannot be looked at: {why}", folder=_folder(path))
    folder = _folder(path)
    if found:
        return Look(found=True, says=f"{path} is there", digest=digest.hexdigest(), changed=changed, folder=folder)
    return Look(found=False, says=_missing(path, folder), folder=folder)


def _look_at_objects(url: str, *, is_source: bool, in_full: bool) -> Look:
    """As `look`. Of changes in an object store nobody tells: it is looked at again after a while."""
    digest = hashlib.blake2b(digest_size=16)
    found, changed = 0, 0.0
    try:
        objects = _source_objects(url) if is_source else _marker_objects(url)
        for path, known in sorted(objects) if in_full else objects:
            found += 1
            if not in_full:
                break
            changed = max(changed, known.modified_at.timestamp())
            digest.update(f"{path}\0{known.size} {known.tag} {known.modified_at.timestamp()}\0".encode())
    except FileNotFoundError:
        found = 0
    except Exception as error:  # noqa: BLE001 - as in `look`
        told = str(error).rstrip(".") if isinstance(error, SerenoError) else f"{type(error).__name__}: {error}"
        return Look(found=False, says=f"{url} cannot be looked at: {told}")
    if found:
        return Look(found=True, says=f"{url} is there", digest=digest.hexdigest(), changed=changed)
    return Look(found=False, says=f"nothing matches {url}" if glob.has_magic(url) else f"{url} is not there")


def _source_objects(url: str) -> Iterator[tuple[ObjectPath, Object]]:
    if is_delta_table(url):
        return (ObjectPath.of(url) / "_delta_log").below()
    return iter_objects(url)


def _marker_objects(url: str) -> Iterator[tuple[ObjectPath, Object]]:
    """As of a source, but what the pattern names may be hidden."""
    place = ObjectPath.of(url)
    fixed = place_before_pattern(place)
    named = {*place.parts}
    if fixed == place or place.is_file():
        yield from iter_objects(url)
        return
    for path, known in match_objects(place):
        parts = [part for part in path.relative_to(fixed).parts if part not in named]
        if not is_hidden(PurePath(*parts)):
            yield path, known


def _as_it_is(file: Path) -> os.stat_result:
    """Of a file that is opened, a file server is asked; else this host may tell what it remembers, for a minute."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would keep who opens it
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _source(path: str) -> Iterator[Path]:
    if is_delta_table(path):
        yield from Path(path, "_delta_log").iterdir()  # there at once, and quiet as long as nobody commits
    else:
        yield from iter_files(path)


def _marker(path: str) -> Iterator[Path]:
    """As of a source, but a match may be a folder, and what the pattern names may be hidden: `*/_SUCCESS`."""
    if os.path.lexists(path) or not glob.has_magic(path):
        yield from iter_files(path)
        return
    fixed = len(fixed_part(path).parts)
    named = set(Path(path).parts)
    for match in glob.iglob(path, recursive=True):
        parts = [part for part in Path(match).parts[fixed:] if part not in named]
        if not is_hidden(Path(*parts)):
            yield from [Path(match)] if not os.path.isdir(match) else iter_files(match)


def _missing(path: str, folder: tuple[str, int, int] | None) -> str:
    if folder is not None and not os.access(folder[0], os.R_OK | os.X_OK):
        return f"{path} cannot be looked at: this user may not read {folder[0]}"
    if os.path.isdir(path):
        return f"the folder {path} has no file in it"
    return f"nothing matches {path}" if glob.has_magic(path) else f"{path} is not there"


def _folder(path: str) -> tuple[str, int, int] | None:
    """The nearest folder that there is, from where the path is fixed upwards."""
    start = Path(path) if os.path.isdir(path) else fixed_part(path) if glob.has_magic(path) else Path(path).parent
    for folder in (start, *start.parents):
        try:
            known = os.stat(folder)
        except (OSError, ValueError):  # ValueError: a path that can be none
            continue
        if os.path.isdir(folder):
            return str(folder), known.st_dev, known.st_ino
    return None


class Lookers:
    """Threads that look. One, as long as looking is quick; others beside it where a file system does not answer."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy: dict[int, float] = {}  # thread → since when it has looked for the same
        self._threads: list[threading.Thread] = []
        self._add()

    def do(self, work: Callable[[], None]) -> None:
        """Have it done soon, by a thread."""
        self._work.put(work)

    def tend(self) -> float:
        """Where all of them are stuck, one more looks for the rest. Seconds until this is to be called again."""
        since = time.monotonic() - STUCK
        stuck = sum(1 for began in [*self._busy.values()] if began < since)
        if not self._work.empty() and len(self._threads) <= stuck and len(self._threads) < MOST_LOOKERS:
            self._add()
        return IDLE if self._work.empty() else STUCK

    def close(self) -> None:
        """They end, once they are done with what they are at."""
        for _ in self._threads:
            self._work.put(None)

    def _add(self) -> None:
        thread = threading.Thread(target=self._run, name="looker", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        own = threading.get_ident()
        while (work := self._work.get()) is not None:
            self._busy[own] = time.monotonic()
            try:
                work()
            finally:
                self._busy.pop(own, None)
