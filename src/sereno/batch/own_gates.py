"""The gates that a model file declares: functions under `@model.gate`, called with the profile and the predictions."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.batch.gates import Gate
from sereno.batch.parts import WrittenPart
from sereno.config import Settings
from sereno.exceptions import PredictError, SerenoError
from sereno.frames import to_form
from sereno.gate import Profile, Warn
from sereno.loader import bind
from sereno.model import Model, gate_name, place
from sereno.signals import NOT_THE_MODELS

PREFIX = "gate "  # of their names among all gates


def judge_own(model: Model, settings: Settings, profile: Profile, parts: Sequence[WrittenPart]) -> list[Gate]:
    """The verdicts of the model's own gates, in declared order, in this process.

    The predictions are read only if a gate asks for them, and then whole. Raises PredictError where a gate raises or
    answers what is no verdict, SettingsError where nothing gives it a value.
    """
    predictions: pa.Table | None = None
    gates = []
    for function in model.gate_functions:
        given: list[Any] = [profile]
        form = model.gate_form(function)
        if form is not None:
            if predictions is None:
                predictions = pa.concat_tables(pq.read_table(part.path, partitioning=None) for part in parts)
            columns = [*model.inputs.keys, *model.outputs.columns]
            given.append(to_form(form, model.outputs, columns, predictions))
        values = bind(model, function, settings, given={}, skip=len(given))
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
            return Gate(name=name, passed=True, level="warned", says=str(answer))
        return Gate(name=name, passed=False, says=answer)
    raise PredictError(
        f"{place(function)}: gate {gate_name(function)} returned {answer!r:.200}. Valid are None or True (it passed), False or "
        'a text (hold the run), and sereno.Warn("…"). Nothing was published.'
    )


def _where(function: Callable[..., Any], error: BaseException) -> str:
    """`credit_scoring.py:57`: the last line of the gate's own file before the error."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if code is not None and f.filename == code.co_filename]
    return f"{Path(code.co_filename).name}:{lines[-1]}" if code is not None and lines else place(function)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:500]
