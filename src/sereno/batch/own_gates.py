"""The gates that a model file declares: functions under `@model.gate`, called with the profile and the predictions."""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.batch.gates import Gate
from sereno.batch.parts import WrittenPart
from sereno.batch.profile import ColumnProfile
from sereno.exceptions import PredictError, SerenoError, SettingsError
from sereno.frames import Form, to_form
from sereno.gate import Profile, Warn
from sereno.loader import bind
from sereno.model import Model, gate_name, place
from sereno.places import place_of, readable
from sereno.settings import Settings
from sereno.signals import NOT_THE_MODELS

LONGEST = 1_000  # characters of what a gate says
PREFIX = "gate "  # of their names among all gates


class Bound(NamedTuple):
    """A gate, and what it is called with beside the profile."""

    function: Callable[..., Any]
    form: Form | None  # of the predictions; None: it does not ask for them
    values: dict[str, Any]


def bind_own(model: Model, settings: Settings) -> list[Bound]:
    """The model's own gates with their values, before anything is scored for them.

    Raises SettingsError where nothing gives one a value, ModelFileError where it cannot be called.
    """
    bound = []
    for function in model.gate_functions:
        form = model.gate_form(function)
        try:
            values = bind(model, function, settings, given={}, skip=1 if form is None else 2)
        except SettingsError as error:
            raise SettingsError(f"{error}{_about_frames(function, settings)}") from error
        bound.append(Bound(function, form, values))
    return bound


def _about_frames(function: Callable[..., Any], settings: Settings) -> str:
    """What else may be wrong with a second parameter that is taken for a value."""
    second = next(itertools.islice(inspect.signature(function).parameters.values(), 1, None), None)
    if second is None or second.kind is not second.POSITIONAL_OR_KEYWORD or second.name in settings.values:
        return ""
    if second.annotation is not second.empty or second.default is not second.empty:
        return ""
    return (
        f" If {second.name!r} is to be the predictions, annotate it: `def {gate_name(function)}(profile, "
        f"{second.name}: pd.DataFrame)`."
    )


def judge_own(bound: Sequence[Bound], model: Model, profile: Profile, parts: Sequence[WrittenPart]) -> list[Gate]:
    """The verdicts of the model's own gates, in declared order, in this process.

    The predictions are read only if a gate asks for them, and then whole. Raises PredictError where a gate raises or
    answers what is no verdict.
    """
    predictions: pa.Table | None = None
    gates = []
    for function, form, values in bound:
        given: list[Any] = [_copied(profile)]
        if form is not None:
            if predictions is None:
                predictions = pa.concat_tables(_read(part) for part in parts)
            columns = [*model.inputs.keys, *model.outputs.columns]
            given.append(to_form(form, model.outputs, columns, predictions))
        try:
            answer = function(*given, **values)
        except (SerenoError, *NOT_THE_MODELS):
            raise
        except BaseException as error:  # also sys.exit(0), which would end the run as if all were well
            raise PredictError(
                f"{_where(function, error)}: gate {gate_name(function)} raised {type(error).__name__}: {_first_line(error)}. "
                "Nothing was published. Mend the gate, then run again."
            ) from error
        gates.append(_verdict(function, answer))
    return gates


def _read(part: WrittenPart) -> pa.Table:
    return pq.read_table(readable(place_of(part.path)), partitioning=None)


def _copied(profile: Profile) -> Profile:
    """The profile for one gate: what it writes into it is in no report, and no other gate sees it."""

    def columns(some: Mapping[str, ColumnProfile]) -> Mapping[str, ColumnProfile]:
        copies = {n: replace(c, bins=dict(c.bins), categories=dict(c.categories)) for n, c in some.items()}
        return MappingProxyType(copies)

    return Profile(inputs=columns(profile.inputs), outputs=columns(profile.outputs))


def own_gates(gates: Sequence[Gate]) -> list[Gate]:
    """Those of a report's gates that the model file declares. What they looked at does not change after the run."""
    return [gate for gate in gates if gate.name.startswith(PREFIX)]


def _verdict(function: Callable[..., Any], answer: Any) -> Gate:
    name = PREFIX + gate_name(function)
    if answer is None or (isinstance(answer, bool | np.bool_) and answer):
        return Gate(name=name, passed=True, says="passed")
    if isinstance(answer, bool | np.bool_):
        return Gate(name=name, passed=False, says=f"{gate_name(function)} returned False")
    if isinstance(answer, str) and answer.strip():
        if isinstance(answer, Warn):
            return Gate(name=name, passed=True, level="warned", says=_cut(answer))
        return Gate(name=name, passed=False, says=_cut(answer))
    raise PredictError(
        f"{place(function)}: gate {gate_name(function)} returned {answer!r:.200}. Valid are None or True (it passed), False or "
        'a text (hold the run), and sereno.Warn("…"). Nothing was published.'
    )


def _cut(text: str) -> str:
    """Of a gate's text, what a report can show. A plain text, whatever kind it was."""
    return str(text) if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _where(function: Callable[..., Any], error: BaseException) -> str:
    """`credit_scoring.py:57`: the last line of the gate's own file before the error."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if code is not None and f.filename == code.co_filename]
    return f"{Path(code.co_filename).name}:{lines[-1]}" if code is not None and lines else place(function)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:500]
