"""docs/reports.md: the outputs that it shows are those that are printed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.project import Project

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
MODEL = """
from typing import Annotated, Literal, TypedDict

import numpy as np
import pandas as pd
from annotated_types import Ge, Le
from sereno import Key, Model

class Customer(TypedDict):
    customer_id: Key[int]
    age: Annotated[int, Ge(18), Le(120)]
    spend: float

class Churn(TypedDict):
    probability: Annotated[float, Ge(0), Le(1)]
    band: Literal["stays", "wavers", "leaves"]

model = Model("churn", inputs=Customer, outputs=Churn, artifacts={"pipeline": "pipeline.txt"}, source="customers/{data_date}.parquet")

@model.load
def load(pipeline):
    return 45

@model.predict
def predict(middle, customers: pd.DataFrame) -> pd.DataFrame:
    p = (1 / (1 + np.exp((customers["age"] - middle) / 10))).round(6)
    return pd.DataFrame({"probability": p, "band": np.select([p < 0.3, p < 0.7], ["stays", "wavers"], "leaves")})
"""


def customers(project: Project, day: str, youngest: int, range_: int) -> None:
    folder = project.folder / "customers"
    folder.mkdir(exist_ok=True)
    i = np.arange(1, 2_001)
    age = youngest + i * 37 % range_
    age[[3, 4]] = 7, 150
    pq.write_table(pa.table({"customer_id": i, "age": age, "spend": (i * 7 % 90) / 2}), folder / f"{day}.parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    project.within, project.variables = True, {"SERENO_WORKERS": "1"}
    project.write("churn.py", MODEL)
    project.write("churn_next.py", MODEL.replace("return 45", "return 40"))
    project.write("pipeline.txt", "")
    project.write("sereno.toml", "")
    for day, youngest, range_ in (("2026-05-01", 18, 72), ("2026-05-02", 18, 71), ("2026-05-03", 18, 40)):
        customers(project, day, youngest, range_)
    return project


def printed(project: Project) -> dict[str, str]:
    """What the commands of the page print, in their order."""
    texts = {}
    for line in re.findall(r"^\$ (sereno .*)$", PAGE, re.MULTILINE):
        words = line.partition("#")[0].split()
        announced = re.search(r"# exit code (\d)", line)
        texts[line] = project.sereno(*words[1:], code=int(announced[1]) if announced else 0).stdout
    return texts


def test_what_the_page_shows_is_printed(project: Project) -> None:
    for day in ("2026-05-01", "2026-05-02"):
        project.sereno("run", "churn.py", "--date", day)
    texts = printed(project)
    assert len(texts) == 2
    for line, text in texts.items():
        block = next(b for b in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if line in b)
        shown = block.partition("\n")[2]
        for piece in re.split(r"^ *…\n", shown, flags=re.MULTILINE):  # what is left out
            same = re.sub(r"2026-05-03-[0-9a-f]{6}", "2026-05-03-3f9a2c", text)
            assert piece in same, f"{line}: this was not printed:\n{piece}\nbut:\n{text}"
