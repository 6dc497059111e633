"""All that must last in an object store: the nights of a model there, from machines that keep nothing."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import sereno
from sereno import status
from sereno.adapters import delta
from sereno.batch import attempts
from sereno.config import load_settings
from sereno.exceptions import BusyError, NotFoundError, PublishError, StorageError
from sereno.home import Home, rollback
from sereno.object_path import ObjectPath
from sereno.schedule import last_interval
from sereno.snapshots import Publication, SnapshotStore
from sereno.status import Status, Statuses, change_status, read_status, read_statuses
from tests.acceptance.project import DAY, NEXT_DAY, PARTS, ROWS, THIRD_DAY, Project
from tests.faulty_proxy import Fault, Rule, faulty_proxy
from tests.objects import S3Server

DAYS = (DAY, NEXT_DAY, THIRD_DAY)


@pytest.fixture(scope="module")
def server(shared_s3: S3Server) -> S3Server:
    return shared_s3


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    with server.reached():
        yield server


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.make_bucket()


@pytest.fixture
def root(s3: S3Server, bucket: str) -> ObjectPath:
    """What the storage is: below a name of its own, as several projects may share a bucket."""
    return ObjectPath.of(f"s3://{bucket}/{secrets.token_hex(4)}/sereno")


@pytest.fixture
def project(tmp_path: Path, root: ObjectPath, s3: S3Server) -> Project:
    return machine(tmp_path / "project", root, s3)


def machine(folder: Path, root: ObjectPath, s3: S3Server) -> Project:
    """A machine of its own, with the files of the model and the rows of three nights."""
    project = Project.new(folder)
    project.within = True
    project.variables = {"SERENO_WORKERS": "1", "SERENO_STORAGE": str(root)} | s3.environment
    for night, day in enumerate(DAYS):
        project.rows(day, 100 + night, parts=2)
    return project


def replaced(project: Project) -> Project:
    """The machine is another one: what it did not put into the store is gone."""
    shutil.rmtree(project.folder / ".sereno", ignore_errors=True)
    assert not (project.folder / "predictions").exists()
    assert not (project.folder / "exports").exists()
    return project


def home_of(project: Project) -> Home:
    environ = {name: text for name, text in project.variables.items() if name.startswith("SERENO_")}
    return Home(load_settings(project.folder / "total.py", environ=environ), "total")


def keys_below(place: ObjectPath) -> set[str]:
    return {str(path.relative_to(place)) for path, _ in place.below()}


def rows(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.sort_by("id").to_pylist()
    return found


# Nights


def test_the_same_is_published_as_on_a_disk(project: Project, root: ObjectPath, tmp_path: Path) -> None:
    local = Project.new(tmp_path / "local")
    local.within = True
    for one in (project, local):
        one.settings(duplicates="last", exports=["parquet", "csv"], gates__max_reject_share=0.5)
        one.variables |= {"SERENO_WORKERS": "1"}
        one.table(DAY, {"id": [1, 2, 3, 2, None, 5], "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, "1.parquet")
        one.table(DAY, {"id": [7, 1], "x": [8.0, 9.0]}, "2.parquet")
    (project.folder / "input" / DAY / "0.parquet").unlink()
    reports = [one.run(DAY) for one in (project, local)]
    for report in reports:
        assert (report["state"], report["version"], report["rows_in"]) == ("published", 1, 8)
    same = ("predictions", "rejects", "reasons", "profile", "keys")
    assert [reports[0][name] for name in same] == [reports[1][name] for name in same]
    there = DeltaTable(str(root / "predictions" / "total"), storage_options=delta.options(root)).to_pyarrow_table()
    on_disk = local.published()
    assert on_disk is not None
    assert rows(there) == rows(on_disk) == rows(sereno.read_predictions("total", home=str(root)))
    rejects = [
        pq.read_table(source).drop_columns(["run"]).to_pylist()
        for source in (
            (root / "predictions/total" / reports[0]["rejects_file"]).open(),
            local.predictions / reports[1]["rejects_file"],
        )
    ]
    assert rejects[0] == rejects[1]
    for key in ("2", "5"):
        assert project.look("get", "total", key)["y"] == local.look("get", "total", key)["y"]
    assert project.sereno("get", "total", "4", code=1).stderr == local.sereno("get", "total", "4", code=1).stderr
    latest = json.loads((root / "exports/total/csv/latest.json").read_bytes())
    assert latest["version"] == 1
    assert not list(project.folder.rglob("*.parquet.tmp"))
    assert {path.suffix for path in (project.folder / ".sereno").rglob("*") if path.is_file()} <= {
        "",
        ".run",
        ".export",
        ".publish",
        ".status",
        ".sqlite",
        ".host",
    }


def test_the_page_is_true(project: Project, root: ObjectPath) -> None:
    page = (Path(__file__).parents[3] / "docs" / "cloud.md").read_text().partition("## Storage")[2]
    settings, code = (
        block.replace("s3://bank/sereno", str(root)) for block in re.findall(r"```\w+\n(.*?)```", page, re.DOTALL)
    )
    del project.variables["SERENO_STORAGE"]
    project.write("sereno.toml", settings)
    project.run(DAY)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["scores"].num_rows == 100


def test_machines_that_keep_nothing(project: Project, root: ObjectPath) -> None:
    project.settings(keep_snapshots=1)
    assert project.run(DAY)["version"] == 1
    assert replaced(project).run(DAY)["state"] == "nothing"
    assert replaced(project).run(NEXT_DAY)["version"] == 2
    replaced(project)
    assert [(v["version"], v["in_service"]) for v in project.versions()] == [(1, False), (2, True)]
    assert project.states() == ["published", "published"]
    assert project.look("show", DAY)["predictions"] == 100
    done = replaced(project).sereno("rollback", "total", "--why", "wrong\u2028weights, größe\u0085")
    assert done.stdout.startswith("Version 1 (data date 2024-05-01) of total is in service again, in place of 2.")
    assert replaced(project).look("get", "total", "8")["version"] == 1
    assert json.loads((root / "exports/total/parquet/latest.json").read_bytes())["version"] == 1
    known = read_status(root, "total")
    assert known is not None
    assert known.version == 1
    assert read_statuses(root) == {"total": known}
    refused = replaced(project).run(NEXT_DAY)
    assert (refused["state"], refused["version"]) == ("nothing", 2)
    assert "was rolled back" in refused["says"]
    assert project.run(THIRD_DAY)["version"] == 3
    assert project.in_service() == [3]


def test_a_place_for_each_date(project: Project, root: ObjectPath) -> None:
    project.settings(disposition="partition", exports=[])
    for day in (NEXT_DAY, DAY, THIRD_DAY):
        project.run(day)
    assert project.in_service() == [1, 2, 3]
    assert len(sereno.read_predictions("total", home=str(root))) == 303
    project.sereno("rollback", "total", "--date", DAY)
    days = set(sereno.read_predictions("total", home=str(root)).column("data_date").to_pylist())
    assert {day.isoformat() for day in days} == {NEXT_DAY, THIRD_DAY}


def test_held_here_and_released_there(project: Project, root: ObjectPath) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    held = project.run(NEXT_DAY, code=3)
    assert held["state"] == "held"
    page = root / ".sereno/runs/total" / held["attempt"] / "report.html"
    assert b"row count" in page.read_bytes()
    released = replaced(project).json("release", NEXT_DAY)
    assert (released["state"], released["version"]) == ("published", 2)
    assert len(sereno.read_predictions("total", home=str(root))) == 10
    project.rows(THIRD_DAY, 100)
    attempt = project.run(THIRD_DAY, code=3)["attempt"]
    assert replaced(project).json("discard", attempt)["state"] == "discarded"
    assert project.in_service() == [2]
    assert (root / "predictions/total" / attempt).is_dir()  # for an hour, as another may be about to release it


def test_compared(project: Project) -> None:
    project.run(DAY)
    project.write("weight.txt", "3")
    found = project.json("compare", "total.py", "--against", "served", code=None)
    assert (found["both"], found["differ"]) == (100, 99)


# Whoever dies, and who goes on


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("part_written@2", marks=pytest.mark.soak),
        "commit_before",
        "commit_after",
        pytest.param("run_end", marks=pytest.mark.soak),
    ],
)
def test_killed_and_started_again(project: Project, root: ObjectPath, point: str) -> None:
    project.within = False
    project.rows(DAY, ROWS, parts=PARTS)
    name, _, time = point.partition("@")
    fault = f"{name}:kill" + (f"@{time}" if time else "")
    process = project.start("run", "total.py", "--date", DAY, SERENO_TESTING="1", SERENO_FAILPOINT=fault)
    process.communicate()
    assert process.returncode == -9
    report = project.run(DAY)
    assert report["version"] == 1
    assert report["state"] == ("nothing" if point in ("commit_after", "run_end") else "published")
    if point == "part_written@2":
        assert report["resumed_tasks"] == 1
    if point == "commit_before":
        assert report["resumed_tasks"] == report["tasks"] > 1
    assert len(sereno.read_predictions("total", home=str(root))) == ROWS
    assert json.loads((root / "exports/total/parquet/latest.json").read_bytes())["version"] == 1


def test_killed_and_gone_on_elsewhere(project: Project, root: ObjectPath) -> None:
    project.within = False
    process = project.start("run", "total.py", "--date", DAY, SERENO_TESTING="1", SERENO_FAILPOINT="scored:kill")
    process.communicate()
    project.within = True
    report = replaced(project).run(DAY)
    assert (report["state"], report["resumed_tasks"], report["version"]) == ("published", 0, 1)
    assert len(sereno.read_predictions("total", home=str(root))) == 100


@pytest.mark.parametrize("lost", [BusyError, StorageError])
def test_an_answer_to_a_commit_that_is_lost(
    project: Project, root: ObjectPath, monkeypatch: pytest.MonkeyPatch, lost: type[Exception]
) -> None:
    commit = delta.commit

    def deaf(*arguments: Any, **named: Any) -> int:
        commit(*arguments, **named)
        raise lost("nobody knows")

    monkeypatch.setattr(delta, "commit", deaf)
    assert project.run(DAY)["version"] == 1
    assert project.run(NEXT_DAY)["version"] == 2
    project.sereno("rollback", "total")
    assert project.in_service() == [1]
    assert len(keys_below(root / "predictions/total/_delta_log")) == 3


def test_a_store_that_is_silent_after_a_commit(
    project: Project, root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what came of it, and nothing more can be written: the run says so, and the next one settles it."""
    commit = delta.commit

    def broken(*arguments: Any, **named: Any) -> Any:
        raise StorageError("The store is gone.")

    with monkeypatch.context() as silent:

        def deaf(*arguments: Any, **named: Any) -> int:
            commit(*arguments, **named)
            for name in ("read_bytes", "write_bytes", "below"):
                silent.setattr(ObjectPath, name, broken)
            return broken()

        silent.setattr(delta, "commit", deaf)
        silent.setattr(delta, "KNOWN_SECONDS", -1.0)
        said = project.sereno("run", "total.py", "--date", DAY, code=1).stderr
    assert f"Commit 0 of table {root}/predictions/total may have been made, or not: its answer was lost" in said
    assert "Nothing was published" not in said
    report = project.run(DAY)
    assert (report["state"], report["version"]) == ("nothing", 1)
    assert project.states() == ["published"]


COMMIT = r"_delta_log/\d+\.json"


@pytest.mark.parametrize(
    ("method", "pattern", "fault", "times"),
    [
        (
            "PUT",
            COMMIT,
            "conflict",
            1,
        ),  # S3 says that while another write of the same name goes on, whatever comes of it
        ("PUT", COMMIT, "refused", 1),
        ("PUT", COMMIT, "reset", 2),
        ("PUT", COMMIT, "500", 3),
        ("PUT", COMMIT, "reset-after", 1),
        ("PUT", COMMIT, "500-after", 99),
        ("GET", "_last_checkpoint", "reset", 2),
    ],
)
def test_a_commit_over_a_bad_line(
    project: Project, root: ObjectPath, s3: S3Server, method: str, pattern: str, fault: Fault, times: int
) -> None:
    project.run(DAY)
    with faulty_proxy(s3.url) as proxy, s3.reached(AWS_ENDPOINT_URL=proxy.url):
        project.variables["AWS_ENDPOINT_URL"] = proxy.url
        with proxy.having(Rule(fault=fault, method=method, pattern=pattern, times=times)):
            assert project.run(NEXT_DAY)["version"] == 2
            assert fault in proxy.injected()
    assert SnapshotStore(root, "total").table_version() == 1


@pytest.mark.parametrize("fault", ["denied", "refused"])
def test_a_store_that_takes_no_commit(project: Project, root: ObjectPath, s3: S3Server, fault: Fault) -> None:
    project.run(DAY)
    with faulty_proxy(s3.url) as proxy, s3.reached(AWS_ENDPOINT_URL=proxy.url):
        project.variables["AWS_ENDPOINT_URL"] = proxy.url
        with proxy.having(Rule(fault=fault, method="PUT", pattern=COMMIT, times=99)):
            failed = project.run(NEXT_DAY, code=1)
            assert failed["error"] == "NotTakenError"
            assert len(proxy.injected()) == delta.TRIES
        assert "Nothing was published by this run." in failed["says"]
        assert project.in_service() == [1]
        again = project.run(NEXT_DAY)
    assert (again["version"], again["resumed_tasks"]) == (2, 1)


def test_a_log_that_somebody_cut(project: Project, root: ObjectPath) -> None:
    for day in DAYS:
        project.run(day)
    (root / "predictions/total/_delta_log" / f"{1:020}.json").unlink()
    said = project.sereno("versions", "total", code=1).stderr
    assert f"The log of table {root}/predictions/total lacks commit 1: somebody removed" in said


# Several at once


def test_two_machines_publish_one_night_at_once(tmp_path: Path, root: ObjectPath, s3: S3Server) -> None:
    machines = [machine(tmp_path / name, root, s3) for name in ("a", "b", "c")]
    for one in machines:
        one.within = False
        one.settings(source=f"{machines[0].folder}/input/{{data_date}}/*.parquet")
    processes = [
        one.start(
            "run", "total.py", "--date", DAY, "--json", SERENO_TESTING="1", SERENO_FAILPOINT="commit_before:delay=2"
        )
        for one in machines
    ]
    reports = [json.loads(process.communicate()[0]) for process in processes]
    assert sorted(report["state"] for report in reports) == ["nothing", "nothing", "published"]
    assert {report["version"] for report in reports} == {1}
    state = SnapshotStore(root, "total").state()
    assert state.table_version == 0
    assert len(sereno.read_predictions("total", home=str(root))) == 100


def test_many_dates_at_once(project: Project, root: ObjectPath) -> None:
    """Each commit but one is refused at first, and none is lost."""
    project.settings(disposition="partition", exports=[])
    project.run(DAY)
    home = home_of(project)
    parts = home.store.state().snapshots[1].parts
    schema = pq.read_schema(parts[0].path.open())  # type: ignore[arg-type]
    together = threading.Barrier(6)

    def publish(number: int) -> int:
        day = datetime(2024, 6, number, tzinfo=UTC)
        publication = Publication(
            attempt=f"2024-06-{number:02}-aaaaaa",
            run_key=f"2024-06-{number:02}T00:00Z",
            revision="r",
            data_date=day.date(),
            data_time=day + timedelta(days=1),
            fingerprint="f",
            rows=100,
            rejects=0,
            disposition="partition",
            keys=("id",),
            schema=schema,
            parts=tuple((part, '{"numRecords":50}') for part in parts),
            rejects_file="",
            rejects_sha256="",
        )
        together.wait(30)
        return SnapshotStore(root, "total").publish(publication, force=False).number

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(publish, range(1, 7))) == [2, 3, 4, 5, 6, 7]
    assert len(home.store.state().served) == 7


def test_what_another_machine_may_be_about_to_publish_stays(
    tmp_path: Path, root: ObjectPath, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (home_of(machine(tmp_path / name, root, s3)) for name in ("here", "there"))
    report = there.attempts.create(last_interval("0 0 * * *", "UTC", datetime(2024, 5, 3, tzinfo=UTC)))
    part = there.store.folder / report.attempt / "part-0.parquet"
    part.write_bytes(b"rows")
    strange = there.store.folder / "somebody-elses" / "file"
    strange.write_bytes(b"not a run's")
    assert here.clean() == {}
    report.state = "failed"
    there.attempts.save(report)
    assert here.clean() == {}
    report.started_at -= timedelta(days=8)
    there.attempts.save(report)
    assert here.clean() == {}  # it was written just now
    monkeypatch.setattr(attempts, "LEFT_ALONE", timedelta(0))
    assert here.clean(dry_run=True) == {part: 4}
    assert part.exists()
    assert here.clean() == {part: 4}
    assert not part.exists()
    assert strange.exists()


def test_the_status_file_is_changed_by_one_after_the_other(root: ObjectPath) -> None:
    def count(number: int) -> None:
        def more(before: Status | None) -> Status:
            moment = datetime(2024, 5, 1, second=number, tzinfo=UTC)  # what two of them write is never the same
            version = (before.version or 0) + 1 if before else 1
            return Status(model="total", last_success_at=moment, version=version)

        change_status(root, "total", more)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(8)))
    known = read_status(root, "total")
    assert known is not None
    assert known.version == 8


def test_a_server_asks_for_statuses_while_it_goes_on(root: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "FAR_SECONDS", 0.0)
    statuses = Statuses(root)
    assert statuses.read() == {}
    one = Status(model="total", last_success_at=datetime(2024, 5, 1, tzinfo=UTC), version=1)
    change_status(root, "total", lambda before: one)
    (root / ".sereno/status/torn.json").write_bytes(b"{")
    assert until(lambda: statuses.read() == {"total": one})
    with monkeypatch.context() as gone:
        gone.setattr(ObjectPath, "below", broken)
        assert statuses.read() == {"total": one}


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def broken(path: ObjectPath) -> Any:
    raise StorageError("the store is gone")


# Retention


def test_what_is_pruned(project: Project, root: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    project.settings(keep_snapshots=1, keep_hours=0)
    table = root / "predictions" / "total"

    def kept() -> set[str]:
        return {path.parent.name[:10] for path, _ in table.below() if path.suffix == ".parquet"}

    for day in DAYS[:2]:
        project.run(day)
    assert kept() == {DAY, NEXT_DAY}  # for an hour: another machine may be about to roll back to the first
    monkeypatch.setattr("sereno.snapshots.store.SPARED", timedelta(0))
    project.run(THIRD_DAY)
    assert kept() == {THIRD_DAY}
    assert [v["version"] for v in project.versions()] == [1, 2, 3]
    with pytest.raises(NotFoundError, match="Version 1 of model 'total' is no longer kept: its parts were removed"):
        rollback(home_of(project), to=1)
    assert len(keys_below(root / ".sereno/runs/total")) == 3
    later = datetime.now(UTC) + timedelta(days=500)
    monkeypatch.setattr("sereno.operate.prune._days_ago", lambda days: later)
    pruned = {one["what"]: one["count"] for one in project.json("prune")["pruned"]}
    assert pruned["reports of runs"] == 2
    assert len(keys_below(root / ".sereno/runs/total")) == 1


def test_parts_that_are_gone(project: Project, root: ObjectPath) -> None:
    project.run(DAY)
    project.rows(NEXT_DAY, 10)
    held = project.run(NEXT_DAY, code=3)
    next(path for path, _ in (root / "predictions/total" / held["attempt"]).below()).unlink()
    assert "was removed or changed since it was scored" in project.sereno("release", NEXT_DAY, code=1).stderr


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    """The storage may be a folder: an NFS mount, say, while work stays on a fast disk."""
    project = Project.new(tmp_path / "project")
    project.within = True
    kept = tmp_path / "kept"
    project.variables = {"SERENO_WORKERS": "1", "SERENO_STORAGE": str(kept)}
    project.rows(DAY, 100)
    project.rows(NEXT_DAY, 10)
    project.run(DAY)
    assert replaced(project).run(NEXT_DAY, code=3)["state"] == "held"
    assert replaced(project).json("release", NEXT_DAY)["version"] == 2
    assert (kept / "exports/total/parquet/latest").resolve().name == "000002"
    assert sorted(path.name for path in (kept / ".sereno").iterdir()) == ["locks", "runs", "status"]
    assert not (project.folder / "predictions").exists()
    assert project.look("prune") == {"dry_run": False, "bytes": 0, "pruned": []}
    # Another storage with the same home, and so the same ledger: what that calls published is not there.
    attempt = project.json("versions", "total")[-1]["run"]
    project.variables["SERENO_STORAGE"] = str(tmp_path / "other")
    says = (
        f"Nothing of total is in the storage {tmp_path / 'other'}: what the ledger of the home {project.folder} calls "
    )
    health = project.json("health", code=1)
    assert [(one["what"], one["says"][: len(says)]) for one in health["wrong"] if one["model"]] == [("storage", says)]
    runs = project.sereno("runs", "total")
    assert says in runs.stderr
    assert runs.stdout.splitlines()[-1].split()[:3] == [attempt, "published", "2"]


# What is wrong


def test_no_such_bucket(project: Project) -> None:
    project.variables["SERENO_STORAGE"] = "s3://nobodys-bank/sereno"
    said = project.sereno("run", "total.py", "--date", DAY, code=None).stderr
    assert "s3://nobodys-bank/sereno" in said
    assert "there is no such bucket. Mend its name, or make it." in said


def test_a_wrong_key(project: Project) -> None:
    project.within = False
    project.variables["AWS_SECRET_ACCESS_KEY"] = "wrong"
    said = project.sereno("run", "total.py", "--date", DAY, code=None).stderr
    assert "the secret key is wrong. See AWS_SECRET_ACCESS_KEY" in said


def test_nothing_is_published_in_a_place(root: ObjectPath) -> None:
    with pytest.raises(NotFoundError, match=f"No snapshot of model 'total' is published in {root}"):
        sereno.read_predictions("total", home=str(root))
    with pytest.raises(PublishError):
        SnapshotStore(root, "total").rollback()
