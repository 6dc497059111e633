"""Lines that several processes write to one log."""

from __future__ import annotations

import io
import os
import sys

from sereno.lines import whole_lines


class Written(io.RawIOBase):
    """What reaches the operating system, write by write."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        self.pieces.append(bytes(content))  # type: ignore[call-overload]
        return len(self.pieces[-1])


def test_a_line_is_one_piece() -> None:
    raw = Written()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", write_through=True)  # as Python makes stderr
    whole_lines(stream)
    print("a", "line", file=stream)
    print("its begin", end="", file=stream)
    print(" and its end", file=stream)
    assert raw.pieces == [b"a line\n", b"its begin and its end\n"]


def test_what_people_see_at_once_stays_so() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        whole_lines(terminal, io.StringIO())  # nor does it matter what else a test has put there
        print("a prompt: ", end="", flush=True, file=terminal)
        assert os.read(ours, 100) == b"a prompt: "
    os.close(ours)
    whole_lines(sys.stderr)
