"""Segments: the local files to which workers append the answers they gave, until the compactor puts them into the table.

A segment is a sequence of *frames*: marker (4 bytes), length of the payload and CRC-32 of all the rest (little-endian),
payload (msgpack). The first frame is the header, then come answers, and the last one, once the segment is sealed, is the
end, which has the header again. A payload of answers is a list of `[microseconds, request ids, rows, answers]`, one item
per batch that was scored, values in the order of the header's columns.

    <start>-<pid>-<random>.open     a worker writes it, and holds its lock as long as it lives
                          .sealed   written to the end: renamed by the worker

A worker that was killed leaves an `.open` one that nobody locks. What it wrote last may be torn: the tail that is no
frame is dropped, as no answer in it was promised to last. Any other byte that is not as it was written is *damage*:
what lies behind it is found again by the next marker, and the damage is told.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sereno.answers.folder import make_folder, name_of
from sereno.failpoints import FailpointError, failpoint
from sereno.schema import Column, RowType
from sereno.storage import fsync

HEADER, ANSWERS, END = (
    b"\xc1SgH",
    b"\xc1SgA",
    b"\xc1SgE",
)  # a byte that neither msgpack nor UTF-8 knows; seldom in floats
_HEAD = struct.Struct("<4sI")
_CRC = struct.Struct("<I")
_OVERHEAD = _HEAD.size + _CRC.size
_AT_ONCE = 512  # frames of one system call; Linux takes 1,024
_ZEROS = bytes(1 << 20)


class Shape(msgspec.Struct, omit_defaults=True):
    """A column, as far as its values are to be read again."""

    name: str
    kind: str
    key: bool = False
    precision: int = 0
    scale: int = 0
    item: Shape | None = None  # of a list
    fields: list[Shape] = []  # of a nested row

    @classmethod
    def of(cls, column: Column) -> Shape:
        return cls(
            name=column.name,
            kind=column.kind,
            key=column.role == "key",
            precision=column.precision,
            scale=column.scale,
            item=Shape.of(column.item) if column.item else None,
            fields=[Shape.of(c) for c in column.row.columns] if column.row else [],
        )


class Header(msgspec.Struct):
    """What a segment says of itself."""

    model: str
    fingerprint: str
    inputs: list[Shape]
    outputs: list[Shape]
    format: int = 1
    host: str = ""
    pid: int = 0

    @classmethod
    def of(cls, model: str, fingerprint: str, inputs: RowType, outputs: RowType) -> Header:
        return cls(
            model=model,
            fingerprint=fingerprint,
            inputs=[Shape.of(c) for c in inputs.columns],
            outputs=[Shape.of(c) for c in outputs.columns],
            host=socket.gethostname(),
            pid=os.getpid(),
        )


def frame(marker: bytes, payload: bytes) -> bytes:
    head = _HEAD.pack(marker, len(payload))
    return b"".join((head, _CRC.pack(zlib.crc32(payload, zlib.crc32(head))), payload))


class SegmentWriter:
    """Writes one segment.

    After an error it holds what it held before, and is given up; unless the disk did not even take that back. Then
    `is_torn`: only this writer may write the frames again, to the same place, as another segment would have them twice.
    """

    def __init__(self, folder: Path, header: Header, *, ahead: bool = False) -> None:
        """`ahead`: write zeros where frames will lie, so that a flush of new frames need not flush the file's size too."""
        make_folder(folder)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path = folder / f"{name_of(stamp)}.open"
        self.size = self.rows = 0
        self.is_torn = False
        self._header = header
        self._ahead, self._zeroed = ahead, 0
        # It gets its name once it is locked: an `.open` file without a lock is one whose writer died.
        hidden = self.path.with_suffix(".new")
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._put([frame(HEADER, msgspec.msgpack.encode(header))], 0)
            os.rename(hidden, self.path)
            fsync(folder)
        except OSError:
            os.close(self._descriptor)
            for left in (hidden, self.path):
                left.unlink(missing_ok=True)
            raise
        self.size = os.fstat(self._descriptor).st_size

    def append(self, frames: Sequence[bytes], rows: int) -> None:
        """Write frames that hold so many rows, and flush them to the disk. All of them are kept, or none."""
        try:
            if self.is_torn:
                self._take_back()
            end = self.size + sum(map(len, frames))
            if self._ahead and end > self._zeroed:
                self._write_zeros(end)
            at = self.size
            for start in range(0, len(frames), _AT_ONCE):
                at += self._put(frames[start : start + _AT_ONCE], at)
            failpoint("answers_flush")
            os.fdatasync(self._descriptor)
        except (OSError, FailpointError):
            try:
                self._take_back()
            except OSError:
                self.is_torn = True
            else:
                os.close(self._descriptor)
            raise
        self.size, self.rows = end, self.rows + rows

    def _take_back(self) -> None:
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)  # a power cut could bring back what another segment will have
        self.is_torn, self._zeroed = False, 0

    def _write_zeros(self, at: int) -> None:
        try:
            self._put([_ZEROS], at)
            self._zeroed = at + len(_ZEROS)
        except OSError:  # the disk is nearly full: what is left is for answers
            self._ahead = False
            os.ftruncate(self._descriptor, self.size)

    def _put(self, pieces: Sequence[bytes], at: int) -> int:
        size = sum(map(len, pieces))
        done = os.pwritev(self._descriptor, pieces, at)
        if done < size:  # a disk that fills up takes a part of it; the next call says why
            rest = b"".join(pieces)[done:]
            while rest:
                rest = rest[os.pwrite(self._descriptor, rest, at + size - len(rest)) :]
        return size

    def seal(self) -> None:
        """Write the end, and hand the segment over to the compactor."""
        end = {"header": self._header, "rows": self.rows}
        self._ahead = False
        self.append([frame(END, msgspec.msgpack.encode(end))], 0)
        try:
            os.ftruncate(self._descriptor, self.size)
            os.rename(self.path, self.path.with_suffix(".sealed"))
        finally:
            os.close(self._descriptor)


@dataclass
class Segment:
    """What a segment holds."""

    path: Path
    header: Header | None = None  # None: it cannot be read, and with it no answer
    answers: list[memoryview] = field(default_factory=list)  # payloads
    damaged: int = 0  # bytes that are not as they were written
    lost: int = 0  # answers whose values are not what the header says; known once they were read
    torn: int = 0  # bytes at the end of a segment that was left open


_end_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_header_decoder = msgspec.msgpack.Decoder(Header)


def read_header(path: Path) -> Header | None:
    """The header of a segment, without reading the rest if it is well. Raises OSError."""
    with path.open("rb") as stream:
        head = stream.read(_OVERHEAD)
        if len(head) == _OVERHEAD:
            marker, length = _HEAD.unpack_from(head)
            data = memoryview(head + stream.read(min(length, 1 << 24)))
            if marker == HEADER and _frame_size(data, 0):
                with contextlib.suppress(msgspec.MsgspecError):
                    return _header_decoder.decode(data[_OVERHEAD:])
    return read_segment(path).header


def read_segment(path: Path) -> Segment:
    """Read a segment, sealed or not, perhaps while it is written. Raises OSError; damage is told, never raised."""
    data = memoryview(path.read_bytes())
    found = Segment(path)
    at, ended = 0, False
    while at < len(data):
        size = _frame_size(data, at)
        if not size:
            following = _find_frame(data, at + 1)
            if following is None:
                break
            found.damaged += following - at
            at = following
            continue
        marker, payload = bytes(data[at : at + 4]), data[at + _OVERHEAD : at + size]
        at += size
        if marker == ANSWERS:
            found.answers.append(payload)
            continue
        ended = marker == END
        with contextlib.suppress(msgspec.MsgspecError, KeyError):  # of a later version, say: no header
            found.header = _header_decoder.decode(_end_decoder.decode(payload)["header"] if ended else payload)
    rest = len(bytes(data[at:]).rstrip(b"\0"))
    if path.suffix == ".sealed" and not ended:
        found.damaged += max(rest, 1)
    else:
        found.torn = rest
    return found


def _frame_size(data: memoryview, at: int) -> int:
    """The size of the frame that begins there; 0: none does."""
    if at + _OVERHEAD > len(data):
        return 0
    marker, length = _HEAD.unpack_from(data, at)
    end = at + _OVERHEAD + length
    if marker not in (HEADER, ANSWERS, END) or end > len(data):
        return 0
    crc = zlib.crc32(data[at + _OVERHEAD : end], zlib.crc32(data[at : at + _HEAD.size]))
    return end - at if _CRC.unpack_from(data, at + _HEAD.size)[0] == crc else 0


def _find_frame(data: memoryview, at: int) -> int | None:
    whole = bytes(data[at:])
    found = whole.find(HEADER[:3])
    while found >= 0:
        if _frame_size(data, at + found):
            return at + found
        found = whole.find(HEADER[:3], found + 1)
    return None
