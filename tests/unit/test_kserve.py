"""KServe's first protocol: instances in, predictions out."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest

from sereno import Key
from sereno.serve.live import Live
from sereno.serve.protocols import kserve
from sereno.serve.protocols.vertex import Instances
from sereno.serve.wire import Request, RequestError
from tests.lives import live_of, request_of


class Customer(TypedDict):
    id: Key[int]
    age: int
    city: str | None


class Score(TypedDict):
    score: float
    band: str | None


@pytest.fixture(scope="module")
def live() -> Live:
    return live_of(Customer, Score, max_rows=4)


@pytest.fixture
def service(live: Live) -> Any:
    def named(name: str) -> Live:
        if name != "m":
            raise RequestError(404, "There is no such model here. Served: m.")
        return live

    return SimpleNamespace(lives={"m": live}, live=named, is_ready=True)


def answer_of(service: Any, method: str, path: str, request: Request | None = None, **params: str) -> tuple[int, Any]:
    route = next(r for r in kserve.routes(service) if (r.method, r.path) == (method, path) and r.answer is not None)
    assert route.answer is not None
    assert route.refuse is not None
    try:
        reply = route.answer(service, request or request_of(b""), params)
    except RequestError as error:
        reply = route.refuse(error)
    return reply.status, json.loads(reply.body) if reply.body else dict(reply.headers)


@pytest.mark.parametrize(
    ("instances", "rows"),
    [
        ([{"age": 18, "city": "Cádiz"}, {"id": 1, "age": 19.0, "city": None}], [(None, 18, "Cádiz"), (1, 19, None)]),
        ([[18, "Cádiz"], [19, None]], [(None, 18, "Cádiz"), (None, 19, None)]),
        ([[7, 18, "Cádiz"]], [(7, 18, "Cádiz")]),
        ([], []),
    ],
)
def test_instances_are_rows(live: Live, instances: Any, rows: Any) -> None:
    request = request_of({"instances": instances, "parameters": {"a": 1}})
    assert Instances(live).read(live, request).rows == rows


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "The body must be"),
        (b"[]", 400, "The body must be"),
        ({}, 400, "The body must be"),
        ({"instances": {}}, 400, "must be a list"),
        (b'{"instances":' + b"[" * 100_000, 400, "nests deeper than 32 levels"),
        ({"instances": [[1, 2, 3, 4]]}, 422, "3 values (id, age, city), or 2 without id"),
        ({"instances": [{"age": "x"}]}, 422, "row 0: age: must be a whole number; row 0: city: is absent"),
        ({"instances": [{"age": 18, "city": "a"}] * 5}, 413, "at most 4"),
        ({"instances": [{"age": 18, "city": "x" * 70_000}]}, 413, "65,536 bytes"),
    ],
)
def test_what_is_refused(live: Live, body: Any, status: int, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        Instances(live).read(live, request_of(body))
    reply = kserve.refuse(caught.value)
    assert reply.status == status
    assert says in json.loads(reply.body)["error"]


def test_predictions_are_objects_in_order(live: Live) -> None:
    translation = Instances(live)
    asked = translation.read(live, request_of({"instances": [[18, "a"], [19, None]]}))
    reply = translation.write(live, asked, [(0.5, "ä"), (1.0, None)])
    assert json.loads(reply.body) == {"predictions": [{"score": 0.5, "band": "ä"}, {"score": 1.0, "band": None}]}
    assert reply.content_type == b"application/json"


def test_routes(service: Any) -> None:
    hot = [(r.method, r.path) for r in kserve.routes(service) if r.exchange is not None]
    assert hot == [("POST", "/v1/models/m:predict")]
    assert answer_of(service, "GET", "/v1/models") == (200, {"models": ["m"]})
    assert answer_of(service, "GET", "/v1/models/{m}", m="m") == (200, {"name": "m", "ready": True})
    unknown = {"error": "There is no such model here. Served: m."}
    assert answer_of(service, "GET", "/v1/models/{m}", m="x") == (404, unknown)
    assert answer_of(service, "POST", "/v1/models/{m}:predict", m="x") == (404, unknown)


def test_a_client_asks_whether_the_server_lives_and_a_browser_for_a_page(service: Any) -> None:
    assert answer_of(service, "GET", "/") == (200, {"status": "alive"})
    assert answer_of(service, "GET", "/", request_of(b"", {"accept": "*/*"})) == (200, {"status": "alive"})
    browser = request_of(b"", {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer_of(service, "GET", "/", browser) == (307, {b"location": b"/docs"})
