"""Scoring: every row that comes in goes out once, and what a model may do wrong is found and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from annotated_types import Ge
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno import Key, Model
from sereno.exceptions import InputError, OutputError, PredictError
from sereno.scoring import HOPELESS, Scorer, arrow_of, open_scorer
from sereno.settings import Settings


class Row(TypedDict):
    id: Key[int]
    region: Key[str]
    x: float
    n: int | None


class Out(TypedDict):
    y: Annotated[float, Ge(0)]
    note: str | None


def scorer_of(predict: Callable[..., Any]) -> Scorer:
    model = Model("sum", inputs=Row, outputs=Out)
    model.load(lambda: 10)
    model.predict(predict)
    model.check()
    return Scorer(model, 10)


def table_of(xs: list[float]) -> pa.Table:
    rows = [{"id": i, "region": f"r{i % 3}", "x": x, "n": None} for i, x in enumerate(xs)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


SCHEMA = Model("any", inputs=Row, outputs=Out).inputs.arrow_schema()


def by_pandas(factor: int, rows: pd.DataFrame) -> pd.DataFrame:
    if (rows["x"] == 13).any():
        raise ValueError("unlucky\nand more")
    return pd.DataFrame({"y": rows["x"] * factor, "note": None}).set_axis(rows.index[::-1])  # the index is no order


def by_polars(factor: int, rows: pl.DataFrame) -> pl.DataFrame:
    if (rows["x"] == 13).any():
        raise ValueError("unlucky\nand more")
    return rows.select(y=pl.col("x") * factor, note=pl.lit(None))


def by_arrow(factor: int, rows: pa.Table) -> dict[str, Any]:
    x = rows["x"].to_numpy()
    if 13 in x:
        raise ValueError("unlucky\nand more")
    return {"note": pa.nulls(len(x)), "y": x * factor}


def by_rows(factor: int, rows: list[Row]) -> list[Out]:
    if any(r["x"] == 13 for r in rows):
        raise ValueError("unlucky\nand more")
    return [{"y": r["x"] * factor, "note": None} for r in rows]


def by_numpy(factor: int, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if 13 in rows[:, 0]:
        raise ValueError("unlucky\nand more")
    return np.array([(x * factor, None) for x in rows[:, 0]], dtype=[("y", "f8"), ("note", "O")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, -1.0, 13.0]), max_size=40).filter(lambda xs: set(xs) != {13.0}), st.sampled_from([by_pandas, by_polars, by_arrow, by_rows, by_numpy]))  # fmt: skip # noqa: E501
def test_rows_in_are_predictions_and_refusals(xs: list[float], predict: Any) -> None:
    scored = scorer_of(predict).score(table_of(xs))
    good = [i for i, x in enumerate(xs) if x in (1, 2)]
    assert scored.table.to_pylist() == [{"id": i, "region": f"r{i % 3}", "y": xs[i] * 10, "note": None} for i in good]
    assert (list(range(len(xs))) if scored.positions is None else scored.positions.tolist()) == good
    reasons = {13.0: "predict raised ValueError: unlucky", -1.0: "output:y: must be at least 0.0"}
    assert scored.refused == [(i, reasons[x]) for i, x in enumerate(xs) if x in reasons]


def test_a_single_row_that_raises() -> None:
    scored = scorer_of(by_rows).score(table_of([13.0]))
    assert scored.table.num_rows == 0
    assert scored.table.schema.names == ["id", "region", "y", "note"]
    assert scored.refused == [(0, "predict raised ValueError: unlucky")]


def test_a_small_batch_of_bad_rows_is_all_rejects() -> None:
    """A last batch of a few bad rows must not fail a whole night."""
    scored = scorer_of(by_rows).score(table_of([13.0] * (HOPELESS - 1)))
    assert scored.table.num_rows == 0
    assert [position for position, _ in scored.refused] == list(range(HOPELESS - 1))


def test_culprits_are_found_with_few_calls() -> None:
    calls = 0

    def predict(_: int, rows: pd.DataFrame) -> pd.DataFrame:
        nonlocal calls
        calls += 1
        return by_pandas(1, rows)

    xs = [1.0] * 32_768
    xs[20_000] = xs[77] = 13.0
    scored = scorer_of(predict).score(table_of(xs))
    assert [p for p, _ in scored.refused] == [77, 20_000]
    assert calls <= 2 * 2 * 15 + 1


@pytest.mark.parametrize("rows", [50, 100, 32_768])
def test_a_hopeless_model_fails_soon_and_says_where(rows: int) -> None:
    calls = 0

    def predict(_: int, rows: pd.DataFrame) -> pd.DataFrame:
        nonlocal calls
        calls += 1
        raise RuntimeError("no such column: z")

    with pytest.raises(PredictError) as caught:
        scorer_of(predict).score(table_of([1.0] * rows))
    line = predict.__code__.co_firstlineno
    assert str(caught.value) == (
        f"test_scoring.py:{line}: predict raised RuntimeError on {min(rows, HOPELESS)} rows of a batch of {rows} and "
        "answered 0: no such column: z. Mend predict, then run again; `sereno check` shows the traceback."
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert calls <= 2 * HOPELESS + 20


def test_a_model_that_raises_on_most_rows_is_at_fault() -> None:
    with pytest.raises(PredictError, match=r"on 101 rows of a batch of 200 and answered \d+: unlucky"):
        scorer_of(by_rows).score(table_of([13.0, 13.0, 1.0, 13.0] * 50))


def predict_wrong_count(_: int, rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"y": [0.5], "note": [None]})


def predict_mistyped(_: int, rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"y": rows["x"].astype(str), "note": None})


def predict_nothing(_: int, rows: pd.DataFrame) -> None:
    print("forgot to return")


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (predict_wrong_count, "predict was given 2 rows and answered 1 in column 'y'"),
        (predict_mistyped, "the answer of predict: Column 'y' is large_string here, but is declared float"),
        (predict_nothing, "predict answered NoneType"),
    ],
)
def test_an_answer_that_is_not_as_declared_fails_at_once(predict: Any, words: str) -> None:
    with pytest.raises(OutputError) as caught:
        scorer_of(predict).score(table_of([1.0, 2.0]))
    assert f"test_scoring.py:{predict.__code__.co_firstlineno}: {words}" in str(caught.value)


def with_keys(_: int, rows: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    assert list(keys.columns) == ["id", "region"]
    assert list(rows.columns) == ["x", "n"]
    return pd.DataFrame({"y": keys["id"] * 1.0, "note": keys["region"]})


def with_keys_as_rows(_: int, rows: pa.Table, keys: list[Row]) -> dict[str, Any]:
    return {"y": [k["id"] for k in keys], "note": [k["region"] for k in keys]}


def with_keys_like_rows(_: int, rows: pl.DataFrame, keys) -> pl.DataFrame:  # type: ignore[no-untyped-def]
    return keys.select(y="id", note="region")


@pytest.mark.parametrize("predict", [with_keys, with_keys_as_rows, with_keys_like_rows])
def test_keys_come_when_asked_for(predict: Any) -> None:
    scored = scorer_of(predict).score(table_of([1.0, 1.0, 1.0]))
    assert scored.table.to_pylist() == [{"id": i, "region": f"r{i}", "y": float(i), "note": f"r{i}"} for i in range(3)]


GIVEN = [{"id": 1, "region": "a", "x": 1.0, "n": 5}, {"id": 2, "region": "b", "x": 13.0, "n": None}, {"id": 3, "region": "c", "x": None, "n": 1}]  # fmt: skip # noqa: E501
REJECTS = [(1, "predict raised ValueError: unlucky"), (2, "x: is missing (null)")]


@pytest.mark.parametrize("form", [list, pd.DataFrame, pl.DataFrame, pa.Table.from_pylist])
def test_score_answers_in_the_form_it_was_given(form: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    rows = form(GIVEN)
    scores = scorer_of(by_rows).model.score(rows)
    assert type(scores.predictions) is type(rows)
    assert scores.rejects == REJECTS
    predictions = scores.predictions
    as_rows = predictions if form is list else arrow_of(predictions).to_pylist()
    assert as_rows == [{"id": 1, "region": "a", "y": 10.0, "note": None}]


def test_rows_of_numpy_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"id": np.int64(1), "region": np.str_("a"), "x": np.float32(1), "n": pd.NA}
    assert scorer_of(by_rows).model.score([row]).rejects == []


def test_predict_called_with_rows_is_told_to_score() -> None:
    model = scorer_of(by_rows).model
    with pytest.raises(TypeError, match=r"takes a function, not DataFrame. To score rows call `model.score\(rows\)`"):
        model.predict(pd.DataFrame({"x": [1]}))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (3, "Rows came as int. Valid are a pandas or polars DataFrame"),
        ([1, 2], "Rows came as list"),
        (pd.DataFrame({"x": [1, "a"]}), "Column 'x' of the frame mixes types"),
        (pd.DataFrame({"x": [2**80, 1]}), "Column 'x' of the frame mixes types"),
    ],
)
def test_what_is_no_frame(rows: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        arrow_of(rows)
    assert words in str(caught.value)


def test_a_frame_may_hold_more_than_is_asked_for() -> None:
    frame = pd.DataFrame({"x": [1.0], "mixed": [object()], "y": [1]})
    assert arrow_of(frame, ["x"]).to_pylist() == [{"x": 1.0}]
    assert arrow_of(pl.LazyFrame({"x": [1], "y": [2]}), ["y"]).to_pylist() == [{"y": 2}]
    assert arrow_of([{"x": 1}, {"x": 2, "y": 3}]).to_pylist() == [{"x": 1, "y": None}, {"x": 2, "y": 3}]
    assert arrow_of(pa.RecordBatch.from_pydict({"x": [1], "y": [2]}), ["x"]).to_pylist() == [{"x": 1}]


def test_load_that_raises_is_told_by_place(tmp_path: Path) -> None:
    model = scorer_of(by_rows).model
    model.load_function = None

    @model.load
    def load() -> None:
        raise AttributeError("Can't get attribute 'Wrapper' on <module '__main__'>")

    with pytest.raises(PredictError) as caught:
        open_scorer(model, Settings(home=tmp_path))
    assert str(caught.value).startswith(f"test_scoring.py:{load.__code__.co_firstlineno}: load raised AttributeError")
    assert "move the class to a module beside the model file" in str(caught.value)
