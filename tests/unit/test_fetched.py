"""Objects that are read as files, their stretches fetched ahead."""

from __future__ import annotations

import io
import itertools
import threading
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.adapters import fetched
from sereno.adapters.fetched import FetchedFile, Span, row_group_spans, stretches
from sereno.exceptions import ChangedError, StorageError
from sereno.object_path import Object, ObjectPath

WHEN = datetime(2026, 5, 1, tzinfo=UTC)


class Stored(ObjectPath):
    """An object that lies in memory; it notes what it is asked for."""

    __slots__ = ("asked", "content", "wrong")

    def __new__(cls, content: bytes, wrong: BaseException | int | None = None) -> Stored:
        return object.__new__(cls)

    def __init__(self, content: bytes, wrong: BaseException | int | None = None) -> None:
        inner = ObjectPath.of("s3://bank/in/a.parquet")
        super().__init__(inner._root, inner._key)
        self.content, self.wrong, self.asked = content, wrong, list[tuple[int, int]]()

    def look(self) -> Object:
        return Object(size=len(self.content), tag="t", modified_at=WHEN)

    def read_range(self, start: int, length: int, tag: str = "") -> bytes:
        assert tag == "t"
        self.asked.append((start, start + length))
        if isinstance(self.wrong, BaseException):
            raise self.wrong
        return self.content[start : start + length - (self.wrong or 0)]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.binary(max_size=400), st.integers(1, 60), st.integers(1, 100))
def test_whatever_is_expected_the_bytes_are_those_of_the_object(
    data: st.DataObject, content: bytes, request: int, ahead: int
) -> None:
    sizes = {"REQUEST": request, "AHEAD": ahead, "MOST": 2 * ahead}
    edges = st.integers(0, len(content))
    with mock.patch.multiple(fetched, **sizes), FetchedFile(Stored(content)) as file:
        for _ in range(data.draw(st.integers(0, 4))):
            first, last = sorted((data.draw(edges), data.draw(edges)))
            file.expect(stretches(first, last))
        for _ in range(data.draw(st.integers(0, 8))):
            at, size = data.draw(edges), data.draw(st.integers(-1, len(content) + 3))
            assert file.seek(at) == at == file.tell()
            assert file.read(size) == (content[at:] if size < 0 else content[at : at + size])
        assert file.seek(-min(3, len(content)), io.SEEK_END) == max(0, len(content) - 3)
        assert io.BufferedReader(file, 7).read() == content[max(0, len(content) - 3) :]  # type: ignore[arg-type]


def test_what_is_read_in_order_is_fetched_once_and_ahead() -> None:
    stored = Stored(bytes(range(256)) * 4)
    with mock.patch.multiple(fetched, REQUEST=100, AHEAD=250), FetchedFile(stored) as file:
        file.expect(stretches(24, 1024))
        file.seek(24)
        assert len(file._fetched) == 3  # so many bytes, and no more, wait to be read
        while part := file.read(64):
            assert part == stored.content[file.tell() - len(part) : file.tell()]
    assert sorted(stored.asked) == [(start, min(start + 100, 1024)) for start in range(24, 1024, 100)]


def test_requests_go_on_while_nobody_reads() -> None:
    begun = threading.Semaphore(0)

    class Waits(Stored):
        def read_range(self, start: int, length: int, tag: str = "") -> bytes:
            begun.release()
            return super().read_range(start, length, tag)

    with mock.patch.multiple(fetched, REQUEST=100), FetchedFile(Waits(bytes(1000))) as file:
        file.expect(stretches(0, 1000))
        for _ in range(10):
            assert begun.acquire(timeout=10)


def test_a_changed_object_and_one_that_is_cut_off_are_told() -> None:
    for wrong in (OSError("s3://bank/in/a.parquet was written anew"), FileNotFoundError("gone")):
        with (
            FetchedFile(Stored(b"abc", wrong)) as file,
            pytest.raises(ChangedError, match=r"a\.parquet changed while it was read\. Nothing was published"),
        ):
            file.read()
    with FetchedFile(Stored(b"abc", 1)) as file, pytest.raises(StorageError, match="gave 2 of 3 bytes"):
        file.read()


def a_table(rows: int) -> pa.Table:
    numbers = pa.array(range(rows))
    nested = pa.array([[i, i + 1] for i in range(rows)])
    return pa.table({"a": numbers, "b": numbers.cast("string"), "unread": nested, "a.b": numbers, "c": nested})


@pytest.mark.parametrize("whole", [16 << 20, 4_000])
def test_a_parquet_file_is_read_by_what_was_expected(tmp_path: Path, whole: int) -> None:
    """Column after column where a row group is small, else side by side: each byte is asked for once."""
    table = a_table(3_000)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1_000, data_page_size=1_000)
    stored = Stored((tmp_path / "a.parquet").read_bytes())
    sizes = {"WHOLE": whole, "LEAST": 500, "REQUEST": 20_000}
    with mock.patch.multiple(fetched, **sizes), FetchedFile(stored) as source:
        file = pq.ParquetFile(source, pre_buffer=False, buffer_size=1_000)
        stored.asked.clear()
        source.expect(row_group_spans(file.metadata, [0, 2], ["a", "b", "c"]))
        batches = [*file.iter_batches(100, row_groups=[0, 2], columns=["a", "b", "c"], use_threads=False)]
        assert not source._fetched
        assert not source._expected
    wanted = pa.concat_tables([table.slice(0, 1_000), table.slice(2_000)]).select(["a", "b", "c"])
    assert pa.Table.from_batches(batches).to_pylist() == wanted.to_pylist()
    spans = sorted(stored.asked)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 90)), max_size=8), st.integers(1, 60), st.integers(0, 30))
def test_requests_hold_every_wanted_byte_once(steps: list[tuple[int, int]], request: int, gap: int) -> None:
    extents, at = list[tuple[int, int]](), 0
    for skipped, length in steps:
        extents.append((at + skipped, at + skipped + length))
        at += skipped + length
    with mock.patch.multiple(fetched, REQUEST=request):
        spans = list(fetched._requests(extents, gap))
    assert all(0 < span.end - span.start <= request for span in spans)
    assert sum(span.wanted for span in spans) == sum(end - start for start, end in extents)
    covered = {byte for span in spans for byte in range(span.start, span.end)}
    assert sum(span.end - span.start for span in spans) == len(covered)
    assert covered >= {byte for start, end in extents for byte in range(start, end)}
    assert all(isinstance(span, Span) for span in spans)


def test_a_file_that_is_closed_fetches_no_more() -> None:
    stored = Stored(bytes(1000))
    file = FetchedFile(stored)
    with mock.patch.multiple(fetched, REQUEST=10, AHEAD=10):
        file.expect(stretches(0, 1000))
    file.close()
    assert file.closed
    assert len(stored.asked) <= 2
