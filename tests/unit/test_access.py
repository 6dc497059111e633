"""The access log: whole lines, nothing in them that a caller could misuse, and no request that waits for its reader."""

from __future__ import annotations

import json
import os
import re
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sereno.serve import access as module
from sereno.serve.access import CHUNK, MOST_ERRORS, MOST_WAITING, AccessLog, _parts, _printable
from sereno.serve.guard import new_key
from tests.lives import MODEL, served


class File:
    """A log file and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_bytes()
        assert text == b"" or text.endswith(b"\n")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "access.log")
    yield file
    os.close(file.descriptor)


def log(access: AccessLog, status: int = 200, path: bytes = b"/predict", **changes: Any) -> None:
    given: dict[str, Any] = {
        "method": b"POST",
        "request_id": b"8f-2a",
        "client": "10.0.0.7",
        "seconds": 0.00021,
        "size": 58,
        "protocol": "native",
        "model": "churn",
        "rows": 1,
    }
    access.log(status, path=path, **(given | changes))


def test_a_line_tells_what_there_is_to_tell(file: File) -> None:
    access = AccessLog("all", file.descriptor)
    log(access)
    access.close()
    (line,) = file.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "request_id": "8f-2a",
        "client": "10.0.0.7",
        "method": "POST",
        "path": "/predict",
        "protocol": "native",
        "model": "churn",
        "status": 200,
        "rows": 1,
        "bytes": 58,
        "seconds": 0.00021,
    }


@pytest.mark.parametrize(("mode", "statuses"), [("off", []), ("errors", [400, 503]), ("all", [200, 0, 304, 400, 503])])
def test_each_mode_has_its_lines(file: File, mode: str, statuses: list[int]) -> None:
    access = AccessLog(mode, file.descriptor)
    for status in (200, 0, 304, 400, 503):
        log(access, status)
    access.close()
    assert [line["status"] for line in file.lines()] == statuses


def test_the_time_is_now(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    access = AccessLog("all", file.descriptor)
    for now in (1777636800.0, 1777636800.1239, 1777636801.9999):
        monkeypatch.setattr(module.time, "time", lambda now=now: now)
        log(access)
    monkeypatch.undo()
    access.close()
    assert [line["time"] for line in file.lines()] == [
        "2026-05-01T12:00:00.000Z",
        "2026-05-01T12:00:00.123Z",
        "2026-05-01T12:00:01.999Z",
    ]


# What callers send


@given(st.binary(max_size=2000), st.binary(max_size=2000), st.binary(max_size=2000))
@example(b"\xff" * 2000, b"\xff" * 2000, b"\xff" * 2000)
def test_nothing_that_is_sent_breaks_a_line(path: bytes, method: bytes, request_id: bytes) -> None:
    read, write = os.pipe()
    try:
        access = AccessLog("all", write)
        log(access, path=path, method=method, request_id=request_id)
        access.close()
        text = os.read(read, 100_000)
    finally:
        os.close(read)
        os.close(write)
    assert text.count(b"\n") == 1
    assert text.isascii()
    assert text[:-1].decode().isprintable()
    assert json.loads(text)["path"] == _printable(path.partition(b"?")[0])
    assert len(text) < select.PIPE_BUF


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b'/a"b\\c', '/a"b\\c'),
        (b'/x\r\n{"status":200}', '/x\\x0d\\x0a{"status":200}'),
        (b"/\x1b[2J", "/\\x1b[2J"),
        (b"/\x7f\x00", "/\\x7f\\x00"),
        (b"/\xc2\x9b2J", "/\\xc2\\x9b2J"),
        ("/caña".encode(), "/ca\\xc3\\xb1a"),
        (b"/" + b"x" * 5000, "/" + "x" * 511),
    ],
)
def test_what_is_not_printable_is_shown_as_its_number(sent: bytes, shown: str) -> None:
    assert _printable(sent) == shown


def test_no_query_and_no_key_gets_into_the_log(file: File) -> None:
    key = new_key().key
    access = AccessLog("all", file.descriptor)
    quoted = "".join(f"%{ord(c):02X}" for c in key)
    paths = (f"/predict?api_key={key}", f"/{key}/predict", f"/predict/sereno_{key}")
    for path in (*paths, f"/x/{key.replace('_', '%5F')}", f"/%0a/{quoted}", f"/{'x' * 500}{key}"):
        log(access, path=path.encode(), request_id=key.encode(), method=b"GET")
    access.close()
    assert key[8:16] not in file.path.read_text()
    assert [line["path"] for line in file.lines()] == [
        "/predict",
        "/sereno_***/predict",
        "/predict/sereno_***",
        "/x/sereno_***",
        "/\\x0a/sereno_***",
        f"/{'x' * 500}sereno_***",
    ]


def test_a_request_id_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "total.py"
    file.write_text(MODEL)
    key = new_key().key.encode()
    with served(file) as one:
        assert one.service.request_id(b"sereno_7") == b"sereno_7"
        for given in (key, b"id-" + key):
            assert key not in one.service.request_id(given)


# When it is written


def test_nothing_is_written_before_the_second_is_over_or_there_is_much(file: File) -> None:
    access = AccessLog("all", file.descriptor)
    for _ in range(100):
        log(access)
    assert access._thread is None
    assert file.lines() == []
    logged = 100
    while access._thread is None:
        log(access)
        logged += 1
    access.close()
    assert len(file.lines()) == logged
    assert CHUNK <= file.path.stat().st_size < CHUNK + 4096


def test_flush_writes_what_there_is(file: File) -> None:
    access = AccessLog("all", file.descriptor)
    access.flush()
    assert access._thread is None  # nothing to do, no thread
    log(access)
    access.flush()
    access.close()
    assert len(file.lines()) == 1


def test_lines_go_out_in_order(file: File) -> None:
    access = AccessLog("all", file.descriptor)
    for n in range(2000):
        log(access, rows=n)
        if n % 300 == 0:
            access.flush()
    access.close()
    assert [line["rows"] for line in file.lines()] == list(range(2000))


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 200))
def test_pieces_are_whole_lines_and_small_enough(lines: list[bytes], most: int) -> None:
    lines = [line.replace(b"\n", b"x") for line in lines]
    parts = _parts(lines, most)
    assert b"".join(parts) == b"".join(line + b"\n" for line in lines)
    for part in parts:
        assert part.endswith(b"\n")
        assert len(part) <= most or part.count(b"\n") == 1


# When it is not read


def test_a_reader_that_is_stuck_keeps_nobody_waiting_and_what_is_lost_is_counted() -> None:
    read, write = os.pipe()
    access = AccessLog("all", write)
    try:
        given_lines = 0
        while not access.dropped:
            log(access, rows=given_lines)
            given_lines += 1
        assert len(access._chunks) == MOST_WAITING
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(read, 1 << 16), b"")))
        reader.start()
        access.close()
    finally:
        os.close(write)
    reader.join()
    os.close(read)
    lines = [json.loads(line) for line in b"".join(received).splitlines()]
    assert len(lines) + access.dropped == given_lines
    assert [line["rows"] for line in lines] == list(range(len(lines)))


def test_a_reader_that_never_reads_does_not_keep_us_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    read, write = os.pipe()
    access = AccessLog("all", write)
    while not access.dropped:
        log(access)
    access.close()
    os.close(read)  # the writer gets an error and ends
    assert access._thread is not None
    access._thread.join()
    os.close(write)


def test_a_reader_that_is_gone_costs_lines_not_requests(caplog: pytest.LogCaptureFixture) -> None:
    read, write = os.pipe()
    os.close(read)
    access = AccessLog("all", write)
    for _ in range(3):
        log(access)
        access.flush()
    access.close()
    os.close(write)
    assert access.dropped == 3
    assert [r.message for r in caplog.records] == [
        "the access log cannot be written: Broken pipe; lines are dropped and counted"
    ]


def test_a_descriptor_that_does_not_wait_is_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    access = AccessLog("all", write)
    for n in range(2000):  # more than a pipe holds
        log(access, rows=n)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(read, 1 << 16), b"")))
    reader.start()
    access.close()
    os.close(write)
    reader.join()
    os.close(read)
    assert [json.loads(line)["rows"] for line in b"".join(received).splitlines()] == list(range(2000))
    assert access.dropped == 0


def test_a_flood_of_errors_is_cut_and_told(file: File) -> None:
    access = AccessLog("errors", file.descriptor)
    for _ in range(MOST_ERRORS + 25):
        log(access, 401)
    access.flush()
    log(access, 401)  # the next second
    access.close()
    lines = file.lines()
    assert len(lines) == MOST_ERRORS + 2
    assert {k: v for k, v in lines[MOST_ERRORS].items() if k != "time"} == {
        "left_out": 25,
        "limit_a_second": MOST_ERRORS,
    }
    assert lines[-1]["status"] == 401
    assert access.dropped == 25


def test_two_processes_do_not_mix_their_lines() -> None:
    """Into one pipe, as the workers of a server do: each write is small enough to be whole."""
    read, write = os.pipe()
    logs = [AccessLog("all", write), AccessLog("all", write)]
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(read, 1 << 12), b"")))
    reader.start()
    for n in range(3000):
        log(logs[n % 2], rows=n, path=b"/" + b"x" * (n % 400))
    for access in logs:
        access.close()
    os.close(write)
    reader.join()
    os.close(read)
    lines = [json.loads(line) for line in b"".join(received).splitlines()]
    assert sorted(line["rows"] for line in lines) == list(range(3000))
