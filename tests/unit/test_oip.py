"""The Open Inference Protocol V2: tensors to rows, answers to tensors, and no way to crash either."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict

import hypothesis.strategies as st
import numpy as np
import pytest
from annotated_types import Ge
from hypothesis import given, settings

from sereno import Digits, Key
from sereno.serve.live import Live
from sereno.serve.protocols import oip
from sereno.serve.protocols.compression import compress
from sereno.serve.protocols.infer import Translation
from sereno.serve.wire import Asked, Reply, Request, RequestError
from tests.lives import live_of, request_of


class Part(TypedDict):
    name: str
    price: float


class Everything(TypedDict):
    id: Key[int]
    age: Annotated[int, Ge(18)]
    income: float | None
    member: bool
    purpose: Literal["car", "boat"]
    since: date
    seen: datetime | None
    price: Annotated[Decimal, Digits(9, 2)]
    basket: list[str] | None
    parts: list[Part]


class Answers(TypedDict):
    score: float | None
    count: int | None
    yes: bool
    band: str | None
    day: date
    at: datetime
    cost: Annotated[Decimal, Digits(9, 2)]
    parts: list[Part] | None


class Numbers(TypedDict):
    id: Key[str]
    x: float | None
    n: int
    flag: bool


class One(TypedDict):
    y: float


EVERYTHING = live_of(Everything, Answers, max_rows=4, max_text_bytes=100)
NUMBERS = live_of(Numbers, One, max_rows=4)
TRANSLATIONS = {id(live): Translation(live) for live in (EVERYTHING, NUMBERS)}

COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "id": ("INT64", [7, None]),
    "age": ("INT64", [18, 90]),
    "income": ("FP64", [1.5, None]),
    "member": ("BOOL", [True, False]),
    "purpose": ("BYTES", ["car", "boat"]),
    "since": ("BYTES", ["2026-05-01", "2026-05-02"]),
    "seen": ("BYTES", ["2026-05-01T12:00:00+02:00", None]),
    "price": ("BYTES", ["1.10", "2"]),
    "basket": ("BYTES", ['["wine","café"]', None]),
    "parts": ("BYTES", ['[{"name":"a","price":1}]', "[]"]),
}
ROWS = [
    (7, 18, 1.5, True, "car", date(2026, 5, 1), datetime(2026, 5, 1, 10, tzinfo=UTC), Decimal("1.10"),
     ["wine", "café"], [{"name": "a", "price": 1.0}]),
    (None, 90, None, False, "boat", date(2026, 5, 2), None, Decimal("2.00"), None, []),
]  # fmt: skip


NUMPY = {
    "BOOL": "?",
    **{
        f"{name}{bits}": f"<{code}{bits // 8}"
        for name, code in (("INT", "i"), ("UINT", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}


def read(live: Live, body: bytes | Mapping[str, Any], **headers: str) -> Asked:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return TRANSLATIONS[id(live)].read(live, request_of(body, named))


def refused(live: Live, body: bytes | Mapping[str, Any], **headers: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(live, body, **headers)
    reply = oip.refuse(caught.value)
    assert list(json.loads(reply.body)) == ["error"]
    assert reply.status == caught.value.status
    return caught.value


def tensor(
    name: str, datatype: str, data: Sequence[Any], shape: list[int] | None = None, **more: Any
) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data, **more}


def tensors(first: int = 0, last: int = 2, **changed: Any) -> list[dict[str, Any]]:
    columns = {**COLUMNS, **changed}
    return [tensor(name, datatype, data[first:last]) for name, (datatype, data) in columns.items()]


def in_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """As tritonclient does it: by numpy."""
    if datatype == "BYTES":
        raws = [v if isinstance(v, bytes) else v.encode() for v in values]
        return b"".join(struct.pack("<I", len(raw)) + raw for raw in raws)
    return np.array(values, NUMPY[datatype]).tobytes()


def binary(
    *inputs: tuple[str, str, list[int], bytes], sizes: Sequence[int] | None = None, tail: bytes = b"", **more: Any
) -> tuple[bytes, str]:
    """A body with its tensors in bytes, and what Inference-Header-Content-Length says of it."""
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, datatype, shape, raw in inputs
    ]
    for one, size in zip(described, sizes or [], strict=False):
        one["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": described, **more}).encode()
    return head + b"".join(raw for *_, raw in inputs) + tail, str(len(head))


def read_binary(live: Live, *inputs: tuple[str, str, list[int], bytes], **more: Any) -> Asked:
    body, length = binary(*inputs, **more)
    return read(live, body, inference_header_content_length=length)


def refused_binary(live: Live, *inputs: tuple[str, str, list[int], bytes], **more: Any) -> RequestError:
    body, length = binary(*inputs, **more)
    return refused(live, body, inference_header_content_length=length)


class TestJsonInputs:
    def test_columns_are_tensors(self) -> None:
        assert read(EVERYTHING, {"inputs": tensors()}).rows == ROWS

    @pytest.mark.parametrize("row", [0, 1])
    def test_one_row_is_the_same_as_in_many(self, row: int) -> None:
        assert read(EVERYTHING, {"inputs": tensors(row, row + 1)}).rows == [ROWS[row]]

    def test_no_rows(self) -> None:
        assert read(EVERYTHING, {"inputs": tensors(0, 0)}).rows == []

    def test_whole_numbers_may_be_written_as_json_writes_them(self) -> None:
        sent = '{"inputs":[{"name":"age","shape":[2],"datatype":"%s","data":[%s]}]}'
        rest = json.dumps({"inputs": [t for t in tensors() if t["name"] != "age"]})[len('{"inputs": [') :]
        for datatype in ("INT64", "INT32", "UINT8"):
            body = sent % (datatype, "1.8e1, 90.0")
            assert read(EVERYTHING, (body[:-2] + ", " + rest).encode()).rows == ROWS
        for numbers in ("18.5, 90", "1e300, true", '90, "90"'):
            assert refused(EVERYTHING, (sent % ("INT64", numbers)).encode()).says.endswith("other values than INT64.")
        assert refused(EVERYTHING, (sent % ("INT8", "1e3, 1")).encode()).status == 400
        assert refused(EVERYTHING, (sent % ("INT64", "1e300, 1")).encode()).status == 422

    def test_order_does_not_matter_and_unknown_inputs_are_ignored(self) -> None:
        more = tensor("another", "FP64", [1.0], [1, 1])
        assert read(EVERYTHING, {"inputs": [*reversed(tensors()), more], "unknown": {"a": [[[]]]}}).rows == ROWS

    def test_keys_may_be_absent(self) -> None:
        found = read(EVERYTHING, {"inputs": tensors(0, 1)[1:]}).rows
        assert found == [(None, *ROWS[0][1:])]

    @pytest.mark.parametrize(
        ("shape", "data"), [([2, 1], [1.5, None]), ([2, 1], [[1.5], [None]]), ([2], [[1.5], [None]])]
    )
    def test_a_column_of_a_frame_may_have_a_second_axis(self, shape: list[int], data: list[Any]) -> None:
        inputs = [*tensors(income=("FP64", []))]
        inputs[2] = tensor("income", "FP64", data, shape)
        assert read(EVERYTHING, {"inputs": inputs}).rows == ROWS

    @pytest.mark.parametrize(
        ("datatype", "value"),
        [(f"{u}INT{b}", 90) for u in ("", "U") for b in (8, 16, 32, 64)] + [(f"FP{b}", 90.0) for b in (16, 32, 64)] + [("FP32", 90)],
    )  # fmt: skip
    def test_every_numeric_datatype_that_fits(self, datatype: str, value: float) -> None:
        assert read(
            NUMBERS, {"inputs": [tensor("n", datatype, [value]), tensor("x", datatype, [value]), *FLAG]}
        ).rows == [(None, 90.0, 90, True)]

    def test_mistakes_are_those_of_our_own_route(self) -> None:
        error = refused(
            EVERYTHING, {"inputs": tensors(age=("INT64", [17, 18]), purpose=("BYTES", ["car", "bike"]))[:-1]}
        )
        assert error.status == 422
        assert [tuple(m) for m in error.mistakes] == [
            (0, "age", "must be at least 18"),
            (0, "parts", "is absent"),
            (1, "purpose", "must be one of car, boat"),
            (1, "parts", "is absent"),
        ]
        assert json.loads(oip.refuse(error).body)["error"] == (
            "2 rows do not fit the row type of this model. row 0: age: must be at least 18; row 0: parts: is absent; "
            "row 1: purpose: must be one of car, boat; row 1: parts: is absent"
        )

    def test_null_fits_where_the_column_is_nullable(self) -> None:
        error = refused(EVERYTHING, {"inputs": tensors(0, 1, age=("INT64", [None]))})
        assert [tuple(m) for m in error.mistakes] == [(0, "age", "is missing (null)")]

    def test_lists_and_nested_rows_are_json_in_text(self) -> None:
        error = refused(EVERYTHING, {"inputs": tensors(basket=("BYTES", ["[1]", "[,"]))})
        assert [tuple(m) for m in error.mistakes] == [(1, "basket", "must be JSON in text")]
        error = refused(EVERYTHING, {"inputs": tensors(0, 1, basket=("BYTES", ["[1]"]))})
        assert [tuple(m) for m in error.mistakes] == [(0, "basket[0]", "must be text")]
        error = refused(EVERYTHING, {"inputs": tensors(0, 1, basket=("INT64", [1]))})
        assert [tuple(m) for m in error.mistakes] == [(0, "basket", "must be JSON in text, with datatype BYTES")]
        error = refused(EVERYTHING, {"inputs": tensors(0, 1, basket=("BYTES", ["[" * 33 + "]" * 33]))})
        assert error.status == 400
        assert "nests deeper than 32" in error.says

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"", "The body is no inference request"),
            (b"\xff", "The body is no inference request"),
            (b"[]", "Expected `object`, got `array`"),
            (b'{"inputs":' + b"[" * 100_000, "Expected `object`, got `array`"),
            (b'{"a":' + b"[" * 100_000, "it nests too deeply"),
            ({}, "missing required field `inputs`"),
            ({"inputs": []}, "None of the inputs is one of the model's. Its inputs are: id, x, n, flag."),
            ({"inputs": [tensor("no", "FP64", [1.0], [1, 1]), tensor("no", "FP64", [1.0])]}, "None of the inputs"),
            ({"inputs": [tensor("x", "FP64", [1.0]), tensor("x", "FP64", [1.0])]}, "Input 'x': is there twice."),
            ({"inputs": [tensor("x", "FP64", [1.0]), tensor("n", "INT64", [1, 2])]}, "another number of rows"),
            ({"inputs": [tensor("x", "FP64", [1.0], [2]), *"n"]}, "Expected `object`, got `str`"),
            ({"inputs": [tensor("x", "FP64", [1.0], [2])]}, "not have as many values as its shape says"),
            ({"inputs": [tensor("x", "FP64", [1.0], [-1])]}, "its shape is not [n] or [n, 1]"),
            ({"inputs": [tensor("x", "FP64", [1.0], [1, 2])]}, "its shape is not [n] or [n, 1]"),
            ({"inputs": [tensor("x", "FP64", [1.0], [1, 1, 1])]}, "its shape is not [n] or [n, 1]"),
            ({"inputs": [{**tensor("x", "FP64", [1.0]), "shape": []}]}, "its shape is not [n] or [n, 1]"),
            ({"inputs": [tensor("x", "FP64", [1.0], [True])]}, "Expected `int`, got `bool`"),  # type: ignore[list-item]
            ({"inputs": [tensor("x", "FP64", [1.0], [1, 10**30])]}, "its shape is not [n] or [n, 1]"),
            ({"inputs": [tensor("x", "fp64", [1.0])]}, "its datatype is none of BOOL, UINT8"),
            ({"inputs": [tensor("x", "BF16", [1.0])]}, "its datatype is none of BOOL, UINT8"),
            ({"inputs": [tensor("x", "FP64", [[[1.0]]])]}, "got `array`"),
            ({"inputs": [tensor("x", "FP64", [[1.0], 2.0])]}, "data has other values than FP64"),
            ({"inputs": [tensor("x", "FP64", ["1.0"])]}, "data has other values than FP64"),
            ({"inputs": [tensor("x", "FP64", [True])]}, "data has other values than FP64"),
            ({"inputs": [tensor("x", "INT64", [1.5])]}, "data has other values than INT64"),
            ({"inputs": [tensor("x", "INT8", [128])]}, "data has other values than INT8"),
            ({"inputs": [tensor("x", "UINT16", [-1])]}, "data has other values than UINT16"),
            ({"inputs": [tensor("x", "BOOL", [1])]}, "data has other values than BOOL"),
            ({"inputs": [tensor("x", "BYTES", [1])]}, "data has other values than BYTES"),
            ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1]}]}, "needs either data or binary_data_size"),
            ({"inputs": [tensor("x", "FP64", [1.0], parameters={"binary_data_size": 0})]}, "needs either data or"),
            ({"inputs": [tensor("x", "FP64", [1.0], parameters={"binary_data_size": 8})]}, "not a part of the bytes"),
            ({"inputs": [tensor("x", "FP64", [], parameters={"shared_memory_region": "a"})]}, "shared memory is not"),
            ({"inputs": [tensor("x", "FP64", [1.0])], "id": 1}, "Expected `str | null`, got `int`"),
            ({"inputs": [tensor("x", "FP64", [1.0])], "outputs": [{"name": "z"}]}, "Its outputs are: y."),
            ({"inputs": [tensor("x", "FP64", [1.0])], "outputs": [{"name": "y"}] * 2}, "An output is asked for twice."),
        ],
    )  # fmt: skip
    def test_malformed(self, body: Any, says: str) -> None:
        if isinstance(body, dict) and "outputs" in body:
            body["inputs"] += [tensor("n", "INT64", [1]), *FLAG]
        error = refused(NUMBERS, body)
        assert error.status == 400
        assert says in error.says

    def test_too_many_rows(self) -> None:
        assert refused(NUMBERS, {"inputs": [tensor("x", "FP64", [1.0] * 5)]}).status == 413
        assert refused(NUMBERS, {"inputs": [tensor("x", "FP64", [1.0], [10**30])]}).status == 413

    def test_too_long_a_text(self) -> None:
        assert refused(EVERYTHING, {"inputs": tensors(0, 1, purpose=("BYTES", ["x" * 101]))}).status == 413
        assert refused(EVERYTHING, {"inputs": tensors(0, 1, purpose=("BYTES", ["é" * 60]))}).status == 413
        assert refused(EVERYTHING, {"inputs": tensors(0, 1, purpose=("BYTES", ["é" * 50]))}).status == 422
        assert refused(EVERYTHING, {"inputs": tensors(0, 1), "id": "x" * 101}).status == 413


FLAG = [tensor("flag", "BOOL", [True])]


class TestMatrix:
    """All features as one tensor, as scikit-learn's users send it."""

    @pytest.mark.parametrize("data", [[1.5, 2, 0, 2.5, 3, 1], [[1.5, 2, 0], [2.5, 3, 1]]])
    @pytest.mark.parametrize("name", ["input-0", "x"])
    def test_features_in_declared_order(self, data: list[Any], name: str) -> None:
        rows = read(NUMBERS, {"inputs": [tensor(name, "FP64", data, [2, 3])]}).rows
        assert rows == [(None, 1.5, 2, False), (None, 2.5, 3, True)]

    def test_in_bytes(self) -> None:
        raw = in_bytes("FP32", [math.nan, 2, 0])
        assert read_binary(NUMBERS, ("predict", "FP32", [1, 3], raw)).rows == [(None, None, 2, False)]

    def test_mistakes(self) -> None:
        error = refused(NUMBERS, {"inputs": [tensor("predict", "FP64", [1.5, 2.5, 2], [1, 3])]})
        assert [tuple(m) for m in error.mistakes] == [
            (0, "n", "must be a whole number"),
            (0, "flag", "must be true or false"),
        ]

    @pytest.mark.parametrize("shape", [[3], [1, 3, 1], [3, 1], []])
    def test_another_shape(self, shape: list[int]) -> None:
        error = refused(NUMBERS, {"inputs": [{**tensor("predict", "FP64", [1, 2, 3]), "shape": shape}]})
        assert error.status == 400
        assert "[n, 3]" in error.says

    def test_not_where_a_column_is_no_number(self) -> None:
        error = refused(EVERYTHING, {"inputs": [tensor("predict", "FP64", [1.0] * 9, [1, 9])]})
        assert "None of the inputs is one of the model's" in error.says

    def test_of_a_single_feature(self) -> None:
        class Single(TypedDict):
            id: Key[int]
            x: float

        live = live_of(Single, One)
        translation = Translation(live)
        for shape in ([2], [2, 1]):
            asked = translation.read(live, request_of({"inputs": [tensor("anything", "FP64", [1, 2], shape)]}))
            assert asked.rows == [(None, 1.0), (None, 2.0)]


class TestBinaryInputs:
    def test_every_column(self) -> None:
        inputs = [(name, datatype, [1], in_bytes(datatype, data[:1])) for name, (datatype, data) in COLUMNS.items()]
        assert read_binary(EVERYTHING, *inputs).rows == ROWS[:1]

    @pytest.mark.parametrize("datatype", list(NUMPY)[1:])
    def test_every_numeric_datatype(self, datatype: str) -> None:
        n, x = in_bytes(datatype, [3, 4]), in_bytes(datatype, [100, 0])
        flag = in_bytes("BOOL", [True, False])
        found = read_binary(
            NUMBERS, ("n", datatype, [2], n), ("x", datatype, [2, 1], x), ("flag", "BOOL", [2], flag)
        ).rows
        assert found == [(None, 100.0, 3, True), (None, 0.0, 4, False)]

    def test_json_and_bytes_side_by_side(self) -> None:
        head = json.dumps({"inputs": [
            {"name": "other", "datatype": "INT8", "shape": [9], "parameters": {"binary_data_size": 3}},
            tensor("x", "FP64", [1.5]), *FLAG,
            {"name": "n", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
        ]}).encode()  # fmt: skip
        body = head + b"abc" + b"\x05\x00"
        assert read(NUMBERS, body, inference_header_content_length=str(len(head))).rows == [(None, 1.5, 5, True)]

    def test_nan_is_a_missing_value(self) -> None:
        raw = in_bytes("FP64", [math.nan, 1.0])
        found = read_binary(
            NUMBERS, ("n", "INT8", [2], b"\1\2"), ("x", "FP64", [2], raw), ("flag", "BOOL", [2], b"\0\1")
        )
        assert [row[1] for row in found.rows] == [None, 1.0]
        error = refused_binary(
            NUMBERS, ("n", "FP64", [1], raw[:8]), ("x", "FP64", [1], raw[:8]), ("flag", "BOOL", [1], b"\0")
        )
        assert [tuple(m) for m in error.mistakes] == [(0, "n", "is missing (null)")]

    def test_infinity_fits_nowhere(self) -> None:
        raw = in_bytes("FP64", [math.inf, -math.inf])
        error = refused_binary(
            NUMBERS, ("n", "INT8", [2], b"\1\2"), ("x", "FP64", [2], raw), ("flag", "BOOL", [2], b"\0\1")
        )
        assert error.status == 422
        assert [(m.row, m.column) for m in error.mistakes] == [(0, "x"), (1, "x")]

    def test_the_length_of_the_json(self) -> None:
        body, length = binary(("n", "INT8", [1], b"\1"), ("x", "INT8", [1], b"\1"), ("flag", "BOOL", [1], b"\0"))
        for wrong in ("", "-1", "x", "1e1", str(len(body) + 1), "9" * 30, f"+{length}", "٣"):
            assert refused(NUMBERS, body, inference_header_content_length=wrong).status == 400
        assert refused(NUMBERS, body, inference_header_content_length="0").status == 400
        assert refused(NUMBERS, body).status == 400

    @pytest.mark.parametrize(
        ("one", "says"),
        [
            ({"sizes": [2]}, "binary_data_size is not what shape and datatype need"),
            ({"sizes": [0]}, "binary_data_size is not what shape and datatype need"),
            ({"sizes": [-1]}, "binary_data_size is not a part of the bytes"),
            ({"sizes": [4]}, "binary_data_size is not a part of the bytes"),
            ({"sizes": [2**63]}, "binary_data_size is not a part of the bytes"),
            ({"sizes": [True]}, "Expected `int | null`, got `bool`"),
            ({"tail": b"\0"}, "more bytes behind the JSON"),
        ],
    )
    def test_sizes_that_lie(self, one: dict[str, Any], says: str) -> None:
        error = refused_binary(
            NUMBERS, ("n", "INT8", [1], b"\1"), ("x", "INT8", [1], b"\1"), ("flag", "BOOL", [1], b"\0"), **one
        )
        assert error.status == 400
        assert says in error.says

    @pytest.mark.parametrize(
        ("raw", "says"),
        [
            (b"", "the bytes end before the last element"),
            (b"\3\0\0", "the bytes end before the last element"),
            (b"\3\0\0\0ca", "an element is longer than the bytes that are left"),
            (b"\xff\xff\xff\xffcar", "an element is longer than the bytes that are left"),
            (b"\3\0\0\0carx", "there are bytes behind the last element"),
            (b"\3\0\0\0car\0\0\0\0", "there are bytes behind the last element"),
            (b"\2\0\0\0\xff\xfe", "an element is not text in UTF-8"),
        ],
    )
    def test_texts_that_lie(self, raw: bytes, says: str) -> None:
        error = refused_binary(EVERYTHING, ("purpose", "BYTES", [1], raw))
        assert error.status == 400
        assert error.says == f"Input 'purpose': {says}."

    def test_too_long_a_text(self) -> None:
        assert refused_binary(EVERYTHING, ("purpose", "BYTES", [1], in_bytes("BYTES", ["x" * 101]))).status == 413


ANSWERS = [
    (0.5, 3, True, "ä", date(2026, 5, 1), datetime(2026, 5, 1, 10, 0, 0, 5, tzinfo=UTC), Decimal("1.10"),
     [{"name": "é", "price": 2.0}]),
    (None, None, False, None, date(2026, 5, 2), datetime(2026, 5, 2, tzinfo=UTC), Decimal("0.00"), None),
]  # fmt: skip


def write(live: Live, answers: Sequence[Any], accept: str = "", **asked: Any) -> Reply:
    inputs = tensors(0, 1) if live is EVERYTHING else [tensor("predict", "FP64", [1, 1, 1], [1, 3])]
    headers = {"accept_encoding": accept} if accept else {}
    return TRANSLATIONS[id(live)].write(live, read(live, {"inputs": inputs, **asked}, **headers), answers)


class TestOutputs:
    def test_json(self) -> None:
        reply = write(EVERYTHING, ANSWERS)
        assert reply.status == 200
        assert reply.content_type == b"application/json"
        assert reply.headers == ()
        found = json.loads(reply.body)
        assert found["model_name"] == "m"
        assert found["model_version"] == "0123456789ab"
        assert list(found) == ["model_name", "model_version", "outputs"]
        assert [(o["name"], o["datatype"], o["shape"], o["data"]) for o in found["outputs"]] == [
            ("score", "FP64", [2], [0.5, None]),
            ("count", "INT64", [2], [3, None]),
            ("yes", "BOOL", [2], [True, False]),
            ("band", "BYTES", [2], ["ä", None]),
            ("day", "BYTES", [2], ["2026-05-01", "2026-05-02"]),
            ("at", "BYTES", [2], ["2026-05-01T10:00:00.000005Z", "2026-05-02T00:00:00Z"]),
            ("cost", "BYTES", [2], ["1.10", "0.00"]),
            ("parts", "BYTES", [2], ['[{"name":"é","price":2.0}]', "null"]),
        ]

    def test_texts_are_those_of_our_own_route(self) -> None:
        own = EVERYTHING.answer_dict(ANSWERS[0])
        found = {o["name"]: o["data"][0] for o in json.loads(write(EVERYTHING, ANSWERS[:1]).body)["outputs"]}
        found["parts"] = json.loads(found["parts"])
        assert found == own

    def test_the_id_is_echoed(self) -> None:
        assert json.loads(write(NUMBERS, [(1.0,)], id='a"é').body)["id"] == 'a"é'
        assert json.loads(write(NUMBERS, [(1.0,)], id="").body)["id"] == ""
        assert "id" not in json.loads(write(NUMBERS, [(1.0,)], id=None).body)

    def test_asked_for_outputs(self) -> None:
        reply = write(EVERYTHING, ANSWERS, outputs=[{"name": "yes"}, {"name": "score"}])
        assert [o["name"] for o in json.loads(reply.body)["outputs"]] == ["yes", "score"]
        assert len(json.loads(write(EVERYTHING, ANSWERS, outputs=[]).body)["outputs"]) == 8

    @pytest.mark.parametrize("by", ["request", "output"])
    def test_in_bytes(self, by: str) -> None:
        if by == "request":
            reply = write(EVERYTHING, ANSWERS[:1], parameters={"binary_data_output": True})
        else:
            names = [c.name for c in EVERYTHING.outputs.columns]
            outputs = [{"name": name, "parameters": {"binary_data": True}} for name in names]
            reply = write(EVERYTHING, ANSWERS[:1], outputs=outputs)
        assert reply.content_type == b"application/octet-stream"
        outputs, raws = unpacked(reply)
        assert [o["datatype"] for o in outputs] == [
            "FP64",
            "INT64",
            "BOOL",
            "BYTES",
            "BYTES",
            "BYTES",
            "BYTES",
            "BYTES",
        ]
        assert raws == [
            struct.pack("<d", 0.5),
            struct.pack("<q", 3),
            b"\1",
            *(in_bytes("BYTES", [text]) for text in ("ä", "2026-05-01", "2026-05-01T10:00:00.000005Z", "1.10")),
            in_bytes("BYTES", ['[{"name":"é","price":2.0}]']),
        ]

    def test_null_in_bytes(self) -> None:
        """Floats have NaN for it, nested columns JSON's null; other outputs stay in JSON, where null can be said."""
        outputs, raws = unpacked(write(EVERYTHING, ANSWERS, parameters={"binary_data_output": True}))
        assert [o["name"] for o in outputs if "data" in o] == ["count", "band"]
        assert outputs[1]["data"] == [3, None]
        assert math.isnan(struct.unpack("<dd", raws[0])[1])
        assert raws[-1].endswith(b"\4\0\0\0null")

    def test_an_output_may_differ_from_the_request(self) -> None:
        outputs = [{"name": "score", "parameters": {"binary_data": False}}, {"name": "yes"}]
        reply = write(EVERYTHING, ANSWERS, outputs=outputs, parameters={"binary_data_output": True})
        found, raws = unpacked(reply)
        assert "data" in found[0]
        assert raws == [b"\1\0"]

    def test_what_is_not_supported_is_said(self) -> None:
        for parameters in ({"classification": 2}, {"shared_memory_region": "a"}):
            with pytest.raises(RequestError, match="not supported"):
                write(NUMBERS, [], outputs=[{"name": "y", "parameters": parameters}])

    def test_no_rows(self) -> None:
        assert json.loads(write(NUMBERS, []).body)["outputs"] == [
            {"name": "y", "datatype": "FP64", "shape": [0], "data": []}
        ]
        assert unpacked(write(NUMBERS, [], parameters={"binary_data_output": True}))[1] == [b""]


def unpacked(reply: Reply) -> tuple[list[dict[str, Any]], list[bytes]]:
    length = int(dict(reply.headers)[b"inference-header-content-length"])
    outputs = json.loads(reply.body[:length])["outputs"]
    raws = []
    for output in outputs:
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            raws.append(reply.body[length : length + size])
            length += size
    assert length == len(reply.body)
    return outputs, raws


class TestCompression:
    @pytest.mark.parametrize(
        ("accepts", "encoding"),
        [
            (b"gzip", b"gzip"), (b"deflate", b"deflate"), (b"gzip, deflate, br", b"gzip"), (b"br;q=1.0, GZIP;q=0.5", b"gzip"),
            (b"gzip;q=0, deflate", b"deflate"), (b"gzip; q=0.000", None), (b"br", None), (b"", None), (b"identity", None),
        ],
    )  # fmt: skip
    def test_answers(self, accepts: bytes, encoding: bytes | None) -> None:
        body = b"x" * 5000
        out, headers = compress(accepts, body)
        assert dict(headers).get(b"content-encoding") == encoding
        if encoding is not None:
            assert (gzip if encoding == b"gzip" else zlib).decompress(out) == body
            assert out == compress(accepts, body)[0]
            assert (b"vary", b"accept-encoding") in headers

    def test_of_a_reply(self) -> None:
        reply = write(NUMBERS, [(0.5,)] * 1000, "gzip", parameters={"binary_data_output": True})
        assert dict(reply.headers)[b"content-encoding"] == b"gzip"
        plain = write(NUMBERS, [(0.5,)] * 1000, parameters={"binary_data_output": True})
        assert gzip.decompress(reply.body) == plain.body
        assert dict(reply.headers)[b"inference-header-content-length"] == plain.headers[0][1]
        assert write(NUMBERS, [(0.5,)], "gzip").headers == ()


def answer_of(path: str, service: Any, method: str = "GET", **params: str) -> tuple[int, Any]:
    route = next(r for r in oip.routes(service) if (r.method, r.path) == (method, path) and r.answer is not None)
    assert route.answer is not None
    try:
        reply = route.answer(service, request_of(b""), params)
    except RequestError as error:
        assert route.refuse is not None
        reply = route.refuse(error)
    return reply.status, json.loads(reply.body)


class TestRoutes:
    @pytest.fixture
    def service(self) -> Any:
        def live(name: str) -> Live:
            if name != "m":
                raise RequestError(404, "There is no such model here. Served: m.")
            return NUMBERS

        return SimpleNamespace(lives={"m": NUMBERS}, live=live, is_ready=True)

    def test_health(self, service: Any) -> None:
        assert answer_of("/v2/health/live", service) == (200, {"live": True})
        assert answer_of("/v2/health/ready", service) == (200, {"ready": True})
        service.is_ready = False
        assert answer_of("/v2/health/ready", service) == (503, {"ready": False})
        assert answer_of("/v2/health/live", service) == (200, {"live": True})

    def test_server(self, service: Any) -> None:
        status, found = answer_of("/v2", service)
        assert status == 200
        assert list(found) == ["name", "version", "extensions"]
        assert found["extensions"] == ["binary_tensor_data"]

    @pytest.mark.parametrize("version", [{}, {"v": "0123456789ab"}])
    def test_model(self, service: Any, version: dict[str, str]) -> None:
        path = "/v2/models/{m}" + ("/versions/{v}" if version else "")
        assert answer_of(path, service, m="m", **version) == (200, {
            "name": "m",
            "versions": ["0123456789ab"],
            "platform": "sereno",
            "inputs": [
                {"name": "id", "datatype": "BYTES", "shape": [-1]},
                {"name": "x", "datatype": "FP64", "shape": [-1]},
                {"name": "n", "datatype": "INT64", "shape": [-1]},
                {"name": "flag", "datatype": "BOOL", "shape": [-1]},
            ],
            "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
        })  # fmt: skip
        assert answer_of(path + "/ready", service, m="m", **version) == (200, {"name": "m", "ready": True})

    @pytest.mark.parametrize("ending", ["", "/ready", "/infer"])
    def test_unknown(self, service: Any, ending: str) -> None:
        method = "POST" if ending == "/infer" else "GET"
        status, found = answer_of("/v2/models/{m}" + ending, service, method, m="other")
        assert (status, found) == (404, {"error": "There is no such model here. Served: m."})
        status, found = answer_of("/v2/models/{m}/versions/{v}" + ending, service, method, m="m", v="2")
        assert status == 404
        assert found == {"error": "Model 'm' is not served in this version. It is in version 0123456789ab."}

    def test_hot_paths(self, service: Any) -> None:
        hot = [(r.method, r.path) for r in oip.routes(service) if r.exchange is not None]
        assert hot == [("POST", "/v2/models/m/infer"), ("POST", "/v2/models/m/versions/0123456789ab/infer")]

    def test_errors_carry_what_the_caller_needs(self) -> None:
        busy = oip.refuse(RequestError(503, "Too much to do.", retry_after=3))
        assert (busy.status, json.loads(busy.body), busy.headers) == (
            503,
            {"error": "Too much to do."},
            ((b"retry-after", b"3"),),
        )
        failed = oip.refuse(RequestError(500, "The model failed.", error_id="abc"))
        assert json.loads(failed.body) == {"error": "The model failed. (error abc)"}


# Whatever comes in, rows or a RequestError comes out.

DATATYPES = [*NUMPY, "BYTES"]
SIZES = st.one_of(st.integers(-2, 12), st.sampled_from([2**31, 2**32 - 1, 2**63, 2**64, -(2**63)]))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=4)
)
ANY_JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


POOLS: dict[str, dict[str, tuple[str, list[Any]]]] = {  # column → datatype, and values that fit
    "everything": {
        name: (datatype, [v for v in values if v is not None]) for name, (datatype, values) in COLUMNS.items()
    },
    "numbers": {
        "id": ("BYTES", ["a", "é", ""]),
        "x": ("FP64", [0.0, -1.5, 1e300, math.nan]),
        "n": ("INT64", [0, 7, 2**63 - 1]),
        "flag": ("BOOL", [True, False]),
    },
}
LIVES = {"everything": EVERYTHING, "numbers": NUMBERS}
FAULTS = ("none", "key", "value", "bytes", "size", "tensor", "field", "length", "splice", "tail")


@st.composite
def requests_of(draw: st.DrawFn, which: str) -> Request:
    """A good request, in JSON and bytes mixed, with at most two faults in it, of every sort."""
    count = draw(st.sampled_from([1, 1, 2, 3, 0]))
    faults = draw(st.lists(st.sampled_from(FAULTS), max_size=2))
    inputs: list[dict[str, Any]] = []
    raws: list[bytes] = []
    for name, (datatype, pool) in POOLS[which].items():
        values = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
        one: dict[str, Any] = {
            "name": name,
            "shape": draw(st.sampled_from([[count], [count, 1]])),
            "datatype": datatype,
        }
        if draw(st.booleans()):
            raw = in_bytes(datatype, values)
            if "bytes" in faults and draw(st.booleans()):
                at = draw(st.integers(0, len(raw)))
                raw = raw[:at] + draw(st.binary(max_size=8)) + raw[at + draw(st.integers(0, 8)) :]
            raws.append(raw)
            one["parameters"] = {"binary_data_size": len(raw)}
        else:
            one["data"] = [None if value != value else value for value in values]
            if "value" in faults and one["data"] and draw(st.booleans()):
                one["data"][draw(st.integers(0, count - 1))] = draw(ANY_JSON)
        inputs.append(one)
    whole: dict[str, Any] = {"inputs": inputs}
    for key, value in (
        ("id", "a"),
        ("parameters", {"binary_data_output": True}),
        ("outputs", [{"name": "score"}, {"name": "y"}]),
    ):
        if draw(st.integers(0, 3)) == 0:
            whole[key] = (
                [o for o in value if o["name"] in (c.name for c in LIVES[which].outputs.columns)]
                if isinstance(value, list)
                else value
            )
    one = inputs[draw(st.integers(0, len(inputs) - 1))]
    if "key" in faults:
        odd = st.one_of(
            ANY_JSON, st.sampled_from(DATATYPES), st.lists(SIZES, max_size=3), st.just({"binary_data_size": 1})
        )
        one[draw(st.sampled_from([*one, "data", "parameters"]))] = draw(odd)
    if "size" in faults:
        one["parameters"] = {"binary_data_size": draw(SIZES)}
    if "tensor" in faults:
        inputs.insert(0, one) if draw(st.booleans()) else inputs.remove(one)
    if "field" in faults:
        whole[draw(st.sampled_from(["inputs", "id", "parameters", "outputs"]))] = draw(
            st.one_of(
                ANY_JSON,
                st.lists(st.fixed_dictionaries({"name": st.text(max_size=3), "parameters": ANY_JSON}), max_size=2),
            )
        )
    head = json.dumps(whole).encode()
    body = head + b"".join(raws) + (draw(st.binary(max_size=9)) if "tail" in faults else b"")
    length = str(len(head)) if raws else None
    if "length" in faults:
        length = draw(st.one_of(st.none(), st.integers(0, len(body)).map(str), SIZES.map(str), st.text(max_size=3)))
    if "splice" in faults:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 4)) :]
    return request_of(body, {} if length is None else {"inference-header-content-length": length})


@pytest.mark.parametrize("which", list(LIVES))
def test_every_request_is_read_or_refused(which: str) -> None:
    live = LIVES[which]
    found = set()

    @settings(max_examples=600, deadline=None)
    @given(requests_of(which))
    def check(request: Request) -> None:
        translation = TRANSLATIONS[id(live)]
        try:
            asked = translation.read(live, request)
        except RequestError as error:
            reply = oip.refuse(error)
        else:
            assert all(len(row) == len(live.inputs.columns) for row in asked.rows)
            reply = translation.write(live, asked, ANSWERS if live is EVERYTHING else [(1.0,)])
        assert reply.status in (200, 400, 413, 422)
        assert reply.status == 200 or list(json.loads(reply.body)) == ["error"]
        found.add(reply.status)

    check()
    assert {200, 400, 422} <= found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_and_json_give_the_same_rows(data: st.DataObject) -> None:
    """What numpy packs is read back as the same values that JSON would bring."""
    count = data.draw(st.integers(1, 4))
    columns = {
        "x": data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=count, max_size=count)),
        "n": data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count)),
        "flag": data.draw(st.lists(st.booleans(), min_size=count, max_size=count)),
    }
    types = {"x": "FP64", "n": "INT64", "flag": "BOOL"}
    by_json = read(NUMBERS, {"inputs": [tensor(name, types[name], values) for name, values in columns.items()]})
    by_bytes = read_binary(
        NUMBERS, *((name, types[name], [count], in_bytes(types[name], values)) for name, values in columns.items())
    )
    assert by_json.rows == by_bytes.rows
