"""Lists become rows: by position or by name, and never by guessing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypedDict

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sereno import Fetched, Key
from sereno.rows import UNSET, RowDecoder, live_row
from sereno.schema import Column, RowType, row_type
from sereno.serve.protocols.positional import LONGEST, REMEMBERED, Positions
from sereno.serve.wire import RequestError
from sereno.values import Refused, admit_row
from tests.strategies import JSON_SCALARS, hostile, row_of, row_types


class Applicant(TypedDict):
    id: Key[int]
    age: int
    income: float | None


class Visitor(TypedDict):
    customer: Key[str]
    basket: list[str]
    bought: Fetched[list[str]]


class Word(TypedDict):
    id: Key[int]
    text: str


class Vector(TypedDict):
    x: list[float]


@dataclasses.dataclass
class Optional:
    a: int
    b: str = "none"


def positions_of(cls: type, keys_needed: bool = False) -> Positions:
    row = live_row(row_type(cls), keys_needed=keys_needed)
    return Positions(row, RowDecoder(row))


APPLICANTS = positions_of(Applicant)


def refused(error: RequestError) -> tuple[int, str, list[tuple[int, str, str]]]:
    return error.status, error.says, [tuple(m) for m in error.mistakes]


class TestByPosition:
    def test_all_columns_or_all_but_the_keys(self) -> None:
        assert APPLICANTS.by_position(3) == ("id", "age", "income")
        assert APPLICANTS.by_position(2) == ("age", "income")

    def test_any_other_number_of_values_is_told_what_would_be_valid(self) -> None:
        with pytest.raises(
            RequestError, match="^Rows by position must have 3 values \\(id, age, income\\), or 2 without id.$"
        ):
            APPLICANTS.by_position(4)

    def test_what_is_fetched_may_be_left_out_and_the_key_of_it_not(self) -> None:
        visitors = positions_of(Visitor, keys_needed=True)
        assert visitors.layouts == [("customer", "basket", "bought"), ("customer", "basket")]

    def test_two_readings_are_refused(self) -> None:
        columns = [Column(name="k", kind="int", role="key", default=None, nullable=True),
                   Column(name="x", kind="int"), Column(name="f", kind="int", role="fetched", default=UNSET)]  # fmt: skip
        row = row_of(*columns)
        positions = Positions(row, RowDecoder(row))
        with pytest.raises(RequestError, match="^Rows of 2 values could be k, x; or x, f. Name the columns.$"):
            positions.by_position(2)
        assert positions.by_position(3) == ("k", "x", "f")

    def test_a_column_with_a_default_is_there_by_position(self) -> None:
        assert positions_of(Optional).layouts == [("a", "b")]

    def test_rows_without_a_value_for_each_column_are_all_told(self) -> None:
        with pytest.raises(RequestError) as caught:
            APPLICANTS.mappings(None, [[1, 2, 3], [1], "abc", [1, 2]])
        expected = "must be a list of 3 values (id, age, income), or 2 without id"
        says = "Rows do not have a value for each column."
        assert refused(caught.value) == (422, says, [(1, "row", expected), (2, "row", expected)])

    def test_too_many_are_refused_before_anything_is_made_of_them(self) -> None:
        def check(rows: int) -> None:
            if rows > 2:
                raise RequestError(413, "Too many.")

        row = live_row(row_type(Applicant), keys_needed=False)
        positions = Positions(row, RowDecoder(row), check)
        for ask in (
            lambda: positions.mappings(None, [1, 1, 1]),
            lambda: positions.of_items([[], [], []]),
            lambda: positions.by_column({"age": [1, 2, 3], "income": [1, 2, 3]}),
        ):
            with pytest.raises(RequestError, match="Too many"):
                ask()

    def test_rows_with_and_without_keys_are_not_mixed(self) -> None:
        with pytest.raises(RequestError, match="must all have the same number of values"):
            APPLICANTS.mappings(None, [[1, 2, 3], [2, 3]])

    def test_no_rows(self) -> None:
        assert APPLICANTS.mappings(None, []) == []


class TestByName:
    def test_in_any_order_with_others_among_them(self) -> None:
        names = APPLICANTS.by_name(["income", "colour", "age"])
        assert APPLICANTS.mappings(names, [[1.5, "red", 40]]) == [{"income": 1.5, "colour": "red", "age": 40}]

    def test_numbers_from_zero_are_what_pandas_calls_columns_without_names(self) -> None:
        assert APPLICANTS.by_name([0, 1]) == ("age", "income")
        with pytest.raises(RequestError, match="must be texts"):
            APPLICANTS.by_name([1, 2])

    def test_a_column_that_is_missing(self) -> None:
        with pytest.raises(RequestError) as caught:
            APPLICANTS.by_name(["id"])
        says = "Columns of the row type of this model are missing."
        assert refused(caught.value) == (422, says, [(0, "age", "is absent"), (0, "income", "is absent")])

    def test_a_column_that_is_there_twice(self) -> None:
        with pytest.raises(RequestError, match="^Columns are there twice: age.$"):
            APPLICANTS.by_name(["age", "income", "age", "colour", "colour"])

    def test_a_row_of_another_width(self) -> None:
        with pytest.raises(RequestError) as caught:
            APPLICANTS.mappings(("age", "income"), [[1, 2], [1, 2, 3]])
        assert caught.value.mistakes[0].expected == "must be a list of 2 values, one for each of the columns"


class TestByColumn:
    def test_lists_are_columns(self) -> None:
        assert APPLICANTS.by_column({"age": [1, 2], "income": [3, 4], "colour": ["red"]}) == [
            {"age": 1, "income": 3},
            {"age": 2, "income": 4},
        ]

    def test_single_values_are_one_row(self) -> None:
        assert APPLICANTS.by_column({"age": 1, "income": None}) == [{"age": 1, "income": None}]

    def test_both_are_refused(self) -> None:
        with pytest.raises(RequestError, match="some are single values"):
            APPLICANTS.by_column({"age": 1, "income": [2]})

    def test_columns_of_different_length(self) -> None:
        with pytest.raises(RequestError, match="same number of values"):
            APPLICANTS.by_column({"age": [1], "income": [2, 3]})

    def test_a_list_may_be_a_value_or_a_column_of_them(self) -> None:
        visitors = positions_of(Visitor, keys_needed=True)
        one = {"customer": "c", "basket": ["wine"]}
        assert visitors.by_column(one) == [one]
        assert visitors.by_column({"customer": ["c"], "basket": [["wine"]]}) == [one]
        assert visitors.by_column({"customer": ["c", "d"], "basket": [[], None]})[0]["basket"] == []
        assert visitors.by_column({"customer": "c", "basket": []}) == [{"customer": "c", "basket": []}]


class TestItems:
    def test_objects_stay_as_they_are(self) -> None:
        assert APPLICANTS.of_items([{"age": 1}, {}]) == [{"age": 1}, {}]

    def test_lists_by_position(self) -> None:
        assert APPLICANTS.of_items([[1, 2]]) == [{"age": 1, "income": 2}]

    def test_single_values_where_one_column_is_enough(self) -> None:
        words = positions_of(Word)
        assert words.of_items(["a", "b"]) == [{"text": "a"}, {"text": "b"}]
        assert words.of_items([["a"], ["b"]]) == [{"text": "a"}, {"text": "b"}]
        assert words.of_items([[1, "a"]]) == [{"id": 1, "text": "a"}]

    def test_a_tensor_of_vectors(self) -> None:
        vectors = positions_of(Vector)
        rows = [{"x": [1.0, 2.0]}, {"x": []}]
        assert vectors.of_items([[1.0, 2.0], []]) == rows
        assert vectors.of_items([[[1.0, 2.0]], [[]]]) == rows

    @pytest.mark.parametrize(
        ("items", "says"),
        [
            ([1, 2], "Single values are rows of one column, but this model needs more. "),
            ([{"age": 1}, [1, 2]], "Rows must be all objects, or all lists."),
            ([[1, 2], 3], "Rows must be all objects, or all lists."),
        ],
    )  # fmt: skip
    def test_what_is_no_row(self, items: Sequence[Any], says: str) -> None:
        with pytest.raises(RequestError) as caught:
            APPLICANTS.of_items(items)
        assert caught.value.says.startswith(says)


class TestDecode:
    def test_names_are_read_once(self) -> None:
        positions = positions_of(Applicant)
        asked = []

        def names() -> tuple[str, ...]:
            asked.append(1)
            return ("income", "age")

        for _ in range(3):
            assert positions.decode(b"A", names, b"[[1.5, 40]]") == [(None, 40, 1.5)]
        assert len(asked) == 1

    def test_what_does_not_fit_is_left_to_the_slow_way(self) -> None:
        names = ("age", "income")
        for text in (b"[[1]]", b"[[1,2,3]]", b'[["a",2]]', b"[1]", b"{}", b"[[1,2]", b'[["\xff",1]]'):
            assert APPLICANTS.decode(b"B", lambda: names, text) is None

    def test_who_sends_ever_new_names_fills_no_memory(self) -> None:
        positions = positions_of(Applicant)
        names = ("age", "income")
        for i in range(2 * REMEMBERED):
            assert positions.decode(b"%d" % i, lambda: (*names, "other"), b"[]") == []
        assert len(positions._spelled) == REMEMBERED
        assert positions.decode(b" " * (LONGEST + 1), lambda: names, b"[]") is None
        assert positions.decode(b"many", lambda: (*names, *map(str, range(1000))), b"[]") is None

    def test_nor_does_it_slow_down_anybody_else(self) -> None:
        positions = positions_of(Applicant)
        names = ("age", "income")
        decode = positions._compiled(names)
        for i in range(2 * REMEMBERED):
            assert positions.decode(b" " * i, lambda: ("income", "age"), b"[[null, 40]]") == [(None, 40, None)]
        assert positions.decode(b"ours", lambda: names, b"[[40, 1.5]]") == [(None, 40, 1.5)]
        assert positions._spelled[b"ours"] is decode

    @settings(deadline=None)
    @given(st.data())
    def test_lists_decode_as_the_objects_of_the_same_values(self, data: st.DataObject) -> None:
        row: RowType = data.draw(row_types())
        decoder = RowDecoder(row)
        names = data.draw(st.permutations([c.name for c in row.columns]))
        some = {c.name: hostile(c, JSON_SCALARS) for c in row.columns}
        rows = data.draw(st.lists(st.fixed_dictionaries(some), max_size=3))
        text = json.dumps([[r[name] for name in names] for r in rows], default=str).encode()
        decoded = decoder.by_position(names)(text)
        if decoded is None:
            return  # the slow way says what it is
        values = [dict(zip(names, r, strict=True)) for r in json.loads(text)]
        assert decoded == [tuple(admit_row(row, value, "json").values()) for value in values]

    @settings(deadline=None)
    @given(st.data())
    def test_what_fits_decodes_the_fast_way(self, data: st.DataObject) -> None:
        columns = [Column(name=n, kind=k, nullable=True) for n, k in (("i", "int"), ("f", "float"), ("s", "str"))]
        row = row_of(*columns)
        names = data.draw(st.permutations(["i", "f", "s", "other"]))
        value = {"i": 1, "f": None, "s": "a", "other": {"x": [1]}}
        text = json.dumps([[value[n] for n in names]]).encode()
        assert RowDecoder(row).by_position(names)(text) == [(1, None, "a")]
        with pytest.raises(Refused):
            admit_row(row, {}, "json")
