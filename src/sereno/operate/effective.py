"""The settings that count, each with where it comes from: what `sereno config` prints. What may be a secret is masked."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sereno.config import secret_origin, variable_of
from sereno.exceptions import SerenoError, SettingsError
from sereno.operate.declared import loaded
from sereno.serve.guard import SECRET as API_KEYS
from sereno.settings import FILE_NAME, SETTINGS, ModelSettings, Settings, is_secret_name, redact

if TYPE_CHECKING:
    from sereno.model import Model

Kind = Literal["default", "model file", "sereno.toml", "environment", "platform", "variable", "command line"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a setting comes from."""

    kind: Kind
    where: str | None = None  # "SERENO_WORKERS", "/srv/sereno.toml:12"; None: the kind says it

    def __str__(self) -> str:
        return self.where if self.where is not None else self.kind


@dataclass(frozen=True, kw_only=True)
class Effective:
    """One setting."""

    name: str  # dotted
    value: object  # as JSON has it, masked; None: it is not set
    origin: Origin

    def to_dict(self) -> dict[str, object]:
        origin = {"origin": self.origin.kind, "where": self.origin.where}
        return {"name": self.name, "value": self.value, **origin, "variable": variable_of(self.name)}


@dataclass(frozen=True, kw_only=True)
class NamedSecret:
    """A secret that something asks for; what it is stands nowhere here."""

    name: str
    wanted_by: str
    where: str | None  # in words; None: it is nowhere


@dataclass(kw_only=True)
class Effectives:
    """All of them."""

    settings: list[Effective] = field(default_factory=list)
    secrets: list[NamedSecret] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)  # why this is not all, or would be refused

    def say_platform(self, variables: Collection[str], said_by: str) -> None:
        """Some variables are there only because of what a platform says: name that instead."""
        for place, one in enumerate(self.settings):
            if one.origin.kind == "variable" and one.origin.where in variables:
                self.settings[place] = replace(one, origin=Origin(kind="platform", where=said_by))


def effective(
    load: Callable[[Path], Settings], start: Path, *, file: Path | None = None, env: str | None = None
) -> Effectives:
    """The settings as `load` reads them from a place on, and those of the models they name; or of one model file's.

    Model files are read, as they may declare some; what cannot be read becomes a trouble. Raises SettingsError.
    """
    settings = load(start)
    origins = _Origins(env)
    found = Effectives(settings=list(_of_all(settings, origins)))
    if (where := secret_origin(API_KEYS, settings)) is not None:
        found.secrets.append(NamedSecret(name=API_KEYS, wanted_by="the API", where=where))
    found.secrets += _of_notices(settings, settings.notify, "notify")
    named: Sequence[tuple[str, Path | None]] = [(name, one.file) for name, one in settings.models.items()]
    for name, path in named if file is None else [("", file)]:
        if path is None:
            _add_model(found, settings, origins, name, settings.given_for(name), {}, None)
        else:
            _add_file(found, load, origins, name, path)
    return found


class _Origins:
    """Where settings come from, by what their `Settings` says in words; lines of `sereno.toml` are looked up once."""

    def __init__(self, env: str | None) -> None:
        self._env = env
        self._lines: dict[Path, dict[str, int]] = {}

    def of(self, settings: Settings, name: str) -> Origin:
        said = settings.origins.get(name)
        if said is None:
            return Origin(kind="default")
        if said == "the command line":
            return Origin(kind="command line")
        if said.startswith("the variable "):
            return Origin(kind="variable", where=said.removeprefix("the variable ").replace(", which names ", "="))
        in_environment = said.startswith("[env.")
        file = (settings.folder or settings.home) / FILE_NAME
        if file not in self._lines:
            self._lines[file] = lines_of(file)
        line = self._lines[file].get(f"env.{self._env}.{name}" if in_environment else name)
        where = f"{file}:{line}" if line else str(file)
        return (
            Origin(kind="environment", where=f"[env.{self._env}] {where}")
            if in_environment
            else Origin(kind="sereno.toml", where=where)
        )


def lines_of(file: Path) -> dict[str, int]:
    """Dotted key → the line of a TOML file on which it is set, from 1 on. The file is one that could be read before."""
    found: dict[str, int] = {}
    header, statement, began = "", "", 1
    for number, line in enumerate(file.read_text("utf-8").splitlines(keepends=True), 1):
        began = began if statement else number
        statement += line
        try:
            tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # it goes on in the next line
        if statement.lstrip().startswith("["):
            header = statement
        else:
            for key in _keys(tomllib.loads(header + "\n" + statement)):
                found[".".join(key)] = began
        statement = ""
    return found


def _keys(table: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _keys(value, (*before, name))
        else:
            yield (*before, name)


def _of_all(settings: Settings, origins: _Origins) -> Iterator[Effective]:
    for name in SETTINGS:
        group, _, rest = name.partition(".")
        if group == "models":
            continue
        if group == "values":
            for own, one in settings.values.items():
                shown = "***" if is_secret_name(own) else _shown(one.value)
                yield Effective(name=f"values.{own}", value=shown, origin=origins.of(settings, f"values.{own}"))
            continue
        value = getattr(getattr(settings, group), rest) if rest else getattr(settings, group)
        yield Effective(name=name, value=_masked(name, value), origin=origins.of(settings, name))


def _add_file(found: Effectives, load: Callable[[Path], Settings], origins: _Origins, name: str, path: Path) -> None:
    """Add the settings of the model of a file, which may have a `sereno.toml` of its own."""
    settings = load(path)
    try:
        with loaded(path) as model:
            assert model.file is not None
            _add_model(found, settings, origins, model.name, settings.given_for(model.name), model.declared, model.file)
            found.secrets += _of_model(settings, model)
    except (SerenoError, OSError) as error:
        found.troubles.append(f"{path} cannot be read, so what it declares is not shown: {error}")
        if name:
            _add_model(found, settings, origins, name, settings.given_for(name), {}, None)


def _add_model(
    found: Effectives,
    settings: Settings,
    origins: _Origins,
    name: str,
    given: ModelSettings,
    declared: Mapping[str, object],
    file: Path | None,
) -> None:
    try:
        chosen = settings.model(name, declared, file.parent if file is not None else None)
    except SettingsError as error:
        found.troubles.append(str(error))
        chosen = given
    in_file = {key for key in chosen.given if key not in given.given}
    spelled = next((n for n in (name, name.replace("-", "_")) if n in settings.models), name)
    for short, value in _of_model_settings(chosen):
        origin = origins.of(settings, f"models.{spelled}.{short}")
        if short in in_file:
            origin = Origin(kind="model file", where=str(file))
        found.settings.append(Effective(name=f"models.{name}.{short}", value=_masked(short, value), origin=origin))
    found.secrets += _of_notices(settings, chosen.notify or (), f"models.{name}.notify")


def _of_model_settings(chosen: ModelSettings) -> Iterator[tuple[str, object]]:
    columns = "columns.COLUMN."
    for name in SETTINGS:
        short = name.removeprefix("models.NAME.")
        if short == name or short.startswith(columns):
            continue
        gate = short.removeprefix("gates.")
        yield short, getattr(chosen if gate == short else chosen.gates, gate)
    for column, own in chosen.columns.items():
        for name in SETTINGS:
            if name.startswith(f"models.NAME.{columns}"):
                short = name.removeprefix(f"models.NAME.{columns}")
                yield f"columns.{column}.{short}", getattr(own, short)


def _of_model(settings: Settings, model: Model) -> Iterator[NamedSecret]:
    """The secrets that its functions ask for, each once."""
    functions = (model.load_function, model.read_function, model.fetch_function, model.ready_function)
    names: dict[str, None] = {}
    for function in chain((f for f in functions if f is not None), model.gate_functions):
        with contextlib.suppress(SerenoError):
            names |= {p.name: None for p in model.parameters(function) if p.is_secret}
    for name in names:
        yield NamedSecret(name=name, wanted_by=model.name, where=secret_origin(name, settings))


def _of_notices(settings: Settings, addresses: Sequence[str], setting: str) -> Iterator[NamedSecret]:
    for address in addresses:
        if address.startswith("secret:"):
            name = address.removeprefix("secret:")
            yield NamedSecret(name=name, wanted_by=setting, where=secret_origin(name, settings))


def _masked(name: str, value: object) -> object:
    if name.rpartition(".")[2] == "notify" and isinstance(value, tuple):
        # any part of such an address may be a secret
        return [one if one.startswith("secret:") else f"{one.partition('://')[0]}://***" for one in value]
    return _shown(value)


def _shown(value: object) -> object:
    """A value as JSON has it, without passwords of addresses."""
    match value:
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            return [_shown(one) for one in value]
        case date() | time():  # a datetime is a date, too
            return value.isoformat()
    return redact(str(value))
