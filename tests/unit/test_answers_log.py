"""The answer log of one process: what leaves when, what is kept, and what happens when the disk does not."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sereno import failpoints
from sereno.answers import log as log_module
from sereno.answers import tidy
from sereno.answers.compact import Compactor
from sereno.answers.folder import (
    ask_to_seal,
    finished_segments,
    known_keys,
    late_writers,
    open_segments,
    segments_folder,
)
from sereno.answers.read import Wanted, find_answers
from sereno.answers.segments import SegmentWriter
from sereno.exceptions import BusyError, StorageError
from sereno.storage import is_held
from tests.answers import NOON, asked, expected, keep, nothing, open_log, run_on_loop, told


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are shorter."""
    monkeypatch.setattr(log_module, "PAUSE", 0.01)


def wait_for(condition: Callable[[], Any]) -> None:
    event = threading.Event()
    for _ in range(2000):
        if condition():
            return
        event.wait(0.005)
    raise AssertionError("it never came")


def kept(home: Path) -> list[str]:
    return [row["request_id"] for row in find_answers(home, "shop", Wanted()).to_pylist()]


def append(log: log_module.AnswerLog, *numbers: int, then: Callable[[Any], None] = nothing) -> None:
    ids = [f"r{n}".encode() for n in numbers]
    log.append(NOON.timestamp(), ids, [asked(n) for n in numbers], [told(n) for n in numbers], then)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_answers_come_back_as_they_were(tmp_path: Path, mode: log_module.Mode) -> None:
    log = open_log(tmp_path, mode)
    batches = [range(i, i + 1 + i % 5) for i in range(0, 400, 5)]
    numbers = [n for batch in batches for n in batch]
    said = run_on_loop(
        log, [([f"r{n}".encode() for n in b], [asked(n) for n in b], [told(n) for n in b]) for b in batches]
    )
    assert said == [None] * len(batches)
    log.close()
    assert (log.written, log.dropped, log.waiting, log.lag_seconds) == (len(numbers), 0, 0, 0.0)
    table = find_answers(tmp_path, "shop", Wanted())
    rows = table.drop_columns(["answered_at", "model_fingerprint"]).to_pylist()
    assert rows == [{"request_id": f"r{n}"} | expected(n) for n in numbers]
    assert set(table["answered_at"].to_pylist()) == {NOON}
    assert set(table["model_fingerprint"].to_pylist()) == {"ab" * 32}


def test_off_keeps_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path, "off")
    said: list[Any] = []
    append(log, 1, then=said.append)
    log.close()
    assert said == [None]
    assert not segments_folder(tmp_path, "shop").exists()


def test_async_answers_leave_at_once_and_are_written_within_the_second(tmp_path: Path, quick: None) -> None:
    log = open_log(tmp_path)
    said: list[Any] = []
    append(log, 1, then=said.append)
    assert said == [None]
    wait_for(lambda: log.written)
    assert kept(tmp_path) == ["r1"]  # from the segment that is being written
    assert finished_segments(segments_folder(tmp_path, "shop")) == []
    log.close()
    assert len(finished_segments(segments_folder(tmp_path, "shop"))) == 1


def test_a_log_that_kept_nothing_leaves_nothing(tmp_path: Path, quick: None) -> None:
    log = open_log(tmp_path)
    folder = segments_folder(tmp_path, "shop")
    keys, writer = sorted(folder.iterdir(), key=lambda path: path.suffix)
    assert is_held(writer)
    log.close()
    assert list(folder.iterdir()) == [keys]
    assert known_keys(folder) == [["customer"]]


def test_sync_answers_leave_after_the_flush_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path, "sync")
    flushed: list[int] = []
    flush, order = os.fdatasync, []

    def count(descriptor: int) -> None:
        flush(descriptor)
        flushed.append(os.fstat(descriptor).st_ino)
        order.append("flush")

    monkeypatch.setattr(os, "fdatasync", count)
    said = run_on_loop(log, [([b"r"], [asked(n)], [told(n)]) for n in range(200)])
    assert said == [None] * 200
    groups = len(flushed)
    assert 1 <= groups < 200  # group commit: what came while one was flushed is the next
    log.close()


def test_sync_answers_that_cannot_be_written_do_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, "sync")
    assert run_on_loop(log, [([b"r1"], [asked(1)], [told(1)])]) == [None]
    failing(monkeypatch, 2)
    (said,) = run_on_loop(open_log(tmp_path, "sync"), [([b"r2"], [asked(2)], [told(2)])])
    assert isinstance(said, StorageError)
    assert str(said) == (
        "The answers of shop cannot be written: the disk is full (disk). "
        "Until that is mended callers get errors in their place."
    )
    monkeypatch.undo()
    log.close()
    assert kept(tmp_path) == ["r1"]
    assert caplog.messages.count(str(said)) == 1


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The disk is full for so many flushes."""
    left = [times]
    append = SegmentWriter.append

    def full(self: SegmentWriter, frames: list[bytes], rows: int) -> None:
        if left[0]:
            left[0] -= 1
            os.close(self._descriptor)
            raise OSError(28, "No space left on device", "disk")
        append(self, frames, rows)

    monkeypatch.setattr(SegmentWriter, "append", full)


def test_async_answers_wait_for_a_full_disk(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    failing(monkeypatch, 5)
    log = open_log(tmp_path)
    append(log, *range(300))
    wait_for(lambda: log.written)
    assert log.dropped == 0
    assert [r.levelname for r in caplog.records] == ["ERROR", "WARNING"]  # told once, and that it is well again
    assert caplog.messages[0].startswith("The answers of shop cannot be written: the disk is full (disk).")
    assert caplog.messages[1] == "The answers of shop are written again."
    log.close()
    assert sorted(kept(tmp_path)) == sorted(f"r{n}" for n in range(300))


def test_memory_is_bounded_and_what_is_dropped_is_counted(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(monkeypatch, 1_000_000)
    log = open_log(tmp_path, limit_bytes=100_000)
    for start in range(0, 20_000, 50):
        append(log, *range(start, start + 50))
    wait_for(lambda: log._failing)
    assert log.lag_seconds > 0
    waiting = log.waiting
    assert 0 < waiting < 2_000
    assert log.written == 0
    assert caplog.text.count("Answers of shop are not kept: more than 0.0953674 MB wait for the disk.") == 1
    monkeypatch.undo()  # the disk is mended
    log.close()
    assert log.written + log.dropped == 20_000
    assert log.written >= waiting - 200
    assert len(kept(tmp_path)) == log.written


def test_sync_memory_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    flush = os.fdatasync

    def hang(descriptor: int) -> None:
        hangs.set()
        goes_on.wait()
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", hang)
    log = open_log(tmp_path, "sync", limit_bytes=3_000)
    release = threading.Thread(target=lambda: (hangs.wait(), goes_on.set()))
    release.start()
    said = run_on_loop(log, [([b"r"], [asked(n)], [told(n)]) for n in range(100)])
    release.join()
    refused = [s for s in said if s is not None]
    assert 0 < len(refused) < 100
    assert str(refused[0]) == "The disk of the answer log does not keep up: too many answers wait for it."
    log.close()
    assert log.written == 100 - len(refused)


def test_what_cannot_be_encoded_is_counted_and_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(tmp_path)
    rows = [asked(n) for n in range(10)]
    rows[3] = (3, object(), *rows[3][2:])
    log.append(NOON.timestamp(), [f"r{n}".encode() for n in range(10)], rows, [told(n) for n in range(10)], nothing)
    append(log, 10)
    log.close()
    assert (log.written, log.dropped) == (10, 1)
    assert kept(tmp_path) == [f"r{n}" for n in range(11) if n != 3]
    assert "Encoding objects of type object is unsupported" in caplog.text


def test_sync_refuses_what_cannot_be_encoded(tmp_path: Path) -> None:
    log = open_log(tmp_path, "sync")
    bad, good = run_on_loop(log, [([b"r"], [(object(),)], [()]), ([b"r1"], [asked(1)], [told(1)])])
    assert "cannot be written to the answer log" in str(bad)
    assert good is None
    log.close()


def test_a_segment_is_sealed_when_it_is_asked_for(tmp_path: Path, quick: None) -> None:
    folder = segments_folder(tmp_path, "shop")
    log = open_log(tmp_path)
    append(log, 1)
    wait_for(lambda: log.written == 1)
    ask_to_seal(folder)
    wait_for(lambda: finished_segments(folder))
    append(log, 2)  # into another
    wait_for(lambda: log.written == 2)
    assert len(open_segments(folder)) == 1
    log.close()
    assert len(finished_segments(folder)) == 2
    assert kept(tmp_path) == ["r1", "r2"]


def test_a_request_reaches_what_is_still_in_memory(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered before the request, written after it, to a segment that was opened after it: sealed all the same."""
    folder = segments_folder(tmp_path, "shop")
    folder.mkdir(parents=True)
    log = open_log(tmp_path)
    write, waits, goes_on = log._write_what_waits, threading.Event(), threading.Event()

    def hold() -> None:
        waits.set()
        goes_on.wait()
        write()

    monkeypatch.setattr(log, "_write_what_waits", hold)
    append(log, 1)
    waits.wait()
    ask_to_seal(folder)
    goes_on.set()
    wait_for(lambda: finished_segments(folder))
    assert kept(tmp_path) == ["r1"]
    log.close()


@pytest.mark.parametrize("disk", ["segment", "flush"])
def test_what_waits_for_a_full_disk_is_not_handed_over(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    folder = segments_folder(tmp_path, "shop")
    log = open_log(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if disk == "segment":
            patch.setattr(log_module, "SegmentWriter", full)
        else:
            patch.setattr(os, "fdatasync", full)
        append(log, 1)
        wait_for(lambda: log._failing)
        request = ask_to_seal(folder)
        wait_for(lambda: log._writing)
        assert late_writers(folder, request) == [str(os.getpid())]
        monkeypatch.setattr(tidy, "HAND_OVER_SECONDS", 0.05)
        with pytest.raises(BusyError, match="did not hand over"):
            tidy.erase(Compactor(tmp_path, "shop"), ["1"])
    wait_for(lambda: not late_writers(folder, request))
    assert kept(tmp_path) == ["r1"]
    log.close()


def test_what_the_event_loop_has_in_its_hands_is_handed_over_too(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = segments_folder(tmp_path, "shop")
    log = open_log(tmp_path)
    frame_of, looked = log._frame_of, threading.Event()
    requests: list[int] = []
    look = log_module.last_request

    def last_request(folder: Path) -> int:
        request = look(folder)
        if request:
            looked.set()
        return request

    def slow(*arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            requests.append(ask_to_seal(folder))
            looked.wait()
        return frame_of(*arguments)

    monkeypatch.setattr(log_module, "last_request", last_request)
    monkeypatch.setattr(log, "_frame_of", slow)
    log._frame_rows = 1
    append(log, 1)
    wait_for(lambda: not late_writers(folder, requests[0]))
    assert len(finished_segments(folder)) == 1
    assert kept(tmp_path) == ["r1"]
    log.close()


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_disk_that_takes_nothing_back_makes_no_answer_double(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, mode: log_module.Mode
) -> None:
    log = open_log(tmp_path, mode)
    flush, cut = os.fdatasync, os.ftruncate
    failures = iter(range(2))

    def bad(descriptor: int, *arguments: int) -> None:
        if next(failures, None) is not None:
            raise OSError(5, "Input/output error")
        (cut if arguments else flush)(descriptor, *arguments)

    monkeypatch.setattr(os, "fdatasync", bad)
    monkeypatch.setattr(os, "ftruncate", bad)
    first = run_on_loop(log, [([b"r1"], [asked(1)], [told(1)])])
    assert (first[0] is None) == (mode == "async")
    assert run_on_loop(log, [([b"r2"], [asked(2)], [told(2)])]) == [None]
    wait_for(lambda: log.waiting == 0)
    log.close()
    assert kept(tmp_path) == (["r1", "r2"] if mode == "async" else ["r2"])


def test_only_this_user_reads_answers(tmp_path: Path, quick: None) -> None:
    folder = segments_folder(tmp_path, "shop")
    log = open_log(tmp_path)
    append(log, 1)
    wait_for(lambda: log.written == 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*-*")} == {0o600}
    log.close()


def test_segments_are_sealed_by_size_and_by_the_clock(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = segments_folder(tmp_path, "shop")
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 10_000)
    log = open_log(tmp_path)
    append(log, *range(200))
    wait_for(lambda: len(finished_segments(folder)) == 1)
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 1 << 30)
    append(log, 200)
    wait_for(lambda: open_segments(folder))
    monkeypatch.setattr(log_module, "SEGMENT_SECONDS", 1e-3)
    wait_for(lambda: len(finished_segments(folder)) == 2)
    log.close()
    assert len(kept(tmp_path)) == 201


def test_a_seal_that_fails_leaves_the_segment_as_one_of_a_dead_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, "sync")
    assert run_on_loop(log, [([b"r1"], [asked(1)], [told(1)])]) == [None]
    failing(monkeypatch, 1)
    log.close()
    (left,) = finished_segments(segments_folder(tmp_path, "shop"))
    assert left.suffix == ".open"
    assert kept(tmp_path) == ["r1"]


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("place", ["answers_write", "answers_flush"])
def test_the_thread_outlives_what_nobody_foresaw(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, mode: log_module.Mode, place: str
) -> None:
    monkeypatch.setenv("SERENO_TESTING", "1")
    monkeypatch.setenv("SERENO_FAILPOINT", f"{place}:raise@1")
    failpoints.reset()
    try:
        log = open_log(tmp_path, mode)
        first = run_on_loop(log, [([b"r1"], [asked(1)], [told(1)])])
        wait_for(lambda: log.waiting == 0)
        assert run_on_loop(log, [([b"r2"], [asked(2)], [told(2)])])[0] is None
        log.close()
    finally:
        failpoints.reset()
    assert (first[0] is None) == (mode == "async")
    assert kept(tmp_path) == (["r1", "r2"] if mode == "async" else ["r2"])


def test_nothing_more_is_taken_once_it_is_closed(tmp_path: Path) -> None:
    log = open_log(tmp_path, "sync")
    log.close()
    (said,) = run_on_loop(log, [([b"r1"], [asked(1)], [told(1)])])
    assert str(said) == "The answer log is closed: the server ends."
    log = open_log(tmp_path)
    log.close()
    append(log, 1, 2)
    assert log.dropped == 2


def test_keep_writes_what_the_other_tests_read(tmp_path: Path) -> None:
    keep(tmp_path, range(5))
    assert kept(tmp_path) == [f"r{n}" for n in range(5)]
