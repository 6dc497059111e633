"""The entries of an index: all rows of a snapshot, in order, with the bytes of a live answer, whatever the memory allows."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.exceptions import IndexingError
from sereno.lookup import entries as module
from sereno.lookup.entries import Entries
from sereno.lookup.keys import KeyCodec
from sereno.rows import AnswerEncoder
from tests.contract.export_targets import Maker
from tests.strategies import fitting_rows, row_types

DAY = date(2026, 5, 1)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(folder=tmp_path)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Everything beyond a few rows goes to the disk first. Gives how many rows each file got."""
    monkeypatch.setattr(module, "AT_ONCE", 600)
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    monkeypatch.setattr(module, "BATCH_ROWS", 10)
    monkeypatch.setattr(module, "MOST_RANGES", 3)
    files: list[int] = []
    remove = module._Spool.remove

    def count(spool: Any) -> None:
        files.append(spool.rows)
        remove(spool)

    monkeypatch.setattr(module._Spool, "remove", count)
    return files


def snapshot_of(maker: Maker, tables: Sequence[pa.Table], keys: Sequence[str]) -> Any:
    return dataclasses.replace(maker.snapshot(1, tables=tables), keys=tuple(keys))


def read(snapshot: Any, scratch: Path) -> tuple[list[bytes], list[bytes]]:
    keys: list[bytes] = []
    predictions: list[bytes] = []
    for some, of_them in Entries(snapshot).chunks(scratch):
        assert 0 < len(some) == len(of_them) <= module.CHUNK_ROWS
        keys += some
        predictions += of_them
    assert not scratch.exists()
    return keys, predictions


def expected(tables: Sequence[pa.Table], keys: Sequence[str]) -> list[tuple[bytes, bytes]]:
    codec = KeyCodec.of(tables[0].schema, keys)
    outputs = [name for name in tables[0].column_names if name not in keys]
    encode = AnswerEncoder(outputs).encode
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(
        (codec.encode(tuple(row[k] for k in keys)), encode(tuple(row[name] for name in outputs))) for row in rows
    )


def assert_right(maker: Maker, tables: Sequence[pa.Table], keys: Sequence[str] = ("id",)) -> None:
    found = read(snapshot_of(maker, tables, keys), maker.folder / "scratch")
    assert list(zip(*found, strict=True)) == expected(tables, keys)


KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "random": (pa.int64(), [i * 7919 % 1009 - 500 for i in range(300)]),
    "sequential": (pa.int64(), list(range(300))),
    "backwards": (pa.int64(), list(range(300, 0, -1))),
    "skewed": (pa.int64(), [*range(290), *(2**62 + i for i in range(10))]),
    "texts": (pa.string(), [str(i * 7919 % 1009) for i in range(300)]),  # "10" is less than "9", but longer
    "long texts": (pa.string(), [f"{'x' * 600}{i * 7919 % 1009}" for i in range(300)]),
    "dates": (pa.date32(), [date(1970, 1, 1) + timedelta(days=i * 7919 % 1009 - 500) for i in range(300)]),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("memory", ["enough memory", "little memory"])
def test_all_rows_in_the_order_of_their_keys(
    kind: str, memory: str, maker: Maker, request: pytest.FixtureRequest
) -> None:
    files = request.getfixturevalue("little_memory") if memory == "little memory" else []
    found, values = KEYS[kind]
    table = pa.table(
        {"id": pa.array(values, found), "score": [i / 7 for i in range(300)], "band": ["AB"[i % 2] for i in range(300)]}
    )
    assert_right(maker, [table.slice(0, 100), table.slice(100, 0), table.slice(100, 5), table.slice(105)])
    assert bool(files) == (memory == "little memory")


def test_composite_keys(maker: Maker, little_memory: list[int]) -> None:
    rows = [(f"c{i % 17}", date(2026, 1, 1) + timedelta(days=i), i) for i in range(200)]
    random.Random(1).shuffle(rows)
    names, days, numbers = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"name": names, "day": pa.array(days, pa.date32()), "number": numbers, "score": numbers})
    assert_right(maker, [table], ["name", "day", "number"])
    assert len(little_memory) > 3


def test_a_range_that_is_too_large_is_split_again(maker: Maker, little_memory: list[int]) -> None:
    table = pa.table({"id": list(range(2_000)), "score": [0.5] * 2_000})
    assert_right(maker, [table])
    assert len(little_memory) > 20


def test_rows_of_any_size(maker: Maker, little_memory: list[int]) -> None:
    texts = ["", "x" * 5_000, "y" * 3, None, '\n"\\\u2028\0', "z" * 2_000]
    assert_right(maker, [pa.table({"id": [5, 3, 1, 4, 2, 0], "text": texts})])
    assert_right(maker, [pa.table({"id": [7], "text": ["x" * 9_000]})])


def test_large_rows_make_small_chunks(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 10_000)
    table = pa.table({"id": list(range(40)), "text": ["x" * 1_000] * 40})
    snapshot = snapshot_of(maker, [table], ["id"])
    assert max(len(keys) for keys, _ in Entries(snapshot).chunks(tmp_path / "scratch")) < 10


TEXTS = {
    "texts": ["x" * 9_000] * 800,
    "that come late": ["x"] * 700 + ["y" * 9_000] * 100,
    "in lists": [[]] * 700 + [[{"name": "y" * 9_000, "n": 1}]] * 100,
    "after nulls": [None] * 700 + ["y" * 9_000] * 100,
    "null": [None] * 800,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_often_occurs_is_read_in_little_memory(
    kind: str, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file it takes no more than once."""
    monkeypatch.setattr(module, "READ_BYTES", 100_000)
    sizes = []
    really = module._PartFile.batches

    def batches(self: Any, group: int, names: Sequence[str]) -> Any:
        for batch in really(self, group, names):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(module._PartFile, "batches", batches)
    texts = pa.array(TEXTS[kind], None if kind != "null" else pa.string())
    assert_right(maker, [pa.table({"id": list(range(800)), "text": texts})])
    assert max(sizes) < 110_000
    assert len(sizes) < (100 if kind != "null" else 2)


def test_whoever_looks_may_end_the_work(maker: Maker, little_memory: list[int]) -> None:
    table = pa.table({"id": list(range(500)), "score": [0.5] * 500})
    snapshot = snapshot_of(maker, [table], ["id"])
    scratch = maker.folder / "scratch"
    looked: list[None] = []
    list(Entries(snapshot, lambda: looked.append(None)).chunks(scratch))
    assert len(looked) > 20

    def ends_after(times: int) -> Callable[[], None]:
        left = iter([*[1] * times, 0])

        def look() -> None:
            divmod(1, next(left))

        return look

    for times in range(0, len(looked), len(looked) // 20):
        with pytest.raises(ZeroDivisionError):
            list(Entries(snapshot, ends_after(times)).chunks(scratch))
        assert not scratch.exists()


def test_every_kind_of_value(maker: Maker) -> None:
    at = datetime(2026, 5, 1, 12, 30, 1, 5, tzinfo=UTC)
    table = pa.table(
        {
            "id": [1, 2],
            "day": pa.array([date(1, 1, 1), None], pa.date32()),
            "at": pa.array([at, None], pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "is_large": pa.array([True, None]),
            "count": pa.array([2**63 - 1, None]),
            "score": pa.array([-0.0, None]),
            "tags": pa.array([["a", None], None], pa.list_(pa.string())),
            "offers": pa.array([[{"day": DAY, "at": at, "price": Decimal("0.10")}], []]),
            'a "name"\n': ["x", None],
        }
    )
    for tables in ([table], [table.drop_columns(['a "name"\n'])]):
        assert_right(maker, tables)
    (_, one), (_, two) = expected([table.drop_columns(['a "name"\n'])], ["id"])
    assert one == (
        b'{"day":"0001-01-01","at":"2026-05-01T12:30:01.000005Z","price":"1.50","is_large":true,"count":9223372036854775807,'
        b'"score":-0.0,"tags":["a",null],"offers":[{"day":"2026-05-01","at":"2026-05-01T12:30:01.000005Z","price":"0.10"}]}'
    )
    assert two == (
        b'{"day":null,"at":null,"price":null,"is_large":null,"count":null,"score":null,"tags":null,"offers":[]}'
    )


@settings(max_examples=60)
@given(st.data())
def test_predictions_have_the_bytes_of_live_answers(data: st.DataObject) -> None:
    outputs = data.draw(row_types())
    rows = data.draw(st.lists(fitting_rows(outputs), min_size=1, max_size=8))
    answers = pa.Table.from_pylist(rows, schema=outputs.arrow_schema())
    table = answers.add_column(0, "id", pa.array(range(len(rows), 0, -1)))
    with tempfile.TemporaryDirectory() as folder:
        assert_right(Maker(folder=Path(folder)), [table.slice(0, 3), table.slice(3)] if len(rows) > 3 else [table])


def test_whoever_stops_early_leaves_nothing_behind(maker: Maker, little_memory: list[int]) -> None:
    snapshot = snapshot_of(maker, [pa.table({"id": list(range(500)), "score": [0.5] * 500})], ["id"])
    chunks = Entries(snapshot).chunks(maker.folder / "scratch")
    next(chunks)
    assert (maker.folder / "scratch").exists()
    chunks.close()
    assert not (maker.folder / "scratch").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "is missing."),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "is damaged: its SHA-256 is not that of what was published.",
        ),
        (lambda path: path.write_bytes(b""), "is damaged"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_parts_that_are_not_what_was_published(damage: Any, told: str, index: int, maker: Maker) -> None:
    snapshot = maker.snapshot(3)
    damage(snapshot.parts[index].path)
    with pytest.raises(IndexingError) as caught:
        list(Entries(snapshot).chunks(maker.folder / "scratch"))
    says = str(caught.value)
    assert says.startswith(f"Version 3 of model 'credit-scoring' cannot be looked up: {snapshot.parts[index].path} is ")
    assert told in says
    assert says.endswith("Restore the file from a backup, run data date 2026-05-01 again, or roll back.")


def test_a_damaged_page_in_a_part_with_the_right_hash(maker: Maker) -> None:
    """Of a part that was damaged before it was published."""
    snapshot = maker.snapshot(3)
    part = snapshot.parts[1]
    content = bytearray(part.path.read_bytes())
    content[10:200] = bytes(190)
    part.path.write_bytes(content)
    damaged = dataclasses.replace(part, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(IndexingError, match=r"part-00001\.parquet is damaged \("):
        list(
            Entries(dataclasses.replace(snapshot, parts=(snapshot.parts[0], damaged))).chunks(maker.folder / "scratch")
        )


def test_parts_with_other_columns(maker: Maker) -> None:
    tables = [pa.table({"id": [1], "score": [0.5]}), pa.table({"id": [2], "score": ["high"]})]
    with pytest.raises(IndexingError, match="has other columns than the parts before it"):
        list(Entries(snapshot_of(maker, tables, ["id"])).chunks(maker.folder / "scratch"))


def test_a_snapshot_without_parts(maker: Maker) -> None:
    with pytest.raises(IndexingError, match="Version 1 of model 'credit-scoring' has no rows to look up"):
        Entries(dataclasses.replace(maker.snapshot(1), parts=()))


def test_row_groups_of_any_number(maker: Maker, little_memory: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, path: write(table, path, row_group_size=4))
    monkeypatch.setattr(module, "SAMPLE", 20)
    table = pa.table({"id": [i * 7919 % 1009 for i in range(300)], "score": [0.5] * 300})
    assert_right(maker, [table])
