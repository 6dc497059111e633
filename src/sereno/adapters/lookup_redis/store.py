"""Lookups in a Redis or Valkey server: a hash for each index, and a catalogue that says which one is served.

Whoever follows the table takes a lock that expires, writes a hash under another name, marks it whole, and has it renamed and
entered in the catalogue in one transaction, which the server refuses where the lock is another's by then. So whatever
dies at any moment leaves what was served before, or what is served now.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from sereno.adapters.lookup_redis.address import READ_SECONDS, WRITE_SECONDS, Address, cause, require_redis, told
from sereno.adapters.lookup_redis.catalogue import MARKER, Catalogue, Held, Names, read_catalogue
from sereno.exceptions import BusyError, IndexingError, StorageError
from sereno.failpoints import failpoint
from sereno.interfaces import Seen
from sereno.lookup.following import Following, described, name_of
from sereno.lookup.pointer import Pointer, Work, has_moved_on, work_of
from sereno.object_path import ConditionError, ObjectPath
from sereno.places import Place
from sereno.storage import told as told_of_disk
from sereno.storage import write_atomically

if TYPE_CHECKING:
    from redis import Redis

    from sereno.adapters.lookup_redis.link import Link
    from sereno.lookup.keys import KeyCodec
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")

PATIENCE = 300.0  # seconds that one who builds an index may keep the next one waiting
LOCK_SECONDS = 6.0  # without a sign of life, somebody else may follow
RENEW_SECONDS = 1.5
BUILDING_SECONDS = 60  # for which what was begun stays
LEFT_SECONDS = 60  # for which what was served until now stays, for whoever has not changed over
AT_ONCE = 500  # fields of one command: for so long, others wait
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
        self._id = ""  # of the home, once it is known
        self._moved_on: tuple[Pointer | None, bool, float] | None = None  # as it was last seen, and when that was
        self.address = Address.parse(address)
        self._names = Names(prefix, model)
        self._reading, self._writing = self.address.client(READ_SECONDS), self.address.client(WRITE_SECONDS)
        self._lock = _Lock(self._writing, self._names.lock)
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
        if state.version < 0 and not self._known_id():
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
        catalogue, home = self._catalogue(self._writing), self._home_id()
        if catalogue is None:
            return Catalogue(home=home)
        if catalogue.home != home:
            raise IndexingError(
                f"The lookups of {self.model!r} in {self.address.shown} follow the table of another home. Two models of one "
                "name cannot share them: set 'lookup_prefix' to another text for one of the homes. If this home has taken "
                f"the place of the other, remove the key {self._names.catalogue!r} there first (DEL)."
            )
        return catalogue

    def _home_id(self) -> str:
        """What tells this home from all others, wherever it is mounted."""
        path = home_id_path(self._root)
        found = self._known_id()
        if not found and isinstance(path, ObjectPath):
            with contextlib.suppress(ConditionError):  # the first one stays
                path.write_bytes(secrets.token_hex(16).encode(), only_if="")
            return self._known_id()
        if not found:
            assert isinstance(path, Path)
            found = secrets.token_hex(16)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                hidden = path.with_name(f".{path.name}.{found}.tmp")
                write_atomically(hidden, found.encode())
                with contextlib.suppress(FileExistsError):
                    os.link(hidden, path)  # the first one stays
                hidden.unlink()
            except OSError as error:
                raise StorageError(f"{path} cannot be written: {error.strerror}. {STAYS}") from error
            found = self._known_id()
        return found

    def _known_id(self) -> str:
        """What `_home_id` says; empty: it has none yet. One in an object store is asked for until it is known."""
        if not self._id or isinstance(self._root, Path):
            self._id = read_home_id(self._root)
        return self._id

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

    @property
    def _building(self) -> str:
        return self._names.building(self._lock.who)

    def _build(self, snapshot: Snapshot, look: Callable[[], None] = lambda: None) -> Held:
        name = name_of(snapshot)
        keys = self._fill(snapshot, look)
        held = Held(**described(snapshot, keys))
        building, key = self._building, self._names.index(name, held)
        with self._writing.pipeline(transaction=False) as pipe:
            pipe.hset(building, cast("str", MARKER), held.build)
            pipe.expire(building, BUILDING_SECONDS)
            pipe.hlen(building)
            fields = pipe.execute()[-1]
        if fields != snapshot.rows + 1:
            raise self._sick(snapshot, f"has {snapshot.rows:,} rows, of which {fields - 1:,} arrived")
        failpoint("lookup_built")
        catalogue = self._own()
        catalogue = msgspec.structs.replace(catalogue, indexes={**catalogue.indexes, name: held})
        self._commit(catalogue, ("RENAME", building, key), ("PERSIST", key))
        LOG.info("lookups of %s: version %d is indexed (%d rows).", self.model, snapshot.number, snapshot.rows)
        return held

    def _fill(self, snapshot: Snapshot, look: Callable[[], None]) -> KeyCodec:
        """Write all entries. Returns what its keys are."""
        from sereno.lookup.entries import Entries

        def alive() -> None:
            self._lock.renew()
            look()

        entries = Entries(snapshot, alive)
        building, scratch = self._building, self._scratch / self._lock.who
        self._writing.unlink(building)  # of the index that it built before, if that failed
        try:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            for keys, predictions in entries.chunks(scratch):
                for start in range(0, len(keys), AT_ONCE * 10):
                    with self._writing.pipeline(transaction=False) as pipe:
                        for at in range(start, min(start + AT_ONCE * 10, len(keys)), AT_ONCE):
                            some = zip(keys[at : at + AT_ONCE], predictions[at : at + AT_ONCE], strict=True)
                            cast("Any", pipe).execute_command(
                                "HSET", building, *(part for pair in some for part in pair)
                            )
                        pipe.expire(building, BUILDING_SECONDS)
                        pipe.execute()
                    alive()
                failpoint("lookup_build")
        except BaseException:
            with contextlib.suppress(Exception):  # else it expires
                self._writing.unlink(building)
            raise
        return entries.keys

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
            return catalogue.home == self._known_id()
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


class RedisIndex:
    """An index that is served. Each answer is of it, whole, or there is none."""

    def __init__(self, store: LookupRedis, key: str, held: Held, mark: object) -> None:
        self.number, self.data_date, self.data_time, self.rows = held.number, held.data_date, held.data_time, held.rows
        self.keys = held.codec
        self.mark = mark
        self.is_gone = False
        self._store, self._key, self._marker = store, key.encode(), held.build.encode()

    def get(self, key: bytes) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        store = self._store
        with store._told_of_reading():
            found = cast("Any", store._reading).execute_command("HMGET", self._key, MARKER, *keys)
        answer = self._checked(found)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    def ask(self, keys: Sequence[bytes], then: Callable[[list[bytes | None] | StorageError], None]) -> None:
        self._store.link.ask((b"HMGET", self._key, MARKER, *keys), lambda reply: then(self._checked(reply)))

    def _checked(self, reply: Any) -> list[bytes | None] | StorageError:
        """The predictions in a reply to MARKER and keys."""
        if type(reply) is list and reply[0] == self._marker:
            del reply[0]
            return cast("list[bytes | None]", reply)
        if isinstance(reply, StorageError):
            return reply
        what = f"Version {self.number} of the lookups of {self._store.model!r} in {self._store.address.shown}"
        if type(reply) is list:
            self.is_gone = True
            return StorageError(f"{what} is no longer there. It has no answers until it was filled again.")
        return StorageError(f"{what} cannot be read: {cause(str(reply))}.")

    def close(self) -> None:
        """There is nothing to let go of: the store has the connection."""


class _Lock:
    """Who follows the table. It expires, so that whoever dies keeps nobody from it."""

    def __init__(self, client: Redis, name: str) -> None:
        self._client, self._name = client, name
        self.who = ""  # another name each time that it is taken
        self._renewed = 0.0

    @contextlib.contextmanager
    def held(self, model: str) -> Iterator[None]:
        """Raises BusyError once it has waited for too long."""
        self.who = secrets.token_hex(8)
        deadline = time.monotonic() + PATIENCE
        while not self._client.set(self._name, self.who, nx=True, px=int(LOCK_SECONDS * 1000)):
            if time.monotonic() > deadline:
                raise BusyError(
                    f"Another process, perhaps on another host, is filling the lookups of {model!r}. Start this again when "
                    "it is done."
                )
            time.sleep(0.05)
        self._renewed = time.monotonic()
        try:
            yield
        finally:
            with contextlib.suppress(Exception), self._client.pipeline(transaction=True) as pipe:  # else it expires
                self.watch(pipe)
                pipe.multi()
                pipe.delete(self._name)
                pipe.execute()

    def renew(self) -> None:
        """Called all the time. Raises BusyError where somebody else has it."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        with self._client.pipeline(transaction=True) as pipe:
            self.watch(pipe)
            pipe.multi()
            pipe.pexpire(self._name, int(LOCK_SECONDS * 1000))
            self.commit(pipe)
        self._renewed = time.monotonic()

    def watch(self, pipe: Any) -> None:
        """Begin a transaction that happens only while this is ours. Raises BusyError."""
        pipe.watch(self._name)
        if pipe.get(self._name) != self.who.encode():
            raise _taken_over()

    def commit(self, pipe: Any) -> None:
        """Raises BusyError where it did not happen."""
        from redis.exceptions import WatchError

        try:
            pipe.execute()
        except WatchError:
            raise _taken_over() from None


def _taken_over() -> BusyError:
    return BusyError(
        "Another process has taken over the lookups, because this one gave no sign of life for too long. It goes on."
    )


def home_id_path(home: Place) -> Place:
    return home / ".sereno" / "home-id"


def read_home_id(home: Place) -> str:
    """Empty where it has none: nothing was ever put into a shared store from there, or it is not on this host."""
    try:
        return home_id_path(home).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _mark_of(catalogue: Catalogue | None) -> object:
    pointer = catalogue.pointer if catalogue is not None else None
    return (pointer.index, pointer.build) if pointer is not None else None


def _is_newer(number: int, catalogue: Catalogue | None) -> bool:
    pointer = catalogue.pointer if catalogue is not None else None
    return pointer is not None and bool(pointer.index) and number > int(pointer.index.partition("-")[0])
