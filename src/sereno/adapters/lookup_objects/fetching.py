"""What is served, as `served.json` says it, and how it comes to a machine."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

import msgspec

from sereno.adapters.lookup_objects.copies import CopiedLookups, is_copy
from sereno.exceptions import StorageError
from sereno.lookup.packed import Packed, Served, read_served
from sereno.lookup.pointer import AS_BEFORE, Work
from sereno.object_path import ObjectPath

LOG = logging.getLogger("sereno.lookup")


class DamagedError(StorageError):
    """The object of an index is not what `served.json` says."""


class _GoneError(DamagedError):
    """There is no object of an index: it was pruned meanwhile, as another is served by now; or it is lost."""


class Fetching:
    """Has a machine's copy be what is served below `folder`. It looks, and writes nothing there."""

    def __init__(self, folder: ObjectPath, copy: CopiedLookups) -> None:
        self.folder, self.copy = folder, copy
        self.path = folder / "served.json"

    def read(self) -> tuple[Served, str]:
        """`served.json` and its tag; "": there is none. Raises DamagedError, and StorageError."""
        try:
            content, tag = self.path.read_tagged()
        except FileNotFoundError:
            return Served(), ""
        try:
            return read_served(content), tag
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DamagedError(
                f"{self.path} is damaged ({error}). {AS_BEFORE} Whoever publishes next writes it anew."
            ) from error

    def read_leniently(self) -> Served:
        """What it says; if it is damaged, nothing. Raises StorageError."""
        try:
            return self.read()[0]
        except DamagedError:
            return Served()

    def fetch_latest(self) -> bool:
        """Have the copy be what is served; say whether that changed it. Raises DamagedError, and StorageError."""
        for last in (False, False, True):
            served, tag = self.read()
            if not tag:  # nobody has said that there are none any more: that takes a `served.json` which says so
                return False
            try:
                return self.fetch(served)
            except _GoneError:
                if last:
                    raise
        raise AssertionError

    def fetch(self, served: Served) -> bool:
        """As `fetch_latest`, of what was read."""
        pointer, copy = served.pointer, self.copy
        if pointer is None or not pointer.index:
            return copy.clear()
        packed = served.indexes.get(pointer.index)
        if packed is None or packed.build != pointer.build:
            raise DamagedError(f"{self.path} does not say what {pointer.index} is. {AS_BEFORE}")
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
                elif sha256_of(temporary) != packed.sha256:
                    damage = "has another SHA-256 than when it was built"
                if not damage:
                    break
                if last:
                    raise DamagedError(f"{source} {damage}: it is damaged, and is not used. {AS_BEFORE}")
            self.copy.take(temporary, name, packed)
        except FileNotFoundError as error:
            raise _GoneError(f"{error}, though {self.path} names it. {AS_BEFORE}") from error
        finally:
            temporary.unlink(missing_ok=True)
        LOG.info(
            "lookups of %s: version %d was fetched (%d rows, %d bytes, %.1f s).",
            self.copy.model, packed.number, packed.rows, packed.size, time.monotonic() - began,
        )  # fmt: skip

    def work(self) -> Work | None:
        """What there is to fetch; None: nothing. Raises StorageError."""
        served, tag = self.read()
        pointer, here = served.pointer, self.copy.pointer
        if not tag:
            return None
        if pointer is None:
            return None if here is None else Work((-1, None), ())
        if here is None and not pointer.index:
            return None
        if here is not None and is_copy(here, pointer) and here.is_there(self.copy.home, self.copy.model):
            return None
        return Work((pointer.table_version, int(pointer.build or "0", 16)), ())


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
