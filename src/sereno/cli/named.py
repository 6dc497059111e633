"""What a command names: the settings, the model, its home, a run of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli.commands import SETTING
from sereno.exceptions import NotFoundError, SettingsError

if TYPE_CHECKING:
    from sereno.home import Home
    from sereno.model import Model
    from sereno.places import Place
    from sereno.settings import Settings


def settings_of(options: argparse.Namespace, start: Path, model: str | None = None) -> Settings:
    from sereno.config import load_settings

    return load_settings(start, home=options.home, env=options.env, overrides=overrides_of(options, model))


def overrides_of(options: argparse.Namespace, model: str | None = None) -> dict[str, str]:
    """Dotted keys and texts of what the command line sets."""
    overrides = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item!r} is not KEY=VALUE, e.g. --set values.warehouse=/data.")
        overrides[key] = value
    if getattr(options, "workers", None) is not None:
        overrides["workers"] = str(options.workers)
    if model is not None and getattr(options, "source", None) is not None:
        overrides[f"models.{model}.source"] = options.source
    overrides |= {
        name.removeprefix(SETTING): text
        for name, text in vars(options).items()
        if name.startswith(SETTING) and text is not None
    }
    return overrides


def model_of(options: argparse.Namespace) -> tuple[Model, Settings]:
    """The model that the command names, and its settings; the working folder becomes that of sereno.toml."""
    from sereno.config import find_home
    from sereno.loader import load_model
    from sereno.storage import told
    from sereno.unmeant import unmeant

    model = options.model_itself
    if model is not None:
        model.check()
    else:
        model = load_model(file_of(options))
    assert model.file is not None
    settings = settings_of(options, model.file, model.name)
    with told(f"The home {settings.home} cannot be used"):
        settings.home.mkdir(parents=True, exist_ok=True)
    for line in unmeant(model, settings):
        print(f"sereno: {line}", file=sys.stderr)
    os.chdir(find_home(model.file))  # so that relative paths in `read` mean the same from wherever it is started
    return model, settings


def file_of(options: argparse.Namespace, named: str | None = None) -> Path:
    """FILE is a path, or the name of a model that sereno.toml knows."""
    named = named or str(options.file)
    path = Path(named)
    if path.suffix or path.exists():
        return path
    from sereno.settings import nearest

    models = settings_of(options, Path.cwd()).models
    if named in models and models[named].file is not None:
        return models[named].file  # type: ignore[return-value]
    known = ", ".join(models) or "none"
    raise NotFoundError(
        f"There is no file {named}, and sereno.toml knows no model of that name (it knows: {known})."
        f"{nearest(named, models)} The folder is {Path.cwd()}."
    )


def models_in(settings: Settings) -> list[str]:
    """The models that were run in a home."""
    return sorted({f.name for part in ("predictions", ".sereno/runs") for f in _folders(settings.root / part)})


def _folders(place: Place) -> list[Place]:
    return list(place.iterdir()) if place.is_dir() else []


def home_of(options: argparse.Namespace) -> Home:
    """The home of the model that the command names."""
    from sereno.home import Home

    own = options.model_itself
    settings = settings_of(options, own.file if own is not None else Path.cwd())
    there = models_in(settings)
    name = own.name if own is not None else options.model
    if name is None:
        if len(there) != 1:
            raise SettingsError(f"Say which model: in {settings.root} there are {', '.join(there) or 'none'}.")
        name = there[0]
    home = Home(settings, name)
    if name not in there:
        raise NotFoundError(
            f"There is no model {name!r} in {settings.root} (there are: {', '.join(there) or 'none'}). Run it first, or say "
            "where it lies with --home."
        )
    return home


def home_of_run(options: argparse.Namespace) -> Home:
    """The home of the model that has the run which the command names."""
    from sereno.home import Home

    own = options.model_itself
    settings = settings_of(options, own.file if own is not None else Path.cwd())
    named = own.name if own is not None else options.model
    models = [named] if named else sorted(folder.name for folder in _folders(settings.root / ".sereno" / "runs"))
    found = []
    for name in models:
        home = Home(settings, name)
        with contextlib.suppress(NotFoundError):
            home.attempts.find(options.run)
            found.append(home)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"{', '.join(h.name for h in found)} have a run {options.run!r} each. Say which with --model."
        )
    known = ", ".join(models) or "none"
    raise NotFoundError(
        f"No model in {settings.root} has a run {options.run!r} (models: {known}). See `sereno runs MODEL`."
    )


def from_here(source: str) -> str:
    """A relative path on the command line is relative to where the command was typed."""
    from sereno.settings import IS_SQL
    from sereno.urls import is_url

    return source if IS_SQL.match(source) or is_url(source) or source.startswith("{") else os.path.abspath(source)


def who() -> str:
    """Who starts a run or decides something: the scheduler says it is "sereno", a person has the user's name."""
    import getpass

    if given := os.environ.get("SERENO_WHO"):
        return given
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
    return "user sereno" if name == "sereno" else name  # who is not the scheduler
