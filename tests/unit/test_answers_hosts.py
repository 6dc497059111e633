"""Answers of several hosts in one home, whose locks are each host's own: none is taken from whoever writes it, none twice."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sereno import storage
from sereno.answers import compact, folder, tidy
from sereno.answers.compact import Compactor, Done, Pending
from sereno.answers.folder import PENDING, Writer, finished_segments, late_writers, open_segments, segments_folder
from sereno.answers.read import Wanted, find_answers
from sereno.answers.segments import Header, SegmentWriter
from sereno.exceptions import BusyError
from sereno.storage import age
from tests.answers import keep

Go = Callable[[str], None]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Go:
    """Be on another host from now on, which sees no lock of the one before."""
    held: dict[tuple[int, int], str] = {}
    real = fcntl.flock

    def flock(file: int, operation: int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        there = os.fstat(descriptor)
        owner = held.setdefault((there.st_dev, there.st_ino), socket.gethostname())
        if owner == socket.gethostname():
            real(descriptor, operation)

    def go(host: str) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: host)

    monkeypatch.setattr(fcntl, "flock", flock)
    go("node-1.bank")
    return go


def header() -> Header:
    return Header(format=1, model="shop", fingerprint="", inputs=[], outputs=[])


def a_day_older(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (folder, tidy, compact):
        monkeypatch.setattr(module, "age", lambda path: age(path) + 86_400)


def test_a_segment_that_another_host_writes_is_left_to_it(
    tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = segments_folder(tmp_path, "shop")
    writer = SegmentWriter(segments, header())
    assert writer.path.name.endswith("-node_1.bank.open")
    go("node-2")
    assert not storage.is_held(writer.path)  # as far as this host sees
    assert (open_segments(segments), finished_segments(segments)) == ([writer.path], [])
    a_day_older(monkeypatch)
    assert (open_segments(segments), finished_segments(segments)) == ([], [writer.path])


def test_a_segment_that_this_host_left_is_taken_at_once(tmp_path: Path, go: Go) -> None:
    segments = segments_folder(tmp_path, "shop")
    writer = SegmentWriter(segments, header())
    os.close(writer._descriptor)
    assert finished_segments(segments) == [writer.path]
    older = segments / "20260501T120000000000-123456-abcdef.open"  # of a version that knew no hosts
    older.touch()
    assert finished_segments(segments) == [older, writer.path]


def test_the_log_of_another_host_is_waited_for(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = segments_folder(tmp_path, "shop")
    writer = Writer(segments)
    assert late_writers(segments, writer.request + 1) == [str(os.getpid())]
    go("node-2")
    assert late_writers(segments, writer.request + 1) == [f"{os.getpid()} on host node_1.bank"]
    a_day_older(monkeypatch)
    assert late_writers(segments, writer.request + 1) == []
    monkeypatch.setattr(folder, "age", age)
    monkeypatch.setattr(folder, "BEAT_SECONDS", 0.0)
    before = writer._path.stat()
    writer.beat()
    after = writer._path.stat()
    assert (after.st_ctime_ns > before.st_ctime_ns, after.st_mtime_ns) == (True, before.st_mtime_ns)
    writer.close()


def test_what_another_host_has_pending_is_left_to_it(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, range(3))
    segments = segments_folder(tmp_path, "shop")
    pending = Pending(attempt="20260501T120000-abcdef01", version=-1, host="node_9")
    (segments / PENDING).write_bytes(msgspec.json.encode(pending))
    with pytest.raises(BusyError) as caught:
        Compactor(tmp_path, "shop").compact()
    assert str(caught.value) == (
        "A process on host node_9 works on the answers of 'shop'. No answer is lost: the compactor tries again. Should that "
        "host be gone for good, another one goes on after an hour."
    )
    a_day_older(monkeypatch)
    assert Compactor(tmp_path, "shop").compact().answers == 3


def test_of_two_hosts_that_begin_at_once_one_goes_on(tmp_path: Path, go: Go) -> None:
    keep(tmp_path, range(3))
    first = Compactor(tmp_path, "shop")
    second = Compactor(tmp_path, "shop")
    with first.alone():
        waiting = finished_segments(first.segments)
        go("node-2")
        with second.alone():
            pending = Pending(attempt="20260501T120000-abcdef01", version=-1, host="node_2")
            second._announce(pending)
        go("node-1.bank")
        with pytest.raises(BusyError, match="A process on host node_2 works on the answers of 'shop'"):
            first.take_segments(Done())
        assert finished_segments(first.segments) == waiting
    second._announce(pending)  # as if the file server had done it, and its answer had been lost


def test_who_was_taken_for_dead_commits_nothing(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, range(3))
    first, second = Compactor(tmp_path, "shop"), Compactor(tmp_path, "shop")
    confirm = first._confirm

    def stand_still(pending: Pending, files: object) -> None:
        go("node-2")
        with monkeypatch.context() as later:
            a_day_older(later)
            assert second.compact().answers == 3
        go("node-1.bank")
        confirm(pending, files)  # type: ignore[arg-type]

    monkeypatch.setattr(first, "_confirm", stand_still)
    with pytest.raises(BusyError, match="A process on another host works on the answers"):
        first.compact()
    monkeypatch.undo()
    assert Compactor(tmp_path, "shop").compact().answers == 0
    assert find_answers(tmp_path, "shop", Wanted()).num_rows == 3
