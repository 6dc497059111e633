"""Settings: the command line, then `SERENO_*` variables, an environment, `sereno.toml` and the model file.

What can be set is in `settings.py`; this reads it. `docs/settings.md` tells it to users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sereno.exceptions import SettingsError
from sereno.settings import (
    FILE_NAME,
    PATH,
    PLACE,
    SETTINGS,
    ColumnSettings,
    GateSettings,
    Key,
    ModelSettings,
    RaySettings,
    ServeSettings,
    Setting,
    Settings,
    SparkSettings,
    UpSettings,
    Value,
    checked,
    find,
    invalid,
    listed,
    nearest,
    parse_list,
    redact,
    require,
)
from sereno.typed import options_given

__all__ = [
    "SETTINGS",
    "ColumnSettings",
    "GateSettings",
    "ModelSettings",
    "RaySettings",
    "ServeSettings",
    "Setting",
    "Settings",
    "SparkSettings",
    "UpSettings",
    "Value",
    "find_home",
    "load_settings",
    "redact",
    "secret",
    "secret_origin",
    "variable_of",
]

# Variables that are not settings.
_RESERVED = ("SERENO_ENV", "SERENO_WHO", "SERENO_TESTING", "SERENO_FAILPOINT")
_SECRET_PREFIX = "SERENO_SECRET_"
_OF_FILE = "_FILE"  # a variable that ends so names a file that has the text, as container platforms hand secrets over
# What Kubernetes sets in each pod for a service of that name, unless it is told not to.
_SERVICE_LINK = re.compile(r"SERENO_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    value: Any  # checked
    origin: str
    base: Path


_Entries = dict[Key, _Entry]


def find_home(start: Path) -> Path:
    """The folder of the nearest `sereno.toml` upwards from a file or folder, else the folder itself."""
    start = start.absolute()
    folder = start if start.is_dir() else start.parent
    return next((one for one in (folder, *folder.parents) if (one / FILE_NAME).is_file()), folder)


def load_settings(
    start: Path,
    *,
    home: Path | None = None,
    env: str | None = None,
    overrides: Mapping[str, str] = MappingProxyType({}),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read and check all settings for a model file or folder; raises SettingsError.

    `overrides` are dotted keys and texts from the command line; `home` and `env` are its options of that name.
    Without a `sereno.toml` from `start` upwards, that of `home` is read.
    """
    environ = os.environ if environ is None else environ
    folder, cwd = find_home(start), Path.cwd()
    if home is not None and not (folder / FILE_NAME).is_file():
        folder = home.absolute()
    entries = _read_file(folder / FILE_NAME, env or environ.get("SERENO_ENV"))

    # Variables first, so that the command line counts more. Names in both tell which model a variable means.
    told = {_split(name): text for name, text in overrides.items()}
    names = {*entries, *told}
    for variable in sorted(environ):
        if variable.startswith("SERENO_") and variable not in _RESERVED and not variable.startswith(_SECRET_PREFIX):
            _add_variable(entries, variable, environ, names)
    for key, text in told.items():
        _add_text(entries, key, text, "the command line", cwd)
    if home is not None:
        entries[("home",)] = _Entry(value=str(home), origin="the command line", base=cwd)
    settings = _assemble(_as_files_spell(entries), folder)
    moved = home is not None or "SERENO_HOME" in environ
    options = options_given(str(settings.home) if moved else None, env or environ.get("SERENO_ENV"), overrides)
    return replace(settings, folder=folder, given_options=options)


def _read_file(file: Path, env: str | None) -> _Entries:
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
    found: dict[str, _Entries] = {}
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


def _flatten(table: Mapping[str, Any], where: str, base: Path, prefix: Key = ()) -> Iterator[tuple[Key, _Entry]]:
    for name, raw in table.items():
        key = (*prefix, name)
        if find(key, where) is not None:
            yield key, _Entry(value=checked(key, raw, where), origin=where, base=base)
        elif isinstance(raw, dict):
            yield from _flatten(raw, where, base, key)
        else:
            dotted = ".".join(key)
            raise SettingsError(f"'{dotted}' in {where} is {redact(repr(raw))}; it is a table. Write [{dotted}].")


def _split(name: str) -> Key:
    key = tuple(name.split("."))
    require(key, "the command line")
    return key


def _add_variable(entries: _Entries, variable: str, environ: Mapping[str, str], names: Iterable[Key]) -> None:
    """Add what a variable says, or the file that it names. Raises SettingsError."""
    key, where = _variable_key(variable, names), f"the variable {variable}"
    plain = variable.removesuffix(_OF_FILE)
    if plain != variable and not _is_setting(key) and _is_setting(of_file := _variable_key(plain, names)):
        if plain in environ:
            raise SettingsError(f"{plain} and {variable} are both set, and mean the same setting. Unset one of them.")
        _add_file(entries, of_file, Path(environ[variable]), variable)
        return
    try:
        require(key, where, variable=True)
    except SettingsError as error:
        if _SERVICE_LINK.fullmatch(variable):
            raise SettingsError(
                f"{error} Kubernetes sets such a variable for a service whose name begins with 'sereno': set "
                "enableServiceLinks: false in the pod."
            ) from None
        raise
    _add_text(entries, key, environ[variable], where, Path.cwd())


def _add_file(entries: _Entries, key: Key, file: Path, variable: str) -> None:
    """Add what a file holds that a variable names: it may be a secret, so that no message shows it."""
    where = f"the variable {variable}, which names {file}"
    try:
        text = file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"'{'.'.join(key)}' cannot be read from {file}, which the variable {variable} names: {reason}. Write it there, or "
            f"set {variable.removesuffix(_OF_FILE)} instead."
        ) from None
    try:
        _add_text(entries, key, text, where, Path.cwd())
    except SettingsError:
        valid = require(key, where).kind.name
        raise SettingsError(
            f"'{'.'.join(key)}' is not valid in {file}, which the variable {variable} names. Valid: {valid}. What is there now is "
            "not shown."
        ) from None


def _is_setting(key: Key) -> bool:
    try:
        return find(key, "") is not None
    except SettingsError:
        return False


def variable_of(name: str) -> str:
    """The variable of a dotted setting."""
    group, _, rest = name.partition(".")
    spelled = rest if group == "values" and rest != rest.lower() else rest.upper().replace("-", "_").replace(".", "__")
    return f"SERENO_{group.upper()}{'__' if rest else ''}{spelled}"


def _variable_key(variable: str, names: Iterable[Key]) -> Key:
    """The key that a variable means; a name that is known elsewhere gives its spelling, "-" included."""
    given = variable.removeprefix("SERENO_").split("__")
    parts = [part.lower() for part in given]
    group, rest, given = parts[0], parts[1:], given[1:]
    column: list[str] = []
    if group == "models" and "columns" in rest[1:-2]:
        at = rest.index("columns", 1)
        rest, column = [*rest[: at + 1], rest[-1]], given[at + 1 : -1]
    # What is after the name has a fixed length, so that a name may hold "__".
    tail = 0 if group == "values" else 2 if rest[-2:-1] == ["gates"] or column else 1
    if group not in ("values", "models") or len(rest) <= tail:
        return tuple(parts)
    named = "__".join((given if group == "values" else rest)[: len(rest) - tail])
    name = _spelled(named, (k[1] for k in names if k[0] == group), variable)
    key = (group, name, *rest[len(rest) - tail :])
    if column:
        there = (k[3] for k in names if k[:3] == ("models", name, "columns"))
        key = (*key[:-1], _spelled("__".join(column), there, variable), key[-1])
    return key


def _spelled(name: str, known: Iterable[str], variable: str) -> str:
    """A name in a variable as it is spelled elsewhere, where capitals, small letters, "-" and "_" are not told apart.

    One that is not all in capitals is meant as it is written.
    """
    if name not in (name.upper(), name.lower()):
        return name
    same = sorted({one for one in known if one.lower().replace("-", "_") == name.lower().replace("-", "_")})
    if len(same) > 1:
        raise SettingsError(f"The variable {variable} may mean {listed(same)}. Use --set or {FILE_NAME} instead.")
    return same[0] if same else name.lower()


def _as_files_spell(entries: _Entries) -> _Entries:
    """The same with the names of models that variables alone know as their files spell them: "_" there may mean "-"."""
    names = {key[1] for key in entries if key[0] == "models"}
    by_variables = {name for name in names if "_" in name} - {
        key[1] for key, one in entries.items() if key[0] == "models" and not one.origin.startswith("the variable ")
    }
    meant = {
        name: _spelled_in(_path(file), name)
        for name in by_variables
        if (file := entries.get(("models", name, "file"))) is not None
    }
    return {(k[0], meant.get(k[1], k[1]), *k[2:]) if k[0] == "models" else k: one for k, one in entries.items()}


def _spelled_in(file: Path, name: str) -> str:
    """The name that a model file gives to its model, if it differs by "-" alone; the file is looked through, not run."""
    pattern = rf"""\bModel\(\s*(?:name\s*=\s*)?["']({name.replace("_", "[-_]")})["']"""
    try:
        found = re.search(pattern, file.read_text("utf-8", errors="replace"))
    except OSError:  # whoever needs the file says what is wrong with it
        return name
    return found[1] if found else name


def _path(entry: _Entry) -> Path:
    return Path(os.path.abspath(entry.base / Path(entry.value).expanduser()))  # abspath, not resolve: symlinks are kept


def _add_text(entries: _Entries, key: Key, text: str, where: str, base: Path) -> None:
    """Convert a text to the type of its setting; that of a value is the type that sereno.toml gave it."""
    kind = require(key, where).kind
    before = entries[key].value if key[0] == "values" and key in entries else ""
    raw: object
    try:
        raw = kind.parse(text) if isinstance(before, str) else _parse_like(before, text)
    except ValueError:
        valid = kind.name if isinstance(before, str) else f"{type(before).__name__}, as in {entries[key].origin}"
        raise SettingsError(invalid(key, text, where, valid)) from None
    entries[key] = _Entry(value=checked(key, raw, where), origin=where, base=base)


def _parse_like(before: object, text: str) -> object:
    import tomllib

    parsed = parse_list(text) if isinstance(before, list) else tomllib.loads(f"value = {text}")["value"]
    if isinstance(before, float) and type(parsed) is int:
        return float(parsed)
    if type(parsed) is not type(before):
        raise ValueError
    return parsed


def _assemble(entries: _Entries, folder: Path) -> Settings:
    values: dict[str, Value] = {}
    models: dict[str, dict[str, Any]] = {}
    gates: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    given: dict[str, dict[str, Path]] = {}
    groups: dict[str, dict[str, Any]] = {"serve": {}, "up": {}, "ray": {}, "spark": {}}
    top: dict[str, Any] = {"home": folder}
    for key, entry in entries.items():
        value = entry.value
        kind = require(key, entry.origin).kind
        if kind is PLACE and "://" in value:
            from sereno.places import place_of  # dear, and most have none

            value = place_of(value)
        elif kind in (PATH, PLACE):
            value = _path(entry)
        if key[0] == "values":
            values[key[1]] = Value(value=value, base=entry.base)
        elif key[0] == "models":
            if key[2] == "columns":
                columns.setdefault(key[1], {}).setdefault(key[3], {})[key[-1]] = value
            else:
                (gates if key[2] == "gates" else models).setdefault(key[1], {})[key[-1]] = value
            given.setdefault(key[1], {})[".".join(key[2:])] = entry.base
        elif key[0] in groups:
            groups[key[0]][key[1]] = value
        else:
            top[key[0]] = value
    return Settings(
        **top,
        serve=ServeSettings(**groups["serve"]),
        up=UpSettings(**groups["up"]),
        ray=RaySettings(**groups["ray"]),
        spark=SparkSettings(**groups["spark"]),
        values=values,
        models={
            name: ModelSettings(
                **models.get(name, {}),
                gates=GateSettings(**gates.get(name, {})),
                columns={column: ColumnSettings(**own) for column, own in columns.get(name, {}).items()},
                given=bases,
            )
            for name, bases in given.items()
        },
        origins={".".join(key): entry.origin for key, entry in entries.items()},
    )


def secret(name: str, settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """The secret of that name, from its variable or else a file; raises SettingsError, which never shows one.

    The file is the one that the variable with `_FILE` after its name says, else that of its name in `secrets_folder`.
    """
    environ = os.environ if environ is None else environ
    variable, file = _place_of_secret(name, settings, environ)
    if environ.get(variable):
        return environ[variable]
    try:
        text = file.read_text("utf-8").rstrip("\r\n")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"The secret '{name}' cannot be read from {file}: {reason}. Or set {variable}.") from None
    if not text:
        raise SettingsError(f"There is no secret '{name}'. Set the variable {variable}, or write it to {file}.")
    return text


def secret_origin(name: str, settings: Settings, environ: Mapping[str, str] | None = None) -> str | None:
    """Where a secret is, in words, or None where it is nowhere. Whether it can be read is not asked. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    variable, file = _place_of_secret(name, settings, environ)
    if environ.get(variable):
        return f"the variable {variable}"
    if environ.get(variable + _OF_FILE):
        return f"the variable {variable}{_OF_FILE}, which names {file}"
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # it may be there: whoever reads it says what is wrong
        pass
    return f"the file {file}"


def _place_of_secret(name: str, settings: Settings, environ: Mapping[str, str]) -> tuple[str, Path]:
    """Its variable, and the file that is read where that is not set."""
    if not name.isidentifier():  # also keeps the path below inside its folder
        raise SettingsError(f"'{name}' cannot be the name of a secret. Use letters, digits and underscores.")
    variable = _SECRET_PREFIX + name.upper()
    return variable, Path(environ.get(variable + _OF_FILE) or settings.secrets_folder / name)
