"""What lookups in an object store promise beyond `interfaces.LookupStore`: whatever becomes of the store, answers go on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sereno.adapters import objects
from sereno.adapters.lookup_folder import LookupFolder
from sereno.adapters.lookup_objects import lock
from sereno.adapters.lookup_objects.copies import CopiedLookups
from sereno.adapters.lookup_objects.fetching import DamagedError
from sereno.adapters.lookup_objects.store import LookupObjects
from sereno.exceptions import BusyError, IndexingError, StorageError
from sereno.lookup.keys import KeyCodec
from sereno.lookup.packed import LATE_SECONDS, Look, last_look, look_path, tell_look
from sereno.lookup.pointer import lookup_folder, manifest_path
from sereno.lookup.where import Where, open_store
from sereno.object_path import ConditionError
from sereno.places import ObjectPath
from sereno.serve.lookup import Lookups
from sereno.serve.metrics import Metrics
from sereno.serve.processes import watching_objects
from sereno.serve.processes.indexing import Indexing
from sereno.serve.processes.watching_objects import ObjectWatch
from sereno.serve.wire import RequestError
from sereno.settings import ModelSettings
from sereno.snapshots import State
from tests.contract.lookup_stores import ALL, MODEL, Table, answer, scores
from tests.objects import S3Server

ROOT = Path(__file__).parents[2]
SOAK = pytest.mark.soak  # the same over a folder is in test_lookup_folder


class Pods:
    """Pods that share a bucket, each with a home of its own. The table lies in one of them."""

    def __init__(self, table: Table, place: ObjectPath, folder: Path) -> None:
        self.table, self.place, self._folder = table, place, folder

    def __getitem__(self, name: str) -> LookupObjects:
        return LookupObjects(self._folder / name, MODEL, self.place, self.table.home)

    def publish(self, *, by: str = "run") -> None:
        self.table.publish()
        self[by].follow(self.table.state, ALL)

    @property
    def objects(self) -> list[ObjectPath]:
        """The indexes, oldest first."""
        return [path for path, _ in self[""].folder.below() if path.suffix == ".lmdb"]


@pytest.fixture
def pods(tmp_path: Path, storage: ObjectPath) -> Pods:
    return Pods(Table(tmp_path / "table"), storage, tmp_path)


def served(pod: LookupObjects) -> int | None:
    index = pod.open()
    if index is None:
        return None
    assert index.get_many([index.keys.encode((n,)) for n in (1, 2, 3, 4)]) == [*[answer(index.number)] * 3, None]
    index.close()
    return int(index.number)


def all_kept(state: State) -> frozenset[int]:
    return ALL


def test_what_is_there(pods: Pods) -> None:
    pods.publish()
    folder = pods["run"].folder
    assert str(folder) == f"{pods.place}/.sereno/lookup/scores"
    told = json.loads((folder / "served.json").read_bytes())
    (packed,) = told["indexes"].values()
    assert told["pointer"]["index"] == "000001-2026-05-01-000001"
    assert packed["object"] == f"000001-2026-05-01-000001-{packed['build']}.lmdb"
    assert len(packed["sha256"]) == 64
    assert (folder / packed["object"]).look().size == packed["size"]
    assert {path.name for path, _ in folder.below()} == {"lock.json", "served.json", packed["object"]}


def test_a_pod_fetches_what_another_has_built(pods: Pods) -> None:
    pod = pods["pod"]
    assert pod.fetching() is None
    assert not pod.fetch()
    for number in (1, 2):
        pods.publish()
        assert pod.fetching() is not None
        assert pod.fetch()
        assert served(pod) == number
        assert pod.fetching() is None
        assert not pod.fetch()
    assert pod.mark() == pods["run"].mark()


def test_an_index_that_is_open_answers_while_the_next_is_fetched(pods: Pods) -> None:
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    old = pod.open()
    pods.publish()
    mark = pod.mark()
    pod.fetch()
    assert pod.mark() != mark
    new = pod.open()
    key = old.keys.encode((2,))
    assert (old.get(key), new.get(key)) == (answer(1), answer(2))
    old.close()
    new.close()


def test_a_pointer_that_is_gone_takes_no_copy_with_it(pods: Pods) -> None:
    """Only one that says so does."""
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    pointer = pod.folder / "served.json"
    pointer.unlink()
    assert pod.fetching() is None
    assert not pod.fetch()
    assert served(pod) == 1
    pods["run"].follow(pods.table.state, ALL)
    pods["run"].remove()
    assert pod.fetching() is not None
    assert pod.fetch()
    assert served(pod) is None


def test_a_rollback_is_fetched_as_anything_else(pods: Pods) -> None:
    for _ in range(2):
        pods.publish()
    pod = pods["pod"]
    pod.fetch()
    pods.table.store.rollback()
    pods["run"].follow(pods.table.state, ALL)
    assert not pod.was_rolled_back(2)  # it has not heard of it yet
    pod.fetch()
    assert pod.was_rolled_back(2)
    assert served(pod) == 1


def test_a_copy_takes_the_place_of_two_at_most(pods: Pods, tmp_path: Path) -> None:
    pod = pods["pod"]
    for _ in range(4):
        pods.publish()
        pod.fetch()
    assert len(list(pod.copy.folder.glob("*.lmdb"))) == 2
    pods.table.store.folder.rename(tmp_path / "moved")
    pods["run"].follow(pods.table.state, ALL)
    assert pod.fetch()
    assert pod.open() is None
    assert list(pod.copy.folder.glob("*.lmdb")) == []


# Damage


def cut(index: ObjectPath) -> None:
    index.write_bytes(index.read_bytes()[:-4096])


def flip(index: ObjectPath) -> None:
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[ObjectPath], object], str]] = {
    "cut short": (cut, "bytes, and not"),
    "a bit of it": (flip, "has another SHA-256 than when it was built"),
    "empty": (lambda index: index.write_bytes(b""), "has 0 bytes, and not"),
    "gone": (ObjectPath.unlink, "is not there"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_object_is_refused_and_the_old_copy_stays(
    what: str, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    damage, said = DAMAGE[what]
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    pods.publish()
    damage(pods.objects[-1])
    with pytest.raises(DamagedError) as caught:
        pod.fetch()
    assert said in str(caught.value)
    assert "Lookups answer as before." in str(caught.value)
    assert served(pod) == 1
    assert pod.fetching() is not None
    assert list(pod.copy.folder.glob(".*.tmp")) == []
    with caplog.at_level(logging.ERROR, "sereno.lookup"):
        pod.catch_up(lambda: pods.table.state, all_kept)
    assert caplog.records[0].getMessage().endswith("Lookups answer as before. It is built again.")
    assert served(pod) == 2
    other = pods["other"]
    other.fetch()
    assert served(other) == 2


def test_an_object_that_goes_while_its_table_is_followed(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.publish()
    look = LookupObjects._begin

    def then_gone(self: LookupObjects) -> None:
        look(self)
        pods.objects[0].unlink()

    with monkeypatch.context() as patch:
        patch.setattr(LookupObjects, "_begin", then_gone)
        with pytest.raises(
            DamagedError, match="is not there, though .*served.json names it. Lookups answer as before."
        ):
            pods["other"].follow(pods.table.state, ALL)
    assert pods["other"].follow(pods.table.state, ALL)
    assert served(pods["other"]) == 1


CONTENTS = [b"", b"\xff", b"[]", b'{"format":2}', b'{"format":1,"pointer":{"index":"../../x"}}']


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_pointer(content: bytes, pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    (pod.folder / "served.json").write_bytes(content)
    with pytest.raises(
        DamagedError, match="served.json is damaged .* Lookups answer as before. Whoever publishes next"
    ):
        pod.fetch()
    assert served(pod) == 1
    assert pod.is_behind()
    pods.publish()
    pod.fetch()
    assert served(pod) == 2


def test_a_pointer_that_names_what_it_does_not_describe(pods: Pods) -> None:
    pods.publish()
    path = pods["run"].folder / "served.json"
    told = json.loads(path.read_bytes())
    path.write_bytes(json.dumps({**told, "indexes": {}}).encode())
    with pytest.raises(DamagedError, match="does not say what 000001-2026-05-01-000001 is"):
        pods["pod"].fetch()


def test_a_damaged_copy_is_fetched_again(pods: Pods) -> None:
    """The workers see that it is another one, though it is the same index."""
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    mark = pod.mark()
    (copy,) = pod.copy.folder.glob("*.lmdb")
    copy.unlink()
    copy.write_bytes(b"x")
    assert served(pod) is None
    assert pod.fetching() is not None
    assert pod.fetch()
    assert pod.mark() != mark
    assert served(pod) == 1
    assert pod.fetching() is None
    assert not pod.fetch()


# A store that does not answer


def test_the_bucket_disappears_while_it_serves(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.publish()
    pod = pods["pod"]
    pod.fetch()
    index = pod.open()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=0.2))
    objects.forget()
    for ask in (pod.fetch, pod.fetching, pod.building, pod.is_behind, pod.want):
        with pytest.raises(StorageError):
            ask()
    assert index.get(index.keys.encode((2,))) == answer(1)
    index.close()
    again = pods["pod"]  # after a restart of the container
    assert served(again) == 1
    objects.forget()


def test_what_workers_know_of_the_store(pods: Pods, tmp_path: Path) -> None:
    home = tmp_path / "pod"
    copy = CopiedLookups(home, MODEL)
    assert copy.is_behind()  # nobody has looked yet
    assert copy.served() is None
    tell_look(home, MODEL, Look(is_behind=False))
    assert not copy.is_behind()
    tell_look(home, MODEL, Look(is_behind=True))
    assert copy.is_behind()
    look_path(home, MODEL).write_bytes(b"{")
    assert last_look(home, MODEL) is None
    tell_look(home, MODEL, Look(is_behind=False))
    long_ago = look_path(home, MODEL).stat().st_mtime - LATE_SECONDS - 1
    os.utime(look_path(home, MODEL), (long_ago, long_ago))
    assert copy.is_behind()  # whoever looked is gone
    pods.publish(by="pod")
    known = copy.served()
    assert known is not None
    assert known.number == 1


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(watching_objects, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watching_objects, "TABLE_SECONDS", 0.0)
    monkeypatch.setattr(watching_objects, "GRACE", 0.0)
    return []


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def watch(pods: Pods, notes: list[str], tmp_path: Path) -> Iterator[ObjectWatch]:
    where = Where(address=str(pods.place), prefix="", versions=2)
    one = ObjectWatch(where, tmp_path / "pod", MODEL, notes.append)
    yield one
    one.stop()


def test_a_watch_sees_what_is_to_be_fetched(pods: Pods, watch: ObjectWatch) -> None:
    pod = pods["pod"]
    until(pod.is_wanted)
    until(lambda: not pod.copy.is_behind())
    assert watch.work is None
    pods.table.publish()
    pods["run"].follow(pods.table.state, ALL)
    until(lambda: watch.work)
    until(pod.copy.is_behind)
    to_fetch = watch.work
    pod.fetch()
    until(lambda: watch.work != to_fetch)


def test_a_watch_sees_what_nobody_builds(pods: Pods, watch: ObjectWatch) -> None:
    until(lambda: not pods["pod"].copy.is_behind())
    (pods.place / "predictions" / MODEL / "_delta_log" / f"{0:020}.json").write_bytes(b"{}")
    until(lambda: watch.work)
    assert watch.work is not None
    assert watch.work.commit[0] == -1
    (pods["pod"].folder / "lock.json").write_bytes(b'{"held_by": "somebody"}')
    until(lambda: watch.work is None)


def test_a_watch_tells_the_age_of_the_copy_while_the_store_is_gone(
    pods: Pods, watch: ObjectWatch, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.publish(by="pod")
    until(lambda: watch.looked_at)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(objects, "DEADLINE", timedelta(seconds=0.2))
        objects.forget()
        until(lambda: notes)
        until(pods["pod"].copy.is_behind)
    objects.forget()
    until(lambda: len(notes) > 1)
    first, *_, last = notes
    assert re.fullmatch(
        r"the lookups of scores cannot follow their store: s3://.* cannot be .*"
        r"Answers go on from the copy of version 1, whose data is [\d,]+ seconds old\.",
        first,
    )
    assert last == "the lookups of scores follow their store again."


def test_a_pod_without_a_copy_says_so(
    pods: Pods, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "DEADLINE", timedelta(seconds=0.2))
    objects.forget()
    where = Where(address=str(pods.place), prefix="", versions=2)
    one = ObjectWatch(where, tmp_path / "pod", MODEL, notes.append)
    until(lambda: notes)
    one.stop()
    assert notes[0].endswith("There is no copy here to answer from.")


def test_a_bucket_that_is_not_there_is_told_and_not_made(pods: Pods, notes: list[str], tmp_path: Path) -> None:
    """This store makes one at the first write."""
    nowhere = ObjectPath.of(f"s3://none-{pods.place.bucket}/x")
    where = Where(address=str(nowhere), prefix="", versions=2)
    failed: list[str] = []
    indexing = Indexing(notes.append, failed.append)
    home = tmp_path / "pod"
    indexing.serve([(str(home), MODEL, where)])
    until(lambda: (look := last_look(home, MODEL)) and not look.is_well)
    indexing.look()
    indexing.look()
    assert "none-" in notes[0]
    assert "there is no such bucket" in notes[0]
    assert failed == [MODEL]
    with pytest.raises(StorageError, match="there is no such bucket"):
        nowhere.is_dir()  # still
    keys = KeyCodec(("id",), ("int",))
    store = open_store(where, home, MODEL)
    settings = ModelSettings(lookup="required")
    lookups = Lookups(MODEL, home, store, settings, keys, metrics=Metrics(), where=where)
    assert not lookups.awaits_run
    assert lookups.why_not_ready == "the bucket of lookups cannot be read"
    with pytest.raises(RequestError, match=f"What is published cannot be fetched from {nowhere}; the server's log"):
        lookups.find([(1,)])
    indexing.stop()


# Who builds


def test_who_is_wanted_is_built(pods: Pods) -> None:
    pod = pods["pod"]
    assert not pod.is_wanted()
    pod.want()
    pod.want()
    assert pods["run"].is_wanted()
    pods.publish()
    pod.fetch()
    pods["run"].remove()
    assert not pod.is_wanted()
    assert pod.fetch()
    assert pod.open() is None
    assert pods.objects == []
    pods["run"].remove()


def test_a_pod_builds_what_nobody_else_did(pods: Pods) -> None:
    pods.publish()
    pods.table.publish()
    pod = pods["pod"]
    assert pod.building() is not None
    pod.catch_up(lambda: pods.table.state, all_kept)
    assert pod.building() is None
    assert served(pod) == 2
    other = pods["other"]
    other.catch_up(lambda: pytest.fail("nothing is to be built"), all_kept)
    assert served(other) == 2


def test_several_pods_at_once_build_one_index(
    pods: Pods, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ASK_SECONDS", 0.02)
    pods.table.publish(scores(1, range(1, 4)))
    everyone = [pods[f"pod{n}"] for n in range(4)]
    failures: list[BaseException] = []

    def catch_up(pod: LookupObjects) -> None:
        try:
            pod.catch_up(lambda: pods.table.state, all_kept)
        except BaseException as failure:  # noqa: BLE001 - told by the test
            failures.append(failure)

    with caplog.at_level(logging.INFO, "sereno.lookup"):
        threads = [threading.Thread(target=catch_up, args=(pod,)) for pod in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert [served(pod) for pod in everyone] == [1, 1, 1, 1]
    assert sum("is indexed" in record.getMessage() for record in caplog.records) == 1
    assert len(pods.objects) == 1


def test_a_lock_of_one_that_died_is_taken_over(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    run, pod = pods["run"], pods["pod"]
    monkeypatch.setattr(lock, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.3)
    (run.folder / "lock.json").write_bytes(b'{"held_by": "somebody", "beat": 1}')
    assert pod.is_followed()
    pods.publish()
    assert served(run) == 1
    assert not pod.is_followed()


def test_a_lock_of_one_that_lives_is_waited_for(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    pods.table.publish()
    with pods["other"]._lock.held(), pytest.raises(BusyError, match="perhaps on another host, is building the lookups"):
        pods["run"].follow(pods.table.state, ALL)
    assert pods["run"].follow(pods.table.state, ALL)


def test_one_that_was_taken_over_changes_nothing(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still while it built; the lock and the pointer are another's by then."""
    pods.publish()
    pods.table.publish()
    run, pod = pods["run"], pods["pod"]
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    really = LookupFolder._build

    def slow(self: LookupFolder, *arguments: object) -> object:
        monkeypatch.setattr(LookupFolder, "_build", really)
        (run.folder / "lock.json").write_bytes(b"{}")
        pod.follow(pods.table.state, ALL)
        assert run._lock._lost.wait(5)
        return really(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LookupFolder, "_build", slow)
    with pytest.raises(
        BusyError, match="Another process has taken over the lookups of 'scores', because this one gave no"
    ):
        run.follow(pods.table.state, ALL)
    assert served(pod) == 2
    pods["run"].follow(pods.table.state, ALL)
    assert served(pods["run"]) == 2
    assert len(pods.objects) == 2


def test_the_condition_keeps_two_apart_that_both_have_the_lock(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.publish()
    pods.table.publish()
    run = pods["run"]
    really = LookupFolder._build

    def meanwhile(self: LookupFolder, *arguments: object) -> object:
        monkeypatch.setattr(LookupFolder, "_build", really)
        path = run.folder / "served.json"
        path.write_bytes(path.read_bytes() + b" ")
        return really(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LookupFolder, "_build", meanwhile)
    with pytest.raises(BusyError, match="has taken over the lookups"):
        run.follow(pods.table.state, ALL)
    pods["pod"].fetch()
    assert served(pods["pod"]) == 1


@pytest.mark.parametrize("is_taken", [False, True])
def test_one_that_stood_still_asks_before_it_goes_on(
    is_taken: bool, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next renewal, which would tell, is seconds away."""
    pods.publish()
    pods.table.publish()
    run, really = pods["run"], LookupFolder._build

    def slow(self: LookupFolder, *arguments: object) -> object:
        if is_taken:
            (run.folder / "lock.json").write_bytes(b'{"held_by": "somebody"}')
        monkeypatch.setattr(lock, "LOCK_SECONDS", 0.0)
        return really(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LookupFolder, "_build", slow)
    with pytest.raises(BusyError, match="has taken over") if is_taken else contextlib.nullcontext():
        run.follow(pods.table.state, ALL)
    assert len(pods.objects) == (1 if is_taken else 2)
    pods["pod"].fetch()
    assert served(pods["pod"]) == (1 if is_taken else 2)


@pytest.mark.parametrize("when", ["while another builds", "afterwards"])
def test_a_write_that_arrives_late_names_nothing_that_is_gone(
    when: str, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was taken over meanwhile, by one who takes the new object for what a crash left."""
    pods.publish()
    pods.table.publish()
    late: list[Callable[[], object]] = []
    write, build = ObjectPath.write_bytes, LookupFolder._build

    def held_up(self: ObjectPath, content: bytes, *, only_if: str | None = None) -> str:
        if self.name != "served.json":
            return write(self, content, only_if=only_if)
        late.append(lambda: write(self, content, only_if=only_if))
        raise StorageError("it did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "write_bytes", held_up)
        with pytest.raises(StorageError, match="did not answer"):
            pods["run"].follow(pods.table.state, ALL)

    def meanwhile(self: LookupFolder, *arguments: object) -> object:
        late[0]()
        return build(self, *arguments)  # type: ignore[arg-type]

    if when == "afterwards":
        pods["other"].follow(pods.table.state, ALL)
        with pytest.raises(ConditionError):
            late[0]()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(LookupFolder, "_build", meanwhile)
            with pytest.raises(BusyError, match="has taken over the lookups"):
                pods["other"].follow(pods.table.state, ALL)
    pod = pods["pod"]
    assert pod.fetch()
    assert served(pod) == 2
    pods["other"].follow(pods.table.state, ALL)
    assert len(pods.objects) == 2


def test_nothing_is_removed_before_a_write(pods: Pods) -> None:
    """After which who read `served.json` before cannot write it. Else, where nothing changes, nothing is written."""
    pods.publish()
    run = pods["run"]
    path = run.folder / "served.json"
    content, tag = path.read_tagged()
    run.follow(pods.table.state, ALL)
    assert path.read_tagged() == (content, tag)
    left = run.folder / "000001-2026-05-01-000001-ffff.lmdb"
    left.write_bytes(b"what a crash left")
    run.follow(pods.table.state, ALL)
    assert not left.exists()
    with pytest.raises(ConditionError):
        path.write_bytes(content, only_if=tag)
    pods["pod"].fetch()
    assert served(pods["pod"]) == 1


def test_a_renewal_whose_answer_is_lost_loses_no_lock(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    write, lost = ObjectPath.write_bytes, threading.Event()

    def unanswered(self: ObjectPath, content: bytes, *, only_if: str | None = None) -> str:
        tag = write(self, content, only_if=only_if)
        if json.loads(content)["beat"] == 2:
            lost.set()
            raise StorageError("its answer was lost")
        return tag

    monkeypatch.setattr(ObjectPath, "write_bytes", unanswered)
    held = pods["run"]._lock
    with held.held():
        assert lost.wait(20)
        until(lambda: held._lost.is_set() or held._beats > 3)
        held.confirm()
    assert not pods["other"].is_followed()


FOLLOW = """
import sys
from pathlib import Path
from sereno.adapters.lookup_objects.store import LookupObjects
from sereno.places import ObjectPath
from sereno.snapshots import SnapshotStore
home, table, model, place = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], ObjectPath.of(sys.argv[4])
LookupObjects(home, model, place, table).follow(SnapshotStore(table, model).state(), frozenset({2, 3}))
"""


@pytest.mark.parametrize(
    ("point", "then"),
    [
        pytest.param("lookup_build", 2, marks=SOAK),
        pytest.param("lookup_built", 2, marks=SOAK),
        pytest.param("lookup_manifest", 2, marks=SOAK),
        ("lookup_swap_before", 2),
        ("lookup_swapped", 3),
        pytest.param("lookup_removed", 3, marks=SOAK),
    ],
)
def test_killed_anywhere(point: str, then: int, pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.3)
    for _ in range(2):
        pods.publish()
    pod = pods["pod"]
    pod.fetch()
    pods.table.publish()
    env = os.environ | {"SERENO_TESTING": "1", "SERENO_FAILPOINT": f"{point}:kill"}
    command = [sys.executable, "-c", FOLLOW, str(tmp_path / "run"), str(pods.table.home), MODEL, str(pods.place)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pod.fetch()
    assert served(pod) == then
    pods["other"].follow(pods.table.state, frozenset({2, 3}))
    pod.fetch()
    assert served(pod) == 3
    told = json.loads((pod.folder / "served.json").read_bytes())
    assert sorted(packed["number"] for packed in told["indexes"].values()) == [2, 3]
    assert {path.name for path in pods.objects} == {packed["object"] for packed in told["indexes"].values()}


# Parts in the bucket


def in_bucket(pods: Pods) -> State:
    """The table's state, with the parts of what is served in the bucket."""
    state = pods.table.state
    parts = []
    for part in state.served[-1].parts:
        path = pods.place / "predictions" / part.path.parent.name / part.path.name
        path.upload(Path(str(part.path)))
        parts.append(dataclasses.replace(part, path=path))
    snapshot = dataclasses.replace(state.served[-1], parts=tuple(parts))
    return dataclasses.replace(state, snapshots={**state.snapshots, snapshot.number: snapshot}, served=(snapshot,))


def test_parts_in_a_bucket(pods: Pods) -> None:
    pods.table.publish(scores(1, [3]), scores(1, [1, 2]))
    assert pods["run"].follow(in_bucket(pods), ALL)
    assert served(pods["run"]) == 1
    assert list(pods["run"].copy.folder.glob(".*.tmp")) == []


@pytest.mark.parametrize("what", ["is missing", "is damaged: its SHA-256 is not that of what was published"])
def test_parts_that_are_not_what_was_published(what: str, pods: Pods) -> None:
    pods.publish()
    pods.table.publish()
    state = in_bucket(pods)
    path = state.served[-1].parts[0].path
    path.unlink() if what == "is missing" else path.write_bytes(b"x")
    with pytest.raises(IndexingError) as caught:
        pods["run"].follow(state, ALL)
    assert str(caught.value) == (
        f"Version 2 of model 'scores' cannot be looked up: {path} {what}. Lookups answer as before. Restore the object from a "
        "backup, run data date 2026-05-01 again, or roll back."
    )
    assert served(pods["run"]) == 1


def test_copies_lie_apart_from_lookups_of_the_home(pods: Pods, tmp_path: Path, s3_bucket: tuple[S3Server, str]) -> None:
    pods.publish(by="pod")
    assert not lookup_folder(tmp_path / "pod", MODEL).exists()
    copies = tmp_path / "pod" / ".sereno" / "copies" / ".sereno" / "lookup" / MODEL
    assert manifest_path(copies, "000001-2026-05-01-000001").exists()
