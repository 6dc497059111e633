"""The table of answers in an object store: pods share it, and nothing else. Each answer is in it once, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from sereno import Key
from sereno.adapters import answer_table, delta, objects
from sereno.adapters.delta import options
from sereno.answers import compact as compact_module
from sereno.answers import compactor as compactor_module
from sereno.answers import tidy
from sereno.answers.compact import Compactor
from sereno.answers.folder import finished_segments, segments_folder
from sereno.answers.read import Wanted, find_answers, models_with_answers
from sereno.exceptions import BusyError, NotFoundError, StorageError
from sereno.places import ObjectPath
from tests.answers import expected, keep, keep_rows
from tests.faulty_proxy import PASSING, Fault, FaultyProxy, Request, Schedule, faulty_proxy
from tests.objects import S3Server

ROOT = Path(__file__).parents[2]
SOAK = pytest.mark.soak


def rows(storage: ObjectPath) -> list[dict[str, Any]]:
    """The table as others read it."""
    place = storage / "answers" / "shop"
    found = pa.table(DeltaTable(str(place), storage_options=options(place)).to_pyarrow_table())
    return sorted(found.to_pylist(), key=lambda row: str(row["request_id"]))


def ids(storage: ObjectPath) -> list[str]:
    return [row["request_id"] for row in rows(storage)]


def test_answers_of_two_pods_reach_one_table(tmp_path: Path, storage: ObjectPath) -> None:
    for pod, numbers in (("a", range(50)), ("b", range(50, 60))):
        keep(tmp_path / pod, numbers)
        assert Compactor(tmp_path / pod, "shop", storage).compact().answers == len(numbers)
        assert finished_segments(segments_folder(tmp_path / pod, "shop")) == []
        assert list((tmp_path / pod / ".sereno" / "scratch").rglob("*.parquet")) == []
        assert not (tmp_path / pod / "answers").exists()
    found = rows(storage)
    assert sorted(row["request_id"] for row in found) == sorted(f"r{n}" for n in range(60))
    assert next(row for row in found if row["request_id"] == "r7").items() >= expected(7).items()
    assert models_with_answers(tmp_path, storage) == ["shop"]
    assert find_answers(tmp_path / "c", "shop", Wanted(), storage).num_rows == 60
    assert find_answers(tmp_path / "c", "shop", Wanted(key=("7",), newest=1), storage).num_rows == 1


def test_what_has_not_reached_the_table_is_shown_by_its_own_pod(tmp_path: Path, storage: ObjectPath) -> None:
    keep(tmp_path / "a", range(3))
    Compactor(tmp_path / "a", "shop", storage).compact()
    keep(tmp_path / "a", range(3, 5))
    assert find_answers(tmp_path / "a", "shop", Wanted(), storage).num_rows == 5
    assert find_answers(tmp_path / "b", "shop", Wanted(), storage).num_rows == 3
    with pytest.raises(NotFoundError, match=f"No answers of model 'shelf' are kept in {storage} "):
        find_answers(tmp_path / "b", "shelf", Wanted(), storage)


def test_pods_at_once(tmp_path: Path, storage: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_module, "RACE_SECONDS", 0.1)
    pods = [tmp_path / name for name in "abcd"]
    for number, pod in enumerate(pods):
        keep(pod, range(number * 10, number * 10 + 10))
    failures: list[BaseException] = []

    def work(pod: Path) -> None:
        try:
            Compactor(pod, "shop", storage).compact()
        except BaseException as failure:  # noqa: BLE001 - told by the test
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(ids(storage)) == sorted(f"r{n}" for n in range(40))


def test_a_table_that_is_committed_to_all_the_time(
    tmp_path: Path, storage: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_module, "RACES", 2)
    monkeypatch.setattr(compact_module, "RACE_SECONDS", 0.01)
    keep(tmp_path, range(3))

    def refuse(*_: object, **__: object) -> None:
        raise BusyError("changed")

    with monkeypatch.context() as patch:
        patch.setattr(answer_table, "commit", refuse)
        with pytest.raises(BusyError):
            Compactor(tmp_path, "shop", storage).compact()
    assert [path for path, _ in storage.below()] == []  # nothing is left of what was not committed
    assert Compactor(tmp_path, "shop", storage).compact().answers == 3


PASS = """
import sys
from pathlib import Path
from sereno.answers.compact import Compactor
from sereno.places import ObjectPath
Compactor(Path(sys.argv[1]), "shop", ObjectPath.of(sys.argv[2])).compact()
"""


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("answers_pending", marks=SOAK),
        pytest.param("answers_part", marks=SOAK),
        "answers_commit_before",
        "answers_commit_after",
        pytest.param("answers_segment_removed", marks=SOAK),
    ],
)
def test_killed_anywhere(point: str, tmp_path: Path, storage: ObjectPath) -> None:
    keep(tmp_path, range(4))
    env = os.environ | {"SERENO_TESTING": "1", "SERENO_FAILPOINT": f"{point}:kill"}
    command = [sys.executable, "-c", PASS, str(tmp_path), str(storage)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    keep(tmp_path, range(4, 6))
    Compactor(tmp_path, "shop", storage).compact()
    assert ids(storage) == [f"r{n}" for n in range(6)]
    parts = {path.name for path, _ in storage.below() if path.suffix == ".parquet"}
    assert len(parts) == len(answer_table.read_state(storage / "answers" / "shop").files)  # type: ignore[union-attr]


def test_a_store_that_does_not_answer(tmp_path: Path, storage: ObjectPath) -> None:
    keep(tmp_path, range(4))
    nowhere = ObjectPath.of("s3://bank-that-is-not-there/x")
    with pytest.raises(StorageError):
        Compactor(tmp_path, "shop", nowhere).compact()
    assert len(finished_segments(segments_folder(tmp_path, "shop"))) == 1
    assert Compactor(tmp_path, "shop", storage).compact().answers == 4


# A store that fails


@pytest.fixture
def proxy(
    s3_bucket: tuple[S3Server, str], storage: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """Between this process and the store meanwhile."""
    monkeypatch.setattr(compact_module, "RACE_SECONDS", 0.01)
    monkeypatch.setattr(delta, "TRY_SECONDS", 0.01)
    bounds = {"max_retries": "1", "backoff_config.init_backoff": "1ms", "backoff_config.max_backoff": "5ms"}
    monkeypatch.setattr(delta, "BOUNDS", delta.BOUNDS | bounds)
    monkeypatch.setattr(objects, "FIRST_WAIT", timedelta(milliseconds=1))
    monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(milliseconds=5))
    server, _ = s3_bucket
    with faulty_proxy(server.url) as proxy, server.reached(AWS_ENDPOINT_URL=proxy.url):
        yield proxy


def commits(request: Request) -> bool:
    """Whether it is the commit of answers."""
    return request.method == "PUT" and b"sereno.attempt" in request.raw and "_delta_log" in request.target


class Asked(TypedDict):
    customer: Key[int]


class Told(TypedDict):
    score: float


@pytest.mark.parametrize("first", [True, False])
def test_a_commit_that_the_store_does_later(
    tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are gone by then, and its answers are in another commit."""
    monkeypatch.setattr(compact_module, "RACES", 1)
    if not first:
        keep_rows(tmp_path, Asked, Told, [(1,)], [(0.5,)])  # so that other columns are new
        Compactor(tmp_path, "shop", storage).compact()
    keep(tmp_path, range(1, 4))
    sent: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if not commits(request):
            return None
        sent.append(request)
        return "reset"

    with proxy.having(decide), pytest.raises(StorageError, match="No answer is lost: the compactor tries again"):
        Compactor(tmp_path, "shop", storage).compact()
    assert sent
    assert b" 412 " in proxy._forwarded(sent[0]).partition(b"\r\n")[0]
    assert Compactor(tmp_path, "shop", storage).compact().answers == 3
    assert ids(storage) == [*([] if first else ["r"]), "r1", "r2", "r3"]


@pytest.mark.parametrize("fault", ["reset-after", "500-after"])
def test_a_commit_whose_answer_is_lost(tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy, fault: Fault) -> None:
    keep(tmp_path, range(3))
    with proxy.having(lambda request: fault if commits(request) else None):
        assert Compactor(tmp_path, "shop", storage).compact().answers == 3
    assert proxy.log
    assert ids(storage) == [f"r{n}" for n in range(3)]
    assert finished_segments(segments_folder(tmp_path, "shop")) == []


def test_a_commit_that_the_store_takes_at_the_second_try(
    tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy
) -> None:
    keep(tmp_path, range(3))
    faults: list[Fault | None] = ["reset", "500", "reset"]
    with proxy.having(lambda request: faults.pop() if commits(request) and faults else None):
        assert Compactor(tmp_path, "shop", storage).compact().answers == 3
    assert (faults, ids(storage)) == ([], ["r0", "r1", "r2"])


def test_a_store_that_takes_no_commit_at_all(tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy) -> None:
    """Not the one of nothing either: what is pending stays so, and the store is told to be the reason."""
    keep(tmp_path, range(3))

    def decide(request: Request) -> Fault | None:
        return "reset" if request.method == "PUT" and "_delta_log/0" in request.target else None

    with proxy.having(decide), pytest.raises(StorageError, match="The commit to table .* failed: .* No answer is lost"):
        Compactor(tmp_path, "shop", storage).compact()
    assert Compactor(tmp_path, "shop", storage).compact().answers == 3
    assert ids(storage) == ["r0", "r1", "r2"]


def worked(home: Path, storage: ObjectPath, proxy: FaultyProxy, seed: int) -> int:
    """Two pods work while the store fails as the seed says; how many of their passes failed."""
    draw, failed = random.Random(seed), 0
    faults = tuple(fault for fault in PASSING if not fault.startswith("silent"))
    with proxy.having(Schedule(seed=seed, faults=faults, probability=0.2)):
        for number in range(6):
            pod = home / draw.choice("ab")
            keep(pod, [number])
            try:
                Compactor(pod, "shop", storage).compact()
            except (BusyError, StorageError):
                failed += 1
    for pod in "ab":
        Compactor(home / pod, "shop", storage).compact()
    assert ids(storage) == [f"r{n}" for n in range(6)], seed
    return failed


def test_passes_while_the_store_fails(tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy) -> None:
    worked(tmp_path, storage, proxy, seed=1)
    assert proxy.injected()


@SOAK
def test_three_hundred_schedules(tmp_path: Path, storage: ObjectPath, proxy: FaultyProxy) -> None:
    failed = [worked(tmp_path / str(seed), storage / str(seed), proxy, seed) for seed in range(2, 302)]
    assert 0 < sum(failed) < 600  # of 1,800 passes


def test_a_person_is_erased_and_what_another_pod_writes_stays(
    tmp_path: Path, storage: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod, start in (("a", 0), ("b", 10)):
        keep(tmp_path / pod, range(start, start + 10))
        Compactor(tmp_path / pod, "shop", storage).compact()
    log = storage / "answers" / "shop" / "_delta_log"
    comment = '{"commitInfo": {"timestamp": 0, "of": "somebody\u2028else"}}\n'
    (log / f"{2:020d}.json").write_bytes(comment.encode())
    listed = ObjectPath.glob  # another pod cuts the log meanwhile
    monkeypatch.setattr(ObjectPath, "glob", lambda path, pattern: [*listed(path, pattern), path / "cut.json"])
    begun = storage / "answers" / "shop" / "day=2026-05-01" / "20260501T120000-abcdefab-0.parquet"
    begun.write_bytes(b"not committed yet")
    before = {path for path, _ in storage.below() if path.suffix == ".parquet"}
    assert tidy.erase(Compactor(tmp_path / "a", "shop", storage), ["7"]).erased == 1
    assert "r7" not in ids(storage)
    assert len(ids(storage)) == 19
    after = {path for path, _ in storage.below() if path.suffix == ".parquet"}
    assert begun in after
    assert len(before - after) == 1  # the file that held the answer
    assert find_answers(tmp_path / "a", "shop", Wanted(key=("7",)), storage).num_rows == 0


def test_old_days_go(tmp_path: Path, storage: ObjectPath) -> None:
    keep(tmp_path, range(4))  # in 2026-05
    compactor = Compactor(tmp_path, "shop", storage)
    days = (datetime.now(UTC).date() - date(2026, 5, 1)).days - 1
    assert compactor.compact(days=max(days, 0)).dropped_days == 1
    assert rows(storage) == []
    nothing = Compactor(tmp_path / "b", "shelf", storage)
    nothing.compact(days=3)
    assert tidy.is_tidy(nothing.segments, 3)  # nobody asks all the time whether there is a table


def test_small_files_are_joined(tmp_path: Path, storage: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "SMALL_FILES", 2)
    monkeypatch.setattr(answer_table, "CHECKPOINT_EVERY", 2)
    long_ago = datetime.now(UTC) - timedelta(days=3)
    joined = 0
    for number in range(4):
        keep(tmp_path, range(number * 2, number * 2 + 2), when=long_ago)
        joined += Compactor(tmp_path, "shop", storage).compact().joined_files
    assert joined == 3
    assert ids(storage) == [f"r{n}" for n in range(8)]
    assert (storage / "answers" / "shop" / "_delta_log" / "_last_checkpoint").is_file()


def test_the_last_pass_of_a_compactor(tmp_path: Path, storage: ObjectPath) -> None:
    """The disk of a pod does not last: what is there at the end is put into the table."""
    keep(tmp_path, range(5))
    watch = compactor_module.Watch(tmp_path, {}, 300, 1 << 30, str(storage))
    watch.end()
    assert ids(storage) == [f"r{n}" for n in range(5)]
    watch.end()
    assert len(ids(storage)) == 5
