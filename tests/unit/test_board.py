"""The board keeps what each process last wrote, whole, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sereno.serve.processes.board import ROOM, Board, State


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(4)
    yield board
    board.close()


def test_a_new_board_is_empty(board: Board) -> None:
    assert [board.state(slot) for slot in range(4)] == [State.EMPTY] * 4
    assert board.read(1) == b""
    assert board.age(1) == float("inf")
    assert board.pid(1) == 0
    assert board.workers() == []


def test_slots_keep_what_was_written_last_and_do_not_mix(board: Board) -> None:
    for text in (b"one", b"", b"three" * 1000, b"four"):
        board.write(1, text)
        board.write(2, text[::-1])
        assert (board.read(1), board.read(2), board.read(3)) == (text, text[::-1], b"")


def test_states_and_pids(board: Board) -> None:
    board.set_state(2, State.READY)
    board.set_pid(2, 4711)
    board.set_state(0, State.READY)
    assert (board.state(2), board.pid(2), board.state(1)) == (State.READY, 4711, State.EMPTY)
    assert board.workers() == [2]


def test_a_beat_makes_young(board: Board) -> None:
    board.beat(3)
    assert 0 <= board.age(3) < 60
    assert board.age(2) == float("inf")


def test_clear_leaves_nothing(board: Board) -> None:
    board.write(1, b"text")
    board.beat(1)
    board.set_pid(1, 1)
    board.set_state(1, State.HUNG)
    board.clear(1)
    assert (board.read(1), board.age(1), board.pid(1), board.state(1)) == (b"", float("inf"), 0, State.EMPTY)


def test_there_is_room_for_so_much_and_no_more(board: Board) -> None:
    board.write(1, b"x" * ROOM)
    with pytest.raises(ValueError, match=f"has room for {ROOM} bytes, not for {ROOM + 1}"):
        board.write(1, b"y" * (ROOM + 1))
    assert board.read(1) == b"x" * ROOM


def test_slots_that_are_not_there(board: Board) -> None:
    for slot in (-1, 4):
        with pytest.raises(ValueError, match="slots 0 to 3, not"):
            board.state(slot)


def test_a_descriptor_of_something_else_is_refused() -> None:
    read, write = os.pipe()
    other = os.memfd_create("other")
    os.write(other, b"x" * 64)
    try:
        with pytest.raises(ValueError, match="not that of a board"):
            Board.attach(other)
    finally:
        for descriptor in (read, write, other):
            os.close(descriptor)


def test_nobody_can_shorten_it(board: Board) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(board.descriptor, 8)


WRITER = """
import sys
from sereno.serve.processes.board import Board, State
board = Board.attach(int(sys.argv[1]))
board.set_state(1, State.READY)
number = 0
while True:
    number += 1
    board.beat(1)
    board.write(1, bytes([number % 251]) * (number * 7919 % 20_000))
"""


def test_readers_see_only_whole_writes_also_of_a_writer_that_was_killed(board: Board) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(board.descriptor)], pass_fds=[board.descriptor])
        try:
            while board.state(1) is not State.READY:
                assert writer.poll() is None
            seen: set[bytes] = set()
            while len(seen) < 100:
                content = board.read(1)
                assert content == content[:1] * len(content)
                seen.add(content)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        content = board.read(1)
        assert content == content[:1] * len(content)
        board.write(1, b"the next worker")
        assert board.read(1) == b"the next worker"
        board.clear(1)


def test_it_imports_nothing_heavy() -> None:
    show = "import sys, sereno.serve.processes.board; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert {"numpy", "pyarrow", "msgspec"} & set(done.stdout.split()) == set()
