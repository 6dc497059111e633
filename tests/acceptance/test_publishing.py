"""What is published, when, and how one goes back: the command line as operators use it.

Most commands are called within the test's own process, ten times as fast; the other files start processes, and so do the
tests here that say so.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import sereno
from sereno.config import load_settings
from sereno.exceptions import NotFoundError
from sereno.home import Home
from tests.acceptance.project import DAY, MODEL, NEXT_DAY, PARTS, ROWS, THIRD_DAY, Project, in_order

DAYS = [f"2024-05-{day:02}" for day in range(1, 11)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The model total, on one worker, with some 100 rows for each of three nights."""
    project = Project.new(tmp_path / "project")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1"}
    for night, day in enumerate((DAY, NEXT_DAY, THIRD_DAY)):
        project.rows(day, 100 + night)
    return project


def values(project: Project) -> set[float]:
    """y of row 8 of what is published, by which weights can be told apart: it is the weight."""
    table = project.published()
    assert table is not None
    return set(table.filter(pa.compute.equal(table["id"], 8)).column("y").to_pylist())


def weigh(project: Project, weight: int) -> None:
    project.write("weight.txt", str(weight))


# Runs and revisions


def test_a_run_then_nothing_then_force(project: Project) -> None:
    project.within = False
    first = project.run(DAY)
    assert (first["state"], first["version"], first["rows_in"], first["predictions"]) == ("published", 1, 100, 100)
    again = project.sereno("run", "total.py", "--date", DAY)
    assert again.stdout.startswith("Nothing to do: the same input, model and settings were published as version 1 (")
    assert "`--force` scores and publishes again." in again.stdout
    assert project.states() == ["published"]  # what did nothing leaves no trace
    forced = project.run(DAY, "--force")
    assert (forced["version"], forced["resumed_tasks"]) == (2, 0)
    assert project.run(DAY)["version"] == 2
    assert project.orphans() == set()


@pytest.mark.parametrize("change", ["model", "sibling", "artifact", "input", "value", "duplicates", "gates"])
def test_what_makes_a_new_revision(project: Project, change: str) -> None:
    project.within = False
    model = MODEL.replace("from sereno import", "import features\nfrom sereno import")
    model = model.replace("def load(weight: Path):", 'def load(weight: Path, unit: str = "DM"):')
    project.write("total.py", model)
    project.write("features.py", "FACTOR = 1\n")
    project.run(DAY)
    assert project.run(DAY)["state"] == "nothing"
    arguments: tuple[str, ...] = ()
    match change:
        case "model":
            project.write("total.py", model + "# a remark\n")
        case "sibling":
            project.write("features.py", "FACTOR = 2\n")
        case "artifact":
            weigh(project, 3)
        case "input":
            project.rows(DAY, 100)
        case "value":
            arguments = ("--set", "values.unit=EUR")
        case "duplicates":
            arguments = ("--set", "models.total.duplicates=first")
        case "gates":  # they change what is held, not what is published
            arguments = ("--set", "models.total.gates.max_reject_rows=3")
    assert project.run(DAY, *arguments)["state"] == ("nothing" if change == "gates" else "published")


def test_a_model_without_artefacts_is_never_done(project: Project) -> None:
    text = MODEL.replace('artifacts={"weight": "weight.txt"},', "").replace("load(weight: Path)", "load()")
    project.write("total.py", text.replace("float(weight.read_text())", "2.0"))
    for version in (1, 2):
        report = project.run(DAY)
        assert (report["state"], report["version"], report["resumed_tasks"]) == ("published", version, 0)


def test_rows_that_a_function_reads_decide_too(project: Project) -> None:
    text = MODEL.replace(',\n              source="input/{data_date}/*.parquet"', "").replace(
        "@model.predict",
        "import pyarrow.parquet as pq\n\n@model.read\ndef read(data_date, folder: Path):\n"
        '    return pq.read_table(folder / f"{data_date}")\n\n\n@model.predict',
    )
    project.write("total.py", text)
    project.write("sereno.toml", '[values]\nfolder = "input"\n')
    assert project.run(DAY)["version"] == 1
    assert project.run(DAY)["state"] == "nothing"
    assert project.orphans() == set()
    project.rows(DAY, 101)
    assert project.run(DAY)["version"] == 2


def test_an_older_date(project: Project) -> None:
    project.run(NEXT_DAY)
    said = project.run(DAY, code=4)
    assert said == {
        "error": "OlderDataError",
        "says": f"Data date {DAY} is older than {NEXT_DAY}, which is in service (version 1). Nothing was scored. "
        "`sereno run --force` puts the older one in service.",
    }
    assert project.in_service() == [1]
    assert project.run(DAY, "--force")["version"] == 2
    assert project.in_service() == [2]
    assert project.look("get", "total", "1")["data_date"] == DAY
    assert project.run(NEXT_DAY)["state"] == "nothing"  # it was published; what is older now is a matter of rollback
    assert project.json("rollback", "total")["in_service"] == 1


# Rollback


def test_rollback(project: Project) -> None:
    for weight in (1, 2, 3):
        weigh(project, weight)
        project.run(DAY)
    said = project.sereno("rollback", "total", "--why", "too generous").stdout
    assert said == f"Version 2 (data date {DAY}) of total is in service again, in place of 3.\n"
    assert (values(project), project.in_service()) == ({2.0}, [2])
    assert project.exported() == project.published()
    assert [v["withdrawn"] for v in project.versions()] == [False, False, True]
    newest = DeltaTable(project.predictions).history(1)[0]
    assert newest["sereno.why"] == "too generous"
    assert newest["sereno.who"]

    nothing = project.run(DAY)
    assert nothing["says"] == (
        "Version 3 is this very revision and was rolled back: it is not published again. "
        "`sereno rollback total --to 3` or `sereno run --force` would."
    )
    assert nothing["state"] == "nothing"
    assert project.in_service() == [2]

    assert project.json("rollback", "total") == {"rolled_back": 2, "in_service": 1, "data_date": DAY}
    says = "Version 1 of model 'total' has no earlier version that was not withdrawn. Name one with --to, or run the model again."
    assert project.json("rollback", "total", code=1)["says"] == says

    assert project.json("rollback", "total", "--to", "3")["in_service"] == 3
    assert (values(project), [v["withdrawn"] for v in project.versions()]) == ({3.0}, [False, True, False])
    assert project.exported() == project.published()
    assert project.run(DAY)["says"].startswith("Nothing to do")
    weigh(project, 2)
    assert project.run(DAY)["says"].startswith("Version 2 is this very revision and was rolled back")
    assert project.run(DAY, "--force")["version"] == 4
    assert values(project) == {2.0}
    assert project.orphans() == set()


def test_rollback_to_what_cannot_be(project: Project) -> None:
    said = project.json("rollback", "total", code=1)
    assert said["error"] == "NotFoundError"
    assert said["says"].startswith("There is no model 'total' in")
    project.run(DAY)
    for to, says in (
        ("7", "Model 'total' has no version 7. It has 1."),
        ("1", "Version 1 of model 'total' is in service already."),
    ):
        assert project.json("rollback", "total", "--to", to, code=1)["says"] == says
    assert "'0' is no whole number of 1 or more" in project.sereno("rollback", "total", "--to", "0", code=2).stderr
    assert (
        project.json("rollback", "total", "--date", "May", code=2)["says"]
        == "'May' is no date; write it as 2026-05-01."
    )


# One partition per data date


@pytest.fixture
def by_date(project: Project) -> Project:
    project.settings(disposition="partition")
    project.run(DAY)
    project.run(THIRD_DAY)
    project.run(NEXT_DAY)  # an older one has its place too
    return project


def dates(project: Project) -> dict[str, int]:
    table = project.published()
    assert table is not None
    counts = table.column("data_date").value_counts().to_pylist()
    return {c["values"].isoformat(): c["counts"] for c in counts}


def test_dates_accumulate(by_date: Project) -> None:
    assert dates(by_date) == {DAY: 100, NEXT_DAY: 101, THIRD_DAY: 102}
    assert by_date.in_service() == [1, 2, 3]
    assert by_date.latest.readlink() == Path("000002")  # the newest date, not the newest version
    weigh(by_date, 5)
    by_date.rows(NEXT_DAY, 110)
    assert by_date.run(NEXT_DAY)["version"] == 4
    assert dates(by_date) == {DAY: 100, NEXT_DAY: 110, THIRD_DAY: 102}
    assert values(by_date) == {2.0, 5.0}
    assert by_date.look("get", "total", "8")["data_date"] == THIRD_DAY
    assert by_date.look("get", "total", "105")["data_date"] == NEXT_DAY  # the newest date that has the key
    home = by_date.folder
    assert in_order(sereno.read_predictions("total", home=home)) == by_date.published()
    assert sereno.read_predictions("total", version=3, home=home).num_rows == 101
    assert by_date.orphans() == set()


def test_rollback_of_one_date(by_date: Project) -> None:
    weigh(by_date, 5)
    by_date.run(DAY)
    by_date.run(THIRD_DAY)
    assert by_date.in_service() == [3, 4, 5]
    assert by_date.json("rollback", "total") == {"rolled_back": 5, "in_service": 2, "data_date": THIRD_DAY}
    assert by_date.json("rollback", "total", "--date", DAY) == {"rolled_back": 4, "in_service": 1, "data_date": DAY}
    assert (by_date.in_service(), values(by_date)) == ([1, 2, 3], {2.0})
    assert by_date.json("rollback", "total", "--to", "4")["data_date"] == DAY
    assert by_date.in_service() == [2, 3, 4]
    said = by_date.json("rollback", "total", "--date", "2024-06-01", code=1)
    assert said["says"] == "Model 'total' has nothing in service for data date 2024-06-01."
    assert by_date.orphans() == set()


def test_rollback_of_the_first_version_of_a_date(by_date: Project) -> None:
    said = by_date.sereno("rollback", "total").stdout
    assert said == f"Data date {THIRD_DAY} of total is empty now: version 2 was its first.\n"
    assert dates(by_date) == {DAY: 100, NEXT_DAY: 101}
    assert by_date.latest.readlink() == Path("000003")
    assert by_date.run(THIRD_DAY)["state"] == "nothing"  # withdrawn
    by_date.sereno("rollback", "total")
    said = by_date.json("rollback", "total", code=1)
    assert said["says"].startswith("Version 1 of model 'total' has no earlier version that was not withdrawn.")
    assert dates(by_date) == {DAY: 100}  # never an empty table
    again = by_date.json("rollback", "total", "--to", "2")
    assert again == {"rolled_back": None, "in_service": 2, "data_date": THIRD_DAY}
    assert dates(by_date) == {DAY: 100, THIRD_DAY: 102}


def test_columns_that_come_and_go(by_date: Project) -> None:
    more = (
        MODEL.replace("y: float", "y: float\n    z: int")
        .replace("weight)})", 'weight), "z": pa.array(range(len(rows)), pa.int64())})')
        .replace('pc.multiply(rows["x"], weight)})', "")
    )
    by_date.write("total.py", more)
    assert by_date.run(NEXT_DAY)["version"] == 4
    by_date.write("total.py", MODEL)
    by_date.run(THIRD_DAY, "--force")
    table = by_date.published()
    assert table is not None
    assert table.column_names == ["data_date", "id", "y", "z"]
    assert table.column("z").null_count == 100 + 102  # of the dates whose model had no z
    assert in_order(sereno.read_predictions("total", home=by_date.folder)) == table

    by_date.write("total.py", more.replace("z: int", "z: float").replace("pa.int64()", "pa.float64()"))
    said = by_date.run(DAY, code=1)
    assert said["error"] == "PublishError"
    assert said["says"] == (
        f"Column 'z' of table {by_date.predictions} is long, and the model now gives double. Its dates lie in one table: "
        "give the output another name, or move the table away to start a new one."
    )
    assert by_date.published() == table
    by_date.settings(disposition="replace")
    said = by_date.run(DAY, code=1)
    assert said["says"] == (
        f"Table {by_date.predictions} was made with disposition = 'partition'; the settings say 'replace'. Set it back, or "
        "move the table away to start a new one."
    )


def test_columns_of_a_table_that_is_replaced(project: Project) -> None:
    project.run(DAY)
    project.write("total.py", MODEL.replace("y: float", "grade: str").replace(
        '{"y": pc.multiply(rows["x"], weight)}', '{"grade": pc.cast(rows["x"], "string")}'
    ))  # fmt: skip
    project.run(NEXT_DAY)
    assert project.published() == project.exported()
    assert project.published().column_names == ["grade", "id"]  # type: ignore[union-attr]
    project.json("rollback", "total")
    assert project.published().column_names == ["id", "y"]  # type: ignore[union-attr]


# Held runs


def test_release(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    done = project.sereno("run", "total.py", "--date", NEXT_DAY, code=3)
    run = project.runs()[-1]["attempt"]
    says = f"10 predictions, -90% against 100 of version 1 ({DAY}); at most ±50%"
    assert f"Run {run} of total: held" in done.stdout
    assert (
        f"Held by 1 gate (row count: {says}). What was in service stays. Look at it (`sereno show {run}`), then"
        in done.stdout
    )
    assert f"HELD    row count: {says}" in done.stdout
    assert (project.in_service(), project.states()) == ([1], ["published", "held"])

    released = project.sereno("release", run).stdout
    assert f"Run {run} of total: published as version 2" in released
    assert "Released by " in released
    assert f"HELD    row count: {says}" in released  # shown, judged again, and overruled
    assert project.in_service() == [2]
    assert project.exported() == project.published()
    assert f"Run {run} is published, not held. Released by" in project.json("release", run, code=1)["says"]
    assert project.json("discard", run, code=1)["says"].startswith(f"Run {run} is published, not held.")
    assert project.run(NEXT_DAY)["says"].startswith("Nothing to do")
    assert project.orphans() == set()


def test_discard(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    run = project.run(NEXT_DAY, code=3)["attempt"]
    assert (project.predictions / run).is_dir()
    assert project.sereno("discard", run).stdout == f"Discarded {run}; what is in service stays.\n"
    assert project.states() == ["published", "discarded"]
    assert not (project.predictions / run).exists()
    assert project.json("release", run, code=1)["says"].startswith(f"Run {run} is discarded, not held.")


def test_a_new_revision_discards_the_held_one(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    held = project.run(NEXT_DAY, code=3)["attempt"]
    project.rows(NEXT_DAY, 20)
    second = project.run(NEXT_DAY, code=3)["attempt"]
    assert project.states() == ["published", "discarded", "held"]
    assert project.look("show", held)["says"] == f"Replaced by {second}."
    project.rows(NEXT_DAY, 99)
    project.run(NEXT_DAY)
    assert project.states() == ["published", "discarded", "discarded", "published"]
    assert project.json("release", second, code=1)["error"] == "PublishError"
    assert project.orphans() == set()


def test_a_held_date_does_not_block_later_ones(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    run = project.run(NEXT_DAY, code=3)["attempt"]
    assert project.run(THIRD_DAY)["version"] == 2
    said = project.json("release", run, code=1)
    assert said["error"] == "OlderDataError"
    assert said["says"].startswith(f"Data date {NEXT_DAY} is older than {THIRD_DAY}, which is in service (version 2).")
    assert project.states() == ["published", "held", "published"]
    assert project.in_service() == [2]
    assert project.orphans() == set()  # what is held is kept


def test_a_held_run_of_parts_that_are_gone(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    report = project.run(NEXT_DAY, code=3)
    part = Path(report["parts"][0]["path"])
    part.write_bytes(part.read_bytes() + b"!")
    said = project.json("release", report["attempt"], code=1)
    assert said["says"] == f"{part} was removed or changed since it was scored. Run the data date again."


# Retention


def test_retention(project: Project) -> None:
    for number, day in enumerate(DAYS[:9]):
        project.rows(day, [-1.0] * 2 + [1.0 + number] * 98)
        project.write("total.py", MODEL.replace("x: float", "x: Annotated[float, Ge(0)]").replace(
            "import TypedDict", "import Annotated, TypedDict\n\nfrom annotated_types import Ge"
        ))  # fmt: skip
        project.settings(gates__constant="allow")
        assert project.run(day)["rejects"] == 2
    assert all(kept(project, number) for number in range(1, 10))  # they are younger than a day

    home = Home(load_settings(project.folder, overrides={"models.total.keep_hours": "0"}), "total")
    home.follow()
    home.clean()
    assert [number for number in range(1, 10) if kept(project, number)] == [3, 4, 5, 6, 7, 8, 9]
    exported = {f.name for f in project.latest.parent.iterdir() if f.name.isdigit()}
    assert exported == {f"{number:06}" for number in range(3, 10)}

    gone = (
        "Version 2 of model 'total' is no longer kept: its parts were removed, see keep_snapshots and keep_hours. "
        f"Run data date {DAYS[1]} again."
    )
    assert project.json("rollback", "total", "--to", "2", code=1)["says"] == gone
    with pytest.raises(NotFoundError, match="Version 2 of model 'total' is no longer kept"):
        sereno.read_predictions("total", version=2, home=project.folder)
    assert project.json("get", "total", "5", "--version", "2", code=1)["says"] == gone
    assert project.json("rollback", "total", "--to", "3")["in_service"] == 3
    assert project.published().num_rows == 98  # type: ignore[union-attr]


def kept(project: Project, number: int) -> bool:
    snapshot = Home(load_settings(project.folder), "total").store.state().snapshots[number]
    files = [*(part.path for part in snapshot.parts), project.predictions / snapshot.rejects_file]
    there = {file.exists() for file in files}
    assert len(there) == 1
    return there.pop()


# Exports


def test_an_export_that_fails(project: Project) -> None:
    project.run(DAY)
    folder = project.latest.parent
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("in the way")
    done = project.sereno("run", "total.py", "--date", NEXT_DAY, code=1)
    assert (
        f"sereno: Version 2 is in service, but 1 of its exports could not follow: parquet: The parquet export to {folder} failed: "
        in done.stderr
    )
    assert "the next `sereno run`, even one with nothing to do" in done.stderr
    assert project.in_service() == [2]
    assert project.states() == ["published", "published"]
    assert project.run(NEXT_DAY, code=1)["error"] == "ExportError"  # nothing to do, and still in the way
    assert project.states() == ["published", "published"]

    project.run(THIRD_DAY, code=1)  # it is in nobody else's way
    assert project.in_service() == [3]
    project.rows(DAYS[3], 5)
    held = project.run(DAYS[3], code=3)
    assert "Besides: Version 3 is in service, but 1 of its exports could not follow" in held["says"]

    folder.unlink()
    aside.rename(folder)
    assert project.run(THIRD_DAY)["state"] == "nothing"
    assert project.exported() == project.published()


def test_a_rollback_whose_export_fails_goes_back_once(project: Project) -> None:
    for weight in (1, 2, 3):
        weigh(project, weight)
        project.run(DAY)
    folder = project.latest.parent
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("in the way")
    assert project.json("rollback", "total", code=1)["error"] == "ExportError"
    assert project.in_service() == [2]
    folder.unlink()
    aside.rename(folder)
    assert project.json("rollback", "total") == {"rolled_back": 3, "in_service": 2, "data_date": DAY}
    assert project.in_service() == [2]
    assert project.exported() == project.published()


def test_every_folder_export(project: Project) -> None:
    project.settings(exports=["parquet", "csv", "jsonl"])
    project.run(DAY)
    folder = project.folder / "exports" / "total"
    csv = next((folder / "csv" / "latest").glob("*.csv")).read_text().splitlines()
    assert csv[:2] == ['"id","y"', "0,0"]
    assert len(csv) == 101
    lines = next((folder / "jsonl" / "latest").glob("*.jsonl")).read_text().splitlines()
    assert json.loads(lines[8]) == {"id": 8, "y": 2.0}
    project.settings(exports=[])
    project.run(NEXT_DAY)
    assert (folder / "csv" / "latest").readlink() == Path("000001")  # what is no longer asked for is left alone


# Gates and other settings


@pytest.mark.parametrize(
    ("rows", "setting", "gate"),
    [
        ([-1.0] * 11 + [1.0, 2.0] * 45, {"max_reject_rows": 11}, "rejects: 11 of 101 rows (10.89%); at most 10 may be"),
        (
            [-1.0] * 11 + [1.0, 2.0] * 45,
            {"max_reject_share": 0.11},
            "rejects: 11 of 101 rows (10.89%); at most 10 may be",
        ),
        ([1.0, 2.0] * 80, {"max_row_change": 0.6}, "row count: 160 predictions, +60% against 100 of version 1"),
        ([0.0] * 60 + [1.0, 2.0] * 20, {"max_null_share": 0.6}, "nulls of y: 60.0% of y are null; at most 50%"),
        ([1.0] * 100, {"constant": "allow"}, "constant: every row got the same prediction"),
    ],
)
def test_each_gate_and_its_setting(project: Project, rows: list[float], setting: dict[str, Any], gate: str) -> None:
    model = (
        MODEL.replace("x: float", "x: Annotated[float, Ge(0)]")
        .replace("y: float", "y: float | None")
        .replace("import TypedDict", "import Annotated, TypedDict\n\nfrom annotated_types import Ge")
    )
    answer = 'pc.if_else(pc.equal(rows["x"], 0), None, pc.multiply(rows["x"], weight))'
    project.write("total.py", model.replace('pc.multiply(rows["x"], weight)', answer))
    project.rows(DAY, [1.0, 2.0] * 50)
    project.run(DAY)
    project.rows(NEXT_DAY, rows)
    held = project.run(NEXT_DAY, code=3)
    assert gate in held["says"]
    assert [g["name"] for g in held["gates"] if not g["passed"]] == [gate.partition(":")[0]]
    assert project.in_service() == [1]
    project.settings(**{f"gates__{name}": value for name, value in setting.items()})
    assert project.run(NEXT_DAY)["version"] == 2


def test_batch_rows(project: Project) -> None:
    text = MODEL.replace('pc.multiply(rows["x"], weight)', "pa.array([float(rows.num_rows)] * rows.num_rows)")
    project.write("total.py", text)
    project.settings(batch_rows=40)
    project.run(DAY)
    counts = project.published().column("y").value_counts().to_pylist()  # type: ignore[union-attr]
    assert {c["values"]: c["counts"] for c in counts} == {40.0: 80, 20.0: 20}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers(project: Project, workers: int) -> None:
    project.within = False
    text = MODEL.replace('pc.multiply(rows["x"], weight)', "pa.array([float(os.getpid())] * rows.num_rows)")
    project.write("total.py", text.replace("return pa.table", "import time; time.sleep(0.3)\n    return pa.table"))
    project.rows(DAY, ROWS, parts=PARTS)
    report = project.run(DAY, "--workers", str(workers), "--set", "models.total.batch_rows=40000",
                         "--set", "models.total.gates.constant=allow")  # fmt: skip
    assert report["workers"] == workers
    pids = project.published().column("y").unique()  # type: ignore[union-attr]
    assert len(pids) == min(workers, report["tasks"])


# Reading


def test_read_predictions(project: Project) -> None:
    home = project.folder
    with pytest.raises(
        NotFoundError, match=r"No snapshot of model 'total' is published in .*\. `sereno run` publishes the first\."
    ):
        sereno.read_predictions("total", home=home)
    moments = [datetime.now(UTC)]
    for weight in (1, 2):
        weigh(project, weight)
        project.run(DAY)
        moments.append(datetime.now(UTC))
    project.json("rollback", "total")

    def weight_of(**arguments: Any) -> float:
        table = sereno.read_predictions("total", home=home, **arguments)
        return float(table.column("y")[8].as_py())

    assert in_order(sereno.read_predictions("total", home=home)) == project.published()
    assert [weight_of(version=1), weight_of(version=2)] == [1.0, 2.0]
    assert [weight_of(as_of=moment) for moment in (*moments[1:], datetime.now(UTC))] == [1.0, 2.0, 1.0]
    assert weight_of(as_of=datetime.now(UTC).date()) == 1.0
    published_at = datetime.fromisoformat(project.versions()[1]["published_at"])
    assert weight_of(as_of=published_at) == 2.0
    for arguments, says in (
        ({"version": 3}, "Model 'total' has no version 3. It has 1, 2."),
        ({"as_of": moments[0]}, "No snapshot of model 'total' is published in .* by "),
        ({"as_of": date(2020, 1, 1)}, "No snapshot of model 'total' is published in .* by 2020-01-02"),
        ({"as_of": datetime(2024, 1, 1)}, "as_of 2024-01-01T00:00:00 has no time zone"),
        ({"version": 1, "as_of": moments[1]}, "Give version or as_of, not both."),
    ):
        with pytest.raises(NotFoundError, match=says):
            sereno.read_predictions("total", home=home, **arguments)


def test_get(project: Project) -> None:
    project.write("total.py", MODEL.replace("id: Key[int]", "shop: Key[str]\n    id: Key[int]"))
    project.table(DAY, {"shop": ["a", "a", "b, c"], "id": [1, 2, 1], "x": [1.0, 2.0, 3.0]})
    project.run(DAY)
    found = project.look("get", "total", "b, c", "1")
    assert found.pop("age_seconds") > 0
    assert found == {
        "shop": "b, c", "id": 1, "y": 6.0, "version": 1, "data_date": DAY, "data_time": f"{NEXT_DAY}T00:00:00+00:00",
    }  # fmt: skip
    assert "y: 6.0\nversion: 1\n" in project.sereno("get", "total", "b, c", "1").stdout
    for key, says in (
        (("a", "9"), "Key a, 9 is not in version 1 of 'total' (3 rows)"),
        (("a",), "A key of model 'total' has 2 values (shop, id), not 1."),
        (("a", "one"), "'one' is no id: it is int64, and this cannot be read as one."),
        (("a", "1", "--version", "4"), "Model 'total' has no version 4. It has 1."),
    ):
        assert project.json("get", "total", *key, code=1)["says"].startswith(says)


def test_rejects_are_a_file_that_the_commit_names(project: Project) -> None:
    ids = pa.array([1, 2, 3, None, 5], pa.int64())
    project.table(DAY, {"id": ids, "x": [1.0, None, 3.0, 4.0, float("inf")], "extra": list("abcde")})
    report = project.run(DAY)
    assert (report["rows_in"], report["predictions"], report["rejects"]) == (
        5,
        5 - report["rejects"],
        report["rejects"],
    )
    commit = DeltaTable(project.predictions).history(1)[0]
    file = project.predictions / commit["sereno.rejects_file"]
    assert commit["sereno.rejects_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() == report["rejects_sha256"]
    assert commit["sereno.rejects"] == str(report["rejects"])
    rows = pq.read_table(file).to_pylist()
    assert {row["run"] for row in rows} == {report["attempt"]}
    assert [(row["row"], row["key"]) for row in rows][:2] == [(1, "2"), (3, None)]
    assert json.loads(rows[0]["data"]) == {"id": 2, "x": None}


# The command line


def test_the_model_file_is_a_command_line_itself(project: Project) -> None:
    def python(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "total.py", *arguments], cwd=project.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done

    assert json.loads(python("run", "--date", DAY, "--json").stdout)["version"] == 1
    assert project.run(DAY)["state"] == "nothing"  # the same revision, however it is started
    project.rows(NEXT_DAY, ROWS, parts=PARTS)
    assert "held" in python("run", "--date", NEXT_DAY, "--workers", "2", code=3).stdout
    assert python("versions").stdout.splitlines()[1].startswith("1 ")
    assert json.loads(python("get", "8", "--json").stdout)["y"] == 2.0
    assert "usage: python total.py run" in python("run", "--help").stdout


def test_what_starts_as_a_process_of_its_own_answers_alike(project: Project) -> None:
    for weight in (1, 2):
        weigh(project, weight)
        project.run(DAY)
    project.rows(NEXT_DAY, 10)
    held = project.run(NEXT_DAY, code=3)["attempt"]
    project.within = False
    assert project.json("rollback", "total") == {"rolled_back": 2, "in_service": 1, "data_date": DAY}
    assert project.json("discard", held)["state"] == "discarded"
    assert project.json("release", held, code=1)["error"] == "PublishError"
    assert project.json("get", "total", "8")["y"] == 1.0
    assert project.json("versions", "total") == project.versions()
    assert project.json("runs", "total") == project.runs()
    assert project.json("show", held) == project.look("show", held)


def test_every_json_parses(project: Project) -> None:
    project.run(DAY)
    run = project.runs()[0]["attempt"]
    for arguments in (("runs", "total"), ("show", run), ("show", DAY), ("versions", "total"), ("get", "total", "1")):
        project.look(*arguments)
        text = project.sereno(*arguments).stdout
        assert text.strip()
        assert not text.lstrip().startswith(("{", "["))
    assert project.json("check", "total.py", "--date", DAY)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "total.py", "--date", "yesterday"), 2, "'yesterday' is no date. Write it as 2026-05-01"),
        (("run", "total.py", "--date", "2999-01-01"), 2, "The interval 2999-01-01 has not ended"),
        (("run", "total.py", "--date", "2024-05-09"), 1, "is missing: there is no such file"),
        (("run", "total.py", "--set", "workers"), 2, "--set 'workers' is not KEY=VALUE"),
        (("run", "total.py", "--set", "wrokers=2"), 2, "workers"),
        (("run", "total.py", "--set", "models.total.batch_rows=many"), 2, "batch_rows"),
        (("run", "total.py", "--env", "prod"), 2, "There is no environment 'prod'"),
        (("run", "total.py", "--workers", "none"), 2, "'none' is no whole number of 1 or more"),
        (("versions", "--home", "s3://bank/x"), 2, "'s3://bank/x' is no folder of this machine."),
        (("run", "other.py"), 4, "There is no file other.py in /"),
        (("run", "other"), 4, "There is no file other, and sereno.toml knows no model of that name (it knows: none)."),
        (("runs", "other"), 1, "There is no model 'other' in"),
        (("versions", "other"), 1, "(there are: total)"),
        (("show", "2024-04-01"), 1, "No model in"),
        (("release", "2024-04-01-abcdef"), 1, "has a run '2024-04-01-abcdef' (models: total). See `sereno runs MODEL`."),
        (("discard", "nothing"), 1, "has a run 'nothing'"),
        (("polish",), 2, "invalid choice: 'polish'"),
        (("rum",), 2, "'notify'). Did you mean 'run'?"),
        (("run", "total.py", "--dat", NEXT_DAY), 2, "unrecognized arguments: --dat 2024-05-02. Did you mean '--date'?"),
        (("deploy", "docker", "--nme=x"), 2, "unrecognized arguments: --nme=x. Did you mean '--name'?"),
        (("run",), 2, "the following arguments are required: FILE"),
    ],
)  # fmt: skip
def test_mistakes(project: Project, arguments: tuple[str, ...], code: int, says: str) -> None:
    project.run(DAY)
    project.within = False
    assert says in project.sereno(*arguments, code=code).stderr
    assert project.in_service() == [1]


def test_an_hourly_schedule(project: Project) -> None:
    project.write("total.py", MODEL.replace("source=", 'schedule="0 * * * *", time_zone="Europe/Madrid", source='))
    report = project.run(f"{DAY}T13:00")
    assert report["attempt"].startswith(f"{DAY}T1300-")
    assert (report["data_date"], report["data_time"]) == (DAY, f"{DAY}T12:00:00Z")
    assert project.run(f"{DAY}T13:30")["state"] == "nothing"  # the same interval
    assert project.run(f"{DAY}T14:00")["version"] == 2
    assert f"24 intervals start on {DAY}" in project.run(DAY, code=2)["says"]
    assert len(project.runs()) == 2
    assert project.look("show", report["attempt"])["version"] == 1
    assert project.orphans() == set()


def test_a_model_by_its_name_in_the_settings(project: Project) -> None:
    project.settings(file="total.py")
    assert project.json("run", "total", "--date", DAY)["version"] == 1
    other = project.folder / "elsewhere"
    other.mkdir()
    assert "version 1" in Project(other).sereno("run", "../total.py", "--date", DAY).stdout


def test_source_on_the_command_line(project: Project) -> None:
    report = project.run(DAY, "--source", f"input/{NEXT_DAY}/0.parquet")
    assert report["predictions"] == 101
    assert report["source"] == str(project.folder / "input" / NEXT_DAY / "0.parquet")
