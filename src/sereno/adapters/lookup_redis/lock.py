"""Who follows the table: a lock that expires, and that every transaction of its holder watches."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sereno.exceptions import BusyError

if TYPE_CHECKING:
    from redis import Redis

PATIENCE = 300.0  # seconds that one who builds an index may keep the next one waiting
LOCK_SECONDS = 6.0  # without a sign of life, somebody else may follow
RENEW_SECONDS = 1.5


class Lock:
    """It expires, so that whoever dies keeps nobody from following."""

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
