"""A lookup as its caller sees it: how a key is sent, and what comes back. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from urllib.parse import quote

from sereno.values import plain_value

UNKNOWN_KEY = "There is no prediction under this key."  # what a server says; its other 404 is about the path


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What is published under a key, and how old it is."""

    prediction: dict[str, Any]  # JSON values: dates and decimals are texts
    version: int | None  # the snapshot that it is of; None: it was predicted just now
    data_date: date | None  # of that snapshot; None: likewise
    data_time: datetime  # UTC: the end of the data that went into it
    age_seconds: int  # since then, when the server answered
    stale: bool  # older than the server's max_age_seconds
    origin: Literal["lookup", "live"]


def key_path(key: Any) -> str:
    """A key as segments of a URL, one for each of its values: whatever they hold, they are one segment each.

    Raises TypeError.
    """
    values = key_value(key)
    return "/".join(_segment(str(one)) for one in (values if isinstance(values, list) else [values]))


def key_value(key: Any) -> Any:
    """A key as JSON has it: a value, also where it came in a tuple of its own, or the list of its values.

    Raises TypeError.
    """
    plain = plain_value(key)
    if not isinstance(plain, list):
        return _value(plain)
    values = [_value(one) for one in plain]
    return values[0] if len(values) == 1 else values


def key_values(keys: Sequence[Any]) -> list[Any]:
    """Several keys as JSON has them. Raises TypeError."""
    if isinstance(keys, str | bytes) or not hasattr(keys, "__iter__"):
        raise TypeError(f"The keys are of type {type(keys).__name__}. Give a list of keys.")
    return [key_value(key) for key in keys]


def _value(value: Any) -> int | str:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise TypeError(
        f"A key holds a value of type {type(value).__name__}. A key is a whole number, text or a date; one of several "
        "columns is a tuple of them."
    )


def _segment(text: str) -> str:
    # segments of dots alone mean other paths, to whoever stands in between
    return quote(text, safe="") if text not in (".", "..") else text.replace(".", "%2E")
