"""A ledger in SQLite is one host's at a time: whoever finds another host's young mark keeps its hands off."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.adapters.ledger import ledger_file, open_at, sqlite
from sereno.adapters.ledger.statements import SqlLedger
from sereno.exceptions import LedgerError
from sereno.interfaces import RunLedger


class Hosts:
    """The process is on one host, then on another."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._patch = home, monkeypatch
        self.opened: list[SqlLedger] = []
        self.mark = ledger_file(home).with_name("ledger.host")

    def on(self, host: str, boot: str) -> RunLedger:
        self._patch.setattr(socket, "gethostname", lambda: host)
        self._patch.setattr(sqlite, "_boot", lambda: boot)
        self.opened.append(open_at(None, self.home))
        return self.opened[-1]

    def is_older(self, seconds: float) -> None:
        then = self.mark.stat().st_mtime - seconds
        os.utime(self.mark, (then, then))


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    made = Hosts(tmp_path, monkeypatch)
    yield made
    for ledger in made.opened:
        ledger.close()


def test_a_second_host_is_told(hosts: Hosts) -> None:
    began = hosts.on("node-1", "a").began()
    with pytest.raises(LedgerError) as caught:
        hosts.on("node-2", "b").began()
    assert str(caught.value) == (
        f"The ledger {ledger_file(hosts.home)} is in use on host node-1, and SQLite cannot be shared with this one (node-2): "
        'it would be damaged. Give the hosts that share a home a ledger in PostgreSQL: ledger = "postgresql://…" in '
        "sereno.toml. If node-1 has stopped using it, try again in a minute."
    )
    assert hosts.on("node-1", "a").began() == began
    assert {path.name for path in hosts.mark.parent.iterdir()} >= {"ledger.host", "ledger.sqlite"}
    assert not [path for path in hosts.mark.parent.iterdir() if path.name.startswith(".ledger.host")]


def test_what_a_host_has_left_another_may_use(hosts: Hosts) -> None:
    began = hosts.on("node-1", "a").began()
    hosts.is_older(sqlite.USED_SECONDS + 1)
    assert hosts.on("node-2", "b").began() == began
    with pytest.raises(LedgerError, match="in use on host node-2"):
        hosts.on("node-1", "a").began()


@pytest.mark.parametrize(("host", "boot"), [("node-1", "b"), ("container", "a")])
def test_a_host_that_was_started_anew_and_containers_of_one_go_on(hosts: Hosts, host: str, boot: str) -> None:
    began = hosts.on("node-1", "a").began()
    assert hosts.on(host, boot).began() == began


def test_who_has_it_open_marks_it_again_and_again(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = hosts.on("node-1", "a")
    ledger.began()
    hosts.is_older(sqlite.USED_SECONDS + 1)
    monkeypatch.setattr(sqlite, "MARK_SECONDS", 0.0)
    ledger.began()
    with pytest.raises(LedgerError, match="in use on host node-1"):
        hosts.on("node-2", "b").began()


def test_who_has_it_open_finds_that_another_host_took_it(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hosts.on("node-1", "a")
    first.began()
    hosts.is_older(sqlite.USED_SECONDS + 1)
    hosts.on("node-2", "b").began()
    monkeypatch.setattr(sqlite, "MARK_SECONDS", 0.0)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-1")
    monkeypatch.setattr(sqlite, "_boot", lambda: "a")
    with pytest.raises(LedgerError, match="in use on host node-2"):
        first.began()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"one-word", b"a b c d"])
def test_a_mark_that_is_none_is_replaced(hosts: Hosts, content: bytes) -> None:
    hosts.mark.parent.mkdir()
    hosts.mark.write_bytes(content)
    hosts.on("node-1", "a").began()
    assert hosts.mark.read_text() == "a node-1\n"
