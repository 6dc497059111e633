"""Settings: the command line, then `SERENO_*` variables, an environment, `sereno.toml` and the model file.

What can be set, and how each of these is read, is in `settings/`; here it is put together. `docs/settings.md` tells it to users.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sereno.settings import (
    FILE_NAME,
    ColumnSettings,
    GateSettings,
    ModelSettings,
    RaySettings,
    ServeSettings,
    Settings,
    SparkSettings,
    UpSettings,
    Value,
)
from sereno.settings.entries import Entries, Entry, add_text, path_of
from sereno.settings.files import read_file
from sereno.settings.kinds import PATH, PLACE
from sereno.settings.secrets import secret, secret_origin
from sereno.settings.table import Key, require
from sereno.settings.variables import add_variables, as_files_spell, variable_of
from sereno.typed import options_given
from sereno.urls import is_url

__all__ = ["find_home", "load_settings", "secret", "secret_origin", "variable_of"]


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
    Without a `sereno.toml` from `start` upwards, that of `home` is read, or of the variable SERENO_HOME.
    """
    environ = os.environ if environ is None else environ
    folder, cwd = find_home(start), Path.cwd()
    elsewhere = home or (Path(environ["SERENO_HOME"]).expanduser() if "SERENO_HOME" in environ else None)
    if elsewhere is not None and not (folder / FILE_NAME).is_file():
        folder = elsewhere.absolute()
    entries = read_file(folder / FILE_NAME, env or environ.get("SERENO_ENV"))

    # Variables first, so that the command line counts more. Names in both tell which model a variable means.
    told = {_split(name): text for name, text in overrides.items()}
    names = {*entries, *told}
    add_variables(entries, environ, names)
    for key, text in told.items():
        add_text(entries, key, text, "the command line", cwd)
    if home is not None:
        entries[("home",)] = Entry(value=str(home), origin="the command line", base=cwd)
    settings = _assemble(as_files_spell(entries), folder)
    moved = home is not None or "SERENO_HOME" in environ
    options = options_given(str(settings.home) if moved else None, env or environ.get("SERENO_ENV"), overrides)
    return replace(settings, folder=folder, given_options=options)


def _split(name: str) -> Key:
    key = tuple(name.split("."))
    require(key, "the command line")
    return key


def _assemble(entries: Entries, folder: Path) -> Settings:
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
        if kind is PLACE and is_url(value):
            from sereno.places import place_of  # dear, and most have none

            value = place_of(value)
        elif kind in (PATH, PLACE):
            value = path_of(entry)
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
