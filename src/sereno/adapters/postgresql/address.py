"""Addresses of PostgreSQL databases, shown and told without their passwords."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from sereno.exceptions import MissingExtraError, SettingsError

_SECRET_OPTIONS = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, kw_only=True)
class Address:
    """`postgresql://USER:PASSWORD@HOST:PORT/DATABASE?schema=SCHEMA`, with any other option of libpq after the `?`."""

    url: str = field(repr=False)  # for libpq: without `schema`, which is not one of its options
    shown: str  # without any password
    schema: str
    _secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        try:
            parts = urlsplit(text)
            options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            # The reason may quote the address, and with it the password.
            raise SettingsError(
                "A PostgreSQL address cannot be read. It looks like postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
                "characters such as @ : / ? # % in a password are written as %40 %3A %2F %3F %23 %25."
            ) from None
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        secrets = {value for name, value in options if name in _SECRET_OPTIONS} | {password, unquote(password)}
        host = parts.netloc.rpartition("@")[2]
        given = [(name, value) for name, value in options if name != "schema"]
        public = [(name, value) for name, value in options if name not in _SECRET_OPTIONS]
        schema = dict(options).get("schema", "public")
        if not schema:
            raise SettingsError("The option `schema` of a PostgreSQL address is empty. Name one, or leave it out.")
        shown_netloc = f"{user}@{host}" if user else host
        return cls(
            url=urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(given, quote_via=quote), "")),
            # By hand: urlunsplit drops the slashes of an address without a host.
            shown=f"{parts.scheme}://{shown_netloc}{parts.path}"
            + (f"?{urlencode(public, safe='/')}" if public else ""),
            schema=schema,
            _secrets=tuple(sorted(secrets - {""}, key=len, reverse=True)),
        )

    def redact(self, message: str) -> str:
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return message


def require(module: str, what: str) -> None:
    """Say early that a package is missing: before anything is scored, and not after."""
    if find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs the package {module!r}, which is not installed: pip install 'sereno[postgresql]'"
        )
