"""The copy of a server: what its workers read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sereno.adapters.lookup_folder import LookupFolder
from sereno.lookup.following import name_of
from sereno.lookup.packed import Packed, copies_home, last_look
from sereno.lookup.pointer import Manifest, Pointer, index_path, manifest_path
from sereno.storage import write_atomically

if TYPE_CHECKING:
    from sereno.snapshots import Snapshot


class CopiedLookups(LookupFolder):
    """Lookups in a folder that are copied there. Nothing here asks the store."""

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

    @property
    def pointer(self) -> Pointer | None:
        """What it serves, of which version of the table; None: it has fetched nothing."""
        return self._pointer()

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
        is_same = here is not None and is_copy(here, pointer)
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

    def build(self, snapshot: Snapshot, look: Callable[[], None]) -> tuple[Manifest, Path]:
        """Build an index here; its manifest, and its file. `look` is called all the time: what it raises ends the work."""
        return self._build(snapshot, look), index_path(self.folder, name_of(snapshot))

    def temporary(self, name: str, kind: str) -> Path:
        return self._temporary(name, kind)

    def sweep(self) -> None:
        """Remove what a crash left."""
        self._sweep()


def is_copy(here: Pointer, pointer: Pointer) -> bool:
    return (here.index, here.build.partition("+")[0]) == (pointer.index, pointer.build)


def _name(packed: Packed) -> str:
    return f"{packed.number:06}-{packed.attempt}"
