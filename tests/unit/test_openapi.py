"""The OpenAPI document is valid, complete, and says what the server does."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from sereno.lookup.found import UNKNOWN_KEY
from sereno.serve import openapi
from sereno.serve.guard import new_key
from sereno.serve.openapi.parts import PROBLEM
from sereno.serve.protocols import native
from sereno.serve.wire import Mistake, RequestError
from tests.lives import Served
from tests.lives import served as served_of
from tests.lookups import publish

MODELS = Path(__file__).parents[1] / "models"
PROBLEM_TYPE = "application/problem+json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two models, one of which has something published."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("plain.py", "everything.py"):
        shutil.copy(MODELS / name, folder)
    publish(folder, "plain.py")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Served]:
    """One model, open to all."""
    with served_of(folder / "plain.py") as served:
        yield served


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[Served]:
    """Two models, which want keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERENO_SECRET_API_KEYS", new_key().line)
        with served_of(folder / "plain.py", folder / "everything.py") as served:
            yield served


@pytest.fixture(params=["plain", "both"])
def served(request: pytest.FixtureRequest) -> Served:
    served: Served = request.getfixturevalue(request.param)
    return served


def document(served: Served) -> Any:
    return json.loads(openapi.encode(served.service))


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, found in document["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def test_it_is_valid(served: Served) -> None:
    OpenAPIV31SpecValidator(document(served)).validate()


def test_it_has_every_route(served: Served) -> None:
    told = {(method.upper(), path) for method, path, _ in operations(document(served))}
    left_out = {
        ("GET", "/docs/{name}"),  # what the page loads
        ("POST", "/v2/models/{model}/infer"), ("POST", "/v2/models/{model}/versions/{version}/infer"),
        ("POST", "/v1/models/{model}:predict"),  # these say that there is no such model
    }  # fmt: skip
    if served.service.only is None:
        left_out.add(("POST", "/invocations"))  # it says that it needs one model alone
    assert {(route.method, openapi.template(route)) for route in served.service.routes} == told | left_out
    assert not told & left_out


def test_every_operation_has_its_name(served: Served) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document(served))]
    assert len(names) == len(set(names))


def test_every_error_of_our_own_routes_is_told(both: Served, plain: Served) -> None:
    said = document(both)["paths"]["/models/plain/predict"]["post"]["responses"]
    assert sorted(said) == ["200", "400", "401", "404", "408", "413", "415", "422", "500", "503", "504"]
    assert all(said[status]["content"].keys() == {PROBLEM_TYPE} for status in said if status != "200")
    assert said["503"]["headers"].keys() == {"X-Request-ID", "Retry-After"}
    open_to_all = document(plain)["paths"]["/predict"]["post"]["responses"]
    assert "403" in open_to_all
    assert "401" not in open_to_all


def test_problems_are_as_told() -> None:
    mistakes = [Mistake(0, "age", "must be at least 18")]
    for error in (RequestError(422, "No.", mistakes), RequestError(500, "No.", error_id="e")):
        problem = json.loads(native.refuse(error).body)
        jsonschema.validate(problem, {**PROBLEM, "additionalProperties": False})


def test_keys_are_told_where_there_are_some(both: Served, plain: Served) -> None:
    with_keys, without = document(both), document(plain)
    assert with_keys["security"] == [{"key": []}]
    assert with_keys["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    free = {path for _, path, operation in operations(with_keys) if operation.get("security") == []}
    assert free == {"/livez", "/readyz", "/ping"}
    assert "security" not in without
    assert "securitySchemes" not in without["components"]


def test_one_model_has_the_short_path(both: Served, plain: Served) -> None:
    assert next(iter(document(plain)["paths"])) == "/predict"
    assert "/predict" not in document(both)["paths"]
    assert "/models/everything/predict" in document(both)["paths"]


def test_rows_and_lists_of_rows(plain: Served) -> None:
    body = document(plain)["paths"]["/predict"]["post"]["requestBody"]
    row = {"$ref": "#/components/schemas/plain.row"}
    assert body["required"] is True
    assert body["content"]["application/json"]["schema"] == {
        "oneOf": [row, {"type": "array", "items": row, "maxItems": 1000}]
    }
    schemas = document(plain)["components"]["schemas"]
    assert schemas["plain.row"]["required"] == ["age", "plan", "monthly_spend"]
    assert schemas["plain.prediction"]["required"] == ["probability"]


def examples(found: Any) -> list[Any]:
    content = found["content"].values()
    return [one["value"] for media in content for one in media.get("examples", {}).values()]


def test_examples_fit(served: Served) -> None:
    """Of requests and answers, in the schemas that stand beside them."""
    told = document(served)
    seen = 0
    for _, _, operation in operations(told):
        for part in (operation.get("requestBody", {"content": {}}), operation["responses"]["200"]):
            for media in part["content"].values():
                schema = {**media.get("schema", {}), "components": told["components"]}
                for example in media.get("examples", {}).values():
                    jsonschema.Draft202012Validator(schema).validate(example["value"])
                    seen += 1
    assert seen >= 8


def test_the_server_takes_the_examples(plain: Served) -> None:
    for method, path, operation in operations(document(plain)):
        for example in examples(operation.get("requestBody", {"content": {}})):
            place = path.replace("{model}", "plain").replace("{version}", plain.service.live("plain").model_version)
            answer = plain.ask(method.upper(), place, example)
            assert answer.status_code == 200, (path, answer.text)


def test_the_example_of_a_422_is_what_is_said(plain: Served) -> None:
    said = document(plain)["paths"]["/predict"]["post"]["responses"]["422"]["content"][PROBLEM_TYPE]["example"]
    assert plain.ask("POST", "/predict", dict.fromkeys(("age", "plan", "monthly_spend"))).json()["errors"] == [
        {"row": 0, "column": "age", "expected": "is missing (null)"},
        {"row": 0, "column": "plan", "expected": "is missing (null)"},
    ]
    assert said == plain.ask("POST", "/predict", dict.fromkeys(("age", "plan", "monthly_spend"))).json()


# Lookups


def test_a_key_is_a_segment_for_each_of_its_columns(both: Served, plain: Served) -> None:
    operation = document(plain)["paths"]["/predictions/{customer_id}"]["get"]
    (key, none_match) = operation["parameters"]
    assert (key["name"], key["in"], key["schema"]) == ("customer_id", "path", {"type": "integer", "format": "int64"})
    assert (none_match["name"], none_match["required"]) == ("If-None-Match", False)
    composite = document(both)["paths"]["/models/everything/predictions/{shop}/{customer_id}"]["get"]
    assert [one["name"] for one in composite["parameters"]] == ["shop", "customer_id", "If-None-Match"]
    many = document(both)["paths"]["/models/everything/predictions"]["post"]
    schema = many["requestBody"]["content"]["application/json"]["schema"]["properties"]["keys"]
    assert schema["items"]["prefixItems"] == [{"type": "string"}, {"type": "integer", "format": "int64"}]
    assert schema["maxItems"] == 1000


def test_what_a_lookup_says(plain: Served) -> None:
    told = document(plain)
    assert "So is `/models/NAME/predictions`, for keys." in told["info"]["description"]
    responses = told["paths"]["/predictions/{customer_id}"]["get"]["responses"]
    assert sorted(responses) == ["200", "304", "400", "403", "404", "422", "500", "503"]
    headers = {"X-Request-ID", "ETag", "Age", "Cache-Control"}
    assert responses["200"]["headers"].keys() == responses["304"]["headers"].keys() == headers
    assert "content" not in responses["304"]
    found = plain.ask("GET", "/predictions/17")
    assert found.status_code == 200
    assert headers <= {name.title().replace("-Id", "-ID").replace("Etag", "ETag") for name in found.headers}
    schema = {**told["components"]["schemas"]["plain.lookup"], "components": told["components"]}
    jsonschema.Draft202012Validator(schema).validate(found.json())
    assert found.json().keys() == schema["properties"].keys()
    not_modified = plain.ask("GET", "/predictions/17", If_None_Match=found.headers["etag"])
    assert (not_modified.status_code, not_modified.content) == (304, b"")
    assert plain.ask("GET", "/predictions/99").json() == responses["404"]["content"][PROBLEM_TYPE]["example"]
    assert responses["404"]["content"][PROBLEM_TYPE]["example"]["detail"] == UNKNOWN_KEY
    assert plain.ask("GET", "/predictions/x").json() == responses["422"]["content"][PROBLEM_TYPE]["example"]
    (mistake,) = responses["422"]["content"][PROBLEM_TYPE]["example"]["errors"]
    assert mistake == {"row": 0, "column": "customer_id", "expected": "must be a whole number"}


def test_what_many_lookups_say(both: Served, plain: Served) -> None:
    many = document(plain)["paths"]["/predictions"]["post"]
    assert examples(many["requestBody"]) == [{"keys": [2, 3]}]
    refused = many["responses"]["422"]["content"][PROBLEM_TYPE]["example"]
    assert plain.ask("POST", "/predictions", {"keys": [None]}).json() == refused
    composite = document(both)["paths"]["/models/everything/predictions"]["post"]
    (asked,) = examples(composite["requestBody"])
    assert asked["keys"][0] == ["abc", 2] != asked["keys"][1]


def test_other_protocols_take_a_key_alone(plain: Served) -> None:
    told = document(plain)
    assert told["components"]["schemas"]["plain.key"]["required"] == ["customer_id"]
    body = told["paths"]["/v1/models/plain:predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = {**body, "components": told["components"]}
    for instance in ({"customer_id": 17}, {"age": 33, "plan": "basic", "monthly_spend": None}):
        jsonschema.Draft202012Validator(schema).validate({"instances": [instance]})
        assert plain.ask("POST", "/v1/models/plain:predict", {"instances": [instance]}).status_code == 200


def test_what_may_be_live_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERENO_SECRET_API_KEYS", raising=False)  # another fixture's
    (tmp_path / "fetched.py").write_text(FETCHED)
    (tmp_path / "sereno.toml").write_text('[models.fetched]\nunknown = "live"\nlog = "off"')
    with served_of(tmp_path / "fetched.py") as served:
        told = document(served)
        answer = told["components"]["schemas"]["fetched.lookup"]["properties"]
        assert answer["origin"] == {"enum": ["lookup", "live"]}
        assert answer["version"]["type"] == ["integer", "null"]
        assert "504" in told["paths"]["/predictions/{day}"]["get"]["responses"]
        schema = {**told["components"]["schemas"]["fetched.lookup"], "components": told["components"]}
        live = served.ask("GET", "/predictions/2026-05-01").json()
        jsonschema.Draft202012Validator(schema).validate(live)
        assert (live["origin"], live["version"]) == ("live", None)


FETCHED = """
from datetime import date
from typing import TypedDict

from sereno import Fetched, Key, Model


class Row(TypedDict):
    day: Key[date]
    x: Fetched[float]


class Answer(TypedDict):
    y: float


model = Model("fetched", inputs=Row, outputs=Answer)
model.load(lambda: None)


@model.fetch
def fetch(keys: list[date]) -> dict[date, float]:
    return dict.fromkeys(keys, 1.0)


@model.predict
def predict(loaded: None, rows: list[Row]) -> list[Answer]:
    return [{"y": row["x"]} for row in rows]
"""


def test_a_model_that_is_not_looked_up_has_no_such_path(tmp_path: Path) -> None:
    (tmp_path / "fetched.py").write_text(FETCHED)
    (tmp_path / "sereno.toml").write_text('[models.fetched]\nlookup = "off"')
    with served_of(tmp_path / "fetched.py") as served:
        told = document(served)
        assert not [path for path in told["paths"] if "predictions" in path]
        assert "fetched.lookup" not in told["components"]["schemas"]
        assert "look" not in told["info"]["description"]
        assert "/stream` is a WebSocket" in told["info"]["description"]
        assert "/predictions" not in told["info"]["description"]


def test_a_lookup_has_its_curl_line_and_its_program(both: Served, plain: Served) -> None:
    description = document(plain)["paths"]["/predictions/{customer_id}"]["get"]["description"]
    assert "```sh\ncurl http://127.0.0.1:8000/predictions/2\n```" in description
    assert "\nprint(client.lookup(2))\n" in description
    composite = document(both)["paths"]["/models/everything/predictions/{shop}/{customer_id}"]["get"]["description"]
    assert (
        'curl http://127.0.0.1:8000/models/everything/predictions/abc/2 -H "Authorization: Bearer $SERENO_KEY"\n'
        in composite
    )
    assert "\nprint(client.lookup(('abc', 2)))\n" in composite


def test_it_is_served(plain: Served) -> None:
    answer = plain.ask("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document(plain)
    assert plain.ask("GET", "/openapi.json").content == answer.content


def snippet(served: Served, language: str, path: str) -> str:
    description = document(served)["paths"][path]["post"]["description"]
    found = re.search(rf"^```{language}\n(.*?)^```$", description, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_a_curl_line_for_each_model(both: Served, plain: Served) -> None:
    words = shlex.split(snippet(plain, "sh", "/predict"))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/predict"]
    assert words[2:5] == ["-H", "Content-Type: application/json", "-d"]
    assert plain.ask("POST", "/predict", words[5]).status_code == 200
    line = snippet(both, "sh", "/models/everything/predict")
    assert line.startswith(
        'curl http://127.0.0.1:8000/models/everything/predict -H "Authorization: Bearer $SERENO_KEY" '
    )
    assert '"bought"' not in line  # it is fetched


def test_a_python_program_for_each_model(both: Served, plain: Served, tmp_path: Path) -> None:
    assert snippet(plain, "python", "/predict") == (
        "import sereno\n\n"
        'client = sereno.Client("http://127.0.0.1:8000")\n'
        "row = {'customer_id': 2, 'age': 110, 'plan': 'basic', 'monthly_spend': 0.5}\n"
        "print(client.predict(row))\n"
    )
    program = snippet(both, "python", "/models/everything/predict")
    assert 'sereno.Client("http://127.0.0.1:8000", model="everything", key=os.environ["SERENO_KEY"])' in program
    compile(program, "snippet", "exec")
