"""An object as a file that is read, its stretches fetched before they are asked for: reading overlaps predicting.

A request to an object store takes long to begin, and several at once take no longer than one. Whoever knows what it will
read says so (`expect`); the rest is fetched when it is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from sereno.exceptions import ChangedError, StorageError
from sereno.object_path import Object, ObjectPath

if TYPE_CHECKING:
    import pyarrow.parquet as pq

AT_ONCE = 4  # requests
REQUEST = 8 << 20  # bytes of the largest one
AHEAD = 32 << 20  # bytes that are fetched and not read yet
MOST = 4 * AHEAD  # where they are read in another order than was told
WHOLE = 16 << 20  # bytes of a row group up to which its columns are fetched one after the other
LEAST = 512 << 10  # bytes of a column's stretch, where they are fetched side by side
GAP = 128 << 10  # bytes that nobody wants, and that cost less than a request of their own


class Span(NamedTuple):
    """A stretch of an object, as one request."""

    start: int
    end: int
    wanted: int  # bytes of it that will be read


class FetchedFile(io.RawIOBase):
    """One object, read where it is asked for. Raises ChangedError where it was written anew since, or is gone."""

    def __init__(self, path: ObjectPath, known: Object | None = None) -> None:
        """`known`: what the store said of it. Raises FileNotFoundError, StorageError."""
        self.known = known or path.look()
        self.path, self._size = path, self.known.size
        self._at = 0
        self._expected: dict[Span, None] = {}  # in the order in which they are fetched
        self._fetched: dict[Span, Future[bytes]] = {}
        self._unread: dict[Span, int] = {}  # bytes of those
        self._threads: ThreadPoolExecutor | None = None

    def expect(self, spans: Iterable[Span]) -> None:
        """Fetch these now, in this order and up to AHEAD: they will be read, each byte once."""
        self._expected |= dict.fromkeys(span for span in spans if span not in self._fetched)
        self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        while self._expected and (not self._fetched or self._bytes < AHEAD):
            self._fetch(next(iter(self._expected)))

    @property
    def _bytes(self) -> int:
        return sum(span.end - span.start for span in self._fetched)

    def _fetch(self, span: Span) -> None:
        del self._expected[span]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetched")
        self._fetched[span] = self._threads.submit(self._range, span.start, span.end)
        self._unread[span] = span.wanted
        while self._bytes > MOST and len(self._fetched) > 1:
            self._drop(next(iter(self._fetched)))

    def _drop(self, span: Span) -> None:
        del self._fetched[span], self._unread[span]

    def _range(self, start: int, end: int) -> bytes:
        try:
            content = self.path.read_range(start, end - start, self.known.tag)
        except OSError as error:
            raise ChangedError(
                f"{self.path} changed while it was read. Nothing was published; start the run again when it is whole."
            ) from error
        if len(content) != end - start:
            raise StorageError(
                f"{self.path} cannot be read: its store gave {len(content):,} of {end - start:,} bytes. Start it again."
            )
        return content

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        pieces: list[bytes | memoryview] = []
        while self._at < end:
            piece = self._piece(end)
            self._at += len(piece)
            pieces.append(piece)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _piece(self, end: int) -> bytes | memoryview:
        """Some bytes from where we are, at most up to `end`."""
        span = self._span_here()
        if span is None:
            starts = [one.start for one in (*self._fetched, *self._expected) if one.start > self._at]
            return self._range(self._at, min([end, self._at + REQUEST, *starts]))
        content = self._fetched[span].result()
        if self._at > span.start or end < span.end:
            piece: bytes | memoryview = memoryview(content)[self._at - span.start : end - span.start]
        else:
            piece = content
        self._unread[span] -= len(piece)
        if self._unread[span] <= 0:
            self._drop(span)
            self._fetch_ahead()
        return piece

    def _span_here(self) -> Span | None:
        for span in self._fetched:
            if span.start <= self._at < span.end:
                return span
        for span in self._expected:
            if span.start <= self._at < span.end:
                self._fetch(span)
                return span
        return None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """What is on its way is not waited for."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self._fetched.clear()
        super().close()


def stretches(start: int, end: int) -> list[Span]:
    """Bytes that are read from first to last, as requests."""
    return [Span(at, min(at + REQUEST, end), min(REQUEST, end - at)) for at in range(start, end, REQUEST)]


def row_group_spans(metadata: pq.FileMetaData, groups: Sequence[int], columns: Iterable[str]) -> Iterator[Span]:
    """What is read of a Parquet file for some columns of some row groups, about in the order in which it is."""
    wanted, names = set(columns), set(metadata.schema.to_arrow_schema().names)

    def is_wanted(path: str) -> bool:  # of what is nested: "order.lines.list.element"
        return (path if path in names else path.partition(".")[0]) in wanted

    for group in groups:
        described = metadata.row_group(group)
        chunks = [described.column(index) for index in range(described.num_columns)]
        extents = sorted(_extent(chunk) for chunk in chunks if is_wanted(chunk.path_in_schema))
        if sum(end - start for start, end in extents) <= WHOLE:
            yield from _requests(extents, GAP)
        else:
            yield from _requests(_side_by_side(extents), 0)


def _extent(chunk: Any) -> tuple[int, int]:
    first = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        first = min(first, chunk.dictionary_page_offset)
    return first, first + chunk.total_compressed_size


def _side_by_side(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Columns of a large row group are read at once, each a little: that is the order in which they are fetched."""
    total = sum(end - start for start, end in extents)
    parts = []
    for start, end in extents:
        step = max(LEAST, (end - start) * WHOLE // total)
        parts += [((at - start) / (end - start), at, min(at + step, end)) for at in range(start, end, step)]
    return [(start, end) for _, start, end in sorted(parts)]


def _requests(extents: Iterable[tuple[int, int]], gap: int) -> Iterator[Span]:
    """Neighbours as one request, and none that is too large."""
    start = last = wanted = 0
    for first, end in extents:
        for at in range(first, end, REQUEST):
            until = min(at + REQUEST, end)
            if not wanted or not 0 <= at - last <= gap or until - start > REQUEST:
                if wanted:
                    yield Span(start, last, wanted)
                start, wanted = at, 0
            last, wanted = until, wanted + until - at
    if wanted:
        yield Span(start, last, wanted)
