"""Scoring: rows in, predictions and rejects out. The one caller of `predict`, for every door.

Every row that comes in goes out once: as a prediction, or refused with its reason (`rows in = predictions + rejects`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sereno.checks import Checked, check_table
from sereno.exceptions import InputError, OutputError, PredictError
from sereno.frames import form_of, from_answer, to_form
from sereno.model import Model, place
from sereno.rows import rows_to_table
from sereno.values import plain_value

if TYPE_CHECKING:
    from sereno.config import Settings

HOPELESS = 50  # rows that raise one after the other, none answered: the fault is the model's, not a row's


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of a batch of rows that fit the input type."""

    table: pa.Table  # keys and outputs, canonical, of the rows that were answered
    kept: npt.NDArray[np.int64] | None  # their positions in the batch; None: all of them
    refused: list[tuple[int, str]]  # position and reason of each other row


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `model.score` answers."""

    predictions: Any  # in the form of the rows that were given: keys and outputs
    rejects: list[tuple[int, str]]  # position in the rows given, and reason


class Scorer:
    """A loaded model, ready to score. One per process; not thread-safe where the model is not."""

    def __init__(self, model: Model, loaded: Any) -> None:
        self.model = model
        self.loaded = loaded
        assert model.predict_function is not None
        self._predict_function, self._place = model.predict_function, place(model.predict_function)
        inputs = model.inputs
        self._form, self._keys_form = model.form, model.keys_form
        self._features, self._keys = inputs.features, inputs.keys
        self._feature_names = [c.name for c in inputs.features]
        self._key_names = [c.name for c in inputs.keys]
        self._inputs, self._outputs = inputs, model.outputs
        self._schema = published_schema(model)

    @property
    def schema(self) -> pa.Schema:
        """Of a published prediction: keys, then outputs."""
        return self._schema

    def score(self, rows: pa.Table) -> Scored:
        """Score rows that fit the input type (canonical columns, as `check_table` gives them).

        Raises OutputError where an answer has other columns, types or rows than declared, and PredictError where
        predict raises on so many rows that the model, not the rows, must be at fault.
        """
        answers: list[pa.Table] = []
        kept: list[npt.NDArray[np.int64]] = []
        refused: list[tuple[int, str]] = []
        for start, part in self._predict(rows, refused):
            checked = self._check_answer(part, start)
            keys = rows.select(self._key_names).slice(start, part.num_rows)
            positions = np.arange(start, start + part.num_rows)
            if checked.kept is not None:
                keys = keys.take(pa.array(checked.kept))
                positions = positions[checked.kept]
            refused += [(start + i, f"output:{reason}") for i, reason in checked.refused]
            columns = [*keys.columns, *checked.table.columns]
            answers.append(pa.Table.from_arrays(columns, schema=self._schema))
            kept.append(positions)
        table = pa.concat_tables(answers) if answers else self._schema.empty_table()
        if not refused:
            return Scored(table=table, kept=None, refused=[])
        return Scored(table=table, kept=np.concatenate([np.empty(0, "int64"), *kept]), refused=sorted(refused))

    def _check_answer(self, answer: pa.Table, start: int) -> Checked:
        try:
            return check_table(self._outputs, answer)
        except InputError as error:
            raise OutputError(f"{self._place}: the answer of predict: {error}") from error

    def _predict(self, rows: pa.Table, refused: list[tuple[int, str]]) -> Iterator[tuple[int, pa.Table]]:
        """Answers of predict as (start, table), in order. Where it raises, halves are tried, down to the rows that cause it."""
        if rows.num_rows == 0:
            return
        spans = [(0, rows.num_rows)]
        raised = answered = 0
        while spans:
            start, size = spans.pop()
            part = rows.slice(start, size)
            try:
                answer = self.predict(part)
            except OutputError as error:
                raise OutputError(f"{self._place}: {error}") from error
            except Exception as error:
                if size > 1:
                    half = size // 2
                    spans += [(start + half, size - half), (start, half)]
                    continue
                raised += 1
                refused.append((start, f"predict raised {type(error).__name__}: {_first_line(error)}"))
                # fewer than HOPELESS rows may all be bad (a last batch of two, say): those are rejects like any other
                if raised >= HOPELESS and (not answered or raised > rows.num_rows // 2):
                    raise PredictError(
                        f"{self._place}: predict raised {type(error).__name__} on {raised} rows of a "
                        f"batch of {rows.num_rows} and answered {answered}: {_first_line(error)}. "
                        "Mend predict, then run again; `sereno check` shows the traceback."
                    ) from error
                continue
            answered += size
            yield start, answer

    def predict(self, rows: pa.Table) -> pa.Table:
        """What predict answers to these rows, its values unchecked. Raises OutputError, and whatever predict raises."""
        features = to_form(self._form, self._inputs, self._features, rows.select(self._feature_names))
        if self._keys_form is None:
            answer = self._predict_function(self.loaded, features)
        else:
            keys = to_form(self._keys_form, self._inputs, self._keys, rows.select(self._key_names))
            answer = self._predict_function(self.loaded, features, keys)
        return from_answer(answer, self._outputs, rows.num_rows)


def published_schema(model: Model) -> pa.Schema:
    """Of a published prediction: keys, then outputs."""
    return pa.schema([*model.inputs.arrow_schema(model.inputs.keys), *model.outputs.arrow_schema()])


def open_scorer(model: Model, settings: Settings) -> Scorer:
    """Check the artefacts, call `load` with them and with its values, and return the loaded model.

    Raises ArtifactError, SettingsError, and PredictError where `load` raises.
    """
    from sereno.loader import bind, checked_artifacts

    model.check()
    assert model.load_function is not None
    arguments = bind(model, model.load_function, settings, given=dict(checked_artifacts(model)))
    try:
        loaded = model.load_function(**arguments)
    except Exception as error:
        hint = ""
        if isinstance(error, AttributeError) and "__main__" in str(error):
            hint = (
                " The artefact was pickled in a program whose class was defined in `__main__`: move the class to a module "
                "beside the model file, import it in both, and save the artefact again."
            )
        raise PredictError(
            f"{place(model.load_function)}: load raised {type(error).__name__}: {str(error).rstrip('.')}.{hint}"
        ) from error
    return Scorer(model, loaded)


_SCORERS: dict[int, Scorer] = {}


def score_rows(model: Model, rows: Any) -> Scores:
    """What `Model.score` does."""
    from sereno.config import load_settings

    scorer = _SCORERS.get(id(model))
    if scorer is None:
        scorer = _SCORERS[id(model)] = open_scorer(model, load_settings(model.file or Path.cwd()))
    checked = _checked(model, rows)
    scored = scorer.score(checked.table)
    positions = np.arange(checked.table.num_rows) if checked.kept is None else checked.kept
    refused = [(int(positions[i]), reason) for i, reason in scored.refused]
    columns = [*model.inputs.keys, *model.outputs.columns]
    form = form_of(type(rows)) or "arrow"
    predictions = scored.table.to_pylist() if form == "rows" else to_form(form, model.outputs, columns, scored.table)
    return Scores(predictions=predictions, rejects=sorted(checked.refused + refused))


def _checked(model: Model, rows: Any) -> Checked:
    if isinstance(rows, list):
        return rows_to_table(model.inputs, rows)
    return check_table(model.inputs, arrow_of(rows))


def arrow_of(rows: Any, names: Collection[str] | None = None) -> pa.Table:
    """A frame of any kind as an Arrow table, with no other columns than these. Raises InputError for what is no frame."""
    if isinstance(rows, pa.RecordBatch):
        rows = pa.Table.from_batches([rows])
    if isinstance(rows, list) and all(isinstance(row, dict) for row in plain_value(rows)):
        rows = plain_value(rows)
        columns = [(n, [row.get(n) for row in rows]) for n in dict.fromkeys(n for row in rows for n in row)]
    elif isinstance(rows, pa.Table):
        columns = list(zip(rows.column_names, rows.columns, strict=True))
    elif form_of(type(rows)) == "pandas":
        columns = [(str(n), rows.iloc[:, k]) for k, n in enumerate(rows.columns)]
    elif type(rows).__module__.startswith("polars.") and hasattr(rows, "lazy"):
        columns = [(s.name, s.to_arrow()) for s in rows.lazy().collect().get_columns()]
    else:
        raise InputError(
            f"Rows came as {type(rows).__name__}. Valid are a pandas or polars DataFrame, a pyarrow Table, or a list of "
            "mappings."
        )
    chosen = [(n, c) for n, c in columns if names is None or n in names]
    return pa.Table.from_arrays([_arrow_column(n, c) for n, c in chosen], names=[n for n, _ in chosen])


def _arrow_column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        return pa.array(values, from_pandas=True)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(
            f"Column {name!r} of the frame mixes types: {error}. Give the column one type where it is read."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:500]
