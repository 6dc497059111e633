"""Scoring: rows in, predictions and rejects out. The one caller of `predict`, for every door.

Every row that comes in goes out once: as a prediction, or refused with its reason (`rows in = predictions + rejects`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sereno.checks import Checked, check_table
from sereno.exceptions import InputError, OutputError, PredictError
from sereno.frames import form_of, from_answer, to_form
from sereno.model import Model, place
from sereno.rows import Row, rows_to_table, table_of
from sereno.schema import Column
from sereno.signals import NOT_THE_MODELS
from sereno.values import plain_value

if TYPE_CHECKING:
    from sereno.settings import Settings

HOPELESS = 50  # rows that raise one after the other, none answered: the fault is the model's, not a row's


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of a batch of rows that fit the input type."""

    table: pa.Table  # keys and outputs, canonical, of the rows that were answered
    positions: npt.NDArray[np.int64] | None  # of these rows in the batch; None: all of it
    refused: list[tuple[int, str]]  # position and reason of each other row


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `model.score` answers."""

    predictions: Any  # in the form of the rows that were given: keys and outputs
    rejects: list[tuple[int, str]]  # position in the rows given, and reason


class RowScorer:
    """Scores rows that were checked one by one, as live requests bring them: as `Scorer.score` would.

    A model that asks for numpy and answers plain numbers gets and gives them with nothing but numpy in between.
    Whatever is unusual (an error, another kind of answer, a value out of bounds) goes the general way.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        columns = scorer.model.inputs.columns
        self._columns = columns
        self._outputs = [c.name for c in scorer.model.outputs.columns]
        positions = [i for i, c in enumerate(columns) if c.role != "key"]
        self._plain = [bounds for c in scorer.model.outputs.columns if (bounds := _plain_bounds(c)) is not None]
        is_plain = len(self._plain) == len(self._outputs)
        self._is_numeric = is_plain and scorer.model.form == "numpy" and scorer.model.keys_form is None
        in_one_piece = positions == list(range(positions[0], positions[-1] + 1))
        self._features: Any = (
            itemgetter(slice(positions[0], positions[-1] + 1)) if in_one_piece else itemgetter(*positions)
        )

    def score(self, rows: Sequence[Row]) -> list[Row | str]:
        """The outputs of each row, or the reason why it has none, in order. Raises what `Scorer.score` raises."""
        if self._is_numeric and (answers := self._score_numbers(rows)) is not None:
            return answers
        scored = self._scorer.score(table_of(self._columns, rows))
        values = zip(*(scored.table.column(name).to_pylist() for name in self._outputs), strict=True)
        if scored.positions is None:
            return list(values)
        answers = [""] * len(rows)
        for position, answer in zip(scored.positions.tolist(), values, strict=True):
            answers[position] = answer
        for position, reason in scored.refused:
            answers[position] = reason
        return answers

    def _score_numbers(self, rows: Sequence[Row]) -> list[Row | str] | None:
        """The answers, where everything is as usual."""
        features = self._features
        matrix = np.array([features(row) for row in rows], dtype="float64")
        try:
            answer = self._scorer.predict_form(matrix)
        except Exception:  # noqa: BLE001 - the general way calls it again, finds the rows that cause it, and tells
            return None
        if isinstance(answer, dict) and list(answer) == self._outputs:
            arrays = list(answer.values())
        elif isinstance(answer, np.ndarray) and answer.ndim == 2 and not answer.dtype.names:
            arrays = list(answer.T)
        else:
            arrays = [answer]
        if len(arrays) != len(self._plain) or not all(map(_is_plain, arrays, self._plain)):
            self._is_numeric = False  # it will answer so again: from now on it is not asked twice
            return None
        columns = []
        for array, (_, least, most) in zip(arrays, self._plain, strict=True):
            if array.shape != (len(rows),):
                return None
            values = array.tolist()
            # NaN and infinity are not between any two numbers
            columns.append([value for value in values if least <= value <= most])
            if len(columns[-1]) < len(values):
                return None
        return list(zip(*columns, strict=True))


def _is_plain(array: Any, plain: tuple[str, Any, Any]) -> bool:
    """Whether an array of that kind, whose values Python has. (A masked array has nulls.)"""
    if type(array) is not np.ndarray:
        return False
    dtype = array.dtype
    return bool(dtype.kind == plain[0] and dtype.itemsize <= 8 and dtype.isnative)


def _plain_bounds(column: Column) -> tuple[str, Any, Any] | None:
    """The numpy kind of an output, and the least and the largest value it may have; None: it is no plain number."""
    kind = {"float": "f", "int": "i", "bool": "b"}.get(column.kind)
    if kind is None or column.choices or column.multiple_of:
        return None
    if column.kind == "bool":
        return kind, False, True
    whole = column.kind == "int"
    least, most = (-(2**63), 2**63 - 1) if whole else (-sys.float_info.max, sys.float_info.max)
    above = column.gt if column.gt is None or not whole else column.gt + 1
    below = column.lt if column.lt is None or not whole else column.lt - 1
    if not whole:
        above = above if above is None else math.nextafter(above, math.inf)
        below = below if below is None else math.nextafter(below, -math.inf)
    least = max(b for b in (least, column.ge, above) if b is not None)
    most = min(b for b in (most, column.le, below) if b is not None)
    return kind, least, most


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
        found: list[npt.NDArray[np.int64]] = []
        refused: list[tuple[int, str]] = []
        for start, part in self._predict(rows, refused):
            checked = self._check_answer(part, start)
            keys = rows.select(self._key_names).slice(start, part.num_rows)
            positions = np.arange(start, start + part.num_rows)
            if checked.positions is not None:
                keys = keys.take(pa.array(checked.positions))
                positions = positions[checked.positions]
            refused += [(start + i, f"output:{reason}") for i, reason in checked.refused]
            columns = [*keys.columns, *checked.table.columns]
            answers.append(pa.Table.from_arrays(columns, schema=self._schema))
            found.append(positions)
        table = pa.concat_tables(answers) if answers else self._schema.empty_table()
        if not refused:
            return Scored(table=table, positions=None, refused=[])
        return Scored(table=table, positions=np.concatenate([np.empty(0, "int64"), *found]), refused=sorted(refused))

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
            except NOT_THE_MODELS:
                raise
            except BaseException as error:
                if not isinstance(error, Exception):  # sys.exit, a panic of a library: it is about no single row
                    raise PredictError(
                        f"{self._place}: predict raised {type(error).__name__}: {_first_line(error)}. Mend predict, then run again."
                    ) from error
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
            answer = self.predict_form(features)
        else:
            keys = to_form(self._keys_form, self._inputs, self._keys, rows.select(self._key_names))
            answer = self._predict_function(self.loaded, features, keys)
        return from_answer(answer, self._outputs, rows.num_rows)

    def predict_form(self, features: Any) -> Any:
        """What predict itself answers to features in the form that it asks for. Raises whatever it raises."""
        return self._predict_function(self.loaded, features)


def published_schema(model: Model) -> pa.Schema:
    """Of a published prediction: keys, then outputs."""
    return pa.schema([*model.inputs.arrow_schema(model.inputs.keys), *model.outputs.arrow_schema()])


def open_scorer(model: Model, settings: Settings) -> Scorer:
    """Check the artefacts, call `load` with them and with its values, and return the loaded model.

    Artefacts that lie elsewhere are fetched, unless this process has them. Raises ArtifactError, ChangedError, SettingsError,
    StorageError, and PredictError where `load` raises.
    """
    from sereno.artifacts import fetch_artifacts
    from sereno.loader import bind, checked_artifacts

    model.check()
    fetch_artifacts(model, settings.home)
    assert model.load_function is not None
    arguments = bind(model, model.load_function, settings, given=dict(checked_artifacts(model)))
    try:
        loaded = model.load_function(**arguments)
    except NOT_THE_MODELS:
        raise
    except BaseException as error:
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
    positions = np.arange(checked.table.num_rows) if checked.positions is None else checked.positions
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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:500]
