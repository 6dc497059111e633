"""What the tests of several hosts stand on: that hosts are apart, cut off, mended, killed; and a Ray over three."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, hosts, ray_cluster

ECHO = """
import socket, time
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(socket.gethostname().encode())
        {then}
        connection.close()
"""
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), 2).recv(100).decode())"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def pair(shared: Path) -> Iterator[list[Host]]:
    with hosts(2, shared) as both:
        yield both


def listen(host: Host, then: str = "pass") -> subprocess.Popen[str]:
    process = host.popen([sys.executable, "-c", ECHO.format(then=then)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


def ask(host: Host, address: str) -> str:
    return host.run([sys.executable, "-c", ASK, address], check=False).strip()


def ask_from_here(host: Host) -> bytes:
    with socket.create_connection((host.address, 7000), 2) as connection:
        return connection.recv(100)


def test_they_talk_are_cut_off_and_mended(pair: list[Host]) -> None:
    first, second = pair
    server = listen(first)

    assert ask(second, first.address) == ask(second, "host1") == "host1"
    assert ask_from_here(first) == b"host1"

    second.cut()
    assert "Error" in ask(second, first.address)
    assert ask_from_here(first) == b"host1"
    second.mend()
    deadline = time.monotonic() + 30
    while ask(second, first.address) != "host1":  # who found nobody there asks again after a second
        assert time.monotonic() < deadline

    server.terminate()  # itself, and not the process that waits for it
    assert server.wait(10) == -15
    assert "refused" in ask(second, first.address)


def test_they_reach_what_listens_here(pair: list[Host]) -> None:
    with socket.create_server((pair[0].gateway, 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; print(socket.create_connection(({pair[0].gateway!r}, {port})).getsockname()[0])"
        assert pair[1].run([sys.executable, "-c", script]).strip() == pair[1].address


def test_what_is_shared_and_what_is_their_own(pair: list[Host], shared: Path) -> None:
    first, second = pair
    first.run(["sh", "-c", f"echo shared > {shared}/file; echo own > /tmp/own; echo own > /dev/shm/own"])

    assert second.run(["cat", shared / "file"]) == "shared\n"
    assert (shared / "file").read_text() == "shared\n"
    assert (
        second.run(["ls", "/tmp/own", "/dev/shm"], check=False).count("own") == 1
    )  # in the words that it is not there
    boots = {host.run(["cat", "/proc/sys/kernel/random/boot_id"]) for host in pair}
    assert len(boots | {Path("/proc/sys/kernel/random/boot_id").read_text()}) == 3
    assert "sleep infinity" in first.run(["ps", "ax"])
    assert str(shared) not in first.run(["ps", "ax"])

    second.hide(shared)
    assert second.run(["ls", shared]) == ""
    assert first.run(["ls", shared]) == "file\n"
    second.show(shared)
    assert second.run(["ls", shared]) == "file\n"


def test_the_power_is_cut(pair: list[Host]) -> None:
    first, second = pair
    server = listen(second, "time.sleep(60)")
    with socket.create_connection((second.address, 7000), 2) as open_connection:
        assert open_connection.recv(100) == b"host2"  # and does not close
        second.kill()

        assert server.wait(10) == -9
        assert not second.is_up
        open_connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            open_connection.recv(100)  # nobody tells whoever waits
        assert "Error" in ask(first, second.address)
    second.boot()
    listen(second)
    assert ask(first, second.address) == "host2"


@pytest.mark.soak  # the tests of what runs on Ray show the same
def test_ray_goes_on_when_a_node_is_lost(tmp_path: Path) -> None:
    script = f"""
import json, pathlib, ray, socket, time
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1, max_retries=5, scheduling_strategy="SPREAD")
def where(number):
    pathlib.Path({str(tmp_path)!r}, f"{{number}}-{{socket.gethostname()}}").touch()
    while number < 3 and not pathlib.Path({str(tmp_path)!r}, "go").exists():
        time.sleep(0.05)
    return socket.gethostname()
answers = json.dumps(ray.get([where.remote(number) for number in range(9)]))
pathlib.Path({str(tmp_path)!r}, "answers").write_text(answers)
"""
    with hosts(3, tmp_path) as (first, second, third), ray_cluster([first, second, third]) as ray:
        driver = first.popen(
            [sys.executable, "-c", script], ray.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len({path.name.partition("-")[2] for path in tmp_path.glob("?-*")}) < 3:  # one on each node
            assert driver.poll() is None, driver.communicate()
        third.kill()
        (tmp_path / "go").touch()
        _, errors = driver.communicate(timeout=60)

    assert driver.returncode == 0, errors
    answers = json.loads((tmp_path / "answers").read_text())
    assert len(answers) == 9
    assert set(answers) <= {"host1", "host2"}
