"""`sereno new` writes a file that works at once, whatever the data looks like."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from sereno.check import check
from sereno.config import load_settings
from sereno.exceptions import InputError, ModelFileError, SourceError
from sereno.loader import load_model
from sereno.model import Model
from sereno.new import new
from sereno.schema import Column

ROWS = 60


@pytest.fixture(autouse=True)
def _modules_as_before() -> Iterator[None]:
    """Model files are imported under their own names, many of them the same here."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and "site-packages" not in file and "pytest" in file:
            del sys.modules[name]


def table(**columns: Any) -> pa.Table:
    return pa.table({"customer_id": list(range(ROWS)), **columns})


def passes(file: Path) -> Model:
    """The model of a file that loads, has no rejects in its own data and passes the check."""
    model = load_model(file)
    report = check(model, load_settings(file), date=None, rows=ROWS)
    assert report.ok, report
    assert not report.findings
    assert report.rows == ROWS
    return model


def columns(model: Model) -> dict[str, Column]:
    return {c.name: c for c in model.inputs.columns}


def from_parquet(folder: Path, data: pa.Table) -> Model:
    pq.write_table(data, folder / "rows.parquet")
    return passes(new("churn", folder, folder / "rows.parquet"))


def from_text(folder: Path, name: str, text: str) -> Model:
    (folder / name).write_text(text, encoding="utf-8")
    return passes(new("churn", folder, folder / name))


def test_without_data_an_example_is_written_that_runs(tmp_path: Path) -> None:
    file = new("credit-scoring", tmp_path, None)
    assert file == tmp_path / "credit_scoring.py"
    assert {p.name for p in tmp_path.iterdir()} == {"credit_scoring.py", "credit_scoring_data.csv", "sereno.toml"}
    model = load_model(file)
    report = check(model, load_settings(file), date=None)
    assert report.ok
    assert not report.findings
    assert report.rows == 200
    assert model.name == "credit-scoring"
    scores = model.score(pacsv.read_csv(tmp_path / "credit_scoring_data.csv")).predictions["score"]
    assert len(set(scores.to_pylist())) > 20  # no constant, at which a gate would hold the run
    assert load_settings(tmp_path).model("credit-scoring", {}).file == file


def test_a_sereno_toml_upwards_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sereno.toml").write_text("workers = 1\n")
    (tmp_path / "models").mkdir()
    new("churn", tmp_path / "models", None)
    assert (tmp_path / "sereno.toml").read_text() == "workers = 1\n"
    assert not (tmp_path / "models" / "sereno.toml").exists()


def test_every_type_of_parquet(tmp_path: Path) -> None:
    model = from_parquet(
        tmp_path,
        table(
            age=pa.array([None if i % 7 == 0 else i for i in range(ROWS)], pa.int32()),
            amount=[i / 3 for i in range(ROWS)],
            small=pa.array([i / 4 for i in range(ROWS)], pa.float32()),
            member=[i % 2 == 0 for i in range(ROWS)],
            born=[date(1980, 1, 1 + i % 28) for i in range(ROWS)],
            seen=pa.array([datetime(2026, 5, 1, i % 24, tzinfo=UTC) for i in range(ROWS)], pa.timestamp("ms", "UTC")),
            price=pa.array([Decimal(i).scaleb(-2) for i in range(ROWS)], pa.decimal128(9, 2)),
            plan=pa.array(["basic", "premium", None] * 20).dictionary_encode(),
            note=[f"note {i}" for i in range(ROWS)],
            tags=[["a"] * (i % 3) for i in range(ROWS)],
            home=[{"city": "Lugo", "floor": i} for i in range(ROWS)],
        ),
    )
    found = columns(model)
    assert [c.kind for c in found.values()] == [
        *("int", "int", "float", "float", "bool", "date", "datetime", "decimal", "str", "str", "list", "row")
    ]
    assert [n for n, c in found.items() if c.nullable] == ["age", "plan"]
    assert found["customer_id"].role == "key"
    assert found["plan"].choices == ("basic", "premium")
    assert found["note"].choices == ()
    assert (found["price"].precision, found["price"].scale) == (9, 2)
    assert found["home"].row is not None
    assert [c.name for c in found["home"].row.columns] == ["city", "floor"]
    assert all(c.ge is c.le is None for c in found.values())  # bounds are not guessed


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "3.0"], "int"),
        (["1", "2.5", "1e3"], "float"),
        (["true", "FALSE", "True"], "bool"),
        (["2026-05-01", "2024-02-29", "1999-12-31"], "date"),
        (["2026-05-01T00:00:00Z", "2026-05-01 10:00+02:00", "2026-05-01T00:00Z"], "datetime"),
        (["00123", "45678", "00001"], "str"),  # postcodes
        (["12345678901234567890", "1", "2"], "str"),  # beyond 64 bits
        (["2026-02-30", "2026-05-01", "x"], "str"),
        (["yes", "no", "1"], "str"),
        (["inf", "1.0", "2.0"], "str"),
    ],
)
def test_csv_is_inferred_by_its_values(tmp_path: Path, values: list[str], kind: str) -> None:
    lines = [f"{i},{values[i % len(values)]},{i}" for i in range(ROWS)]
    model = from_text(tmp_path, "rows.csv", "\n".join(["id,x,n", *lines]))
    assert columns(model)["x"].kind == kind
    assert not columns(model)["x"].nullable


def test_csv_nulls_semicolons_and_columns_that_nothing_holds(tmp_path: Path) -> None:
    lines = [f"{i};{'' if i % 9 == 0 else i};;2026-05-01T10:{i % 60:02d}:00" for i in range(ROWS)]
    model = from_text(tmp_path, "rows.csv", "\n".join(["id;n;empty;seen", *lines]))
    found = columns(model)
    assert list(found) == ["id", "n", "seen"]
    assert found["n"].kind == "int"
    assert found["n"].nullable
    text = (tmp_path / "churn.py").read_text()
    assert "# left out: empty (only missing values)" in text
    assert "times without a zone" in text


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"k{i}",
            "x": i if i % 2 else i / 2,
            "n": i,
            "day": "2026-05-01",
            "tags": ["a"],
            "mixed": i if i % 2 else "x",
        }
        for i in range(ROWS)
    ]
    del rows[3]["n"]
    rows[4]["tags"] = None
    model = from_text(tmp_path, "rows.jsonl", "\n".join(json.dumps(r) for r in rows))
    found = columns(model)
    assert {n: c.kind for n, c in found.items()} == {
        "id": "str",
        "x": "float",
        "n": "int",
        "day": "date",
        "tags": "list",
    }
    assert model.inputs.style == "dataclass"  # whose columns may be absent
    assert found["n"].default is None
    assert found["tags"].nullable
    assert "# left out: mixed (int and str values" in (tmp_path / "churn.py").read_text()


def test_names_that_python_has_not(tmp_path: Path) -> None:
    names = ["Customer ID", "class", "2nd", 'say "hi"', "it's", "__x", "ñandú", "a\nb", "back\\slash", "{data_date}"]
    data = pa.table({name: [i * (k + 1) for i in range(ROWS)] for k, name in enumerate(names)})
    model = from_parquet(tmp_path, data)
    assert [c.name for c in model.inputs.columns] == names
    assert [c.name for c in model.inputs.keys] == ["Customer ID"]


def test_choices_with_quotes_and_long_ones(tmp_path: Path) -> None:
    texts = [
        'say "hi"',
        "it's",
        "back\\slash",
        "",
        "two\nlines",
        *(f"a rather long choice, number {i}" for i in range(5)),
    ]
    model = from_parquet(tmp_path, table(x=[texts[i % 10] for i in range(ROWS)]))
    assert columns(model)["x"].choices == tuple(sorted(texts))
    assert max(map(len, (tmp_path / "churn.py").read_text().splitlines())) <= 100


def test_the_key_is_the_unique_column_that_is_named_like_one(tmp_path: Path) -> None:
    numbers = list(range(ROWS))
    data = pa.table({"rank": numbers, "paid": numbers, "account_id": [f"a{i}" for i in numbers], "id": [1] * ROWS})
    assert [c.name for c in from_parquet(tmp_path, data).inputs.keys] == ["account_id"]


def test_without_a_key_it_says_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 1, 2], "x": [1.0, 2.0, 3.0], "y": ["a", None, "b"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"can be the key: .* duplicates or missing values\. Add one that identifies"):
        new("churn", tmp_path, tmp_path / "rows.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_key_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id\n1\n2\n")
    with pytest.raises(InputError, match="no feature"):
        new("churn", tmp_path, tmp_path / "rows.csv")


@pytest.mark.parametrize(
    "columns_",
    [
        {"same": ["x"] * ROWS},
        {"tags": [["a"]] * ROWS},
        {"word": ["abcd", "efgh"] * 30},
        {"day": [date(2026, 5, 1 + i % 9) for i in range(ROWS)]},
        {"near": [1e9 + i / 1e9 for i in range(ROWS)]},
    ],
)
def test_the_stand_in_differs_from_row_to_row(tmp_path: Path, columns_: dict[str, Any]) -> None:
    data = table(**columns_)
    scores = from_parquet(tmp_path, data).score(data).predictions["score"].to_pylist()
    assert len(set(scores)) > 1
    assert all(0 <= s <= 1 for s in scores)


def test_columns_named_like_what_the_file_uses(tmp_path: Path) -> None:
    data = table(date=[date(2026, 5, 1)] * ROWS, int=[1.5] * ROWS, pa=["x"] * ROWS, rows=[True, False] * 30)
    model = from_parquet(tmp_path, data.append_column("Row", [[{"date": date(2026, 5, 1)}] * ROWS]))
    assert columns(model)["date"].kind == "date"
    jsonl = [{"id": i, "date": "2026-05-01", "other": "2026-05-01"} for i in range(ROWS)]
    del jsonl[0]["date"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in jsonl))
    found = columns(passes(new("other", tmp_path, tmp_path / "rows.jsonl")))
    assert list(found) == ["id", "other"]  # a default would hide the type of the columns after it


def test_a_score_in_the_data(tmp_path: Path) -> None:
    data = pa.table({"score": list(range(ROWS)), "x": [i % 2 for i in range(ROWS)]})
    model = from_parquet(tmp_path, data)
    assert [c.name for c in model.inputs.keys] == ["score"]
    assert [c.name for c in model.outputs.columns] == ["prediction"]


def test_types_that_no_row_type_holds_are_left_out(tmp_path: Path) -> None:
    data = table(
        x=list(range(ROWS)),
        raw=[b"x"] * ROWS,
        seen=pa.array([datetime(2026, 5, 1, 10)] * ROWS),  # no time zone
        precise=pa.array([1] * ROWS, pa.timestamp("ns", "UTC")),
        nothing=pa.nulls(ROWS),
    )
    assert list(columns(from_parquet(tmp_path, data))) == ["customer_id", "x"]
    text = (tmp_path / "churn.py").read_text()
    assert [line.split("(")[0].strip() for line in text.splitlines() if "left out" in line] == [
        f"# left out: {name}" for name in ("raw", "seen", "precise", "nothing")
    ]


def test_the_source_is_relative_below_the_folder_and_absolute_elsewhere(tmp_path: Path) -> None:
    inside, outside = tmp_path / "project" / "da[ta]" / "{x}.csv", tmp_path / "rows.csv"
    inside.parent.mkdir(parents=True)
    text = "\n".join(["id,x", *(f"{i},{i % 5}" for i in range(ROWS))])
    inside.write_text(text)
    outside.write_text(text)
    one = passes(new("first_of_two", tmp_path / "project", inside))
    assert one.declared["source"] == "da[[]ta]/{{x}}.csv"
    two = passes(new("second_of_two", tmp_path / "project", outside))
    assert two.declared["source"] == str(outside)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "is missing: there is no such file"),
        ("folder", None, "is a folder; give one file of it"),
        ("rows.xlsx", "x", r"unknown kind \(\.xlsx\)\. Valid are Parquet"),
        ("rows.csv", "", "is empty"),
        ("rows.csv", "id,x\n", "holds no rows"),
        ("rows.jsonl", "", "holds no rows"),
        ("rows.jsonl", "{}\n", "can be the key"),
        ("rows.jsonl", '{"id": 1}\n[1]\n', "line 2, is no JSON object"),
        ("rows.jsonl", '{"id": 1}\n{"id"\n', "line 2, is no JSON"),
        ("rows.parquet", "x", "cannot be read as Parquet"),
        ("rows.csv", "id,x,x\n1,2,3\n", "two columns named 'x'"),
    ],
)
def test_data_that_cannot_be_guessed_from(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((SourceError, InputError), match=message):
        new("churn", tmp_path, tmp_path / name)
    assert not (tmp_path / "churn.py").exists()
    assert not (tmp_path / "sereno.toml").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Churn Rate", r"`sereno new churn-rate` would do"),
        ("churn.py", r"`sereno new churn` would do"),
        ("../churn", "is not valid"),
        ("", "is not valid"),
        ("2nd", "Python cannot import"),
        ("class", "`sereno new model-class`"),
        ("random", "hides the Python package 'random'"),
        ("sereno", "hides the Python package 'sereno'"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        new(name, tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "churn.py").write_text("mine")
    with pytest.raises(ModelFileError, match=r"churn\.py exists already, and was left as it is"):
        new("churn", tmp_path, None)
    (tmp_path / "other_data.csv").write_text("mine")
    with pytest.raises(ModelFileError, match=r"other_data\.csv exists already, .* `--from-data`"):
        new("other", tmp_path, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["churn.py", "other_data.csv"]
