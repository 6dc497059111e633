"""What tells a home from all others, wherever it is mounted: whose table it is that the lookups in a server follow."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from sereno.object_path import ConditionError, ObjectPath
from sereno.places import Place
from sereno.storage import write_atomically


class HomeId:
    """That of the home at `root`. It is written once, by whoever first needs one there."""

    def __init__(self, root: Place) -> None:
        self._root = root
        self._id = ""

    def made(self) -> str:
        """What it is, from now on at the latest. Raises OSError, and StorageError."""
        if not self.known():
            _make(home_id_path(self._root), secrets.token_hex(16))
        return self.known()

    def known(self) -> str:
        """Empty: it has none yet. One in an object store is asked for until it is known. Raises StorageError."""
        if not self._id or isinstance(self._root, Path):
            self._id = read_home_id(self._root)
        return self._id


def _make(path: Place, new: str) -> None:
    """Unless somebody else has: the first one stays."""
    if isinstance(path, ObjectPath):
        with contextlib.suppress(ConditionError):
            path.write_bytes(new.encode(), only_if="")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{new}.tmp")
    write_atomically(hidden, new.encode())
    with contextlib.suppress(FileExistsError):
        os.link(hidden, path)
    hidden.unlink()


def home_id_path(home: Place) -> Place:
    return home / ".sereno" / "home-id"


def read_home_id(home: Place) -> str:
    """Empty where it has none: nothing was ever put into a shared store from there, or it is not on this host."""
    try:
        return home_id_path(home).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
