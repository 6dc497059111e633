"""Keys of lookups: texts, JSON and columns give the same key, and no two keys have the same bytes."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.exceptions import IndexingError
from sereno.lookup.keys import KeyCodec, KeyKind
from sereno.values import Refused

INT, STR, DATE = (KeyCodec((name,), (kind,)) for name, kind in (("id", "int"), ("name", "str"), ("day", "date")))
PAIR = KeyCodec(("id", "day"), ("int", "date"))
ARROW: dict[KeyKind, pa.DataType] = {"int": pa.int64(), "str": pa.string(), "date": pa.date32()}
INTS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1]))
TEXTS = st.one_of(
    st.sampled_from(
        ["", "a", "b", "ab", "\0", "\0\0", "a\0", "é", "日本", "x" * 505, "x" * 506, "x" * 507, "x" * 2000]
    ),
    st.text(st.characters(codec="utf-8")),
    st.builds(
        lambda text, times: "y" * times + text, st.text("ab\0", max_size=3), st.sampled_from([470, 500, 506, 600])
    ),
)
DATES = st.one_of(st.dates(), st.dates(date(1969, 12, 30), date(1970, 1, 2)))
VALUES: dict[KeyKind, st.SearchStrategy[Any]] = {"int": INTS, "str": TEXTS, "date": DATES}


@st.composite
def keys(draw: st.DrawFn) -> tuple[KeyCodec, list[tuple[Any, ...]]]:
    kinds: list[KeyKind] = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=3))
    codec = KeyCodec(tuple(f"k{i}" for i in range(len(kinds))), tuple(kinds))
    return codec, draw(st.lists(st.tuples(*(VALUES[kind] for kind in kinds)), max_size=20))


def table_of(codec: KeyCodec, rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(codec.kinds)
    return pa.table({n: pa.array(c, ARROW[k]) for n, k, c in zip(codec.names, codec.kinds, columns, strict=True)})


@settings(max_examples=200)
@given(keys(), st.integers(0, 25))
def test_a_table_of_keys_has_the_bytes_of_each(drawn: tuple[KeyCodec, list[tuple[Any, ...]]], cut: int) -> None:
    codec, rows = drawn
    table = table_of(codec, rows)
    assert KeyCodec.of(table.schema, codec.names) == codec
    found = codec.encode_table(table)
    assert found == [codec.encode(row) for row in rows]
    assert all(0 < len(key) <= 511 for key in found)
    assert codec.encode_table(table.slice(cut)) == found[cut:]
    assert codec.encode_table(pa.concat_tables([table.slice(0, cut), table.slice(cut)])) == found


@settings(max_examples=200)
@given(keys())
def test_no_two_keys_have_the_same_bytes(drawn: tuple[KeyCodec, list[tuple[Any, ...]]]) -> None:
    codec, rows = drawn
    assert len({codec.encode(row) for row in rows}) == len(set(rows))


@settings(max_examples=200)
@given(keys())
def test_texts_and_json_give_the_key(drawn: tuple[KeyCodec, list[tuple[Any, ...]]]) -> None:
    codec, rows = drawn
    for row in rows:
        texts = [str(value) for value in row]
        assert codec.of_texts(texts) == row
        as_json = [str(value) if isinstance(value, date) else value for value in row]
        assert codec.of_value(as_json if codec.single is None else as_json[0]) == row


def test_the_bytes_on_disk_stay_what_they_are() -> None:
    assert INT.encode((-1,)) == bytes.fromhex("7fffffffffffffff")
    assert INT.encode((258,)) == bytes.fromhex("8000000000000102")
    assert DATE.encode((date(1970, 1, 2),)) == bytes.fromhex("80000001")
    assert DATE.encode((date(1969, 12, 31),)) == bytes.fromhex("7fffffff")
    assert STR.encode(("é",)) == b"\0\0\0\2\xc3\xa9"
    assert PAIR.encode((0, date(1970, 1, 1))) == bytes.fromhex("800000000000000080000000")
    assert len(STR.encode(("x" * 506,))) == 510
    long = STR.encode(("x" * 507,))
    assert (len(long), long[:479]) == (511, b"\0\0\1\xfb" + b"x" * 475)


@settings(max_examples=200)
@given(INTS, INTS, DATES, DATES)
def test_numbers_and_dates_are_in_their_order(a: int, b: int, day: date, other: date) -> None:
    assert (INT.encode((a,)) < INT.encode((b,))) == (a < b)
    assert (PAIR.encode((a, day)) < PAIR.encode((b, other))) == ((a, day) < (b, other))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+7",
        "007",
        "-0",
        "-",
        "7.0",
        "7 ",
        " 7",
        "1e3",
        "٣",
        "9223372036854775808",
        "-9223372036854775809",
        "7" * 9999,
    ],
)
def test_texts_that_are_no_whole_number(text: str) -> None:
    with pytest.raises(Refused) as refused:
        INT.of_texts([text])
    assert refused.value.mistakes == (("id", "must be a whole number"),)


@pytest.mark.parametrize(
    "text", ["", "2026-2-3", "20260203", "2026-02-30", "2026-02-03T00:00:00", "0000-01-01", "２026-02-03"]
)
def test_texts_that_are_no_date(text: str) -> None:
    with pytest.raises(Refused) as refused:
        DATE.of_texts([text])
    assert refused.value.mistakes == (("day", "must be a date (YYYY-MM-DD)"),)


def test_a_lone_surrogate_is_no_text() -> None:
    for refuse in (lambda: STR.of_texts(["\ud800"]), lambda: STR.of_value("\ud800")):
        with pytest.raises(Refused, match="name: must be text"):
            refuse()


def test_all_mistakes_are_told() -> None:
    for refuse in (lambda: PAIR.of_texts(["x", "y"]), lambda: PAIR.of_value(["x", "y"])):
        with pytest.raises(Refused) as refused:
            refuse()
        assert refused.value.mistakes == (("id", "must be a whole number"), ("day", "must be a date (YYYY-MM-DD)"))


@pytest.mark.parametrize("texts", [[], ["1"], ["1", "2026-05-01", ""]])
def test_another_count_of_values(texts: list[str]) -> None:
    for refuse in (lambda: PAIR.of_texts(texts), lambda: PAIR.of_value(texts)):
        with pytest.raises(Refused, match=r"key: must have 2 values \(id, day\)"):
            refuse()


def test_one_value_is_asked_for() -> None:
    for texts in ([], ["1", "2"]):
        with pytest.raises(Refused, match="id: must be one value, a whole number"):
            INT.of_texts(texts)


@pytest.mark.parametrize("value", [True, "7", 7.5, 2**63, 1e300, None, [7], {}, {"id": 7}])
def test_json_that_is_no_whole_number(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        INT.of_value(value)
    assert refused.value.mistakes[0][0] == "id"


def test_a_whole_number_may_have_a_point_in_json() -> None:
    (value,) = INT.of_value(7.0)
    assert (value, type(value)) == (7, int)


def test_what_cannot_be_a_key() -> None:
    with pytest.raises(IndexingError, match=r"Column 'score' is double, and cannot be the key of a lookup\. A key is"):
        KeyCodec.of(pa.schema([("score", pa.float64())]), ["score"])
    with pytest.raises(IndexingError, match="Column 'id' is not there"):
        KeyCodec.of(pa.schema([("score", pa.float64())]), ["id"])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, sereno.lookup.keys as k, sereno.lookup.pointer; k.KeyCodec(('a',), ('int',)).of_value(7.0);"
        "print([m for m in ('pyarrow', 'numpy', 'lmdb', 'deltalake') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(
    st.one_of(
        INTS.map(lambda n: str(n).encode()),
        st.from_regex(rb"[+ -]?0?[0-9_]{0,22}", fullmatch=True),
        st.binary(max_size=8),
    )
)
def test_the_short_way_to_a_whole_number_is_the_long_one(sent: bytes) -> None:
    found = KeyCodec(("id",), ("int",)).plain(sent)
    if found is not None:
        codec = KeyCodec(("id",), ("int",))
        assert found == codec.encode(codec.of_texts([sent.decode()]))


@given(
    st.one_of(st.from_regex(rb"[A-Za-z0-9._~%/ -]{0,20}", fullmatch=True), st.binary(max_size=8), st.just(b"a" * 500))
)
def test_the_short_way_to_a_text_is_the_long_one(sent: bytes) -> None:
    codec = KeyCodec(("id",), ("str",))
    found = codec.plain(sent)
    if found is not None:
        assert found == codec.encode(codec.of_texts([unquote(sent.decode())]))


def test_most_keys_go_the_short_way() -> None:
    assert all(KeyCodec(("id",), ("int",)).plain(b"%d" % number) for number in (0, 7, 10**17))
    assert all(KeyCodec(("id",), ("str",)).plain(text) for text in (b"a", b"Z-9_~.", b"x" * 500))
    assert KeyCodec(("day",), ("date",)).plain(b"2026-05-01") is None
    assert KeyCodec(("a", "b"), ("int", "int")).plain(b"7") is None
