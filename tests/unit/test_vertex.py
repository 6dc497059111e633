"""Vertex AI: its paths are whatever its variables say, and each instance has its prediction."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sereno.exceptions import SettingsError
from sereno.serve.protocols import vertex
from sereno.serve.protocols.vertex import Instances
from sereno.serve.wire import RequestError, Row
from tests.lives import MODEL, Applicant, Score, Served, live_of, live_with, request_of, served
from tests.strategies import JSON_SCALARS, hostile, row_types

PATH = "/v1/endpoints/17/deployedModels/42:predict"
LIVE = live_of(Applicant, Score, max_rows=4)
READER = Instances(LIVE)
ROW = {"age": 40, "income": 2, "purpose": "car", "since": "2026-05-01", "tags": ["new"]}
READ: Row = (None, 40, 2.0, "car", date(2026, 5, 1), ["new"])


def rows_of(body: Any) -> list[Row]:
    return READER.read(LIVE, request_of(body, path=PATH)).rows


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("endpoint") / "endpoint.py"
    file.write_text(MODEL)
    with contextlib.ExitStack() as opened:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIP_PREDICT_ROUTE", PATH)
            patch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/17/deployedModels/42")
            one = opened.enter_context(served(file))
        yield one


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [ROW]},
        {"instances": [ROW], "parameters": {"depth": 3}},
        {"parameters": None, "instances": [{**ROW, "colour": "red"}]},
        {"instances": [list(ROW.values())]},
        {"instances": [[None, *ROW.values()]]},
    ],
)
def test_instances_are_objects_or_lists(body: dict[str, Any]) -> None:
    assert rows_of(body) == [READ]


def test_no_instances() -> None:
    assert rows_of({"instances": []}) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", 'The body must be a JSON object with "instances".'),
        ([ROW], 'The body must be a JSON object with "instances".'),
        ({"inputs": [ROW]}, 'The body must be a JSON object with "instances".'),
        ({"instances": ROW}, '"instances" must be a list.'),
        ({"instances": [ROW, 3]}, "Rows must be all objects, or all lists."),
        (b'{"instances": [["\xff"]]}', 'The body must be a JSON object with "instances".'),
    ],
)
def test_what_has_no_instances(body: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        rows_of(body)
    assert (caught.value.status, caught.value.says) == (400, says)


@pytest.mark.parametrize("instance", [ROW, list(ROW.values())])
def test_too_many(instance: Any) -> None:
    with pytest.raises(RequestError, match="The request has 5 rows; at most 4 may be"):
        rows_of({"instances": [instance] * 5})


def test_all_mistakes() -> None:
    with pytest.raises(RequestError) as caught:
        rows_of({"instances": [ROW, {**ROW, "age": 3, "since": 5}]})
    reply = vertex.refuse(caught.value)
    assert reply.status == 422
    assert json.loads(reply.body) == {
        "error": "A row does not fit the row type of this model. row 1: age: must be at least 18; row 1: since: must be a date "
        "(YYYY-MM-DD)"
    }


@settings(deadline=None)
@given(st.data())
def test_instances_are_what_our_own_route_makes_of_them(data: st.DataObject) -> None:
    live = live_with(LIVE, data.draw(row_types()))
    some = st.fixed_dictionaries({c.name: hostile(c, JSON_SCALARS) for c in live.row.columns})
    rows = json.loads(json.dumps(data.draw(st.lists(some, min_size=1, max_size=3)), default=str))
    mistakes: list[Any] = []
    expected = live.rows_of(rows, collect=mistakes)
    request = request_of({"instances": rows})
    if not mistakes:
        assert Instances(live).read(live, request).rows == expected
        return
    with pytest.raises(RequestError) as caught:
        Instances(live).read(live, request)
    assert list(caught.value.mistakes) == mistakes


@settings(deadline=None)
@given(
    st.recursive(JSON_SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner))),
    st.binary(max_size=4),
    st.integers(0, 40),
)  # fmt: skip
def test_nothing_but_a_request_error(instances: Any, noise: bytes, at: int) -> None:
    body = json.dumps({"instances": instances}, default=str).encode()
    for one in (body, body[:at] + noise + body[at:]):
        try:
            rows_of(one)
        except RequestError as error:
            assert set(json.loads(vertex.refuse(error).body)) == {"error"}  # noqa: PT017


def test_predict_and_health_are_where_the_variables_say(endpoint: Served) -> None:
    reply = endpoint.ask("POST", PATH, {"instances": [{"a": 1, "b": 2.5}, {"a": 20, "b": None}]})
    assert reply.status_code == 200
    assert reply.json() == {"predictions": [{"total": 3.5, "is_large": False}, {"total": 20.0, "is_large": True}]}
    assert endpoint.ask("GET", "/v1/endpoints/17/deployedModels/42").status_code == 200
    assert endpoint.ask("POST", PATH, {"instances": [[1, 2]]}).json()["predictions"][0]["total"] == 3.0


def test_not_ready(endpoint: Served) -> None:
    endpoint.service.draining.set()
    try:
        assert endpoint.ask("GET", "/v1/endpoints/17/deployedModels/42").status_code == 503
    finally:
        endpoint.service.draining.clear()


def test_errors_have_one_shape_there(endpoint: Served) -> None:
    assert endpoint.ask("POST", PATH, "x").json() == {"error": 'The body must be a JSON object with "instances".'}
    assert endpoint.ask("POST", PATH, {"instances": [[13, 1]]}).status_code == 500


def test_a_path_of_ours_becomes_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "total.py"
    file.write_text(MODEL)
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/ping")
    with served(file) as one:
        assert one.ask("POST", "/predict", {"instances": [[1, 2]]}).json()["predictions"] == [
            {"total": 3.0, "is_large": False}
        ]
        assert one.service.hot[b"/predict"][0].name == "vertex"
        assert one.ask("GET", "/ping").content == b"{}"
        assert one.ask("POST", "/models/total/predict", {"a": 1, "b": 2}).json() == {"total": 3.0, "is_large": False}


def test_several_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "one.py", tmp_path / "two.py"]
    for file in files:
        file.write_text(MODEL.replace('"total", inputs', f'"{file.stem}", inputs'))
    monkeypatch.setenv("AIP_PREDICT_ROUTE", PATH)
    with served(*files) as two:
        reply = two.ask("POST", PATH, {"instances": []})
    assert reply.status_code == 404
    assert reply.json()["error"].startswith(
        "Several models are served here, and Vertex AI's requests do not say which one"
    )


def test_outside_vertex_there_are_no_such_paths(tmp_path: Path) -> None:
    file = tmp_path / "total.py"
    file.write_text(MODEL)
    with served(file) as one:
        assert vertex.routes(one.service) == []


@pytest.mark.parametrize("path", ["predict", "/{model}", "/predict?x=1"])
def test_a_variable_that_is_no_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "total.py"
    file.write_text(MODEL)
    monkeypatch.setenv("AIP_PREDICT_ROUTE", path)
    says = "^The variable AIP_PREDICT_ROUTE is '.*'. It must be a path, such as /predict.$"
    with pytest.raises(SettingsError, match=says), served(file):
        pass
