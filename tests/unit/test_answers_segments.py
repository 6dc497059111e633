"""Segments: what was written is read back, a torn tail is dropped, and any other damage is told."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sereno.answers import segments
from sereno.answers.folder import finished_segments, open_segments
from sereno.answers.segments import ANSWERS, Header, Segment, SegmentWriter, frame, read_segment
from sereno.storage import is_held
from tests.answers import ASKED, TOLD

HEADER = Header.of("shop", "ab" * 32, ASKED, TOLD)
PAYLOADS = [f"payload {i} ".encode() * (1 + i * 7) for i in range(20)]


def written(folder: Path, *, sealed: bool, ahead: bool = False) -> Path:
    writer = SegmentWriter(folder, HEADER, ahead=ahead)
    for payload in PAYLOADS:
        writer.append([frame(ANSWERS, payload)], 1)
    if sealed:
        writer.seal()
        return writer.path.with_suffix(".sealed")
    os.close(writer._descriptor)
    return writer.path


def payloads(segment: Segment) -> list[bytes]:
    return [bytes(p) for p in segment.answers]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_what_was_written_is_read(tmp_path: Path, sealed: bool, ahead: bool) -> None:
    path = written(tmp_path, sealed=sealed, ahead=ahead)
    segment = read_segment(path)
    assert segment.header == HEADER
    assert payloads(segment) == PAYLOADS
    assert (segment.damaged, segment.torn) == (0, 0)
    if ahead and not sealed:
        assert path.stat().st_size > 1 << 20  # zeros, where the next frames would lie


def test_a_living_writer_holds_its_segment(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, HEADER)
    assert open_segments(tmp_path) == [writer.path]
    assert finished_segments(tmp_path) == []
    assert is_held(writer.path)
    assert read_segment(writer.path).header == HEADER
    writer.seal()
    assert open_segments(tmp_path) == []
    assert finished_segments(tmp_path) == [writer.path.with_suffix(".sealed")]


def test_a_writer_that_was_killed_leaves_its_segment(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from tests.unit.test_answers_segments import *;"
        "w = SegmentWriter(Path(sys.argv[1]), HEADER); w.append([frame(ANSWERS, b'kept')], 1);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = finished_segments(tmp_path)
    assert left.suffix == ".open"
    assert payloads(read_segment(left)) == [b"kept"]


@pytest.mark.parametrize("sealed", [True, False])
def test_cut_anywhere_it_gives_what_lies_before(tmp_path: Path, sealed: bool) -> None:
    path = written(tmp_path, sealed=sealed)
    whole = path.read_bytes()
    ends = []
    for count in range(len(PAYLOADS) + 1):
        ends.append(
            len(frame(segments.HEADER, msgspec.msgpack.encode(HEADER))) + sum(12 + len(p) for p in PAYLOADS[:count])
        )
    for size in {*range(0, len(whole), 97), *ends, *(e + 1 for e in ends), *(e - 1 for e in ends)}:
        if size >= len(whole):
            continue
        path.write_bytes(whole[:size])
        segment = read_segment(path)
        complete = sum(end <= size for end in ends) - 1
        assert payloads(segment) == PAYLOADS[: max(complete, 0)]
        if sealed:
            assert segment.damaged > 0  # a sealed one has an end
        else:
            assert (segment.torn > 0) == (size not in (0, *ends))
            assert segment.damaged == 0


@given(st.data())
def test_damage_costs_the_frames_it_hits_and_is_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("segments"), sealed=True)
    whole = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(1, 600))
    zeros = data.draw(st.booleans())
    new = bytes(size) if zeros else random.Random(start).randbytes(size)
    new = new[: len(whole) - start]
    before = bytes(whole[start : start + len(new)])
    whole[start : start + len(new)] = new
    path.write_bytes(whole)
    segment = read_segment(path)
    left = payloads(segment)
    assert left == [p for p in PAYLOADS if p in left]  # in order, and none that was not written
    if new == before:
        assert segment.damaged == 0
        return
    assert segment.damaged > 0
    at = len(frame(segments.HEADER, msgspec.msgpack.encode(HEADER)))
    for payload in PAYLOADS:
        end = at + 12 + len(payload)
        assert (payload in left) == (end <= start or at >= start + len(new) or whole[at:end] == frame(ANSWERS, payload))
        at = end
    # the end has the header again
    assert segment.header in (HEADER, None)
    if start + len(new) < at or start >= len(frame(segments.HEADER, msgspec.msgpack.encode(HEADER))):
        assert segment.header == HEADER


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path, HEADER)
    writer.append([frame(ANSWERS, b"kept")], 1)
    put = os.pwritev

    def full(descriptor: int, pieces: list[bytes], at: int) -> int:
        put(descriptor, [b"".join(pieces)[:5]], at)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        writer.append([frame(ANSWERS, b"lost")], 1)
    segment = read_segment(writer.path)
    assert payloads(segment) == [b"kept"]
    assert (segment.damaged, segment.torn) == (0, 0)
    assert not is_held(writer.path)  # for the compactor to take


def test_many_frames_in_one_call(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, HEADER, ahead=True)
    frames = [frame(ANSWERS, b"%d" % i) for i in range(3000)]
    writer.append(frames, 3000)
    writer.append(frames[:1], 1)
    writer.seal()
    segment = read_segment(writer.path.with_suffix(".sealed"))
    assert payloads(segment) == [b"%d" % i for i in [*range(3000), 0]]


def test_a_disk_that_takes_a_part_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda d, pieces, at: put(d, [b"".join(pieces)[:7]], at))
    path = written(tmp_path, sealed=True)
    assert payloads(read_segment(path)) == PAYLOADS


def test_a_marker_inside_of_an_answer_is_no_frame(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, HEADER)
    inner = segments.ANSWERS + b"\x04\x00\x00\x00" + b"abcd" + b"efgh"
    writer.append([frame(ANSWERS, inner * 3), frame(ANSWERS, b"next")], 2)
    writer.seal()
    path = writer.path.with_suffix(".sealed")
    whole = bytearray(path.read_bytes())
    at = whole.index(inner)
    whole[at + 1] ^= 1
    path.write_bytes(whole)
    segment = read_segment(path)
    assert payloads(segment) == [b"next"]
    assert segment.damaged == 12 + 3 * len(inner)
