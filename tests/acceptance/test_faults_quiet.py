"""Faults that raise nothing by themselves: files that change meanwhile, overlapping processes, a disk that forgets.

Each of these once published something wrong with exit code 0.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.config import load_settings
from sereno.home import Home
from tests.acceptance.project import DAY, MODEL, NEXT_DAY, PARTS, ROWS, THIRD_DAY, Project, faults


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.new(tmp_path / "project")
    project.rows(DAY, [1.0, 2.0, 3.0])
    project.rows(NEXT_DAY, [1.0, 2.0, 3.0])
    return project


def ys(project: Project) -> list[float]:
    table = project.published()
    assert table is not None
    return sorted(table["y"].to_pylist())


def wait_for(pattern: str, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not [*folder.glob(pattern)]:
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.02)


def test_every_process_runs_in_the_folder_of_the_settings(project: Project, tmp_path: Path) -> None:
    """Started from a folder that holds another file of that name, two workers once scored with two models."""
    by_hand = MODEL.replace("return float(weight.read_text())", 'return float(Path("weight.txt").read_text())')
    project.write("total.py", by_hand)
    project.rows(DAY, ROWS, parts=PARTS)
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.write("weight.txt", "1000")
    elsewhere.sereno("run", str(project.folder / "total.py"), "--date", DAY, "--workers", "2")
    assert ys(project)[-1] == 2 * (ROWS - 1) / 8
    assert project.runs()[0]["workers"] == 2


@pytest.mark.parametrize("content", [b"", None])
def test_a_hash_file_that_a_power_cut_emptied(project: Project, content: bytes | None) -> None:
    project.table(DAY, {"id": [1, 2, 2], "x": [1.0, 2.0, 3.0]})
    project.sereno("run", "total.py", "--date", DAY, code=-signal.SIGKILL, **faults("scored:kill"))
    (hashes,) = (project.folder / ".sereno" / "runs" / "total").glob("*/keys/*.u64")
    hashes.write_bytes(content) if content is not None else hashes.unlink()
    assert "occur more than once" in project.run(DAY, code=4)["says"]
    assert project.published() is None


def test_a_source_that_is_replaced_while_it_is_scored(project: Project) -> None:
    process = project.start("run", "total.py", "--date", DAY, "--workers", "1", **faults("plan:delay=5"))
    wait_for("*/report.json", project.folder / ".sereno" / "runs" / "total")
    time.sleep(1.5)  # planned by now, and not read for another three seconds
    project.rows(DAY, [7.0])
    _, said = process.communicate()
    assert process.returncode == 1
    assert "changed while it was read. Nothing was published; start the run again when it is whole." in said
    assert project.published() is None


def test_files_of_one_name_size_and_time_are_two(project: Project) -> None:
    """As rsync or COPY leave them, which give whole seconds or one time to all."""
    folder = project.folder / "input" / DAY
    shutil.rmtree(folder)
    for place, ids in (("north", range(70_000)), ("south", range(70_000, 140_000))):
        (folder / place).mkdir(parents=True)
        table = pa.table({"id": pa.array(ids), "x": pa.array([float(i % 7) for i in ids])})
        pq.write_table(
            table, folder / place / "rows.parquet", compression="none", use_dictionary=False, write_statistics=False
        )
        os.utime(folder / place / "rows.parquet", (1_700_000_000, 1_700_000_000))
    project.settings(source="input/{data_date}", duplicates="last")
    project.sereno("run", "total.py", "--date", DAY, code=-signal.SIGKILL, **faults("scored:kill"))
    report = project.run(DAY)
    assert (report["predictions"], report["rejects"], report["resumed_tasks"]) == (140_000, 0, 2)


def test_a_model_that_changes_while_the_run_starts(project: Project) -> None:
    process = project.start("run", "total.py", "--date", DAY, "--workers", "1", **faults("plan:delay=5"))
    wait_for("*/report.json", project.folder / ".sereno" / "runs" / "total")
    time.sleep(1.5)  # planned by now, and not read for another three seconds
    project.write("weight.txt", "7")
    _, said = process.communicate()
    assert process.returncode == 1
    assert "an artefact changed while the run was starting. Nothing was published; start the run again." in said
    assert project.published() is None
    assert project.run(DAY)["state"] == "published"
    assert ys(project) == [7.0, 14.0, 21.0]


WAITS = """
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return pa.table"""


def test_an_export_never_goes_back_to_what_another_process_replaced(project: Project) -> None:
    """The slower of two processes reads the log when its turn to export comes, not before."""
    project.run(DAY)
    project.write(
        "total.py", MODEL.replace("import os, sys", "import os, sys, time").replace("    return pa.table", WAITS)
    )
    process = project.start("run", "total.py", "--date", NEXT_DAY)
    wait_for("began", project.folder)  # as a run exports first what others left to export
    home = Home(load_settings(project.folder), "total")
    locked, release = threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        def follow(self, served: object, keep: object) -> bool:
            locked.set()
            release.wait(20)
            return False

    real = home.exports
    home.exports = lambda: [Slow(), *real()]  # type: ignore[method-assign, list-item]
    slower = threading.Thread(target=home.follow)
    slower.start()
    assert locked.wait(10)
    (project.folder / "go").touch()
    wait_for(f"{1:020d}.json", project.predictions / "_delta_log")
    release.set()
    slower.join()
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert project.latest.resolve().name == "000002"


def test_a_held_run_whose_place_another_attempt_took(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 30)
    held = project.run(NEXT_DAY, code=3)["attempt"]
    project.settings(gates__max_row_change=100)
    project.sereno("run", "total.py", "--date", NEXT_DAY, code=-signal.SIGKILL, **faults("commit_after:kill"))
    said = project.json("release", held, code=1)["says"]
    assert "is discarded, not held. Replaced by" in said
    assert [v["version"] for v in project.versions()] == [1, 2]


def test_a_date_finds_the_held_run_though_a_later_try_failed(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 30)
    held = project.run(NEXT_DAY, code=3)["attempt"]
    kept = project.folder / "input" / NEXT_DAY
    kept.rename(kept.with_name("away"))
    project.run(NEXT_DAY, code=1)
    kept.with_name("away").rename(kept)
    assert project.json("release", NEXT_DAY)["attempt"] == held


def test_rollback_goes_one_step_back_each_time(project: Project) -> None:
    for day in (DAY, NEXT_DAY, THIRD_DAY):
        project.rows(day, [1.0, 2.0, 3.0])
        project.run(day)
    assert project.json("rollback", "total")["in_service"] == 2
    project.settings(exports=["parquet", "csv"])  # so that the exports have something to do, which is no rollback
    assert project.json("rollback", "total")["in_service"] == 1


def test_an_older_revision_that_is_wanted_back(project: Project) -> None:
    project.run(DAY)
    project.write("weight.txt", "3")
    project.run(DAY)
    project.write("weight.txt", "2")
    report = project.run(DAY)
    assert (report["state"], report["version"]) == ("published", 3)
    assert ys(project) == [2.0, 4.0, 6.0]


def test_a_home_by_two_names(project: Project) -> None:
    link = project.folder.with_name("link")
    link.symlink_to(project.folder)
    project.run(DAY)
    project.rows(NEXT_DAY, 30)
    held = project.run(NEXT_DAY, "--home", str(link), code=3)["attempt"]
    assert project.json("release", held)["version"] == 2
    assert ys(project)[-1] == 2 * 29 / 8


def test_force_overrides_no_gate(project: Project) -> None:
    project.rows(NEXT_DAY, 30)
    project.run(NEXT_DAY)
    assert "row count" in project.run(DAY, "--force", code=3)["says"]


def test_hours_are_told_apart(project: Project) -> None:
    hours = MODEL.replace("artifacts=", 'schedule="0 * * * *", artifacts=').replace("{data_date}", "hours")
    project.write("total.py", hours)
    project.rows("hours", [1.0, 2.0, 3.0])
    project.run(f"{DAY}T02:00")
    assert "is in service" in project.run(f"{DAY}T01:00", code=4)["says"]
    project.settings(disposition="partition")
    assert "has several runs a day" in project.run(f"{DAY}T03:00", code=2)["says"]


def test_a_database_with_a_name_that_nothing_gives(project: Project) -> None:
    project.settings(source="select 1 as id", database="{nosuch}")
    assert "The database asks for 'nosuch', which nothing gives." in project.run(DAY, code=2)["says"]


def test_a_sibling_that_everybody_can_change(project: Project) -> None:
    project.write("helper.py", "ONE = 1").chmod(0o666)
    project.write("total.py", MODEL.replace("import os, sys", "import os, sys\nimport helper"))
    assert "can be changed by every user of this machine" in project.run(DAY, code=4)["says"]


def test_who_rolled_back_and_why_is_shown(project: Project) -> None:
    project.run(DAY)
    project.run(NEXT_DAY)
    project.sereno("rollback", "total", "--why", "strange offers")
    shown = {v["version"]: v["why_withdrawn"] for v in project.versions()}
    assert shown[1] is None
    assert str(shown[2]).endswith(": strange offers")
    assert "strange offers" in project.sereno("versions", "total").stdout


def test_a_reader_that_stops_reading_changes_no_exit_code(project: Project) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 30)
    command = f"{sys.executable} -m sereno run total.py --date {NEXT_DAY} > >(true); echo $?"
    done = subprocess.run(["bash", "-c", command], cwd=project.folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr


def test_a_run_from_read_resumes(project: Project) -> None:
    reading = MODEL.replace(',\n              source="input/{data_date}/*.parquet"', "")
    reading += """
import pyarrow.parquet as pq

@model.read
def read(data_date):
    return pq.read_table(f"input/{data_date}")
"""
    project.write("total.py", reading)
    project.sereno("run", "total.py", "--date", DAY, code=-signal.SIGKILL, **faults("scored:kill"))
    report = project.run(DAY)
    assert (report["state"], report["tasks"], report["resumed_tasks"]) == ("published", 1, 1)
    assert json.loads((project.latest / "manifest.json").read_text())["rows"] == 3
