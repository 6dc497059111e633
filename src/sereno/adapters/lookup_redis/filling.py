"""Writes the entries of a snapshot into a hash of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sereno.adapters.lookup_redis.catalogue import MARKER
from sereno.failpoints import failpoint

if TYPE_CHECKING:
    from redis import Redis

    from sereno.lookup.keys import KeyCodec
    from sereno.snapshots import Snapshot

BUILDING_SECONDS = 60  # for which what was begun stays
AT_ONCE = 500  # fields of one command: for so long, others wait


def fill(client: Redis, name: str, snapshot: Snapshot, scratch: Path, alive: Callable[[], None]) -> KeyCodec:
    """Write all entries, into a hash that expires unless somebody goes on with it. Returns what its keys are.

    `alive` is called all the time: what it raises ends the work.
    """
    from sereno.lookup.entries import Entries

    entries = Entries(snapshot, alive)
    with client.pipeline(transaction=True) as pipe:
        pipe.unlink(name)  # what was written there before failed
        # It expires from its first field on: nobody else ever looks for it, should this process die in the middle.
        pipe.hset(name, cast("str", MARKER), "")
        pipe.expire(name, BUILDING_SECONDS)
        pipe.execute()
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        for keys, predictions in entries.chunks(scratch):
            for start in range(0, len(keys), AT_ONCE * 10):
                with client.pipeline(transaction=False) as pipe:
                    for at in range(start, min(start + AT_ONCE * 10, len(keys)), AT_ONCE):
                        some = zip(keys[at : at + AT_ONCE], predictions[at : at + AT_ONCE], strict=True)
                        cast("Any", pipe).execute_command("HSET", name, *(part for pair in some for part in pair))
                    pipe.expire(name, BUILDING_SECONDS)
                    pipe.execute()
                alive()
            failpoint("lookup_build")
    except BaseException:
        with contextlib.suppress(Exception):  # else it expires
            client.unlink(name)
        raise
    return entries.keys


def mark_whole(client: Redis, name: str, build: str) -> int:
    """Say that a hash is whole; how many entries it has."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hset(name, cast("str", MARKER), build)
        pipe.expire(name, BUILDING_SECONDS)
        pipe.hlen(name)
        fields: int = pipe.execute()[-1]
    return fields - 1
