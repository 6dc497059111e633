"""The table of settings, and the checks by name: which setting a key is, and whether what is given for it is valid.

`SETTINGS` has every one by its dotted name; the page `docs/settings.md` follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sereno.exceptions import SettingsError
from sereno.settings.groups import (
    ColumnSettings,
    GateSettings,
    ModelSettings,
    RaySettings,
    ServeSettings,
    SparkSettings,
    UpSettings,
)
from sereno.settings.kinds import (
    KINDS,
    LEDGER,
    LOOKUP_STORE,
    NOTICE_KINDS,
    NOTIFY,
    PATH,
    PLACE,
    PREFIX,
    VALUE,
    Kind,
    choice,
    listed,
    nearest,
    whole,
)
from sereno.settings.redacting import redact

FILE_NAME = "sereno.toml"
EXECUTORS = ("local", "ray", "spark")
Key = tuple[str, ...]  # a dotted name, split


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table of settings."""

    name: str  # dotted; NAME stands for the name of a model or value, COLUMN for that of an output or feature
    kind: Kind
    default: object
    about: str  # one sentence


def _rows(prefix: str, owner: type[Any]) -> Iterator[Setting]:
    for one in fields(owner):
        if "kind" in one.metadata:
            name, kind, about = prefix + one.name, one.metadata["kind"], one.metadata["about"]
            yield Setting(name=name, kind=kind, default=one.default, about=about)


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(name="home", kind=PATH, default=None, about="Where `predictions/`, `exports/` and `.sereno/` lie."),
        Setting(
            name="storage",
            kind=PLACE,
            default=None,
            about="Where what must last lies, in an object store or a folder; else in the home.",
        ),
        Setting(
            name="executor",
            kind=choice(*EXECUTORS),
            default="local",
            about="What hands the tasks of a run to workers: this machine's processes, a Ray or a Spark cluster.",
        ),
        Setting(
            name="workers",
            kind=whole(1),
            default=None,
            about="How many processes score; else one per core in a run, one in a server.",
        ),
        Setting(name="secrets_folder", kind=PATH, default="/run/secrets", about="Has a file for each secret."),
        Setting(
            name="ledger",
            kind=LEDGER,
            default=None,
            about="Where the ledger of runs is kept: a PostgreSQL database; else a file in `.sereno/`.",
        ),
        Setting(
            name="lookup_store",
            kind=LOOKUP_STORE,
            default=None,
            about="Where lookups are kept: a Redis or Valkey server, which several hosts share; else in `.sereno/` of `storage`.",
        ),
        Setting(
            name="lookup_prefix",
            kind=PREFIX,
            default="sereno",
            about="How names begin in `lookup_store`: homes that share a server have one each.",
        ),
        Setting(
            name="lookup_versions",
            kind=whole(1),
            default=2,
            about="How many versions `lookup_store` holds: what is served, and those that a rollback is to find there.",
        ),
        Setting(
            name="notify",
            kind=NOTIFY,
            default=(),
            about="Who is told of a run that needs somebody: addresses as apprise has them.",
        ),
        Setting(name="notify_on", kind=KINDS, default=NOTICE_KINDS, about="What they are told."),
        Setting(name="values.NAME", kind=VALUE, default=None, about="Fills a parameter NAME, or {NAME} in a source."),
        *_rows("serve.", ServeSettings),
        *_rows("up.", UpSettings),
        *_rows("ray.", RaySettings),
        *_rows("spark.", SparkSettings),
        *_rows("models.NAME.", ModelSettings),
        *_rows("models.NAME.gates.", GateSettings),
        *_rows("models.NAME.columns.COLUMN.", ColumnSettings),
    )
}


def find(key: Key, where: str, *, variable: bool = False) -> Setting | None:
    """The setting of a key, or None where the key is a table of them; raises on one that is unknown."""
    pattern = key
    if key[0] == "models" and len(key) > 1:
        check_model_name(key[1], where)
        pattern = (key[0], "NAME", *key[2:])
        if key[2:3] == ("columns",) and len(key) > 3:
            pattern = (*pattern[:3], "COLUMN", *key[4:])
    elif key[0] == "values" and len(key) > 1:
        if not key[1].isidentifier():
            what = f"'{key[1]}' from {where} cannot be the name of a value: it fills a parameter of that name."
            raise SettingsError(f"{what} Use letters, digits and underscores.")
        pattern = (key[0], "NAME", *key[2:])
    dotted = ".".join(pattern)
    if dotted in SETTINGS:
        return SETTINGS[dotted]
    if any(name.startswith(f"{dotted}.") for name in SETTINGS):
        return None

    depth = len(pattern) - 1
    beside = (tuple(name.split(".")) for name in SETTINGS)
    valid = list(dict.fromkeys(one[depth] for one in beside if len(one) > depth and one[:depth] == pattern[:-1]))
    if not depth and not variable and where.endswith(FILE_NAME) and not where.startswith("["):
        valid.append("env")
    spelled = "__".join(("SERENO", *key[:-1])).upper().replace("SERENO__", "SERENO_", 1).replace("-", "_")
    hint = nearest(key[-1], valid)
    if variable and hint:
        name = hint.split("'")[1].upper()
        hint = f" Did you mean {spelled}{'__' if depth else '_'}{name}?"
    raise SettingsError(
        f"There is no setting '{'.'.join(key)}', which {where} sets.{hint} "
        + (f"Valid there: {listed(valid)}." if valid else f"'{'.'.join(key[:-1])}' is itself a setting.")
    )


def require(key: Key, where: str, *, variable: bool = False) -> Setting:
    """The setting of a key; raises SettingsError for one that is unknown, or a table of them."""
    setting = find(key, where, variable=variable)
    if setting is None:
        raise SettingsError(f"'{'.'.join(key)}', which {where} sets, is a table. Name one of its settings after a dot.")
    return setting


def checked(key: Key, raw: object, where: str) -> Any:
    """What is given for a setting, as it is kept. `where` is said where it is not valid. Raises SettingsError."""
    kind = require(key, where).kind
    try:
        return kind.check(raw)
    except ValueError as error:
        raise SettingsError(invalid(key, raw, where, kind.name, str(error))) from None


_ADDRESSES = ("ledger", "lookup_store", "database")


def invalid(key: Key, raw: object, where: str, valid: str, hint: str = "") -> str:
    """The message for what is not valid; what may be a secret is not shown."""
    # any part of one may be a secret; so may all of a text that should have been an address
    is_secret = key[-1] == "notify" or (key[-1] in _ADDRESSES and "://" not in str(raw))
    shown = "***" if is_secret and key[0] != "values" else redact(repr(raw))
    return f"'{'.'.join(key)}' is {shown}, from {where}. Valid: {valid}. {hint.strip()}".rstrip()


def check_model_name(name: str, where: str) -> None:
    """Raise SettingsError where no model can be called so."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        what = f"'{redact(name)}' from {where} cannot be the name of a model."
        raise SettingsError(f"{what} Use up to 64 of a-z, 0-9, '-' and '_', the first a letter or digit.")
