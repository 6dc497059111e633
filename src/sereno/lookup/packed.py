"""An index of lookups as one object of an object store, and what a server knows of it. Light: nothing heavy is imported.

    <storage>/.sereno/lookup/<model>/served.json                        which index is served, and the digests of all
    <storage>/.sereno/lookup/<model>/000012-<attempt>-<build>.lmdb      an index: never changed, and never overwritten
    <storage>/.sereno/lookup/<model>/wanted                             a server was there: whoever publishes builds one
    <storage>/.sereno/lookup/<model>/lock.json                          who builds

A server answers from its own copy, which lies below `.sereno/copies` of its home as lookups of a home do.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from sereno.lookup.pointer import IndexName, Manifest, Pointer, lookup_folder

LATE_SECONDS = 60.0  # without a look at the store: nothing is known of what is served there


class Packed(Manifest, frozen=True, kw_only=True):
    """An index that is an object."""

    object: str  # its name
    sha256: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """`served.json`."""

    format: Literal[1] = 1
    pointer: Pointer | None = None
    indexes: dict[IndexName, Packed] = {}
    stamp: str = ""  # another one at each write: no tag comes back, which S3 makes of the content


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """`look.json`, beside a server's copy: what was seen when it last looked at the store."""

    format: Literal[1] = 1
    is_behind: bool  # there is something to fetch, or to build; or the store did not answer
    is_well: bool = True  # it did


def copies_home(home: Path) -> Path:
    """Below which the copies of a home's server lie, as lookups lie below a home."""
    return home / ".sereno" / "copies"


def look_path(home: Path, model: str) -> Path:
    return lookup_folder(copies_home(home), model) / "look.json"


def tell_look(home: Path, model: str, look: Look) -> None:
    """Have the workers know what was seen. Raises OSError."""
    path = look_path(home, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".look.{os.getpid()}.new")
    hidden.write_bytes(msgspec.json.encode(look))
    os.replace(hidden, path)  # not flushed: after a power cut it is looked anew


def last_look(home: Path, model: str) -> Look | None:
    """None: nobody looked, for too long."""
    path = look_path(home, model)
    try:
        if time.time() - path.stat().st_mtime > LATE_SECONDS:
            return None
        return _read_look(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


read_served = msgspec.json.Decoder(Served).decode
_read_look = msgspec.json.Decoder(Look).decode
