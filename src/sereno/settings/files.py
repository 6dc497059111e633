"""Settings from `sereno.toml`: its tables, and those of the environment that is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sereno.exceptions import SettingsError
from sereno.settings.entries import Entries, Entry
from sereno.settings.kinds import listed, nearest
from sereno.settings.redacting import redact
from sereno.settings.table import Key, checked, find


def read_file(file: Path, env: str | None) -> Entries:
    """What a `sereno.toml` says, if there is one, and an environment in it. Raises SettingsError."""
    import tomllib

    table: dict[str, Any] = {}
    if file.is_file():
        try:
            table = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"{file} cannot be read as TOML: {error}.") from None
    environments = table.pop("env", {})
    entries = dict(_flatten(table, str(file), file.parent))
    # Every environment is checked, also those not chosen: a mistake should not wait for production.
    found: dict[str, Entries] = {}
    if not isinstance(environments, dict):
        raise SettingsError(f"'env' in {file} is {environments!r}; it holds tables. Write [env.prod], say.")
    for name, part in environments.items():
        if not isinstance(part, dict):
            raise SettingsError(f"'env.{name}' in {file} is {redact(repr(part))}; it is a table. Write [env.{name}].")
        found[name] = dict(_flatten(part, f"[env.{name}] of {file}", file.parent))
    if env:
        if env not in found:
            there = f"It has {listed(found)}." if found else f"Add [env.{env}] there, or name no environment."
            raise SettingsError(f"There is no environment '{env}' in {file}.{nearest(env, found)} {there}")
        entries.update(found[env])
    return entries


def _flatten(table: Mapping[str, Any], where: str, base: Path, prefix: Key = ()) -> Iterator[tuple[Key, Entry]]:
    for name, raw in table.items():
        key = (*prefix, name)
        if find(key, where) is not None:
            yield key, Entry(value=checked(key, raw, where), origin=where, base=base)
        elif isinstance(raw, dict):
            yield from _flatten(raw, where, base, key)
        else:
            dotted = ".".join(key)
            raise SettingsError(f"'{dotted}' in {where} is {redact(repr(raw))}; it is a table. Write [{dotted}].")
