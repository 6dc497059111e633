"""Duplicate keys: found exactly, whatever the keys, in bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch import keys as module
from sereno.batch.keys import duplicates, hash_keys, repeated_hashes, write_hashes
from sereno.exceptions import StorageError

MODERATE = settings(max_examples=100, deadline=None)
HASHES = st.integers(0, 2**64 - 1)
INTS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3))
TEXTS = st.one_of(
    st.sampled_from(["", "a", "b", "ab", "ba", "é", "日本", "a\0", "\0a", "\0"]), st.text(st.characters(codec="utf-8"))
)
KINDS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): INTS,
    pa.string(): TEXTS,
    pa.date32(): st.one_of(st.dates(), st.dates(date(2026, 5, 1), date(2026, 5, 3))),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    types = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3))
    rows = draw(st.lists(st.tuples(*(KINDS[t] for t in types)), max_size=20))
    rows += draw(st.lists(st.sampled_from(rows), max_size=5)) if rows else []
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(types)
    return pa.table({f"k{i}": pa.array(c, t) for i, (c, t) in enumerate(zip(columns, types, strict=True))})


def keys_of(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


@MODERATE
@given(tables(), st.integers(0, 25))
def test_equal_keys_and_no_others_have_equal_hashes(table: pa.Table, cut: int) -> None:
    hashes = hash_keys(table)
    assert hashes.dtype == np.uint64
    first: dict[tuple[Any, ...], Any] = {}
    for key, value in zip(keys_of(table), hashes.tolist(), strict=True):
        assert first.setdefault(key, value) == value
    assert len(set(first.values())) == len(first)
    # a hash is the row's alone, and not its batch's
    assert hash_keys(table.slice(cut)).tolist() == hashes[cut:].tolist()


@pytest.mark.parametrize(
    "keys",
    [
        [f"customer-{i:07d}" for i in range(300_000)],
        [f"{i:x}" for i in range(300_000)],
        [str(i * 7919) for i in range(300_000)],
    ],
)
def test_ordinary_texts_do_not_collide(keys: list[str]) -> None:
    hashes = hash_keys(pa.table({"k": keys}))
    assert len(np.unique(hashes)) == len(keys)


def test_ordinary_composite_keys_do_not_collide() -> None:
    a, b = np.divmod(np.arange(400_000), 500)
    assert len(np.unique(hash_keys(pa.table({"a": a, "b": b})))) == 400_000
    assert len(np.unique(hash_keys(pa.table({"a": b - 250, "b": a, "c": [""] * 400_000})))) == 400_000


@MODERATE
@given(
    st.lists(
        st.lists(st.one_of(st.integers(0, 30), st.integers(2**64 - 5, 2**64 - 1), HASHES), max_size=30), max_size=9
    ),
    st.integers(1, 40),
    st.integers(2, 10),
)
def test_hashes_that_occur_twice_over_all_files(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], at_once: int, files_at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("hashes")
    paths = [folder / f"{i}.u64" for i in range(len(files))]
    for path, hashes in zip(paths, files, strict=True):
        write_hashes(path, np.array(hashes, np.uint64))
    every = sorted(h for f in files for h in f)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        patch.setattr(module, "FILES_AT_ONCE", files_at_once)
        found = [h for some in repeated_hashes(paths) for h in some.tolist()]
    assert found == sorted({h for h in every if every.count(h) > 1})
    assert sorted(folder.iterdir()) == paths  # what was merged is gone


@pytest.mark.parametrize("files_at_once", [4, 256])
def test_memory_does_not_depend_on_rows_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_at_once: int
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 10_000)
    monkeypatch.setattr(module, "FILES_AT_ONCE", files_at_once)
    files = [tmp_path / f"{i}.u64" for i in range(20)]
    for seed, file in enumerate(files):  # ordinary ones, and one whose every hash is the same
        hashes = np.random.default_rng(seed).integers(0, 2**64 - 1, 20_000, np.uint64)
        write_hashes(file, hashes if seed else np.full(200_000, 7, np.uint64))
    list(repeated_hashes(files))
    tracemalloc.start()
    try:
        assert [h for some in repeated_hashes(files) for h in some.tolist()] == [7]
        assert tracemalloc.get_traced_memory()[1] < 8 * 10_000 * 10
    finally:
        tracemalloc.stop()


def test_hashes_that_are_lost_while_they_are_read_do_not_hide_duplicates(tmp_path: Path) -> None:
    file = tmp_path / "1.u64"
    write_hashes(file, np.arange(100, dtype=np.uint64))
    stretch = module._Stretch(file, 10, 0, module.END)
    assert stretch.read()
    assert len(stretch.take(module.GREATEST)) == 10
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"1\.u64 became shorter while it was read"):
        stretch.read()


@MODERATE
@given(
    st.lists(st.lists(st.one_of(st.integers(0, 50), HASHES), max_size=60), min_size=1, max_size=5), st.integers(2, 8)
)
def test_every_hash_is_in_one_range(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], threads: int
) -> None:
    folder = tmp_path_factory.mktemp("hashes")
    paths = [folder / f"{i}.u64" for i in range(len(files))]
    for path, hashes in zip(paths, files, strict=True):
        write_hashes(path, np.array(hashes, np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", 5)
        patch.setattr(module, "MOST_FOUND", 3)
        patch.setattr(module, "cores", lambda: threads)
        ranges = module._ranges(paths, threads)
        seen = [h for low, high in ranges for some in module._ascending(paths, low, high) for h in some.tolist()]
        found = [h for some in repeated_hashes(paths) for h in some.tolist()]
    assert (ranges[0][0], ranges[-1][1]) == (0, 2**64)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    every = sorted(h for f in files for h in f)
    assert seen == sorted(seen)
    assert {h: min(seen.count(h), 2) for h in seen} == {h: min(every.count(h), 2) for h in every}
    assert found == sorted({h for h in every if every.count(h) > 1})


def test_only_parts_that_may_hold_a_repeated_key_are_read_again(tmp_path: Path) -> None:
    parts, files = [], []
    for i, ids in enumerate(([1, 2], [3, 4], [2, 5])):
        parts.append(tmp_path / f"{i}.parquet")
        files.append(tmp_path / f"{i}.u64")
        pq.write_table(pa.table({"id": ids}), parts[-1])
        write_hashes(files[-1], np.array(ids, np.uint64))
    parts[1].unlink()
    assert duplicates(parts, files, ["id"]) == ({0: [(1, (2,))], 2: [(0, (2,))]}, True)


@pytest.mark.parametrize("collide", [False, True])
def test_duplicates_are_exact_even_where_hashes_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collide: bool
) -> None:
    if collide:
        monkeypatch.setattr(module, "hash_keys", lambda table: np.full(table.num_rows, 7, np.uint64))
    parts = [
        pa.table({"id": [1, 2, 3, 2], "day": ["a", "a", "a", "b"], "y": [0.1] * 4}),
        pa.table({"id": [9], "day": ["z"], "y": [0.1]}),
        pa.table({"id": [2, 3, 3, 4], "day": ["b", "c", "a", ""], "y": [0.1] * 4}),
    ]
    paths, files = [], []
    for i, part in enumerate(parts):
        paths.append(tmp_path / f"{i}.parquet")
        files.append(tmp_path / f"{i}.u64")
        pq.write_table(part, paths[-1], row_group_size=3)
        write_hashes(files[-1], module.hash_keys(part.select(["id", "day"])))
    found, every_one = duplicates(paths, files, ["id", "day"])
    assert every_one
    assert found == {
        0: [(2, (3, "a")), (3, (2, "b"))],
        2: [(0, (2, "b")), (2, (3, "a"))],
    }
    assert duplicates(paths[1:2], files[1:2], ["id", "day"]) == ({}, True)
    assert duplicates([], [], ["id"]) == ({}, True)
    some, every_one = duplicates(paths, files, ["id", "day"], enough=1)
    keys = {key for rows in found.values() for _, key in rows}
    named = {key for rows in some.values() for _, key in rows}
    # one hash at a time: where all keys collide, that is all of them; else the search ends with the first duplicate
    assert (named, every_one) == (keys, True) if collide else named < keys and named and not every_one
