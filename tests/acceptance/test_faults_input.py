"""Input and models that are broken the way real ones break: a named error or a counted reject, and nothing else changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.project import DAY, MODEL, NEXT_DAY, PARTS, ROWS, Project, faults

PREDICT = MODEL[MODEL.index("@model.predict") : MODEL.index("if __name__")]
READ = """
@model.read
def read(data_date: date):
{body}

"""


@pytest.fixture
def published(project: Project) -> Project:
    """A project that has published a night of 100 rows; the next one is the test's."""
    project.rows(DAY, 100)
    project.run(DAY)
    return project


def fails(project: Project, error: str, *says: str, day: str = NEXT_DAY) -> None:
    """A run that ends with this error, in these words, and leaves what is published alone."""
    before, exported, versions = project.published(), project.exported(), project.versions()
    # 4: another try would fail of the same
    said = project.run(day, code=1 if error in ("SourceError", "PredictError") else 4)
    assert said["error"] == error
    for words in says:
        assert words in said["says"], said["says"]
    assert (project.published(), project.exported(), project.versions()) == (before, exported, versions)
    assert project.states()[-1] == "failed"
    assert project.runs()[-1]["says"] == said["says"]


def rejects(project: Project, report: dict) -> list[tuple]:  # type: ignore[type-arg]
    file = project.predictions / report["rejects_file"]
    table = pq.read_table(file)
    assert table.column("run").unique().to_pylist() == [report["attempt"]]
    assert table.num_rows == report["rejects"] == report["rows_in"] - report["predictions"]
    return [(row["row"], row["key"], row["reason"], row["data"]) for row in table.to_pylist()]


# Sources


def test_a_truncated_file(published: Project) -> None:
    published.rows(NEXT_DAY, 1_000, parts=4)
    file = published.folder / "input" / NEXT_DAY / "2.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    fails(
        published, "SourceError", f"input/{NEXT_DAY}/2.parquet cannot be read as Parquet: ",
        "It may be truncated or still being written; have it written again, then start the run again.",
    )  # fmt: skip
    file.write_bytes(content)
    assert published.run(NEXT_DAY, "--set", "models.total.gates.max_row_change=99")["predictions"] == 1_000


def test_a_damaged_file(published: Project) -> None:
    """Its metadata is whole, so it is found out while it is scored; the tasks before it are kept."""
    published.settings(gates__max_row_change=1e9)
    published.rows(NEXT_DAY, ROWS, parts=PARTS)
    file = published.folder / "input" / NEXT_DAY / f"{PARTS - 1}.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 5_000 + content[5_004:])
    fails(
        published, "SourceError", f"{PARTS - 1}.parquet broke off while it was read: ",
        "It may be truncated or damaged; have it written again, then start the run again.",
    )  # fmt: skip
    file.write_bytes(content)
    report = published.run(NEXT_DAY)
    assert (report["predictions"], report["tasks"]) == (ROWS, PARTS)
    assert report["resumed_tasks"] >= 1
    assert published.orphans() == set()


def test_a_broken_line_of_csv(published: Project) -> None:
    published.write("total.py", MODEL.replace("*.parquet", "*.csv"))
    lines = [f"{i},{i / 8}" for i in range(100)]
    lines[40] = "40,5.0,6.0"
    lines[70] = "70,much"
    published.write(f"input/{NEXT_DAY}/rows.csv", "id,x\n" + "\n".join(lines) + "\n")
    report = published.run(NEXT_DAY)
    assert (report["rows_in"], report["predictions"], report["rejects"]) == (100, 98, 2)
    broken, mistyped = rejects(published, report)
    assert broken[:2] == (None, None)
    assert broken[2].endswith("has 3 columns instead of 2")
    assert broken[3] == "40,5.0,6.0"
    assert mistyped[1] == "70"
    assert mistyped[2].startswith("x: ")
    assert mistyped[3] == '{"id":"70","x":"much"}'
    shown = published.sereno("show", report["attempt"]).stdout
    assert "100 rows in = 98 predictions + 2 rejects" in shown
    assert broken[2] in shown


def test_a_broken_line_of_json(published: Project) -> None:
    published.write("total.py", MODEL.replace("*.parquet", "*.jsonl"))
    lines = [f'{{"id": {i}, "x": {i / 8}}}' for i in range(100)]
    lines[3], lines[5] = '{"id": 3, "x": ', '{"id": 5, "x": "much"}'
    published.write(f"input/{NEXT_DAY}/rows.jsonl", "\n".join(lines) + "\n")
    report = published.run(NEXT_DAY)
    assert report["predictions"] == 98
    first, second = rejects(published, report)
    assert (first[0], first[1], first[3]) == (3, None, '{"id": 3, "x":')
    assert (second[0], second[1], second[3]) == (5, "5", '{"id": 5, "x": "much"}')


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": [1, 2]}, "'x' is missing"),
        ({"name": ["a"], "value": [1.5]}, "is missing"),
        ({"id": [1, 2], "x": ["much", "little"]}, "x"),
        ({"id": [1.5, 2.5], "x": [pa.scalar(b"?"), pa.scalar(b"!")]}, "x"),
    ],
)
def test_a_column_that_is_missing_or_mistyped(published: Project, columns: dict[str, list[object]], says: str) -> None:
    published.rows(NEXT_DAY, 100, parts=2)
    published.table(NEXT_DAY, columns, "1.parquet")  # the other file is right, and not scored either
    fails(published, "InputError", f"input/{NEXT_DAY}/1.parquet: ", says)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "read"])
def test_no_rows(published: Project, kind: str) -> None:
    if kind == "read":
        body = '    return pa.table({"id": pa.array([], pa.int64()), "x": pa.array([], pa.float64())})'
        published.write("total.py", reading(body))
    else:
        published.write("total.py", MODEL.replace("*.parquet", f"*.{kind}"))
        if kind == "parquet":
            published.table(NEXT_DAY, {"id": pa.array([], pa.int64()), "x": pa.array([], pa.float64())})
        else:
            published.write(f"input/{NEXT_DAY}/rows.{kind}", {"csv": "id,x\n", "jsonl": "\n\n"}[kind])
    fails(published, "SourceError", " no rows", "see what feeds it")


def test_no_input(published: Project) -> None:
    fails(
        published, "SourceError", f"/input/{NEXT_DAY}/*.parquet is missing: there is no such file, or the folder or pattern holds none.",
        "If it arrives later, start the run again then; if its place is another, mend source= or [values].",
    )  # fmt: skip


def reading(body: str) -> str:
    """The model with a `read` function in place of `source`."""
    text = MODEL.replace(',\n              source="input/{data_date}/*.parquet"', "")
    return text.replace("import os, sys\n", "import os, sys\nfrom datetime import date\n").replace(
        "@model.predict", READ.format(body=body).lstrip() + "@model.predict"
    )


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ('    raise RuntimeError("no connection")', "PredictError", "read raised RuntimeError: no connection."),
        ('    open("nowhere/rows.csv")', "SourceError", "read found no nowhere/rows.csv. If the data arrives later"),
        ('    yield pa.table({"id": [1], "x": [1.0]})\n    raise OSError("line is down")', "SourceError", "read could not read"),
        ("    return 7", "InputError", "read: Rows came as int."),
        ('    return pa.table({"id": [1]})', "InputError", "'x' is missing"),
    ],
)  # fmt: skip
def test_a_read_that_fails(published: Project, body: str, error: str, says: str) -> None:
    published.write("total.py", reading(body))
    fails(published, error, says)


# Keys


@pytest.mark.parametrize(("parts", "rows"), [(1, 100), (PARTS, ROWS)])
def test_duplicate_keys(published: Project, parts: int, rows: int) -> None:
    """Within a task, and in two."""
    published.settings(gates__max_row_change=1e9)
    published.rows(NEXT_DAY, rows, parts=parts)
    last = published.folder / "input" / NEXT_DAY / f"{parts - 1}.parquet"
    table = pq.read_table(last)
    ids = table.column("id").to_pylist()
    ids[-1], ids[-2] = 7, 8
    pq.write_table(table.set_column(0, "id", pa.array(ids)), last)
    fails(
        published, "DuplicateKeysError", "2 keys occur more than once, in 4 rows: ", "id=7", "id=8",
        'Mend the source, or set duplicates = "first" or "last" to keep one row of each. Nothing was published.',
    )  # fmt: skip
    x = {7: (7 / 8, (rows - 1) / 8), 8: (1.0, (rows - 2) / 8)}  # the first and the last row of each key
    for policy, chosen in (("first", 0), ("last", 1)):
        report = published.run(NEXT_DAY, "--set", f"models.total.duplicates={policy}")
        assert (report["rows_in"], report["predictions"], report["rejects"]) == (rows, rows - 2, 2)
        assert report["uncounted_rejects"] == 2
        for key in (7, 8):
            assert published.look("get", "total", str(key))["y"] == 2 * x[key][chosen]
        reason = f"duplicate key: the {policy} row with it counts"
        dropped = {row[1]: row for row in rejects(published, report)}
        for key, row, other in ((7, 7, rows - 1), (8, 8, rows - 2)):
            place, left = (other, x[key][1]) if policy == "first" else (row, x[key][0])
            assert dropped[str(key)] == (place, str(key), reason, f'{{"id":{key},"x":{left}}}')
        assert published.orphans() == set()


# Models


def predicting(body: str) -> str:
    return MODEL.replace(PREDICT, f"@model.predict\ndef predict(weight, rows: pa.Table):\n{body}\n\n\n")


def test_a_predict_that_raises_on_some_rows(published: Project) -> None:
    body = '    assert not pc.any(pc.equal(rows["x"], 1.625)).as_py(), "unlucky"\n    return {"y": pc.multiply(rows["x"], weight)}'
    body = body.replace('{"y"', 'pa.table({"y"').replace("weight)}", "weight)})")
    published.write("total.py", predicting(body))
    published.rows(NEXT_DAY, 100)
    report = published.run(NEXT_DAY)
    assert rejects(published, report) == [(13, "13", "predict raised AssertionError: unlucky", '{"id":13,"x":1.625}')]
    assert report["predictions"] == 99
    assert report["reasons"] == {"predict raised AssertionError: unlucky": 1}


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ('    raise ValueError("not today")', "PredictError", "predict raised ValueError on 50 rows of a batch of 100 and answered 0"),
        ('    return pa.table({"y": rows["x"][1:]})', "OutputError", "99"),
        ('    return pa.table({"z": rows["x"]})', "OutputError", "y"),
        ('    return pa.table({"y": rows["x"], "z": rows["x"]})', "OutputError", "z"),
        ('    return pa.table({"y": pc.cast(rows["x"], "string")})', "OutputError", "y"),
        ("    return 3", "OutputError", "int"),
    ],
)  # fmt: skip
def test_a_predict_that_does_not_do_what_it_declares(published: Project, body: str, error: str, says: str) -> None:
    published.write("total.py", predicting(body))
    published.rows(NEXT_DAY, 100)
    fails(published, error, "total.py:", says)


def test_answers_that_do_not_fit_the_output_type(published: Project) -> None:
    model = MODEL.replace("y: float", "y: Annotated[float, Ge(0)]").replace(
        "from typing import TypedDict", "from typing import Annotated, TypedDict\n\nfrom annotated_types import Ge"
    )
    published.write("total.py", model)
    published.rows(NEXT_DAY, [-1.0, *range(99)])
    report = published.run(NEXT_DAY)
    ((row, key, reason, _),) = rejects(published, report)
    assert (row, key) == (0, "0")
    assert reason.startswith("output:y: ")
    published.rows(NEXT_DAY, [-1.0] * 100)
    fails(published, "DataError", "None of the 100 rows could be scored; the most frequent reason is “output:y: ")


def test_a_load_that_raises(published: Project) -> None:
    published.write("weight.txt", "heavy")
    published.rows(NEXT_DAY, ROWS, parts=PARTS)
    for workers in ("1", "2"):
        said = published.run(NEXT_DAY, "--workers", workers, code=1)
        assert said["error"] == "PredictError"
        assert "load raised ValueError: could not convert string to float: 'heavy'" in said["says"]


# Several at once


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_runs_of_one_key_at_once(published: Project) -> None:
    published.rows(NEXT_DAY, 100)
    first = published.start("run", "total.py", "--date", NEXT_DAY, **faults("scored:delay=3"))
    until(lambda: published.states()[-1] == "running")
    said = published.run(NEXT_DAY, code=1)
    assert said["error"] == "BusyError"
    assert said["says"] == (
        f"A run of model 'total' for this interval is going on already (pid {first.pid}). Wait for it, or end it."
    )
    assert published.states() == ["published", "running"]  # who looks does not disturb it either
    out, error = first.communicate()
    assert first.returncode == 0, error
    assert "published as version 2" in out
    assert published.in_service() == [2]
    assert published.states() == ["published", "published"]


def test_two_dates_at_once(project: Project) -> None:
    """One commits after the other; neither cleans away what the other is about to publish."""
    project.settings(disposition="partition")
    days = [f"2024-05-{day:02}" for day in range(1, 5)]
    for day in days:
        project.rows(day, 200)
    slow = faults("fsync:delay=0.2,commit_after:delay=0.2")
    runs = [project.start("run", "total.py", "--date", day, **slow) for day in days]
    for run in runs:
        _, error = run.communicate()
        assert run.returncode == 0, error
    table = project.published()
    assert table is not None
    assert sorted(d.isoformat() for d in table.column("data_date").unique().to_pylist()) == days
    assert table.num_rows == 800
    assert sorted(v["version"] for v in project.versions()) == [1, 2, 3, 4]
    assert project.orphans() == set()


def test_an_older_date_that_is_overtaken(project: Project) -> None:
    project.rows(DAY, 100)
    project.rows(NEXT_DAY, 100)
    older = project.start("run", "total.py", "--date", DAY, **faults("gate_after:delay=3"))
    until(lambda: any(project.folder.glob(".sereno/runs/total/*/report.json")))
    assert project.run(NEXT_DAY)["version"] == 1
    _, error = older.communicate()
    assert older.returncode == 4
    assert (
        f"sereno: Data date {DAY} is older than {NEXT_DAY}, which is in service (version 1). Nothing was published. "
        "`sereno run --force` puts the older one in service." in error
    )
    assert [v["data_date"] for v in project.versions()] == [NEXT_DAY]
    report = project.run(DAY, "--force")
    assert (report["version"], report["resumed_tasks"]) == (2, 1)


def test_readers_see_one_version_while_runs_publish(project: Project) -> None:
    """A reader in a loop, through three publications."""
    project.rows(DAY, 1_000)
    project.run(DAY)
    seen = set()
    for weight in ("3", "4", "5"):
        project.write("weight.txt", weight)
        run = project.start("run", "total.py", "--date", DAY)
        while run.poll() is None:
            for table in (project.published(), project.exported()):
                assert table is not None
                assert table.num_rows == 1_000
                seen.add(table.column("y")[8].as_py())
        run.communicate()
        assert run.returncode == 0
    assert {2.0, 3.0, 4.0} <= seen <= {2.0, 3.0, 4.0, 5.0}


def test_a_home_of_its_own(published: Project, tmp_path: Path) -> None:
    published.rows(NEXT_DAY, 10)
    report = published.run(NEXT_DAY, "--home", str(tmp_path / "elsewhere"))
    assert report["version"] == 1
    assert (tmp_path / "elsewhere" / "predictions" / "total" / "_delta_log").is_dir()
    assert published.in_service() == [1]
