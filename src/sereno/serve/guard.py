"""The one guard in front of every route: is this Host ours, does the caller have a key? Denied unless both are so.

It looks at the path as it was sent, and knows three paths that are free, byte by byte. So no spelling of another path
(`//predict`, `/livez/../predict`, `/%6civez`) gets around it, whatever the routes behind it make of that path.

Keys are random and long, so what is kept of one is a plain SHA-256: nobody can guess 256 bits, with a slow hash or a fast
one, and a slow one would let strangers keep the server busy.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from sereno.config import secret, secret_origin
from sereno.exceptions import SettingsError
from sereno.serve.wire import RequestError
from sereno.settings import Settings

FREE = frozenset({b"/livez", b"/readyz", b"/ping"})  # for whoever restarts us; they say nothing about a model
SECRET = "api_keys"  # SERENO_SECRET_API_KEYS, or the file of that name in the secrets folder
KEY_START = "sereno_"  # so that scanners of repositories and logs know a key when they see one
KEY = re.compile(KEY_START.encode() + rb"[A-Za-z0-9_-]{20,}")

_REMEMBERED = 1024  # values that were accepted before; more than a server meets, and too few to fill the memory
_LONGEST = 512  # bytes of a header that may hold a key
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[^\s:/@?#,\[\]]+)(?::[0-9]{0,5})?")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")
_LINE = re.compile(r"sha256:([0-9a-f]{64})(?:\s+(\S.*))?")


class NewKey(NamedTuple):
    """What `sereno key` prints."""

    key: str  # for the caller; shown once and kept nowhere
    line: str  # for the keys file


def new_key(name: str = "") -> NewKey:
    """A new key, and what the server needs to know it. `name` says in the file whose it is; raises SettingsError."""
    if not re.fullmatch(r"[\w.@-][\w .@-]{0,63}|", name):
        raise SettingsError(
            f"{name!r} cannot be the name of a key. Use up to 64 letters, digits, spaces and any of . @ _ -."
        )
    key = KEY_START + secrets.token_urlsafe(32)
    return NewKey(key, f"sha256:{_hash(key.encode())} {name}".rstrip())


def read_keys(settings: Settings, environ: Mapping[str, str] | None = None) -> list[bytes]:
    """The hashes of all keys (hex), of `serve.keys_file` and of the secret `api_keys`; empty where neither is there.

    Raises SettingsError where one is there and gives no key, or cannot be read: a server that should have had keys must
    not open without. No message shows a line.
    """
    environ = os.environ if environ is None else environ
    keys: list[bytes] = []
    file = settings.serve.keys_file
    if file is not None:
        keys += _parse(_read(file), f"The keys file {file}")
    if f"SERENO_SECRET_{SECRET.upper()}" in environ or secret_origin(SECRET, settings, environ) is not None:
        keys += _parse(secret(SECRET, settings, environ).replace(",", "\n"), f"The secret '{SECRET}'")
    return keys


class Guard:
    """See the module. One per process; `check` is called on the event loop."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        """Raises SettingsError: keys that cannot be read, a name in `allowed_hosts` that is none."""
        serve = settings.serve
        self._keys = read_keys(settings, environ)
        self._open = not self._keys
        names = [*_LOOPBACK, *(_allowed(name) for name in serve.allowed_hosts)]
        if serve.host not in ("0.0.0.0", "::"):
            names.append(_allowed(serve.host))
        self._names = frozenset(name.lower().encode() for name in names)
        # no page in a browser reaches a Unix socket, under no name
        self._any_host = serve.unix is not None or b"*" in self._names
        # Headers as they came, of requests that were let in: most are the same as those before them. Looking one up
        # compares it with a value only where all 64 bits of a hash agree whose secret is new in each process.
        self._hosts: set[bytes | None] = set()
        self._authorizations: set[bytes | None] = set()
        self.refused = {"host": 0, "origin": 0, "key": 0}  # requests, by what was wrong; for the metrics

    @property
    def wants_keys(self) -> bool:
        """Whether a caller needs a key."""
        return not self._open

    def check(
        self, path: bytes, host: bytes | None, authorization: bytes | None, origin: bytes | None = None
    ) -> RequestError | None:
        """Why this request gets no answer, or None where it may go on.

        `path` is as it was sent, without the query. Of an `X-API-Key`, pass `b"Bearer " + key` as `authorization`.
        """
        if (
            origin is None
            and (host in self._hosts or self._any_host)
            and (self._open or authorization in self._authorizations)
        ):
            return None
        return self._decide(path, host, authorization, origin)

    def knows(self, host: bytes | None, authorization: bytes | None) -> bool:
        """Whether `check` would let this caller in, at a path that is not free. Nothing is counted."""
        return self._is_ours(host) and (self._open or self._is_known(authorization))

    def check_scope(self, scope: MutableMapping[str, Any]) -> RequestError | None:
        """The same of an ASGI scope, HTTP or WebSocket."""
        path = scope["path"].encode("utf-8", "surrogateescape")
        raw = (scope.get("raw_path") or path).partition(b"?")[0]  # some servers leave the query there
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"authorization", b"x-api-key", b"origin"):
                if name in found:
                    return RequestError(400, f"The header {name.decode()} came twice. Send it once.")
                found[name] = value
        authorization = found.get(b"authorization")
        if not authorization and b"x-api-key" in found:
            authorization = b"Bearer " + found[b"x-api-key"]
        # free only if the routes see what was sent
        free = raw if raw == path else b""
        return self.check(free, found.get(b"host"), authorization, found.get(b"origin"))

    def _decide(
        self, path: bytes, host: bytes | None, authorization: bytes | None, origin: bytes | None
    ) -> RequestError | None:
        if path in FREE:
            return None
        if not self._is_ours(host):
            self.refused["host"] += 1
            return RequestError(
                400,
                "This server is not known under the Host of the request. Use one of its own names; whoever runs it can add "
                "names to the setting serve.allowed_hosts.",
            )
        if self._open:
            # With keys, another site's page has none to send. Without, a browser would let it open a WebSocket to us,
            # or send rows, in the name of whoever looks at that page.
            if origin is not None and not self._is_ours(origin.partition(b"://")[2]):
                self.refused["origin"] += 1
                return RequestError(
                    403,
                    "This server takes no requests from the pages of other sites. Whoever runs it can add the site's name to "
                    "the setting serve.allowed_hosts.",
                )
        elif not self._is_known(authorization):
            self.refused["key"] += 1
            if authorization is None:
                return RequestError(
                    401, "An API key is missing. Send the header 'Authorization: Bearer KEY', or 'X-API-Key: KEY'."
                )
            return RequestError(
                401,
                "The API key is not known here. Send 'Authorization: Bearer KEY' with a key that whoever runs this server "
                "gave you (`sereno key` makes one).",
            )
        return None

    def _is_ours(self, host: bytes | None) -> bool:
        if self._any_host or host in self._hosts:
            return True
        match = _HOST.fullmatch(host or b"")
        if match is None or match[1].lower() not in self._names:
            return False
        _remember(self._hosts, host)
        return True

    def _is_known(self, authorization: bytes | None) -> bool:
        if authorization in self._authorizations:
            return True
        if authorization is None or len(authorization) > _LONGEST:
            return False
        match = _BEARER.fullmatch(authorization.strip(b" \t"))
        if match is None:
            return False
        digest = _hash(match[1]).encode()
        known = 0
        for one in self._keys:  # all of them, so that the time does not tell which one was near
            known |= hmac.compare_digest(digest, one)
        if known:
            _remember(self._authorizations, authorization)
        return bool(known)


def _hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _remember(values: set[bytes | None], value: bytes | None) -> None:
    if len(values) >= _REMEMBERED:
        values.clear()
    values.add(value)


def _allowed(name: str) -> str:
    """A name of `allowed_hosts`, as it stands in a Host header without the port."""
    text = name.strip()
    try:
        address = ipaddress.ip_address(text.strip("[]"))
        return f"[{address}]" if address.version == 6 else str(address)
    except ValueError:
        pass
    if text != "*" and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", text):
        raise SettingsError(
            f"'serve.allowed_hosts' has {name!r}. Write names or addresses without scheme, path and port, such as "
            '"api.example.com"; "*" allows any.'
        )
    return text


def _read(file: Path) -> str:
    try:
        for place in (file, file.parent):
            mode = place.stat().st_mode
            if mode & stat.S_IWOTH and not (place.is_dir() and mode & stat.S_ISVTX):
                raise SettingsError(
                    f"The keys file {file} can be changed by every user of this machine ({place} has mode "
                    f"{stat.S_IMODE(mode):o}): any of them could add a key. `chmod o-w {place}`."
                )
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"The keys file {file} (setting serve.keys_file) cannot be read: {reason}. `sereno key` prints a key and the "
            "line for that file."
        ) from None


def _parse(text: str, what: str) -> list[bytes]:
    return list(_hashes(text.splitlines(), what))


def _hashes(lines: Iterable[str], what: str) -> Iterable[bytes]:
    found = False
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            # never the line itself: it may be a key that somebody wrote there
            raise SettingsError(
                f"{what}: line {number} is no hash of a key. Each line is 'sha256:', 64 digits 0-9a-f and, if you like, a "
                "name, as `sereno key` prints it; the key itself does not belong there."
            )
        found = True
        yield match[1].encode()
    if not found:
        raise SettingsError(f"{what} has no key. `sereno key` prints a key and the line for it.")
