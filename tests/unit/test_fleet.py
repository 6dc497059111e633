"""Servers on a cluster as the command sees them: brought up, fewer of them, more, updated, refused. The cluster is played."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from sereno.cli import main
from sereno.exceptions import PredictError
from sereno.serve.on_ray import command
from sereno.serve.on_ray import fleet as module
from sereno.serve.on_ray.fleet import Fleet
from sereno.serve.on_ray.replica import Name, Spec, Status


def spec(version: str) -> Spec:
    return Spec(arguments=[], folder="/srv", host=None, variables={}, version=version)


@dataclass
class Played:
    """A cluster whose servers are ready at once, but those of the version "bad". Places are on nodes in order."""

    nodes: list[str]
    places: dict[int, int] = field(default_factory=dict)
    servers: dict[Name, Status] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    unready_on: set[str] = field(default_factory=set)  # the nodes on which a server is not ready
    unready_after: set[int] = field(default_factory=set)  # the reloads after which a server is not ready

    def addresses(self) -> list[str]:
        return self.nodes

    def generations(self) -> dict[int, int]:
        return dict(self.places)

    def open(self, generation: int, places: int) -> None:
        self.places[generation] = places

    def is_open(self, generation: int) -> bool:
        return self.places[generation] <= len(self.nodes)

    def place(self, generation: int, index: int) -> str:
        return self.nodes[-1 - index] if generation % 2 == 0 else self.nodes[index]

    def close_places(self, generation: int) -> None:
        del self.places[generation]
        self.servers = {name: one for name, one in self.servers.items() if name.generation != generation}

    def find(self) -> list[Name]:
        return self.names()

    def names(self) -> list[Name]:
        return sorted(self.servers)

    def start(self, generation: int, index: int, spec: Spec) -> Name:
        address = self.place(generation, index)
        taken = [one.address for one in self.servers.values() if one.state in ("ready", "unready")]
        assert address not in taken, "two servers on one node"
        bad, unready = spec.version == "bad", spec.version == "unready" or address in self.unready_on
        name = Name(generation, index, spec.digest)
        self.servers[name] = Status(
            state="failed" if bad else "unready" if unready else "ready",
            spec=spec,
            host=address,
            address=address,
            url=f"http://{address}",
            error="PredictError" if bad else "",
            says="load raised" if bad else "nothing is published." if unready else "",
        )
        self.told.append(f"start {address} {spec.version}")
        return name

    def look(self, seconds: float) -> None: ...

    def status(self, name: Name) -> Status | None:
        return self.servers.get(name)

    def reload(self, name: Name) -> None:
        one = self.servers[name]
        self.told.append(f"reload {one.address}")
        state = "unready" if sum(told.startswith("reload") for told in self.told) in self.unready_after else "ready"
        self.servers[name] = msgspec.structs.replace(one, reloads=one.reloads + 1, state=state)

    def stop(self, name: Name) -> None:
        one = self.servers[name]
        self.servers[name] = msgspec.structs.replace(one, state="ended")
        self.told.append(f"stop {one.address} {one.spec.version}")

    def remove(self, name: Name) -> None:
        self.servers.pop(name, None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(module, "GROW_SECONDS", 0.01)
    monkeypatch.setattr(module, "GRACE", 0.05)
    monkeypatch.setattr(module, "UP_SECONDS", 0.05)


class Notes(list[str]):
    """What is said; at the one that has these words, the process is sent that signal."""

    def __init__(self, words: str = "", number: int = signal.SIGUSR1) -> None:
        super().__init__()
        self._words, self._number = words, number

    def __call__(self, text: str) -> None:
        self.append(text)
        if self._words and self._words in text:
            os.kill(os.getpid(), self._number)


def run(
    cluster: Played, version: str, replicas: int, notes: Notes | None = None, at_start: int = signal.SIGUSR1
) -> list[Status]:
    """Until the signal that is sent when all are announced, or what a note brings."""
    announced: list[Status] = []

    def announce(said: Sequence[Status]) -> None:
        announced.extend(said)
        if notes is None or not notes._words:
            os.kill(os.getpid(), at_start)

    Fleet(
        cluster,
        spec(version),
        replicas,
        seconds_to_end=1,
        announce=announce,
        note=notes if notes is not None else Notes(),
        settle_seconds=0,
        fewer_seconds=0.05,
    ).run()
    return announced


def test_it_starts_all_leaves_them_finds_them_and_ends_them() -> None:
    cluster = Played(["a", "b", "c"])
    assert [one.address for one in run(cluster, "1", 3)] == ["a", "b", "c"]
    cluster.told.clear()

    assert len(run(cluster, "1", 3)) == 3
    assert cluster.told == []

    run(cluster, "1", 3, at_start=signal.SIGTERM)
    assert cluster.told == ["stop a 1", "stop b 1", "stop c 1"]
    assert not cluster.servers
    assert not cluster.places


def test_another_version_replaces_one_after_the_other() -> None:
    cluster = Played(["a", "b"])
    run(cluster, "1", 2)
    run(cluster, "2", 2)
    assert cluster.told[2:] == ["stop a 1", "start a 2", "stop b 1", "start b 2"]


def test_one_that_does_not_start_gives_its_place_back_and_the_others_stay() -> None:
    cluster, notes = Played(["a", "b"]), Notes()
    run(cluster, "1", 2)
    run(cluster, "bad", 2, notes)
    assert cluster.told[2:] == ["stop a 1", "start a bad", "stop a bad", "start a 1"]
    assert notes == ["the update was refused, the other servers stay as they are: load raised"]


def test_one_that_does_not_get_ready_gives_its_place_back_and_the_others_stay() -> None:
    cluster, notes = Played(["a", "b"]), Notes()
    run(cluster, "1", 2)
    run(cluster, "unready", 2, notes)
    assert cluster.told[2:] == ["stop a 1", "start a unready", "stop a unready", "start a 1"]
    assert {one.state for one in cluster.servers.values()} == {"ready"}
    assert notes == [
        "the update was refused, the other servers stay as they are: server 1 was not ready after 0.05 s: nothing is published."
    ]


def test_where_none_is_ready_those_that_are_not_ready_either_will_do() -> None:
    cluster = Played(["a", "b"])
    assert [one.state for one in run(cluster, "unready", 2)] == ["unready"] * 2  # before the first run, say
    other = Spec(arguments=["--watch"], folder="/srv", host=None, variables={}, version="unready")
    Fleet(
        cluster,
        other,
        2,
        seconds_to_end=1,
        announce=lambda said: os.kill(os.getpid(), signal.SIGUSR1),
        note=Notes(),
        settle_seconds=0,
    ).run()
    assert {name.digest for name in cluster.servers} == {other.digest}


def test_if_none_starts_nothing_is_left() -> None:
    cluster = Played(["a", "b"])
    with pytest.raises(PredictError, match="load raised"):
        run(cluster, "bad", 2)
    assert not cluster.servers
    assert not cluster.places


def test_it_begins_with_fewer_and_takes_others_in_as_nodes_come() -> None:
    cluster, notes = Played(["a", "b"]), Notes("3 of 3 servers now")
    announced: list[int] = []

    def announce(said: Sequence[Status]) -> None:
        announced.append(len(said))
        cluster.nodes.append("c")

    Fleet(
        cluster,
        spec("1"),
        3,
        seconds_to_end=1,
        announce=announce,
        note=notes,
        settle_seconds=0,
        fewer_seconds=0.05,
    ).run()
    assert announced == [2]
    assert notes[0] == "begins with 2 of 3 servers; the others follow once there are nodes for them."
    assert {one.address for one in cluster.servers.values()} == {"a", "b", "c"}
    assert list(cluster.places.values()) == [3]


def test_one_more_that_does_not_get_ready_is_tried_again_later() -> None:
    cluster = Played(["a", "b"], unready_on={"c"})

    class Mends(Notes):
        def __call__(self, text: str) -> None:
            super().__call__(text)
            if "the next server did not start: server 3 was not ready" in text:
                assert {one.address for one in cluster.servers.values()} == {"a", "b"}
                cluster.unready_on.clear()

    notes = Mends("3 of 3 servers now")
    Fleet(
        cluster,
        spec("1"),
        3,
        seconds_to_end=1,
        announce=lambda said: cluster.nodes.append("c"),
        note=notes,
        settle_seconds=0,
        fewer_seconds=0.05,
    ).run()
    assert sum("did not start" in note for note in notes) == 1
    assert {(one.address, one.state) for one in cluster.servers.values()} == {(node, "ready") for node in "abc"}


def test_another_number_is_asked_for() -> None:
    cluster = Played(["a", "b", "c"])
    run(cluster, "1", 3)
    run(cluster, "1", 2)
    assert len(cluster.servers) == 2
    assert list(cluster.places.values()) == [2]


def test_where_there_is_no_room_for_more_those_that_serve_stay() -> None:
    cluster, notes = Played(["a", "b"]), Notes()
    run(cluster, "1", 2)
    run(cluster, "2", 3, notes)
    assert "there is no room for 3 servers beside those that run; they stay." in notes
    assert {(one.address, one.spec.version) for one in cluster.servers.values()} == {("a", "2"), ("b", "2")}


def test_each_reads_its_files_again() -> None:
    cluster = Played(["a", "b"])
    run(cluster, "1", 2)
    notes = Notes("servers have read their files again")

    def announce(said: Sequence[Status]) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    Fleet(cluster, spec("1"), 2, seconds_to_end=1, announce=announce, note=notes, settle_seconds=0).run()
    assert cluster.told[2:] == ["reload a", "reload b"]


def test_one_that_is_not_ready_after_it_ends_a_reload_and_the_next_reload_is_heeded() -> None:
    cluster = Played(["a", "b"], unready_after={1})
    run(cluster, "1", 2)

    class Twice(Notes):
        def __call__(self, text: str) -> None:
            super().__call__(text)
            if "not told to read" in text:
                os.kill(os.getpid(), signal.SIGHUP)

    notes = Twice("servers have read their files again")

    def announce(said: Sequence[Status]) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    Fleet(cluster, spec("1"), 2, seconds_to_end=1, announce=announce, note=notes, settle_seconds=0).run()
    assert cluster.told[2:] == ["reload a", "reload a", "reload b"]
    assert "server 1 is not ready after its reload: unready. 1 other servers were not told to read them." in notes


def test_a_head_that_is_gone_is_told_and_one_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HEAD_SECONDS", 0.01)
    is_over, said = threading.Event(), queue.Queue[str]()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watching = threading.Thread(target=command.watch_head, args=[address, is_over, said.put])
        watching.start()
    assert f"Ray's head {address} cannot be reached" in said.get(timeout=30)
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        assert said.get(timeout=30) == f"Ray's head {address} can be reached again."
    is_over.set()
    watching.join(30)


def test_what_may_hold_a_password_is_not_sent_and_another_value_is_seen() -> None:
    environ = {
        "SERENO_LEDGER": "postgresql://u:secret@db/o",
        "SERENO_LOOKUP_STORE": "redis://:secret@cache",
        "SERENO_MODELS__CHURN__NOTIFY": '["https://chat/secret"]',
        "SERENO_MODELS__CHURN__DATABASE": "postgresql://u:secret@db/o",
        "SERENO_MODELS__CHURN__EXPORTS": "postgresql://u:secret@db/o",
        "SERENO_MODELS__CHURN__NOTIFY_FILE": "/run/secrets/notify",
        "SERENO_SECRET_API_KEYS": "secret",
        "SERENO_VALUES__SHOP_TOKEN": "secret",
        "SERENO_VALUES__SHOP": "postgresql://u:secret@db/o",
        "SERENO_VALUES__AUTHOR": "me",
        "SERENO_SERVE__PORT": "8001",
        "PATH": "/bin",
    }
    found = command._variables(environ)
    assert found["variables"] == {"SERENO_SERVE__PORT": "8001", "SERENO_VALUES__AUTHOR": "me"}
    values = {"SERENO_VALUES__SHOP_TOKEN", "SERENO_VALUES__SHOP"}
    assert found["own"].keys() == {"SERENO_LEDGER", "SERENO_LOOKUP_STORE", *values}
    assert "secret" not in str(found)
    assert found["own"] != command._variables(environ | {"SERENO_LEDGER": "postgresql://u:other@db/o"})["own"]
    assert spec("1").digest != msgspec.structs.replace(spec("1"), own=found["own"]).digest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replicas", "2"], "Say --on ray, too"),
        (["--on", "ray", "--host", "10.0.0.1"], "with --on ray each server has its node's own address"),
        (["--on", "ray", "--unix", "s"], "nobody reaches a Unix socket of another host"),
        (["--on", "ray", "--set", "ray.address=ray://head:10001"], "ray.address is 'ray://head:10001'"),
        (["--on", "ray", "--set", "ray.runtime_env=none.json"], "which cannot be read as JSON"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "total.py").write_text("")
    assert main(["serve", *arguments, "total.py"]) == 2
    assert says in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "total.py").write_text("")
    assert main(["serve", "--on", "ray", "total.py"]) == 2
    assert "pip install 'sereno[ray]'" in capsys.readouterr().err
