"""What is kept of one model's lookups in a server, and under which names. `PREFIX:{MODEL}:` comes before each.

    catalogue            JSON: which index is served, which others are there; replaced in one step
    NUMBER-ATTEMPT:BUILD a hash for each index: the keys, and the field MARKER, which is written last
    building:WHO         the one that is being written, by who has the lock: whoever had it before may stand still, and write
                         on once he wakes, so each has his own; it expires by itself
    lock                 who writes; it expires by itself

A reader asks for the marker with the keys, in one command. Where there is no marker there is no index any more (the server
was emptied, say), and a key that was not found says nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sereno.lookup.pointer import Described, Pointer

MARKER = b"*"  # no key is so short


class Held(Described, frozen=True, kw_only=True):
    """An index that is there. Its marker holds its `build`."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All that is there of one model."""

    format: Literal[1] = 1
    home: str  # whose table is followed: an id
    pointer: Pointer | None = None
    indexes: dict[str, Held] = {}  # by NUMBER-ATTEMPT


class Names:
    """The names of what is kept of one model. One slot has them all, where slots matter."""

    def __init__(self, prefix: str, model: str) -> None:
        self.start = f"{prefix}:{{{model}}}"
        self.catalogue, self.lock = f"{self.start}:catalogue", f"{self.start}:lock"

    def building(self, who: str) -> str:
        return f"{self.start}:building:{who}"

    def index(self, name: str, held: Held) -> str:
        return f"{self.start}:{name}:{held.build}"


read_catalogue = msgspec.json.Decoder(Catalogue).decode
