"""Secrets, each from its variable or else a file. What one is stands in no message."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sereno.exceptions import SettingsError
from sereno.settings.settings import Settings
from sereno.settings.variables import OF_FILE, SECRET_PREFIX


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
    if environ.get(variable + OF_FILE):
        return f"the variable {variable}{OF_FILE}, which names {file}"
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
    variable = SECRET_PREFIX + name.upper()
    return variable, Path(environ.get(variable + OF_FILE) or settings.secrets_folder / name)
