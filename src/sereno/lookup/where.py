"""Where lookups are kept: in the home's folder, in an object store, or in a server that several hosts share.

Nothing heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sereno.places import SCHEMES, ObjectPath, Place, place_of

if TYPE_CHECKING:
    from sereno.adapters.lookup_objects.store import LookupObjects
    from sereno.adapters.lookup_redis.store import LookupRedis
    from sereno.interfaces import LookupStore
    from sereno.settings import Settings
    from sereno.snapshots import State

VARIABLES = ("SERENO_LOOKUP_STORE", "SERENO_LOOKUP_PREFIX", "SERENO_LOOKUP_VERSIONS", "SERENO_STORAGE")


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """A server that several hosts share, or an object store."""

    address: str  # may hold a password; of an object store, its URL
    prefix: str  # of names in a server
    versions: int  # of which a server has an index
    storage: str = ""  # the place below which the table lies; empty: below the home

    @property
    def is_objects(self) -> bool:
        """Whether it is an object store."""
        return self.address.partition("://")[0] in SCHEMES

    @property
    def root(self) -> Place | None:
        """Below which the table lies, if not below the home."""
        return place_of(self.storage) if self.storage else None

    def __repr__(self) -> str:
        return f"Where(prefix={self.prefix!r}, versions={self.versions!r})"

    def environ(self) -> dict[str, str]:
        """Variables that tell it to a process: what is on a command line, everybody may read."""
        return dict(zip(VARIABLES, (self.address, self.prefix, str(self.versions), self.storage), strict=True))


def where_of(settings: Settings) -> Where | None:
    """None: in the home's folder."""
    storage = str(settings.storage.resolve()) if settings.storage is not None else ""
    address = settings.lookup_store or (storage if isinstance(settings.storage, ObjectPath) else "")
    if not address:
        return None
    prefix, versions = settings.lookup_prefix, settings.lookup_versions
    return Where(address=address, prefix=prefix, versions=versions, storage=storage)


def lookup_home(settings: Settings) -> Path:
    """Below which lookups lie that are kept in a folder: with the table, if that is in one."""
    return settings.root.resolve() if isinstance(settings.root, Path) else settings.home.resolve()


def where_told(environ: Mapping[str, str] = os.environ) -> Where | None:
    """What `Where.environ` told this process."""
    address, prefix, versions, storage = (environ.get(name, "") for name in VARIABLES)
    return Where(address=address, prefix=prefix, versions=int(versions), storage=storage) if address else None


def open_store(where: Where | None, home: Path, model: str) -> LookupStore:
    """The lookups of a model. Nothing is opened yet.

    Raises SettingsError where the address cannot be read, and MissingExtraError where a package is missing.
    """
    if where is None:
        from sereno.adapters.lookup_folder import LookupFolder

        return LookupFolder(home, model)
    if where.is_objects:
        return objects_of(where, home, model).copy
    return redis_of(where, home, model)


def redis_of(where: Where, home: Path, model: str) -> LookupRedis:
    """The lookups of a model in a server. Raises SettingsError, and MissingExtraError."""
    from sereno.adapters.lookup_redis.store import LookupRedis

    return LookupRedis(home, model, address=where.address, prefix=where.prefix, root=where.root)


def objects_of(where: Where, home: Path, model: str) -> LookupObjects:
    """The lookups of a model in an object store. Raises SettingsError, and MissingExtraError."""
    from sereno.adapters.lookup_objects.store import LookupObjects

    return LookupObjects(home, model, ObjectPath.of(where.address))


def few(state: State, kept: frozenset[int], versions: int) -> frozenset[int]:
    """Of the snapshots that are kept, those that a server has an index of: what is served, and the newest others.

    Its memory is dear, and what was withdrawn is not rolled back to.
    """
    served = {state.newest.number} if state.newest is not None else set()
    others = sorted(kept - served - state.withdrawn, reverse=True)
    return frozenset(served | set(others[: max(0, versions - 1)]))
