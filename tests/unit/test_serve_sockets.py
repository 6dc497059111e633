"""The sockets that a server listens on: who gets one, who is refused, and what waits in one when it closes."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.config import load_settings
from sereno.exceptions import BusyError, SettingsError
from sereno.serve.processes.sockets import (
    Listening,
    has_waiting,
    is_open,
    listen,
    refuse_openness,
    resolve,
    stop_connects,
)
from sereno.settings import ServeSettings, Settings


@pytest.fixture
def opened() -> Iterator[list[Listening]]:
    found: list[Listening] = []
    yield found
    for one in found:
        one.close()
        one.held.close()


def settings(folder: Path, **serve: str) -> Settings:
    return load_settings(folder, overrides={f"serve.{name}": text for name, text in serve.items()}, environ={})


def listening(opened: list[Listening], workers: int = 1, **serve: object) -> Listening:
    one = listen(ServeSettings(port=0, **serve) if "port" not in serve else ServeSettings(**serve), workers)  # type: ignore[arg-type]
    opened.append(one)
    return one


def port_of(one: Listening) -> int:
    return int(one.places[0][0].getsockname()[1])


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_has_a_place(opened: list[Listening], workers: int) -> None:
    one = listening(opened, workers)
    assert one.is_shared == (workers == 1)
    assert {sock.getsockname() for place in one.places for sock in place} == {("127.0.0.1", port_of(one))}
    assert len(one.places) == workers
    assert one.url == f"http://127.0.0.1:{port_of(one)}"


def test_where_it_listens_is_said_as_it_is(opened: list[Listening], tmp_path: Path) -> None:
    here, every = listening(opened), listening(opened, host="0.0.0.0")
    assert here.says == here.url
    assert every.says == f"http://127.0.0.1:{port_of(every)} and all addresses of this machine (0.0.0.0)"
    assert listening(opened, unix=tmp_path / "a.sock").says == f"http://localhost (Unix socket {tmp_path}/a.sock)"


def test_a_name_of_several_addresses_listens_on_all(opened: list[Listening]) -> None:
    addresses = resolve("localhost")
    one = listening(opened, 2, host="localhost")
    for place in one.places:
        assert [sock.getsockname()[:2] for sock in place] == [(a, port_of(one)) for _, a in addresses]


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6(opened: list[Listening]) -> None:
    one = listening(opened, 2, host="::1")
    assert one.url == f"http://[::1]:{port_of(one)}"
    one.open()
    socket.create_connection(("::1", port_of(one))).close()
    both = listening(opened, host="::")
    assert both.url == f"http://[::1]:{port_of(both)}"
    both.open()
    for address in ("::1", "127.0.0.1"):
        socket.create_connection((address, port_of(both))).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_is_one_server_s_whatever_the_address(opened: list[Listening], host: str) -> None:
    """Also before it listens, when others could still bind beside it."""
    for first in ("127.0.0.1", "0.0.0.0"):
        one = listening(opened, 2, host=first)
        with pytest.raises(BusyError, match=rf"Port {port_of(one)} is taken by another .* \(pid {os.getpid()}\)"):
            listen(ServeSettings(host=host, port=port_of(one)), 2)


def test_callers_are_refused_until_somebody_answers(opened: list[Listening]) -> None:
    one = listening(opened, 2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(one)))
    one.open()
    socket.create_connection(("127.0.0.1", port_of(one))).close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("others", [1, 2])
def test_a_port_has_one_server(opened: list[Listening], workers: int, others: int) -> None:
    one = listening(opened, workers)
    with pytest.raises(BusyError, match=re.escape(f"taken by another `sereno serve` (pid {os.getpid()})")):
        listening(opened, others, port=port_of(one))
    one.close()
    one.held.close()
    listening(opened, others, port=port_of(one) if one.places[0] else int(one.url.rpartition(":")[2]))


def test_what_cannot_be_listened_on_is_told() -> None:
    with pytest.raises(SettingsError, match=r"'serve.host' is 'no.such.name.invalid', which is no address"):
        listen(ServeSettings(host="no.such.name.invalid"), 1)
    with pytest.raises(SettingsError, match=r"Cannot listen on port 0 of 192.0.2.1: .* no address of this machine"):
        listen(ServeSettings(host="192.0.2.1", port=0), 1)
    with pytest.raises(SettingsError, match=r"has \d+ bytes .*; 103 are the most"):
        listen(ServeSettings(unix=Path("/tmp") / ("x" * 100)), 1)


@pytest.mark.parametrize(
    ("host", "wanted"), [("127.0.0.1", False), ("127.0.0.5", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_what_is_open_to_others(host: str, wanted: bool) -> None:
    assert is_open(ServeSettings(host=host)) == wanted
    assert not is_open(ServeSettings(host=host, unix=Path("x")))


def test_an_open_address_needs_keys_and_tls_or_a_word(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"sha256:{'0' * 64} shop\n")
    keys, tls = {"keys_file": str(tmp_path / "keys")}, {"tls_certificate": "cert.pem"}
    no_auth, upstream = {"no_auth": "true"}, {"tls_terminated_upstream": "true"}
    for enough in (keys | tls, keys | upstream, no_auth | tls, no_auth | upstream):
        refuse_openness(settings(tmp_path, host="0.0.0.0", **enough))
    for lacking, word in ((keys, "TLS"), (tls, "API keys"), (no_auth, "TLS"), (upstream, "API keys")):
        with pytest.raises(SettingsError, match=f"It needs {word}") as refused:
            refuse_openness(settings(tmp_path, host="0.0.0.0", **lacking))
        assert "; and " not in str(refused.value)
    with pytest.raises(SettingsError, match=r"It needs API keys .*; and TLS .* Or listen on 127.0.0.1") as refused:
        refuse_openness(settings(tmp_path, host="0.0.0.0"))
    # also in a container's words: what it is told are variables and secrets
    for name in ("KEYS_FILE", "NO_AUTH=true", "TLS_CERTIFICATE", "TLS_KEY", "TLS_TERMINATED_UPSTREAM=true"):
        assert f"SERENO_SERVE__{name}" in str(refused.value)
    assert "into /run/secrets/api_keys, or into SERENO_SECRET_API_KEYS" in str(refused.value)


def test_a_unix_socket_appears_when_it_can_be_used(opened: list[Listening], tmp_path: Path) -> None:
    path = tmp_path / "new" / "api.sock"
    one = listening(opened, 2, unix=path, unix_mode="0660")
    assert one.is_shared
    assert not path.exists()
    one.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    with pytest.raises(BusyError, match=rf"taken by another `sereno serve` \(pid {os.getpid()}\)"):
        listening(opened, unix=path)
    one.close()
    assert [f.name for f in path.parent.iterdir()] == ["api.sock.lock"]


def test_the_socket_of_another_program_is_left_alone(opened: list[Listening], tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(BusyError, match="taken by another program"):
            listening(opened, unix=path)
    listening(opened, unix=path).open()  # nobody listens on it any more


def test_who_is_connected_when_it_stops_is_accepted_and_nobody_else_comes(opened: list[Listening]) -> None:
    one = listening(opened)
    one.open()
    (sock,) = one.places[0]
    sock.setblocking(False)
    address = sock.getsockname()
    with socket.create_connection(address) as early:
        stop_connects(sock)
        with socket.socket() as late:
            late.settimeout(0.05)
            with pytest.raises(TimeoutError):  # the kernel says nothing, and the caller tries again later
                late.connect(address)
        assert has_waiting([sock])
        accepted, _ = sock.accept()
        assert not has_waiting([sock])
        one.close()
        early.sendall(b"hello")
        accepted.setblocking(True)
        with accepted:
            assert accepted.recv(5) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
