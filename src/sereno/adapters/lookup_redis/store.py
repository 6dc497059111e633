"""Lookups in a Redis or Valkey server: a hash for each index, and a catalogue that says which one is served.

Whoever follows the table takes a lock that expires, writes a hash under another name, marks it whole, and has it renamed and
entered in the catalogue in one transaction, which the server refuses where the lock is another's by then. So whatever
dies at any moment leaves what was served before, or what is served now.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from sereno.adapters.lookup_redis.address import READ_SECONDS, WRITE_SECONDS, Address, require_redis, told
from sereno.adapters.lookup_redis.catalogue import MARKER, Catalogue, Held, Names, read_catalogue
from sereno.adapters.lookup_redis.filling import fill, mark_whole
from sereno.adapters.lookup_redis.home_id import HomeId
from sereno.adapters.lookup_redis.index import RedisIndex
from sereno.adapters.lookup_redis.lock import Lock
from sereno.exceptions import IndexingError, StorageError
from sereno.failpoints import failpoint
from sereno.interfaces import Seen
from sereno.lookup.following import Following, described, name_of
from sereno.lookup.pointer import Pointer, Work, has_moved_on, work_of
from sereno.places import Place
from sereno.storage import told as told_of_disk

if TYPE_CHECKING:
    from redis import Redis

    from sereno.adapters.lookup_redis.link import Link
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")

LEFT_SECONDS = 60  # for which what was served until now stays, for whoever has not changed over
LOOK_SECONDS = 15.0  # between two looks at a table in an object store, which many workers share
STAYS = "The publication stands, and lookups answer as before. Mend that; whoever publishes or serves next fills it."


class LookupRedis(Following):
    """The lookups of one model in a server. Several processes, on several hosts, may follow at once: one works, others wait."""

    is_far = True

    def __init__(self, home: Path, model: str, *, address: str, prefix: str, root: Place | None = None) -> None:
        """`root`: below which the model's table lies, if not below the home."""
        require_redis()
        super().__init__(home, model, root)
        self._root: Place = root or home
        self._home_id = HomeId(self._root)
        self._moved_on: tuple[Pointer | None, bool, float] | None = None  # as it was last seen, and when that was
        self.address = Address.parse(address)
        self._names = Names(prefix, model)
        self._reading, self._writing = self.address.client(READ_SECONDS), self.address.client(WRITE_SECONDS)
        self._lock = Lock(self._writing, self._names.lock)
        self._newest = (
            0,
            0,
        )  # when the table was committed to (ns), and which snapshot was served, at the last that was seen
        self._link: Link | None = None
        self._has_warned = False
        self._left = ""  # the index that was served until now

    # Following the table

    def follow(self, state: State, keep: frozenset[int], *, most: int | None = None) -> bool:
        """As `LookupStore.follow` says. Raises BusyError, too, where another process has been at it for too long, and
        IndexingError where these lookups are another home's.

        A state that is older than what was followed already changes nothing. Indexes of snapshots that are not in service
        are left to the next who follows once `most` were built, and as soon as the table has moved on.
        """
        if state.table_version < 0 and not self._home_id.known():
            return False  # neither table nor anything else of a home: it is not on this host
        with self._told_of_writing(), self._lock.held(self.model):
            self._check_room()
            with told_of_disk(f"The lookups of {self.model!r} could not be made ready in {self._scratch}", STAYS):
                return self._follow(state, keep, most)

    def remove(self) -> None:
        """Remove them all: nobody wants them any more. Raises StorageError, and BusyError."""
        with self._told_of_writing(), self._lock.held(self.model):
            catalogue = self._catalogue(self._writing)
            if catalogue is None or not self._is_of_here(catalogue):
                return  # another home's are not ours to remove
            self._prune(set())
            self._commit(None)

    def _told_of_writing(self) -> contextlib.AbstractContextManager[None]:
        return told(f"The lookups of {self.model!r} in {self.address.shown} could not be written", STAYS)

    def _pointer(self) -> Pointer | None:
        catalogue = self._own()
        return catalogue.pointer

    def _point_at(self, pointer: Pointer | None) -> None:
        before = self._own()
        if before.pointer is not None:
            self._left = before.pointer.index
        self._commit(msgspec.structs.replace(before, pointer=pointer))

    def _own(self) -> Catalogue:
        """The catalogue, or a new one. Raises IndexingError where it is that of another home."""
        catalogue, home = self._catalogue(self._writing), self._home_id.made()
        if catalogue is None:
            return Catalogue(home=home)
        if catalogue.home != home:
            raise IndexingError(
                f"The lookups of {self.model!r} in {self.address.shown} follow the table of another home. Two models of one "
                "name cannot share them: set 'lookup_prefix' to another text for one of the homes. If this home has taken "
                f"the place of the other, remove the key {self._names.catalogue!r} there first (DEL)."
            )
        return catalogue

    def _commit(self, catalogue: Catalogue | None, *commands: tuple[Any, ...]) -> None:
        """Replace the catalogue, with what else belongs to it, in one step."""
        self._lock.renew()
        with self._writing.pipeline(transaction=True) as pipe:
            self._lock.watch(pipe)
            pipe.multi()
            for command in commands:
                cast("Any", pipe).execute_command(*command)
            if catalogue is None:
                pipe.delete(self._names.catalogue)
            else:
                pipe.set(self._names.catalogue, msgspec.json.encode(catalogue))
            self._lock.commit(pipe)

    def _found(self, name: str) -> Held | None:
        catalogue = self._catalogue(self._writing)
        held = catalogue.indexes.get(name) if catalogue is not None else None
        return held if held is not None and self._is_whole(self._writing, name, held) else None

    def _is_whole(self, client: Redis, name: str, held: Held) -> bool:
        key = self._names.index(name, held)
        with client.pipeline(transaction=False) as pipe:
            pipe.hget(key, cast("str", MARKER))
            pipe.hlen(key)
            marker, fields = pipe.execute()
        return bool(marker == held.build.encode() and fields == held.rows + 1)

    def _sweep(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _prune(self, stay: set[str]) -> bool:
        catalogue = self._own()
        gone = {name: held for name, held in catalogue.indexes.items() if name not in stay}
        if gone:
            kept = {name: held for name, held in catalogue.indexes.items() if name in stay}
            self._commit(msgspec.structs.replace(catalogue, indexes=kept))
            for name, held in gone.items():
                key = self._names.index(name, held)
                if name == self._left:  # its readers change over within a second
                    self._writing.expire(key, LEFT_SECONDS)
                else:  # which the server does aside, however large it is
                    self._writing.unlink(key)
        failpoint("lookup_removed")
        return bool(gone)

    def _check_room(self) -> None:
        """Warn of a server that throws away what it was given."""
        from redis.exceptions import NoPermissionError

        try:
            policy = self._writing.info("memory").get("maxmemory_policy", "noeviction")
        except NoPermissionError:  # which says nothing about its memory
            return
        if policy != "noeviction" and not self._has_warned:
            self._has_warned = True
            LOG.warning(
                "%s may throw lookups away when its memory is full (maxmemory-policy %s): they have no answers then, until "
                "they were filled again. Set maxmemory-policy to noeviction.",
                self.address.shown,
                policy,
            )

    # Building an index

    @property
    def _scratch(self) -> Path:
        return self.home / ".sereno" / "lookup-scratch" / self.model

    def _build(self, snapshot: Snapshot, look: Callable[[], None] = lambda: None) -> Held:
        def alive() -> None:
            self._lock.renew()
            look()

        name, building = name_of(snapshot), self._names.building(self._lock.who)
        keys = fill(self._writing, building, snapshot, self._scratch / self._lock.who, alive)
        held = Held(**described(snapshot, keys))
        arrived = mark_whole(self._writing, building, held.build)
        if arrived != snapshot.rows:
            raise self._sick(snapshot, f"has {snapshot.rows:,} rows, of which {arrived:,} arrived")
        failpoint("lookup_built")
        catalogue, key = self._own(), self._names.index(name, held)
        catalogue = msgspec.structs.replace(catalogue, indexes={**catalogue.indexes, name: held})
        self._commit(catalogue, ("RENAME", building, key), ("PERSIST", key))
        LOG.info("lookups of %s: version %d is indexed (%d rows).", self.model, snapshot.number, snapshot.rows)
        return held

    # Reading

    def _told_of_reading(self) -> contextlib.AbstractContextManager[None]:
        return told(f"The lookups of {self.model!r} in {self.address.shown} cannot be read")

    def _catalogue(self, client: Redis) -> Catalogue | None:
        raw = cast("bytes | None", client.get(self._names.catalogue))
        if raw is None:
            return None
        try:
            return read_catalogue(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(
                f"The key {self._names.catalogue!r} in {self.address.shown} is not what Sereno wrote ({error}). Remove it "
                "there (DEL), or set 'lookup_prefix' to another text."
            ) from error

    def _read(self) -> Catalogue | None:
        with self._told_of_reading():
            catalogue = self._catalogue(self._reading)
        if catalogue is not None and not self._is_of_here(catalogue) and self._has_table:
            raise IndexingError(
                f"The lookups of {self.model!r} in {self.address.shown} follow the table of another home, and are not "
                "answered here. Set 'lookup_prefix' to another text for one of the homes."
            )
        return catalogue

    def _is_of_here(self, catalogue: Catalogue) -> bool:
        try:
            return catalogue.home == self._home_id.known()
        except StorageError:  # of an object store: no answer is to depend on it
            return True

    @property
    def _has_table(self) -> bool:
        """Whether this home has a table of the model; else it may be on other hosts only."""
        return self.log.is_dir()

    def _has_moved_on(self, pointer: Pointer | None) -> bool:
        """Whether the table is another than that which was followed, or was committed to since."""
        if isinstance(self._root, Path):
            return has_moved_on(self._root, self.model, pointer)
        now = time.monotonic()
        if self._moved_on is None or self._moved_on[0] != pointer or now - self._moved_on[2] > LOOK_SECONDS:
            try:
                self._moved_on = (pointer, self._asks_whether_it_has(pointer), now)
            except StorageError:  # no answer is to depend on it
                self._moved_on = (pointer, False, now)
        return self._moved_on[1]

    def _asks_whether_it_has(self, pointer: Pointer | None) -> bool:
        if pointer is None:
            return self._commit_time(0) is not None
        version = pointer.table_version
        return self._commit_time(version) != pointer.commit or self._commit_time(version + 1) is not None

    def mark(self) -> object:
        return _mark_of(self._read())

    def is_gone(self) -> bool:
        """Whether the index that is to be served is no longer there."""
        return not self._has_served(self._read())

    def is_behind(self) -> bool:
        return self._is_behind(self._read())

    def _is_behind(self, catalogue: Catalogue | None) -> bool:
        if catalogue is None:
            return self._has_moved_on(None)
        if not self._is_of_here(catalogue):
            return False  # the table is not on this host
        return self._has_moved_on(catalogue.pointer) or not self._has_served(catalogue)

    def _has_served(self, catalogue: Catalogue | None) -> bool:
        """Whether the index is there that is to be served, if one is."""
        if catalogue is None or catalogue.pointer is None or not catalogue.pointer.index:
            return True
        held = catalogue.indexes.get(catalogue.pointer.index)
        with self._told_of_reading():
            return held is not None and self._is_whole(self._reading, catalogue.pointer.index, held)

    def was_rolled_back(self, number: int) -> bool:
        return _is_newer(number, self._read())

    def look(self, number: int | None) -> Seen:
        catalogue = self._read()
        return Seen(
            mark=_mark_of(catalogue),
            is_behind=self._is_behind(catalogue),
            was_rolled_back=number is not None and _is_newer(number, catalogue),
        )

    def work(self) -> Work | None:
        """What there is to do for whoever follows the table; None: nothing."""
        catalogue = self._read()
        pointer = catalogue.pointer if catalogue is not None else None
        if self._is_behind(catalogue):
            if isinstance(self._root, Path):
                return work_of(self._root, self.model, None)
            version = pointer.table_version if pointer is not None else -1
            return Work((version, self._commit_time(version + 1)), ())
        if catalogue is None or pointer is None or not self._is_of_here(catalogue):
            return None
        return work_of(self.home, self.model, pointer)  # which looks at the pointer alone

    def is_followed(self) -> bool:
        """Whether somebody is at it."""
        with self._told_of_reading():
            return bool(self._reading.exists(self._names.lock))

    def open(self) -> RedisIndex | None:
        catalogue = self._read()
        if catalogue is None or catalogue.pointer is None or not catalogue.pointer.index:
            return None
        pointer = catalogue.pointer
        is_older = self._is_older(pointer)  # then what is newer than that which was served already had been rolled back
        for name in (pointer.index, *pointer.before):
            held = catalogue.indexes.get(name)
            with self._told_of_reading():
                is_there = held is not None and self._is_whole(self._reading, name, held)
            if held is not None and is_there and not (is_older and held.number > self._newest[1]):
                if name != pointer.index:
                    LOG.warning(
                        "lookups of %s answer from %s, until %s is there again.", self.model, name, pointer.index
                    )
                return RedisIndex(self, self._names.index(name, held), held, _mark_of(catalogue))
        return None

    def _is_older(self, pointer: Pointer) -> bool:
        """Whether the server has an older state of itself than was seen there, from a dump or a replica."""
        number = int(pointer.index.partition("-")[0])
        if pointer.commit >= self._newest[0]:
            self._newest = (pointer.commit, number)
            return False
        LOG.warning(
            "%s has an older state of itself: lookups of %s were answered from version %d there, and now it has version %d.",
            self.address.shown, self.model, self._newest[1], number,
        )  # fmt: skip
        return True

    @property
    def link(self) -> Link:
        """The connection for who must not wait, on the running event loop."""
        if self._link is None:
            from sereno.adapters.lookup_redis.link import Link

            self._link = Link.shared(self.address)
        return self._link

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.release()


def _mark_of(catalogue: Catalogue | None) -> object:
    pointer = catalogue.pointer if catalogue is not None else None
    return (pointer.index, pointer.build) if pointer is not None else None


def _is_newer(number: int, catalogue: Catalogue | None) -> bool:
    pointer = catalogue.pointer if catalogue is not None else None
    return pointer is not None and bool(pointer.index) and number > int(pointer.index.partition("-")[0])
