"""Variables that set what nothing asks for, and look like ones that something does. Light: nothing heavy is imported.

Which models and values there are, no setting knows alone: a variable may be meant for a model that is run another time. So
these are told, not refused, and only where the name is nearly one that is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sereno.settings import Settings
from sereno.settings.variables import variable_of

if TYPE_CHECKING:
    from sereno.model import Model

NEAR = 0.8  # of difflib: `chrun` is so near to `churn`, `max_age` is not to `min_age`
VARIABLE = "the variable "


def unmeant(model: Model, settings: Settings) -> Iterator[str]:
    """What to tell of the variables, once a model is known."""
    yield from unmeant_models(settings, [model.name])
    asked = _asked(model, settings)
    given = {key for key, origin in settings.origins.items() if origin.startswith(VARIABLE)}
    for name in settings.values:
        near = _near(name, asked)
        # where both are set so, both are meant: the other one for another model
        if f"values.{name}" in given and near and f"values.{near}" not in given:
            yield (
                f"{_told(settings, f'values.{name}')}, but model {model.name!r} asks for no value {name!r}. Did you mean "
                f"{variable_of(f'values.{near}')}?"
            )


def unmeant_models(settings: Settings, there: Iterable[str]) -> Iterator[str]:
    """What to tell of variables for models that nothing but they knows. `there`: models that are known otherwise."""
    origins: dict[str, dict[str, str]] = {}
    for key, origin in settings.origins.items():
        if key.startswith("models."):
            origins.setdefault(key.split(".")[1], {})[key] = origin
    alone = {
        name
        for name, own in origins.items()
        if settings.models[name].file is None and all(origin.startswith(VARIABLE) for origin in own.values())
    }
    known = {name.replace("-", "_") for name in {*there, *(origins.keys() - alone)}}
    for name in sorted(alone):
        if near := _near(name.replace("-", "_"), known):
            key = min(origins[name])
            meant = variable_of(f"models.{near}.{key.split('.', 2)[2]}")
            yield f"{_told(settings, key)}, but no model {name!r} is known. Did you mean {meant}?"


def _asked(model: Model, settings: Settings) -> set[str]:
    """The names that a model's functions and its settings' texts ask for."""
    functions = (
        model.load_function,
        model.read_function,
        model.predict_function,
        model.fetch_function,
        model.ready_function,
        *model.gate_functions,
    )
    parameters = {name for one in functions if one is not None for name in _parameters(one)}
    texts = f"{model.declared} {vars(settings.given_for(model.name))}"
    return parameters | set(re.findall(r"\{(\w+)", texts))


def _parameters(function: object) -> Iterable[str]:
    import inspect

    return inspect.signature(function).parameters  # type: ignore[arg-type]


def _near(name: str, known: Iterable[str]) -> str:
    """The one of those that are known that it may have been meant for; "": it is known, or like none."""
    import difflib

    names = set(known)
    close = [] if name in names else difflib.get_close_matches(name, sorted(names), n=1, cutoff=NEAR)
    return close[0] if close else ""


def _told(settings: Settings, key: str) -> str:
    return f"{settings.origins[key].removeprefix(VARIABLE).partition(',')[0]} is set"
