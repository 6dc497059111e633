"""An index in a server, as it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sereno.adapters.lookup_redis.address import cause
from sereno.adapters.lookup_redis.catalogue import MARKER, Held
from sereno.exceptions import StorageError

if TYPE_CHECKING:
    from sereno.adapters.lookup_redis.store import LookupRedis


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
