"""Clients of other protocols ask by the key alone: which requests are lookups, what they are answered, and how old it is."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from annotated_types import Ge
from hypothesis import given, settings

from sereno import Fetched, Key, Model
from sereno.fetching import Fetch
from sereno.lookup.keys import KeyCodec
from sereno.scoring import Scorer
from sereno.serve.live import Live
from sereno.serve.lookup import Lookups
from sereno.serve.metrics import Metrics
from sereno.serve.protocols import mlflow, oip, vertex
from sereno.serve.protocols.infer import Translation
from sereno.serve.protocols.invocations import Invocations
from sereno.serve.protocols.vertex import Instances
from sereno.serve.wire import Exchange, Reply, Request, RequestError, settle
from sereno.settings import ModelSettings, ServeSettings, Settings
from tests.lives import request_of
from tests.strategies import JSON_SCALARS

NOW = datetime(2026, 11, 22, 1, tzinfo=UTC).timestamp()
AGE = 3600
HEADERS = {"etag": 'W/"12-false"', "age": "3600", "cache-control": "private, no-cache"}
MIXED = {"age": "3600", "cache-control": "no-store"}
FRESH = {"cache-control": "no-store"}
ORIGIN = {
    "version": 12,
    "data_date": "2026-11-21",
    "data_time": "2026-11-22T00:00:00Z",
    "age_seconds": AGE,
    "stale": False,
    "origin": "lookup",
}


class Customer(TypedDict):
    id: Annotated[Key[int], Ge(1)]
    age: Annotated[int, Ge(18)]
    income: float | None


class Visit(TypedDict):
    shop: Key[str]
    day: Key[date]
    x: float


class Asked(TypedDict):
    """Complete with its key alone: fetch has the rest."""

    id: Key[int]
    x: Fetched[float]


class Score(TypedDict):
    score: float | None
    band: Literal["low", "high"]
    until: date


LOW, HIGH = (
    {"score": 0.25, "band": "low", "until": "2026-11-21"},
    {"score": None, "band": "high", "until": "2026-11-21"},
)
CUSTOMERS = {(7,): LOW, (8,): HIGH}
VISITS = {("north, 1", date(2026, 5, 1)): LOW, ("süd", date(2026, 5, 2)): HIGH}


class Index:
    """A snapshot in a dict."""

    number, data_date, data_time = 12, date(2026, 11, 21), datetime(2026, 11, 22, tzinfo=UTC)
    mark: object = None

    def __init__(self, keys: KeyCodec, predictions: Mapping[Any, Any]) -> None:
        self.keys, self.rows = keys, len(predictions)
        self._found = {keys.encode(key): msgspec.json.encode(value) for key, value in predictions.items()}

    def get(self, key: bytes) -> bytes | None:
        return self._found.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._found.get(key) for key in keys]

    def close(self) -> None: ...


class Store:
    is_far = False

    def __init__(self, index: Index | None) -> None:
        self._index = index

    def follow(self, state: Any, keep: frozenset[int]) -> bool:
        return False

    def mark(self) -> object:
        return None

    def is_behind(self) -> bool:
        return False

    def was_rolled_back(self, number: int) -> bool:
        return False

    def open(self) -> Index | None:
        return self._index


class Asker:
    """A model with what is published of it, asked in any protocol."""

    def __init__(
        self,
        inputs: Any,
        published: Mapping[Any, Any] | None,
        *,
        lookup: str = "auto",
        names: Sequence[str] = (),
        batch: bool = False,
        **settings: Any,
    ) -> None:
        self.predicted: list[Any] = []
        self.metrics = Metrics()
        self._published, self._lookup, self._names = published, lookup, names
        self._settings = ModelSettings(lookup=lookup, **settings)
        model = Model("m", inputs=inputs, outputs=Score)
        model.load(lambda: None)

        @model.predict
        def predict(loaded: None, rows: list) -> list:  # type: ignore[type-arg]
            self.predicted += rows
            return [{"score": 1.0, "band": "high", "until": date(2026, 11, 22)} for _ in rows]

        if inputs is Asked:

            @model.fetch
            def fetch(keys: list) -> dict:  # type: ignore[type-arg]
                return {key: float(key) for key in keys if key < 100}

        self.model, self._batch = model, batch

    async def _live(self) -> Live:
        model, settings = self.model, self._settings
        fetch = Fetch(model, Settings(home=Path())) if model.fetch_function is not None else None
        live = Live(
            Scorer(model, None), "0123456789abcdef" * 4, settings, ServeSettings(max_rows=50),
            metrics=self.metrics, fetch=fetch,
        )  # fmt: skip
        if self._lookup != "off":
            codec = KeyCodec.of(live.inputs.arrow_schema(live.inputs.keys), [c.name for c in live.inputs.keys])
            published = KeyCodec(tuple(self._names), codec.kinds) if self._names else codec
            index = None if self._published is None else Index(published, self._published)
            live.lookup = Lookups(
                "m", Path("/"), Store(index), settings, codec, metrics=self.metrics, clock=lambda: NOW
            )
        return live

    def v2(self, body: Any, **headers: str) -> Reply:
        def exchange(live: Live) -> Exchange:
            translation = Translation(live)
            return Exchange("v2", translation.read, translation.write, oip.refuse)

        return self._ask(exchange, request_of(body, _named(headers)))

    def invocations(self, body: Any, **headers: str) -> Reply:
        def exchange(live: Live) -> Exchange:
            both = Invocations(live, batch=self._batch)
            return Exchange("invocations", both.read, both.write, mlflow.refuse)

        return self._ask(exchange, request_of(body, _named(headers)))

    def instances(self, body: Any) -> Reply:
        def exchange(live: Live) -> Exchange:
            instances = Instances(live)
            return Exchange("vertex", instances.read, instances.write, vertex.refuse)

        return self._ask(exchange, request_of(body))

    def _ask(self, exchange_of: Callable[[Live], Exchange], request: Request) -> Reply:
        async def ask() -> Reply:
            live = await self._live()
            exchange = exchange_of(live)
            try:
                asked = exchange.read(live, request)
                assert asked.reply is None
                return settle(exchange, live, asked, await live.ask(asked.rows, b"id-1", one_by_one=asked.one_by_one))
            except RequestError as error:
                return exchange.refuse(error)
            finally:
                live.close()

        return asyncio.run(ask())

    def counted(self) -> dict[str, int]:
        return {result: count for result, count in self.metrics.lookups("m").items() if count}


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def headers(reply: Reply) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in reply.headers}


def said(reply: Reply, status: int = 200) -> Any:
    assert reply.status == status, reply.body
    return json.loads(reply.body)


def tensor(name: str, datatype: str, data: Sequence[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


def ids(*values: Any) -> dict[str, Any]:
    return tensor("id", "INT64", list(values))


def columns(answer: Any) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


LOOKED_UP = {"score": [None, 0.25], "band": ["high", "low"], "until": ["2026-11-21"] * 2}
LIVE = {"score": [1.0], "band": ["high"], "until": ["2026-11-22"]}
TOLD = {"parameters": {"lookup": True}}


class TestV2:
    def test_tensors_of_the_key_alone_are_a_lookup_that_tells_its_age(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        reply = one.v2({"inputs": [ids(8, 7)], "id": "a-1"})
        answer = said(reply)
        assert list(answer) == ["model_name", "model_version", "id", "parameters", "outputs"]
        assert (answer["model_version"], answer["id"], answer["parameters"]) == ("0123456789ab", "a-1", ORIGIN)
        assert columns(answer) == LOOKED_UP
        assert headers(reply) == HEADERS
        assert (one.predicted, one.counted()) == ([], {"found": 2})

    @pytest.mark.parametrize(
        "inputs",
        [
            [ids(8)],
            [tensor("id", "FP64", [8.0])],
            [tensor("id", "INT32", [[8]], [1, 1])],
            [ids(8), tensor("other", "BYTES", ["x"])],
        ],
    )
    def test_however_the_key_is_sent(self, inputs: list[Any]) -> None:
        answer = said(Asker(Customer, CUSTOMERS).v2({"inputs": inputs}))
        assert columns(answer) == {"score": [None], "band": ["high"], "until": ["2026-11-21"]}

    def test_in_bytes_packed_and_in_part(self) -> None:
        raw = struct.pack("<qq", 8, 7)
        described = {"name": "id", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": len(raw)}}
        outputs = [{"name": "band"}, {"name": "score", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [described], "outputs": outputs}).encode()
        reply = Asker(Customer, CUSTOMERS).v2(head + raw, Inference_Header_Content_Length=str(len(head)))
        sent = headers(reply)
        length = int(sent.pop("inference-header-content-length"))
        answer = json.loads(reply.body[:length])
        assert [o["name"] for o in answer["outputs"]] == ["band", "score"]
        assert answer["parameters"] == ORIGIN
        assert np.isnan(np.frombuffer(reply.body[length:], "<f8")).tolist() == [True, False]
        assert sent == HEADERS
        many = Asker(Customer, CUSTOMERS).v2({"inputs": [ids(*[7, 8] * 25)]}, Accept_Encoding="gzip")
        assert headers(many) == {"content-encoding": "gzip", "vary": "accept-encoding", **HEADERS}
        assert len(columns(json.loads(gzip.decompress(many.body)))["band"]) == 50

    def test_keys_of_several_columns(self) -> None:
        shops, days = tensor("shop", "BYTES", ["süd", "north, 1"]), tensor("day", "BYTES", ["2026-05-02", "2026-05-01"])
        for inputs in ([shops, days], [days, shops]):
            assert columns(said(Asker(Visit, VISITS).v2({"inputs": inputs}))) == LOOKED_UP

    def test_a_row_with_features_is_live(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        full = [ids(7), tensor("age", "INT64", [40]), tensor("income", "FP64", [None])]
        reply = one.v2({"inputs": full})
        answer = said(reply)
        assert (columns(answer), "parameters" in answer, headers(reply)) == (LIVE, False, {})
        for parameters in ({"lookup": False}, {"lookup": None}, {}, None):
            assert columns(said(one.v2({"inputs": full, "parameters": parameters}))) == LIVE

    def test_who_asks_for_the_lookup_gets_it_whatever_else_is_there(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        for inputs in ([ids(8, 7)], [ids(8, 7), tensor("age", "INT64", [3, 4])]):
            answer = said(one.v2({"inputs": inputs, **TOLD}))
            assert (columns(answer), answer["parameters"]) == (LOOKED_UP, ORIGIN)
        assert said(one.v2({"inputs": [tensor("age", "INT64", [40])], **TOLD}), 422) == {
            "error": "This is no key of this model. row 0: id: is absent"
        }
        wrong = said(one.v2({"inputs": [ids(7)], "parameters": {"lookup": "yes"}}), 400)
        assert "Expected `bool | null`" in wrong["error"]

    def test_no_rows(self) -> None:
        reply = Asker(Customer, CUSTOMERS).v2({"inputs": [tensor("id", "INT64", [], [0])], **TOLD})
        assert columns(said(reply)) == {"score": [], "band": [], "until": []}
        assert headers(reply) == HEADERS

    def test_some_features_are_told_what_is_missing_as_ever(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        assert said(one.v2({"inputs": [ids(7), tensor("age", "INT64", [40])]}), 422) == {
            "error": "A row does not fit the row type of this model. row 0: income: is absent"
        }

    def test_errors(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        assert said(one.v2({"inputs": [ids(9)]}), 404) == {"error": "There is no prediction under this key."}
        unknown = said(one.v2({"inputs": [ids(7, 9, -1)]}), 404)
        assert unknown == {"error": "Rows 1, 2: there is no prediction under their keys."}
        wrong = said(one.v2({"inputs": [tensor("id", "BYTES", ["7", "secret"])]}), 422)
        assert wrong["error"] == (
            "2 of these are no keys of this model. row 0: id: must be a whole number; row 1: id: must be a whole number"
        )
        assert said(one.v2({"inputs": [ids(*range(51))]}), 413)["error"].startswith("The request has 51 rows")
        nothing = Asker(Customer, None).v2({"inputs": [ids(7)]})
        assert said(nothing, 503) == {"error": "Nothing is published yet that could be looked up."}
        assert headers(nothing) == {"retry-after": "60"}
        assert said(Asker(Customer, CUSTOMERS, names=["old"]).v2({"inputs": [ids(7)]}), 503)["error"].startswith(
            "What is published has other keys"
        )

    def test_what_does_not_fit_the_outputs_any_more(self) -> None:
        assert said(Asker(Customer, {(7,): {"score": 1.0}}).v2({"inputs": [ids(7)]}), 503)["error"].startswith(
            "What is published does not fit the outputs of this model"
        )

    def test_without_lookups(self) -> None:
        one = Asker(Customer, CUSTOMERS, lookup="off")
        assert said(one.v2({"inputs": [ids(7)]}), 422) == {
            "error": "A row does not fit the row type of this model. This model's predictions cannot be looked up here, so a "
            "key alone does not do. row 0: age: is absent; row 0: income: is absent"
        }
        assert said(one.v2({"inputs": [ids(7)], **TOLD}), 404) == {
            "error": "This model's predictions cannot be looked up here. Ask without `lookup`, with the columns that a row "
            "needs."
        }


class TestWhatIsLive:
    """Models that can answer to a key alone, and policies by which keys go live."""

    def test_a_key_that_is_enough_is_live_unless_the_lookup_is_asked_for(self) -> None:
        one = Asker(Asked, CUSTOMERS)
        reply = one.v2({"inputs": [ids(7)]})
        assert (columns(said(reply)), headers(reply)) == (LIVE, {})
        assert one.predicted == [{"x": 7.0}]
        assert said(one.v2({"inputs": [ids(8)], **TOLD}))["parameters"] == ORIGIN
        assert said(one.invocations({"dataframe_records": [{"id": 8}]}))["predictions"][0]["score"] == 1.0
        assert said(one.invocations({"dataframe_records": [{"id": 8}], "params": {"lookup": True}})) == {
            "predictions": [HIGH]
        }

    def test_a_mixture_says_so(self) -> None:
        one = Asker(Asked, CUSTOMERS, unknown="live")
        reply = one.v2({"inputs": [ids(9, 8, 10)], **TOLD})
        assert columns(said(reply))["score"] == [1.0, None, 1.0]
        assert said(reply)["parameters"] == {**ORIGIN, "origin": "mixed"}
        assert headers(reply) == MIXED
        assert one.predicted == [{"x": 9.0}, {"x": 10.0}]
        assert one.counted() == {"found": 1, "live": 2}

    def test_all_that_went_live(self) -> None:
        fresh = {"age_seconds": 0, "stale": False, "origin": "live"}
        for one in (
            Asker(Asked, CUSTOMERS, stale="live", max_age_seconds=60),
            Asker(Asked, None, unknown="live"),
        ):
            reply = one.v2({"inputs": [ids(7)], **TOLD})
            assert (columns(said(reply)), said(reply)["parameters"], headers(reply)) == (LIVE, fresh, FRESH)

    def test_a_key_without_features_either_is_unknown(self) -> None:
        one = Asker(Asked, CUSTOMERS, unknown="live")
        assert said(one.v2({"inputs": [ids(8, 100)], **TOLD}), 404) == {
            "error": "There is no prediction under the key of a row, and no features."
        }

    def test_stale(self) -> None:
        flagged = Asker(Customer, CUSTOMERS, max_age_seconds=60).v2({"inputs": [ids(7)]})
        assert said(flagged)["parameters"] == {**ORIGIN, "stale": True}
        assert headers(flagged)["etag"] == 'W/"12-true"'
        refused = Asker(Customer, CUSTOMERS, max_age_seconds=60, stale="refuse").v2({"inputs": [ids(7)]})
        assert said(refused, 503)["error"] == "What is published is 3,600 seconds old, and may be at most 60."


FORMS: list[dict[str, Any]] = [
    {"dataframe_split": {"columns": ["id"], "data": [[8], [7]]}},
    {"dataframe_split": {"columns": ["other", "id"], "index": ["a", "b"], "data": [[{}, 8], [None, 7]]}},
    {"dataframe_records": [{"id": 8}, {"id": 7}]},
    {"dataframe_records": [{"id": 8, "other": 1}, {"id": 7.0}]},
    {"instances": [{"id": 8}, {"id": 7}]},
    {"instances": {"id": [8, 7]}},
    {"inputs": {"id": [8, 7], "other": ["a", "b"]}},
    {"inputs": [{"id": 8}, {"id": 7}], "params": {"deep": 1}},
]
ONLY_TOLD: list[dict[str, Any]] = [
    {"dataframe_split": {"data": [[8], [7]]}},
    {"dataframe_split": {"columns": [0], "data": [[8], [7]]}},
    {"dataframe_split": {"columns": ["age", "id"], "data": [[1, 8], [None, 7]]}},
    {"dataframe_records": [{"id": 8, "age": 3}, {"id": 7}]},
    {"instances": [8, 7]},
    {"instances": [[8], [7]]},
    {"inputs": {"id": [8, 7], "income": [1, "x"]}},
]


class TestMlflow:
    @pytest.mark.parametrize("body", FORMS)
    def test_every_form_of_the_key_alone_is_a_lookup(self, body: dict[str, Any]) -> None:
        one = Asker(Customer, CUSTOMERS)
        for asked in (body, {**body, "params": {"lookup": True}}):
            reply = one.invocations(asked)
            assert said(reply) == {"predictions": [HIGH, LOW]}
            assert headers(reply) == HEADERS
        assert one.predicted == []

    @pytest.mark.parametrize("body", ONLY_TOLD)
    def test_what_is_beside_the_key_is_passed_over_where_lookups_are_asked_for(self, body: dict[str, Any]) -> None:
        one = Asker(Customer, CUSTOMERS)
        for params in (None, {}, {"lookup": False}, {"lookup": None}, [1]):
            assert one.invocations({**body, "params": params}).status == 400
        assert said(one.invocations({**body, "params": {"lookup": True}})) == {"predictions": [HIGH, LOW]}

    def test_a_single_row_by_column(self) -> None:
        assert said(Asker(Customer, CUSTOMERS).invocations({"inputs": {"id": 8}})) == {"predictions": [HIGH]}

    def test_keys_of_several_columns(self) -> None:
        one = Asker(Visit, VISITS)
        rows = [["2026-05-02", "süd"], ["2026-05-01", "north, 1"]]
        for body in (
            {"dataframe_split": {"columns": ["day", "shop"], "data": rows}},
            {"instances": [row[::-1] for row in rows], "params": {"lookup": True}},
        ):
            assert said(one.invocations(body)) == {"predictions": [HIGH, LOW]}
        csv = 'shop,day\nsüd,2026-05-02\n"north, 1",2026-05-01\n'
        assert said(one.invocations(csv, Content_Type="text/csv")) == {"predictions": [HIGH, LOW]}

    @pytest.mark.parametrize("csv", ["id\n8\n7\n", "id\r\n8\r\n7", '"id"\n"8"\n7\n'])
    def test_csv_under_a_header_of_the_key(self, csv: str) -> None:
        one = Asker(Customer, CUSTOMERS)
        reply = one.invocations(csv, Content_Type="text/csv", Accept="text/csv")
        assert reply.body == b',"high",2026-11-21\n0.25,"low",2026-11-21\n'
        assert headers(reply) == HEADERS
        assert said(one.invocations("id\n8\nsecret", Content_Type="text/csv"), 400)["message"] == (
            "This is no key of this model. row 1: id: must be a whole number"
        )
        assert said(one.invocations("id\n8,1", Content_Type="text/csv"), 400)["message"].startswith(
            "Rows do not have a value for each column."
        )

    def test_csv_without_a_header_brings_rows(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        assert (
            "must be a list of 3 values (id, age, income), or 2 without id"
            in said(one.invocations("8\n7", Content_Type="text/csv"), 400)["message"]
        )
        says = said(one.invocations("id,age\n8,40", Content_Type="text/csv"), 400)["message"]
        assert says.startswith("The first line names columns, but not income.")

    def test_json_lines_are_all_keys_or_all_rows(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        lines = {"Content_Type": "application/jsonlines"}
        assert said(one.invocations('{"id": 8}\n{"id": 7}\n', **lines)) == {"predictions": [HIGH, LOW]}
        mixed = one.invocations('{"id": 8}\n{"id": 7, "age": 40, "income": 1}\n', **lines)
        assert said(mixed, 400)["message"] == (
            "A row does not fit the row type of this model. row 0: age: is absent; row 0: income: is absent"
        )
        assert said(one.invocations('{"id": 8}\n{"id": 9}', **lines), 404)["error_code"] == "RESOURCE_DOES_NOT_EXIST"

    def test_rows_that_were_looked_up_are_not_counted_as_refused(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        for body in FORMS:
            one.invocations(body)
        one.invocations('{"id": 8}\n', Content_Type="application/jsonlines")
        one.v2({"inputs": [ids(7)]})
        assert one.metrics._models["m"].rejected_rows == 0

    def test_errors(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        mixed = one.invocations({"instances": [{"id": 7}, {"id": 8, "age": 40, "income": None}]})
        assert said(mixed, 400)["message"] == (
            "A row does not fit the row type of this model. row 0: age: is absent; row 0: income: is absent"
        )
        some = one.invocations({"dataframe_split": {"columns": ["id", "age"], "data": [[7, 40]]}})
        assert said(some, 400)["message"] == (
            "Columns of the row type of this model are missing. row 0: income: is absent"
        )
        assert said(one.invocations({"dataframe_records": [{"id": 9}]}), 404) == {
            "error_code": "RESOURCE_DOES_NOT_EXIST",
            "message": "There is no prediction under this key.",
        }
        assert said(one.invocations({"inputs": {"id": ["secret"]}}), 400)["message"] == (
            "This is no key of this model. row 0: id: must be a whole number"
        )
        assert said(one.invocations({"inputs": {"id": [7]}, "params": {"lookup": 1}}), 400)["message"] == (
            "The parameter lookup must be true or false."
        )
        told = one.invocations({"instances": [[7, 40, 1.5]], "params": {"lookup": True}})
        assert "must be a list of 1 values (id)" in said(told, 400)["message"]
        nothing = Asker(Customer, None).invocations({"dataframe_records": [{"id": 9}]})
        assert said(nothing, 503)["error_code"] == "TEMPORARILY_UNAVAILABLE"
        for body in FORMS[:7]:
            off = said(Asker(Customer, None, lookup="off").invocations(body), 400)["message"]
            assert "so a key alone does not do. row 0: age: is absent; row 0: income: is absent" in off
        assert Asker(Customer, None, lookup="off").invocations({**FORMS[0], "params": {"lookup": True}}).status == 404


class TestBatchTransform:
    LINES = (
        '{"id": 8}',
        '{"id": 9}',
        '{"id": 5, "age": 40, "income": 1}',
        '{"id": "x"}',
        '{"id": 7}',
        '{"id": 1, "age": 1}',
    )

    def test_each_line_for_itself(self) -> None:
        one = Asker(Customer, CUSTOMERS, batch=True)
        reply = one.invocations("\n".join(self.LINES), Content_Type="application/jsonlines")
        assert [json.loads(line) for line in reply.body.splitlines()] == [
            HIGH,
            {"error": "There is no prediction under this key."},
            {"score": 1.0, "band": "high", "until": "2026-11-22"},
            {"error": "id: must be a whole number"},
            LOW,
            {"error": "age: must be at least 18; income: is absent"},
        ]

    def test_keys_that_go_live_among_others(self) -> None:
        # complete rows are live, so that only a document can ask for lookups
        one = Asker(Asked, CUSTOMERS, unknown="live", batch=True)
        document = json.dumps({"dataframe_records": [{"id": 8}, {"id": 9}], "params": {"lookup": True}})
        reply = one.invocations(document, Content_Type="application/json")
        assert [p["score"] for p in said(reply)["predictions"]] == [None, 1.0]

    def test_what_fetch_does_not_know(self) -> None:
        one = Asker(Asked, CUSTOMERS, batch=True)
        reply = one.invocations('{"id": 9}\n{"id": 100}\n{"id": 10}', Content_Type="application/jsonlines")
        first, second, third = map(json.loads, reply.body.splitlines())
        assert (first["score"], third["score"]) == (1.0, 1.0)
        assert second == {"error": "x: nothing is known of this key"}

    def test_what_fails_as_a_whole(self) -> None:
        lines = {"Content_Type": "application/jsonlines"}
        one = Asker(Customer, None, batch=True)
        assert one.invocations('{"id": 7}', **lines).status == 503
        assert one.invocations('{"dataframe_records": [{"id": 7}]}', Content_Type="application/json").status == 503
        off = Asker(Customer, None, lookup="off", batch=True).invocations('{"id": 7}', **lines)
        assert json.loads(off.body) == {"error": "age: is absent; income: is absent"}

    def test_lines_of_csv_are_rows(self) -> None:
        reply = Asker(Customer, CUSTOMERS, batch=True).invocations("8\n", Content_Type="text/csv")
        assert reply.body == b",,\n"


class TestInstances:
    """KServe V1 and Vertex AI."""

    @pytest.mark.parametrize(
        "body",
        [
            {"instances": [{"id": 8}, {"id": 7}]},
            {"instances": [{"id": 8, "age": 1}, {"id": 7}], **TOLD},
            {"instances": [8, 7], **TOLD},
        ],
    )
    def test_lookups(self, body: dict[str, Any]) -> None:
        reply = Asker(Customer, CUSTOMERS).instances(body)
        assert (said(reply), headers(reply)) == ({"predictions": [HIGH, LOW]}, HEADERS)

    def test_errors(self) -> None:
        one = Asker(Customer, CUSTOMERS)
        assert said(one.instances({"instances": [{"id": 9}]}), 404) == {
            "error": "There is no prediction under this key."
        }
        assert one.instances({"instances": [{"id": 7, "age": 40}]}).status == 422
        assert one.instances({"instances": [8, 7]}).status == 400
        assert one.instances({"instances": [{"id": 7}], "parameters": {"lookup": "x"}}).status == 400


class TestWhateverComes:
    """Nothing but an answer, or a mistake of the caller's that does not say what was sent."""

    JSON = st.recursive(
        JSON_SCALARS | st.sampled_from([7, 8, "secret-1", 2**63, -(2**70), 7.5, 1e300]),
        lambda some: (
            st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(["id", "age", "x"]), some, max_size=3)
        ),
        max_leaves=6,
    )

    @settings(deadline=None, max_examples=40)
    @given(JSON, JSON, st.sampled_from([None, {"lookup": True}]))
    def test_json(self, one: Any, other: Any, told: Any) -> None:
        asker = Asker(Customer, CUSTOMERS)
        records = [{"id": one}, {"id": other}]
        replies = [
            asker.invocations({"dataframe_records": records, "params": told}),
            asker.invocations({"dataframe_split": {"columns": ["id"], "data": [[one], [other]]}, "params": told}),
            asker.invocations({"dataframe_split": {"columns": one, "data": other}, "params": told}),
            asker.invocations({"inputs": {"id": one}, "params": told}),
            asker.invocations({"instances": [one, other], "params": told}),
            asker.invocations({"inputs": {"id": [7]}, "params": one}),
            asker.instances({"instances": one, "parameters": told}),
            asker.v2({"inputs": [tensor("id", "INT64", [one, other])], "parameters": told}),
            asker.v2({"inputs": [tensor("id", "BYTES", [one, other])], "parameters": told}),
            asker.invocations("\n".join(map(json.dumps, records)), Content_Type="application/jsonlines"),
        ]
        assert {reply.status for reply in replies} <= {200, 400, 404, 422}
        assert not any(b"secret" in reply.body for reply in replies)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.lists(st.sampled_from(["id", "age", "7", "8", "", "secret-1", '"', "é", "-0"]), max_size=3)))
    def test_csv(self, cells: list[list[str]]) -> None:
        text = "\n".join(["id", *(",".join(line) for line in cells)])
        reply = Asker(Customer, CUSTOMERS).invocations(text, Content_Type="text/csv")
        assert reply.status in (200, 400, 404)
        assert b"secret" not in reply.body
