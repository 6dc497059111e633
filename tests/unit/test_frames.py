"""Forms: what a column is in each, whatever the batch holds, and answers in every form with the mistakes in them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno import Digits
from sereno.checks import check_table
from sereno.exceptions import OutputError
from sereno.frames import Form, form_of, from_answer, to_form
from sereno.schema import RowType, row_type
from tests.strategies import fitting_rows, row_types


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Item(TypedDict):
    name: str
    price: float | None


class Every(TypedDict):
    n: int
    n_none: int | None
    x: float
    x_none: float | None
    b: bool
    b_none: bool | None
    s: str
    s_none: str | None
    c: Literal["a", "b"]
    c_none: Literal["a", "b"] | None
    i: Literal[1, 2]
    e: Colour
    v: Level
    d: date
    d_none: date | None
    t: datetime
    t_none: datetime | None
    m: Annotated[Decimal, Digits(6, 2)]
    l: list[str]  # noqa: E741
    l_none: list[float] | None
    r: Item
    r_none: Item | None
    lr: list[Item]


AT = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
FULL = {
    "n": 1, "n_none": 2, "x": 0.5, "x_none": 1.5, "b": True, "b_none": False, "s": "é", "s_none": "", "c": "a", "c_none": "b",
    "i": 2, "e": "red", "v": 1, "d": date(2026, 5, 1), "d_none": date(1, 1, 1), "t": AT, "t_none": AT, "m": Decimal("1.10"),
    "l": ["x", "y"], "l_none": [0.5], "r": {"name": "z", "price": None}, "r_none": {"name": "z", "price": 1.0},
    "lr": [{"name": "z", "price": 2.0}],
}  # fmt: skip
EMPTY = {**FULL, **{name: None for name in FULL if name.endswith("_none")}, "l": [], "lr": []}
ROW = row_type(Every)
BATCHES = [[FULL, EMPTY], [EMPTY], [EMPTY, EMPTY], [FULL], []]


def table_of(row: RowType, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=row.arrow_schema())


@pytest.mark.parametrize(
    ("annotation", "form"),
    [
        (pd.DataFrame, "pandas"), (pl.DataFrame, "polars"), (pa.Table, "arrow"), (np.ndarray, "numpy"),
        (npt.NDArray[np.float64], "numpy"), (list[Every], "rows"), (list, "rows"), (dict, None), (pl.LazyFrame, None), (None, None),
        (pd.Series, None), (pa.RecordBatch, None), ("pd.DataFrame", None),
    ],
)  # fmt: skip
def test_an_annotation_names_a_form(annotation: Any, form: Form | None) -> None:
    assert form_of(annotation) == form


PANDAS = {
    "n": "int64", "n_none": "Int64", "x": "float64", "x_none": "float64", "b": "bool", "b_none": "boolean", "s": "str",
    "s_none": "str", "c": "category", "c_none": "category", "i": "category", "e": "category", "v": "category",
    "d": "datetime64[us]", "d_none": "datetime64[us]", "t": "datetime64[us, UTC]", "t_none": "datetime64[us, UTC]",
    "m": "object", "l": "object", "l_none": "object", "r": "object", "r_none": "object", "lr": "object",
}  # fmt: skip


@pytest.mark.parametrize("rows", BATCHES)
def test_pandas_has_the_same_types_in_every_batch(rows: list[dict[str, Any]]) -> None:
    frame = to_form("pandas", ROW, ROW.columns, table_of(ROW, rows))
    assert {n: str(t) for n, t in frame.dtypes.items()} == PANDAS
    assert list(frame.columns) == list(FULL)
    assert frame.index.equals(pd.RangeIndex(len(rows)))
    assert frame["c_none"].cat.categories.tolist() == ["a", "b"]
    assert frame["i"].cat.categories.tolist() == [1, 2]
    assert [type(v) for v in frame["l"]] == [list] * len(rows)


def test_pandas_holds_the_values() -> None:
    frame = to_form("pandas", ROW, ROW.columns, table_of(ROW, [FULL, EMPTY]))
    first = frame.iloc[0].to_dict()
    assert {n: v for n, v in first.items() if n not in ("d", "d_none")} == {
        n: v for n, v in FULL.items() if n not in ("d", "d_none")
    }
    assert (first["d"].date(), first["d_none"]) == (date(2026, 5, 1), datetime(1, 1, 1))
    assert all(pd.isna(frame.iloc[1][n]) for n in FULL if n.endswith("_none"))


@pytest.mark.parametrize("rows", BATCHES[:2])
def test_predict_may_write_into_its_frame(rows: list[dict[str, Any]]) -> None:
    table = table_of(ROW, rows)
    frame = to_form("pandas", ROW, ROW.columns, table)
    for name in ("n", "n_none", "x", "x_none", "b", "b_none", "s", "c", "d", "t", "m"):
        frame.loc[0, name] = frame[name].iloc[0]
    frame.loc[:, "x"] = 9.0
    frame.loc[:, "n"] = 9
    matrix = row_type(TypedDict("M", {"x": float, "y": float}))  # type: ignore[operator]
    floats = to_form("pandas", matrix, matrix.columns, table_of(matrix, [{"x": 1.0, "y": 2.0}]))
    floats.loc[0, "x"] = 5.0
    to_form("numpy", matrix, matrix.columns, table_of(matrix, [{"x": 1.0, "y": 2.0}]))[0, 0] = 5.0
    assert table.to_pylist() == rows


@pytest.mark.parametrize("rows", BATCHES)
def test_polars_has_the_same_types_in_every_batch(rows: list[dict[str, Any]]) -> None:
    frame = to_form("polars", ROW, ROW.columns, table_of(ROW, rows))
    item = pl.Struct({"name": pl.String, "price": pl.Float64})
    assert dict(frame.schema) == {
        "n": pl.Int64, "n_none": pl.Int64, "x": pl.Float64, "x_none": pl.Float64, "b": pl.Boolean, "b_none": pl.Boolean,
        "s": pl.String, "s_none": pl.String, "c": pl.Enum(["a", "b"]), "c_none": pl.Enum(["a", "b"]), "i": pl.Int64,
        "e": pl.Enum(["red", "blue"]), "v": pl.Int64, "d": pl.Date, "d_none": pl.Date, "t": pl.Datetime("us", "UTC"),
        "t_none": pl.Datetime("us", "UTC"), "m": pl.Decimal(6, 2), "l": pl.List(pl.String), "l_none": pl.List(pl.Float64),
        "r": item, "r_none": item, "lr": pl.List(item),
    }  # fmt: skip
    assert frame.rows(named=True) == rows


@pytest.mark.parametrize("rows", BATCHES)
def test_arrow_is_the_canonical_table(rows: list[dict[str, Any]]) -> None:
    table = to_form("arrow", ROW, ROW.columns, table_of(ROW, rows))
    assert table.schema == ROW.arrow_schema()
    assert table.to_pylist() == rows


NUMBERS = row_type(
    TypedDict(
        "Numbers", {"n": int | None, "x": float, "b": bool | None, "m": Annotated[Decimal, Digits(9, 3)], "i": Level}
    )  # type: ignore[operator]
)


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_numpy_is_a_matrix_of_floats(count: int) -> None:
    rows = [
        {"n": 3, "x": 0.5, "b": True, "m": Decimal("0.051"), "i": 2},
        {"n": None, "x": 0.1, "b": None, "m": Decimal(0), "i": 1},
    ]
    matrix = to_form("numpy", NUMBERS, NUMBERS.columns, table_of(NUMBERS, (rows * count)[:count]))
    assert matrix.dtype == np.float64
    assert matrix.shape == (count, 5)
    assert matrix.flags.c_contiguous
    expected = [[3, 0.5, 1, 0.051, 2], [np.nan, 0.1, np.nan, 0, 1]]
    np.testing.assert_array_equal(matrix, np.reshape((expected * count)[:count], (count, 5)))


@dataclass(frozen=True, slots=True)
class Frozen:
    customer_id: int
    colour: Colour | None
    items: list[Level]


class Modelled(pydantic.BaseModel):
    customer_id: int
    colour: Colour | None
    items: list[Level]


class Typed(TypedDict):
    customer_id: int
    colour: Colour | None
    items: list[Level]


@pytest.mark.parametrize("cls", [Frozen, Modelled, Typed])
def test_rows_are_instances_of_the_row_type(cls: Any) -> None:
    row = row_type(cls)
    table = table_of(
        row, [{"customer_id": 1, "colour": "red", "items": [1, 2]}, {"customer_id": 2, "colour": None, "items": []}]
    )
    made = to_form("rows", row, row.columns, table)
    expected = [
        cls(customer_id=1, colour=Colour.RED, items=[Level.LOW, Level.HIGH]),
        cls(customer_id=2, colour=None, items=[]),
    ]
    assert made == expected
    answer = from_answer(made, row, 2)
    assert check_table(row, answer).table == table
    # without its key, which is no feature
    (first, _) = to_form("rows", row, row.columns[1:], table.select(["colour", "items"]))
    assert (first["colour"] if cls is Typed else first.colour) is Colour.RED


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_form_answers_the_values_it_was_given(data: st.DataObject) -> None:
    row = data.draw(row_types(depth=1))
    table = table_of(row, data.draw(st.lists(fitting_rows(row), max_size=3)))
    for form in ("polars", "arrow", "rows"):
        made = to_form(form, row, row.columns, table)
        checked = check_table(row, from_answer(made, row, table.num_rows))
        assert checked.refused == [], form
        assert checked.table == table, form


class Score(TypedDict):
    p: float
    band: Literal["A", "B"]


SCORE = row_type(Score)
ONE = row_type(TypedDict("One", {"p": float}))  # type: ignore[operator]
ANSWERS: dict[str, Any] = {
    "pandas": pd.DataFrame({"band": ["A", "B"], "p": [0.5, 1.0]}, index=[7, 7]),
    "pandas, categories": pd.DataFrame({"p": [0.5, 1.0], "band": pd.Categorical(["A", "B"])}),
    "polars": pl.DataFrame({"band": ["A", "B"], "p": [0.5, 1.0]}),
    "polars, categories": pl.DataFrame(
        {"band": ["A", "B"], "p": [0.5, 1.0]}, schema={"band": pl.Enum(["A", "B"]), "p": pl.Float32}
    ),
    "arrow": pa.table({"band": ["A", "B"], "p": [0.5, 1.0]}),
    "a batch of arrow": pa.RecordBatch.from_pydict({"band": ["A", "B"], "p": [0.5, 1.0]}),
    "dict": {"p": np.array([0.5, 1.0]), "band": ["A", "B"]},
    "dict of series": {"p": pd.Series([0.5, 1.0]), "band": pl.Series(["A", "B"])},
    "structured": np.array([(0.5, "A"), (1.0, "B")], dtype=[("p", "f8"), ("band", "U1")]),
    "mappings": [{"p": 0.5, "band": "A"}, {"band": "B", "p": np.float32(1.0)}],
    "objects": np.array([[0.5, "A"], [1.0, "B"]], dtype=object),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_in_every_form(answer: Any) -> None:
    table = check_table(SCORE, from_answer(answer, SCORE, 2)).table
    assert table.to_pylist() == [{"p": 0.5, "band": "A"}, {"p": 1.0, "band": "B"}]


class Tensor:
    """As of a library for neural networks."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.full(self.shape, 0.5, "f4")


@pytest.mark.parametrize(
    "answer",
    [np.array([0.5, 0.5]), np.full((2, 1), 0.5), [0.5, 0.5], (0.5, 0.5), [np.float32(0.5)] * 2, pd.Series([0.5, 0.5]),
     pl.Series([0.5, 0.5]), pa.array([0.5, 0.5]), pa.chunked_array([[0.5], [0.5]]), Tensor((2,)), Tensor((2, 1)), {"p": [0.5, 0.5]}],
    ids=lambda a: type(a).__name__,
)  # fmt: skip
def test_one_column_may_come_alone(answer: Any) -> None:
    assert check_table(ONE, from_answer(answer, ONE, 2)).table.column("p").to_pylist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "predict answered NoneType. Valid are a pandas or polars DataFrame"),
        (0.5, "predict answered float"),
        (pl.LazyFrame({"p": [0.5]}), "predict answered LazyFrame"),
        (pd.DataFrame({"p": [0.5, 1.0]}), "has no column 'band'. Declared are p, band."),
        (pd.DataFrame({"p": [0.5], "band": ["A"], "z": [1]}), "has 'z', which Score does not declare"),
        (pd.DataFrame({"P": [0.5], "band": ["A"]}), "has no column 'p' and has 'P', which Score does not declare"),
        (pd.DataFrame([[0.5, "A", "B"]], columns=["p", "band", "band"]), "has column 'band' twice"),
        (pa.Table.from_arrays([pa.array([0.5])] * 2, names=["p", "p"]), "has column 'p' twice"),
        (pd.DataFrame({"p": [0.5], "band": ["A"]}), "was given 2 rows and answered 1 in column 'p'"),
        ({"p": [0.5, 0.5], "band": ["A"]}, "was given 2 rows and answered 1 in column 'band'"),
        ({"p": 0.5, "band": "AB"}, "Column 'p' of the answer of predict holds values that are no column"),
        ({"p": [0.5, "x"], "band": ["A", "B"]}, "Column 'p' of the answer of predict holds values that are no column"),
        ({"p": [0.5, 2**80], "band": ["A", "B"]}, "Column 'p' of the answer of predict holds values that are no column"),
        (np.zeros((2, 3)), "an array of 3 columns; Score declares 2: p, band"),
        (np.zeros(2), "predict answered one column; declared are 2: p, band"),
        (np.zeros((1, 2, 2)), "an array of 3 dimensions; valid are 1 and 2"),
        ([0.5, 0.5], "Row 0 of the answer of predict has float; declared are p, band"),
        ([{"p": 0.5, "band": "A"}, {"p": 0.5}], "Row 1 of the answer of predict has p; declared are p, band"),
        ([{"p": 0.5, "band": "A"}, None], "Row 1 of the answer of predict has NoneType"),
    ],
)  # fmt: skip
def test_answers_that_are_not_as_declared(answer: Any, words: str) -> None:
    with pytest.raises(OutputError) as caught:
        from_answer(answer, SCORE, 2)
    assert words in str(caught.value)


def test_every_form_is_tested() -> None:
    assert get_args(Form) == ("pandas", "polars", "arrow", "numpy", "rows")
