"""What lookups in a folder promise beyond `interfaces.LookupStore`: they survive damage, kill -9 and full disks."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from sereno.adapters import lookup_folder
from sereno.adapters.lookup_folder import LookupFolder
from sereno.exceptions import BusyError, IndexingError, StorageError
from sereno.lookup import entries
from sereno.lookup.pointer import Pointer, is_behind, read_pointer, work
from sereno.snapshots import Snapshot
from sereno.storage import exclusive, host_name
from tests.contract.lookup_stores import ALL, MODEL, FolderKept, Table, answer, scores

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> LookupFolder:
    return LookupFolder(tmp_path, MODEL)


@pytest.fixture
def two(table: Table, store: LookupFolder) -> Table:
    """A table with two versions, both indexed."""
    for _ in range(2):
        table.publish()
        store.follow(table.state, ALL)
    return table


def served(store: LookupFolder) -> int | None:
    """The version that answers, once it is opened anew."""
    index = store.open()
    if index is None:
        return None
    assert index.get_many([index.keys.encode((n,)) for n in (1, 2, 3, 4)]) == [*[answer(index.number)] * 3, None]
    index.close()
    return index.number


def newest(store: LookupFolder, end: str = "lmdb") -> Path:
    return max(store.folder.glob(f"0*.{end}"))


# What is there


def test_the_folder(two: Table, store: LookupFolder) -> None:
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "000001-2026-05-01-000001.json",
        "000001-2026-05-01-000001.lmdb",
        "000002-2026-05-01-000002.json",
        "000002-2026-05-01-000002.lmdb",
        "served.json",
    ]
    index = newest(store)
    assert index.stat().st_mode & 0o777 == 0o444
    manifest = json.loads(newest(store, "json").read_bytes())
    build, crc32 = manifest.pop("build"), manifest.pop("crc32")
    assert manifest == {
        "format": 1,
        "number": 2,
        "attempt": "2026-05-01-000002",
        "data_date": "2026-05-01",
        "data_time": "2026-05-02T00:00:00Z",
        "fingerprint": "f" * 64,
        "rows": 3,
        "keys": [["id", "int"]],
        "size": index.stat().st_size,
    }
    with index.open("rb") as stream:
        assert lookup_folder.checksum(stream.fileno()) == crc32
    pointer = json.loads((store.folder / "served.json").read_bytes())
    assert pointer.pop("commit") == (two.store.folder / "_delta_log" / f"{1:020}.json").stat().st_mtime_ns
    assert pointer == {
        "format": 1,
        "index": "000002-2026-05-01-000002",
        "build": build,
        "table_version": 1,
        "before": ["000001-2026-05-01-000001"],
        "missing": [],
        "left_out": [],
    }


def test_what_was_rolled_back_is_not_what_comes_before(two: Table, store: LookupFolder) -> None:
    two.store.rollback()
    two.publish()
    store.follow(two.state, ALL)
    pointer = read_pointer(two.home, MODEL)
    assert pointer is not None
    assert (pointer.index[:6], pointer.before) == ("000003", ["000001-2026-05-01-000001"])


def test_looking_costs_no_listing(two: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", None)
    monkeypatch.setattr(os, "listdir", None)
    assert not is_behind(two.home, MODEL)
    assert store.mark() is not None


def test_a_table_without_lookups_is_behind(table: Table, store: LookupFolder) -> None:
    assert not store.is_behind()
    table.publish()
    assert store.is_behind()


def test_indexes_of_long_past_dates_go(table: Table, store: LookupFolder) -> None:
    for day in range(1, 13):
        table.publish(day=day, disposition="partition")
        store.follow(table.state, table.state.kept(datetime(2036, 1, 1, tzinfo=UTC)))
    assert len(table.state.served) == 12
    assert FolderKept(table.home).held() == set(range(6, 13))


def test_dates_whose_indexes_are_missing(table: Table, store: LookupFolder) -> None:
    """Those of the last snapshots, and no others: nobody rolls back to a date of long ago."""
    for day in range(1, 13):
        table.publish(day=day, disposition="partition")
    store.follow(table.state, ALL)
    assert FolderKept(table.home).held() == set(range(6, 13))


def test_a_table_that_is_published_to_all_day(table: Table, store: LookupFolder) -> None:
    for _ in range(9):
        table.publish()
    store.follow(table.state, ALL)
    assert FolderKept(table.home).held() == set(range(3, 10))
    for _ in range(2):
        table.publish()
        store.follow(table.state, ALL)
    assert FolderKept(table.home).held() == set(range(3, 12))  # what is there stays
    pointer = read_pointer(table.home, MODEL)
    assert pointer is not None
    assert [int(name[:6]) for name in pointer.before] == [*range(10, 2, -1)]


def test_so_many_at_once(table: Table, store: LookupFolder) -> None:
    for _ in range(4):
        table.publish()
    held = []
    while not held or work(table.home, MODEL):
        assert store.follow(table.state, ALL, most=1)
        assert not store.is_behind()
        held.append(FolderKept(table.home).held())
    assert held == [{4}, {3, 4}, {2, 3, 4}, {1, 2, 3, 4}]
    table.publish()
    assert store.follow(table.state, ALL, most=0)
    assert served(store) == 5
    newest(store).unlink()
    for index in store.folder.glob("000002*"):
        index.unlink()
    assert store.follow(table.state, ALL, most=0)
    assert FolderKept(table.home).held() == {1, 3, 4, 5}
    assert work(table.home, MODEL) is not None


def test_what_is_left_out_is_told_once(
    table: Table, store: LookupFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = table.publish()
    part = snapshot.parts[0].path
    content = part.read_bytes()
    part.write_bytes(b"")
    for _ in range(3):
        table.publish()
        store.follow(table.state, ALL)
        assert work(table.home, MODEL) is None
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == (
        "lookups of scores: a version that is not in service has no index. Version 1 of model 'scores' cannot be looked up: "
        f"{part} is damaged: its SHA-256 is not that of what was published."
    )
    part.write_bytes(content)
    table.store.rollback(to=1)
    assert store.follow(table.state, ALL)
    assert served(store) == 1


def test_whoever_moves_the_table_on_does_not_wait_for_what_is_not_in_service(
    table: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        table.publish()
    really = LookupFolder._build
    built = []

    def build(self: LookupFolder, snapshot: Snapshot, *look: Callable[[], None]) -> object:
        built.append(snapshot.number)
        if built == [3, 2]:
            table.publish()
        return really(self, snapshot, *look)

    monkeypatch.setattr(LookupFolder, "_build", build)
    assert store.follow(table.state, ALL)
    assert built == [3, 2]
    assert FolderKept(table.home).held() == {3}
    assert served(store) == 3
    assert store.is_behind()
    assert store.follow(table.state, ALL)
    assert built == [3, 2, 4, 2, 1]
    assert FolderKept(table.home).held() == {1, 2, 3, 4}


def test_nobody_wants_them_any_more(two: Table, store: LookupFolder) -> None:
    index = store.open()
    assert index is not None
    (store.folder / ".000009-x.lmdb.tmp").write_bytes(b"x")
    store.remove()
    assert not store.folder.exists()
    assert store.open() is None
    assert index.get(index.keys.encode((2,))) == answer(2)
    index.close()
    store.remove()
    assert store.follow(two.state, ALL)
    assert served(store) == 2


@pytest.mark.parametrize("what", ["moved away", "somebody else's", "somebody else's from the start"])
def test_a_builder_has_nothing_to_do_with_a_table_without_snapshots(what: str, tmp_path: Path) -> None:
    table, store = Table(tmp_path), LookupFolder(tmp_path, MODEL)
    if what != "somebody else's from the start":
        table.publish()
        store.follow(table.state, ALL)
        shutil.rmtree(table.store.folder)
    if what != "moved away":
        write_deltalake(table.store.folder, scores(1))
    assert work(tmp_path, MODEL) is not None
    command = [sys.executable, "-P", "-m", "sereno.lookup.builder", str(tmp_path), MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert work(tmp_path, MODEL) is None
    assert store.open() is None
    assert list(store.folder.glob("0*")) == []


def test_temporary_files_go(two: Table, store: LookupFolder) -> None:
    for name in (".000009-x.lmdb.tmp", ".served.json.tmp"):
        (store.folder / name).write_bytes(b"x")
    (store.folder / ".000009-x.rows.tmp").mkdir()
    (store.folder / ".000009-x.rows.tmp" / "00.arrow").write_bytes(b"x")
    (store.folder / "000009-x.lmdb").write_bytes(b"x")  # killed before its manifest was written
    store.follow(two.state, ALL)
    assert FolderKept(two.home).held() == {1, 2}


def test_what_another_host_builds_is_left_to_it(
    two: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = store.folder / ".000009-x.node_2.bank.lmdb.tmp"
    theirs.write_bytes(b"x")
    (store.folder / f".000009-x.{host_name()}.lmdb.tmp").write_bytes(b"x")
    store.follow(two.state, ALL)
    assert [*store.folder.glob(".*")] == [theirs]
    monkeypatch.setattr(lookup_folder, "age", lambda path: lookup_folder.LEFT_SECONDS + 1)
    two.publish()
    store.follow(two.state, ALL)
    assert [*store.folder.glob(".*")] == []


def test_large_snapshots_go_by_the_disk(table: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "AT_ONCE", 20_000)
    monkeypatch.setattr(entries, "CHUNK_ROWS", 100)
    monkeypatch.setattr(entries, "BATCH_ROWS", 500)
    ids = np.random.default_rng(0).permutation(20_000).tolist()
    table.publish(scores(1, ids[:9_000]), scores(1, ids[9_000:]))
    store.follow(table.state, ALL)
    index = store.open()
    assert index is not None
    assert index.rows == 20_000
    keys = [index.keys.encode((n,)) for n in range(-1, 20_001)]
    assert index.get_many(keys) == [None, *[answer(1)] * 20_000, None]
    index.close()
    assert FolderKept(table.home).held() == {1}


def test_the_search_for_cycles_goes_on_afterwards(table: Table, store: LookupFolder) -> None:
    snapshot = table.publish()
    store.follow(table.state, ALL)
    assert gc.isenabled()
    snapshot = table.publish()
    snapshot.parts[0].path.unlink()
    with pytest.raises(IndexingError):
        store.follow(table.state, ALL)
    assert gc.isenabled()


# Damage


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    replace(path, bytes(content))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


INDEX_DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the index": flip,
    "the first byte of the index": lambda index: flip(index, 0.0),
    "the last byte of the index": lambda index: flip(index, 0.999999),
    "an index cut short": lambda index: replace(index, index.read_bytes()[:-4096]),
    "an empty index": lambda index: replace(index, b""),
    "no index": Path.unlink,
}
MANIFEST_DAMAGE: dict[str, Callable[[Path], object]] = {
    "an empty manifest": lambda index: index.with_suffix(".json").write_bytes(b""),
    "a manifest cut short": lambda index: index.with_suffix(".json").write_bytes(b'{"format":1,"number":2'),
    "a manifest of another format": lambda index: index.with_suffix(".json").write_bytes(
        index.with_suffix(".json").read_bytes().replace(b'"format":1', b'"format":2')
    ),
    "no manifest": lambda index: index.with_suffix(".json").unlink(),
    "neither": lambda index: (index.unlink(), index.with_suffix(".json").unlink()),
}


@pytest.mark.parametrize("what", [*INDEX_DAMAGE, *MANIFEST_DAMAGE])
def test_damage(what: str, two: Table, store: LookupFolder, caplog: pytest.LogCaptureFixture) -> None:
    mark = store.mark()
    index = newest(store)
    (INDEX_DAMAGE | MANIFEST_DAMAGE)[what](index)
    with caplog.at_level(logging.WARNING, "sereno.lookup"):
        assert served(store) == 1
    told = [record.getMessage() for record in caplog.records]
    if what in INDEX_DAMAGE and what != "no index":
        assert told[0].startswith(f"{index} has ")
        assert told[0].endswith(": it is damaged, and is not used. It is built again.")
    elif "manifest" in what and what != "no manifest":
        assert told[0] == (
            f"{index} has a manifest that cannot be read: it is damaged, and is not used. It is built again."
        )
    assert told[-1].startswith("lookups of scores answer from 000001-2026-05-01-000001, until 000002-")
    assert store.is_behind()
    assert store.mark() == mark
    assert store.follow(two.state, ALL)
    assert store.mark() != mark  # another file, that is to be opened
    assert not store.is_behind()
    assert served(store) == 2
    assert FolderKept(two.home).held() == {1, 2}


def test_all_of_them_are_damaged(two: Table, store: LookupFolder) -> None:
    for index in store.folder.glob("*.lmdb"):
        flip(index)
    assert store.open() is None
    assert store.follow(two.state, ALL)
    assert served(store) == 2
    assert FolderKept(two.home).held() == {1, 2}
    two.store.rollback()
    store.follow(two.state, ALL)
    assert served(store) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"format":1}', b'{"format":2,"index":""}', b"x" * 5_000]
)
def test_a_damaged_pointer(content: bytes, two: Table, store: LookupFolder, caplog: pytest.LogCaptureFixture) -> None:
    (store.folder / "served.json").write_bytes(content)
    assert store.open() is None
    assert caplog.records[0].getMessage() == (
        f"{store.folder}/served.json is damaged: no lookups until the table was followed again."
    )
    assert store.is_behind()
    assert store.follow(two.state, ALL)
    assert served(store) == 2


def test_a_pointer_that_leads_elsewhere(two: Table, store: LookupFolder) -> None:
    pointer = store.folder / "served.json"
    pointer.write_bytes(pointer.read_bytes().replace(b"000002-2026-05-01-000002", b"../../000002-x"))
    assert store.open() is None
    assert store.follow(two.state, ALL)
    assert served(store) == 2


def test_one_that_is_open_stays_when_it_is_built_again(two: Table, store: LookupFolder) -> None:
    index = store.open()
    assert index is not None
    newest(store).unlink()
    store.follow(two.state, ALL)
    key = index.keys.encode((2,))
    again = store.open()
    assert again is not None
    assert (index.number, index.get(key)) == (again.number, again.get(key)) == (2, answer(2))
    index.close()
    assert again.get(key) == answer(2)
    again.close()
    assert lookup_folder._opened == {}


def test_a_folder_that_cannot_be_written(
    two: Table, store: LookupFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(newest(store))

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert served(store) == 1
    manifest = newest(store, "json")
    assert caplog.records[1].getMessage() == (
        f"{manifest} cannot be removed (Permission denied), so {newest(store).name} stays as it is. Remove both."
    )


# Several at once


def test_it_moves_on_while_it_is_opened(two: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the pointer and opening the index, the index was replaced by a newer one and removed."""
    really = LookupFolder._open

    def late(self: LookupFolder, name: str, pointer: Pointer) -> object:
        if name.startswith("000002"):
            two.publish()
            LookupFolder(two.home, MODEL).follow(two.state, frozenset())
        return really(self, name, pointer)

    monkeypatch.setattr(LookupFolder, "_open", late)
    assert served(store) == 3
    assert FolderKept(two.home).held() == {3}


def test_opened_again_and_again_while_it_moves_on(table: Table, store: LookupFolder) -> None:
    table.publish()
    store.follow(table.state, ALL)
    done = threading.Event()
    seen: list[int | None] = []
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(served(store))
            except BaseException as failure:  # noqa: BLE001 - told by the test
                failures.append(failure)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        if turn % 4 == 3:
            table.store.rollback()
        else:
            table.publish()
        store.follow(table.state, frozenset(sorted(table.state.snapshots)[-2:]))
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert None not in seen
    assert len(set(seen)) > 2
    assert lookup_folder._opened == {}


def test_one_follows_and_the_others_wait(two: Table, store: LookupFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_folder, "PATIENCE", 0.1)
    with exclusive(two.home / ".sereno" / "locks" / f"{MODEL}.lookup", "busy"):
        with pytest.raises(BusyError) as caught:
            store.follow(two.state, ALL)
        assert str(caught.value) == (
            f"Another process (pid {os.getpid()}) is building the lookups of 'scores'. Start this again when it is done."
        )
        assert served(store) == 2
    assert not store.follow(two.state, ALL)


# Snapshots that cannot be


def test_two_rows_with_one_key(two: Table, store: LookupFolder) -> None:
    two.publish(scores(3, [1, 2]), scores(3, [3, 1]))
    with pytest.raises(IndexingError) as caught:
        store.follow(two.state, ALL)
    assert str(caught.value) == (
        "Version 3 of model 'scores' cannot be looked up: it has two rows with the same key. Lookups answer as before. "
        "Run data date 2026-05-01 again, or roll back."
    )
    assert served(store) == 2
    assert FolderKept(two.home).held() == {1, 2}


# Faults

FOLLOW = """
import sys
from pathlib import Path
from sereno.adapters.lookup_folder import LookupFolder
from sereno.lookup import entries
from sereno.snapshots import SnapshotStore
entries.CHUNK_ROWS, entries.AT_ONCE, entries.BATCH_ROWS = 50, 2_000, 100
home, model = Path(sys.argv[1]), sys.argv[2]
LookupFolder(home, model).follow(SnapshotStore(home, model).state(), frozenset({2, 3}))
"""


def follow_and_die(home: Path, point: str) -> None:
    name, at, nth = point.partition("@")
    env = os.environ | {"SERENO_TESTING": "1", "SERENO_FAILPOINT": f"{name}:kill{at}{nth}"}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, str(home), MODEL], env=env, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("point", "then"),
    [
        ("lookup_build@1", 2),
        ("lookup_build@5", 2),
        ("lookup_built", 2),
        ("lookup_manifest", 2),
        ("lookup_swap_before", 2),
        ("lookup_swapped", 3),
        ("lookup_removed", 3),
    ],
)
def test_killed_anywhere(point: str, then: int, two: Table, store: LookupFolder) -> None:
    index = store.open()
    assert index is not None
    two.publish(scores(3, [*range(4, 1_000), 1, 2, 3]), scores(3, range(1_000, 1_500)))
    follow_and_die(two.home, point)
    assert store.is_behind() == (then == 2)
    now = store.open()
    assert now is not None
    assert (now.number, now.get(now.keys.encode((2,)))) == (then, answer(then))
    now.close()
    store.follow(two.state, frozenset({2, 3}))
    assert FolderKept(two.home).held() == {2, 3}
    assert not store.is_behind()
    new = store.open()
    assert new is not None
    assert new.get_many([new.keys.encode((n,)) for n in range(1_501)]) == [None, *[answer(3)] * 1_499, None]
    new.close()
    assert index.get(index.keys.encode((2,))) == answer(2)
    index.close()


def test_killed_while_it_replaces_a_damaged_index(two: Table, store: LookupFolder) -> None:
    for point in ("lookup_built", "lookup_manifest"):
        flip(newest(store))
        assert served(store) == 1
        follow_and_die(two.home, point)
        assert served(store) == 1
        store.follow(two.state, ALL)
        assert served(store) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("spools", [False, True])
def test_a_full_disk(
    spools: bool, table: Table, store: LookupFolder, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(store.folder, ignore_errors=True)
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    store.folder.symlink_to(small_disk)
    table.publish()
    store.follow(table.state, ALL)
    mark = store.mark()
    if spools:
        monkeypatch.setattr(entries, "AT_ONCE", 100_000)
    large = pa.table({"id": range(30_000), "text": ["x" * 500] * 30_000})
    table.publish(large)
    with pytest.raises(StorageError) as caught:
        store.follow(table.state, ALL)
    says = str(caught.value)
    assert says.startswith(f"The index of lookups in {store.folder} could not be written: the disk is full")
    assert says.endswith("Mend that; whoever publishes or serves next builds it.")
    assert store.mark() == mark
    assert served(store) == 1
    assert FolderKept(table.home).held() == {1}
    subprocess.run(["mount", "-o", "remount,size=80m", str(small_disk)], check=True)
    assert store.follow(table.state, ALL)
    index = store.open()
    assert index is not None
    assert (index.number, index.rows) == (2, 30_000)
    index.close()


@pytest.mark.parametrize("pages", range(0, 20, 2))
def test_a_disk_that_fills_up_anywhere(pages: int, table: Table, store: LookupFolder, small_disk: Path) -> None:
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    store.folder.symlink_to(small_disk)
    table.publish()
    store.follow(table.state, ALL)
    table.publish(scores(2, range(1, 4)))
    filler = small_disk / "filler"
    with filler.open("wb") as stream:
        stream.write(bytes(4096) * (shutil.disk_usage(small_disk).free // 4096 - pages))
    says = ""
    try:
        store.follow(table.state, ALL)
    except StorageError as error:
        says = str(error)
    assert not says or "the disk is full" in says
    assert served(store) == (1 if says else 2)
    filler.unlink()
    store.follow(table.state, ALL)
    assert served(store) == 2
    assert FolderKept(table.home).held() == {1, 2}


def test_the_pages_of_an_index_are_mapped_before_the_first_answer(table: Table, store: LookupFolder) -> None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14):
        pytest.skip("this kernel cannot map pages ahead (MADV_POPULATE_READ came with 5.14)")
    table.publish(scores(1, range(20_000)))
    store.follow(table.state, ALL)
    index = store.open()
    assert index is not None
    (path,) = store.folder.glob("*.lmdb")
    _, area = Path("/proc/self/smaps").read_text().split(str(path), 1)
    kilobytes = {name: int(number) for name, number in re.findall(r"^(\w+): +(\d+) kB$", area, re.MULTILINE)[:6]}
    assert kilobytes["Rss"] == kilobytes["Size"] > 500
    index.close()
