"""What one place says of one setting, checked, with where that is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sereno.exceptions import SettingsError
from sereno.settings.kinds import parse_list
from sereno.settings.table import Key, checked, invalid, require


@dataclass(frozen=True, kw_only=True)
class Entry:
    value: Any  # checked
    origin: str
    base: Path


Entries = dict[Key, Entry]


def path_of(entry: Entry) -> Path:
    """The path that it says, from the folder against which it resolves."""
    return Path(os.path.abspath(entry.base / Path(entry.value).expanduser()))  # abspath, not resolve: symlinks are kept


def add_text(entries: Entries, key: Key, text: str, where: str, base: Path) -> None:
    """Convert a text to the type of its setting; that of a value is the type that sereno.toml gave it."""
    kind = require(key, where).kind
    before = entries[key].value if key[0] == "values" and key in entries else ""
    raw: object
    try:
        raw = kind.parse(text) if isinstance(before, str) else _parse_like(before, text)
    except ValueError:
        valid = kind.name if isinstance(before, str) else f"{type(before).__name__}, as in {entries[key].origin}"
        raise SettingsError(invalid(key, text, where, valid)) from None
    entries[key] = Entry(value=checked(key, raw, where), origin=where, base=base)


def _parse_like(before: object, text: str) -> object:
    import tomllib

    parsed = parse_list(text) if isinstance(before, list) else tomllib.loads(f"value = {text}")["value"]
    if isinstance(before, float) and type(parsed) is int:
        return float(parsed)
    if type(parsed) is not type(before):
        raise ValueError
    return parsed
