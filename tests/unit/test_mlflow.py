"""MLflow's scoring protocol: every form of a body gives the rows that our own route would make of them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sereno import __version__
from sereno.serve.protocols import mlflow
from sereno.serve.protocols.invocations import Invocations, accepted, form_of
from sereno.serve.wire import Mistake, RequestError, Row
from tests.lives import MODEL, Applicant, Score, Served, live_of, live_with, request_of, served
from tests.strategies import JSON_SCALARS, hostile, row_types

LIVE = live_of(Applicant, Score, max_rows=4, max_text_bytes=200, max_depth=6)
ANY = live_of(Applicant, Score)
BOTH = Invocations(LIVE, batch=False)
ROW = {"age": 40, "income": 2, "purpose": "car", "since": "2026-05-01", "tags": ["new"]}
NAMES, VALUES = list(ROW), list(ROW.values())
ONE = "The body must have exactly one of dataframe_split, dataframe_records, instances or inputs; it has"
NONE, TWO = f"{ONE} none of them.", f"{ONE} 2 of them."
READ: Row = (None, 40, 2.0, "car", date(2026, 5, 1), ["new"])


def rows_of(body: Any, content_type: str | None = "application/json", both: Invocations = BOTH) -> list[Row]:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return both.read(both._frames._live, request_of(body, headers)).rows


def refused(body: Any, content_type: str = "application/json") -> RequestError:
    with pytest.raises(RequestError) as caught:
        rows_of(body, content_type)
    return caught.value


@pytest.fixture(scope="module")
def total(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("total") / "total.py"
    file.write_text(MODEL)
    with served(file) as one:
        yield one


class TestForms:
    @pytest.mark.parametrize(
        "body",
        [
            {"dataframe_split": {"columns": NAMES, "data": [VALUES]}},
            {"dataframe_split": {"columns": NAMES, "index": ["x"], "data": [VALUES]}, "params": {"deep": True}},
            {"dataframe_split": {"columns": [*NAMES[::-1], "other"], "data": [[*VALUES[::-1], {"any": []}]]}},
            {"dataframe_split": {"columns": ["id", *NAMES], "data": [[None, *VALUES]]}},
            {"dataframe_split": {"columns": [0, 1, 2, 3, 4], "data": [VALUES]}},
            {"dataframe_split": {"columns": None, "data": [VALUES]}},
            {"dataframe_split": {"data": [VALUES]}},
            {"dataframe_split": {"data": [[None, *VALUES]]}},
            {"dataframe_records": [ROW]},
            {"dataframe_records": [{**ROW, "other": 1}]},
            {"instances": [ROW]},
            {"instances": [VALUES]},
            {"instances": {name: [value] for name, value in ROW.items()}},
            {"inputs": {name: [value] for name, value in ROW.items()}},
            {"inputs": ROW},
            {"inputs": [ROW]},
            {"inputs": [VALUES], "params": None},
        ],
    )
    def test_each_says_the_same_row(self, body: dict[str, Any]) -> None:
        assert rows_of(body) == [READ]
        assert rows_of(json.dumps(body, indent=1)) == [READ]

    def test_keys_are_taken_where_they_are_given(self) -> None:
        assert rows_of({"instances": [{**ROW, "id": 7}]}) == [(7, *READ[1:])]
        assert rows_of({"dataframe_split": {"columns": ["id", *NAMES], "data": [[7, *VALUES]]}}) == [(7, *READ[1:])]

    def test_many_rows_in_order(self) -> None:
        rows = [{**ROW, "age": age} for age in (40, 50, 60)]
        for body in (
            {"dataframe_records": rows},
            {"dataframe_split": {"columns": NAMES, "data": [list(row.values()) for row in rows]}},
            {"inputs": {name: [row[name] for row in rows] for name in NAMES}},
        ):
            assert [row[1] for row in rows_of(body)] == [40, 50, 60]

    @pytest.mark.parametrize("empty", [{"dataframe_records": []}, {"instances": []}, {"dataframe_split": {"data": []}}])
    def test_no_rows(self, empty: dict[str, Any]) -> None:
        assert rows_of(empty) == []

    def test_nan_of_a_pandas_frame_is_null(self) -> None:
        body = json.dumps(
            {"dataframe_split": {"columns": NAMES, "data": [[40, math.nan, "car", "2026-05-01", ["NaN"]]]}}
        )
        assert "NaN" in body.replace('"NaN"', "")
        assert rows_of(body) == [(None, 40, None, "car", date(2026, 5, 1), ["NaN"])]
        assert (
            rows_of('{"instances":[{"age":40,"income":NaN,"purpose":"car","since":"2026-05-01","tags":null}]}')[0][2]
            is None
        )

    def test_infinity_is_no_number(self) -> None:
        assert refused('{"instances": [[40, Infinity, "car", "2026-05-01", null]]}').says == "The body is not JSON."

    @settings(deadline=None)
    @given(st.data())
    def test_every_form_gives_what_our_own_route_makes_of_the_rows(self, data: st.DataObject) -> None:
        row = data.draw(row_types())
        live = live_with(ANY, row)
        both = Invocations(live, batch=False)
        names = [c.name for c in row.columns]
        some = st.fixed_dictionaries({c.name: hostile(c, JSON_SCALARS) for c in row.columns})
        rows = json.loads(json.dumps(data.draw(st.lists(some, min_size=1, max_size=3)), default=str))
        mistakes: list[Mistake] = []
        expected = live.rows_of(rows, collect=mistakes)
        lists = [[one[name] for name in names] for one in rows]
        for body in (
            {"dataframe_records": rows},
            {"dataframe_split": {"columns": names, "data": lists}},
            {"dataframe_split": {"data": lists}},
            {"instances": rows},
        ):
            if not mistakes:
                assert rows_of(body, both=both) == expected
                continue
            with pytest.raises(RequestError) as caught:
                rows_of(body, both=both)
            assert list(caught.value.mistakes) == mistakes


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("{", "The body is not JSON."),
            (b"\xff", "The body is not JSON."),
            ('{"instances": [["\\ud800"]', "The body is not JSON."),
            ("", "The body is not JSON."),
            ("[[1]]", "The body must be a JSON object with one of dataframe_split, dataframe_records, instances or inputs."),
            ({}, NONE),
            (ROW, NONE),
            ({"instances": [], "inputs": []}, TWO),
            ({"dataframe_split": {"data": []}, "inputs": []}, TWO),
            ({"dataframe_split": []}, mlflow.SPLIT),
            ({"dataframe_split": {"columns": []}}, mlflow.SPLIT),
            ({"dataframe_split": {"columns": NAMES, "data": {}}}, mlflow.SPLIT),
            ({"dataframe_split": {"columns": NAMES, "data": [VALUES], "dtype": 1}}, mlflow.SPLIT),
            ({"dataframe_split": {"columns": "age", "data": []}}, "The columns of dataframe_split must be a list of names."),
            ({"dataframe_records": {"age": [1]}}, "dataframe_records must be a list of rows, each an object."),
            ({"instances": [VALUES, ROW]}, "Rows must be all objects, or all lists."),
        ],
    )  # fmt: skip
    def test_what_is_no_form(self, body: Any, says: str) -> None:
        error = refused(body)
        assert (error.status, error.says) == (400, says)

    def test_all_mistakes_of_all_rows(self) -> None:
        error = refused({"dataframe_split": {"columns": NAMES, "data": [[17, "x", "car", "2026-05-01", None], VALUES,
                                                                        [18, 1, "bike", "May", [1]]]}})  # fmt: skip
        assert error.status == 422
        assert [(m.row, m.column, m.expected) for m in error.mistakes] == [
            (0, "age", "must be at least 18"),
            (0, "income", "must be a number"),
            (2, "purpose", "must be one of car, boat"),
            (2, "since", "must be a date (YYYY-MM-DD)"),
            (2, "tags[0]", "must be text"),
        ]
        reply = mlflow.refuse(error)
        assert reply.status == 400
        assert json.loads(reply.body) == {
            "error_code": "BAD_REQUEST",
            "message": "2 rows do not fit the row type of this model. row 0: age: must be at least 18; row 0: income: must be a "
            "number; row 2: purpose: must be one of car, boat; row 2: since: must be a date (YYYY-MM-DD); row 2: tags[0]: must "
            "be text",
        }

    def test_a_small_request_has_no_large_reply(self) -> None:
        many = Invocations(ANY, batch=False)
        for body in (
            {"instances": [[{}] * 5] * 1000},
            {"dataframe_split": {"data": [1] * 1000}},
            {"dataframe_split": {"columns": NAMES, "data": [[*VALUES[:4], [1] * 300]] * 1000}},
            "\n".join(["[1]"] * 1000),
        ):
            lines = "application/jsonlines" if isinstance(body, str) else "application/json"
            with pytest.raises(RequestError) as caught:
                rows_of(body, lines, many)
            assert len(caught.value.mistakes) == 100
            assert caught.value.mistakes[-1].expected.endswith(" more mistakes from this row on")
            assert len(mlflow.refuse(caught.value).body) < 20_000

    def test_a_record_that_is_no_object(self) -> None:
        error = refused({"dataframe_records": [ROW, 3]})
        assert [tuple(m) for m in error.mistakes] == [(1, "row", "must be an object")]

    @pytest.mark.parametrize(
        "body",
        [
            {"dataframe_split": {"columns": NAMES, "data": [VALUES] * 5}},
            {"dataframe_records": [ROW] * 5},
            {"instances": [VALUES] * 5},
            {"inputs": {name: [value] * 5 for name, value in ROW.items()}},
        ],
    )
    def test_too_many_rows(self, body: dict[str, Any]) -> None:
        error = refused(body)
        assert (error.status, error.says) == (413, "The request has 5 rows; at most 4 may be.")

    def test_too_deep_or_too_long(self) -> None:
        assert refused('{"inputs":' + "[" * 100_000).status == 400
        assert refused({"inputs": [[[[[[[[1]]]]]]]]}).says == "The JSON nests deeper than 6 levels."
        assert refused({"dataframe_records": [{**ROW, "tags": ["x" * 201]}]}).status == 413

    @settings(deadline=None)
    @given(st.data())
    def test_nothing_but_a_request_error(self, data: st.DataObject) -> None:
        values = st.recursive(
            st.one_of(JSON_SCALARS, st.just({})),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*NAMES, "id", "x"]), inner)
            ),
            max_leaves=12,
        )
        split = st.fixed_dictionaries({}, optional=dict.fromkeys(("data", "columns", "index"), values))
        forms = {
            "dataframe_split": st.one_of(values, split),
            "dataframe_records": values,
            "instances": values,
            "inputs": values,
        }
        text = json.dumps(
            data.draw(st.fixed_dictionaries({}, optional={**forms, "params": values})), default=str
        ).encode()
        at, many = data.draw(st.integers(0, len(text))), data.draw(st.sampled_from([0, 0, 0, 1, 5]))
        body = text[:at] + data.draw(st.sampled_from([b"", b"", b"NaN", b"\xff", b'"', b"[", b"}"])) + text[at + many :]
        try:
            rows = rows_of(body)
        except RequestError as error:
            reply = mlflow.refuse(error)
            assert reply.status in (400, 413)
            assert set(json.loads(reply.body)) == {"error_code", "message"}
        else:
            assert all(len(row) == 6 for row in rows)


class TestHeaders:
    @pytest.mark.parametrize(
        "content_type",
        ["application/json; charset=utf-8", "application/json;charset=UTF-8", 'Application/JSON; charset="utf-8"', None,
         "application/json;"],
    )  # fmt: skip
    def test_json(self, content_type: str | None) -> None:
        assert rows_of({"dataframe_records": [ROW]}, content_type) == [READ]

    @pytest.mark.parametrize(
        "content_type",
        ["text/xml", "application/json; charset=latin-1", "application/json; format=pandas-split", "json", "", ";",
         "application/x-www-form-urlencoded", "text/csv; header=present"],
    )  # fmt: skip
    def test_any_other_is_415(self, content_type: str) -> None:
        error = refused({"dataframe_records": [ROW]}, content_type)
        assert error.status == 415
        reply = mlflow.refuse(error)
        assert (reply.status, reply.content_type) == (415, b"text/plain; charset=utf-8")

    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            (b"*/*", None),
            (b"application/json", "json"),
            (b"text/csv", "csv"),
            (b"application/jsonlines", "jsonlines"),
            (b"application/x-ndjson", "jsonlines"),
            (b"text/html, application/json;q=0.5, text/csv;q=0.9", "csv"),
            (b"text/html, */*;q=0.1", None),
            (b"text/csv;q=x", "csv"),
            (b"text/*", "csv"),
        ],
    )
    def test_accept(self, accept: bytes, form: str | None) -> None:
        assert accepted(accept) == form

    @pytest.mark.parametrize("accept", [b"image/png", b"text/csv;q=0", b"", b"\xff"])
    def test_what_cannot_be_given(self, accept: bytes) -> None:
        with pytest.raises(RequestError, match="^No type that Accept asks for can be given. Valid are "):
            accepted(accept)

    @settings(deadline=None)
    @given(st.binary())
    def test_no_header_crashes(self, value: bytes) -> None:
        for read in (form_of, accepted):
            with contextlib.suppress(RequestError):
                read(value)


class TestServer:
    def test_records_come_back(self, total: Served) -> None:
        reply = total.ask(
            "POST",
            "/invocations",
            {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2.5], [10, None], [20, 1]]}},
        )
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
        assert reply.json() == {
            "predictions": [
                {"total": 3.5, "is_large": False},
                {"total": 10.0, "is_large": False},
                {"total": 21.0, "is_large": True},
            ]
        }

    def test_the_same_as_our_own_route(self, total: Served) -> None:
        rows = [{"a": 3, "b": 0.1}, {"a": 4, "b": None}]
        own = total.ask("POST", "/predict", rows, content_type="application/json").json()
        for form in ("dataframe_records", "instances", "inputs"):
            assert total.ask("POST", "/invocations", {form: rows}, content_type="application/json").json() == {
                "predictions": own
            }

    def test_a_row_that_predict_cannot_answer_fails_its_request(self, total: Served) -> None:
        reply = total.ask("POST", "/invocations", {"instances": [[1, 2], [13, 2]]})
        assert reply.status_code == 500
        assert reply.json()["error_code"] == "INTERNAL_ERROR"
        assert "thirteen" not in reply.text
        assert "log tells why, under " in reply.json()["message"]

    def test_ping_health_and_version(self, total: Served) -> None:
        for path in ("/ping", "/health"):
            reply = total.ask("GET", path)
            assert (reply.status_code, reply.text) == (200, "\n")
        reply = total.ask("GET", "/version")
        assert (reply.status_code, reply.text) == (200, __version__)

    def test_not_ready(self, total: Served) -> None:
        total.service.draining.set()
        try:
            assert total.ask("GET", "/ping").status_code == 404
        finally:
            total.service.draining.clear()

    def test_another_method_is_told_in_the_same_shape(self, total: Served) -> None:
        reply = total.ask("GET", "/invocations")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert set(reply.json()) == {"error_code", "message"}

    def test_several_models_have_no_invocations(self, tmp_path: Path) -> None:
        files = [tmp_path / "one.py", tmp_path / "two.py"]
        for file in files:
            file.write_text(MODEL.replace('"total", inputs', f'"{file.stem}", inputs'))
        with served(*files) as two:
            reply = two.ask("POST", "/invocations", {"instances": []})
        assert reply.status_code == 404
        assert reply.json() == {
            "error_code": "RESOURCE_DOES_NOT_EXIST",
            "message": "Several models are served here, and /invocations cannot say which one it means. Ask POST "
            "/models/NAME/predict (NAME is one of one, two), or serve one model alone: `sereno serve FILE`.",
        }


@pytest.mark.parametrize(
    ("status", "shown", "code"),
    [(400, 400, "BAD_REQUEST"), (401, 401, "UNAUTHENTICATED"), (413, 413, "BAD_REQUEST"), (422, 400, "BAD_REQUEST"),
     (500, 500, "INTERNAL_ERROR"), (503, 503, "TEMPORARILY_UNAVAILABLE"), (504, 504, "DEADLINE_EXCEEDED")],
)  # fmt: skip
def test_every_error_has_mlflows_shape(status: int, shown: int, code: str) -> None:
    reply = mlflow.refuse(RequestError(status, "It says so.", retry_after=3 if status == 503 else None))
    assert (reply.status, json.loads(reply.body)) == (shown, {"error_code": code, "message": "It says so."})
    assert ((b"retry-after", b"3") in reply.headers) is (status == 503)
