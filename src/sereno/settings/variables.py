"""Settings from variables, `SERENO_*`: which one a variable means, and what it says, or the file that it names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sereno.exceptions import SettingsError
from sereno.settings.entries import Entries, add_text, path_of
from sereno.settings.kinds import listed
from sereno.settings.table import FILE_NAME, Key, find, require

# Variables that are not settings.
_RESERVED = ("SERENO_ENV", "SERENO_WHO", "SERENO_TESTING", "SERENO_FAILPOINT")
SECRET_PREFIX = "SERENO_SECRET_"
OF_FILE = "_FILE"  # a variable that ends so names a file that has the text, as container platforms hand secrets over
# What Kubernetes sets in each pod for a service of that name, unless it is told not to.
_SERVICE_LINK = re.compile(r"SERENO_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


def add_variables(entries: Entries, environ: Mapping[str, str], names: Iterable[Key]) -> None:
    """Add what all of them say. `names`: where else names of models, values and columns are known. Raises SettingsError."""
    for variable in sorted(environ):
        if variable.startswith("SERENO_") and variable not in _RESERVED and not variable.startswith(SECRET_PREFIX):
            _add_variable(entries, variable, environ, names)


def _add_variable(entries: Entries, variable: str, environ: Mapping[str, str], names: Iterable[Key]) -> None:
    """Add what a variable says, or the file that it names. Raises SettingsError."""
    key, where = _variable_key(variable, names), f"the variable {variable}"
    plain = variable.removesuffix(OF_FILE)
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
    add_text(entries, key, environ[variable], where, Path.cwd())


def _add_file(entries: Entries, key: Key, file: Path, variable: str) -> None:
    """Add what a file holds that a variable names: it may be a secret, so that no message shows it."""
    where = f"the variable {variable}, which names {file}"
    try:
        text = file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"'{'.'.join(key)}' cannot be read from {file}, which the variable {variable} names: {reason}. Write it there, or "
            f"set {variable.removesuffix(OF_FILE)} instead."
        ) from None
    try:
        add_text(entries, key, text, where, Path.cwd())
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


def as_files_spell(entries: Entries) -> Entries:
    """The same with the names of models that variables alone know as their files spell them: "_" there may mean "-"."""
    names = {key[1] for key in entries if key[0] == "models"}
    by_variables = {name for name in names if "_" in name} - {
        key[1] for key, one in entries.items() if key[0] == "models" and not one.origin.startswith("the variable ")
    }
    meant = {
        name: _spelled_in(path_of(file), name)
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
