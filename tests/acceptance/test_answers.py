"""The answer log of a real server: what is kept when workers are killed, disks fill up, models are loaded again, persons erased."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import sereno
from sereno.answers.compact import Compactor
from sereno.answers.folder import finished_segments, segments_folder
from sereno.exceptions import NotFoundError
from sereno.failpoints import POINTS
from sereno.storage import is_held
from tests.acceptance.project import Project, faults
from tests.acceptance.server import Server
from tests.answers import expected, keep

RECENT = datetime.now(UTC) - timedelta(minutes=1)  # within log_days
PLACES = ("answers_pending", "answers_part", "answers_commit_before", "answers_commit_after", "answers_segment_removed")

PLACES_OF_WORKERS = ("answers_write", "answers_flush")


class Caller:
    """Asks in a thread until it is told to stop; remembers the ids of all that was answered."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self.answered: list[str] = []
        self.refused: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        client = httpx.Client(base_url=self._server.url)
        for number in itertools.count():
            if self._stop.is_set():
                break
            request = f"{self._name}-{number}"
            try:
                reply = client.post("/predict", json={"id": number, "x": 1.5}, headers={"X-Request-ID": request})
            except httpx.HTTPError:  # its worker was killed
                client.close()
                client = httpx.Client(base_url=self._server.url)
                continue
            if reply.status_code == 200:
                self.answered.append(request)
            else:
                self.refused.append(reply.status_code)
        client.close()

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join()
        return self.answered


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.new(tmp_path / "project")


class Reply(NamedTuple):
    status: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def post(server: Server, rows: Any, request: str = "") -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    with contextlib.closing(connection):
        headers = {"X-Request-ID": request} if request else {}
        connection.request("POST", "/predict", json.dumps(rows), headers)
        reply = connection.getresponse()
        return Reply(reply.status, reply.read().decode())


def ask(server: Server, number: int, request: str = "") -> Reply:
    return post(server, {"id": number, "x": 1.5}, request)


def log(project: Project, *arguments: str) -> Any:
    return project.look("log", "total", *arguments)


def kept(project: Project) -> list[str]:
    """The request ids of all answers, as a reader in Python gets them."""
    try:
        return [str(r) for r in sereno.read_answers("total", home=project.folder)["request_id"].to_pylist()]
    except NotFoundError:  # nothing is written yet
        return []


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


def table(project: Project) -> list[dict[str, Any]]:
    return list(DeltaTable(project.folder / "answers" / "total").to_pyarrow_table().to_pylist())


def test_what_is_answered_while_a_server_drains_is_in_the_storage(project: Project, tmp_path: Path) -> None:
    """Where the disk goes with the server, as a pod's does."""
    began, may_go, storage = tmp_path / "began", tmp_path / "may_go", tmp_path / "storage"
    waits = f"""
    import pathlib, time
    pathlib.Path({str(began)!r}).touch()
    while not pathlib.Path({str(may_go)!r}).exists():
        time.sleep(0.02)
    return pa.table("""
    project.write("total.py", (project.folder / "total.py").read_text().replace("\n    return pa.table(", waits))
    replies: list[Reply] = []
    with Server(project.folder, "total.py", SERENO_STORAGE=str(storage)) as server:
        caller = threading.Thread(target=lambda: replies.append(ask(server, 7, "seven")))
        caller.start()
        wait_until(began.exists, "predict is called")
        server.send(signal.SIGTERM)
        time.sleep(1)  # nothing is in the log yet, and whoever looks there may not have left for that
        may_go.touch()
        caller.join()
        assert server.process.wait(60) == 0
    assert [reply.status for reply in replies] == [200]
    assert finished_segments(segments_folder(project.folder, "total")) == []
    assert DeltaTable(storage / "answers" / "total").to_pyarrow_table()["request_id"].to_pylist() == ["seven"]


def test_an_answer_is_kept_whole(project: Project) -> None:
    begin = datetime.now(UTC)
    with Server(project.folder, "total.py") as server:
        reply = ask(server, 7, "seven")
        assert reply.json() == {"y": 3.0}
        listed = [{"id": n, "x": n / 2} for n in range(5)]
        assert post(server, listed, "list").status == 200
        assert post(server, {"x": 9.0}, "no-key").status == 200
        assert post(server, {"id": 8, "x": "much"}, "bad").status == 422
        wait_until(lambda: len(kept(project)) == 7, "answers are written within the second")
        first = log(project)[0]
        assert datetime.fromisoformat(first.pop("answered_at")) > begin
        assert len(first.pop("model_fingerprint")) == 64
        assert first == {"request_id": "seven", "inputs": {"id": 7, "x": 1.5}, "prediction": {"y": 3.0}}
        assert [a["inputs"]["id"] for a in log(project, "--request", "list")] == [0, 1, 2, 3, 4]
        assert [a["request_id"] for a in log(project, "--key", "7")] == ["seven"]
        assert [a["inputs"] for a in log(project, "--limit", "1")] == [{"id": None, "x": 9.0}]
        said = project.sereno("log", "total", "--limit", "1").stdout
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} UTC  request no-key  model [0-9a-f]{12}\n"
            r"  inputs      x=9.0\n  prediction  y=18.0\n",
            said,
        )
    # the drain hands over what there is; a table has the same, and readers see no difference
    before = log(project)
    assert set(log(project, "--compact")) == {"answers", "segments", "erased", "dropped_days", "joined_files"}
    assert log(project) == before
    assert len(table(project)) == 7
    assert finished_segments(segments_folder(project.folder, "total")) == []


def test_nothing_is_kept_where_the_log_is_off(project: Project) -> None:
    project.settings(log="off")
    with Server(project.folder, "total.py") as server:
        ask(server, 7)
    assert not (project.folder / ".sereno" / "answers").exists()
    said = project.sereno("log", "total", code=1).stderr
    assert said.startswith(
        f"sereno: No answers of model 'total' are kept in {project.folder} (models with answers: none)."
    )


def test_async_a_killed_worker_loses_at_most_what_was_not_written(project: Project) -> None:
    with Server(project.folder, "total.py") as server:
        for number in range(50):
            ask(server, number, f"r{number}")
        lag = 'sereno_log_lag_seconds{model="total"} 0'
        server.until(lambda: len(kept(project)) == 50, "write them")
        server.until(lambda: lag in httpx.get(f"{server.url}/metrics").text, "say so")
        ask(server, 50, "r50")
        (worker,) = server.workers()
        server.kill_worker(worker)
        server.until(lambda: server.workers() not in ([], [worker]), "start another")
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "be ready again")
        ask(server, 51, "r51")
    found = kept(project)
    assert found in ([*(f"r{n}" for n in range(50)), "r51"], [f"r{n}" for n in range(52)])


def test_sync_a_killed_worker_loses_nothing_that_was_answered(project: Project) -> None:
    project.settings(log="sync")
    with Server(project.folder, "total.py", "--workers", "2") as server:
        server.wait_for_all(2)
        callers = [Caller(server, f"c{n}") for n in range(4)]
        for killed in range(3):
            enough = sum(len(c.answered) for c in callers) + 100
            wait_until(lambda enough=enough: sum(len(c.answered) for c in callers) > enough, "more are answered")  # type: ignore[misc]
            server.kill_worker(server.workers()[killed % 2])
            server.until(lambda: len(server.workers()) == 2, "start another")
        answered = [request for caller in callers for request in caller.stop()]
    found = kept(project)
    assert len(answered) > 300
    assert set(answered) - set(found) == set()
    assert len(found) == len(set(found))  # and nothing twice
    log(project, "--compact")
    assert sorted(row["request_id"] for row in table(project)) == sorted(found)


@pytest.mark.parametrize("place", PLACES_OF_WORKERS)
def test_sync_a_worker_that_dies_while_it_writes(project: Project, place: str) -> None:
    project.settings(log="sync")
    with Server(project.folder, "total.py", **faults(f"{place}:kill@30")) as server:
        caller = Caller(server, "c")
        wait_until(lambda: len(caller.answered) > 40, "others take over")  # each of them dies at its thirtieth write
        answered = caller.stop()
    found = kept(project)
    assert set(answered) <= set(found)
    assert len(found) == len(set(found))


def test_each_place_to_fail_is_killed_at() -> None:
    assert {*PLACES, *PLACES_OF_WORKERS} == {place for place in POINTS if place.startswith("answers_")}


def test_a_reload_loses_nothing(project: Project) -> None:
    with Server(project.folder, "total.py") as server:
        caller = Caller(server, "c")
        for weight in (3, 4):
            done = len(caller.answered)
            wait_until(lambda done=done: len(caller.answered) > done + 50, "callers are answered")  # type: ignore[misc]
            project.write("weight.txt", str(weight))
            server.reload()
        answered = caller.stop()
        assert caller.refused == []
    found = sereno.read_answers("total", home=project.folder)
    assert found["request_id"].to_pylist() == answered
    assert len(set(found["model_fingerprint"].to_pylist())) >= 2
    assert set(found["y"].to_pylist()) >= {3.0, 4.5}


# Disks


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Project]:
    """A project on a disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk))
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        yield Project.new(disk / "project")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as stream:
        free = shutil.disk_usage(disk).free
        stream.write(b"x" * free)
    return filler


def test_async_serving_goes_on_while_the_disk_is_full(small: Project) -> None:
    with Server(small.folder, "total.py") as server:
        ask(server, 0, "r0")
        server.until(lambda: kept(small) == ["r0"], "write it")
        filler = fill(small.folder.parent)
        # more than fits into the page that is half full
        rows = [{"id": n, "x": 1.0} for n in range(1000)]
        for _ in range(10):
            assert post(server, rows).status == 200
        (line,) = server.wait_for("The answers of total cannot be written: the disk is full")
        assert "they are tried again each second" in line
        assert ask(server, 1, "r1").status == 200
        assert re.search(
            r'sereno_log_lag_seconds\{model="total"\} [1-9]|\.[0-9]', httpx.get(f"{server.url}/metrics").text
        )
        filler.unlink()
        server.wait_for("The answers of total are written again")
        server.until(lambda: len(kept(small)) == 10_002, "write what waited")
        assert 'sereno_log_dropped_rows_total{model="total"} 0' in httpx.get(f"{server.url}/metrics").text


def test_sync_an_answer_that_cannot_be_kept_does_not_leave(small: Project) -> None:
    small.settings(log="sync")
    with Server(small.folder, "total.py") as server:
        assert ask(server, 0, "r0").status == 200
        filler = fill(small.folder.parent)
        rows = [{"id": n, "x": n / 3} for n in range(200)]  # one batch, kept or not
        answered = 0
        while (reply := post(server, rows, f"l{answered}")).status == 200:  # into the zeros that were written ahead
            answered += 1
        assert reply.status == 500
        assert set(reply.json()) == {"type", "title", "status", "detail", "error_id"}
        assert "disk" not in reply.text  # the caller is told an id
        (line, *_) = server.wait_for(f"error {reply.json()['error_id']}")
        assert "the disk is full" in line
        filler.unlink()
        assert ask(server, 9999, "after").status == 200
    assert set(kept(small)) == {"r0", *(f"l{n}" for n in range(answered)), "after"}
    assert len(kept(small)) == answered * 200 + 2


def test_a_full_disk_does_not_cost_the_compactor_an_answer(small: Project) -> None:
    keep(small.folder, range(2000), model="total", when=RECENT)
    filler = fill(small.folder.parent)
    said = small.json("log", "total", "--compact", code=1)
    assert said["error"] == "StorageError"
    assert "the disk is full" in said["says"]
    filler.unlink()
    assert small.json("log", "total", "--compact")["answers"] == 2000
    assert len(kept(small)) == 2000


# Persons


def test_a_person_is_erased_while_the_server_answers(project: Project) -> None:
    project.settings(log="sync")
    with Server(project.folder, "total.py", "--workers", "2") as server:
        server.wait_for_all(2)
        for number in range(40):
            ask(server, 777_777 if number % 4 == 0 else number, f"r{number}")
        log(project, "--compact")
        for number in range(40, 80):
            ask(server, 777_777 if number % 4 == 0 else number, f"r{number}")
        assert log(project, "--erase", "777777") == {"erased": 20}
        left = {f"r{n}" for n in range(80) if n % 4}
        assert set(kept(project)) == left
        assert log(project, "--key", "777777") == []
        for path in project.folder.rglob("*.parquet"):
            if "_delta_log" not in path.parts:
                assert 777_777 not in pq.read_table(path, partitioning=None)["id"].to_pylist()
        ask(server, 777_777, "came-again")
        assert [a["request_id"] for a in log(project, "--key", "777777")] == ["came-again"]
    assert set(kept(project)) == {*left, "came-again"}
    said = project.sereno("log", "total", "--erase", "777777").stdout
    assert said == "Erased 1 answer of key 777777 from total; no file of the log has one.\n"


def test_old_days_go(project: Project) -> None:
    project.settings(log_days=7)
    now = datetime.now(UTC)
    for days in (0, 6, 8, 30):
        keep(project.folder, [days], model="total", when=now - timedelta(days=days, hours=0, seconds=days))
    assert log(project, "--compact") == {"answers": 4, "segments": 4, "erased": 0, "dropped_days": 2, "joined_files": 0}
    assert kept(project) == ["r6", "r0"]


# The compactor


def compactor(project: Project, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "sereno.answers.compactor", str(project.folder), *arguments],
        env=os.environ | variables,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_compactor_that_is_killed_anywhere(project: Project, place: str) -> None:
    keep(project.folder, range(10), model="total", when=RECENT)
    Compactor(project.folder, "total").compact()
    for start in (10, 20):
        keep(project.folder, range(start, start + 10), model="total", when=RECENT)
    with compactor(project, "--once", "total", **faults(f"{place}:kill")) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    ids = [f"r{n}" for n in range(30)]
    assert kept(project) == ids
    Compactor(project.folder, "total").compact()
    assert kept(project) == ids
    rows = sorted(table(project), key=lambda row: row["answered_at"])
    assert [row["request_id"] for row in rows] == ids
    assert [{name: row[name] for name in expected(0)} for row in rows] == [expected(n) for n in range(30)]
    assert finished_segments(segments_folder(project.folder, "total")) == []


@pytest.mark.parametrize("place", PLACES[1:4])
def test_an_erasure_that_is_killed_anywhere(project: Project, place: str) -> None:
    keep(project.folder, range(10), model="total", when=RECENT, customer=lambda n: n % 2)
    Compactor(project.folder, "total").compact()
    keep(project.folder, range(10, 20), model="total", when=RECENT, customer=lambda n: n % 2)
    project.sereno("log", "total", "--erase", "1", code=-signal.SIGKILL, **faults(f"{place}:kill@2"))
    project.sereno("log", "total", "--erase", "1", code=None)  # 1 where the first had come to the last of them
    says = project.sereno("log", "total", "--erase", "1", code=1).stderr
    assert "Nothing was erased: no answer of total has the key 1." in says
    assert kept(project) == [f"r{n}" for n in range(0, 20, 2)]
    for path in project.folder.rglob("*.parquet"):
        assert 1 not in pq.read_table(path, partitioning=None)["customer"].to_pylist()


def test_it_works_beside_the_server_and_ends_with_it(project: Project) -> None:
    keep(project.folder, range(10), model="total", when=RECENT)  # of a server that was killed, say
    with Server(project.folder, "total.py") as server:
        server.until(lambda: (project.folder / "answers" / "total" / "_delta_log").exists(), "compact what it found")
        lock = project.folder / ".sereno" / "locks" / "compactor"
        assert is_held(lock)
        ask(server, 1)
    assert not is_held(lock)
    assert len(kept(project)) == 11


def test_only_one_of_a_home_works(project: Project) -> None:
    lock = project.folder / ".sereno" / "locks" / "compactor"
    with compactor(project, "--every", "0.05") as first, compactor(project, "--every", "0.05") as second:
        wait_until(lambda: is_held(lock), "one has the lock")
        keep(project.folder, range(10), model="total", when=RECENT)
        wait_until(lambda: (project.folder / "answers" / "total" / "_delta_log").exists(), "it makes the table")
        holder = int(lock.read_text())
        assert holder in (first.pid, second.pid)
        one, other = (first, second) if holder == first.pid else (second, first)
        one.terminate()
        assert one.wait() == 0
        keep(project.folder, range(10, 20), model="total", when=RECENT)
        wait_until(lambda: lock.read_text() == str(other.pid), "the other takes over")
        wait_until(lambda: not finished_segments(segments_folder(project.folder, "total")), "and works")
        other.terminate()
        assert other.wait() == 0
    assert kept(project) == [f"r{n}" for n in range(20)]


def test_it_ends_when_the_server_is_gone(project: Project) -> None:
    code = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-m', 'sereno.answers.compactor', {str(project.folder)!r}, '--every', '0.05']);"
        "print(p.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        lock = project.folder / ".sereno" / "locks" / "compactor"
        wait_until(lambda: is_held(lock), "it works")
        assert int(lock.read_text()) == pid
        parent.kill()
    wait_until(lambda: not is_held(lock), "it ends")


def test_a_model_whose_pass_fails_keeps_no_other_from_its_own(project: Project) -> None:
    keep(project.folder, range(5), model="bad", when=RECENT)
    keep(project.folder, range(5), model="good", when=RECENT)
    (project.folder / "answers").mkdir()
    (project.folder / "answers" / "bad").write_text("in the way")
    with compactor(project, "--every", "0.05") as process:
        wait_until(lambda: (project.folder / "answers" / "good" / "_delta_log").exists(), "the good one")
        (project.folder / "answers" / "bad").unlink()
        wait_until(lambda: (project.folder / "answers" / "bad" / "_delta_log").exists(), "the bad one, in the end")
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
    assert "sereno: The answers of bad cannot be put into their table: " in said
    assert "sereno: The pass over the answers of bad ended with 1; it is tried again." in said
    assert sereno.read_answers("bad", home=project.folder).num_rows == 5
