"""The sockets that a server listens on. Made once and held by the supervisor as long as it lives, so that neither a reload
nor the death of a worker loses a connection that waits in one.

Several workers on a port have a socket each, among which the kernel spreads the connections (SO_REUSEPORT). The kernel
would let any other server of this user join them, so the supervisor makes sure first that it is alone.
"""

from __future__ import annotations

import array
import contextlib
import errno
import ipaddress
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sereno.exceptions import BusyError, SettingsError
from sereno.settings import ServeSettings, Settings
from sereno.storage import exclusive

BACKLOG = 2048  # connections that wait for a worker; the kernel may allow fewer
LONGEST_PATH = 107  # bytes of the address of a Unix socket

# Classic BPF over what arrives at a listening socket, from the TCP header on: let everything pass but a SYN.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)
_SO_ATTACH_FILTER = 26


@dataclass(kw_only=True)
class Listening:
    """What was opened. `places` has the sockets of each worker; with `is_shared` all workers take from those of place 0."""

    url: str  # under which a caller on this machine reaches it
    places: list[list[socket.socket]]
    is_shared: bool
    every: str | None = None  # the address that stands for all of this machine, where it listens on that
    unix: Path | None = None
    has_opened: bool = False
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # locks; free when the process ends

    @property
    def says(self) -> str:
        """Where it listens, for people."""
        unix = f" (Unix socket {self.unix})" if self.unix is not None else ""
        return (
            f"{self.url}{unix}"
            if self.every is None
            else f"{self.url} and all addresses of this machine ({self.every})"
        )

    def open(self) -> None:
        """Let callers connect: from now on somebody takes their connections, or will. Until then they are refused.

        Once more does no harm. Raises BusyError where another program began to listen meanwhile.
        """
        if self.has_opened:
            return
        for one in self.places:
            for sock in one:
                try:
                    sock.listen(BACKLOG)
                except OSError as error:
                    raise _told(error, *sock.getsockname()[:2]) from None
        if self.unix is not None:
            # It had another name until now: whoever finds the path can connect.
            _beside(self.unix).replace(self.unix)
        self.has_opened = True

    def close(self) -> None:
        """Take no more connections here; workers that were given a socket go on until they close theirs."""
        if self.unix is not None:
            self.unix.unlink(missing_ok=True)
            _beside(self.unix).unlink(missing_ok=True)
        for one in self.places:
            for sock in one:
                sock.close()
        self.places = [[] for _ in self.places]


def listen(serve: ServeSettings, workers: int) -> Listening:
    """Open what the settings name. Raises BusyError where another server has it, SettingsError where it cannot be."""
    scheme = "https" if serve.tls_certificate is not None else "http"
    if serve.unix is not None:
        return _listen_unix(serve.unix, int(serve.unix_mode, 8), scheme)
    addresses = resolve(serve.host)
    shared = workers == 1
    places: list[list[socket.socket]] = [[] for _ in range(workers)]
    with contextlib.ExitStack() as undo:
        locks = undo.enter_context(contextlib.ExitStack())
        port = serve.port
        if port:
            locks.enter_context(_lock(port))
        for family, address in addresses:
            if port and not shared:
                _bind(family, address, port, reuse=False).close()  # fails where anybody listens
            for place in places:
                sock = undo.enter_context(_bind(family, address, port, reuse=not shared))
                if not port:
                    port = sock.getsockname()[1]
                    locks.enter_context(_lock(port))
                place.append(sock)
        undo.pop_all()
    name = addresses[0][1]
    every = name if ipaddress.ip_address(name).is_unspecified else None
    if every is not None:
        name = "127.0.0.1" if ":" not in name else "::1"
    url = f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"
    return Listening(url=url, places=places, is_shared=shared, every=every, held=locks)


def resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses that a host name stands for on this machine. Raises SettingsError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(
            f"'serve.host' is {host!r}, which is no address of this machine ({error.strerror}). Use 127.0.0.1 for callers on "
            "this machine, 0.0.0.0 for all."
        ) from None
    addresses = {(family, str(address[0])): None for family, _, _, _, address in found}
    return sorted(addresses, key=lambda one: one[0] != socket.AF_INET)  # the one that people type comes first


def is_open(serve: ServeSettings) -> bool:
    """Whether others than the users of this machine can reach it."""
    return serve.unix is None and not all(ipaddress.ip_address(a).is_loopback for _, a in resolve(serve.host))


def refuse_openness(settings: Settings) -> None:
    """Raise SettingsError where a network could reach the server without keys or TLS, and nobody said that it may."""
    from sereno.serve.guard import SECRET, read_keys

    serve = settings.serve
    if not is_open(serve):
        return
    missing = []
    if not serve.no_auth and not read_keys(settings):
        missing.append(
            "API keys (`sereno key` makes one; its line goes into the file of --keys-file or SERENO_SERVE__KEYS_FILE, into "
            f"{settings.secrets_folder / SECRET}, or into SERENO_SECRET_{SECRET.upper()}), or say --no-auth "
            "(SERENO_SERVE__NO_AUTH=true): then whoever reaches the address may ask"
        )
    if serve.tls_certificate is None and not serve.tls_terminated_upstream:
        missing.append(
            "TLS (--tls-certificate and --tls-key, or SERENO_SERVE__TLS_CERTIFICATE and SERENO_SERVE__TLS_KEY), or say "
            "--tls-terminated-upstream (SERENO_SERVE__TLS_TERMINATED_UPSTREAM=true): then something in front of this server "
            "speaks TLS with the callers"
        )
    if missing:
        raise SettingsError(
            f"The address {serve.host} can be reached from other machines. It needs {'; and '.join(missing)}. Or listen on "
            "127.0.0.1 or a Unix socket (--unix PATH)."
        )


def stop_connects(sock: socket.socket) -> None:
    """Have the kernel ignore who wants to connect from now on; who is connected waits to be accepted.

    Closing a listening socket resets the connections that wait in it. So first nobody else may come. Whoever tries
    meanwhile is refused once the socket is closed, or reaches the next server on this port.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return  # the path of a Unix socket was removed
    program = array.array("B", b"".join(struct.pack("HBBI", *one) for one in _NO_SYN))
    with contextlib.suppress(OSError):  # a kernel that cannot: then a connection in this moment may be reset
        place, _ = program.buffer_info()
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), place))


def has_waiting(sockets: Sequence[socket.socket]) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _bind(family: socket.AddressFamily, address: str, port: int, *, reuse: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also while the last server's connections time out
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise _told(error, address, port) from None
    return sock


def _told(error: OSError, address: str, port: int) -> BusyError | SettingsError:
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            f"Port {port} of {address} is taken by another program. `ss -ltnp` shows which. End it, or choose another "
            "--port."
        )
    hint = ""
    if error.errno == errno.EACCES:
        hint = " Ports below 1024 are root's; put a proxy in front, or choose another --port."
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = " It is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all of its addresses."
    elif error.errno == errno.EAFNOSUPPORT:
        hint = " This machine has no IPv6: use an address like 127.0.0.1."
    return SettingsError(f"Cannot listen on port {port} of {address}: {error.strerror}.{hint}")


def _lock(port: int) -> socket.socket:
    """What only one server holds: a Unix socket under an abstract name, which has no file and ends with its process.

    It belongs to the same network namespace as the port, so that containers do not lock each other out. It is the port's,
    not the address's: 0.0.0.0 has the port of every other address too.
    """
    name = f"\0sereno {port}"
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(name)
        lock.listen(BACKLOG)  # each who asks for our pid stays in there
    except OSError:
        lock.close()
        raise BusyError(
            f"Port {port} is taken by another `sereno serve` (pid {_holder(name) or 'unknown'}). End it, "
            f"choose another --port, or send it a SIGHUP if it should read its files again."
        ) from None
    return lock


def _holder(name: str) -> int:
    """The pid of the process that listens there; 0 where the kernel does not say."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        caller.connect(name)
        pid: int = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
    return 0


def _listen_unix(path: Path, mode: int, scheme: str) -> Listening:
    if len(os.fsencode(path)) > LONGEST_PATH - len(".new"):
        raise SettingsError(
            f"The path of the Unix socket has {len(os.fsencode(path))} bytes ({path}); {LONGEST_PATH - 4} are the most. "
            "Choose a shorter one."
        )
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(contextlib.ExitStack())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            busy = f"The Unix socket {path} is taken by another `sereno serve` (pid {{pid}}). End it, or choose another path."
            held.enter_context(exclusive(path.with_name(path.name + ".lock"), busy))
            _refuse_foreign(path)
            new = _beside(path)
            new.unlink(missing_ok=True)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(os.fspath(new))
            new.chmod(mode)
        except OSError as error:
            raise SettingsError(f"The Unix socket {path} cannot be made: {error.strerror}.") from None
        undo.pop_all()
    return Listening(url=f"{scheme}://localhost", places=[[sock]], is_shared=True, unix=path, held=held)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _refuse_foreign(path: Path) -> None:
    """Raise unless nothing is there, or a socket that nobody listens on any more."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise SettingsError(f"{path} is there already, and is no Unix socket. Choose another path, or remove it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(os.fspath(path))
        except OSError:
            return
    raise BusyError(f"The Unix socket {path} is taken by another program. End it, or choose another path.")
