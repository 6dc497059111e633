"""Lookups in a server that several hosts share: answered without the table, and never wrongly, whatever becomes of the server.

Every version is published with another weight (y = id / 8 × weight), so each answer shows which version it is of.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from sereno.config import load_settings
from sereno.home import Home, rollback
from tests.acceptance.lookup_load import KEYS, LookupLoad
from tests.acceptance.project import DAY, Project, faults
from tests.acceptance.server import Server
from tests.valkey import Valkey, valkey

UNKNOWN = 10_000
SOAK = pytest.mark.soak  # the same over stores, without processes, is in tests/contract


class Shop:
    """A project whose lookups are in a server, and the weight of each of its versions."""

    def __init__(self, project: Project, store: Valkey, weights: dict[int, float]) -> None:
        self.project, self.store, self.weights = project, store, weights
        self.home = project.folder
        project.within = True

    def copy(self, folder: Path, store: Valkey, **settings: Any) -> Shop:
        copied = Shop(self.project.copy(folder), store, dict(self.weights))
        copied.settings(**settings)
        return copied

    def settings(self, **settings: Any) -> None:
        """Write sereno.toml; names with `__` are those of the model."""
        given = {"lookup_store": self.store.url, **settings}
        lines = [f"{key.replace('__', '.')} = {json.dumps(value)}" for key, value in given.items()]
        self.project.write("sereno.toml", "\n".join(sorted(lines, key=lambda line: "." in line)) + "\n")

    def publish(self, *, code: int | None = 0, **variables: str) -> Any:
        """The next version, with a weight of its own; in a process of its own where it has variables."""
        version = max(self.weights, default=0) + 1
        self.weights[version] = version + 1.0
        self.project.write("weight.txt", str(self.weights[version]))
        self.project.within = not variables
        try:
            command = ("run", "total.py", "--date", DAY, "--json", "--workers", "1")
            return self.project.sereno(*command, code=code, **variables)
        finally:
            self.project.within = True

    def rollback(self, to: int) -> None:
        rollback(Home(load_settings(self.home), "total"), to=to)

    def elsewhere(self, folder: Path) -> Path:
        """Another host's folder: the model and its settings, and nothing that a run has made."""
        other = Project.new(folder)
        for name in ("sereno.toml", "weight.txt"):
            other.write(name, (self.home / name).read_text())
        return other.folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Versions 1 and 2. For copying: each copy has its own server, which its first run fills."""
    with valkey() as store:
        project = Project.new(tmp_path_factory.mktemp("shared") / "published")
        project.rows(DAY, KEYS)
        shop = Shop(project, store, {})
        shop.settings(lookup_prefix="other")
        shop.publish()
        shop.publish()
        yield shop


@pytest.fixture
def store() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture
def shop(published: Shop, store: Valkey, tmp_path: Path) -> Shop:
    return published.copy(tmp_path / "project", store)


@pytest.fixture(scope="module")
def answering(published: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Server]]:
    """A server of version 3, for tests that only ask."""
    with valkey() as store:
        shop = published.copy(tmp_path_factory.mktemp("answering") / "project", store)
        shop.publish()
        with serve(shop.home, "--set", "serve.max_reply_bytes=6000") as server:
            yield shop, server


def serve(home: Path, *arguments: str) -> Server:
    return Server(home, "total.py", "--set", "serve.access_log=off", *arguments)


def get(server: Server, key: int = 8) -> httpx.Response:
    return httpx.get(f"{server.url}/predictions/{key}", timeout=5)


def version(server: Server) -> int | None:
    """The version that answers; None: none does. Whatever happens, that is a 503 which says when to ask again."""
    reply = get(server)
    if reply.status_code == 200:
        found: int = reply.json()["version"]
        return found
    assert (reply.status_code, int(reply.headers["retry-after"]) > 0) == (503, True), reply.text
    return None


def wait_for(server: Server, wanted: int | None) -> None:
    server.until(lambda: version(server) == wanted, f"answer from version {wanted}")


def ask_v2(server: Server, *keys: int) -> httpx.Response:
    inputs = [{"name": "id", "shape": [len(keys)], "datatype": "INT64", "data": keys}]
    return httpx.post(f"{server.url}/v2/models/total/infer", json={"inputs": inputs}, timeout=5)


def test_a_server_fills_it_and_follows(shop: Shop, tmp_path: Path) -> None:
    """Nobody published since the store was set: the server with the table fills it. One on another host answers as well."""
    other = shop.elsewhere(tmp_path / "other")
    with serve(shop.home) as server, serve(other) as far:
        wait_for(server, 2)
        wait_for(far, 2)
        assert not (other / ".sereno" / "lookup").exists()
        with LookupLoad(server.port, shop.weights) as load, LookupLoad(far.port, shop.weights) as there:
            for number, change in ((3, shop.publish), (2, lambda: shop.rollback(2)), (4, shop.publish)):
                change()
                load.wait_for(number)
                there.wait_for(number)
        for one in (load, there):
            one.assert_followed([2, 3, 2, 4])
            assert one.unchanged
        assert "error" not in (server.log + far.log).lower()
        metrics = httpx.get(f"{far.url}/metrics").text
        assert 'sereno_lookup_keys_total{model="total",result="lost"} 0\n' in metrics


def test_every_protocol(answering: tuple[Shop, Server]) -> None:
    shop, server = answering
    y = [1 * shop.weights[3], 2 * shop.weights[3]]
    reply = ask_v2(server, 8, 16)
    assert reply.json()["outputs"][0]["data"] == y
    assert ask_v2(server, 8, UNKNOWN).status_code == 404
    rows = {"dataframe_records": [{"id": 8}, {"id": 16}]}
    assert httpx.post(f"{server.url}/invocations", json=rows).json() == {"predictions": [{"y": one} for one in y]}
    with connect(f"ws://127.0.0.1:{server.port}/predictions", proxy=None) as stream:
        for key in (8, UNKNOWN, 16):
            stream.send(str(key))
        told = [json.loads(stream.recv()) for _ in range(3)]
        assert [one.get("status", 200) for one in told] == [200, 404, 200]
    # by the application, to which the lane leaves such headers
    packed = {"content-encoding": "identity"}
    reply = httpx.post(f"{server.url}/predictions", content=b'{"keys": [8, 10000]}', headers=packed)
    assert [one and one["prediction"] for one in reply.json()] == [{"y": y[0]}, None]
    many = httpx.post(f"{server.url}/predictions", json={"keys": [*range(200), UNKNOWN]}).json()
    assert [one and one["prediction"]["y"] for one in many] == [*(n / 8 * shop.weights[3] for n in range(200)), None]
    assert httpx.post(f"{server.url}/predictions", json={"keys": [*range(499)] * 2}).status_code == 413


def test_replies_in_the_order_of_requests(answering: tuple[Shop, Server]) -> None:
    """Also where several wait for the store at once, and one of them needs it not at all."""
    _, server = answering
    paths = ["/predictions/8", "/predictions/10000", "/livez", "/predictions/x", "/predictions/16"]
    requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
        for together in (True, False, True):  # from the second time on all heads are known
            for piece in [b"".join(requests)] if together else requests:
                one.sendall(piece)
            received = b""
            while received.count(b"HTTP/1.1 ") < 5 or not received.rstrip().endswith(b"}"):
                received += one.recv(65536)
            statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [200, 404, 200, 422, 200]


def test_a_server_that_is_lost_and_comes_back_empty(shop: Shop) -> None:
    """503, which says when to ask again; nothing else suffers. Then the server with the table fills it again."""
    shop.settings(models__total__lookup="required")
    shop.publish()
    with serve(shop.home) as server:
        assert version(server) == 3
        shop.store.kill()
        wait_for(server, None)
        for reply in (get(server, UNKNOWN), ask_v2(server, 8), ask_v2(server, UNKNOWN)):
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1"), reply.text
        many = httpx.post(f"{server.url}/predictions", json={"keys": [8, UNKNOWN]})
        assert many.status_code == 503
        assert httpx.post(f"{server.url}/predict", json={"id": 1, "x": 2.0}).json() == {"y": 2.0 * shop.weights[3]}
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, "say that it is not ready")
        assert "the store of lookups does not answer" in httpx.get(f"{server.url}/readyz").text
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'sereno_lookup_keys_total{model="total",result="lost"} ' in metrics
        assert 'sereno_lookup_keys_total{model="total",result="lost"} 0\n' not in metrics
        shop.store.start()
        wait_for(server, 3)
        assert get(server, UNKNOWN).status_code == 404
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "be ready")


@contextlib.contextmanager
def watched(server: Server, shop: Shop) -> Iterator[Callable[[], None]]:
    """Ask for a known and an unknown key again and again: no answer is wrong."""

    def look() -> None:
        for key in (8, UNKNOWN):
            reply = get(server, key)
            if reply.status_code == 503:
                assert int(reply.headers["retry-after"]) > 0
                continue
            assert reply.status_code == (200 if key == 8 else 404), reply.text
            if key == 8:
                told = reply.json()
                assert told["prediction"]["y"] == shop.weights[told["version"]]

    look()
    yield look
    look()


@pytest.mark.parametrize("what", ["flushall", pytest.param("index", marks=SOAK), pytest.param("catalogue", marks=SOAK)])
def test_what_is_taken_from_under_it(what: str, shop: Shop) -> None:
    """Emptied, evicted or removed by somebody: an unknown key is not told as such, and all is filled again."""
    shop.publish()
    client = shop.store.client
    with serve(shop.home) as server, watched(server, shop) as look:
        wait_for(server, 3)
        names = [name for name in client.scan_iter() if b":000003-" in name or b"catalogue" in name]
        if what == "flushall":
            client.flushall()
        else:
            (name,) = [name for name in names if (b"catalogue" in name) == (what == "catalogue")]
            client.unlink(name)
        for _ in range(20):
            look()
        wait_for(server, 3)
        server.until(lambda: len([*client.scan_iter("sereno:{total}:0*")]) >= 1, "fill it again")


def test_an_older_state_of_itself(shop: Shop, tmp_path: Path) -> None:
    """Started again from an older dump, it says the version that it has; where the table is, that is mended."""
    shop.publish()
    shop.store.client.save()
    shop.publish()
    other = shop.elsewhere(tmp_path / "other")
    with serve(other) as far:
        wait_for(far, 4)
        shop.store.restart()
        wait_for(far, 3)
        assert get(far).json()["prediction"]["y"] == shop.weights[3]
        far.wait_for("has an older state of itself")
        with serve(shop.home):
            wait_for(far, 4)


@SOAK
def test_what_was_rolled_back_does_not_come_back_with_a_dump(shop: Shop, tmp_path: Path) -> None:
    shop.publish()
    shop.store.client.save()
    other = shop.elsewhere(tmp_path / "other")
    with serve(other) as far:
        wait_for(far, 3)
        shop.rollback(2)
        wait_for(far, 2)
        shop.store.restart()
        server_says = far.wait_for("has an older state of itself")
        assert server_says
        for _ in range(10):
            assert version(far) in (None, 2)
        with serve(shop.home):
            wait_for(far, 2)


def test_a_server_that_does_not_answer_in_time(shop: Shop) -> None:
    """503 after half a second, and nobody else waits for that."""
    shop.publish()
    with serve(shop.home) as server, watched(server, shop) as look:
        with shop.store.paused():
            assert version(server) is None
            for _ in range(5):
                assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
                assert httpx.post(f"{server.url}/predict", json={"id": 1, "x": 2.0}, timeout=20).status_code == 200
                assert version(server) is None
        wait_for(server, 3)
        look()


@SOAK
def test_live_where_the_store_is_lost(published: Shop, store: Valkey, tmp_path: Path) -> None:
    shop = published.copy(tmp_path / "project", store, models__total__unknown="live")
    model = (shop.home / "total.py").read_text()
    model = model.replace("import Key,", "import Fetched, Key,").replace("x: float", "x: Fetched[float]")
    fetch = "\n@model.fetch\ndef fetch(keys: list[int]):\n    return {key: key / 8 for key in keys}\n\n\n@model.predict"
    shop.project.write("total.py", model.replace("\n@model.predict", fetch, 1))
    shop.publish()
    with serve(shop.home) as server:
        assert get(server).json()["origin"] == "lookup"
        store.kill()
        assert get(server).json()["origin"] == "live"
        assert get(server).json()["prediction"] == {"y": shop.weights[3]}


def test_two_homes_do_not_mix(shop: Shop, published: Shop, tmp_path: Path) -> None:
    """Models of one name, in two projects that were given the same server."""
    shop.publish()
    other = published.copy(tmp_path / "second", shop.store)
    (other.home / ".sereno" / "home-id").unlink()
    report = other.publish(code=1)
    assert "follow the table of another home" in report.stderr
    assert "'lookup_prefix'" in report.stderr
    with serve(other.home) as two:
        assert get(two).status_code == 503
        two.wait_for("follow the table of another home")
    other.settings(lookup_prefix="second")
    other.publish()


@SOAK
def test_a_server_whose_memory_is_full(shop: Shop) -> None:
    """The publication stands, lookups answer as before, and the run says what to do."""
    shop.publish()
    client = shop.store.client
    with serve(shop.home) as server:
        wait_for(server, 3)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000)
        report = shop.publish(code=1)
        assert "its memory is full (maxmemory)" in report.stderr
        assert "Version 4 is in service" in report.stderr
        assert version(server) == 3
        client.config_set("maxmemory", 0)
        wait_for(server, 4)


def test_a_server_that_throws_away(shop: Shop) -> None:
    shop.store.client.config_set("maxmemory-policy", "allkeys-lru")
    assert "maxmemory-policy allkeys-lru" in shop.publish(PYTHONUNBUFFERED="1").stderr


def test_versions_that_are_held(shop: Shop) -> None:
    """Those of the setting; a rollback to the one before moves nothing but the catalogue."""

    def held() -> list[int]:
        client = shop.store.client
        names = [name.decode() for name in client.scan_iter("sereno:{total}:0*") if client.ttl(name) == -1]
        return sorted(int(name.split(":")[2][:6]) for name in names)

    shop.publish()
    assert held() == [2, 3]
    shop.publish()
    assert held() == [3, 4]
    shop.rollback(3)
    assert held() == [2, 3]
    shop.settings(lookup_versions=1)
    shop.publish()
    assert held() == [5]
    shop.settings(models__total__lookup="off")
    shop.publish()
    assert held() == []
    assert shop.store.client.dbsize() <= 2  # what was served until now stays for a minute


@pytest.mark.parametrize(
    "place",
    [
        "lookup_built",
        *(pytest.param(f"lookup_{one}", marks=SOAK) for one in ("build", "swap_before", "swapped", "removed")),
    ],
)
def test_a_run_that_is_killed_while_it_fills(place: str, shop: Shop) -> None:
    shop.publish()
    with serve(shop.home) as server:
        wait_for(server, 3)
        # a run looks after what is there before it adds to it, and passes these places then already
        again = "@2" if place in ("lookup_swap_before", "lookup_swapped", "lookup_removed") else ""
        shop.publish(code=-signal.SIGKILL, **faults(f"{place}:kill{again}"))
        # who died has the lock for some seconds; then the server finishes what was left
        wait_for(server, 4)


@SOAK
def test_a_password_that_is_wrong(published: Shop, tmp_path: Path) -> None:
    with valkey("--requirepass", "s3cret") as store:
        shop = published.copy(tmp_path / "project", store)
        shop.settings(lookup_store=store.url.replace("//", "//:wr0ng@"))
        with serve(shop.home) as server:
            assert version(server) is None
            server.wait_for("it does not take this user and password")
            assert "wr0ng" not in server.log
        report = shop.publish(code=1).stderr
        assert "it does not take this user and password" in report
        assert "wr0ng" not in report
