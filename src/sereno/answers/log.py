"""The answer log of one model in one serving process: what was answered, on its way to a segment on the local disk.

`append` is called once per scored batch, on the event loop, and calls `then` when its answers may leave:

    off     at once; nothing is kept
    async   at once; the answers are written within the second, and at `close`
    sync    once they are on the disk: `then(None)` comes on the event loop, after the flush that holds the batch.
            If they cannot be written `then(StorageError)` comes instead: these answers must not leave.

What it costs the event loop: encoding, which is one call for some hundred rows (0.1 µs a row), and no system call.
A thread writes and flushes, with what came meanwhile as the next group (group commit). Memory is bounded: while the disk
does not keep up, answers beyond `limit_bytes` are dropped and counted (async), or refused (sync).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from sereno.answers.folder import SEGMENT_BYTES, SEGMENT_SECONDS, Writer, last_request, make_folder, remember_key
from sereno.answers.segments import ANSWERS, Header, SegmentWriter, frame
from sereno.exceptions import SerenoError, StorageError
from sereno.failpoints import FailpointError, failpoint
from sereno.schema import RowType
from sereno.storage import told

LOG = logging.getLogger("sereno.answers")

Mode = Literal["off", "async", "sync"]
Then = Callable[[StorageError | None], None]

PAUSE = 0.1  # an answer waits so long before it is written: often, so that each time little is, and nobody waits for it
FRAME_BYTES = 32_768  # what one encoding makes, about: it holds up the event loop for some 20 µs
FRAME_ROWS = 256
PATIENCE = 10.0  # seconds that `close` waits for the disk
THEN = {
    "async": "Serving goes on; they are tried again each second, and dropped once too many wait.",
    "sync": "Until that is mended callers get errors in their place.",
}


# what `append` was given, as it is encoded: microseconds since 1970, ids, rows, answers
_Batch = tuple[int, Sequence[bytes], Sequence[Any], Sequence[Any]]


class _Packed(NamedTuple):
    """Batches as a frame."""

    frame: bytes
    rows: int
    since: float  # when the first of them was answered
    then: Then | None


class AnswerLog:
    """Keeps the answers of one model. Made, called and closed on the event loop's thread.

    Args:
        folder: where segments lie: `folder.segments_folder(home, model)`.
        model: its name.
        mode: "off", "async" or "sync".
        fingerprint: of the model.
        inputs, outputs: what the rows and answers given to `append` hold.
        limit_bytes: how much may wait for the disk.

    For metrics: `written` and `dropped` count rows, `lag_seconds` is the age of the oldest answer that is not written.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        mode: Mode,
        *,
        fingerprint: str,
        inputs: RowType,
        outputs: RowType,
        limit_bytes: int = 64 << 20,
    ) -> None:
        self.mode: Mode = mode
        self.written = 0
        self._folder, self._limit = folder, limit_bytes
        self._header = Header.of(model, fingerprint, inputs, outputs)
        self._encode = msgspec.msgpack.Encoder().encode
        self._loop: asyncio.AbstractEventLoop | None = None

        # The event loop puts in, the writer takes out; each number has one of the two that writes it.
        self._batches: deque[_Batch] = deque()  # async: not encoded yet
        self._batch_rows = 0
        self._frame_rows = FRAME_ROWS // 4
        self._packed: deque[_Packed] = deque()
        self._bytes_in = self._bytes_out = 0
        self._writing: list[_Packed] = []

        self._dropped = 0
        self._told: set[str] = set()
        self._counting = threading.Lock()

        self._segment: SegmentWriter | None = None
        self._slot = 0.0
        self._writer: Writer | None = None
        self._packing = False  # the event loop has batches in its hands, which are in no queue
        self._failing = False
        self._closing = False
        self._bell = threading.Lock()  # locked: nothing to do but wait for the next second
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        if mode != "off":
            self._try(self._open_writer)
            self._thread = threading.Thread(target=self._run, name=f"answers of {model}", daemon=True)
            self._thread.start()
        self.append: Callable[[float, Sequence[bytes], Sequence[Any], Sequence[Any], Then], None] = {
            "off": self._append_off,
            "async": self._append_async,
            "sync": self._append_sync,
        }[mode]
        """`append(when, ids, rows, answers, then)`: `when` in seconds since 1970; one id, row and answer each."""

    # On the event loop

    def _append_off(
        self, when: float, ids: Sequence[bytes], rows: Sequence[Any], answers: Sequence[Any], then: Then
    ) -> None:
        then(None)

    def _append_async(
        self, when: float, ids: Sequence[bytes], rows: Sequence[Any], answers: Sequence[Any], then: Then
    ) -> None:
        self._batches.append((int(when * 1e6), ids, rows, answers))
        self._batch_rows += len(rows)
        then(None)
        if self._batch_rows >= self._frame_rows:
            self._batch_rows = 0
            self._pack()

    def _append_sync(
        self, when: float, ids: Sequence[bytes], rows: Sequence[Any], answers: Sequence[Any], then: Then
    ) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            packed = self._frame_of([(int(when * 1e6), ids, rows, answers)], then)
        except (TypeError, ValueError, OverflowError) as error:
            then(StorageError(f"An answer cannot be written to the answer log: {error}."))
            return
        if self._bytes_in - self._bytes_out + len(packed.frame) > self._limit:
            then(StorageError("The disk of the answer log does not keep up: too many answers wait for it."))
            return
        self._bytes_in += len(packed.frame)
        self._packed.append(packed)
        self._ring()

    def _append_too_late(
        self, when: float, ids: Sequence[bytes], rows: Sequence[Any], answers: Sequence[Any], then: Then
    ) -> None:
        if self.mode == "sync":
            then(StorageError("The answer log is closed: the server ends."))
            return
        self._drop(len(rows), "closed", "they came after the log was closed")
        then(None)

    def _pack(self) -> None:
        """Encode what waits, so that it no longer waits as objects, which the garbage collector would walk through."""
        self._packing = True
        try:
            for packed in self._encoded():
                if self._bytes_in - self._bytes_out + len(packed.frame) > self._limit:
                    self._drop(packed.rows, "limit", self._too_much)
                    continue
                self._bytes_in += len(packed.frame)
                self._packed.append(packed)
                self._frame_rows = max(1, min(FRAME_ROWS, FRAME_BYTES * packed.rows // len(packed.frame)))
        finally:
            self._packing = False
        if self._bytes_in - self._bytes_out > self._limit // 4:
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def close(self) -> None:
        """Write all that waits, and hand the segment over. Waits for the disk, at most some seconds.

        In sync mode the `then` of what was waiting is still to be called by the event loop afterwards.
        """
        if self._thread is None:
            return
        self._closing = True
        self.append = self._append_too_late
        self._ring()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            LOG.error("The disk of the answer log hangs: %d answers may be lost.", self.waiting)
        elif left := self.waiting:
            self._drop(left, "close", "they could not be written when the server ended")

    # For metrics

    @property
    def dropped(self) -> int:
        """Answers (rows) that were given but not kept."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """Answers (rows) that are not written yet."""
        packed = [*self._writing, *self._packed]
        return sum(len(rows) for _, _, rows, _ in [*self._batches]) + sum(p.rows for p in packed)

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest answer that is not written; 0 when all are."""
        for waiting in (self._writing, self._packed, self._batches):
            with contextlib.suppress(IndexError):  # taken at this moment
                first = waiting[0]
                since = first.since if isinstance(first, _Packed) else first[0] / 1e6
                return max(0.0, time.time() - since)
        return 0.0

    # On either thread

    def _encoded(self) -> list[_Packed]:
        """Take what waits, as one frame; several only where something in it cannot be encoded."""
        batches = []
        with contextlib.suppress(IndexError):
            while True:
                batches.append(self._batches.popleft())
        if not batches:
            return []
        try:
            return [self._frame_of(batches, None)]
        except (TypeError, ValueError, OverflowError):
            return [packed for batch in batches if (packed := self._what_can_be_encoded(batch))]

    def _what_can_be_encoded(self, batch: _Batch) -> _Packed | None:
        good = []
        microseconds, *columns = batch
        for one in zip(*columns, strict=True):
            try:
                self._encode(one)
            except (TypeError, ValueError, OverflowError) as error:
                self._drop(1, "encode", str(error))
            else:
                good.append(one)
        if not good:
            return None
        ids, rows, answers = zip(*good, strict=True)
        return self._frame_of([(microseconds, ids, rows, answers)], None)

    def _frame_of(self, batches: list[_Batch], then: Then | None) -> _Packed:
        rows = sum(len(rows) for _, _, rows, _ in batches)
        return _Packed(frame(ANSWERS, self._encode(batches)), rows, batches[0][0] / 1e6, then)

    def _drop(self, rows: int, kind: str, why: str) -> None:
        with self._counting:
            self._dropped += rows
            first = kind not in self._told
            self._told.add(kind)
        if first:
            LOG.error("Answers of %s are not kept: %s. More of these are only counted.", self._header.model, why)

    # On the writer's thread

    def _run(self) -> None:
        while True:
            self._bell.acquire(timeout=PAUSE)
            closing = self._closing
            if self._writer is None:
                self._try(self._open_writer)
            # Asked before, so that whatever was answered before the request is in what is handed over.
            request = last_request(self._folder)
            is_asked = self._writer is not None and request > self._writer.request
            self._write_what_waits()
            segment = self._segment
            if segment is not None and (closing or is_asked or self._is_due(segment)):
                self._segment = None
                self._try(self._seal, segment)
            if self._writer is not None and is_asked and not self._writing and self._segment is None:
                with contextlib.suppress(OSError):  # it is done at the next turn, then
                    self._writer.hand_over(request)
            elif self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.beat()
            if closing and not self._packed:
                if self._writer is not None:
                    self._writer.close()
                return

    def _open_writer(self) -> None:
        make_folder(self._folder)
        remember_key(self._folder, [shape.name for shape in self._header.inputs if shape.key])
        self._writer = Writer(self._folder)

    def _seal(self, segment: SegmentWriter) -> None:
        try:
            segment.seal()
        finally:
            if segment.is_torn:
                self._segment = segment

    def _is_due(self, segment: SegmentWriter) -> bool:
        return segment.size > SEGMENT_BYTES or time.time() // SEGMENT_SECONDS != self._slot

    def _write_what_waits(self) -> None:
        # In this order, so that nothing which waits at this moment is missed: what the event loop took is packed then.
        youngest = self._encoded()  # of the last second, too few to be encoded yet
        while self._packing:
            time.sleep(0.0002)
        with contextlib.suppress(IndexError):
            while True:
                self._writing.append(self._packed.popleft())
        queued = sum(len(p.frame) for p in self._writing)
        for packed in youngest:
            if self._bytes_in - self._bytes_out + len(packed.frame) > self._limit:
                self._drop(packed.rows, "limit", self._too_much)
                continue
            self._bytes_out -= len(packed.frame)  # as long as it waits
            queued += len(packed.frame)
            self._writing.append(packed)
        if not self._writing:
            return
        error = self._try(self._append, self._writing)
        if self.mode == "async" and error is not None:
            return  # they are tried again each second: a full disk may be emptied before the memory is full
        done, self._writing = self._writing, []
        self._bytes_out += queued
        if error is None:
            self.written += sum(p.rows for p in done)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(_call_all, [p.then for p in done if p.then], error)

    def _append(self, packed: Sequence[_Packed]) -> None:
        failpoint("answers_write")
        segment, self._segment = self._segment, None  # after an error it is another one
        if segment is None:
            segment = SegmentWriter(self._folder, self._header, ahead=self.mode == "sync")
            self._slot = time.time() // SEGMENT_SECONDS
        try:
            segment.append([p.frame for p in packed], sum(p.rows for p in packed))
        except (OSError, FailpointError):
            if segment.is_torn:
                self._segment = segment
            raise
        self._segment = segment

    def _try(self, action: Callable[..., None], *arguments: Any) -> StorageError | None:
        """Do it; say once what is wrong, and once that it is well again."""
        what = f"The answers of {self._header.model} cannot be written"
        try:
            with told(what, THEN[self.mode]):
                action(*arguments)
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever it is
            says = str(error) if isinstance(error, SerenoError) else f"{what}: {error!r}. {THEN[self.mode]}"
            if not self._failing:
                LOG.error("%s", says)
            self._failing = True
            return StorageError(says)  # without a traceback: the cause is outside
        if self._failing:
            LOG.warning("The answers of %s are written again.", self._header.model)
        self._failing = False
        return None

    @property
    def _too_much(self) -> str:
        return f"more than {self._limit / (1 << 20):g} MB wait for the disk"


def _call_all(thens: Sequence[Then], error: StorageError | None) -> None:
    for then in thens:
        try:
            then(error)
        except Exception:  # one caller's trouble is not the next one's
            LOG.exception("Whoever waited for the answer log failed.")
