"""Lookups while what they answer from changes, breaks, or is gone: whoever asks is answered, and from what is in service.

Every version is published with another weight (y = id / 8 × weight), so each answer shows which version it is of.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sereno.adapters import lookup_folder
from sereno.adapters.lookup_folder import LookupFolder
from sereno.config import load_settings
from sereno.home import Home, rollback
from tests.acceptance.lookup_load import KEYS, LookupLoad
from tests.acceptance.project import DAY, Project, faults
from tests.acceptance.server import Server

PAGE = 4096
SOON = 60.0  # seconds; a busy machine, not a limit
BUILD_PLACES = (
    "lookup_build",
    "lookup_built",
    "lookup_manifest",
    "lookup_swap_before",
    "lookup_swapped",
    "lookup_removed",
)


BEFORE_THE_SWAP = BUILD_PLACES[:4]


def seldom(*values: object) -> Any:
    """A case for `make soak`."""
    return pytest.param(*values, marks=pytest.mark.soak)


class Shop:
    """A project whose predictions are looked up, and the weight of each of its versions."""

    def __init__(self, project: Project, weights: dict[int, float]) -> None:
        self.project, self.weights = project, weights
        project.within = True
        project.variables = {"SERENO_WORKERS": "1"}
        self.home = project.folder
        self.folder = project.folder / ".sereno" / "lookup" / "total"

    def copy(self, folder: Path) -> Shop:
        return Shop(self.project.copy(folder), dict(self.weights))

    def publish(self, *, code: int | None = 0, **variables: str) -> Any:
        """The next version, with a weight of its own; in a process of its own where it has variables."""
        version = max(self.weights, default=0) + 1
        self.weights[version] = version + 1.0
        self.project.write("weight.txt", str(self.weights[version]))
        self.project.within = not variables
        try:
            return self.project.sereno(
                "run", "total.py", "--date", DAY, "--json", "--workers", "1", code=code, **variables
            )
        finally:
            self.project.within = True

    def die(self, place: str) -> int:
        """Publish the next version, and be killed there. Returns the version."""
        # a run looks after what is there before it adds to it, and passes these places then already
        again = "@2" if place in ("lookup_swap_before", "lookup_swapped", "lookup_removed") else ""
        self.publish(code=-signal.SIGKILL, **faults(f"{place}:kill{again}"))
        return max(self.weights)

    def rollback(self, to: int) -> None:
        rollback(Home(load_settings(self.home), "total"), to=to)

    # What is on the disk

    @property
    def pointer(self) -> Any:
        return json.loads((self.folder / "served.json").read_bytes())

    @property
    def index(self) -> Path:
        """The file of the index that is served."""
        return self.folder / f"{self.pointer['index']}.lmdb"

    def files(self, version: int) -> list[Path]:
        """The index of a version, and its manifest."""
        return sorted(self.folder.glob(f"{version:06}-*"), reverse=True)

    def is_tidy(self) -> bool:
        """Whether nothing is there but indexes with their manifests, and the pointer to one of them."""
        if not (self.folder / "served.json").exists():
            return False
        there = {path.name for path in self.folder.iterdir()} - {"served.json"}
        whole = {f"{path.stem}{end}" for path in self.folder.glob("*.json") for end in (".json", ".lmdb")}
        return there == whole - {"served.json", "served.lmdb"} and self.index.name in there

    def assert_sound(self, version: int) -> None:
        """Whoever opens the lookups now gets this version, and there is nothing beside what belongs to it."""
        store = LookupFolder(self.home, "total")
        index = store.open()
        assert index is not None
        assert (index.number, index.rows) == (version, KEYS)
        expected = {
            index.keys.encode((key,)): b'{"y":%b}' % json.dumps(key / 8 * self.weights[version]).encode()
            for key in (0, 8, 499)
        }
        assert index.get_many([*expected]) == [*expected.values()]
        index.close()
        assert not store.is_behind()
        assert self.is_tidy(), sorted(path.name for path in self.folder.iterdir())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Versions 1 and 2, of which the second is in service. For copying."""
    project = Project.new(tmp_path_factory.mktemp("lookup") / "published")
    project.rows(DAY, KEYS)
    shop = Shop(project, {})
    shop.folder.mkdir(parents=True)  # as a server does
    shop.publish()
    shop.publish()
    shop.assert_sound(2)
    return shop


@pytest.fixture
def shop(published: Shop, tmp_path: Path) -> Shop:
    return published.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def running(published: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Server]]:
    """A server of a project; what happens to it in one test is over before the next."""
    shop = published.copy(tmp_path_factory.mktemp("running") / "project")
    with serve(shop) as server:
        yield shop, server


def serve(shop: Shop, *arguments: str, **variables: str) -> Server:
    return Server(shop.home, "total.py", "--set", "serve.access_log=off", *arguments, **variables)


def ask(server: Server, key: int = 8) -> Any:
    """The answer to one key, or why there is none (the status)."""
    reply = httpx.get(f"{server.url}/predictions/{key}")
    return reply.json() if reply.status_code == 200 else reply.status_code


def version(server: Server) -> int | None:
    """The version that answers; None: none does."""
    answer = ask(server)
    return answer["version"] if isinstance(answer, dict) else None


def wait_for(server: Server, wanted: int) -> None:
    server.until(lambda: version(server) == wanted, f"answer from version {wanted}")


def failures(server: Server) -> int:
    """How many indexes could not be built, or were found damaged."""
    name = 'sereno_lookup_failures_total{model="total"} '
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def flip(path: Path) -> None:
    """Damage one byte in the middle of a file."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0xFF]))


def cut(path: Path) -> None:
    """Take the second half of a file."""
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


# Versions come and go while people ask


@pytest.mark.parametrize(
    ("workers", "swaps"),
    [(1, 7), (2, 23), pytest.param(2, 1_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])],
)
def test_swaps_under_load(shop: Shop, workers: int, swaps: int) -> None:
    dice = random.Random(4)
    history = [2]
    with serve(shop, "--workers", str(workers)) as server:
        server.wait_for_all(workers)
        with LookupLoad(server.port, shop.weights, callers=8, pause=0) as load:
            load.wait_for(2)
            for swap in range(swaps):
                kept = sorted(shop.weights)[-5:]
                if swap % 5 == 2 and len(shop.weights) < 30:
                    history.append(max(shop.weights) + 1)
                    shop.publish()
                else:
                    history.append(dice.choice([v for v in kept if v != history[-1]]))
                    shop.rollback(history[-1])
                if swap % 7:  # sometimes the next one comes before anybody has seen this one
                    load.wait_for(history[-1])
            load.wait_for(history[-1])
        load.assert_followed(history)
        assert load.unchanged
        assert 1 < len(load.versions) <= len(set(history))
        assert failures(server) == 0
    print(f"{swaps} swaps, {sum(load.versions.values()):,} predictions (a POST has six), {load.unchanged:,} times 304")
    shop.assert_sound(history[-1])


# Whoever builds is killed


@pytest.mark.parametrize(
    "place",
    [
        "commit_after",
        *(p if p in ("lookup_manifest", "lookup_swap_before") else seldom(p) for p in BUILD_PLACES),
    ],
)
def test_whoever_publishes_is_killed(running: tuple[Shop, Server], place: str) -> None:
    """The server sees to the rest, with no further command."""
    shop, server = running
    with LookupLoad(server.port, shop.weights) as load:
        load.wait_for(before := shop.project.in_service()[-1])
        new = shop.die(place)
        load.wait_for(new)
        until(shop.is_tidy, "tidying up")
    load.assert_followed([before, new])
    shop.assert_sound(new)


@pytest.mark.parametrize("place", [seldom("rollback"), "lookup_swap_before", seldom("lookup_swapped")])
def test_whoever_rolls_back_is_killed(shop: Shop, place: str) -> None:
    with serve(shop) as server, LookupLoad(server.port, shop.weights) as load:
        load.wait_for(2)
        shop.project.within = False
        shop.project.sereno("rollback", "total", code=-signal.SIGKILL, **faults(f"{place}:kill"))
        if place == "rollback":  # it was not committed yet
            shop.project.sereno("rollback", "total")
        load.wait_for(1)
    load.assert_followed([2, 1])
    shop.assert_sound(1)


@pytest.mark.parametrize("place", [p if p in ("lookup_built", "lookup_swapped") else seldom(p) for p in BUILD_PLACES])
def test_killed_where_no_server_is(shop: Shop, place: str) -> None:
    """The next run sees to the rest, though it has nothing to publish."""
    new = shop.die(place)
    assert shop.project.run()["state"] == "nothing"
    shop.assert_sound(new)


def test_the_servers_own_builder_is_killed(shop: Shop) -> None:
    with (
        serve(shop, **faults("lookup_build:delay=0.7")) as server,
        LookupLoad(server.port, shop.weights) as load,
    ):
        load.wait_for(2)
        new = shop.die("commit_after")
        until(lambda: [*shop.folder.glob(".*.tmp")], "building")
        (builder,) = builders(server)
        builder.kill()
        load.wait_for(new)
        (line,) = server.wait_for("the builder of the lookups of total ended with -9")
        assert line.endswith("What is served stays; the next try is in 1 s.")
        assert failures(server) == 1
    load.assert_followed([2, new])
    shop.assert_sound(new)


@pytest.mark.parametrize("place", [seldom(place) for place in BEFORE_THE_SWAP])
def test_every_builder_of_the_server_is_killed(shop: Shop, place: str) -> None:
    with serve(shop, **faults(f"{place}:kill")) as server, LookupLoad(server.port, shop.weights) as load:
        new = shop.die("commit_after")
        server.wait_for("ended with -9", 2)
        assert version(server) == 2
        assert failures(server) >= 2
        assert shop.project.run()["state"] == "nothing"
        load.wait_for(new)
    load.assert_followed([2, new])
    shop.assert_sound(new)


@pytest.mark.soak
def test_a_server_is_killed_while_its_builder_works(shop: Shop) -> None:
    shop.die("commit_after")
    with serve(shop, **faults("lookup_build:delay=0.7")) as server:
        until(lambda: [*shop.folder.glob(".*.tmp")], "building")
        server.send(signal.SIGKILL)
        server.process.wait()
    with serve(shop) as server:
        wait_for(server, 3)
        assert "ended with" not in server.log
    shop.assert_sound(3)


def builders(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sereno.lookup.builder" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.soak
def test_an_index_that_cannot_be_built(shop: Shop) -> None:
    """What was published was damaged before it was indexed."""
    with serve(shop) as server, LookupLoad(server.port, shop.weights) as load:
        load.wait_for(2)
        new = shop.die("commit_after")
        part = max(shop.project.predictions.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        whole = part.read_bytes()
        flip(part)
        (said, *_) = server.wait_for("cannot be looked up")
        assert f"Version {new} of model 'total' cannot be looked up: {part} is damaged" in said
        server.wait_for("the builder of the lookups of total ended with 1")
        assert failures(server) >= 1
        part.write_bytes(whole)  # restored from a backup, as it says
        load.wait_for(new)
    load.assert_followed([2, new])
    shop.assert_sound(new)


# An index is damaged before it is opened


@pytest.mark.parametrize("damage", [flip, seldom(cut), seldom(empty)])
def test_an_index_that_is_damaged_when_a_server_starts(shop: Shop, damage: Callable[[Path], None]) -> None:
    damage(shop.index)
    with serve(shop, **faults("lookup_build:delay=0.5")) as server:
        assert version(server) == 1  # what is sound
        server.wait_for(rf"{shop.files(2)[0].name} .*: it is damaged, and is not used\. It is built again\.")
        server.wait_for("the index 000002-.* of the lookups of total is missing or damaged; it is built again")
        wait_for(server, 2)
        assert failures(server) == 1
    shop.assert_sound(2)


@pytest.mark.parametrize("name", [seldom("served"), "manifest"])
@pytest.mark.parametrize("damage", [cut, seldom(empty)])
def test_words_about_an_index_that_are_damaged(shop: Shop, name: str, damage: Callable[[Path], None]) -> None:
    damage(shop.folder / "served.json" if name == "served" else shop.index.with_suffix(".json"))
    with serve(shop) as server:
        wait_for(server, 2)
        assert "damaged" in server.log
    shop.assert_sound(2)


def test_a_disk_that_cannot_read_an_index(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built again elsewhere on the disk."""
    name, read = shop.index.name, lookup_folder.checksum

    def broken(descriptor: int) -> int:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(lookup_folder, "checksum", broken)
        index = LookupFolder(shop.home, "total").open()
        assert index is not None
        assert index.number == 1
        index.close()
    assert LookupFolder(shop.home, "total").is_behind()
    shop.project.sereno("run", "total.py", "--date", DAY)  # has nothing to publish
    shop.assert_sound(2)


def test_damage_after_a_rollback(shop: Shop) -> None:
    """What was rolled back is not answered from, whatever happens to the others."""
    shop.publish()
    shop.rollback(2)
    flip(shop.files(1)[0])
    flip(shop.files(2)[0])
    with serve(shop, **faults("lookup_build:delay=0.5")) as server:
        reply = httpx.get(f"{server.url}/predictions/8")
        assert reply.status_code == 503
        assert reply.json()["detail"] == "What is published is being made ready for lookups."
        seen = [version(server)]
        until(lambda: seen.append(version(server)) or seen[-1] == 2, "version 2")
        assert set(seen) == {None, 2}
    assert shop.project.in_service() == [2]


@pytest.mark.parametrize("workers", [1, seldom(2)])
def test_a_new_index_that_is_damaged(shop: Shop, workers: int) -> None:
    """Between the last look of whoever built it and the first of who opens it."""
    with serve(shop, "--workers", str(workers)) as server:
        server.wait_for_all(workers)
        with LookupLoad(server.port, shop.weights) as load:
            publisher = start_slow(shop, "lookup_swap_before:delay=1@2")
            until(lambda: len(shop.files(3)) == 2, "an index")
            flip(shop.files(3)[0])
            _, error = publisher.communicate()
            assert publisher.returncode == 0, error
            server.wait_for("000003-.*: it is damaged, and is not used")
            load.wait_for(3)
            assert failures(server) >= 1
    load.assert_followed([2, 3])
    shop.assert_sound(3)


def test_a_rollback_to_a_damaged_index(shop: Shop) -> None:
    """Rather no answer than one from what was rolled back."""
    flip(shop.files(1)[0])
    with serve(shop, **faults("lookup_build:delay=1")) as server:
        assert version(server) == 2
        shop.rollback(1)
        server.wait_for("000001-.*: it is damaged, and is not used")
        seen: list[int | None] = []
        until(lambda: seen.append(version(server)) or seen[-1] == 1, "version 1")
        gone = seen.index(None)
        assert set(seen[gone:]) == {None, 1}
    shop.assert_sound(1)


def start_slow(shop: Shop, fault: str) -> subprocess.Popen[str]:
    """A run that publishes the next version."""
    new = max(shop.weights) + 1
    shop.weights[new] = new + 1.0
    shop.project.write("weight.txt", str(shop.weights[new]))
    return shop.project.start("run", "total.py", "--date", DAY, "--workers", "1", **faults(fault))


# An index is damaged, or gone, while it is answered from


@pytest.mark.parametrize("workers", [seldom(1), 2])
def test_an_index_that_is_cut_off_under_a_worker(shop: Shop, workers: int) -> None:
    """The kernel ends whoever reads where the file no longer is (SIGBUS)."""
    with serve(shop, "--workers", str(workers)) as server:
        server.wait_for_all(workers)
        empty(shop.index)
        begun = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            ask(server)
        seen = set()
        while 2 not in seen:
            assert time.monotonic() < begun + SOON
            try:
                answer = ask(server)
            except httpx.TransportError:  # the other worker
                continue
            if isinstance(answer, dict):
                assert answer["prediction"]["y"] == shop.weights[answer["version"]]
                seen.add(answer["version"])
        print(f"{time.monotonic() - begun:.1f} s until {workers} workers answered from a new index")
        assert seen <= {1, 2}
        server.wait_for("was ended by signal 7")
        server.wait_for("it is damaged, and is not used")
        server.wait_for_all(workers)
        assert failures(server) >= 1
        # the others look a moment later than the first
        server.until(lambda: {version(server) for _ in range(20)} == {2}, "answer from version 2, all of them")
    shop.assert_sound(2)


@pytest.mark.parametrize("what", ["index", seldom("manifest"), seldom("served"), "folder", seldom("all folders")])
def test_an_index_that_is_removed(running: tuple[Shop, Server], what: str) -> None:
    shop, server = running
    serves = shop.project.in_service()[-1]
    with LookupLoad(server.port, shop.weights) as load:
        load.wait_for(serves)
        index, was = shop.index, failures(server)
        match what:
            case "index":
                index.unlink()
            case "manifest":
                index.with_suffix(".json").unlink()
            case "served":
                (shop.folder / "served.json").unlink()
            case "folder":
                shutil.rmtree(shop.folder)
            case "all folders":
                shutil.rmtree(shop.folder.parent)
        until(lambda: index.exists() and (shop.folder / "served.json").exists() and shop.is_tidy(), "another index")
        if what in ("index", "manifest"):
            assert failures(server) == was + 1
            server.wait_for(f"the index {index.stem} of the lookups of total is missing or damaged; it is built again.")
        shop.publish()
        load.wait_for(serves + 1)
    load.assert_followed([serves, serves + 1])
    shop.assert_sound(serves + 1)


# Disks


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(shop: Shop) -> Iterator[Path]:
    """A disk of 1 MB, on which the lookups are."""
    folder = shop.folder.parent
    kept = shop.home / "kept"
    folder.rename(kept)
    folder.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, but: int) -> Path:
    """A file that leaves so many pages free."""
    file = disk / "filler"
    with file.open("wb") as stream:
        for _ in range(shutil.disk_usage(disk).free // PAGE - but):
            stream.write(b"x" * PAGE)
    return file


@pytest.mark.parametrize("pages", [4, *map(seldom, (0, 1, 2, 3, 6, 8))])
def test_a_disk_that_is_full(shop: Shop, small_disk: Path, pages: int) -> None:
    with serve(shop) as server, LookupLoad(server.port, shop.weights) as load:
        load.wait_for(2)
        filler = fill(small_disk, but=pages)
        said = json.loads(shop.publish(code=1).stdout)
        assert said["error"] == "ExportError"
        assert said["says"].startswith(
            "Version 3 is in service, but 1 of its exports could not follow: lookup: The index of lookups in "
            f"{shop.folder} could not be written: the disk is full"
        )
        assert "The publication stands, and lookups answer as before." in said["says"]
        server.wait_for(f"The index of lookups in {shop.folder} could not be written: the disk is full")
        server.wait_for(
            r"the builder of the lookups of total ended with 1\. What is served stays; the next try is in 1 s"
        )
        assert failures(server) >= 1
        assert version(server) == 2
        assert shop.is_tidy(), sorted(path.name for path in shop.folder.iterdir())
        filler.unlink()
        load.wait_for(3)  # by itself
    load.assert_followed([2, 3])
    shop.assert_sound(3)
    assert shop.project.run()["state"] == "nothing"


@pytest.fixture
def read_only(shop: Shop) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only."""
    mounted = []

    def make(folder: Path) -> None:
        done = mount("--bind", str(folder), str(folder))
        if done.returncode:
            pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
        mounted.append(folder)
        assert mount("-o", "remount,bind,ro", str(folder)).returncode == 0

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["home", seldom("lookup")])
@pytest.mark.parametrize("state", [seldom("sound"), "damaged", seldom("behind")])
def test_a_folder_that_is_read_only(shop: Shop, read_only: Callable[[Path], None], what: str, state: str) -> None:
    if state == "damaged":
        flip(shop.index)
    elif state == "behind":
        shop.die("commit_after")
    read_only(shop.home if what == "home" else shop.folder.parent)
    with serve(shop) as server:
        serves = {"sound": 2, "damaged": 1, "behind": 2}[state]
        assert version(server) == serves
        if state == "behind":
            server.wait_for(
                r"total could not be written: the file system is read-only .* and lookups answer as before\."
            )
        time.sleep(1.5)  # for all that might be said again and again
        assert version(server) == serves
        assert len(server.log.splitlines()) < 8, server.log


def test_who_only_looks_does_not_die_of_what_is_there(shop: Shop) -> None:
    shutil.rmtree(shop.folder)
    shop.folder.write_text("")
    store = LookupFolder(shop.home, "total")
    assert (store.open(), store.mark(), store.is_behind()) == (None, None, True)


@pytest.mark.soak
def test_a_folder_that_is_a_file(shop: Shop) -> None:
    """Nobody expects that, and nothing dies of it."""
    with serve(shop) as server:
        shutil.rmtree(shop.folder.parent)
        shop.folder.parent.write_text("")
        server.wait_for("the builder of the lookups of total ended with 1")
        time.sleep(1)  # for all that might be said again and again
        assert version(server) == 2
        assert len(server.log.splitlines()) < 10, server.log
        shop.folder.parent.unlink()
        until(shop.folder.exists, "a folder")
        until(shop.is_tidy, "an index")
    shop.assert_sound(2)


# Several at once


def test_two_servers_of_one_home(shop: Shop) -> None:
    with serve(shop) as one, serve(shop) as other:
        new = shop.die("commit_after")
        wait_for(one, new)
        wait_for(other, new)
        until(lambda: not builders(one) + builders(other), "the end of it")
        logs = one.log + other.log
        assert logs.count("version 3 is indexed") == 1
        assert "ended with" not in logs
        shop.rollback(1)
        wait_for(one, 1)
        wait_for(other, 1)
    shop.assert_sound(1)


def test_a_run_and_a_server_at_once(shop: Shop) -> None:
    """Who comes second finds the work done."""
    with serve(shop) as server:
        publisher = start_slow(shop, "lookup_build:delay=1")
        _, error = publisher.communicate()
        assert publisher.returncode == 0, error
        wait_for(server, 3)
        assert "indexed" not in server.log  # the run did that
        assert "ended with" not in server.log
        assert failures(server) == 0
    shop.assert_sound(3)
