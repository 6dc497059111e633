"""Model: what a declaration holds, and that decorated functions stay plain functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sereno import Interval, Key, Model, Secret
from sereno.exceptions import ModelFileError
from sereno.model import place


class Row(TypedDict):
    id: Key[int]
    x: float
    n: int | None


class Out(TypedDict):
    y: float


def declared(predict: Any) -> Model:
    model = Model("sum", inputs=Row, outputs=Out)
    model.load(lambda: None)
    assert model.predict(predict) is predict
    model.check()
    return model


def by_pandas(_: Any, rows: pd.DataFrame) -> None: ...
def by_polars(_: Any, rows: pl.DataFrame, keys: pa.Table) -> None: ...
def by_arrow(_: Any, rows: pa.Table, keys: Any = None) -> None: ...
def by_numpy(_: Any, rows: np.ndarray[Any, Any], keys) -> None: ...  # type: ignore[no-untyped-def]
def by_matrix(_: Any, rows: npt.NDArray[np.float64], *, scale: float = 1) -> None: ...
def by_rows(_: Any, rows: list[Row], keys: pd.DataFrame) -> None: ...


class Predictor:
    def __call__(self, _: Any, rows: pd.DataFrame) -> None: ...


@pytest.mark.parametrize(
    ("predict", "form", "keys_form"),
    [
        (by_pandas, "pandas", None),
        (by_polars, "polars", "arrow"),
        (by_numpy, "numpy", "numpy"),
        (by_matrix, "numpy", None),
        (by_rows, "rows", "pandas"),
        (Predictor(), "pandas", None),
    ],
)
def test_the_annotations_of_predict_name_the_forms(predict: Any, form: str, keys_form: str | None) -> None:
    model = declared(predict)
    assert (model.form, model.keys_form) == (form, keys_form)


def test_keys_of_an_unknown_form() -> None:
    with pytest.raises(ModelFileError, match="parameter 'keys' of predict is annotated typing.Any"):
        declared(by_arrow)


def test_what_is_declared() -> None:
    model = Model(
        "credit", inputs=Row, outputs=Out, schedule="0 0 * * *", source="{day}.parquet", artifacts={"net": "a"}
    )
    assert model.declared == {"schedule": "0 0 * * *", "source": "{day}.parquet"}
    assert model.artifacts == {"net": "a"}
    assert model.file == Path(__file__).resolve()
    assert model.place == f"test_model.py:{test_what_is_declared.__code__.co_firstlineno + 1}"


def test_a_model_of_a_notebook_has_no_file() -> None:
    names: dict[str, Any] = {"Model": Model, "Row": Row, "Out": Out}
    exec("model = Model('sum', inputs=Row, outputs=Out)", names)
    assert names["model"].file is None
    with pytest.raises(ModelFileError, match="The model: model 'sum' has no load function"):
        names["model"].check()


def test_parameters_have_their_annotations() -> None:
    def read(interval: Interval, api_key: Secret, day: "str" = "mon") -> None: ...  # noqa: UP037

    model = declared(by_pandas)
    interval, api_key, day = model.parameters(model.read(read))
    assert (interval.annotation, api_key.is_secret, day.is_secret, day.default) == (Interval, True, False, "mon")
    assert model.parameters(read, given=2) == [day]


def test_a_model_may_have_several_gates() -> None:
    def calm(profile: Any) -> None: ...
    def whole(profile: Any, predictions: pd.DataFrame, limit: float) -> None: ...
    def known(profile: Any, countries: list[str]) -> None: ...
    def few(profile: Any, *, most: int = 3) -> None: ...

    model = declared(by_pandas)
    gates: list[Any] = [calm, whole, known, few]
    for gate in gates:
        assert model.gate(gate) is gate
    model.check()
    assert model.gate_functions == gates
    assert [model.gate_form(gate) for gate in gates] == [None, "pandas", None, None]


def test_a_gate_is_a_function() -> None:
    with pytest.raises(TypeError, match=r"`model\.gate` takes a function, not dict"):
        declared(by_pandas).gate({})  # type: ignore[type-var]


def test_ready_takes_the_date_and_values() -> None:
    def ready(data_date: Any, token: Secret, landing: Path) -> None: ...

    model = declared(by_pandas)
    assert model.ready(ready) is ready
    model.check()
    assert model.ready_function is ready


def test_a_secret_does_not_show() -> None:
    assert repr({"key": Secret("hidden")}) == "{'key': Secret('***')}"
    assert Secret("hidden") == "hidden"


def test_places() -> None:
    assert place(by_pandas).startswith("test_model.py:")
    assert place(len) == "len"
