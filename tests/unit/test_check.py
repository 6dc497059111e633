"""`sereno check` catches answers that depend on more than their row, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sereno.check import CheckReport, Outcome, check, render
from sereno.config import load_settings
from sereno.exceptions import ArtifactError, ModelFileError, SettingsError, SourceError
from sereno.loader import load_model
from sereno.lookup.keys import KeyCodec
from sereno.madeup import made_up
from sereno.schema import row_type
from sereno.serve.lookup import Lookups

HEAD = """
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt, MinLen, MaxLen, MultipleOf

from sereno import Digits, Key, Model

class Row(TypedDict):
    id: Key[int]
    x: float
    y: float
    group: Literal["a", "b", "c"]

class Score(TypedDict):
    score: float

def load_nothing():
    return None
"""
TAIL = """
model = Model("tiny", inputs=Row, outputs=Score, {options})
model.load(load_nothing)
model.predict(predict)
"""


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Callable[..., CheckReport]]:
    """Checks a model file of this code on 150 rows of real data, or of `data`."""
    rng = np.random.default_rng(7)
    rows = {
        "id": np.arange(1000, 1150),
        "x": rng.normal(size=150),
        "y": rng.normal(size=150),
        "group": rng.choice(["a", "b", "c"], 150),
    }

    def run(
        code: str, options: str = "", *, data: Any = rows, head: str = "", tail: str = "", **keywords: Any
    ) -> CheckReport:
        sys.modules.pop("tiny", None)
        if data is not None:
            pq.write_table(pa.table(data), tmp_path / "rows.parquet")
            options = f'source="rows.parquet", {options}'
        (tmp_path / "tiny.py").write_text(head + HEAD + code + TAIL.format(options=options) + tail)
        model = load_model(tmp_path / "tiny.py")
        settings = load_settings(tmp_path, overrides=keywords.pop("overrides", {}))
        return check(model, settings, **{"date": None, **keywords})

    path = list(sys.path)
    yield run
    sys.path[:] = path
    sys.modules.pop("tiny", None)


def told(report: CheckReport) -> str:
    return "\n".join(render(report))


def differing(report: CheckReport) -> set[str]:
    return {o.kind for o in report.outcomes if not o.passed}


def in_batch(report: CheckReport) -> set[str]:
    return differing(report) - {"http", "keys", "lookup", "fetch", "alone"}


def first(report: CheckReport, name: str) -> Outcome:
    return next(o for o in report.outcomes if o.name.startswith(name))


def test_an_honest_model_passes_every_arrangement(checked: Callable[..., CheckReport]) -> None:
    report = checked("def predict(loaded, rows: pd.DataFrame): return pd.DataFrame({'score': rows.x * 2 + rows.y})")
    assert report.ok
    assert not report.findings
    assert report.rows == 150
    assert [o.name for o in report.outcomes if o.passed] == [
        "again, in the same batch",
        "one at a time",
        "in batches of 2",
        "in batches of 7",
        "in batches of 64",
        "in reverse order",
        "in random order",
        "as JSON, like requests",
        "over HTTP, one row at a time (50 of them)",
        "over HTTP, 32 rows at a time",
        "over HTTP, in lists",
        "over HTTP, in tensors (V2)",
        "over HTTP, without keys",
        "looked up by key, one at a time",
        "looked up by key, in lists",
        "again, after all of the above",
    ]
    text = told(report)
    assert text.startswith("tiny: 150 rows of 2")
    assert "  passed   one at a time" in text
    assert text.endswith("floats agree to 1e-09 of their size (near 0, of the column's median size), all else exactly.")


@pytest.mark.parametrize("form", ["pd.DataFrame", "pa.Table", "list[Row]"])
def test_every_form(checked: Callable[..., CheckReport], form: str) -> None:
    value = "[r['x'] for r in rows]" if form == "list[Row]" else "rows['x']"
    assert checked(f"def predict(loaded, rows: {form}): return pa.table({{'score': {value}}})").ok


def test_rounding_of_blas_is_no_difference(checked: Callable[..., CheckReport]) -> None:
    # a matrix product of one row takes another path through BLAS than one of 150, and sums in another order
    code = """
weights = np.random.default_rng(0).normal(size=(2, 600))
more = np.random.default_rng(1).normal(size=600)
def predict(loaded, rows: pd.DataFrame):
    return np.tanh(rows[["x", "y"]].to_numpy() @ weights) @ more
"""
    assert checked(code).ok


def test_rounding_near_zero_is_measured_by_the_column(checked: Callable[..., CheckReport]) -> None:
    # 1e-17 here and -3e-17 there are both rounding of the same sum of numbers around 1
    code = """
def predict(loaded, rows: pd.DataFrame):
    score = rows.x.copy()
    score[rows.x > 1] = 1e-17 if len(rows) > 1 else -3e-17
    return pd.DataFrame({"score": score})
"""
    assert checked(code).ok
    report = checked(code.replace("1e-17", "1e-3"))
    assert not report.ok
    small = checked(code.replace("rows.x.copy()", "rows.x * 1e-17"))  # where all are so small, it is a difference
    assert not small.ok


def test_one_giant_answer_hides_nothing(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
def predict(loaded, rows: pd.DataFrame):
    score = rows.x - rows.x.mean()
    score[rows.x == rows.x.max()] = 1e15
    return pd.DataFrame({"score": score})
""")
    assert "batch" in differing(report)


@pytest.mark.parametrize(
    "expression",
    [
        "rows.x - rows.x.mean()",
        "rows.x.rank()",
        "rows.groupby('group').x.transform('mean')",
        "rows.x.fillna(0) * len(rows)",
    ],
)
def test_a_model_that_depends_on_its_batch(checked: Callable[..., CheckReport], expression: str) -> None:
    report = checked(f"def predict(loaded, rows: pd.DataFrame): return pd.DataFrame({{'score': {expression}}})")
    assert not report.ok
    assert in_batch(report) == {"batch"}
    found = first(report, "one at a time").difference
    assert found is not None
    assert found.column == "score"
    assert found.key.startswith("id 1")
    assert found.rows > 100
    text = told(report)
    assert "The answer depends on the other rows of the batch." in text
    assert "fit_transform" in text
    assert f"{found.key}: score is {found.expected} in one batch, {found.found} here ({found.rows} rows differ)" in text
    assert text.endswith("tiny does not pass.")


@pytest.mark.parametrize("expression", ["rows.x.cumsum()", "rows.x.shift(fill_value=0)", "np.sort(rows.x)"])
def test_a_model_that_depends_on_the_order(checked: Callable[..., CheckReport], expression: str) -> None:
    report = checked(f"def predict(loaded, rows: pd.DataFrame): return pd.DataFrame({{'score': {expression}}})")
    assert in_batch(report) == {"batch", "order"}
    assert report.findings[0].text.startswith("The answer depends on the order of the rows.")
    assert "First seen in reverse order:" in report.findings[0].details


@pytest.mark.parametrize(
    "code",
    [
        # a counter; random numbers; a model that learns as it answers
        "seen = []\ndef predict(loaded, rows: pd.DataFrame): seen.append(1); return rows.x + len(seen)",
        "def predict(loaded, rows: pd.DataFrame): return np.random.default_rng().normal(size=len(rows))",
        "mean = [0.0]\ndef predict(loaded, rows: pd.DataFrame): mean[0] += rows.x.mean(); return rows.x - mean[0]",
    ],
)
def test_hidden_state(checked: Callable[..., CheckReport], code: str) -> None:
    report = checked(code)
    assert "state" in differing(report)
    assert "depends on hidden state" in report.findings[0].text
    assert report.findings[0].details[0] == "First seen again, in the same batch:"


def test_state_that_shows_late(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
calls = []
def predict(loaded, rows: pd.DataFrame):
    calls.append(1)
    return rows.x + (len(calls) > 200)
""")
    assert first(report, "again, in the same batch").passed
    assert not first(report, "again, after all of the above").passed
    assert "hidden state" in told(report)


def test_a_seed_in_predict_is_an_order(checked: Callable[..., CheckReport]) -> None:
    report = checked("def predict(loaded, rows: pd.DataFrame): return np.random.default_rng(0).normal(size=len(rows))")
    assert first(report, "again, in the same batch").passed
    assert differing(report) >= {"order"}


def test_a_model_may_change_the_frame_it_is_given(checked: Callable[..., CheckReport]) -> None:
    for form in ("pd.DataFrame", "list[Row]"):
        change = "rows['x'] = rows['x'] * 2" if form != "list[Row]" else "[r.update(x=r['x'] * 2) for r in rows]"
        answer = "rows['x']" if form != "list[Row]" else "[r['x'] for r in rows]"
        assert checked(f"def predict(loaded, rows: {form}):\n    {change}\n    return {answer}").ok


FLOAT32 = """
weights = np.random.default_rng(0).normal(size=(2, 500)).astype("float32")
def predict(loaded, rows: pd.DataFrame):
    hidden = rows[["x", "y"]].to_numpy().astype("float32") @ weights
    # sums of one row and of several are taken in another order, on whatever machine
    return hidden.sum(axis=1) if len(rows) > 1 else np.cumsum(hidden, axis=1)[:, -1]
"""


def test_float32_is_told_to_declare_its_tolerance(checked: Callable[..., CheckReport]) -> None:
    report = checked(FLOAT32)
    assert not report.ok
    text = report.findings[0].text
    assert "Usual cause: rounding, as of float32 arithmetic" in text
    suggested = text.split("tolerance=")[1].rstrip(").")
    assert 1e-7 <= float(suggested) <= 1e-5


def test_a_declared_tolerance_counts(checked: Callable[..., CheckReport]) -> None:
    report = checked(FLOAT32, "tolerance=1e-5")
    assert report.ok
    assert "agree to 1e-05" in told(report)


NESTED = """
class Item(TypedDict):
    name: str
    weight: float

class Score(TypedDict):
    items: list[Item]
    parts: list[float] | None
    best: str
    on: date

def predict(loaded, rows: list[Row]):
    mean = sum(r["x"] for r in rows) / len(rows) if {centred} else 0
    return [
        {{"items": [{{"name": "n", "weight": 1.0}}, {{"name": r["group"], "weight": r["x"] - mean}}], "parts": [r["y"]] * 2,
          "best": r["group"], "on": date(2026, 5, 1)}} for r in rows
    ]
"""


def test_nested_answers(checked: Callable[..., CheckReport]) -> None:
    assert checked(NESTED.format(centred=False)).ok
    found = first(checked(NESTED.format(centred=True)), "one at a time").difference
    assert found is not None
    assert found.column == "items[1].weight"


def test_lists_of_other_lengths(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
class Score(TypedDict):
    others: list[int]
def predict(loaded, rows: pa.Table, keys: pa.Table):
    return pa.table({"others": [keys["id"].to_pylist()[:3]] * len(rows)})
""")
    found = first(report, "one at a time").difference
    assert found is not None
    assert (found.key, found.column, found.expected, found.found) == (
        "id 1000",
        "others",
        "[1000, 1001, 1002]",
        "[1000]",
    )


def test_texts_differ_exactly(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
class Score(TypedDict):
    band: Literal["low", "high"]
def predict(loaded, rows: pd.DataFrame):
    return pd.DataFrame({"band": np.where(rows.x > rows.x.median(), "high", "low")})
""")
    found = first(report, "one at a time").difference
    assert found is not None
    assert {found.expected, found.found} == {"'high'", "'low'"}


def test_a_model_that_looks_at_what_carries_the_row(checked: Callable[..., CheckReport]) -> None:
    # the values are the same; that the arrays of JSON rows lie elsewhere in memory is all that can differ
    report = checked("""
def predict(loaded, rows: pa.Table):
    whole = len(rows) == 150 and rows["x"].chunk(0).buffers()[1].address == first.setdefault(
        "at", rows["x"].chunk(0).buffers()[1].address)
    return pa.table({"score": [float(whole or len(rows) != 150)] * len(rows)})
first = {}
""")
    assert not first(report, "as JSON, like requests").passed


def test_get_dummies_raises_on_other_batches(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
def predict(loaded, rows: pd.DataFrame):
    flags = pd.get_dummies(rows.group.astype(str))
    return pd.DataFrame({"score": flags["a"] * 1.0 + flags["b"] * 2.0 + rows.x})
""")
    assert in_batch(report) == {"batch"}
    text = told(report)
    assert "here (" in text
    assert "predict raised KeyError: 'b'" in text or "predict raised KeyError: 'a'" in text
    assert 'return pd.DataFrame({"score": flags["a"] * 1.0' in text  # the line of the user's file
    assert "scoring.py" not in text
    assert "site-packages" not in text


def test_an_answer_that_is_none_for_one_row(checked: Callable[..., CheckReport]) -> None:
    report = checked("def predict(loaded, rows: pd.DataFrame): return np.squeeze(rows[['x']].to_numpy())")
    assert not report.ok
    assert "array of 0 dimensions" in first(report, "one at a time").error
    assert first(report, "in batches of 7").passed


RAISES = """
def predict(loaded, rows: list[Row]):
    return [helper(r) for r in rows]

def helper(row):
    if row["x"] > {limit}:
        raise ValueError(f"x is {{row['x']}} among {{row}}")
    return row["x"]
"""


def test_rows_that_raise_are_rejects_and_no_failure(checked: Callable[..., CheckReport]) -> None:
    report = checked(RAISES.format(limit=1.8))
    assert report.ok
    [finding] = report.findings
    assert (finding.level, finding.about) == ("warning", "rejects")
    assert "rows got no valid answer from predict" in finding.text
    assert "predict raised ValueError: x is" in finding.details[0]
    text = told(report)
    assert "in predict" in text
    assert "in helper" in text
    assert "raise ValueError(" in text


def test_neighbours_that_raise_alone_in_a_small_batch_are_rejects_too(checked: Callable[..., CheckReport]) -> None:
    data = {
        "id": range(20),
        "x": [9.0 if i in (4, 5, 18, 19) else 0.5 for i in range(20)],
        "y": [0.0] * 20,
        "group": ["a"] * 20,
    }
    report = checked(RAISES.format(limit=1), data=data)
    assert report.ok
    assert report.findings[0].text.startswith("4 of 20 rows got no valid answer")


def test_a_model_that_always_raises(checked: Callable[..., CheckReport]) -> None:
    report = checked(RAISES.format(limit=-100))
    assert not report.ok
    assert not report.outcomes
    [finding] = report.findings
    assert finding.about == "predict"
    assert "tiny.py:" in "".join(finding.details)
    assert any(line.startswith("ValueError: x is") for line in finding.details)
    assert "    raise ValueError(f\"x is {row['x']} among {row}\")" in finding.details


def test_answers_out_of_bounds_are_rejects(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
class Score(TypedDict):
    score: Annotated[float, Ge(-1), Le(1)]
def predict(loaded, rows: pd.DataFrame): return rows.x
""")
    assert report.ok
    assert "output:score: must be at" in report.findings[0].details[0]


def test_when_all_rows_are_rejects_it_fails(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
class Score(TypedDict):
    score: Annotated[float, Ge(100)]
def predict(loaded, rows: pd.DataFrame): return rows.x
""")
    assert not report.ok
    assert "150 of 150 rows got no valid answer" in told(report)


def test_a_wrong_answer_is_told(checked: Callable[..., CheckReport]) -> None:
    report = checked("def predict(loaded, rows: pd.DataFrame): return pd.DataFrame({'scores': rows.x})")
    assert not report.ok
    assert "has no column 'score'" in told(report)


def test_a_model_that_does_not_load(checked: Callable[..., CheckReport]) -> None:
    code = """
def load_nothing():
    return open_it()
def open_it():
    raise OSError("no such pickle")
def predict(loaded, rows: pd.DataFrame): return rows.x
"""
    report = checked(code)
    assert not report.ok
    text = told(report)
    assert "load raised OSError: no such pickle" in text
    assert "in open_it" in text


def test_what_no_sample_tells_more_about_is_raised(checked: Callable[..., CheckReport]) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        checked(
            "def load_nothing(pipeline): pass\ndef predict(loaded, rows: pd.DataFrame): return rows.x",
            'artifacts={"pipeline": "none.joblib"}',
        )
    with pytest.raises(SettingsError, match="'folder'"):
        checked("def load_nothing(folder): pass\ndef predict(loaded, rows: pd.DataFrame): return rows.x")


def test_a_setting_of_arrivals_that_has_no_effect_is_told_by_day(checked: Callable[..., CheckReport]) -> None:
    code = "def predict(loaded, rows: pd.DataFrame): return rows.x\n"
    with pytest.raises(SettingsError, match=r"'models\.tiny\.ready_seconds', from the command line, has no effect"):
        checked(code, overrides={"models.tiny.ready_seconds": "60"})


# The rows

HONEST = "def predict(loaded, rows: pd.DataFrame): return rows.x\n"


def test_one_row_compares_nothing(checked: Callable[..., CheckReport]) -> None:
    with pytest.raises(SettingsError, match="--rows 2 or more"):
        checked(HONEST, rows=1)
    report = checked(HONEST, data={"id": [1], "x": [0.5], "y": [0.5], "group": ["a"]})
    assert report.ok
    assert "warning: The source gave 1 row of 2" in told(report)
    assert report.rows == 200


def test_rejects_of_the_sample_are_told_with_key_and_reason(checked: Callable[..., CheckReport]) -> None:
    data = {
        "id": range(20),
        "x": [None if i == 3 else 0.5 for i in range(20)],
        "y": [0.0] * 20,
        "group": ["a"] * 19 + ["z"],
    }
    report = checked(HONEST, data=data)
    assert report.ok
    assert report.rows == 18
    [finding] = report.findings
    assert (finding.level, finding.about) == ("warning", "rejects")
    assert finding.text.startswith("2 of 20 rows of 20")
    assert finding.details == ("3: x: is missing (null)", "19: group: must be one of a, b, c")


def test_when_no_row_of_the_sample_fits_it_fails_and_rows_are_made_up(checked: Callable[..., CheckReport]) -> None:
    report = checked(HONEST, data={"id": range(20), "x": [0.5] * 20, "y": [0.0] * 20, "group": ["z"] * 20})
    assert not report.ok
    assert "20 of 20 rows" in told(report)
    assert "made up from Row" in report.origin
    assert all(o.passed for o in report.outcomes)


@pytest.mark.parametrize("groups", [1, 40])
def test_the_sample_is_spread_over_the_data(checked: Callable[..., CheckReport], tmp_path: Path, groups: int) -> None:
    seen = tmp_path / "seen"
    code = f"""
def predict(loaded, rows: pa.Table, keys: pa.Table):
    with open({str(seen)!r}, "a") as stream:
        stream.write(" ".join(map(str, keys["id"].to_pylist())) + "\\n")
    return rows["x"]
"""
    count = 4000
    data = pa.table({"id": range(count), "x": [0.5] * count, "y": [0.0] * count, "group": ["a"] * count})
    pq.write_table(data, tmp_path / "big.parquet", row_group_size=count // groups)
    report = checked(code, 'source="big.parquet"', data=None, rows=50)
    assert report.rows == 50
    ids = list(map(int, seen.read_text().splitlines()[0].split()))
    assert len(set(ids)) == 50
    assert min(ids) == 0
    assert max(ids) >= count * 0.95


@pytest.mark.parametrize("kind", ["csv", "jsonl", "read", "frames"])
def test_a_sample_of_every_kind_of_source(checked: Callable[..., CheckReport], tmp_path: Path, kind: str) -> None:
    rows = [{"id": i, "x": i / 7, "y": 0.5, "group": "abc"[i % 3]} for i in range(300)]
    options = f'source="rows.{kind}"'
    code = HONEST
    if kind == "csv":
        text = "id,x,y,group\n" + "\n".join(",".join(map(str, r.values())) for r in rows) + "\n1,2\n"
        (tmp_path / "rows.csv").write_text(text)
    elif kind == "jsonl":
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        word = "return" if kind == "read" else "yield"
        options = "source=None"
        code += f"""
import json
from pathlib import Path
def read(data_date: date):
    {word} pd.DataFrame(json.loads(Path({str(tmp_path / "rows.json")!r}).read_text()))
def load_nothing():
    model.read(read)
"""
        code = code.replace("def load_nothing():\n    model.read(read)\n", "")
        (tmp_path / "tiny.py").write_text(HEAD + code + TAIL.format(options="") + "model.read(read)\n")
        model = load_model(tmp_path / "tiny.py")
        report = check(model, load_settings(tmp_path), date="2026-05-01", rows=50)
        assert "50 rows of 2026-05-01, from the source" in report.origin
        assert report.ok
        return
    report = checked(code, options, data=None, rows=50)
    assert report.ok
    assert report.rows == 50
    assert bool(report.findings) == (kind == "csv")  # the broken line
    if kind == "csv":
        assert report.findings[0].details == ("a row without a key: row 302: has 2 columns instead of 4",)


def test_without_a_source_rows_are_made_up_aloud(checked: Callable[..., CheckReport]) -> None:
    report = checked(HONEST, data=None)
    assert report.ok
    assert report.rows == 200
    assert told(report).startswith("tiny: 200 rows made up from Row, its row type")
    assert "note: The model has neither read nor source, so the rows are made up." in told(report)


def test_where_the_data_is_not_there_rows_are_made_up_aloud(checked: Callable[..., CheckReport]) -> None:
    report = checked(HONEST, 'source="rows/{data_date}.parquet"', data=None)
    assert report.ok
    assert "warning: There is no data to take a sample from, so the rows are made up. The source" in told(report)


def test_a_date_without_data_is_an_error(checked: Callable[..., CheckReport]) -> None:
    with pytest.raises(SourceError, match=r"rows/2026-05-01\.parquet is missing"):
        checked(HONEST, 'source="rows/{data_date}.parquet"', data=None, date="2026-05-01")


def test_data_without_a_column_fails(checked: Callable[..., CheckReport]) -> None:
    report = checked(HONEST, data={"id": [1, 2], "x": [0.5, 0.5], "y": [1.0, 1.0]})
    assert not report.ok
    assert "Column 'group' is missing" in told(report)


def test_a_read_that_raises_is_shown(checked: Callable[..., CheckReport], tmp_path: Path) -> None:
    code = HONEST + "def read():\n    return pd.DataFrame({'id': [1]})['nothing']\n"
    (tmp_path / "tiny.py").write_text(HEAD + code + TAIL.format(options="") + "model.read(read)\n")
    report = check(load_model(tmp_path / "tiny.py"), load_settings(tmp_path), date=None)
    assert not report.ok
    assert "read raised KeyError: 'nothing'" in told(report)
    assert "    return pd.DataFrame({'id': [1]})['nothing']" in told(report)


MADE_UP = """
class Colour(Enum):
    red = "r"
    blue = "b"

@dataclass
class Inner:
    level: Annotated[int, Ge(1), Le(3)]
    label: str | None = None

class Row(TypedDict):
    id: Key[Annotated[int, Ge(5000)]]
    whole: Annotated[int, Ge(3), Lt(10)]
    even: Annotated[int, MultipleOf(4), Gt(0), Le(40)]
    share: Annotated[float, Ge(0), Le(1)]
    open_share: Annotated[float, Gt(0), Lt(1)] | None
    free: float | None
    text: Annotated[str, MinLen(2), MaxLen(4)]
    any_text: str
    choice: Literal["a", "b", "c"] | None
    number: Literal[1, 5, 9]
    colour: Colour
    flag: bool | None
    day: Annotated[date, Ge(date(2026, 1, 1)), Le(date(2026, 1, 3))]
    at: datetime
    price: Annotated[Decimal, Digits(5, 2)]
    tags: Annotated[list[Annotated[str, MinLen(1)]], MinLen(1), MaxLen(5)]
    inner: Inner
    inners: list[Inner] | None

class Score(TypedDict):
    score: float
def predict(loaded, rows: list[Row]): return [r["share"] for r in rows]
"""


def test_made_up_rows_have_the_edges_every_choice_and_nulls(
    checked: Callable[..., CheckReport], tmp_path: Path
) -> None:
    report = checked(MADE_UP, data=None)
    assert report.ok
    assert report.rows == 200
    table = made_up(sys.modules["tiny"].model.inputs, 200)
    values = {name: table[name].to_pylist() for name in table.column_names}
    assert len(set(values["id"])) == 200
    assert min(values["id"]) == 5000
    assert {3, 9} < set(values["whole"]) <= set(range(3, 10))
    assert {4, 40} <= set(values["even"])
    assert {0.0, 1.0} < set(values["share"])
    assert 0 < min(v for v in values["open_share"] if v is not None) < 1e-300
    assert None in values["open_share"]
    assert {len(v) for v in values["text"]} >= {2, 4}
    assert "" in values["any_text"]
    assert set(values["choice"]) == {"a", "b", "c", None}
    assert set(values["number"]) == {1, 5, 9}
    assert set(values["colour"]) == {"r", "b"}
    assert set(values["flag"]) == {True, False, None}
    assert len(set(values["day"])) == 3
    assert {len(v) for v in values["tags"]} >= {1, 2}
    assert {v["level"] for v in values["inner"]} == {1, 2, 3}
    assert None in values["inners"]
    assert made_up(sys.modules["tiny"].model.inputs, 200) == table  # the same each time
    assert made_up(sys.modules["tiny"].model.inputs, 3).num_rows == 3


def test_a_pattern_that_cannot_be_made_up_is_told() -> None:
    pydantic = pytest.importorskip("pydantic")
    namespace: dict[str, Any] = {"pydantic": pydantic}
    exec(
        "class Row(pydantic.BaseModel):\n    id: int\n    code: str = pydantic.Field(pattern='^[A-Z]{3}-[0-9]{7}$')\n",
        namespace,
    )
    with pytest.raises(ModelFileError, match=r"Row\.code: no value .* pattern is \^\[A-Z\].* Give the model a source"):
        made_up(row_type(namespace["Row"]), 10)


# Over HTTP

IN_SERVICE = """
import asyncio, threading
def in_service():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread() is not threading.main_thread()
    return True
"""
HTTP = "over HTTP, "


def over_http(report: CheckReport) -> dict[str, bool]:
    """What was asked over HTTP, and whether it passed."""
    return {o.name.removeprefix(HTTP): o.passed for o in report.outcomes if o.name.startswith(HTTP)}


def test_a_row_that_is_answered_otherwise_in_service(checked: Callable[..., CheckReport]) -> None:
    code = """
def predict(loaded, rows: pd.DataFrame):
    return rows.x + (in_service() & (rows.x > 1.5))
"""
    report = checked(IN_SERVICE + code)
    assert not report.ok
    assert in_batch(report) == set()
    assert not any(over_http(report).values())
    [finding] = report.findings
    assert finding.text.startswith("The answer over HTTP differs, though in batch it does not. In service, predict is")
    assert finding.details[0].startswith("First seen over HTTP, one row at a time")
    assert finding.details[1].startswith("id 1")
    found = first(report, "over HTTP, 32 rows at a time").difference
    assert found is not None
    assert (found.column, found.rows) == ("score", sum(np.random.default_rng(7).normal(size=150) > 1.5))
    assert float(found.found) == float(found.expected) + 1
    assert "again, after all of the above" in [o.name for o in report.outcomes if o.passed]


def test_rows_that_are_answered_otherwise_at_the_same_time(checked: Callable[..., CheckReport]) -> None:
    code = """
def predict(loaded, rows: pd.DataFrame):
    return rows.x + (in_service() and len(rows) > 4)
"""
    report = checked(IN_SERVICE + code)
    assert over_http(report) == {
        "one row at a time (50 of them)": True,
        "32 rows at a time": False,
        "in lists": False,
        "in tensors (V2)": False,
        "without keys": False,
    }
    assert report.findings[0].details[0] == "First seen over HTTP, 32 rows at a time:"


def test_a_model_that_looks_for_keys_which_it_is_not_given(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
import sys
def predict(loaded, rows: pd.DataFrame):
    frame = sys._getframe()
    while not isinstance(table := frame.f_locals.get("rows"), pa.Table) or "id" not in table.column_names:
        frame = frame.f_back
    return rows.x + table["id"].null_count
""")
    assert [name for name, passed in over_http(report).items() if not passed] == ["without keys"]
    assert report.findings[0].text.startswith("The answer differs where a request has no keys.")


def test_a_model_that_asks_for_keys_is_not_asked_without(checked: Callable[..., CheckReport]) -> None:
    report = checked("def predict(loaded, rows: pa.Table, keys: pa.Table): return keys['id'].cast('double')")
    assert report.ok
    assert "without keys" not in over_http(report)


def test_every_kind_of_value_passes_over_http(checked: Callable[..., CheckReport]) -> None:
    kinds = MADE_UP.partition("class Score")[0].replace("id: Key[Annotated[int, Ge(5000)]]", "id: Key[date]")
    report = checked(
        kinds
        + """
class Score(TypedDict):
    whole: int
    share: float
    free: float | None
    text: str
    choice: Literal["a", "b", "c"] | None
    colour: Colour
    flag: bool | None
    day: date
    at: datetime
    price: Annotated[Decimal, Digits(5, 2)]
    tags: list[str]
    inner: Inner
    inners: list[Inner] | None
def predict(loaded, rows: list[Row]): return [{name: row[name] for name in Score.__annotations__} for row in rows]
""",
        data=None,
    )
    assert report.ok, told(report)
    assert len(over_http(report)) == 5


def test_rejects_agree_over_http(
    checked: Callable[..., CheckReport], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "sereno.toml").write_text('[models.tiny]\nlog = "sync"\n[serve]\nkeys_file = "nowhere"\n')
    data = {"id": range(200), "x": [9.0 if i % 3 else 0.5 for i in range(200)], "y": [0.0] * 200, "group": ["a"] * 200}
    bounds = """
class Score(TypedDict):
    score: Annotated[float, Ge(0.6)]
"""
    for code in (RAISES.format(limit=1), bounds + "def predict(loaded, rows: np.ndarray): return rows[:, 0]"):
        code = code.replace("rows: np.ndarray", "rows: list[Row]").replace("rows[:, 0]", "[r['x'] for r in rows]")
        report = checked(code, data=data)
        assert all(over_http(report).values()), told(report)
    assert capfd.readouterr() == ("", "")  # the server's log stays where it is
    assert not (tmp_path / ".sereno").exists()  # and answers are not kept


def test_an_answer_that_is_none_in_service(checked: Callable[..., CheckReport]) -> None:
    report = checked(
        IN_SERVICE + "def predict(loaded, rows: pd.DataFrame): return rows.x[: 0 if in_service() else len(rows)]"
    )
    assert not report.ok
    assert "was given 1 rows and answered 0" in first(report, "over HTTP, one row at a time").error
    assert "tiny.py:" in first(report, "over HTTP, in lists").error


def test_a_row_that_a_request_cannot_carry(checked: Callable[..., CheckReport], tmp_path: Path) -> None:
    (tmp_path / "sereno.toml").write_text("[serve]\nmax_text_bytes = 100\nmax_rows = 3\n")
    code = """
class Row(TypedDict):
    id: Key[str]
    x: float
def predict(loaded, rows: pd.DataFrame): return rows.x
"""
    data = {"id": ["a", "b" * 101, *map(str, range(50))], "x": [0.5] * 52}
    report = checked(code, data=data)
    assert over_http(report) == {
        "one row at a time (50 of them)": False,
        "32 rows at a time": False,
        "in lists": False,
        "in tensors (V2)": False,
        "without keys": True,
    }
    found = first(report, "over HTTP, 32 rows at a time").difference
    assert found is not None
    assert (found.rows, found.row) == (1, 1)
    assert found.found == "a reject (HTTP 413: A text in the request is longer than 100 bytes.)"


def test_more_rows_than_a_request_may_have_are_sent_in_several(
    checked: Callable[..., CheckReport], tmp_path: Path
) -> None:
    (tmp_path / "sereno.toml").write_text(
        "[serve]\nmax_rows = 3\nmax_body_bytes = 1000\n[models.tiny]\nqueue_rows = 1\n"
    )
    report = checked(HONEST)
    assert report.ok, told(report)


# fetch against read

FETCHED = """
from sereno import Fetched
class Row(TypedDict):
    id: Key[int]
    x: float
    bought: Fetched[list[int]]
    spent: Fetched[float | None]
def read():
    return [{"id": i, "x": i / 7, "bought": [i, 2, 3], "spent": i / 3} for i in range(60)]
def predict(loaded, rows: list[Row]): return [r["x"] + %s for r in rows]
"""
TOTAL = "sum(r['bought']) + (r['spent'] or 0)"


@pytest.fixture
def fetching(checked: Callable[..., CheckReport]) -> Callable[..., CheckReport]:
    """Checks a model whose columns are fetched by this code."""

    def run(code: str, answer: str = TOTAL, options: str = "", head: str = FETCHED) -> CheckReport:
        return checked(head % answer + code, options, data=None, tail="model.read(read)\nmodel.fetch(fetch)\n")

    return run


@pytest.mark.parametrize("word", ["def", "async def"])
def test_fetch_that_gives_what_read_gives(fetching: Callable[..., CheckReport], word: str) -> None:
    report = fetching(f"{word} fetch(keys): return {{k: {{'bought': [k, 2, 3], 'spent': k / 3}} for k in keys[::-1]}}")
    assert report.ok, told(report)
    assert not report.findings
    names = list(over_http(report))
    assert names[0] == "one row at a time (50 of them)"
    assert names[-2:] == ["with columns fetched", "in lists, with columns fetched"]
    assert "without keys" not in names


def test_fetch_that_differs_from_read(fetching: Callable[..., CheckReport]) -> None:
    report = fetching(
        "def fetch(keys): return {k: {'bought': [k, 2, 3 + (k == 40)], 'spent': k / 3 + (k > 50)} for k in keys}"
    )
    assert not report.ok
    [finding] = report.findings
    assert (finding.level, finding.about) == ("problem", "fetch")
    assert finding.text.startswith("fetch gives other values than read for the same keys")
    assert finding.details == (
        "id 40: bought[2] is 3 by read, 4 by fetch (1 row differs)",
        "id 51: spent is 17.0 by read, 18.0 by fetch (9 rows differ)",
    )
    assert [name for name, passed in over_http(report).items() if not passed] == [
        "with columns fetched",
        "in lists, with columns fetched",
    ]


def test_fetch_that_differs_where_predict_does_not_look(fetching: Callable[..., CheckReport]) -> None:
    report = fetching(
        "def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': None} for k in keys}", "sum(r['bought'])"
    )
    assert not report.ok
    assert report.findings[0].details[0].endswith("spent is 0.0 by read, null by fetch (60 rows differ)")


def test_fetch_that_gives_lists_in_another_order(fetching: Callable[..., CheckReport]) -> None:
    code = "def fetch(keys): return {k: {'bought': [3, k, 2], 'spent': k / 3} for k in keys}"
    report = fetching(code)
    assert report.ok
    [finding] = report.findings
    assert (finding.level, finding.about) == ("warning", "fetch")
    assert "No prediction of the sample changes by it" in finding.text
    report = fetching(code, "r['bought'][0]")
    assert not report.ok
    assert report.findings[0].text.startswith("fetch gives other values than read")


def test_fetch_that_depends_on_the_other_keys(fetching: Callable[..., CheckReport]) -> None:
    # LIMIT 10 in a query of all keys at once
    report = fetching("""
def fetch(keys): return {k: {'bought': [k, 2, 3] if i < 10 else [], 'spent': k / 3} for i, k in enumerate(keys)}
""")
    assert "other values than read" in report.findings[0].text
    # a query of one key at a time that forgets the first
    report = fetching(
        "def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': 1.0 if len(keys) == 1 else k / 3} for k in keys}"
    )
    assert report.findings[0].details[0].startswith("id 0: spent is 0.0 by read, 1.0 by fetch (")


def test_fetch_that_does_not_know_a_key(fetching: Callable[..., CheckReport]) -> None:
    code = "def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': k / 3} for k in keys if k != 7 and k < 58}"
    report = fetching(code)
    assert not report.ok
    [finding] = report.findings
    assert finding.text.startswith("fetch knows nothing of 3 of the sample's 60 rows")
    assert finding.details == ("The first of them is id 7: nothing is known of this key.",)
    for name in ("over HTTP, with columns fetched", "over HTTP, in lists, with columns fetched"):
        found = first(report, name).difference
        assert found is not None
        assert (found.key, found.rows) == ("id 7", 3)  # no row is refused for the sake of another
        assert found.found == "a reject (HTTP 422: bought: nothing is known of this key)"
    # where the columns may be null, they are, and that is a difference
    nullable = FETCHED.replace("Fetched[list[int]]", "Fetched[list[int] | None]")
    report = fetching(code, "len(r['bought'] or '')", head=nullable)
    assert report.findings[0].details == (
        "id 7: bought is [7, 2, 3] by read, null by fetch (3 rows differ)",
        "id 7: spent is 2.3333333333333335 by read, null by fetch (3 rows differ)",
    )


def test_fetch_that_knows_few_keys(fetching: Callable[..., CheckReport]) -> None:
    # a reply tells 100 mistakes at most
    report = fetching(
        "def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': k / 3} for k in keys if k % 10 == 0}",
        head=FETCHED.replace("range(60)", "range(200)"),
    )
    found = first(report, "over HTTP, in lists, with columns fetched").difference
    assert found is not None
    assert (found.key, found.rows) == ("id 1", 180)


def test_fetch_that_has_a_limit_which_few_keys_do_not_reach(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("""
def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': k / 3 if i < 50 else None} for i, k in enumerate(keys)}
""")
    assert report.findings[0].details == ("id 50: spent is 16.666666666666668 by read, null by fetch (10 rows differ)",)
    assert [name for name, passed in over_http(report).items() if not passed] == ["in lists, with columns fetched"]


def test_fetch_that_answers_with_keys_of_another_spelling(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("def fetch(keys): return {-k: {'bought': [k, 2, 3], 'spent': k / 3} for k in keys}")
    assert not report.ok
    [problem, note] = report.findings
    assert problem.text.startswith("fetch knows nothing of 59 of the sample's 60 rows")
    assert problem.details[0] == "The first of them is id 1: nothing is known of this key."
    assert problem.details[1].startswith("But it answered for id -1; id -2; id -3 and 56 more, which it was not asked")
    assert note.level == "note"


def test_fetch_that_answers_for_everybody_is_no_problem(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("def fetch(keys): return {k: {'bought': [k, 2, 3], 'spent': k / 3} for k in range(80)}")
    assert report.ok
    [note] = report.findings
    assert (note.level, note.about) == ("note", "fetch")
    assert note.text.startswith("fetch answers keys that it was not asked for")
    assert "id 60; id 61; id 62 and 17 more" in note.text


def test_fetch_that_answers_a_key_twice(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("""
def fetch(keys: pd.DataFrame):
    rows = [{"id": k, "bought": [k, 2, 3], "spent": k / 3} for k in keys["id"]]
    return [*({**row, "spent": 0.0} for row in rows if row["id"] in (4, 5)), *rows, *rows[:1]]
""")
    assert report.ok
    [warning] = report.findings
    assert (warning.level, warning.about) == ("warning", "fetch")
    assert "more than once, and not with the same values: id 4; id 5. The last answer counts" in warning.text


def test_what_fetch_raises_on_one_key_hides_no_other(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("""
def fetch(keys):
    if 9 in keys:
        raise RuntimeError("nine")
    return {k: {'bought': [k, 2, 3], 'spent': k / 3 + (k == 30)} for k in keys}
""")
    assert [f.text.partition(" ")[2].partition(" ")[0] for f in report.findings] == ["raised", "gives"]
    assert report.findings[1].details == ("id 30: spent is 10.0 by read, 11.0 by fetch (1 row differs)",)


def test_fetch_that_raises(fetching: Callable[..., CheckReport], capfd: pytest.CaptureFixture[str]) -> None:
    report = fetching("def fetch(keys):\n    return {}['nothing']")
    assert not report.ok
    [finding] = report.findings
    assert finding.text == (
        "fetch raised KeyError: 'nothing'. A live request without bought or spent gets no prediction."
    )
    assert "    return {}['nothing']" in finding.details
    assert "a reject (fetch raised KeyError: 'nothing')" in told(report)
    assert capfd.readouterr().err == ""
    report = fetching("def fetch(keys): return {k: {'bought': 'none', 'spent': 1} for k in keys}")
    assert "a value of fetch does not fit its column: bought: must be a list" in report.findings[0].text


def test_fetch_that_is_too_slow(fetching: Callable[..., CheckReport], tmp_path: Path) -> None:
    (tmp_path / "sereno.toml").write_text("[models.tiny]\nfetch_timeout_seconds = 0.001\n")
    report = fetching("import asyncio\nasync def fetch(keys): await asyncio.Event().wait()")
    assert not report.ok
    [finding] = report.findings
    assert "slower than models.NAME.fetch_timeout_seconds" in finding.text
    assert "HTTP 504: The row's features were not there within 0.001 seconds." in finding.details[1]


def test_of_made_up_keys_fetch_is_not_asked(checked: Callable[..., CheckReport]) -> None:
    report = checked(FETCHED % TOTAL + "def fetch(keys): raise AssertionError", data=None, tail="model.fetch(fetch)\n")
    assert report.ok
    assert "note: What fetch gives was not compared" in told(report)
    assert "with columns fetched" not in over_http(report)


def test_a_model_that_can_only_run_in_batch(checked: Callable[..., CheckReport]) -> None:
    report = checked(FETCHED % TOTAL, data=None, tail="model.read(read)\n")
    assert report.ok
    [finding] = report.findings
    assert (finding.level, finding.about) == ("warning", "fetch")
    assert "cannot be served, so nothing was asked over HTTP" in finding.text
    assert "has no fetch function" in finding.text
    assert not over_http(report)


def test_a_model_whose_fetch_lacks_a_value_here(fetching: Callable[..., CheckReport]) -> None:
    report = fetching("def fetch(keys, shop: str): return {}")
    assert report.ok
    assert "cannot be served, so nothing was asked over HTTP" in report.findings[0].text
    assert "'shop'" in report.findings[0].text


# Lookups


def looked_up(report: CheckReport) -> dict[str, bool]:
    """What was looked up, and whether it passed."""
    return {o.name.removeprefix("looked up "): o.passed for o in report.outcomes if o.name.startswith("looked up ")}


LONG = "x" * 600
KEYS: dict[str, list[Any]] = {
    "int": [-(2**63), -256, -1, 0, 1, 255, 256, 2**32, 2**63 - 1],
    "str": ["", " ", ".", "..", "0", "00", "7", "a", "A", "a/b", "a%2Fb", "a+b", "a?b#c", "é", "e\u0301", "東京", "🙂", "\0",
            LONG, LONG + "a", LONG + "b", "nobody at all"],
    "date": [date.min, date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date.max],
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_keys_that_could_be_taken_for_each_other(checked: Callable[..., CheckReport], kind: str) -> None:
    code = f"""
class Row(TypedDict):
    id: Key[{kind}]
    x: float
def predict(loaded, rows: pd.DataFrame): return rows.x
"""
    keys = KEYS[kind]
    report = checked(code, data={"id": keys, "x": [i / 7 for i in range(len(keys))]})
    assert report.ok, told(report)
    assert looked_up(report) == {"by key, one at a time": True, "by key, in lists": True}


def test_composite_keys_whose_values_run_into_each_other(checked: Callable[..., CheckReport]) -> None:
    code = """
class Row(TypedDict):
    day: Key[date]
    first: Key[str]
    x: float
    second: Key[str]
    number: Key[int]
def predict(loaded, rows: pd.DataFrame): return rows.x
"""
    texts = ["", "a", "ab", "b", "/", "a/", LONG]
    keys = [(d, f, s, n) for d in KEYS["date"][1:3] for f in texts for s in texts for n in (-1, 0, 1)]
    columns = dict(zip(("day", "first", "second", "number"), map(list, zip(*keys, strict=True)), strict=True))
    report = checked(code, data={**columns, "x": [i / 7 for i in range(len(keys))]}, rows=len(keys))
    assert report.ok, told(report)
    assert report.rows == 2 * 7 * 7 * 3
    assert looked_up(report) == {"by key, one at a time": True, "by key, in lists": True}


def test_a_prediction_that_is_null_is_no_unknown_key(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
class Item(TypedDict):
    price: Annotated[Decimal, Digits(9, 2)] | None
class Score(TypedDict):
    score: float | None
    items: list[Item] | None
    until: date | None
    at: datetime | None
def predict(loaded, rows: list[Row]):
    full = {"score": 0.1, "items": [{"price": Decimal("1.10")}, {"price": None}], "until": date(2026, 5, 1),
            "at": datetime.fromisoformat("2026-05-01T12:00:00.000001+02:00")}
    return [full if r["x"] > 0 else dict.fromkeys(full) for r in rows]
""")
    assert report.ok, told(report)
    assert all(looked_up(report).values())


def test_a_lookup_that_finds_another_row(checked: Callable[..., CheckReport], monkeypatch: pytest.MonkeyPatch) -> None:
    encode_array = KeyCodec.encode_array

    def shifted(codec: KeyCodec, table: pa.Table) -> pa.Array:
        moved = pa.table({"id": pc.add(table["id"], pc.if_else(pc.equal(table["id"], 1007), 1000, 0))})
        return encode_array(codec, moved) if table.column_names[0] == "id" else encode_array(codec, table)

    plain = Lookups.plain  # the shortest path of a GET
    monkeypatch.setattr(Lookups, "plain", lambda self, text, *more: plain(self, b"%d" % (int(text) ^ 1), *more))
    report = checked(HONEST)
    assert looked_up(report) == {"by key, one at a time": False, "by key, in lists": True}
    assert not report.ok
    [finding] = report.findings
    assert finding.text.startswith("What is looked up by a key is not what batch answers for its row")
    monkeypatch.undo()

    monkeypatch.setattr(KeyCodec, "of_value", lambda codec, value: (value ^ 1,))  # of lists
    report = checked(HONEST)
    assert looked_up(report) == {"by key, one at a time": True, "by key, in lists": False}
    found = first(report, "looked up by key, in lists").difference
    assert found is not None
    assert (found.key, found.column, found.rows) == ("id 1000", "score", 150)
    assert found.found == first_scores()[1]
    monkeypatch.undo()

    monkeypatch.setattr(KeyCodec, "encode_array", shifted)  # of the index
    report = checked(HONEST, data=rows_of(8))
    assert looked_up(report) == {"by key, one at a time": False, "by key, in lists": False}
    found = first(report, "looked up by key, one at a time").difference
    assert found is not None
    assert (found.key, found.rows) == ("id 1007", 1)
    assert found.found == "a reject (HTTP 404: There is no prediction under this key.)"


def rows_of(count: int) -> dict[str, Any]:
    return {
        "id": range(1000, 1000 + count),
        "x": [i / 7 for i in range(count)],
        "y": [0.0] * count,
        "group": ["a"] * count,
    }


def first_scores() -> list[str]:
    return [repr(float(x)) for x in np.random.default_rng(7).normal(size=2)]


def test_an_index_that_cannot_be_built(checked: Callable[..., CheckReport], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyCodec, "encode_array", lambda codec, table: pa.array([b"same"] * len(table), pa.binary()))
    report = checked(HONEST)
    assert not report.ok
    assert "has two rows with the same key" in first(report, "looked up by key").error
    assert looked_up(report) == {"by key": False}


def test_rejects_are_under_no_key(checked: Callable[..., CheckReport], monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(RAISES.format(limit=1.8))
    assert report.ok
    assert all(looked_up(report).values())
    # of all that is published, none
    report = checked("class Score(TypedDict):\n    score: Annotated[float, Ge(100)]\n" + HONEST)
    assert not looked_up(report)


def test_what_is_published_stays_in_a_home_of_its_own(
    checked: Callable[..., CheckReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / "sereno.toml").write_text('[models.tiny]\nexports = ["parquet"]\nlookup = "required"\n')
    assert all(looked_up(checked(HONEST)).values())
    there = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert there == {"rows.parquet", "sereno.toml", "temporary", "tiny.py"}
    assert not list(temporary.iterdir())


def test_lookups_that_are_off_are_not_asked(checked: Callable[..., CheckReport], tmp_path: Path) -> None:
    (tmp_path / "sereno.toml").write_text('[models.tiny]\nlookup = "off"\n')
    report = checked(HONEST)
    assert report.ok
    assert not looked_up(report)


def test_predict_that_answers_otherwise_when_it_is_to_be_published(checked: Callable[..., CheckReport]) -> None:
    code = """
import sys
def predict(loaded, rows: pd.DataFrame):
    frame = sys._getframe()
    while frame and frame.f_code.co_name != "score_task":
        frame = frame.f_back
    if frame and {fails}:
        raise RuntimeError("in a run")
    return rows.x + (frame is not None)
"""
    report = checked(code.format(fails=False))
    assert differing(report) == {"lookup"}
    report = checked(code.format(fails=True))
    assert looked_up(report) == {"by key": False}
    assert first(report, "looked up by key").error == "predict raised RuntimeError: in a run"


# Duplicate keys


@pytest.mark.parametrize("policy", ["fail", "first", "last"])
def test_keys_that_occur_more_than_once(checked: Callable[..., CheckReport], tmp_path: Path, policy: str) -> None:
    (tmp_path / "sereno.toml").write_text(f'[models.tiny]\nduplicates = "{policy}"\n')
    data = rows_of(40)
    data["id"] = [1000 + i % 37 for i in range(40)]
    # the first row of key 1001 and the last one of 1002 are rejects, so they are no duplicates
    data["x"][1] = data["x"][39] = 9.0
    report = checked(RAISES.format(limit=8), data=data)
    assert all(looked_up(report).values()), told(report)
    [finding] = [f for f in report.findings if f.about == "duplicates"]
    assert finding.details == ("id 1000 (2 rows)",)
    if policy == "fail":
        assert not report.ok
        assert finding.text.startswith(
            "1 key occurs more than once in the sample. A run refuses that, and publishes nothing"
        )
    else:
        assert report.ok
        assert finding.text.endswith(f"A run publishes the {policy} row of each, and gives the others as rejects.")


def test_made_up_keys_may_occur_more_than_once(checked: Callable[..., CheckReport]) -> None:
    code = """
class Row(TypedDict):
    id: Key[Annotated[int, Ge(1), Le(3)]]
    x: float
def predict(loaded, rows: pd.DataFrame): return rows.x
"""
    report = checked(code, data=None)
    assert report.ok, told(report)
    assert [f.about for f in report.findings] == ["source"]
    assert all(looked_up(report).values())


# Lookups that are asked live

BY_KEY = """
from sereno import Fetched
@dataclass
class Row:
    id: Key[int]
    bought: Fetched[list[int]%s]
    x: float = 0.5
def read():
    return [{"id": i, "bought": [i, 2], "x": 0.5 + (i in %s)} for i in range(60)]
def predict(loaded, rows: list[Row]): return [r.x + sum(r.bought or ()) for r in rows]
"""
KNOWS_60 = "def fetch(keys): return {k: [k, 2] for k in keys if 0 <= k < 60}"


@pytest.fixture
def asked_live(checked: Callable[..., CheckReport], tmp_path: Path) -> Callable[..., CheckReport]:
    """Checks a model whose lookups are asked live."""

    def run(fetch: str, settings: str, *, more: str = "", others: str = "()") -> CheckReport:
        (tmp_path / "sereno.toml").write_text(f"[models.tiny]\n{settings}\n")
        return checked(BY_KEY % (more, others) + fetch, data=None, tail="model.read(read)\nmodel.fetch(fetch)\n")

    return run


STALE, UNKNOWN = 'max_age_seconds = 60\nstale = "live"', 'unknown = "live"'


def test_lookups_that_are_asked_live_agree(asked_live: Callable[..., CheckReport]) -> None:
    report = asked_live(KNOWS_60, f"{STALE}\n{UNKNOWN}")
    assert report.ok, told(report)
    assert looked_up(report) == {
        "by key, one at a time": True,
        "by key, in lists": True,
        "where stale, so asked live": True,
        "where unknown, so asked live": True,
    }
    assert list(looked_up(asked_live(KNOWS_60, STALE)))[2:] == ["where stale, so asked live"]
    assert list(looked_up(asked_live(KNOWS_60, UNKNOWN)))[2:] == ["where unknown, so asked live"]
    assert len(looked_up(asked_live(KNOWS_60, 'stale = "refuse"\nmax_age_seconds = 1'))) == 2


@pytest.mark.parametrize("settings", [STALE, UNKNOWN])
def test_a_column_that_a_key_alone_does_not_bring(asked_live: Callable[..., CheckReport], settings: str) -> None:
    report = asked_live(KNOWS_60, settings, others="(3, 4)")
    assert differing(report) == {"alone"}
    problem = report.findings[0]
    assert (problem.level, problem.about) == ("problem", "lookup")
    assert problem.text.startswith(
        "A lookup that is asked live has the default of x, for all it knows is the key; 2 of the"
    )
    assert len([f for f in report.findings if f.level == "problem"]) == 1


def test_a_fetch_that_differs_is_told_once(asked_live: Callable[..., CheckReport]) -> None:
    report = asked_live("def fetch(keys): return {k: [k, 3] for k in keys}", f"{STALE}\n{UNKNOWN}")
    assert differing(report) == {"fetch", "alone"}
    [problem] = [f for f in report.findings if f.level == "problem"]
    assert problem.about == "fetch"


@pytest.mark.parametrize(
    ("fetch", "more", "level", "says"),
    [
        (KNOWS_60, "", "note", "gets HTTP 404, for fetch knows nothing of it."),
        (
            KNOWS_60,
            " | None",
            "note",
            "gets a prediction: bought may be null or have defaults, and fetch gives nothing",
        ),
        (
            "def fetch(keys): return {k: [k, 2] for k in keys}",
            "",
            "note",
            "gets a prediction, for fetch gives values for it",
        ),
        (
            "def fetch(keys): return {k: [k, 2] for k in keys if k < 60 or 1 / 0}",
            "",
            "warning",
            "gets no 404, but fetch raised ZeroDivisionError: division by zero.",
        ),
    ],
)
def test_a_key_that_nobody_has(
    asked_live: Callable[..., CheckReport], fetch: str, more: str, level: str, says: str
) -> None:
    report = asked_live(fetch, UNKNOWN, more=more)
    assert report.ok, told(report)
    [finding] = report.findings
    assert (finding.level, finding.about) == (level, "lookup")
    assert finding.text.startswith('With unknown = "live", a key that nobody has (id 2147483629, say) ')
    assert says in finding.text
    if "404" not in says:
        assert not asked_live(fetch, STALE, more=more).findings


def test_live_lookups_of_a_model_that_needs_more_than_keys(checked: Callable[..., CheckReport], tmp_path: Path) -> None:
    (tmp_path / "sereno.toml").write_text('[models.tiny]\nunknown = "live"\n')
    report = checked(HONEST)
    assert not report.ok
    [problem] = report.findings
    assert problem.level == "problem"
    assert problem.text.startswith(
        "The model runs in batch, but cannot be served, so nothing was asked over HTTP. 'models.tiny.unknown' is 'live', "
        f"from {tmp_path / 'sereno.toml'}. That needs a model that can answer to a key alone: a fetch function, and"
    )
    assert problem.text.endswith('Or choose "404".')
    # nor does a server start where fetch lacks something
    lacking = "def fetch(keys, shop: str): return {}"
    tail = "model.read(read)\nmodel.fetch(fetch)\n"
    assert not checked(BY_KEY % ("", "()") + lacking, data=None, tail=tail).ok


# The script block


def block(*dependencies: str, python: str = ">=3.11") -> str:
    return f'# /// script\n# requires-python = "{python}"\n# dependencies = {json.dumps(dependencies)}\n# ///\n'


def test_a_script_block_that_fits(checked: Callable[..., CheckReport]) -> None:
    head = block("sereno", "pandas>=2", 'nothing; sys_platform == "win32"', "pyarrow")
    assert not checked(HONEST, head=head).findings


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            block("no-such-package>=2"),
            "The script block asks for no-such-package>=2, which is not installed: `pip install",
        ),
        (block("pandas<1"), "The script block asks for pandas<1, but version"),
        (block("sereno", python=">=3.99"), "The script block asks for Python >=3.99; this is 3."),
        (block("pandas >> 2"), "cannot be read"),
        (block(python="new"), "requires-python 'new' cannot be read"),
    ],
)
def test_a_script_block_that_differs_is_a_warning(checked: Callable[..., CheckReport], head: str, message: str) -> None:
    report = checked(HONEST, head=head)
    assert report.ok
    [finding] = report.findings
    assert (finding.level, finding.about) == ("warning", "script block")
    assert message in finding.text


# The report


def test_the_report_as_json(checked: Callable[..., CheckReport]) -> None:
    report = checked("""
def predict(loaded, rows: pd.DataFrame):
    if len(rows) < 3:
        raise RuntimeError("few")
    return rows.x
""")
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["ok"] is False
    assert found["model"] == "tiny"
    assert [o["name"] for o in found["outcomes"] if not o["passed"]][:2] == ["one at a time", "in batches of 2"]
    assert found["outcomes"][1]["difference"]["found"] == "a reject (predict raised RuntimeError: few)"
    assert found["findings"][0]["level"] == "problem"
