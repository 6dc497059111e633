"""The table of answers: each is in it once, with the columns of every version; days go, small files are joined, persons erased."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from sereno import Key, failpoints
from sereno.adapters import answer_table
from sereno.adapters.delta import current_version, read_commit
from sereno.answers import compactor as compactor_module
from sereno.answers import log as log_module
from sereno.answers import tidy
from sereno.answers.compact import Compactor
from sereno.answers.folder import PENDING, days_kept, finished_segments, is_tidy, remember_days, segments_folder
from sereno.answers.read import Wanted, find_answers
from sereno.exceptions import BusyError, NotFoundError, StorageError
from sereno.failpoints import FailpointError
from sereno.storage import exclusive
from tests.answers import NOON, expected, keep, keep_rows

TODAY = datetime.now(UTC).replace(microsecond=0)


def compactor(home: Path) -> Compactor:
    return Compactor(home, "shop")


def table(home: Path) -> list[dict[str, Any]]:
    """The table as others read it."""
    found = DeltaTable(home / "answers" / "shop").to_pyarrow_table()
    return sorted(found.to_pylist(), key=lambda row: (row["answered_at"], row["request_id"]))


def seen(home: Path) -> list[str]:
    return [row["request_id"] for row in find_answers(home, "shop", Wanted()).to_pylist()]


def test_answers_reach_the_table_as_they_were(tmp_path: Path) -> None:
    keep(tmp_path, range(100))
    keep(tmp_path, range(100, 150), mode="sync")
    done = compactor(tmp_path).compact()
    assert (done.answers, done.segments) == (150, 2)
    rows = table(tmp_path)
    assert len(rows) == 150
    for number, row in enumerate(rows):
        own = {
            "answered_at": NOON + timedelta(seconds=number),
            "request_id": f"r{number}",
            "model_fingerprint": "ab" * 32,
            "day": date(2026, 5, 1),
        }
        assert row == own | expected(number)
    assert finished_segments(segments_folder(tmp_path, "shop")) == []
    before = find_answers(tmp_path, "shop", Wanted())
    assert compactor(tmp_path).compact().segments == 0
    assert current_version(tmp_path / "answers" / "shop") == 0  # nothing to do is no commit
    assert find_answers(tmp_path, "shop", Wanted()) == before
    keep(tmp_path, range(150, 160))
    compactor(tmp_path).compact()
    assert seen(tmp_path) == [f"r{n}" for n in range(160)]


def test_days_are_utc(tmp_path: Path) -> None:
    keep(tmp_path, [0, 3600, 7200], when=datetime(2026, 4, 30, 22, 30, tzinfo=UTC))
    compactor(tmp_path).compact()
    assert [row["day"] for row in table(tmp_path)] == [date(2026, 4, 30), date(2026, 4, 30), date(2026, 5, 1)]
    keep(tmp_path, [0], when=datetime(1969, 12, 31, 23, tzinfo=UTC))  # a clock that is not set
    compactor(tmp_path).compact()
    assert table(tmp_path)[0]["day"] == date(1969, 12, 31)


def test_the_log_says_nothing_of_the_inputs(tmp_path: Path) -> None:
    keep(tmp_path, range(10), customer=lambda n: 987_654_321)
    compactor(tmp_path).compact()
    log = (tmp_path / "answers" / "shop" / "_delta_log" / f"{0:020d}.json").read_text()
    assert "987654321" not in log
    (add,) = (json.loads(line)["add"] for line in log.splitlines() if "add" in json.loads(line))
    assert json.loads(add["stats"]) == {
        "numRecords": 10,
        "minValues": {"answered_at": "2026-05-01T12:00:00.000000Z"},
        "maxValues": {"answered_at": "2026-05-01T12:00:09.000000Z"},
    }


# Exactly once

PLACES = ("answers_pending", "answers_part", "answers_commit_before", "answers_commit_after", "answers_segment_removed")


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def fail(place: str) -> None:
        monkeypatch.setenv("SERENO_TESTING", "1")
        monkeypatch.setenv("SERENO_FAILPOINT", place and f"{place}:raise@1")
        failpoints.reset()

    yield fail
    failpoints.reset()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", [True, False])
def test_interrupted_anywhere_each_answer_is_there_once(tmp_path: Path, fail_at: Any, place: str, first: bool) -> None:
    if not first:
        keep(tmp_path, range(10))
        compactor(tmp_path).compact()
    keep(tmp_path, range(10, 20))
    keep(tmp_path, range(20, 30))
    fail_at(place)
    with pytest.raises(FailpointError):  # what nobody foresaw: nothing is put right by this process
        compactor(tmp_path).compact()
    fail_at("")
    there = [f"r{n}" for n in range(10 if first else 0, 30)]
    assert seen(tmp_path) == there  # readers do not see one twice either
    keep(tmp_path, range(30, 40))
    compactor(tmp_path).compact()
    assert (
        [row["request_id"] for row in table(tmp_path)] == seen(tmp_path) == [*there, *(f"r{n}" for n in range(30, 40))]
    )
    folder = segments_folder(tmp_path, "shop")
    assert {path.name for path in folder.iterdir()} <= {"tidied", "keys.json", "days"}
    active = {Path(uri).name for uri in DeltaTable(tmp_path / "answers" / "shop").file_uris()}
    assert {path.name for path in tmp_path.rglob("*.parquet")} == active


@pytest.mark.parametrize("place", ["answers_commit_before", "answers_commit_after"])
def test_the_log_is_cut_while_a_commit_is_pending(
    tmp_path: Path, fail_at: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that is started again after weeks: what others have committed since is in a checkpoint alone."""
    monkeypatch.setattr(answer_table, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(tidy, "SMALL_FILES", 1)
    first, others = (Compactor(tmp_path / name, "shop", tmp_path / "storage") for name in ("first", "others"))
    keep(tmp_path / "others", [0])
    others.compact()
    keep(tmp_path / "first", range(1, 4))
    fail_at(place)
    with pytest.raises(FailpointError):
        first.compact()
    fail_at("")
    for number in range(4, 8):
        keep(tmp_path / "others", [number])
        others.compact()  # joins the files of that day
    log = tmp_path / "storage" / "answers" / "shop" / "_delta_log"
    checkpoint = max(int(path.name[:20]) for path in log.glob("*.checkpoint.parquet"))
    for version in range(checkpoint):
        (log / f"{version:020d}.json").unlink()
    first.compact()
    found = find_answers(tmp_path / "first", "shop", Wanted(), tmp_path / "storage")
    assert sorted(row["request_id"] for row in found.to_pylist()) == [f"r{n}" for n in range(8)]


@pytest.mark.parametrize("place", ["answers_pending", "answers_commit_before"])
def test_a_commit_of_another_program_in_between(tmp_path: Path, fail_at: Any, place: str) -> None:
    keep(tmp_path, range(10))
    compactor(tmp_path).compact()
    keep(tmp_path, range(10, 20))
    fail_at(place)
    with pytest.raises(FailpointError):
        compactor(tmp_path).compact()
    fail_at("")
    DeltaTable(tmp_path / "answers" / "shop").optimize.compact()
    write_deltalake(
        tmp_path / "answers" / "shop",
        DeltaTable(tmp_path / "answers" / "shop").to_pyarrow_table().slice(0, 0),
        mode="append",
    )
    compactor(tmp_path).compact()
    assert seen(tmp_path) == [f"r{n}" for n in range(20)]


def test_a_commit_of_another_program_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, range(10))
    compactor(tmp_path).compact()
    keep(tmp_path, range(10, 20))
    commit = answer_table.commit

    def late(table: Path, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        keep_row = DeltaTable(table).to_pyarrow_table().slice(0, 1)
        write_deltalake(table, keep_row, mode="append")
        commit(table, *arguments, **options)

    monkeypatch.setattr(answer_table, "commit", late)
    with pytest.raises(BusyError, match=r"was changed by another program just now\. No answer is lost"):
        compactor(tmp_path).compact()
    assert not (segments_folder(tmp_path, "shop") / PENDING).exists()
    compactor(tmp_path).compact()
    assert sorted(seen(tmp_path)) == sorted([f"r{n}" for n in range(20)] + ["r0"])


def test_a_power_cut_that_emptied_the_newest_commit(tmp_path: Path, fail_at: Any) -> None:
    keep(tmp_path, range(10))
    compactor(tmp_path).compact()
    keep(tmp_path, range(10, 20))
    fail_at("answers_commit_after")
    with pytest.raises(FailpointError):
        compactor(tmp_path).compact()
    fail_at("")
    (tmp_path / "answers" / "shop" / "_delta_log" / f"{1:020d}.json").write_bytes(b"")
    compactor(tmp_path).compact()
    assert [row["request_id"] for row in table(tmp_path)] == [f"r{n}" for n in range(20)]


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(400)], ids=["empty", "zeros"])
def test_a_power_cut_that_tore_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(answer_table, "CHECKPOINT_EVERY", 3)
    flushed: list[str] = []
    flush = answer_table.fsync
    monkeypatch.setattr(answer_table, "fsync", lambda path: (flush(path), flushed.append(path.name)))
    for n in range(4):
        keep(tmp_path, [n])
        compactor(tmp_path).compact()
    (checkpoint,) = (tmp_path / "answers" / "shop" / "_delta_log").glob("*.checkpoint.parquet")
    assert {checkpoint.name, "_last_checkpoint"} <= set(flushed)
    checkpoint.write_bytes(content)
    keep(tmp_path, [4])
    compactor(tmp_path).compact()
    assert [row["request_id"] for row in table(tmp_path)] == [f"r{n}" for n in range(5)]


def test_delta_makes_no_checkpoint_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not be on the disk for good, and the log's files before it may be gone already."""
    monkeypatch.setitem(answer_table.CONFIGURATION, "delta.checkpointInterval", "2")
    for n in range(4):
        keep(tmp_path, [n])
        compactor(tmp_path).compact()
    assert not list(tmp_path.rglob("*checkpoint*"))


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sereno.answers import compact

    monkeypatch.setattr(compact, "PATIENCE", 0.01)
    keep(tmp_path, range(10))
    says = rf"Another process \(pid {os.getpid()}\) works on the answers of 'shop'"
    with exclusive(tmp_path / ".sereno" / "locks" / "shop.answers", ""), pytest.raises(BusyError, match=says):
        compactor(tmp_path).compact()
    assert compactor(tmp_path).compact().answers == 10


def test_a_full_disk_leaves_no_files_and_all_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, range(10))
    write = pq.ParquetWriter.write_table

    def full(self: Any, *arguments: Any, **options: Any) -> None:
        write(self, *arguments, **options)
        raise OSError(28, "No space left on device", "part")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match="The answers of shop cannot be put into their table: the disk is full"):
        compactor(tmp_path).compact()
    assert list(tmp_path.rglob("*.parquet")) == []
    monkeypatch.undo()
    assert compactor(tmp_path).compact().answers == 10


def test_commits_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sereno.answers import compact

    for start in range(0, 50, 10):
        keep(tmp_path, range(start, start + 10))
    folder = segments_folder(tmp_path, "shop")
    monkeypatch.setattr(compact, "COMMIT_BYTES", 2 * finished_segments(folder)[0].stat().st_size + 500)
    done = compactor(tmp_path).compact()
    assert (done.answers, done.segments) == (50, 5)
    versions = range(current_version(tmp_path / "answers" / "shop") + 1)
    commits = [read_commit(tmp_path / "answers" / "shop", version).metadata for version in versions]
    assert [c["segments"].count(",") + 1 for c in commits if c.get("kind") == "append"] == [2, 2, 1]
    assert seen(tmp_path) == [f"r{n}" for n in range(50)]


# Damage


def test_damage_is_told_and_the_rest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_module, "FRAME_ROWS", 4)
    keep(tmp_path, range(20))
    (path,) = finished_segments(segments_folder(tmp_path, "shop"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    compactor(tmp_path).compact()
    left = [row["request_id"] for row in table(tmp_path)]
    assert left == [f"r{n}" for n in range(20) if f"r{n}" in left]
    assert 12 <= len(left) < 20
    (message,) = (m for m in caplog.messages if "damaged" in m)
    assert message.startswith(f"Segment {path.stem} was damaged: ")
    from sereno.answers.command import damage_lines

    (line,) = damage_lines(tmp_path, "shop")
    assert line.startswith(f"Segment {path.stem} was damaged, as was seen at ")


def test_a_segment_without_a_header_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path, range(5))
    (path,) = finished_segments(segments_folder(tmp_path, "shop"))
    content = path.read_bytes()
    path.write_bytes(b"\0" * 40 + content[40:-40])
    keep(tmp_path, range(5, 10))
    assert compactor(tmp_path).compact().answers == 5
    assert path.with_suffix(".unreadable").exists()
    assert f"Segment {path.with_suffix('.unreadable')} cannot be read: its header is damaged." in caplog.text
    assert seen(tmp_path) == [f"r{n}" for n in range(5, 10)]
    compactor(tmp_path).compact()  # and never again


def test_a_segment_of_a_worker_that_died_at_once(tmp_path: Path) -> None:
    folder = segments_folder(tmp_path, "shop")
    folder.mkdir(parents=True)
    (folder / "20260501T120000000000-1-abcdef.open").write_bytes(b"")
    assert compactor(tmp_path).compact().segments == 0
    assert finished_segments(folder) == []


def test_answers_that_do_not_fit_their_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class In(TypedDict):
        id: Key[int]
        x: float
        when: date

    class Out(TypedDict):
        y: float

    good, bad = (1, 2.0, date(2026, 1, 1)), ("one", 2.0, date(2026, 1, 1))
    huge = (2**63, 1.0, date(2026, 1, 1))
    keep_rows(tmp_path, In, Out, [good, bad, good, huge], [(1.0,), (2.0,), (3.0,), (4.0,)])
    compactor(tmp_path).compact()
    assert [row["y"] for row in table(tmp_path)] == [1.0, 3.0]
    assert "2 answers could not be read" in caplog.text


# Versions of the model


class In1(TypedDict):
    id: Key[int]
    savings: int
    old: str


class Out1(TypedDict):
    score: float


class In2(TypedDict):
    id: Key[int]
    savings: float  # another type
    score: float  # the name of an output
    Old: str  # differs by case only
    day: str  # the name of a column that every table has


class Out2(TypedDict):
    score: float
    request_id: int


class In3(TypedDict):
    id: Key[str]  # keys of another type
    savings: int


def test_versions_of_a_model_share_a_table(tmp_path: Path) -> None:
    keep_rows(tmp_path, In1, Out1, [(1, 10, "a")], [(0.1,)], fingerprint="1" * 64)
    compactor(tmp_path).compact()
    keep_rows(tmp_path, In2, Out2, [(2, 10.5, 9.0, "A", "Monday")], [(0.2, 7)], fingerprint="2" * 64)
    keep_rows(tmp_path, In1, Out1, [(3, 30, "c")], [(0.3,)], fingerprint="1" * 64)  # rolled back meanwhile
    keep_rows(tmp_path, In3, Out1, [("x-1", 40)], [(0.4,)], fingerprint="3" * 64)
    before = find_answers(tmp_path, "shop", Wanted())
    compactor(tmp_path).compact()
    columns = [
        "model_fingerprint",
        "id",
        "savings",
        "old",
        "score",
        "savings_2",
        "score_2",
        "Old_2",
        "day_2",
        "request_id_2",
        "id_2",
    ]
    shown = [
        [row[c] for c in columns[1:]]
        for row in sorted(table(tmp_path), key=lambda r: (r["model_fingerprint"], str(r["id"])))
    ]
    assert shown == [
        [1, 10, "a", 0.1, None, None, None, None, None, None],
        [3, 30, "c", 0.3, None, None, None, None, None, None],
        [2, None, None, 0.2, 10.5, 9.0, "A", "Monday", 7, None],
        [None, 40, None, 0.4, None, None, None, None, None, "x-1"],
    ]
    after = find_answers(tmp_path, "shop", Wanted())
    assert after.schema.names == before.schema.names
    by = [("model_fingerprint", "ascending"), ("id", "ascending")]
    assert after.sort_by(by) == before.sort_by(by)
    for key, found in ((["2"], 1), (["x-1"], 1), (["10"], 0)):
        assert find_answers(tmp_path, "shop", Wanted(key=tuple(key))).num_rows == found


class Part1(TypedDict):
    name: str


class Part2(TypedDict):
    name: str
    price: float


def test_nested_rows_that_change(tmp_path: Path) -> None:
    class Before(TypedDict):
        id: Key[int]
        parts: list[Part1]

    class After(TypedDict):
        id: Key[int]
        parts: list[Part2 | None]

    keep_rows(tmp_path, Before, Out1, [(1, [{"name": "a"}])], [(0.1,)])
    compactor(tmp_path).compact()
    keep_rows(tmp_path, After, Out1, [(2, [{"name": "b", "price": 1.5}, None])], [(0.2,)])
    compactor(tmp_path).compact()
    one, two = sorted(table(tmp_path), key=lambda row: row["id"])
    assert (one["parts"], one["parts_2"]) == ([{"name": "a"}], None)
    assert (two["parts"], two["parts_2"]) == (None, [{"name": "b", "price": 1.5}, None])


class Twin(TypedDict):
    a: int
    A: date


class Twins(TypedDict):
    id: Key[int]
    parts: list[Twin]


def test_fields_that_differ_by_case_only_are_kept_as_text(tmp_path: Path) -> None:
    keep_rows(tmp_path, Twins, Out1, [(1, [{"a": 1, "A": date(2026, 1, 2)}]), (2, None)], [(0.1,), (0.2,)])
    compactor(tmp_path).compact()
    assert [row["parts"] for row in table(tmp_path)] == ['[{"a":1,"A":"2026-01-02"}]', None]


def test_nullability_is_no_other_type(tmp_path: Path) -> None:
    keep_rows(tmp_path, TypedDict("a", {"id": Key[int], "x": float}), Out1, [(1, 1.0)], [(0.1,)])
    compactor(tmp_path).compact()
    keep_rows(tmp_path, TypedDict("b", {"id": Key[int], "x": float | None}), Out1, [(None, None)], [(0.2,)])
    compactor(tmp_path).compact()
    assert [(r["id"], r["x"]) for r in sorted(table(tmp_path), key=lambda r: r["score"])] == [(1, 1.0), (None, None)]


# Days


def test_old_days_are_dropped_and_removed_the_day_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for days in (0, 29, 30, 31, 400):
        keep(tmp_path, [days], when=TODAY - timedelta(days=days, seconds=days))
    done = compactor(tmp_path).compact(days=30)
    assert done.dropped_days == 2
    assert sorted(seen(tmp_path)) == ["r0", "r29", "r30"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 5  # for those who are reading them
    assert compactor(tmp_path).compact(days=1).dropped_days == 0  # once a day
    monkeypatch.setattr(tidy, "OLD_HOURS", 0)
    (segments_folder(tmp_path, "shop") / "tidied").write_text("2026-01-01")
    compactor(tmp_path).compact(days=30)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert sorted(row["request_id"] for row in table(tmp_path)) == ["r0", "r29", "r30"]


def test_without_days_all_are_kept(tmp_path: Path) -> None:
    keep(tmp_path, [1], when=datetime(2000, 1, 1, tzinfo=UTC))
    assert compactor(tmp_path).compact().dropped_days == 0
    assert seen(tmp_path) == ["r1"]


@pytest.mark.parametrize("seconds", [60, 0])
def test_the_last_pass_is_made_again_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    keep(tmp_path, [1])
    monkeypatch.setattr(compactor_module, "LAST_SECONDS", seconds)
    passes: list[Any] = []

    def run(command: list[str]) -> Any:
        passes.append(command)
        return subprocess.Popen("false" if len(passes) < 3 else "true")

    monkeypatch.setattr(compactor_module, "subprocess", SimpleNamespace(Popen=run))
    compactor_module.Watch(tmp_path, {}, 300, 1 << 30).end()
    assert len(passes) == (3 if seconds else 1)


def test_days_that_become_known_later_hold_the_same_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of another server, which began after this one's compactor had done its work of the day."""
    keep(tmp_path, [1], when=datetime(2000, 1, 1, tzinfo=UTC))
    assert compactor(tmp_path).compact().dropped_days == 0
    folder = segments_folder(tmp_path, "shop")
    assert is_tidy(folder, days_kept(folder))
    remember_days(folder, 30)
    assert not is_tidy(folder, days_kept(folder))
    monkeypatch.setattr("gc.disable", lambda: None)
    assert compactor_module.main([str(tmp_path), "--once", "shop"]) == 0
    assert seen(tmp_path) == []
    assert is_tidy(folder, days_kept(folder))


def test_small_files_of_past_days_are_joined(tmp_path: Path) -> None:
    for n in range(10):
        keep(tmp_path, [n])
        keep(tmp_path, [n + 100], when=TODAY)
        compactor(tmp_path).compact()
    before = find_answers(tmp_path, "shop", Wanted())
    files = DeltaTable(tmp_path / "answers" / "shop").file_uris()
    assert len([f for f in files if "2026-05-01" in f]) <= 8
    assert len([f for f in files if "2026-05-01" not in f]) == 10  # today's
    assert find_answers(tmp_path, "shop", Wanted()) == before
    (commit,) = [
        m
        for v in range(current_version(tmp_path / "answers" / "shop") + 1)
        if (m := read_commit(tmp_path / "answers" / "shop", v).metadata).get("kind") == "join"
    ]
    assert commit["rows"] == "9"


def test_joining_is_bounded_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(12):
        keep(tmp_path, [n])
        with compactor(tmp_path).alone():
            from sereno.answers.compact import Done

            compactor(tmp_path).take_segments(Done())
    size = next(iter(tmp_path.rglob("*.parquet"))).stat().st_size
    monkeypatch.setattr(tidy, "ONCE_BYTES", int(4.5 * size))
    assert compactor(tmp_path).compact().joined_files == 4
    assert compactor(tmp_path).compact().joined_files > 1
    assert compactor(tmp_path).compact().joined_files == 0
    assert sorted(seen(tmp_path)) == sorted(f"r{n}" for n in range(12))


def test_joined_files_have_the_columns_of_all(tmp_path: Path) -> None:
    for n in range(5):
        keep_rows(tmp_path, In1, Out1, [(n, n, "a")], [(0.1,)])
        compactor(tmp_path).compact()
        keep_rows(tmp_path, In2, Out2, [(n, 10.5, 9.0, "A", "Monday")], [(0.2, 7)])
        compactor(tmp_path).compact()
    rows = table(tmp_path)
    assert sorted(str((r["savings"], r["savings_2"])) for r in rows) == sorted(
        [str((n, None)) for n in range(5)] + [str((None, 10.5))] * 5
    )


def test_what_a_worker_left_that_died_while_it_made_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, [1])
    folder = segments_folder(tmp_path, "shop")
    old, young = folder / "20260501T120000000000-1-abcdef.new", folder / "20260501T120000000001-1-abcdef.new"
    for path in (old, young):
        path.write_bytes(b"half a header")
    monkeypatch.setattr(tidy, "age", lambda path: 61.0 if path == old else 59.0)
    compactor(tmp_path).compact()
    assert (old.exists(), young.exists()) == (False, True)


# Persons


def test_a_person_is_erased_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "PAUSE", 0.01)
    for start in (0, 30, 60):
        keep(tmp_path, range(start, start + 30), customer=lambda n: 777_777 if n % 3 == 0 else n)
        if start < 60:
            compactor(tmp_path).compact()
    done = tidy.erase(compactor(tmp_path), ["777777"])
    assert done.erased == 30
    left = [f"r{n}" for n in range(90) if n % 3]
    assert seen(tmp_path) == left
    assert [row["request_id"] for row in table(tmp_path)] == left
    # nothing of it is left in any file, the older versions of the table included
    for path in tmp_path.rglob("*.parquet"):
        assert 777_777 not in pq.read_table(path, partitioning=None)["customer"].to_pylist()
    assert len(list(tmp_path.rglob("*.parquet"))) == len(DeltaTable(tmp_path / "answers" / "shop").file_uris())
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            assert b"777777" not in path.read_bytes(), path
    assert tidy.erase(compactor(tmp_path), ["777777"]).erased == 0


def test_erasing_is_exact_about_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "PAUSE", 0.01)

    class Two(TypedDict):
        shop: Key[str]
        id: Key[int]
        x: float

    rows = [("a", 1, 0.0), ("a", 2, 1.0), ("b", 1, 2.0), (None, 1, 3.0), ("a", None, 4.0), ("1", 1, 5.0)]
    keep_rows(tmp_path, Two, Out1, rows, [(row[2],) for row in rows])
    compactor(tmp_path).compact()

    def left() -> list[float]:
        return [row["x"] for row in find_answers(tmp_path, "shop", Wanted()).sort_by("x").to_pylist()]

    assert tidy.erase(compactor(tmp_path), ["a", "x"]).erased == 0
    assert tidy.erase(compactor(tmp_path), ["a", "1"]).erased == 1
    assert left() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert tidy.erase(compactor(tmp_path), ["1"]).erased == 1  # whose other value was never given
    assert left() == [1.0, 2.0, 4.0, 5.0]
    with pytest.raises(NotFoundError, match=r"A key of model 'shop' has 2 values \(shop, id\), not 3\."):
        tidy.erase(compactor(tmp_path), ["a", "1", "2"])


@pytest.mark.parametrize("in_table", [False, True])
def test_a_key_is_given_in_declared_order(tmp_path: Path, in_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which its columns came to the table, and whatever other versions declared."""
    monkeypatch.setattr(log_module, "PAUSE", 0.01)

    class One(TypedDict):
        customer: Key[int]

    class Two(TypedDict):
        shop: Key[int]
        customer: Key[int]

    class Turned(TypedDict):
        customer: Key[str]
        x: float
        shop: Key[int]

    keep_rows(tmp_path, One, Out1, [(2,)], [(0.0,)])
    keep_rows(tmp_path, Two, Out1, [(1, 2), (2, 1)], [(1.0,), (2.0,)])
    if in_table:
        compactor(tmp_path).compact()

    def left() -> list[float]:
        return sorted(row["score"] for row in find_answers(tmp_path, "shop", Wanted()).to_pylist())

    found = find_answers(tmp_path, "shop", Wanted(key=("1", "2")))
    assert found["score"].to_pylist() == [1.0]
    assert tidy.erase(compactor(tmp_path), ["1", "2"]).erased == 1
    assert left() == [0.0, 2.0]
    keep_rows(tmp_path, Turned, Out1, [("2", 0.5, 9), ("3", 0.5, 8)], [(3.0,), (4.0,)])
    assert tidy.erase(compactor(tmp_path), ["2", "9"]).erased == 1  # of another type: customer_2
    assert left() == [0.0, 2.0, 4.0]
    assert tidy.erase(compactor(tmp_path), ["2"]).erased == 1
    assert left() == [2.0, 4.0]


def test_any_order_will_do_where_none_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "PAUSE", 0.01)

    class Two(TypedDict):
        shop: Key[str]
        customer: Key[int]

    keep_rows(tmp_path, Two, Out1, [("a", 1), ("b", 1)], [(1.0,), (2.0,)])
    (segments_folder(tmp_path, "shop") / "keys.json").unlink()
    assert tidy.erase(compactor(tmp_path), ["1", "a"]).erased == 1


@pytest.mark.parametrize("place", [*PLACES[:4], "answers_pending@2", "answers_commit_after@2"])
def test_erasing_that_was_interrupted_is_done_by_erasing_again(
    tmp_path: Path, fail_at: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "PAUSE", 0.01)
    for start in (0, 30):
        keep(tmp_path, range(start, start + 30), customer=lambda n: 777_777 if n % 3 == 0 else n)
        if not start:
            compactor(tmp_path).compact()
    name, _, nth = place.partition("@")
    monkeypatch.setenv("SERENO_TESTING", "1")
    monkeypatch.setenv("SERENO_FAILPOINT", f"{name}:raise@{nth or 1}")
    failpoints.reset()
    with pytest.raises(FailpointError):
        tidy.erase(compactor(tmp_path), ["777777"])
    fail_at("")
    tidy.erase(compactor(tmp_path), ["777777"])
    assert seen(tmp_path) == [f"r{n}" for n in range(60) if n % 3]
    for path in tmp_path.rglob("*.parquet"):
        assert 777_777 not in pq.read_table(path, partitioning=None)["customer"].to_pylist()


def test_a_worker_that_does_not_hand_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sereno.answers.segments import Header, SegmentWriter
    from tests.answers import ASKED, TOLD

    monkeypatch.setattr(log_module, "PAUSE", 0.01)
    monkeypatch.setattr(tidy, "HAND_OVER_SECONDS", 0.01)
    keep(tmp_path, range(9), customer=lambda n: n % 3)
    folder = segments_folder(tmp_path, "shop")
    writer = SegmentWriter(folder, Header.of("shop", "f", ASKED, TOLD))  # of a worker that hangs
    with pytest.raises(BusyError) as error:
        tidy.erase(compactor(tmp_path), ["1"])
    assert str(error.value) == (
        f"3 answers were erased, but the process {os.getpid()} did not hand over its newest ones. Erase once more when it "
        "answers again or has ended."
    )
    writer.seal()
    assert tidy.erase(compactor(tmp_path), ["1"]).erased == 0


def test_nothing_to_erase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "PAUSE", 0.01)
    with pytest.raises(NotFoundError, match="No answer of model 'shop' is kept"):
        tidy.erase(compactor(tmp_path), ["1"])


def test_the_log_is_cleaned_and_checkpointed(tmp_path: Path) -> None:
    keep(tmp_path, [0])
    compactor(tmp_path).compact()
    configuration = DeltaTable(tmp_path / "answers" / "shop").metadata().configuration
    assert configuration["delta.logRetentionDuration"] == "interval 30 days"
    assert "delta.enableExpiredLogCleanup" not in configuration  # on, as is the default


def test_a_table_that_another_program_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without our statistics or our columns' marks are read, and erased from, all the same."""
    monkeypatch.setattr(log_module, "PAUSE", 0.01)
    for n in range(3):
        keep(tmp_path, range(n * 10, n * 10 + 10), customer=lambda n: n % 2)
        compactor(tmp_path).compact()
    DeltaTable(tmp_path / "answers" / "shop").optimize.compact()
    assert seen(tmp_path) == [f"r{n}" for n in range(30)]
    keep(tmp_path, range(30, 40), customer=lambda n: n % 2)
    compactor(tmp_path).compact()
    assert tidy.erase(compactor(tmp_path), ["1"]).erased == 20
    assert seen(tmp_path) == [f"r{n}" for n in range(0, 40, 2)]
