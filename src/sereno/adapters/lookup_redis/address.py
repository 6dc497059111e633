"""Where a Redis server is: told without its password; and what went wrong with it, in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sereno.exceptions import MissingExtraError, SettingsError, StorageError

if TYPE_CHECKING:
    import ssl

    from redis import Redis

KINDS = ("redis", "rediss", "unix")
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
CONNECT_SECONDS = 1.0
READ_SECONDS = 0.5  # for whoever answers a request
WRITE_SECONDS = 30.0  # for whoever builds an index, whom nobody waits for


@dataclass(frozen=True, kw_only=True)
class Address:
    """`redis://USER:PASSWORD@HOST:PORT/DATABASE`; `rediss://` speaks TLS; `unix:///PATH?db=DATABASE` is a socket."""

    shown: str  # without the password
    host: str
    port: int
    path: str  # of a Unix socket; empty: a host
    database: int
    user: str
    password: str = field(repr=False)
    is_tls: bool
    files: tuple[tuple[str, str], ...]  # of TLS: OPTIONS → path

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises SettingsError, which never quotes the password."""
        try:
            parts = urlsplit(text)
            user, host, path = unquote(parts.username or ""), parts.hostname or "", parts.path
            if "#" in text or any(character.isspace() for character in parts.netloc):
                raise ValueError
            if set(text) & set("\r\n\t\0") or "%00" in text:
                raise ValueError
            text.encode()  # a variable may hold bytes that are no text
            host.encode("idna")
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            is_socket = parts.scheme == "unix"
            database = options.pop("db", "") if is_socket else path.strip("/")
            if parts.scheme not in KINDS or options.keys() - set(OPTIONS) or "" in options.values():
                raise ValueError
            if database and not (database.isascii() and database.isdigit()):
                raise ValueError
            # a path with an @ has the end of a password that should have been written with %
            if (not path or host or "@" in path) if is_socket else not host:
                raise ValueError
            port = 6379 if parts.port is None else parts.port
            if not port:
                raise ValueError
        except ValueError:  # its reason may quote the address, and with it the password
            raise SettingsError(
                "The address in 'lookup_store' cannot be read. It looks like redis://USER:PASSWORD@HOST:6379/0, with "
                f"rediss:// for TLS (and {', '.join(OPTIONS)} after a ?), or like unix:///run/valkey.sock?db=0; "
                "characters such as @ : / ? # % in a password are written as %40 %3A %2F %3F %23 %25."
            ) from None
        place = path if is_socket else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return cls(
            shown=f"{parts.scheme}://{f'{user}@' if user else ''}{place}{f'/{database}' if database and not is_socket else ''}",
            host=host,
            port=port,
            path=unquote(path) if is_socket else "",
            database=int(database or 0),
            user=user,
            password=unquote(parts.password or ""),
            is_tls=parts.scheme == "rediss",
            files=tuple(sorted(options.items())),
        )

    def client(self, seconds: float) -> Redis:
        """A client that waits; one for all who ask in this process."""
        return _client(self, seconds)

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError where a file of it is missing, or is none."""
        if not self.is_tls:
            return None
        import ssl

        self.check_files()
        files = dict(self.files)
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if "ssl_certfile" in files:
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
        return context

    def check_files(self) -> None:
        """Raises OSError, which names the file of TLS that is missing, as `ssl` does not."""
        for _, path in self.files:
            with open(path, "rb"):
                pass

    def greeting(self) -> list[tuple[Any, ...]]:
        """What a new connection says first."""
        said: list[tuple[Any, ...]] = []
        if self.user:  # who may need none
            said.append(("AUTH", self.user, self.password))
        elif self.password:
            said.append(("AUTH", self.password))
        said += [("CLIENT", "SETNAME", "sereno"), ("SELECT", str(self.database))]
        return said


@cache
def _client(address: Address, seconds: float) -> Redis:
    """It tries nothing twice: whoever asks knows better when to."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.connection import SSLConnection
    from redis.retry import Retry

    class Secured(SSLConnection):
        def _connect(self) -> Any:
            address.check_files()
            # who speaks no TLS waits for the rest of what it was told, and would keep us waiting as long as an answer may
            self.socket_timeout = CONNECT_SECONDS
            try:
                sock = super()._connect()  # type: ignore[no-untyped-call]
            finally:
                self.socket_timeout = seconds
            sock.settimeout(seconds)
            return sock

    place: dict[str, Any] = {"unix_socket_path": address.path}
    if not address.path:
        place = {"host": address.host, "port": address.port}
    if address.is_tls:
        place |= {"ssl": True, **dict(address.files)}
    client = Redis(
        **place,
        db=address.database,
        username=address.user or None,
        password=address.password or None,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        client_name="sereno",
    )
    if address.is_tls:
        client.connection_pool.connection_class = Secured
    return client


def require_redis() -> None:
    """Say early that a package is missing. Raises MissingExtraError."""
    for module in ("redis", "hiredis"):
        if find_spec(module) is None:
            raise MissingExtraError(
                f"The setting 'lookup_store' needs the package {module!r}, which is not installed: "
                "pip install 'sereno[redis]'"
            )


def cause(error: BaseException | str) -> str:
    """Why, in words that an operator can act on. Of what the server said, which never quotes a password."""
    said = str(error)
    for start, words in _CAUSES.items():
        if said.startswith(start):
            return words
    for one in (error, getattr(error, "__context__", None)):
        if isinstance(one, OSError) and one.filename:
            return f"{one.filename}: {one.strerror}"
        if isinstance(one, (ConnectionResetError, BrokenPipeError)):
            return CLOSED
    if isinstance(error, TimeoutError) or "imeout" in type(error).__name__:
        return "it did not answer in time"
    return said.rstrip(".") or type(error).__name__


NOT_REDIS = "what answers there does not speak Redis, or only in TLS (rediss://)"
CLOSED = (
    "it closed the connection, as it does when it ends, and to who does not speak TLS where it wants that (rediss://)"
)
_CAUSES = {
    "OOM": "its memory is full (maxmemory)",
    "command not allowed when used memory": "its memory is full (maxmemory)",
    "READONLY": "it is a replica, which takes no writes",
    "You can't write against a read only": "it is a replica, which takes no writes",
    "LOADING": "it is starting, and still loads its data",
    "Redis is loading": "it is starting, and still loads its data",
    "WRONGPASS": "it does not take this user and password",
    "invalid username-password": "it does not take this user and password",
    "NOAUTH": "it wants a password",
    "Authentication required": "it wants a password",
    "MOVED": "it is a cluster, which shares keys out; a single server is needed, or one with replicas",
    "CLUSTERDOWN": "it is a cluster that is down; a single server is needed, or one with replicas",
    "Timeout connecting": "it did not answer in time, or not in TLS (redis:// is without, rediss:// with)",
    "Connection closed": CLOSED,
    "Protocol Error": NOT_REDIS,
    "Protocol error": NOT_REDIS,
    "MISCONF": "it refuses writes, as it cannot save its data to disk",
}


@contextlib.contextmanager
def told(what: str, then: str = "") -> Iterator[None]:
    """Turn an error of the client into a StorageError that says what failed, why, and what to do."""
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as error:
        raise StorageError(f"{what}: {cause(error)}. {then}".rstrip()) from error
