"""Lookups in a Redis server, of a table in an object store: pods come and go with empty disks, and are all of one home."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sereno.adapters import objects
from sereno.adapters.lookup_redis import store as store_module
from sereno.adapters.lookup_redis.store import LookupRedis
from sereno.exceptions import IndexingError
from sereno.lookup.builder import _indexed
from sereno.lookup.where import Where, open_store, where_told
from sereno.places import ObjectPath
from tests.contract.lookup_stores import ALL, MODEL, Table, answer
from tests.valkey import Valkey, valkey


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOOK_SECONDS", 0.0)


class Pods:
    def __init__(self, folder: Path, root: ObjectPath, server: Valkey) -> None:
        self._folder, self.root, self._server = folder, root, server
        self.table = Table(folder / "run", root)

    def __getitem__(self, name: str) -> LookupRedis:
        return LookupRedis(self._folder / name, MODEL, address=self._server.url, prefix="cloud", root=self.root)


@pytest.fixture
def pods(tmp_path: Path, storage: ObjectPath, server: Valkey) -> Pods:
    server.client.flushall()
    return Pods(tmp_path, storage, server)


def served(pod: LookupRedis) -> int:
    index = pod.open()
    assert index is not None
    assert index.get(index.keys.encode((2,))) == answer(index.number)
    return index.number


def test_each_run_is_a_pod_of_its_own(pods: Pods) -> None:
    serving = pods["serve"]
    assert not serving.is_behind()
    for number in (1, 2, 3):
        pods.table.publish()
        assert serving.is_behind()
        assert serving.work() is not None
        assert pods[f"run{number}"].follow(pods.table.state, ALL)
        assert not serving.is_behind()
        assert serving.work() is None
        assert served(serving) == number
    pods.table.store.rollback()
    assert serving.is_behind()
    assert serving.follow(pods.table.state, _indexed(pods.table.state))
    assert served(serving) == 2
    assert serving.was_rolled_back(3)


def test_an_older_state_does_not_win(pods: Pods) -> None:
    pods.table.publish()
    old = pods.table.state
    pods.table.publish()
    pods["a"].follow(pods.table.state, ALL)
    assert not pods["b"].follow(old, ALL)
    assert served(pods["b"]) == 2


def test_a_store_of_another_bank_is_refused(pods: Pods, tmp_path: Path, server: Valkey) -> None:
    pods.table.publish()
    pods["a"].follow(pods.table.state, ALL)
    other = Table(tmp_path / "other", pods.root / "other")
    other.publish()
    theirs = LookupRedis(tmp_path / "other", MODEL, address=server.url, prefix="cloud", root=pods.root / "other")
    with pytest.raises(IndexingError, match="follow the table of another home"):
        theirs.follow(other.state, ALL)
    assert served(pods["a"]) == 1


def test_no_answer_depends_on_the_bucket(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.table.publish()
    pods["run"].follow(pods.table.state, ALL)
    known, new = pods["known"], pods["new"]
    known.look(None)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(objects, "DEADLINE", timedelta(seconds=0.2))
        objects.forget()
        for pod in (known, new):
            assert not pod.look(1).is_behind
            assert pod.work() is None
            assert served(pod) == 1
    objects.forget()


def test_a_builder_is_told_where_the_table_is(pods: Pods, tmp_path: Path, server: Valkey) -> None:
    where = Where(address=server.url, prefix="cloud", versions=2, storage=str(pods.root))
    assert where_told(where.environ()) == where
    assert where.root == pods.root
    assert not where.is_objects
    pods.table.publish()
    pods["run"].follow(pods.table.state, ALL)
    store = open_store(where, tmp_path / "serve", MODEL)
    assert isinstance(store, LookupRedis)
    assert served(store) == 1
