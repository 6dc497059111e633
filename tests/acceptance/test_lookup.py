"""Lookups over HTTP: what the last published run computed, by key, behind the lane and behind the application alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.sync.client import connect

from sereno.serve.options import Options
from tests.acceptance.project import Project
from tests.acceptance.server import Server
from tests.acceptance.test_lane import Servers, answers, connected

CUSTOMERS = """
from typing import Annotated, TypedDict
from annotated_types import Ge
import pyarrow as pa
import pyarrow.compute as pc
from sereno import Fetched, Key, Model

class Row(TypedDict):
    customer_id: Key[Annotated[int, Ge(0)]]
    a: Fetched[float]

class Out(TypedDict):
    score: float
    note: str | None

model = Model("customers", inputs=Row, outputs=Out, source="customers.parquet", artifacts={"factor": "factor.txt"})

@model.load
def load(factor):
    return float(factor.read_text())

@model.fetch
def fetch(keys: list[int]):
    return {key: float(key) for key in keys if key < 100}

@model.predict
def predict(factor, rows: pa.Table):
    score = pc.multiply(rows["a"], factor)
    return {"score": score, "note": [None if value < 20 * factor else "high" for value in score.to_pylist()]}
"""
VISITS = """
from datetime import date
from typing import TypedDict
import pyarrow as pa
from sereno import Key, Model

class Row(TypedDict):
    shop: Key[str]
    day: Key[date]
    sold: float

class Item(TypedDict):
    name: str
    share: float

class Out(TypedDict):
    items: list[Item]

model = Model("visits", inputs=Row, outputs=Out, source="visits.parquet")

@model.load
def load():
    return None

@model.predict
def predict(loaded, rows: list):
    return [{"items": [{"name": "tea", "share": row["sold"]}]} for row in rows]
"""
SHOPS = ["Corner", "Plaza Mayor 5/B", "Ñandú", "", "100%", "a" * 700]
DAYS = ["2026-11-21", "1969-12-31"]


def forget_models() -> None:
    """A process imports a name once."""
    for name in ("customers", "visits"):
        sys.modules.pop(name, None)


class Nights(Project):
    """A project with both models, and what a night publishes."""

    def sereno(self, *arguments: str, **options: Any) -> Any:
        forget_models()
        return super().sereno(*arguments, **options)

    def night(self, factor: float = 1.0) -> None:
        self.write("factor.txt", str(factor))
        self.sereno("run", "customers.py", "--force")

    def follow(self) -> None:
        """As a server's builder does."""
        for name in ("customers", "visits"):
            (self.folder / ".sereno" / "lookup" / name).mkdir(parents=True, exist_ok=True)
            self.sereno("run", f"{name}.py")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both models have published a night."""
    project = Nights(tmp_path_factory.mktemp("nights"))
    project.within = True
    project.write("customers.py", CUSTOMERS)
    project.write("visits.py", VISITS)
    project.write("factor.txt", "1.0")
    gates = 'constant = "allow"\nmax_null_share = 1.0\n'
    project.write("sereno.toml", f"[models.customers.gates]\n{gates}\n[models.visits.gates]\n{gates}")
    pq.write_table(
        pa.table({"customer_id": range(50), "a": [float(i) for i in range(50)]}), project.folder / "customers.parquet"
    )
    days = pa.array(DAYS * len(SHOPS)).cast(pa.date32())
    shops = [shop for shop in SHOPS for _ in DAYS]
    visits = pa.table({"shop": shops, "day": days, "sold": [i / 8 for i in range(len(shops))]})
    pq.write_table(visits, project.folder / "visits.parquet")
    project.follow()
    return project.folder


@pytest.fixture
def nights(published: Path, tmp_path: Path) -> Nights:
    project = Nights(published).copy(tmp_path / "nights")
    project.__class__ = Nights
    assert isinstance(project, Nights)
    project.within = True
    return project


class LookupServers(Servers):
    """The two models, served in this process twice."""

    def __init__(self, folder: Path, **overrides: str) -> None:
        super().__init__(folder, {})
        forget_models()
        more = {"serve.access_log": "off", "serve.max_rows": "20", **overrides}
        files = [folder / "customers.py", folder / "visits.py"]
        self._options = Options(files=files, home=folder, overrides=more)


@pytest.fixture(scope="module")
def servers(published: Path) -> Iterator[LookupServers]:
    with LookupServers(published) as servers:
        yield servers


def get(path: str, headers: str = "", *, request_id: str | None = "one", version: str = "1.1") -> bytes:
    id_line = f"X-Request-ID: {request_id}\r\n" if request_id else ""
    return f"GET {path} HTTP/{version}\r\nHost: localhost\r\n{id_line}{headers}\r\n".encode()


def post(path: str, body: Any) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: one\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def reply(port: int, sent: bytes) -> bytes:
    """The bytes of one reply, whose age is left out: the second may change between two of them."""
    with connected(port) as sock:
        sock.sendall(sent)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        found = re.search(rb"content-length: (\d+)", data)
        size = int(found[1]) if found and not sent.startswith(b"HEAD") else 0
        while len(data) < data.index(b"\r\n\r\n") + 4 + size:
            data += sock.recv(65536)
        return re.sub(rb'("age_seconds":|age: )\d+', rb"\1N", data)


CUSTOMER = "/models/customers/predictions/"
VISIT = "/models/visits/predictions/"
SAME = {
    "found": get(CUSTOMER + "7"),
    "zero": get(CUSTOMER + "0"),
    "unknown": get(CUSTOMER + "50"),
    "negative": get(CUSTOMER + "-7"),
    "no number": get(CUSTOMER + "seven"),
    "float": get(CUSTOMER + "7.0"),
    "leading zero": get(CUSTOMER + "07"),
    "plus": get(CUSTOMER + "+7"),
    "escaped digit": get(CUSTOMER + "%37"),
    "other digits": get(CUSTOMER + "%D9%A7"),
    "largest": get(CUSTOMER + "9223372036854775807"),
    "too large": get(CUSTOMER + "9223372036854775808"),
    "much too large": get(CUSTOMER + "9" * 5000),
    "nothing": get(CUSTOMER),
    "no slash": get(CUSTOMER[:-1]),
    "two segments": get(CUSTOMER + "7/8"),
    "slash behind": get(CUSTOMER + "7/"),
    "query": get(CUSTOMER + "7?x=1"),
    "query with a path": get(CUSTOMER + "7?x=/predictions/8"),
    "two models": get("/predictions/7"),
    "no model": get("/models/nobody/predictions/7"),
    "escaped model": get("/models/customer%73/predictions/7"),
    "matches": get(CUSTOMER + "7", 'If-None-Match: W/"1-false"\r\n'),
    "matches strongly": get(CUSTOMER + "7", 'If-None-Match: "1-false"\r\n'),
    "matches one of them": get(CUSTOMER + "7", 'If-None-Match: "9", W/"1-false"\r\n'),
    "matches anything": get(CUSTOMER + "7", "If-None-Match: *\r\n"),
    "matches not": get(CUSTOMER + "7", 'If-None-Match: W/"2-false"\r\n'),
    "matches but unknown": get(CUSTOMER + "50", 'If-None-Match: W/"1-false"\r\n'),
    "other host": get(CUSTOMER + "7").replace(b"Host: localhost", b"Host: elsewhere.example"),
    "other site": get(CUSTOMER + "7", "Origin: http://elsewhere.example\r\n"),
    "close": get(CUSTOMER + "7", "Connection: close\r\n"),
    "HTTP/1.0": get(CUSTOMER + "7", version="1.0"),
    "head": get(CUSTOMER + "7").replace(b"GET", b"HEAD"),
    "put": get(CUSTOMER + "7").replace(b"GET", b"PUT"),
    "body": get(CUSTOMER + "7", "Content-Length: 2\r\n") + b"{}",
    **{f"visit {i}": get(f"{VISIT}{one}") for i, one in enumerate((
        "Corner/2026-11-21", "Plaza%20Mayor%205%2FB/1969-12-31", "%C3%91and%C3%BA/2026-11-21", "/2026-11-21", "100%25/2026-11-21",
        "a" * 700 + "/2026-11-21", "a" * 699 + "/2026-11-21", "Corner/2026-11-22", "Corner/21-11-2026", "Corner", "Corner/2026-02-30",
        "%ff/2026-11-21", "Corner/2026-11-21/x", "%0A/2026-11-21",
    ))},
    "many": post(CUSTOMER[:-1], {"keys": [7, 50, 8]}),
    "none": post(CUSTOMER[:-1], {"keys": []}),
    "many visits": post(VISIT[:-1], {"keys": [["Corner", "2026-11-21"], ["Corner", "2026-11-22"]]}),
    "one visit": post(VISIT[:-1], {"keys": ["Corner"]}),
    "too many": post(CUSTOMER[:-1], {"keys": [1] * 21}),
    "no keys": post(CUSTOMER[:-1], {"key": [1]}),
    "more than keys": post(CUSTOMER[:-1], {"keys": [1], "x": 1}),
    "no list": post(CUSTOMER[:-1], {"keys": 1}),
    "wrong keys": post(CUSTOMER[:-1], {"keys": [1, "x", None, 2.5, True, [1], {"a": 1}, 1e300]}),
    "whole float": post(CUSTOMER[:-1], {"keys": [1.0]}),
    "no JSON": post(CUSTOMER[:-1], b"{"),
    "deep": post(CUSTOMER[:-1], b'{"keys":[' + b"[" * 40 + b"]" * 40 + b"]}"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_lane_answers_as_the_application_does(servers: LookupServers, name: str) -> None:
    sent = SAME[name]
    lane, plain = reply(servers.lane_port, sent), reply(servers.plain_port, sent)
    if name == "too many":  # which the application ends the connection with
        plain = plain.replace(b"connection: close\r\n", b"")
    assert sorted(lane.split(b"\r\n")) == sorted(plain.split(b"\r\n"))
    assert b" 500 " not in lane
    # without an id of the caller's, the lane keeps all but the path, and knows it the second time
    sent = sent.replace(b"X-Request-ID: one\r\n", b"")
    for _ in range(2):
        found = [re.sub(rb"x-request-id: [^\r]+", b"", reply(p, sent)) for p in (servers.lane_port, servers.plain_port)]
        found[1] = found[1].replace(b"connection: close\r\n", b"") if name == "too many" else found[1]
        assert sorted(found[0].split(b"\r\n")) == sorted(found[1].split(b"\r\n"))


def ask(servers: LookupServers, name: str) -> tuple[int, dict[str, str], Any]:
    with connected(servers.lane_port) as sock:
        sock.sendall(SAME[name])
        ((status, headers, body),) = answers(sock, 1)
    return status, headers, json.loads(body)


def test_an_answer_says_all_that_there_is_to_say(servers: LookupServers) -> None:
    status, headers, found = ask(servers, "found")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["etag"] == 'W/"1-false"'
    assert headers["cache-control"] == "private, no-cache"
    assert found.pop("age_seconds") == int(headers["age"])
    assert set(found) == {"prediction", "version", "data_date", "data_time", "stale", "origin"}
    assert found["prediction"] == {"score": 7.0, "note": None}
    assert (found["version"], found["stale"], found["origin"]) == (1, False, "lookup")
    assert found["data_time"].endswith("T00:00:00Z")


STATUS = {
    "unknown": 404, "negative": 404, "no number": 422, "float": 422, "leading zero": 422, "plus": 422, "escaped digit": 200,
    "other digits": 422, "largest": 404, "too large": 422, "nothing": 422, "two segments": 422, "slash behind": 422,
    "query": 200, "query with a path": 200, "two models": 404, "no model": 404, "escaped model": 200, "matches not": 200,
    "matches but unknown": 404, "put": 405, "visit 0": 200, "visit 1": 200, "visit 2": 200, "visit 3": 200, "visit 4": 200,
    "visit 5": 200, "visit 6": 404, "visit 7": 404, "visit 8": 422, "visit 9": 422, "visit 10": 422, "visit 11": 422,
    "visit 12": 422, "visit 13": 404, "many": 200, "none": 200, "many visits": 200, "one visit": 422, "too many": 413, "no keys": 422,
    "more than keys": 422, "no list": 422, "wrong keys": 422, "whole float": 200, "no JSON": 400, "deep": 400,
}  # fmt: skip


@pytest.mark.parametrize("name", STATUS)
def test_statuses(servers: LookupServers, name: str) -> None:
    status, headers, body = ask(servers, name)
    assert status == STATUS[name], body
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        assert body["status"] == status
        for value in ("seven", "2.5", "Corner", "21-11-2026"):  # values are never echoed
            assert value not in json.dumps(body)


def test_mistakes_name_the_key_and_its_column(servers: LookupServers) -> None:
    _, _, body = ask(servers, "visit 8")
    assert body["errors"] == [{"row": 0, "column": "day", "expected": "must be a date (YYYY-MM-DD)"}]
    _, _, body = ask(servers, "wrong keys")
    assert [mistake["row"] for mistake in body["errors"]] == [1, 2, 3, 4, 5, 6, 7]
    assert {mistake["column"] for mistake in body["errors"]} == {"customer_id"}


def test_many_keys_are_answered_in_their_order(servers: LookupServers) -> None:
    _, headers, (seven, unknown, eight) = ask(servers, "many")
    assert unknown is None
    assert (seven["prediction"]["score"], eight["prediction"]["score"]) == (7.0, 8.0)
    assert headers["cache-control"] == "no-store"
    _, _, (visit, unknown) = ask(servers, "many visits")
    assert unknown is None
    assert visit["prediction"] == {"items": [{"name": "tea", "share": 0.0}]}


@pytest.mark.parametrize("name", ["matches", "matches strongly", "matches one of them", "matches anything"])
def test_what_the_caller_has_is_not_sent_again(servers: LookupServers, name: str) -> None:
    for port in (servers.lane_port, servers.plain_port):
        for sent in (SAME[name], SAME[name].replace(b"X-Request-ID: one\r\n", b"")):
            head, _, rest = reply(port, sent).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 304 Not Modified\r\n")
            assert not rest
            assert b'etag: W/"1-false"' in head
            assert b"content-length" not in head
            assert b"transfer-encoding" not in head


def test_pipelined_requests_are_answered_in_their_order(servers: LookupServers) -> None:
    known = get(CUSTOMER + "7", request_id=None)
    row = {"customer_id": 5, "a": 5.0}
    with connected(servers.lane_port) as sock:
        for _ in range(2):
            sock.sendall(
                known
                + post("/models/customers/predict", row)
                + get(CUSTOMER + "8", request_id=None)
                + get("/models")
                + get(CUSTOMER + "9", request_id=None)
            )
            found = [json.loads(body) for _, _, body in answers(sock, 5)]
            scores = [one["prediction"]["score"] if "prediction" in one else one.get("score") for one in found]
            assert scores == [7.0, 5.0, 8.0, None, 9.0]
            sock.sendall(known)  # in one piece, of which all but the path is known
            ((_, _, body),) = answers(sock, 1)
            assert json.loads(body)["prediction"]["score"] == 7.0


@pytest.mark.parametrize("cut", range(1, 70, 7))
def test_a_lookup_may_come_in_pieces(servers: LookupServers, cut: int) -> None:
    sent = get(CUSTOMER + "7", request_id=None)
    with connected(servers.lane_port) as sock:
        for _ in range(2):
            sock.sendall(sent[:cut])
            time.sleep(0.01)
            sock.sendall(sent[cut:])
            ((status, _, body),) = answers(sock, 1)
            assert (status, json.loads(body)["prediction"]["score"]) == (200, 7.0)


def scores(port: int, *keys: int) -> list[Any]:
    """The score and origin of each key, or its status."""
    found = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for key in keys:
            answer = client.get(f"{CUSTOMER}{key}")
            if answer.status_code == 200:
                item = answer.json()
                found.append((item["prediction"]["score"], item["origin"], item["version"], item["stale"]))
            else:
                found.append(answer.status_code)
    return found


POLICIES: list[tuple[dict[str, str], list[Any]]] = [  # settings; what customers 7 (published), 60 (only fetch knows it) and 200 get
    ({}, [(7.0, "lookup", 1, False), 404, 404]),
    ({"unknown": "live"}, [(7.0, "lookup", 1, False), (60.0, "live", None, False), 404]),
    ({"max_age_seconds": "1e9", "stale": "refuse"}, [(7.0, "lookup", 1, False), 404, 404]),
    ({"max_age_seconds": "0"}, [(7.0, "lookup", 1, True), 404, 404]),
    ({"max_age_seconds": "0", "stale": "refuse"}, [503, 404, 404]),
    ({"max_age_seconds": "0", "stale": "refuse", "unknown": "live"}, [503, (60.0, "live", None, False), 404]),
    ({"max_age_seconds": "0", "stale": "live"}, [(7.0, "live", None, False), 404, 404]),
    ({"max_age_seconds": "0", "stale": "live", "unknown": "live"}, [(7.0, "live", None, False), (60.0, "live", None, False), 404]),
    ({"max_age_seconds": "0", "unknown": "live"}, [(7.0, "lookup", 1, True), (60.0, "live", None, False), 404]),
    ({"lookup": "off"}, [404, 404, 404]),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "expected"), POLICIES, ids=[str(p) for p, _ in POLICIES])
def test_what_is_stale_or_unknown_is_answered_as_the_settings_say(
    nights: Nights, policy: dict[str, str], expected: list[Any]
) -> None:
    settings = {f"models.customers.{name}": value for name, value in policy.items()}
    with LookupServers(nights.folder, **settings) as servers:
        for port in (servers.lane_port, servers.plain_port):
            assert scores(port, 7, 60, 200, -5) == [*expected, 404]  # no row may have the key -5
            assert scores(port, 7, 60, 200) == expected
            many = httpx.post(f"http://127.0.0.1:{port}{CUSTOMER[:-1]}", json={"keys": [7, -5, 60, 200]})
            if 503 in expected:
                assert many.status_code == 503
                assert many.headers["retry-after"] == "60"
            elif policy != {"lookup": "off"}:
                found = [
                    one and (one["prediction"]["score"], one["origin"], one["version"], one["stale"])
                    for one in many.json()
                ]
                assert found == [None if one == 404 else one for one in (expected[0], 404, *expected[1:])]


def test_how_long_a_caller_may_keep_an_answer(nights: Nights) -> None:
    def cache(**policy: str) -> tuple[str, int | None, int]:
        with LookupServers(nights.folder, **{f"models.customers.{k}": v for k, v in policy.items()}) as servers:
            answer = httpx.get(f"http://127.0.0.1:{servers.lane_port}{CUSTOMER}7")
            assert answer.status_code == 200
            age = answer.headers.get("age")
            return answer.headers["cache-control"], age and int(age), answer.json()["age_seconds"]

    kept, header, age = cache()
    assert (kept, header) == ("private, no-cache", age)
    # without Age: some caches count it in, and others do not
    assert cache(cache_seconds="60")[:2] == ("private, max-age=60", None)
    kept, header, age = cache(cache_seconds="60", max_age_seconds="0")
    assert (kept, header) == ("private, no-cache", age)
    kept, _, age = cache(cache_seconds="1000000", max_age_seconds="900000")
    assert kept == f"private, max-age={900000 - age}"  # no longer than until it is stale


def test_live_needs_a_model_that_can_answer_to_a_key_alone(nights: Nights) -> None:
    with Server(nights.folder, "visits.py", "--set", "models.visits.unknown=live", ready=False) as server:
        assert server.process.wait(60) == 2
        server.wait_for(
            r"'models.visits.unknown' is 'live', from the command line. That needs a model that can answer to a key alone"
        )


def test_a_websocket_takes_keys(nights: Nights) -> None:
    with Server(nights.folder, "customers.py", "visits.py") as server:
        with connect(f"{server.url}{CUSTOMER[:-1]}".replace("http", "ws")) as socket:
            for message in ("7", b"8", "50", '"x"', "{"):
                socket.send(message)
            found = [json.loads(socket.recv()) for _ in range(5)]
        assert [one.get("status", 200) for one in found] == [200, 200, 404, 422, 400]
        assert [one["prediction"]["score"] for one in found[:2]] == [7.0, 8.0]
        with connect(f"{server.url}{VISIT[:-1]}".replace("http", "ws")) as socket:
            socket.send('["Corner", "2026-11-21"]')
            assert json.loads(socket.recv())["prediction"]["items"][0]["name"] == "tea"


def version_of(server: Server, key: int = 7) -> tuple[int, float]:
    found = httpx.get(f"{server.url}{CUSTOMER}{key}").json()
    return found["version"], found["prediction"]["score"]


def test_workers_follow_the_table(nights: Nights) -> None:
    """A publication and a rollback show in the answers of all workers, without a restart."""
    with Server(nights.folder, "customers.py", "--workers", "2") as server:
        server.wait_for_all(2)

        def all_answer(*expected: Any) -> None:
            for _ in range(10):  # each a connection of its own, to either of them
                assert version_of(server) == expected

        all_answer(1, 7.0)
        nights.night(factor=2.0)
        server.until(lambda: {version_of(server) for _ in range(10)} == {(2, 14.0)}, "answer from version 2")
        nights.sereno("rollback", "customers")
        server.until(lambda: {version_of(server) for _ in range(10)} == {(1, 7.0)}, "answer from version 1")
        all_answer(1, 7.0)
        versions = [f'sereno_lookup_version{{model="customers",worker="{i}"}} 1\n' for i in (1, 2)]
        server.until(lambda: all(one in httpx.get(f"{server.url}/metrics").text for one in versions), "say so")
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'sereno_lookup_stale{model="customers"} 0\n' in metrics
        assert 'sereno_lookup_behind_seconds{model="customers"} 0\n' in metrics
        assert re.search(r'sereno_lookup_keys_total\{model="customers",result="found"\} [1-9]', metrics)
        assert re.search(r'sereno_requests_total\{model="customers",protocol="lookup",status="200"\} [1-9]', metrics)
        ready = httpx.get(f"{server.url}/readyz").json()
        assert ready["ready"] is True
        assert ready["lookup"]["customers"]["version"] == 1


def test_the_server_builds_what_nobody_built(nights: Nights) -> None:
    """A snapshot from before there was a server, or from a publisher that knew nothing of one."""
    shutil.rmtree(nights.folder / ".sereno" / "lookup")
    with Server(nights.folder, "customers.py") as server:
        server.until(lambda: httpx.get(f"{server.url}{CUSTOMER}7").status_code == 200, "index version 1")
        assert version_of(server) == (1, 7.0)
        assert "until a run publishes" not in server.log


def test_a_server_that_requires_lookups_is_not_ready_without(nights: Nights) -> None:
    for folder in ("predictions", "exports", ".sereno"):
        shutil.rmtree(nights.folder / folder)
    required = ["--set", "models.customers.lookup=required"]
    with Server(nights.folder, "customers.py", *required) as server:
        unready = httpx.get(f"{server.url}/readyz")
        assert unready.status_code == 503
        assert unready.json()["because"] == ["nothing is published to look up: customers"]
        answer = httpx.get(f"{server.url}{CUSTOMER}7")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
        server.wait_for(f"^sereno: lookups of customers answer 503 until a run publishes in {nights.folder}.$")
        nights.sereno("run", "customers.py")
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "be ready")
        assert version_of(server) == (1, 7.0)


def test_a_run_builds_what_is_required(nights: Nights) -> None:
    shutil.rmtree(nights.folder / ".sereno" / "lookup")
    nights.sereno("run", "customers.py")
    assert not os.path.exists(nights.folder / ".sereno" / "lookup")
    nights.sereno("run", "customers.py", "--set", "models.customers.lookup=required")
    assert list((nights.folder / ".sereno" / "lookup" / "customers").glob("000001-*.lmdb"))


def test_the_server_builds_what_may_be_rolled_back_to(nights: Nights) -> None:
    lookups = nights.folder / ".sereno" / "lookup"
    shutil.rmtree(lookups)
    nights.night(2.0)
    nights.night(3.0)
    with Server(nights.folder, "customers.py", "visits.py") as server:
        server.until(lambda: len(list(lookups.glob("*/0*.json"))) == 4, "have an index of every snapshot")
        assert version_of(server) == (3, 21.0)
        nights.sereno("rollback", "customers")
        server.until(lambda: version_of(server) == (2, 14.0), "answer from version 2")
        assert server.log.count("is indexed") == 4


def test_a_run_that_is_required_to_builds_all(nights: Nights) -> None:
    lookups = nights.folder / ".sereno" / "lookup" / "customers"
    shutil.rmtree(lookups)
    nights.night(2.0)
    nights.sereno("run", "customers.py", "--set", "models.customers.lookup=required")
    assert sorted(path.name[:6] for path in lookups.glob("*.lmdb")) == ["000001", "000002"]


def test_lookups_that_are_off_leave_nothing(nights: Nights) -> None:
    lookups = nights.folder / ".sereno" / "lookup" / "customers"
    assert lookups.is_dir()
    nights.sereno("run", "customers.py", "--set", "models.customers.lookup=off")
    assert not lookups.exists()


LARGE = """
from typing import TypedDict
import pyarrow as pa
from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    size: int

class Out(TypedDict):
    text: str

model = Model("large", inputs=Row, outputs=Out, source="large.parquet")

@model.load
def load():
    return None

@model.predict
def predict(loaded, rows: pa.Table):
    return {"text": ["x" * size for size in rows["size"].to_pylist()]}
"""


def test_a_small_request_has_no_huge_reply(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("large.py", LARGE)
    project.write("sereno.toml", 'serve.max_reply_bytes = 1_000_000\n[models.large.gates]\nconstant = "allow"\n')
    pq.write_table(pa.table({"id": [0, 1, 2], "size": [2_000_000, 400_000, 10]}), tmp_path / "large.parquet")
    project.sereno("run", "large.py", "--set", "models.large.lookup=required")
    with Server(tmp_path, "large.py") as server:
        one = httpx.get(f"{server.url}/predictions/0")  # one prediction may be as large as it is
        assert len(one.json()["prediction"]["text"]) == 2_000_000
        assert httpx.post(f"{server.url}/predictions", json={"keys": [1, 2]}).status_code == 200
        many = httpx.post(f"{server.url}/predictions", json={"keys": [1] * 3})
        assert (many.status_code, many.json()["detail"]) == (
            413,
            "The answers are larger than 1,000,000 bytes. Ask for fewer keys at once.",
        )
        frame = {"dataframe_split": {"columns": ["id"], "data": [[1]] * 3}}
        assert httpx.post(f"{server.url}/invocations", json=frame).status_code == 413

        # requests in one piece, whose replies the caller does not read: they are answered when it does
        (worker,) = server.workers()
        before = psutil.Process(worker).memory_info().rss
        with connected(server.port) as sock:
            sock.sendall(get("/predictions/1", request_id=None) * 500)
            time.sleep(0.5)
            assert httpx.get(f"{server.url}/predictions/2").status_code == 200
            assert psutil.Process(worker).memory_info().rss - before < 50_000_000
            found = answers(sock, 500)
        assert {(status, len(body) > 400_000) for status, _, body in found} == {(200, True)}
        assert len(found) == 500


KEYS_CHANGED = [
    ("shop: Key[str]", "shop: Key[int]"),
    ("    shop: Key[str]\n    day: Key[date]", "    day: Key[date]\n    shop: Key[str]"),
]


@pytest.mark.parametrize(("old", "new"), KEYS_CHANGED)
def test_other_keys_than_the_published_ones(nights: Nights, old: str, new: str) -> None:
    """The model file was changed since the last run: a key of its own must not be taken for one of the table's."""
    assert old in VISITS
    nights.write("visits.py", VISITS.replace(old, new))
    with LookupServers(nights.folder) as servers:
        for key in ("1/2026-11-21", "2026-11-21/1", "2026-11-21/Corner", "Corner/2026-11-21"):
            answer = httpx.get(f"http://127.0.0.1:{servers.lane_port}{VISIT}{key}")
            assert answer.status_code in (422, 503)
            if answer.status_code == 503:
                assert "has other keys than this model has now" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["/models/customers/predictions%2F9/7", "/models/customers%2Fpredictions/9/7", "/models%2Fcustomers/predictions/7"],
)
def test_an_escaped_slash_makes_no_path_of_ours(servers: LookupServers, path: str) -> None:
    for port in (servers.lane_port, servers.plain_port):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 404
