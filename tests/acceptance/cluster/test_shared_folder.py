"""A home on a folder that several hosts share, over a file system that gives no more than a network's must.

Each host remembers for a minute what was there and what was not, and sees no lock of another's (`tests/views.py`). What such
a machine as runs the tests cannot show (a real NFS server's) stands in docs/shared_folder.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from sereno import shared
from sereno.adapters.executors.local import Answer, LocalExecutor, raise_told
from sereno.adapters.executors.remote import RemoteWorker
from sereno.batch.run import run
from sereno.batch.tasks import Job, Task, TaskResult
from sereno.config import load_settings
from sereno.exceptions import ArtifactError, NotSharedError, SerenoError, SourceError
from sereno.interfaces import Executor
from sereno.loader import load_model
from sereno.scoring import open_scorer
from tests.acceptance.project import DAY, MODEL, NEXT_DAY, THIRD_DAY, Project, faults
from tests.hosts import PATIENCE, Host, Within, hosts
from tests.racers import Racer, new_home, racers
from tests.services import server
from tests.views import views

SHOWN = Path("/tmp/bank")  # where each host has the folder
# A run waits, with its parts written, as long as it is told to.
WAITS = """
from sereno import Profile

@model.gate
def is_let_through(profile: Profile):
    import time

    while Path("wait").exists():
        time.sleep(0.05)
"""
DAYS = [DAY, NEXT_DAY, THIRD_DAY, "2024-05-04", "2024-05-05"]


@dataclass
class Bank:
    """Two hosts with one home, and what this machine sees of it."""

    project: Project
    hosts: list[Host]

    def start(self, host: int, *arguments: str, home: Path = SHOWN, **variables: str) -> Within:
        """Start `sereno …` on a host."""
        command = [sys.executable, "-W", "error", "-m", "sereno", *arguments]
        return self.hosts[host].popen(
            command, variables, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def sereno(self, host: int, *arguments: str, code: int = 0, **options: Any) -> str:
        return ended(self.start(host, *arguments, **options), code)

    @property
    def latest(self) -> dict[str, str]:
        exports = self.project.folder / "exports" / "total"
        return {one.name: os.readlink(one / "latest") for one in exports.iterdir()}

    def agrees(self) -> None:
        """What is in service is what every export shows, and all of it can be read."""
        (version,) = self.project.in_service()
        assert set(self.latest.values()) == {f"{version:06}"}
        table, exported = self.project.published(), self.project.exported()
        assert table is not None
        assert exported is not None
        assert table.equals(exported)


def ended(process: Within, code: int = 0) -> str:
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, printed
    assert "Traceback" not in printed, printed
    return str(printed)


def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("bank") / "real"
    folder.mkdir()
    with views(2, folder, SHOWN, names=["node-1", "node-2"]) as made, server(made[0].gateway) as one:
        project = Project.new(folder)
        project.write("total.py", MODEL.replace("if __name__", WAITS + "\n\nif __name__"))
        project.write(
            "sereno.toml", f'ledger = "{one.url}"\nmodels.total.exports = ["parquet", "csv"]\nup.run_nice = 0\n'
        )
        for number, day in enumerate(DAYS):
            project.rows(day, 100 + number)
        yield Bank(project, made)


@pytest.fixture
def postgresql(bank: Bank) -> str:
    """The address of an empty ledger."""
    url = str(load_settings(bank.project.folder).ledger)
    name = f"ledger_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    return url.removesuffix("postgres") + name


def test_what_one_host_publishes_the_other_goes_on_from(bank: Bank) -> None:
    bank.sereno(1, "versions", "total", code=1)  # from now on it remembers that there is no table
    bank.sereno(0, "run", "total.py", "--date", DAYS[0])
    assert "Nothing to do" in bank.sereno(1, "run", "total.py", "--date", DAYS[0])
    bank.sereno(1, "run", "total.py", "--date", DAYS[1])
    assert bank.project.in_service() == [2]
    bank.agrees()


def test_a_rollback_on_one_host_while_the_other_exports(bank: Bank) -> None:
    run = bank.start(0, "run", "total.py", "--date", DAYS[2], **faults("export_copied:delay=1@3"))
    until(lambda: (bank.project.folder / "exports" / "total" / "parquet" / "000003").exists())
    bank.sereno(1, "rollback", "total", "--why", "wrong")
    ended(run)
    assert bank.project.in_service() == [2]
    bank.agrees()


@pytest.mark.parametrize("is_missed", [True, False])
def test_an_export_that_stands_still_does_not_undo_another(tmp_path: Path, postgresql: str, is_missed: bool) -> None:
    """The other host waits for it; or goes on once its lease has run out, and then it follows once more."""
    folder = new_home(tmp_path / "home", postgresql)
    project = Project(folder)
    project.write("sereno.toml", (folder / "sereno.toml").read_text().replace("[]", '["parquet"]'))
    times = {"LEASE_SECONDS": 60.0, "BEAT_SECONDS": 0.1, "LOOK_SECONDS": 0.01}
    with racers(["awake"], **times) as (awake,):
        asleep = Racer("asleep", stops_at="export_copied", **(times | {"LEASE_SECONDS": 2.0} if is_missed else times))
        try:
            asleep.begin(folder, DAY)
            asleep.wait_until_it_stands()
            awake.begin(folder, NEXT_DAY)
            if is_missed:
                assert awake.end()["state"] == "published"
                assert project.latest.readlink() == Path("000002")
            else:
                threading.Event().wait(0.5)
                assert not project.latest.exists()  # nobody takes its place
            asleep.go_on()
            assert asleep.end()["state"] == "published"
            assert is_missed or awake.end()["state"] == "published"
        finally:
            asleep.close()
    assert project.latest.readlink() == Path("000002")


def test_what_a_run_works_on_another_host_does_not_clean_up(bank: Bank) -> None:
    before = {path.name for path in bank.project.predictions.iterdir()}
    bank.hosts[0].run(["touch", SHOWN / "wait"])  # there, as what else is done to it is seen there much later
    process = bank.start(0, "run", "total.py", "--date", DAYS[3])
    until(lambda: [f for f in bank.project.predictions.iterdir() if f.name not in before and any(f.glob("*.parquet"))])
    bank.sereno(1, "prune")
    bank.hosts[0].run(["rm", SHOWN / "wait"])
    ended(process)
    bank.agrees()


def test_a_second_host_keeps_its_hands_off_a_ledger_in_sqlite(bank: Bank) -> None:
    home = Project.new(bank.project.folder / "other")
    for day in (DAY, NEXT_DAY):
        home.rows(day, 10)
    home.write("sereno.toml", "models.total.exports = []\n")
    bank.sereno(0, "run", "total.py", "--date", DAY, home=SHOWN / "other")
    said = bank.sereno(1, "run", "total.py", "--date", NEXT_DAY, home=SHOWN / "other", code=1)
    assert "ledger.sqlite is in use on host node-1, and SQLite cannot be shared with this one (node-2)" in said
    assert "Nothing was published by this run." in said
    bank.sereno(0, "run", "total.py", "--date", NEXT_DAY, home=SHOWN / "other")


def test_a_rollback_needs_no_ledger(tmp_path: Path) -> None:
    project = Project.new(tmp_path)
    project.within = True
    for number, day in enumerate(DAYS[:2]):
        project.rows(day, 10 + number)
        project.run(day)
    project.write("sereno.toml", 'ledger = "postgresql://sereno@127.0.0.1:1/none"\n')
    said = project.sereno("rollback", "total", code=1).stderr
    assert "Version 1 is in service again. But the ledger of runs does not know" in said
    assert project.latest.readlink() == Path("000001")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    project = Project.new(tmp_path)
    project.within = True
    project.rows(DAY, 10)
    assert project.run(code=1) == {
        "error": "StorageError",
        "says": f"The home {tmp_path} cannot be used: the file system has no locks to give: mount it with them (NFS: version "
        "4, or local_lock=flock). Nothing was published by this run. Mend that, then start it again: it goes on where it was.",
    }


# Workers elsewhere

WORKER = """
import sys
from pathlib import Path

from sereno.adapters.executors.remote import RemoteWorker

folder = Path(sys.argv[1])
worker = RemoteWorker((folder / "job").read_bytes(), (folder / "check").read_bytes(), 1)
for task in sorted(folder.glob("*.task")):
    task.with_suffix(".answer").write_bytes(worker.score(task.read_bytes()))
"""


class Elsewhere:
    """An executor with one worker, on another host, by a process that is started for it."""

    workers = 1

    def __init__(self, host: Host, scratch: Path, under: Iterable[str] = ()) -> None:
        self._host, self._scratch, self._under = host, scratch, under
        self.told: list[Answer] = []

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        check = shared.announce(Path(job.home), job.attempt)
        asked = msgspec.structs.replace(msgspec.msgpack.decode(check, type=shared.Check), patience=0.1)
        (self._scratch / "check").write_bytes(msgspec.msgpack.encode(asked))
        (self._scratch / "job").write_bytes(msgspec.msgpack.encode(job))
        for task in tasks:
            (self._scratch / f"{task.index:05}.task").write_bytes(msgspec.msgpack.encode(task))
        self._host.run([*self._under, sys.executable, "-c", WORKER, self._scratch])
        for file in sorted(self._scratch.glob("*.answer")):
            answer = msgspec.msgpack.decode(file.read_bytes(), type=Answer)
            self.told.append(answer)
            raise_told(answer)
            shared.seen(check, answer.shared)
            assert answer.result is not None
            yield answer.result
        shared.forget(check)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with hosts(1, folder, names=["node-9"]) as (host,):
        yield host, folder


@pytest.fixture
def away(node: tuple[Host, Path]) -> tuple[Host, Project, Path]:
    host, folder = node
    own = folder / str(len(list(folder.iterdir())))
    home, scratch = own / "home", own / "scratch"
    home.mkdir(parents=True)
    scratch.mkdir()
    project = Project.new(home)
    project.write("trained/weight.txt", "2")
    (home / "total.py").write_text((home / "total.py").read_text().replace('"weight.txt"', '"trained/weight.txt"'))
    project.rows(DAY, 1_000, parts=3)
    return host, project, scratch


def score(project: Project, executor: Executor | None = None) -> dict[str, Any]:
    """A run of DAY in this process."""
    model, settings = load_model(project.folder / "total.py"), load_settings(project.folder)
    executor = executor or LocalExecutor(1, lambda: open_scorer(model, settings))
    try:
        report = run(model, settings, executor, when=DAY)
    finally:
        sys.modules.pop("total", None)
    found: dict[str, Any] = json.loads(report.to_json())
    return found


def nothing_is_published(project: Project) -> None:
    assert project.published() is None
    assert not list((project.folder / "predictions").rglob("*.json"))


def test_a_worker_elsewhere_gives_what_one_here_does(away: tuple[Host, Project, Path]) -> None:
    host, project, scratch = away
    here = project.copy(scratch / "here")
    executor = Elsewhere(host, scratch)
    report, local = score(project, executor), score(here)
    assert [answer.host for answer in executor.told] == ["node-9"] * len(executor.told)
    assert report["state"] == local["state"] == "published"
    assert [part["sha256"] for part in report["parts"]] == [part["sha256"] for part in local["parts"]]
    assert not (project.folder / ".sereno" / "shared" / report["attempt"]).exists()


@pytest.mark.parametrize("minutes", [5, -5])
def test_clocks_may_be_minutes_apart(away: tuple[Host, Project, Path], minutes: int) -> None:
    host, project, scratch = away
    if shutil.which("faketime") is None:
        if os.environ.get("CI"):
            pytest.fail("faketime is not installed")
        pytest.skip("LOUD: faketime is not installed: nothing is tested here")
    executor = Elsewhere(host, scratch, ["faketime", "-f", f"{minutes:+}m"])
    here = project.copy(scratch / "here")
    assert score(project, executor)["state"] == score(here)["state"] == "published"
    seen = msgspec.msgpack.decode(executor.told[0].shared, type=shared.Seen)
    assert abs(seen.clock - time.time() - 60 * minutes) < 60  # it had another clock indeed
    table, local = project.published(), here.published()
    assert table is not None
    assert table.equals(local)
    assert score(project)["state"] == "nothing"  # by the clock of this host, too


@pytest.mark.parametrize(
    ("lacks", "kind", "says"),
    [
        (".", NotSharedError, "The folder {home} is not the same on host node-9 as on host {here}: on node-9 it lacks the file"),
        ("trained", ArtifactError, r"weight\.txt.* \(On host node-9\.\)"),
        ("input", SourceError, "is not there on host node-9, and was when the run was planned"),
    ],
)  # fmt: skip
def test_what_a_node_lacks_is_named_and_nothing_published(
    away: tuple[Host, Project, Path], lacks: str, kind: type[SerenoError], says: str
) -> None:
    host, project, scratch = away
    host.hide(project.folder / lacks)
    try:
        with pytest.raises(kind, match=says.format(home=project.folder, here=socket.gethostname())):
            score(project, Elsewhere(host, scratch))
    finally:
        host.show(project.folder / lacks)
    nothing_is_published(project)
    assert score(project)["state"] == "published"


class Overlaid(Elsewhere):
    """Its worker has a folder over the shared one, as in a container: it reads what is there, and keeps what it writes."""

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        check = shared.announce(Path(job.home), job.attempt)
        quick = msgspec.structs.replace(msgspec.msgpack.decode(check, type=shared.Check), patience=0.1)
        worker = RemoteWorker(msgspec.msgpack.encode(job), msgspec.msgpack.encode(quick), 1)
        answer = msgspec.msgpack.decode(worker.ready(), type=Answer)
        told = msgspec.msgpack.decode(answer.shared, type=shared.Seen)
        (Path(job.home) / ".sereno" / "shared" / job.attempt / told.name).unlink()
        shared.seen(msgspec.msgpack.encode(quick), answer.shared)
        yield from ()


def test_a_worker_that_writes_where_the_driver_does_not_see_it(away: tuple[Host, Project, Path]) -> None:
    host, project, scratch = away
    with pytest.raises(NotSharedError, match="wrote there is not to be found on"):
        score(project, Overlaid(host, scratch))
    nothing_is_published(project)
