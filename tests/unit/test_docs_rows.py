"""docs/rows.md: its examples run, and its tables tell the truth."""

from __future__ import annotations

import doctest
import re
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import polars as pl
import pytest

from sereno import Digits
from sereno.frames import to_form
from sereno.schema import RowType
from sereno.values import Refused, admit
from tests.strategies import Colour
from tests.unit.test_schema import Item, column_of

PAGE = (Path(__file__).parents[2] / "docs" / "rows.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    declaring, asking = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "sereno"}  # annotations are looked up in a module that is loaded
    exec(compile(declaring, "rows.md", "exec", dont_inherit=True), names)
    test = doctest.DocTestParser().get_doctest(asking, names, "rows.md", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert (runner.tries, runner.failures) == (5, 0)


def table(title: str) -> dict[str, list[str]]:
    """First cell → the other cells, of the first table after a title."""
    lines = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")][2:]
    return {row[0].strip().strip("`").replace("\\|", "|"): [cell.strip() for cell in row[1:]] for row in rows}


ANNOTATIONS: dict[str, Any] = {
    "int": int, "int | None": int | None, "float": float, "float | None": float | None, "bool": bool,
    "bool | None": bool | None, "str": str, 'Literal["a", "b"]': Literal["a", "b"], "Literal[1, 2]": Literal[1, 2],
    "Enum": Colour, "date": date, "datetime": datetime, "Decimal": Annotated[Decimal, Digits(9, 2)], "list[X]": list[int],
    "nested row": Item,
}  # fmt: skip


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_the_table_of_forms(annotation: str) -> None:
    told = table("What `predict` gets")
    assert list(told) == list(ANNOTATIONS)
    cells = told['Literal["a", "b"]'] if annotation == "Enum" else told[annotation]
    in_pandas, in_polars, in_arrow = (re.match(r"`([^`]+)`", cell)[1] for cell in cells[:3])  # type: ignore[index]
    column = column_of(ANNOTATIONS[annotation])
    row = RowType(name="Row", cls=dict, style="typeddict", columns=(column,))
    empty = row.arrow_schema().empty_table()
    pandas: pd.DataFrame = to_form("pandas", row, row.columns, empty)
    polars: pl.DataFrame = to_form("polars", row, row.columns, empty)
    assert str(pandas["x"].dtype) == in_pandas
    assert str(polars["x"].dtype).split("(")[0] == in_polars
    assert str(column.arrow_type).split("<")[0].split("(")[0] == in_arrow


SAMPLES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "date": date, "datetime": datetime,
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_table_of_coercions(kind: str) -> None:
    """What stands in code in the columns of JSON and text is taken there, and what all refuse is refused."""
    _, by_json, by_text, refused = table("What is taken for what")[kind]
    column = column_of(SAMPLES[kind])
    python = {"true": True, "false": False, "2**53 + 1": 2**53 + 1}
    for cell in re.findall(r"`([^`]+)`", by_json):
        admit(column, python.get(cell) if cell in python else cell.strip('"') if '"' in cell else float(cell), "json")
    for cell in re.findall(r"`([^`]+)`", by_text):
        admit(column, cell, "text")
    for cell in re.findall(r"`([^`]+)`", refused):
        with pytest.raises(Refused):
            admit(column, python.get(cell, cell), "json")
        if cell != "2**53 + 1":
            with pytest.raises(Refused):
                admit(column, cell, "text")
