"""The connection of an API's worker to the server: asked on the event loop, where nothing may wait.

Commands leave in the order in which they came, and answers come in that order. What is not answered in time costs the
connection: an answer that came after all would be taken for that of another question.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import hiredis

from sereno.adapters.lookup_redis.address import CLOSED, CONNECT_SECONDS, NOT_REDIS, READ_SECONDS, Address, cause
from sereno.exceptions import StorageError

LOG = logging.getLogger("sereno.lookup")

AGAIN_SECONDS = 0.2  # between two tries to connect
LOOK_SECONDS = 0.1  # between two looks at what is not answered
KEEP_ALIVE_SECONDS = (
    30  # after which the system asks whether who is quiet is still there, which keeps a firewall from forgetting
)
Reply = Any  # bytes, a whole number, None, a list of them, or hiredis.ReplyError
Then = Callable[[Reply | StorageError], None]


class Link:
    """One connection, made when it is first needed, and made again where it was lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._loop = asyncio.get_running_loop()
        self.line: _Line | None = None  # whose answers are heeded
        self._transport: asyncio.Transport | None = None  # of it, once we are let in
        self._waiting: deque[tuple[float, Then]] = deque()  # sent, not answered: since when
        self._unsent: list[tuple[Sequence[Any], Then]] = []  # while it connects, and there is no trouble
        self._connecting: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None  # when it connects again
        self._tls: ssl.SSLContext | None = None  # made once, as it takes long
        self._trouble = ""  # why the last connection was lost, or none was made
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._is_closed = False
        self._users = 0

    @classmethod
    def shared(cls, address: Address) -> Link:
        """The one of this process. `release` it when it is needed no more."""
        loop = asyncio.get_running_loop()
        link = _links.get((id(loop), address))
        if link is None or link._loop is not loop:
            link = _links[id(loop), address] = cls(address)
        link._users += 1
        return link

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            _links.pop((id(self._loop), self.address), None)
            self.close()

    @property
    def waiting(self) -> int:
        """How many commands are not answered."""
        return len(self._waiting) + len(self._unsent)

    def ask(self, command: Sequence[Any], then: Then) -> None:
        """Send a command; `then` is called with its reply, later. With a StorageError where there is none.

        Once there was trouble, nobody waits for the next connection: it is made aside, and what is asked until then fails.
        """
        if self._transport is not None:
            self._send(self._transport, command, then)
            return
        if not self._trouble:
            self._unsent.append((command, then))
        else:
            self._loop.call_soon(then, self._error())
        self._connect()

    def close(self) -> None:
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._again is not None:
            self._again.cancel()
        self.lost("it was closed")

    # The connection

    def _connect(self) -> None:
        if self._connecting is None and self._again is None and not self._is_closed:
            self._connecting = self._loop.create_task(self._connected())

    def _connect_again(self) -> None:
        self._again = None
        self._connect()

    async def _connected(self) -> None:
        address, line = self.address, _Line(self)
        try:
            if self._tls is None and address.is_tls:
                self._tls = await asyncio.to_thread(address.tls)
            async with asyncio.timeout(CONNECT_SECONDS):
                if address.path:
                    await self._loop.create_unix_connection(lambda: line, address.path)
                else:
                    await self._loop.create_connection(lambda: line, address.host, address.port, ssl=self._tls)
                    _keep_alive(line.transport)
                self.line = line
                await self._greet(line.transport)
        except TimeoutError:
            self.lost(cause("Timeout connecting" if address.is_tls else TimeoutError()), line)
        except (OSError, ValueError, _RefusedError) as error:
            if isinstance(error, ssl.SSLError):
                self._tls = None  # its files may be others by now
            self.lost(cause(error), line)
        else:
            if self.line is line:
                self._is_open(line.transport)
        finally:
            self._connecting = None

    def _is_open(self, transport: asyncio.Transport) -> None:
        if self._trouble:
            LOG.info("lookups: %s answers again.", self.address.shown)
        self._trouble = ""
        self._transport = transport
        unsent, self._unsent = self._unsent, []
        for command, then in unsent:
            self._send(transport, command, then)

    async def _greet(self, transport: asyncio.Transport) -> None:
        """Raises _RefusedError where it is not let in."""
        for command in self.address.greeting():
            answered: asyncio.Future[Reply] = self._loop.create_future()
            self._send(transport, command, partial(_settle, answered))
            reply = await answered
            if isinstance(reply, StorageError):  # it was lost, which was told
                return
            # an older server has no names of clients, and some users may not set theirs
            if isinstance(reply, hiredis.ReplyError) and command[0] != "CLIENT":
                raise _RefusedError(cause(str(reply)))

    def _send(self, transport: asyncio.Transport, command: Sequence[Any], then: Then) -> None:
        self._waiting.append((monotonic(), then))
        transport.write(hiredis.pack_command(tuple(command)))
        if self._timer is None:
            self._wait()

    def answered(self, reply: Reply) -> None:
        if self._waiting:
            self._waiting.popleft()[1](reply)

    def lost(self, why: str, line: _Line | None = None) -> None:
        """There is no connection any more."""
        line, self.line = line or self.line, None
        was_idle = self._transport is not None and not self._waiting
        self._transport = None
        if line is not None and line.transport is not None:
            line.transport.abort()
        if self._again is None and not self._is_closed:
            self._again = self._loop.call_later(AGAIN_SECONDS, self._connect_again)
        if was_idle and not self._is_closed:
            return  # servers close what is quiet: who asks next waits for the next connection
        if why != self._trouble and not self._is_closed:
            LOG.error("lookups: there is no connection to %s: %s.", self.address.shown, why)
        self._trouble = why
        waiting = [then for _, then in self._waiting] + [then for _, then in self._unsent]
        self._waiting.clear()
        self._unsent.clear()
        for then in waiting:
            then(self._error())

    def _error(self) -> StorageError:
        return StorageError(f"{self.address.shown} does not answer: {self._trouble}.")

    # Time

    def _wait(self) -> None:
        self._looked = monotonic()
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        # a loop that was held up itself first reads what has come meanwhile
        was_held_up = now - self._looked > 2 * LOOK_SECONDS
        if self._waiting and now - self._waiting[0][0] > READ_SECONDS and not was_held_up:
            self.lost(f"it did not answer within {READ_SECONDS:g} seconds")
        if self._waiting:
            self._wait()


_links: dict[tuple[int, Address], Link] = {}  # by event loop and server


class _RefusedError(Exception):
    """The server does not let us in."""


def _keep_alive(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(AttributeError, OSError):  # not every system can set how often
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            sock.setsockopt(socket.IPPROTO_TCP, option, KEEP_ALIVE_SECONDS)


def _settle(answered: asyncio.Future[Reply], reply: Reply) -> None:
    if not answered.done():  # who waits may have given up
        answered.set_result(reply)


class _Line(asyncio.Protocol):
    """One connection of a link, which heeds what comes on it as long as no other has taken its place."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._reader = hiredis.Reader()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        reader, link = self._reader, self._link
        try:
            reader.feed(data)
            while link.line is self and (reply := reader.gets()) is not False:
                link.answered(reply)
        except hiredis.ProtocolError:
            link.lost(NOT_REDIS)

    def connection_lost(self, error: Exception | None) -> None:
        if self._link.line is self:
            self._link.lost(cause(error) if error is not None else CLOSED)
