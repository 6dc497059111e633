"""What a setting may be: how it reads in the docs, how text becomes it, and the check, which says what would be valid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sereno.exceptions import SettingsError
from sereno.settings.redacting import redact
from sereno.urls import is_url, mistake_of

EXPORT_FORMATS = ("parquet", "csv", "jsonl")
NOTICE_KINDS = ("failed", "held", "late", "recovered")
IS_SQL = re.compile(r"\s*(select|with)\s", re.IGNORECASE)  # a source that is a query


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a setting may be: how it reads in the docs, how text becomes it, and the check."""

    name: str
    check: Callable[[Any], object]  # the value as it is kept; a ValueError adds a hint to the message
    parse: Callable[[str], object] = str


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for a name that is not known: the one that it may have been meant for, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names as messages list them."""
    return ", ".join(f"'{name}'" for name in names)


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number within bounds."""

    def check(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or raw < least or (most is not None and raw > most):
            raise ValueError
        return raw

    name = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"
    return Kind(name=name, check=check, parse=int)


def number(most: float | None) -> Kind:
    """A number from 0 on; None: whatever its size."""

    def check(raw: object) -> float:
        # Written as a chain so that NaN fails it.
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= (most or 1e308):
            raise ValueError
        return float(raw)

    return Kind(name=f"a number from 0 to {most:g}" if most else "a number, 0 or more", check=check, parse=float)


def text(name: str = "text") -> Kind:
    """Any text that is not blank."""

    def check(raw: object) -> str:
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError
        return raw

    return Kind(name=name, check=check)


def matching(name: str, pattern: str) -> Kind:
    """Texts that the pattern fits as a whole."""

    def check(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw, re.DOTALL):
            raise ValueError
        return raw

    return Kind(name=name, check=check)


def choice(*valid: str) -> Kind:
    """One of some texts."""

    def check(raw: object) -> str:
        if raw not in valid:
            raise ValueError(nearest(str(raw), valid))
        return str(raw)

    return Kind(name=" or ".join(f'"{one}"' for one in valid), check=check)


def _check_unknown(raw: object) -> str:
    if raw not in ("404", 404, "live") or isinstance(raw, float):
        raise ValueError(nearest(str(raw), ("404", "live")))
    return str(raw)


def _check_zone(raw: object) -> str:
    from zoneinfo import ZoneInfo, available_timezones

    if not isinstance(raw, str) or not raw:
        raise ValueError
    try:
        ZoneInfo(raw)
    except (KeyError, ValueError, OSError):  # OSError: "Europe" is a folder of zones
        raise ValueError(nearest(raw, available_timezones())) from None
    return raw


def _check_schedule(raw: object) -> str:
    from sereno.schedule import check_schedule

    if not isinstance(raw, str):
        raise ValueError
    try:
        return check_schedule(raw)
    except SettingsError as error:
        raise ValueError(str(error)) from None


def _check_exports(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"Write a list: [{redact(repr(raw))}]." if isinstance(raw, str) else "")
    for one in raw:
        if not isinstance(one, str) or not (one in EXPORT_FORMATS or re.match(r"postgresql://.", one)):
            kind = str(one).partition("://")[0]
            raise ValueError(f"{redact(repr(one))} is none of these." + nearest(kind, (*EXPORT_FORMATS, "postgresql")))
    if len(set(raw)) < len(raw):
        raise ValueError("One of them is there twice.")
    return tuple(raw)


def _check_notify(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError('Write a list: ["mailto://…"].' if isinstance(raw, str) else "")
    for place, one in enumerate(raw, 1):
        if not isinstance(one, str) or not re.fullmatch(r"[A-Za-z][\w+.-]*://\S.*|secret:[A-Za-z_]\w*", one):
            raise ValueError(f"Number {place} of them is none of these.")
    if len(set(raw)) < len(raw):
        raise ValueError("One of them is there twice.")
    return tuple(raw)


def parse_addresses(text: str) -> list[Any]:
    """Like any list, but an address may hold commas: each begins with its kind."""
    if text.lstrip().startswith("["):
        return parse_list(text)
    return [one for one in re.split(r"[,\s]+(?=[A-Za-z][\w+.-]*://|secret:)|\s+", text.strip().rstrip(",")) if one]


def _check_kinds(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"Write a list: [{raw!r}]." if isinstance(raw, str) else "")
    for one in raw:
        if one not in NOTICE_KINDS:
            raise ValueError(f"{one!r} is none of these." + nearest(str(one), NOTICE_KINDS))
    return tuple(dict.fromkeys(raw))


def _check_ready(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    if raw.lower() in ("auto", "off") and raw not in ("auto", "off"):
        raise ValueError(f"Did you mean '{raw.lower()}'?")
    return raw


def _check_texts(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple) or not all(isinstance(one, str) and one for one in raw):
        raise ValueError
    return tuple(raw)


def _check_bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def parse_list(text: str) -> list[Any]:
    """A list as TOML has it, or items with commas between. Raises ValueError."""
    import tomllib

    if text.lstrip().startswith("["):
        parsed: list[Any] = tomllib.loads(f"value = {text}")["value"]
        return parsed
    return [one.strip() for one in text.split(",") if one.strip()]


def _check_value(raw: object) -> object:
    if isinstance(raw, dict):
        raise ValueError
    return raw


def _check_place(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    if is_url(raw):
        if mistake := mistake_of(raw):
            raise ValueError(mistake)
        from sereno.places import place_of  # dear, and most have none

        try:
            place_of(raw)
        except SettingsError as error:
            raise ValueError(str(error)) from None
    return raw


def _check_path(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    if is_url(raw):
        raise ValueError("That is a URL: what is read or written there is named by 'storage', a source or an artefact.")
    return raw


PATH = Kind(name="a path", check=_check_path)
PLACE = Kind(name='a path or a URL, "s3://…", "gs://…" or "az://…"', check=_check_place)
SOURCE = text("a path or a query")
ADDRESS = text("the address of a database")
SCHEDULE = Kind(name="five fields of cron", check=_check_schedule)
ZONE = Kind(name='a time zone, like "Europe/Madrid"', check=_check_zone)
VALUE = Kind(name="text, a number, true or false, a date or a list", check=_check_value)
LEDGER = matching('an address, "postgresql://…"', "postgresql://.+")
LOOKUP_STORE = matching('an address, "redis://…", "rediss://…" or "unix://…"', "(rediss?|unix)://.+")
PREFIX = matching("letters, digits and ._-", "[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
READY = Kind(name='"auto", "off" or a path', check=_check_ready)
TEXTS = Kind(name="a list of texts", check=_check_texts, parse=parse_list)
BOOL = Kind(
    name="true or false", check=_check_bool, parse=lambda text: {"true": True, "false": False}.get(text.lower(), text)
)
UNKNOWN = Kind(name='"404" or "live"', check=_check_unknown)
MODE = matching('the mode of a file, like "0660"', "0?[0-7]{3}")
NOTIFY = Kind(name='a list of addresses, "mailto://…", or "secret:NAME"', check=_check_notify, parse=parse_addresses)
KINDS = Kind(
    name=f"a list of {', '.join(map(repr, NOTICE_KINDS))}".replace("'", '"'), check=_check_kinds, parse=parse_list
)
EXPORTS = Kind(name='a list of "parquet", "csv", "jsonl" or "postgresql://…"', check=_check_exports, parse=parse_list)
