"""A Redis for as long as it is needed, and the little that is asked of it, without a client library."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from benchmarks.environments import CannotInstall
from benchmarks.peers_lookup.with_redis import START_LIMIT, command
from benchmarks.server import free_port

AT_ONCE = 10_000


class RedisFailed(ConnectionError):
    """A Redis refused what it was asked, or does not answer."""


def name_of(key: int) -> bytes:
    """The key as redis-benchmark writes it."""
    return b"prediction:%012d" % key


class Client:
    """One connection. Raises OSError and RedisFailed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self.replies = self.socket.makefile("rb")

    def close(self) -> None:
        self.replies.close()
        self.socket.close()

    def get(self, name: bytes) -> bytes | None:
        self.socket.sendall(_message(b"GET", name))
        return self._reply()

    def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        pairs = iter(pairs)
        while messages := [_message(b"SET", *pair) for pair in islice(pairs, AT_ONCE)]:
            self.socket.sendall(b"".join(messages))
            for _ in messages:
                self._reply()

    def save(self) -> None:
        """Write everything to disk, to be loaded at the next start."""
        self.socket.sendall(_message(b"SAVE"))
        self._reply()

    def _reply(self) -> bytes | None:
        line = self.replies.readline().rstrip()
        if not line or line.startswith(b"-"):
            raise RedisFailed(f"Redis said {line.decode() or 'nothing'}")
        if not line.startswith(b"$"):
            return line[1:]
        length = int(line[1:])
        return None if length < 0 else self.replies.read(length + 2)[:-2]


@contextmanager
def running(folder: Path) -> Iterator[Client]:
    """A Redis that has its data in a folder. It writes there only when told to `save`."""
    port = free_port()
    try:
        process = subprocess.Popen(command(folder, port), stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise CannotInstall("redis-server is not here (apt-get install redis-server redis-tools)") from error
    try:
        client = _connected(port)
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait()


def connected(port: int) -> Client:
    """Raises RedisFailed while it loads."""
    client = Client(port)
    client.get(b"anything")
    return client


def _connected(port: int) -> Client:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        with suppress(OSError, RedisFailed):
            return connected(port)
        time.sleep(0.02)
    raise RedisFailed(f"Redis did not answer in {START_LIMIT} s")


def _message(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
