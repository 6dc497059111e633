"""Sereno puts a trained model into production: one plain Python file, scored by night, published whole or not at all.

Importing it loads nothing heavy and changes nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sereno.answers.read import read_answers as read_answers
    from sereno.client import AsyncClient as AsyncClient
    from sereno.client import Client as Client
    from sereno.exceptions import InvalidRowsError as InvalidRowsError
    from sereno.exceptions import SerenoError as SerenoError
    from sereno.exceptions import ServerError as ServerError
    from sereno.exceptions import UnavailableError as UnavailableError
    from sereno.exceptions import UnknownKeyError as UnknownKeyError
    from sereno.gate import Profile as Profile
    from sereno.gate import Warn as Warn
    from sereno.lookup.found import Lookup as Lookup
    from sereno.model import Model as Model
    from sereno.model import Secret as Secret
    from sereno.predictions import read_predictions as read_predictions
    from sereno.schedule import Interval as Interval
    from sereno.schema import Digits as Digits
    from sereno.schema import Fetched as Fetched
    from sereno.schema import Key as Key

__version__ = "0.1.0"

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "Digits": "schema",
    "Fetched": "schema",
    "Interval": "schedule",
    "InvalidRowsError": "exceptions",
    "Key": "schema",
    "Lookup": "lookup.found",
    "Model": "model",
    "Profile": "gate",
    "Secret": "model",
    "SerenoError": "exceptions",
    "ServerError": "exceptions",
    "UnavailableError": "exceptions",
    "UnknownKeyError": "exceptions",
    "Warn": "gate",
    "read_answers": "answers.read",
    "read_predictions": "predictions",
}
__all__ = [
    "AsyncClient",
    "Client",
    "Digits",
    "Fetched",
    "Interval",
    "InvalidRowsError",
    "Key",
    "Lookup",
    "Model",
    "Profile",
    "Secret",
    "SerenoError",
    "ServerError",
    "UnavailableError",
    "UnknownKeyError",
    "Warn",
    "read_answers",
    "read_predictions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sereno' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"sereno.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
