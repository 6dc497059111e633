"""What the supervisor and its workers say to each other: one struct a message, sockets and memory as descriptors beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import msgspec

from sereno.lookup.where import Where

LONGEST = 160 * 1024  # bytes of a message, which is less than the kernel takes
MOST_DESCRIPTORS = 64
RESERVE = 1.0  # seconds of the time to drain, so that a worker ends by itself before it is killed


class Job(msgspec.Struct, tag=True, kw_only=True):
    """To a new worker: what it serves. With the board's descriptor."""

    files: list[str]  # model files
    home: str | None
    env: str | None
    overrides: dict[str, str]
    slot: int  # of the board
    workers: int
    watch: bool  # tell which files it reads
    verbose: bool  # tell tracebacks too


class Accept(msgspec.Struct, tag=True):
    """Take connections from the sockets of a place too. With their descriptors."""

    place: int


class Release(msgspec.Struct, tag=True):
    """Take no more connections from the sockets of a place: another worker does."""

    place: int


class Drain(msgspec.Struct, tag=True, kw_only=True):
    """Finish and end."""

    seconds: float  # at most
    accept_seconds: float | None  # go on accepting so long, while callers come; None: others accept from now on


class Belongs(msgspec.Struct, tag=True):
    """From a worker: files and folders that it reads, for --watch. Told again as more is known."""

    paths: list[str]


class Served(msgspec.Struct, kw_only=True):
    """A model that a worker serves."""

    name: str
    fingerprint: str
    tries: str  # a curl line, with URL in place of the server's; empty where it would be long
    home: str
    log_days: int | None  # how long its answers are kept; None: they are not logged
    storage: str = ""  # below which their table lies; empty: below the home
    is_looked_up: bool  # its published predictions can be asked for by key
    lookup_home: str = ""  # below which the folder of its lookups is; empty: below the home
    where: Where | None = None  # they are kept, if not in the home's folder
    awaits_run: bool = False  # but there are none yet, so whoever asks gets 503


class Ready(msgspec.Struct, tag=True):
    """From a worker: it could take connections."""

    models: list[Served]
    hang_seconds: float  # without a beat for longer, it hangs
    seen: str  # what the files looked like that it read


class Failed(msgspec.Struct, tag=True):
    """From a worker, its last word: it could not load."""

    kind: str  # of sereno.exceptions
    says: str


ToWorker = Job | Accept | Release | Drain
FromWorker = Belongs | Ready | Failed


class Control:
    """One end of the line between the supervisor and a worker. Messages arrive whole or not at all."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encode = msgspec.json.Encoder().encode

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """Our end, and the one that a new process inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ToWorker | FromWorker, descriptors: Sequence[int] = ()) -> None:
        """Raises OSError where the other end is gone, or has not read for long."""
        socket.send_fds(self._socket, [self._encode(message)], descriptors)

    def receive(self) -> tuple[bytes, list[int]]:
        """The next message; empty at the end. Raises BlockingIOError at the supervisor's end where there is none yet."""
        try:
            content, descriptors, _, _ = socket.recv_fds(
                self._socket, LONGEST, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:  # it died with messages unread
            return b"", []
        return content, descriptors

    def close(self) -> None:
        self._socket.close()


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


to_worker = msgspec.json.Decoder(ToWorker).decode
from_worker = msgspec.json.Decoder(FromWorker).decode
