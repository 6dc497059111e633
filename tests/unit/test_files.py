"""Files as sources: every line and every row is read once, and what is wrong with a file is told by its name."""

from __future__ import annotations

import gzip
import os
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno import Key
from sereno.adapters.files import (
    Piece,
    format_of,
    names_of,
    partition_of,
    read_csv,
    read_piece,
    spans,
    stamp,
)
from sereno.exceptions import InputError, SourceError
from sereno.schema import row_type


class Row(TypedDict):
    id: Key[int]
    x: str | None


class Daily(TypedDict):
    id: Key[int]
    day: date
    shop: int | None


ROW, DAILY = row_type(Row), row_type(Daily)


# Which files


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.parquet", "b.PARQUET", "c.snappy.parquet", "d.pq"], "parquet"),
        (["a.csv", "b.csv.gz"], "csv"),
        (["a.jsonl", "b.ndjson"], "jsonl"),
        (["a.parquet", "b.csv"], ".csv, .parquet"),
        (["a.jsonl.gz"], ".jsonl.gz"),
        (["a.gz"], ".gz"),
        (["a.xlsx"], ".xlsx"),
        (["README"], "README"),
    ],
)
def test_the_format_of_files(names: list[str], kind: str) -> None:
    files = [Path(n) for n in names]
    if "." in kind or kind == "README":
        with pytest.raises(SourceError) as caught:
            format_of(files, "src")
        assert f"The source src holds {kind}; valid is one kind of Parquet (.parquet), CSV" in str(caught.value)
    else:
        assert format_of(files, "src") == kind


def test_columns_in_a_path() -> None:
    path = Path("/data/day=2026-05-01/shop=a%20b/none=__HIVE_DEFAULT_PARTITION__/no-name=1/x=1.parquet")
    assert partition_of(path) == {"day": "2026-05-01", "shop": "a b", "none": None}


def test_a_stamp_changes_with_name_size_and_time(tmp_path: Path) -> None:
    def made(name: str, text: str = "x", at: int = 1) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(at, at))
        return stamp(name, path)

    stamps = [made("a"), made("b"), made("a", "xy"), made("a", "x", 2)]
    assert len(set(stamps)) == len(stamps)
    assert made("a") == stamps[0]


def test_names_tell_files_of_a_source_apart_and_move_with_it() -> None:
    for root in (Path("/here"), Path("/there/and/on")):
        assert names_of([root / "a.parquet"]) == ["a.parquet"]
        assert names_of([root / "north" / "a", root / "south" / "a"]) == ["north/a", "south/a"]
        assert names_of([root / "day=1" / "a"]) == ["day=1/a"] != names_of([root / "day=2" / "a"])


# JSON lines


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.booleans(), st.integers(1, 60), st.integers(1, 5))
def test_spans_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ends: bool, size: int, batch: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [f"{i}{'x' * length}".encode() for i, length in enumerate(lengths)]
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends and lines else b""))
    found = list(spans(path, size))
    assert [start for start, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert (found[-1][1] if found else 0) == path.stat().st_size
    pieces = [Piece(kind="json", path=str(path), span=span) for span in found]
    batches = [b for p in pieces for b in read_piece(p, ROW, batch)]
    assert [line for b in batches for line in b] == lines
    assert all(len(b) <= batch for b in batches)


def test_lines_with_a_mark_blanks_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\n  {"id": 2, "day": "2026-05-02"}\n[3]\n')
    piece = Piece(kind="json", path=str(path), partition={"day": "2026-05-01", "shop": None})
    assert list(read_piece(piece, DAILY, 2)) == [
        [b'{"day":"2026-05-01","shop":null,"id": 1}', b'{"day":"2026-05-01","shop":null,"id": 2, "day": "2026-05-02"}'],
        [b"[3]"],
    ]


# Parquet


def test_a_piece_of_parquet_has_the_declared_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"extra": [0] * 10, "id": range(10)}), path, row_group_size=4)
    piece = Piece(
        kind="parquet", path=str(path), row_groups=(0, 2), partition={"day": "2026-05-01", "shop": "3", "other": "x"}
    )
    batches = list(read_piece(piece, DAILY, 3))
    assert [b.num_rows for b in batches] == [3, 3]
    table = pa.Table.from_batches(batches)
    assert table["id"].to_pylist() == [0, 1, 2, 3, 8, 9]
    assert set(zip(table["day"].to_pylist(), table["shop"].to_pylist(), strict=True)) == {(date(2026, 5, 1), 3)}
    assert set(table.column_names) == {"id", "day", "shop"}
    with pytest.raises(
        InputError, match=r"The folder name day=today in .*a.parquet does not fit the row type: day: must be a date"
    ):
        list(read_piece(Piece(kind="parquet", path=str(path), partition={"day": "today"}), DAILY, 3))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,x\n1,a\n"])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(
        SourceError, match=r"a.parquet cannot be read as Parquet: .* It may be truncated or still being written"
    ):
        list(read_piece(Piece(kind="parquet", path=str(path)), ROW, 10))


def test_parquet_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(1000)}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.parquet broke off while it was read"):
        list(read_piece(Piece(kind="parquet", path=str(path)), ROW, 10))


# CSV

Rows = list[dict[str, Any]]
CSV: dict[str, tuple[bytes, Rows, list[tuple[str, str]]]] = {
    "plain": (b"id,x\n1,a\n2,\n", [{"id": "1", "x": "a"}, {"id": "2", "x": None}], []),
    "no last newline": (b"id,x\n1,a", [{"id": "1", "x": "a"}], []),
    "another order, and more": (b"x,z,id\na,?,1\n", [{"id": "1", "x": "a"}], []),
    "semicolons": (b"id;x\n1;a,b\n", [{"id": "1", "x": "a,b"}], []),
    "tabs": (b"id\tx\n1\ta\n", [{"id": "1", "x": "a"}], []),
    "a mark, and Windows": (b"\xef\xbb\xbfid,x\r\n1,a\r\n", [{"id": "1", "x": "a"}], []),
    "quotes": (b'"id","x"\n"1","a ""b"", c"\n', [{"id": "1", "x": 'a "b", c'}], []),
    "spaces in the header": (b"id, x\n1,a\n", [{"id": "1", "x": "a"}], []),
    "newlines in quotes": (b'id,x\n1,"a\nb"\n2,"c\n"\n', [{"id": "1", "x": "a\nb"}, {"id": "2", "x": "c\n"}], []),
    "empty text": (b'id,x\n1,""\n', [{"id": "1", "x": ""}], []),
    "no rows": (b"id,x\n", [], []),
    "only the key": (b"id\n1\n", [{"id": "1"}], []),
    "broken rows": (
        b"id,x\n1,a\n2,b,c\n3\n4,d\n",
        [{"id": "1", "x": "a"}, {"id": "4", "x": "d"}],
        [("2,b,c", "row 3: has 3 columns instead of 2"), ("3", "row 4: has 1 columns instead of 2")],
    ),
    "nothing but broken rows": (b"id,x\n1\n", [], [("1", "row 2: has 1 columns instead of 2")]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CSV)
def test_csv(tmp_path: Path, name: str, packed: bool) -> None:
    content, rows, broken = CSV[name]
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    read = list(read_csv(path, ROW))
    assert [row for batch, _ in read for row in batch.to_pylist()] == rows
    assert [line for _, lines in read for line in lines] == broken
    assert all(set(batch.schema.types) <= {pa.string()} for batch, _ in read)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "a.csv is empty: a CSV file starts with a line of column names"),
        (
            "a.csv",
            b"id,x\n1,\xff\n",
            "cannot be read as CSV: .* invalid UTF8 data. Have it written again, whole and as UTF-8",
        ),
        ("a.csv", b"id,\xff\n", "is no text in UTF-8"),
        ("a.csv", b'id,x\n1,"a\n2,b\n', "a quote that opens in its last row never closes"),
        ("a.csv", b'id,x\n1,"a\n2,b', "a quote that opens in its last row never closes"),
        ("a.csv", b'id,z\n1,"a\n2,b\n', "a quote that opens in its last row never closes"),
        ("a.csv", b'id,x\n"1,a\n2,b\n', "a quote that opens in row 2 never closes"),
        ("a.csv.gz", gzip.compress(b"id,x\n" + os.urandom(999).hex().encode())[:300], "Truncated|ended before"),
        ("a.csv.gz", b"id,x\n1,a\n", "is no text in UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words):
        list(read_csv(path, ROW))


def test_csv_with_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,x\n1,a,b\n")
    with pytest.raises(InputError, match=r"a.csv: column 'x' is there twice"):
        list(read_csv(path, ROW))


def test_a_large_csv_comes_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x\n" + "".join(f"{i},{'v' * 50}\n" for i in range(300_000)))
    batches = [batch for batch, _ in read_csv(path, ROW)]
    assert len(batches) > 1
    assert pa.Table.from_batches(batches)["id"].to_pylist() == [str(i) for i in range(300_000)]
