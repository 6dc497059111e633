"""The board: memory that the supervisor and its workers share. Who is there, in what state, and what each has counted.

One memfd; the supervisor makes it, workers inherit its descriptor. Slot 0 is the supervisor's own, each worker has one
of the others. A slot is written by one process at a time and read by all. Nothing here waits for anybody: a process that
is killed in the middle of a write leaves what it wrote before. Nothing heavy is imported.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import zlib
from enum import IntEnum

ROOM = 1 << 20  # the most bytes that a slot keeps; memory that is not written to costs nothing

_WORD = 8
_HEADER = 8 * _WORD
_STATE, _BEAT, _SEQUENCE, _PID = range(4)  # words of a slot's header
_LENGTH, _SUM = range(2)  # words in front of what a slot keeps
_SIDE = 2 * _WORD + ROOM
_SLOT = _HEADER + 2 * _SIDE  # two sides, written in turn
_MARK = 0x53_45_52_45_4E_4F_00_01  # "SERENO", layout 1


class State(IntEnum):
    """Of the worker in a slot."""

    EMPTY = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    HUNG = 4


class Board:
    """See the module. Every word is written by one store, so no reader sees half of one."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor  # for `pass_fds`
        self.slots = slots  # with slot 0
        self._map = mmap.mmap(descriptor, _HEADER + slots * _SLOT)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")

    @classmethod
    def create(cls, slots: int) -> Board:
        """A new board with that many slots, slot 0 among them; all are EMPTY."""
        descriptor = os.memfd_create("sereno-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, _HEADER + slots * _SLOT)
        # nobody can shorten it any more: a reader beyond its end would be killed
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        board = cls(descriptor, slots)
        board._words[0], board._words[1] = _MARK, slots
        return board

    @classmethod
    def attach(cls, descriptor: int) -> Board:
        """The board behind a descriptor that was inherited. Raises ValueError where it is none, or of another version."""
        head = os.pread(descriptor, 2 * _WORD, 0)
        words = memoryview(head).cast("Q") if len(head) == 2 * _WORD else (0, 0)
        if words[0] != _MARK:
            raise ValueError("the descriptor is not that of a board of this version")
        return cls(descriptor, words[1])

    def close(self) -> None:
        """Give the memory and the descriptor back. The board lives on in other processes."""
        self._words.release()
        self._bytes.release()
        self._map.close()
        os.close(self.descriptor)

    # Who is there

    def beat(self, slot: int) -> None:
        """Say that the process of this slot is alive and not stuck."""
        self._words[self._word(slot, _BEAT)] = time.monotonic_ns()

    def age(self, slot: int) -> float:
        """Seconds since the slot's last beat; infinite where there was none."""
        beat: int = self._words[self._word(slot, _BEAT)]
        return (time.monotonic_ns() - beat) / 1e9 if beat else float("inf")

    def set_state(self, slot: int, state: State) -> None:
        self._words[self._word(slot, _STATE)] = state

    def state(self, slot: int) -> State:
        return State(self._words[self._word(slot, _STATE)])

    def set_pid(self, slot: int, pid: int) -> None:
        self._words[self._word(slot, _PID)] = pid

    def pid(self, slot: int) -> int:
        """Of the process in the slot; 0 where nobody said."""
        return int(self._words[self._word(slot, _PID)])

    def workers(self) -> list[int]:
        """The slots that are not EMPTY, slot 0 left out."""
        return [slot for slot in range(1, self.slots) if self._words[self._word(slot, _STATE)]]

    def clear(self, slot: int) -> None:
        """Make a slot EMPTY, for the next worker. Only once its process has ended."""
        self.write(slot, b"")
        for word in (_PID, _BEAT, _STATE):
            self._words[self._word(slot, word)] = 0

    # What it keeps

    def write(self, slot: int, content: bytes) -> None:
        """Replace what a slot keeps. Readers get the old bytes or the new, whenever the writer is killed.

        Raises ValueError where the content is larger than ROOM.
        """
        if len(content) > ROOM:
            raise ValueError(f"a slot of the board has room for {ROOM} bytes, not for {len(content)}")
        # written beside the side that readers use; the number then tells them to use the other
        at = self._word(slot, _SEQUENCE)
        sequence = self._words[at] + 1
        start = self._side(slot, sequence)
        self._bytes[start + 2 * _WORD : start + 2 * _WORD + len(content)] = content
        self._words[start // _WORD + _LENGTH] = len(content)
        self._words[start // _WORD + _SUM] = _checksum(sequence, content)
        self._words[at] = sequence

    def read(self, slot: int) -> bytes:
        """What a slot keeps; empty where nothing was written."""
        at = self._word(slot, _SEQUENCE)
        for _ in range(10_000):
            sequence = self._words[at]
            if not sequence:
                return b""
            start = self._side(slot, sequence)
            length = self._words[start // _WORD + _LENGTH]
            content = bytes(self._bytes[start + 2 * _WORD : start + 2 * _WORD + min(length, ROOM)])
            # The number has moved on where the writer came round to this side meanwhile; the sum also catches a
            # processor that shows us the writer's stores in another order. Both are over at the next look.
            if self._words[at] == sequence and self._words[start // _WORD + _SUM] == _checksum(sequence, content):
                return content
        raise RuntimeError(f"slot {slot} of the board is written by more than one process")

    def _word(self, slot: int, word: int) -> int:
        if not 0 <= slot < self.slots:
            raise ValueError(f"the board has slots 0 to {self.slots - 1}, not {slot}")
        return (_HEADER + slot * _SLOT) // _WORD + word

    def _side(self, slot: int, sequence: int) -> int:
        return _HEADER + slot * _SLOT + _HEADER + (sequence & 1) * _SIDE


def _checksum(sequence: int, content: bytes) -> int:
    return zlib.crc32(content, sequence & 0xFFFFFFFF)
