"""A store that fails: nothing is lost, nothing is there twice, and who tries again ends. Schedules come from seeds."""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import sereno
from sereno.adapters import delta, objects
from sereno.exceptions import StorageError
from sereno.object_path import ConditionError, ObjectPath
from tests.acceptance.project import DAY, NEXT_DAY, Project
from tests.faulty_proxy import PASSING, Fault, FaultyProxy, Request, Rule, Schedule, faulty_proxy, rules
from tests.objects import S3Server

pytestmark = pytest.mark.service

CHUNK = 5 << 20  # the smallest that S3 takes
LARGE = b"0123456789" * (CHUNK // 10 + 10)  # one part and a bit
WORDS: dict[Fault, str] = {
    "expired": "the credentials have expired. Renew them",
    "denied": "these credentials may not do that there",
    "skewed": "this machine's clock is minutes away from the store's",
    "elsewhere": "the bucket is in another region. Set AWS_REGION",
}
SLOW: tuple[Fault, ...] = ("silent", "silent-after")  # each takes as long as the client waits
REFUSING: tuple[Fault, ...] = ("500", "503", "slow-down", "reset")  # the store is down: nothing is done


@pytest.fixture(scope="module")
def server(shared_s3: S3Server) -> S3Server:
    return shared_s3


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.url) as found:
        yield found


@pytest.fixture
def folder(server: S3Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    """A folder behind the proxy, asked by a client that is soon out of patience."""
    monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=20))
    monkeypatch.setattr(objects, "FIRST_WAIT", timedelta(milliseconds=1))
    monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(milliseconds=5))
    monkeypatch.setattr(objects, "TIMEOUT", "500ms")
    monkeypatch.setattr(objects, "CHUNK", CHUNK)
    monkeypatch.setattr(delta, "BOUNDS", delta.BOUNDS | {"timeout": "2s"})
    with server.reached(AWS_ENDPOINT_URL=proxy.url):
        yield ObjectPath.of(f"s3://{server.buckets[0]}") / secrets.token_hex(4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def asked(folder: ObjectPath, file: Path) -> dict[str, Callable[[], object]]:
    """All that can be asked, each as it can be asked again, of what `prepared` has laid there."""
    path = folder / "a"
    tag = path.look().tag

    def download() -> bytes:
        (folder / "large").download(file.with_name("copy"))
        return file.with_name("copy").read_bytes()

    return {
        "create": lambda: (folder / "new").write_bytes(b"new", only_if=""),
        "replace": lambda: path.write_bytes(b"second", only_if=tag),
        "write": lambda: path.write_bytes(b"third"),
        "read": lambda: path.read_bytes(),
        "range": lambda: path.read_range(1, 2),
        "look": lambda: path.look().size,
        "list": lambda: sorted(found.name for found, _ in folder.below()),
        "folder": lambda: sorted(found.name for found in folder.iterdir()),
        "any": lambda: folder.is_dir(),
        "upload": lambda: (folder / "up").upload(file),
        "download": lambda: download() == LARGE,
        "copy": lambda: path.copy_to(folder / "copied"),
        "remove": lambda: path.unlink(missing_ok=True),
        "clear": lambda: folder.remove_below(),
    }


def prepared(folder: ObjectPath, file: Path, name: str) -> Callable[[], object]:
    folder.remove_below()
    (folder / "a").write_bytes(b"first")
    if name == "download":
        (folder / "large").upload(file)
    return asked(folder, file)[name]


def there(folder: ObjectPath) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path, _ in folder.below()}


ASKED = (
    *("create", "replace", "write", "read", "range", "look", "list", "folder", "any"),
    *("upload", "download", "copy", "remove", "clear"),
)


# What is asked of a store, one by one


@pytest.mark.parametrize("fault", PASSING)
def test_each_fault_passes(folder: ObjectPath, proxy: FaultyProxy, file: Path, fault: Fault) -> None:
    for name in ("create", "replace", "read", "list") if fault in SLOW else ASKED:
        ask = prepared(folder, file, name)
        with proxy.having(rules()):
            answer, requests = ask(), len(proxy.log)
        after = there(folder)
        for first in range(1, 1 + min(requests, 1 if fault in SLOW else 5)):
            ask = prepared(folder, file, name)
            with proxy.having(rules(Rule(fault=fault, first=first))):
                assert ask() == answer, (name, first)
                assert len(proxy.log) <= 2 * requests + 2
            assert there(folder) == after, (name, first)


@pytest.mark.parametrize("fault", WORDS)
def test_what_does_not_pass_is_told(folder: ObjectPath, proxy: FaultyProxy, file: Path, fault: Fault) -> None:
    for name in ASKED:
        ask = prepared(folder, file, name)
        kept = there(folder)
        with proxy.having(rules(Rule(fault=fault, times=1_000))):
            with pytest.raises(StorageError) as told:
                ask()
            assert len(proxy.log) <= 3, name  # nothing is tried again
        assert WORDS[fault] in str(told.value), name
        assert str(folder) in str(told.value)
        assert there(folder) == kept


@pytest.mark.parametrize("fault", REFUSING)
def test_who_tries_again_ends(
    folder: ObjectPath, proxy: FaultyProxy, file: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many tries as there is time for: tests/unit/test_objects.py counts it."""
    for name in ASKED:
        ask = prepared(folder, file, name)
        kept = there(folder)
        for seconds in (0.05, 0.5, 5):  # on a machine that is busy the first try may take all of the first
            monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=seconds))
            with proxy.having(rules(Rule(fault=fault, times=1_000))):
                with pytest.raises(StorageError, match="cannot be"):
                    ask()
                tries = len(proxy.log)
            assert there(folder) == kept
            if tries >= 2:
                break
        else:
            pytest.fail(f"{name} was tried once in {seconds} s")


def test_a_store_that_always_says_conflict(
    folder: ObjectPath, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=1))
    for fault in ("conflict", "refused"):
        with proxy.having(rules(Rule(fault=fault, times=1_000))):  # type: ignore[arg-type]
            with pytest.raises(StorageError, match="goes on refusing it, though nobody else has written it"):
                (folder / "new").write_bytes(b"x", only_if="")
            assert len(proxy.log) >= 4  # the write, and whether it was done
        assert not (folder / "new").exists()


def test_an_upload_that_the_store_has_forgotten(folder: ObjectPath, proxy: FaultyProxy, file: Path) -> None:
    """Its last request was done, the answer lost, and the upload is no longer known when it is tried again."""
    forgotten = rules(
        Rule(fault="reset-after", method="POST", pattern="uploadId="),
        Rule(fault="forgotten", method="POST", pattern="uploadId=", first=2),
    )
    with proxy.having(forgotten):
        (folder / "up").upload(file)
        assert proxy.injected() == ["reset-after", "forgotten"]
    assert there(folder) == {"up": LARGE}


def test_a_lost_answer_and_another_writer(folder: ObjectPath, proxy: FaultyProxy, server: S3Server) -> None:
    """The other one wrote over what was written: the first is told, and must look for its own in what is there."""
    import obstore

    path = folder / "latest.json"
    tag = path.write_bytes(b"0")
    settings = objects.settings_of(f"s3://{path.bucket}") | {"aws_endpoint": server.url}
    del settings["allow_http"]
    direct = obstore.store.from_url(f"s3://{path.bucket}", config=settings, client_options={"allow_http": True})
    writes: list[str] = []

    def decide(request: Request) -> Fault | None:
        if request.is_conditional_write:
            if writes:
                obstore.put(direct, path.key, b"2")
            writes.append(request.method)
        return "reset-after" if len(writes) == 1 else None

    with proxy.having(decide), pytest.raises(ConditionError):
        path.write_bytes(b"1", only_if=tag)
    assert len(writes) == 2
    assert path.read_bytes() == b"2"


# Schedules


def worked(folder: ObjectPath, proxy: FaultyProxy, file: Path, seed: int) -> None:
    """Twenty operations drawn by the seed give what they give without faults; nobody is told of any."""
    draw = random.Random(seed)
    expected: dict[str, bytes] = {}
    tags: dict[str, str] = {}
    small = file.with_name("small")
    for n in range(20):
        name, content = f"k{draw.randrange(4)}", b"%d-%d" % (seed, n)
        path = folder / name
        match draw.choice(["create", "replace", "write", "read", "list", "remove", "upload", "copy"]):
            case "create" if name in expected:
                with pytest.raises(ConditionError):
                    path.write_bytes(content, only_if="")
            case "create":
                tags[name], expected[name] = path.write_bytes(content, only_if=""), content
            case "replace" if name in tags:
                tags[name], expected[name] = path.write_bytes(content, only_if=tags[name]), content
            case "write":
                tags[name], expected[name] = path.write_bytes(content), content
            case "read" if name in expected:
                assert path.read_bytes() == expected[name]
            case "remove":
                path.unlink(missing_ok=True)
                expected.pop(name, None)
                tags.pop(name, None)
            case "upload":
                large = draw.randrange(50) == 0
                small.write_bytes(content)
                path.upload(file if large else small)
                tags[name], expected[name] = path.look().tag, LARGE if large else content
            case "copy" if name in expected:
                path.copy_to(folder / "copied")
                expected["copied"] = expected[name]
            case _:
                assert {found.name: about.size for found, about in folder.below()} == {
                    key: len(value) for key, value in expected.items()
                }
    assert there(folder) == expected


def run_schedules(folder: ObjectPath, proxy: FaultyProxy, file: Path, seeds: range) -> set[Fault]:
    seen: set[Fault] = set()
    # An answer that takes 500 ms not to come is drawn seldom, or the campaign would wait all the time.
    often = tuple(fault for fault in PASSING if fault not in SLOW) * 10
    for seed in seeds:
        with proxy.having(Schedule(seed=seed, faults=(*often, *SLOW, "refused"))):
            worked(folder / str(seed), proxy, file, seed)
            seen |= {*proxy.injected()}
        (folder / str(seed)).remove_below()
    return seen


def test_schedules(folder: ObjectPath, proxy: FaultyProxy, file: Path) -> None:
    assert run_schedules(folder, proxy, file, range(10)) >= {*PASSING} - {*SLOW}


@pytest.mark.soak
def test_ten_thousand_schedules(folder: ObjectPath, proxy: FaultyProxy, file: Path) -> None:
    assert run_schedules(folder, proxy, file, range(10, 10_010)) >= {*PASSING}


@pytest.mark.parametrize("seed", range(2))
def test_writers_beside_each_other(folder: ObjectPath, proxy: FaultyProxy, seed: int) -> None:
    """Each adds its lines to one object by conditional writes, and looks for its own: each line is there, and once."""
    path, failed = folder / "log", []
    path.write_bytes(b"")

    def add(writer: int) -> None:
        try:
            for n in range(5):
                line = b"%d-%d\n" % (writer, n)
                while True:
                    content, tag = path.read_tagged()
                    if line in content:
                        break
                    try:
                        path.write_bytes(content + line, only_if=tag)
                        break
                    except ConditionError:
                        continue
        except Exception as error:  # noqa: BLE001 - the test is told
            failed.append(error)

    faults: tuple[Fault, ...] = ("500", "slow-down", "reset", "reset-after", "truncated", "conflict", "500-after")
    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    with proxy.having(Schedule(seed=seed, faults=faults, probability=0.2, in_a_row=2)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(proxy.injected()) > 5
    assert failed == []
    assert sorted(path.read_bytes().split()) == sorted(b"%d-%d" % (w, n) for w in range(4) for n in range(5))


# Runs


def night(tmp_path: Path, folder: ObjectPath, server: S3Server, proxy: FaultyProxy) -> Project:
    project = Project.new(tmp_path / folder.name)
    project.within = True
    project.settings(exports=["parquet"])
    project.variables = {
        "SERENO_WORKERS": "1",
        "SERENO_STORAGE": str(folder),
        **server.environment,
        "AWS_ENDPOINT_URL": proxy.url,
    }
    project.rows(DAY, 60, parts=2)
    project.rows(NEXT_DAY, 80, parts=2)
    return project


def published_once(project: Project, folder: ObjectPath) -> None:
    """Both nights are published, each once, with all of their rows; what the log says is what lies there."""
    assert [version["data_date"] for version in project.versions()] == [DAY, NEXT_DAY]
    assert project.in_service() == [2]
    table = sereno.read_predictions("total", home=str(folder))
    assert sorted(table.column("id").to_pylist()) == [*range(80)]
    assert table.column("y").to_pylist() == [x / 4 for x in table.column("id").to_pylist()]
    commits = [path.name for path, _ in (folder / "predictions/total/_delta_log").below() if path.suffix == ".json"]
    assert len(commits) == 2


def run_nights(
    project: Project, folder: ObjectPath, proxy: FaultyProxy, schedule: Callable[[Any], Fault | None]
) -> int:
    """Two nights while the store fails. One that gave up is started again, the store being well. How many did."""
    gave_up = 0
    for day in (DAY, NEXT_DAY):
        with proxy.having(schedule):
            done = project.sereno("run", "total.py", "--date", day, code=None)
        if done.returncode != 0:
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stderr
            gave_up += 1
            project.sereno("run", "total.py", "--date", day)
    published_once(project, folder)
    return gave_up


@pytest.mark.parametrize(
    "fault",
    ["reset-after", "500-after", "conflict"]
    + [pytest.param(fault, marks=pytest.mark.soak) for fault in ("truncated", "reset", "slow-down", "refused")],
)
def test_a_fault_of_each_commit(
    tmp_path: Path, folder: ObjectPath, server: S3Server, proxy: FaultyProxy, fault: Fault
) -> None:
    project = night(tmp_path, folder, server, proxy)
    run_nights(project, folder, proxy, rules(Rule(fault=fault, method="PUT", pattern="_delta_log/.*json", times=1)))


@pytest.mark.parametrize("seed", range(2))
def test_nights_while_the_store_fails(
    tmp_path: Path, folder: ObjectPath, server: S3Server, proxy: FaultyProxy, seed: int
) -> None:
    often = tuple(fault for fault in PASSING if fault not in SLOW)
    project = night(tmp_path, folder, server, proxy)
    run_nights(project, folder, proxy, Schedule(seed=seed, faults=often, probability=0.15, in_a_row=2))


@pytest.mark.soak  # tests/unit/test_objects.py has the same of one operation, by a clock of its own
@pytest.mark.parametrize("first", [1, 5, 10, 20, 30])
def test_a_store_that_is_down_for_twenty_seconds_fails_no_run(
    tmp_path: Path,
    folder: ObjectPath,
    server: S3Server,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
) -> None:
    monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=60))
    monkeypatch.setattr(objects, "FIRST_WAIT", timedelta(milliseconds=100))
    monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(seconds=5))
    project = night(tmp_path, folder, server, proxy)
    project.sereno("run", "total.py", "--date", DAY)
    asked, until = itertools.count(1), 0.0

    def down(request: Request) -> Fault | None:
        nonlocal until
        if next(asked) == first:
            until = time.monotonic() + 20
        return "500" if time.monotonic() < until else None

    with proxy.having(down):
        project.sereno("run", "total.py", "--date", NEXT_DAY)
        assert len(proxy.injected()) > 3
    published_once(project, folder)


@pytest.mark.soak
def test_five_hundred_nights_while_the_store_fails(
    tmp_path: Path, folder: ObjectPath, server: S3Server, proxy: FaultyProxy
) -> None:
    for seed in range(2, 502):
        below = folder / str(seed)
        project = night(tmp_path / str(seed), below, server, proxy)
        run_nights(project, below, proxy, Schedule(seed=seed, faults=PASSING, probability=0.15, in_a_row=4))
        below.remove_below()
