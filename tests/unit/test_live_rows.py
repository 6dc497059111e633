"""Rows of requests: decoded as the reference says, with all their mistakes, under caps; and scored as a run scores them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import string
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sereno import Digits, Fetched, Key, Model
from sereno.exceptions import ModelFileError, OutputError, PredictError
from sereno.rows import UNSET, Row, RowDecoder, live_row, table_of
from sereno.schema import RowType, row_type
from sereno.scoring import RowScorer, Scorer
from sereno.serve.live import Live
from sereno.serve.metrics import Metrics
from sereno.serve.wire import RequestError
from sereno.settings import ModelSettings, ServeSettings
from sereno.values import Refused, admit_row
from tests.lives import Applicant, Score, live_of, live_with
from tests.strategies import JSON_SCALARS, fitting_rows, hostile_rows, row_types

MODERATE = settings(max_examples=300, deadline=None)
LIVE = live_of(Applicant, Score)
ROW = {"id": 1, "age": 30, "income": 2.5, "purpose": "car", "since": "2026-05-01", "tags": None}


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, to the sign of zero."""
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return isinstance(b, float) and a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b) and (type(a) is type(b) or isinstance(a, date))


# One row


@st.composite
def live_types(draw: st.DrawFn) -> RowType:
    """A row type as live requests may send it: some columns are keys, some are fetched."""
    row = draw(row_types())
    columns = []
    for column in row.columns:
        role: Any = draw(st.sampled_from(["feature", "feature", "key", "fetched"]))
        columns.append(dataclasses.replace(column, role=role))
    return live_row(dataclasses.replace(row, columns=tuple(columns)), keys_needed=draw(st.booleans()))


def by_reference(row: RowType, value: Any) -> tuple[Row | None, list[tuple[str, str]]]:
    """The row, or else its mistakes."""
    try:
        return tuple(admit_row(row, value, "json").values()), []
    except Refused as refused:
        return None, list(refused.mistakes)


def decoded(decode: Callable[[Any], Row], given_: Any) -> tuple[Row | None, list[tuple[str, str]]]:
    try:
        return decode(given_), []
    except Refused as refused:
        return None, list(refused.mistakes)


@MODERATE
@given(st.data())
def test_a_row_decodes_as_the_reference_says(data: st.DataObject) -> None:
    row = data.draw(live_types())
    value = data.draw(st.one_of(hostile_rows(row, JSON_SCALARS), fitting_rows(row)))
    value |= data.draw(st.dictionaries(st.sampled_from(["more", "", '"', "A"]), JSON_SCALARS, max_size=1))
    text = _to_json(value)
    plain = msgspec.json.decode(text)
    expected, mistakes = by_reference(row, plain)
    decoder = RowDecoder(row)
    for found, told in (decoded(decoder.decode, text), decoded(decoder.convert, plain)):
        assert told == mistakes
        assert same(found, expected)


@MODERATE
@given(
    value=st.recursive(JSON_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_json_that_is_no_object_decodes_as_the_reference_says(value: Any) -> None:
    text = msgspec.json.encode(value)
    assert decoded(LIVE.decoder.decode, text) == by_reference(LIVE.row, msgspec.json.decode(text))


@pytest.mark.parametrize(
    ("text", "age"),
    [
        (b'{"id": 1, "age": 30, "age": 40, "income": 1, "purpose": "car", "since": "2026-05-01", "tags": []}', 40),
        (b'{"age": "x", "id": 1, "age": 40, "income": 1, "purpose": "car", "since": "2026-05-01", "tags": []}', 40),
        (b'{"age": 40, "id": 1, "age": "x", "income": 1, "purpose": "car", "since": "2026-05-01", "tags": []}', None),
    ],
)
def test_of_a_name_that_comes_twice_the_last_value_counts(text: bytes, age: int | None) -> None:
    row, mistakes = decoded(LIVE.decoder.decode, text)
    assert (row[1] if row else None) == age
    assert mistakes == ([] if age else [("age", "must be a whole number")])


@pytest.mark.parametrize(
    "text", [b"", b"nothing", b"{", b'{"id": 1', b"[1", b"\xff", b'{"id": 01}', b"[" * 100_000, b"1" * 5_000]
)
def test_what_is_no_json(text: bytes) -> None:
    live = live_of(Applicant, Score, max_depth=1_000_000)  # so that the decoder sees it
    for decode in (live.decode, live.decode_many):
        with pytest.raises(RequestError) as error:
            decode(text)
        assert (error.value.status, str(error.value)) == (400, "The body is not JSON.")


def test_all_mistakes_of_a_row_and_never_a_value() -> None:
    bad = {"id": "secret", "age": 17, "income": "secret", "purpose": "secret", "since": "2026-13-01"}
    with pytest.raises(RequestError, match=r"^A row does not fit the row type of this model\.$") as error:
        LIVE.decode(json.dumps(bad).encode())
    assert error.value.status == 422
    assert [tuple(m) for m in error.value.mistakes] == [
        (0, "id", "must be a whole number"),
        (0, "age", "must be at least 18"),
        (0, "income", "must be a number"),
        (0, "purpose", "must be one of car, boat"),
        (0, "since", "must be a date (YYYY-MM-DD)"),
        (0, "tags", "is absent"),
    ]


# What a live request may leave out


class Visit(TypedDict):
    id: Key[int]
    shop: Key[str]
    x: float
    bought: Fetched[list[int]]


class Applied(TypedDict):
    id: Key[int]
    x: float
    day: date


def test_keys_may_be_absent_or_null_unless_they_are_needed() -> None:
    row = live_row(row_type(Visit), keys_needed=False)
    decoder = RowDecoder(row)
    assert decoder.decode(b'{"x": 1, "bought": []}') == (None, None, 1.0, [])
    assert decoder.decode(b'{"x": 1, "id": null, "shop": "n", "bought": []}') == (None, "n", 1.0, [])
    assert decoded(decoder.decode, b'{"x": 1, "id": "n", "bought": []}')[1] == [("id", "must be a whole number")]
    decoder = RowDecoder(live_row(row_type(Visit), keys_needed=True))
    assert decoded(decoder.decode, b'{"x": 1, "id": null, "bought": []}')[1] == [
        ("id", "is missing (null)"),
        ("shop", "is absent"),
    ]


def test_what_is_fetched_may_be_absent_and_is_checked_where_it_is_there() -> None:
    decoder = RowDecoder(live_row(row_type(Visit), keys_needed=True))
    row = decoder.decode(b'{"id": 1, "shop": "n", "x": 1}')
    assert row == (1, "n", 1.0, UNSET)
    assert row[3] is UNSET
    assert decoder.decode(b'{"id": 1, "shop": "n", "x": 1, "bought": [2]}')[3] == [2]
    for bad, says in ((b"null", "is missing (null)"), (b"5", "must be a list")):
        text = b'{"id": 1, "shop": "n", "x": 1, "bought": %b}' % bad
        assert decoded(decoder.decode, text)[1] == [("bought", says)]


def test_a_run_is_not_changed_by_it() -> None:
    row = row_type(Visit)
    live_row(row, keys_needed=False)
    assert [c.nullable for c in row.columns] == [False] * 4


def test_which_models_need_keys() -> None:
    def live(**annotations: Any) -> Live:
        def predict(loaded: None, rows: Any, keys: Any) -> Any: ...

        def predict_without(loaded: None, rows: Any) -> Any: ...

        chosen: Any = predict if "keys" in annotations else predict_without
        chosen.__annotations__ = annotations
        return in_service(scorer_of(Score, chosen, Applied))

    assert [c.nullable for c in live(rows=pa.Table).row.keys] == [True]
    assert [c.nullable for c in live(rows=pa.Table, keys=pa.Table).row.keys] == [False]
    with pytest.raises(ModelFileError, match="Visit has a Fetched column, but model 'm' has no fetch function"):
        live_of(Visit, Score)


def in_service(scorer: Scorer) -> Live:
    async def make() -> Live:
        return Live(scorer, "0" * 64, ModelSettings(), ServeSettings(), metrics=Metrics())

    return asyncio.run(make())


# A list of rows


@MODERATE
@given(st.data())
def test_a_list_decodes_as_the_reference_says(data: st.DataObject) -> None:
    row = data.draw(live_types())
    live = live_with(LIVE, row)
    rows = data.draw(st.lists(st.one_of(hostile_rows(row, JSON_SCALARS), fitting_rows(row)), max_size=5))
    if data.draw(st.booleans()):
        rows = [r for r in rows if by_reference(row, _plain(r))[0] is not None]
    elif data.draw(st.booleans()):
        rows = [*rows, data.draw(JSON_SCALARS)]
    text = _to_json(rows)
    expected = [by_reference(row, value) for value in msgspec.json.decode(text)]
    mistakes = [(i, *m) for i, (_, told) in enumerate(expected) for m in told]
    fast = live.decoder.decode_list(text)
    if fast is not None:
        assert not mistakes
        assert same(fast, [found for found, _ in expected])
    collected: list[Any] = []
    some = live.rows_of(msgspec.json.decode(text), collect=collected)
    assert [tuple(m) for m in collected] == mistakes
    assert same(some, [found for found, _ in expected if found is not None])
    if not mistakes:
        assert same(live.decode_many(text), [found for found, _ in expected])
        return
    with pytest.raises(RequestError) as error:
        live.decode_many(text)
    assert error.value.status == 422
    assert [tuple(m) for m in error.value.mistakes] == mistakes
    count = len({i for i, *_ in mistakes})
    assert str(error.value).startswith("A row does not fit" if count == 1 else f"{count} rows do not fit")


_to_json = msgspec.json.Encoder(decimal_format="string").encode


def _plain(value: Any) -> Any:
    return msgspec.json.decode(_to_json(value))


def test_rows_that_the_compiled_decoder_cannot_tell_fit_all_the_same() -> None:
    whole = {**ROW, "age": 30.0}
    assert LIVE.decoder.decode_list(json.dumps([ROW, whole]).encode()) is None
    first, second = LIVE.decode_many(json.dumps([ROW, whole]).encode())
    assert same(first, second)


@pytest.mark.parametrize("body", [b"5", b"null", b'"[]"', json.dumps(ROW).encode()])
def test_a_body_that_is_no_list(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"one row \(a JSON object\) or a list of them") as error:
        LIVE.decode_many(body)
    assert error.value.status == 422


def test_an_empty_list_is_one() -> None:
    assert LIVE.decode_many(b" [ ] ") == []


@pytest.mark.parametrize("row", [ROW, {}, {**ROW, "age": 30.0}, 5])
def test_more_rows_than_a_request_may_have(row: Any) -> None:
    live = live_of(Applicant, Score, max_rows=3)
    with pytest.raises(RequestError) as error:
        live.decode_many(json.dumps([row] * 4).encode())
    assert (error.value.status, str(error.value)) == (413, "The request has 4 rows; at most 3 may be.")
    assert len(live.decode_many(json.dumps([ROW] * 3).encode())) == 3


class Item(TypedDict):
    n: int


class Basket(TypedDict):
    id: Key[int]
    items: list[Item]


def test_nested_rows_are_not_counted_as_rows() -> None:
    live = live_of(Basket, Score, max_rows=2)
    assert len(live.decode_many(b'[{"id": 1, "items": [{"n": 1}, {"n": 2}, {"n": 3}]}]')) == 1


# Caps


def deepest(body: bytes) -> int:
    """How deep brackets nest, by a scanner that goes from byte to byte; those in texts do not count."""
    depth = most = 0
    for byte in _outside(body)[0]:
        depth += {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}.get(byte, 0)
        most = max(most, depth)
    return most


def longest(body: bytes) -> int:
    """The bytes of the longest text as it stands there, with its escapes."""
    return max(map(len, _outside(body)[1]), default=0)


def _outside(body: bytes) -> tuple[bytes, list[bytes]]:
    """What is outside of texts, and what is in each of them."""
    outside, texts = bytearray(), list[bytearray]()
    in_text = escaped = False
    for byte in body:
        if not in_text:
            if byte == ord('"'):
                in_text = True
                texts.append(bytearray())
            else:
                outside.append(byte)
        elif byte == ord('"') and not escaped:
            in_text = False
        else:
            texts[-1].append(byte)
            escaped = byte == ord("\\") and not escaped
    return bytes(outside), [bytes(text) for text in texts]


NASTY = st.text(st.sampled_from('[]{}"\\\né,: ' + string.ascii_letters), max_size=12)
NESTED = st.recursive(NASTY, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=2))


@MODERATE
@given(
    body=st.one_of(
        NESTED.map(lambda v: json.dumps(v).encode()),
        st.binary(max_size=40).map(bytes),
        st.text('[]{}"\\a').map(str.encode),
    ),
    most=st.integers(1, 6),
)
@example(body=b'"' + b'\\"' * 5 + b"\\", most=1)
@example(body=b"]]]][[[[", most=3)
def test_caps_are_those_of_a_scanner(body: bytes, most: int) -> None:
    live = live_of_limits(max_depth=most, max_text_bytes=most)
    status = None
    try:
        live.check_json(body)
    except RequestError as error:
        status = error.status
    # between the two stands the text that does not end: it has one quote less, and is no JSON in any case
    if longest(body) > most + 1:
        assert status == 413
    elif deepest(body) > most:
        assert status in (400, 413)
    elif longest(body) <= most:
        assert status is None


_LIVES: dict[tuple[tuple[str, int], ...], Live] = {}


def live_of_limits(**limits: int) -> Live:
    key = tuple(limits.items())
    if key not in _LIVES:
        _LIVES[key] = live_of(Applicant, Score, **limits)
    return _LIVES[key]


def test_what_is_too_deep_or_too_long_is_refused_before_it_is_decoded() -> None:
    live = live_of(Applicant, Score, max_depth=4, max_text_bytes=20)
    for decode in (live.decode, live.decode_many):
        with pytest.raises(RequestError) as error:
            decode(b'{"id": [[[[1]]]]}')
        assert (error.value.status, str(error.value)) == (400, "The JSON nests deeper than 4 levels.")
        with pytest.raises(RequestError) as error:
            decode(b'{"more": "%b"}' % (b"a" * 21))
        assert (error.value.status, str(error.value)) == (413, "A text in the request is longer than 20 bytes.")
    row = {**ROW, "tags": ["a" * 20, "[[[[[[[[{{{{{{{"]}
    assert live.decode(json.dumps(row).encode())[5] == row["tags"]
    assert len(live.decode_many(json.dumps([row] * 10).encode())) == 10


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 500_000,  # each quote looks like the start of a text that does not end
        b'"' + b'\\"' * 500_000 + b"\\",
        b"[{" * 500_000,
        b"[" * 500_000 + b"]" * 500_000,
        b'{"' * 300_000,
        b'["a' * 300_000,
    ],
    ids=["quotes", "escape", "open", "nested", "names", "texts"],
)
def test_no_body_keeps_the_caps_busy(body: bytes) -> None:
    """What takes longer with the square of the body would take hours here."""
    with pytest.raises(RequestError):
        LIVE.decode(body)
    with pytest.raises(RequestError):
        LIVE.decode_many(body)


# Scores


class Numbers(TypedDict):
    a: float
    id: Key[int]
    n: int | None
    is_new: bool | None
    level: Literal[1, 2, 3]
    price: Annotated[Decimal, Digits(9, 2)]


class Two(TypedDict):
    share: Annotated[float, Ge(0), Lt(1)]
    count: Annotated[int, Gt(-5), Le(10)] | None


class Share(TypedDict):
    share: Annotated[float, Gt(0), Le(1)]


class Free(TypedDict):
    free: float | None


class Flag(TypedDict):
    flag: bool


class Odd(TypedDict):
    step: Annotated[int, MultipleOf(2)]


class Choice(TypedDict):
    choice: Literal[0, 1]


class Word(TypedDict):
    word: str


def scorer_of(outputs: Any, predict: Callable[..., Any], inputs: Any = Numbers) -> Scorer:
    model = Model("m", inputs=inputs, outputs=outputs)
    model.load(lambda: None)
    model.predict(predict)
    model.check()
    return Scorer(model, None)


def by_numpy(answer: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[..., Any]:
    def predict(loaded: None, rows: np.ndarray[Any, Any]) -> Any:
        return answer(rows)

    return predict


def rows_of(count: int) -> list[Row]:
    return [
        (i / 4, i, None if i % 3 == 1 else i - 7, None if i % 4 == 3 else i % 2 == 0, 1 + i % 3, Decimal(i) / 100)
        for i in range(count)
    ]


def outcome(score: Callable[[], Any]) -> Any:
    try:
        return score()
    except PredictError as error:
        return type(error), str(error)


def agrees(scorer: Scorer, rows: Sequence[Row]) -> Any:
    """What both ways come to."""

    def in_general() -> list[Any]:
        scored = scorer.score(table_of(scorer.model.inputs.columns, rows))
        names = [c.name for c in scorer.model.outputs.columns]
        answers: list[Any] = [""] * len(rows)
        positions = range(len(rows)) if scored.positions is None else scored.positions.tolist()
        for i, row in zip(positions, scored.table.select(names).to_pylist(), strict=True):
            answers[i] = tuple(row.values())
        for i, reason in scored.refused:
            answers[i] = reason
        return answers

    expected = outcome(in_general)
    found = outcome(lambda: RowScorer(scorer).score(rows))
    assert same(list(found), list(expected)), (found, expected)
    return found


ANSWERS: list[tuple[str, Any, Callable[[Any], Any]]] = [
    ("1-D", Share, lambda x: x[:, 0] / 10 + 0.01),
    ("one column of two dimensions", Share, lambda x: x[:, :1] / 10 + 0.01),
    ("float32", Share, lambda x: (x[:, 0] / 10 + 0.01).astype("f4")),
    ("float16", Share, lambda x: (x[:, 0] / 10 + 0.01).astype("f2")),
    ("long double", Share, lambda x: x[:, 0].astype("g") / 10 + 0.01),
    ("other byte order", Share, lambda x: (x[:, 0] / 10 + 0.01).astype(">f8")),
    ("ints for a float", Share, lambda x: np.ones(len(x), "i4")),
    ("bools for a float", Share, lambda x: np.ones(len(x), bool)),
    ("every other of more", Share, lambda x: np.linspace(0.1, 0.9, 2 * len(x))[::2]),
    ("list", Share, lambda x: [0.5] * len(x)),
    ("tuple", Share, lambda x: (0.5,) * len(x)),
    ("list of dicts", Share, lambda x: [{"share": 0.5}] * len(x)),
    ("Series", Share, lambda x: pd.Series(x[:, 0] / 10 + 0.01)),
    ("frame", Two, lambda x: pd.DataFrame({"count": 1, "share": x[:, 0] / 10})),
    ("table", Two, lambda x: pa.table({"count": [1] * len(x), "share": x[:, 0] / 10})),
    ("dict", Two, lambda x: {"share": x[:, 0] / 10, "count": np.arange(len(x)) % 4}),
    ("dict in another order", Two, lambda x: {"count": np.arange(len(x)) % 4, "share": x[:, 0] / 10}),
    ("dict of lists", Two, lambda x: {"share": [0.5] * len(x), "count": [None] * len(x)}),
    ("dict of one number", Two, lambda x: {"share": 0.5, "count": np.arange(len(x))}),
    ("dict with one too many", Share, lambda x: {"share": x[:, 0] / 10, "more": x[:, 0]}),
    ("dict without one", Two, lambda x: {"share": x[:, 0] / 10}),
    ("dict of two dimensions", Share, lambda x: {"share": x[:, :1] / 10 + 0.01}),
    ("dict that is empty", Share, lambda x: {}),
    ("two columns of one kind", Two, lambda x: np.stack([x[:, 0] / 10, np.ones(len(x))], axis=1)),
    ("records", Two, lambda x: np.array([(0.5, 3)] * len(x), [("share", "f8"), ("count", "i8")])),
    ("objects", Share, lambda x: np.array([0.5] * len(x), object)),
    ("objects and nulls", Free, lambda x: np.array([0.5, None] * len(x), object)[: len(x)]),
    ("masked", Free, lambda x: np.ma.masked_array(x[:, 0], x[:, 0] > 1)),
    ("masked, in two dimensions", Free, lambda x: np.ma.masked_array(x[:, :1], x[:, :1] > 1)),
    ("masked where null may not be", Share, lambda x: np.ma.masked_array(x[:, 0] / 10 + 0.01, x[:, 0] > 1)),
    ("matrix", Share, lambda x: np.asmatrix(x[:, :1] / 10 + 0.01)),
    ("NaN for null", Free, lambda x: np.where(x[:, 0] > 1, np.nan, x[:, 0])),
    ("NaN", Share, lambda x: np.where(x[:, 0] > 1, np.nan, 0.5)),
    ("infinity", Share, lambda x: np.where(x[:, 0] > 1, np.inf, 0.5)),
    ("infinity where all may be", Free, lambda x: np.where(x[:, 0] > 1, -np.inf, 0.5)),
    ("at the open bound", Share, lambda x: np.zeros(len(x))),
    ("just inside the open bound", Share, lambda x: np.full(len(x), 5e-324)),
    ("at the closed bound", Share, lambda x: np.ones(len(x))),
    ("just beyond it", Share, lambda x: np.full(len(x), np.nextafter(1, 2))),
    ("minus zero", Free, lambda x: np.full(len(x), -0.0)),
    ("some beyond bounds", Two, lambda x: {"share": x[:, 0], "count": np.arange(len(x)) * 3 - 8}),
    ("int32", Two, lambda x: {"share": x[:, 0] / 10, "count": np.arange(len(x), dtype="i4")}),
    ("uint8", Two, lambda x: {"share": x[:, 0] / 10, "count": np.arange(len(x), dtype="u1")}),
    ("uint64 beyond int64", Odd, lambda x: np.full(len(x), 2**63, "u8")),
    ("floats for ints", Odd, lambda x: np.arange(len(x)) * 2.0),
    ("broken floats for ints", Odd, lambda x: np.arange(len(x)) * 0.5),
    ("multiples", Odd, lambda x: np.arange(len(x))),
    ("bools for ints", Odd, lambda x: x[:, 0] > 1),
    ("choices", Choice, lambda x: np.arange(len(x)) % 3),
    ("flags", Flag, lambda x: x[:, 0] > 1),
    ("flags in two dimensions", Flag, lambda x: x[:, :1] > 1),
    ("numbers for flags", Flag, lambda x: np.arange(len(x)) % 2),
    ("words", Word, lambda x: np.array(["a", "bc"] * len(x))[: len(x)]),
    ("words for numbers", Share, lambda x: np.array(["0.5"] * len(x))),
    ("dates for numbers", Share, lambda x: np.array(["2026-05-01"] * len(x), "M8[D]")),
    ("complex numbers", Free, lambda x: x[:, 0] * 1j),
    ("too few", Share, lambda x: x[1:, 0]),
    ("too many", Share, lambda x: np.append(x[:, 0], 1)),
    ("the wrong way round", Two, lambda x: np.ones((2, len(x)))),
    ("three dimensions", Share, lambda x: np.ones((len(x), 1, 1))),
    ("no dimension", Share, lambda x: np.float64(0.5)),
    ("no array", Share, lambda x: np.array(0.5)),
    ("nothing", Share, lambda x: None),
    ("a text", Share, lambda x: "0.5"),
    ("what predict was given", Free, lambda x: x[:, 0]),
    ("its own input, changed", Free, lambda x: np.multiply(x, 2, out=x)[:, 0]),
    ("a sum over all columns", Free, lambda x: x.sum(axis=1)),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "answer"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_rows_are_scored_as_in_a_run(outputs: Any, answer: Callable[[Any], Any], count: int) -> None:
    agrees(scorer_of(outputs, by_numpy(answer)), rows_of(count))


DTYPES = ["f2", "f4", "f8", ">f8", "i1", "i4", "i8", "u1", "u8", "?", "O"]


@MODERATE
@given(st.data())
def test_any_array_is_read_as_in_a_run(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    outputs = data.draw(st.sampled_from([Share, Two, Free, Flag, Odd, Choice]))
    names = list(outputs.__annotations__)
    numbers = st.one_of(
        st.floats(width=16), st.integers(0, 3), st.sampled_from([-0.0, 0.5, 1.0, 10.0, math.nan, math.inf, 2.0**53])
    )

    def column() -> Any:
        dtype = data.draw(st.sampled_from(DTYPES))
        values = data.draw(st.lists(numbers, min_size=count, max_size=count))
        if dtype == "O":
            return np.array([*values, None], object)[:-1]
        whole = np.dtype(dtype).kind in "iu"
        with np.errstate(all="ignore"):
            return np.array([0 if whole and not math.isfinite(v) else v for v in values]).astype(dtype)

    if len(names) == 1 and data.draw(st.booleans()):
        answer: Any = column()
    elif data.draw(st.booleans()):
        answer = np.stack([column() for _ in names], axis=1)
    else:
        answer = {name: column() for name in data.draw(st.permutations(names))}
    agrees(scorer_of(outputs, by_numpy(lambda x: answer)), rows_of(count))


def test_the_numbers_that_predict_gets_are_those_of_a_run() -> None:
    seen: list[np.ndarray[Any, Any]] = []
    scorer = scorer_of(Free, by_numpy(lambda x: seen.append(x.copy()) or x[:, 0]))
    large = (0.1, 5, 2**53 + 1, None, 3, Decimal("1234567.89"))
    agrees(scorer, [*rows_of(9), large, (5e-324, 1, -(2**63), True, 1, Decimal("0.07"))])
    in_run, live = seen
    assert in_run.dtype == live.dtype == np.float64
    assert np.array_equal(in_run, live, equal_nan=True)


@pytest.mark.parametrize("bad", [[3], [0, 8], list(range(9))])
def test_rows_on_which_predict_raises(bad: list[int]) -> None:
    def answer(x: Any) -> Any:
        if set(bad) & set((x[:, 0] * 4).astype(int).tolist()):
            raise ValueError("bad row")
        return x[:, 0]

    answers = agrees(scorer_of(Free, by_numpy(answer)), rows_of(9))
    assert [i for i, a in enumerate(answers) if a == "predict raised ValueError: bad row"] == bad


def test_a_model_that_always_raises() -> None:
    def answer(x: Any) -> Any:
        raise ValueError("broken")

    found = agrees(scorer_of(Free, by_numpy(answer)), rows_of(60))
    assert found[0] is PredictError
    assert "predict raised ValueError on 50 rows of a batch of 60" in found[1]


def test_an_answer_that_is_not_as_declared() -> None:
    assert agrees(scorer_of(Share, by_numpy(lambda x: x[1:, 0])), rows_of(3))[0] is OutputError


@pytest.mark.parametrize("form", [pd.DataFrame, pa.Table, list[Applied]])
def test_other_forms_are_scored_as_in_a_run(form: Any) -> None:
    def predict(loaded: None, rows: Any, keys: Any) -> Any:
        xs = [r["x"] for r in rows] if isinstance(rows, list) else list(np.asarray(rows["x"]))
        if 13 in xs:
            raise ValueError("thirteen")
        return [x / 20 for x in xs]

    predict.__annotations__ = {"rows": form, "keys": pa.Table}
    rows = [(i, float(i), date(2026, 5, 1)) for i in range(30)]
    answers = agrees(scorer_of(Share, predict, Applied), rows)
    assert answers[13] == "predict raised ValueError: thirteen"
    assert answers[0] == "output:share: must be more than 0.0"
    assert answers[29].startswith("output:share: must be at most 1.0")
    assert answers[5] == (0.25,)
