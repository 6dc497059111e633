"""Hosts on one machine: each with a network address, name, processes, /tmp and /dev/shm of its own, joined by a switch.

    with hosts(3, tmp_path) as (first, second, third):     # tmp_path: a folder that all share; else /tmp is each one's own
        first.run([sys.executable, "-m", "sereno", …], cwd=tmp_path)       # → what it printed; fails if the command does
        server = second.popen([…], log=tmp_path / "second.log")            # a Popen: signals reach the command itself
        httpx.get(f"http://{second.address}:8000/readyz")                  # this process reaches them all …
        postgresql_listens_at = first.gateway                              # … and they reach what listens here
        second.cut(); second.mend()                                        # the cable is pulled, and put back
        third.kill(); third.boot()                                         # the power is cut; it comes again, /tmp empty
        second.hide(tmp_path / "artefacts"); second.show(tmp_path / "artefacts")
        with ray_cluster([first, second]) as ray: ray.address, ray.environment   # one Ray node a host, the head the first

Nothing of it is left once the block ends, or this process is killed. Where namespaces are not permitted, the test is skipped,
aloud, or fails with CI=1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]  # every host has it, also where it lies below /tmp
NAMESPACES = ["--net", "--mount", "--uts", "--ipc", "--pid"]
INIT = """
set -e
mount --make-rprivate /
hostname "$NAME"
ip link set lo up
mount -t tmpfs -o size=16g tmpfs /dev/shm
mount -t tmpfs tmpfs /mnt
mkdir -m 1777 /mnt/tmp
mkdir /mnt/home
cat /proc/sys/kernel/random/uuid > /mnt/boot_id
printf '%s\\n' "127.0.0.1 localhost" $NAMES > /mnt/hosts
sed -i 's/=/ /' /mnt/hosts
mount --bind /mnt/boot_id /proc/sys/kernel/random/boot_id
mount --bind /mnt/hosts /etc/hosts
for folder in $SHARED; do
    case "$folder" in /tmp/*)
        mkdir -p "/mnt$folder"
        mount --bind "$folder" "/mnt$folder"
    esac
done
mount --rbind /mnt/tmp /tmp
touch /mnt/up
sleep infinity &
while true; do wait; done  # whose parents are gone are this one's children
"""


@dataclass(eq=False)
class Host:
    """One of `hosts()`."""

    name: str
    address: str
    gateway: str  # where a host finds the machine that this process runs on
    _switch: int = field(repr=False)  # the process that holds the switch's network namespace
    _cable: str = field(repr=False)
    _names: str = field(repr=False)
    _shared: Sequence[Path] = field(repr=False)
    _outer: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _first: int = field(default=0, repr=False)  # its process 1, as it is called outside
    _started: list[Within] = field(default_factory=list, repr=False)

    def boot(self) -> None:
        """It starts, with nothing but its own empty /tmp and what is shared."""
        environment = {
            "PATH": os.environ["PATH"],
            "NAME": self.name,
            "NAMES": self._names,
            "SHARED": " ".join(str(folder) for folder in self._shared),
        }
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c", INIT]
        self._outer = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, start_new_session=True
        )
        self._first = _child(self._outer)
        _until(lambda: Path(f"/proc/{self._first}/root/mnt/up").exists(), self._outer, f"{self.name} to start")
        card = "02:00:" + ":".join(f"{int(byte):02x}" for byte in self.address.split("."))  # the same at every start
        # The kernel takes a while to do away with what a host that was killed has left.
        _in_network(self._switch, f"ip link delete {self._cable} 2>/dev/null || true")
        _in_network(
            self._switch, f"ip link add name {self._cable} type veth peer name eth0 address {card} netns {self._first}"
        )
        self._in_network(
            f"ip addr add {self.address}/24 dev eth0; ip link set eth0 up; ip route add default via {self.gateway}"
        )
        _in_network(self._switch, f"ip link set {self._cable} master switch; ip link set {self._cable} up")

    @property
    def is_up(self) -> bool:
        return self._outer is not None and self._outer.poll() is None

    def popen(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        log: Path | None = None,
        **options: Any,
    ) -> Within:
        """A command that goes on. `env` goes on top of this process's own; `log`: where it writes (at its end), else here.

        Its `pid` is that of a process outside that waits for it; `inner` is its own. Whatever is still there goes with
        the host.
        """
        environment = {**os.environ, "HOME": "/mnt/home", **(env or {})}
        inside = ["env", f"--chdir={cwd or '/tmp'}", *map(str, command)]
        entering = ["nsenter", f"--target={self._first}", *NAMESPACES, "--", *inside]
        with contextlib.ExitStack() as stack:
            if log is not None:
                options["stdout"] = options["stderr"] = stack.enter_context(log.open("ab"))
            process = Within(entering, env=environment, **{"stdin": subprocess.DEVNULL} | options)
        self._started.append(process)
        return process

    def run(
        self,
        command: Sequence[str | Path],
        timeout: float = PATIENCE,
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        check: bool = True,
    ) -> str:
        """What a command printed, errors too. It fails the test if the command does, unless `check` says otherwise."""
        with self.popen(
            command, env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            try:
                printed, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                printed, _ = process.communicate()
                raise AssertionError(f"{self.name}: {command} goes on after {timeout} s: {printed}") from None
        assert not check or process.returncode == 0, f"{self.name}: {command} → {process.returncode}: {printed}"
        return str(printed)

    def cut(self) -> None:
        """Its cable is pulled: nothing gets in or out, and nobody is told."""
        _in_network(self._switch, f"ip link set {self._cable} down")

    def mend(self) -> None:
        """The cable is back."""
        _in_network(self._switch, f"ip link set {self._cable} up")

    def kill(self) -> None:
        """The power is cut: all its processes end at once, and nothing of that gets out (no connection is closed)."""
        if self.is_up:
            self.cut()
        self._end()

    def hide(self, folder: Path) -> None:
        """What was there is not on this host any more: an empty folder in its place."""
        self._in_mounts("mount", "-t", "tmpfs", "tmpfs", str(folder))

    def show(self, folder: Path) -> None:
        self._in_mounts("umount", str(folder))

    def _end(self) -> None:
        if self._outer is not None:
            self._outer.kill()  # its process 1 goes with it, and the kernel ends all others of its namespace
            self._outer.wait(PATIENCE)
            deadline = time.monotonic() + PATIENCE
            while _is_alive(self._first) and time.monotonic() < deadline:
                time.sleep(0.005)

    def _close(self) -> None:
        self._end()
        for process in self._started:
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _in_network(self, script: str) -> None:
        _in_network(self._first, script)

    def _in_mounts(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--target={self._first}", "--mount", "--", *command], check=True, timeout=PATIENCE)


class Within(subprocess.Popen[Any]):
    """A process on a host: signals go to itself, and not to the one that waits for it outside."""

    @property
    def inner(self) -> int:
        """Its pid, as it is called outside."""
        return _child(self)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError, LookupError):
                os.kill(self.inner, sig)


@contextlib.contextmanager
def hosts(count: int, *shared: Path, names: Sequence[str] = ()) -> Iterator[list[Host]]:
    """So many hosts, called `host1`, … if no names are given, that share those folders: they, and all below /, but not /tmp.

    Their addresses are of 198.18.0.0/15, which are for tests, and a network of its own for each call.
    """
    require()
    names = names or [f"host{number}" for number in range(1, count + 1)]
    with _network() as number, _switch(number) as (switch, gateway):
        addresses = [f"{gateway.rpartition('.')[0]}.{10 + place}" for place in range(count)]
        known = " ".join(f"{address}={name}" for name, address in zip(names, addresses, strict=True))
        started = [
            Host(name, address, gateway, switch, f"cable{place}", known, (ROOT, *shared))
            for place, (name, address) in enumerate(zip(names, addresses, strict=True))
        ]
        try:
            for host in started:
                host.boot()
            yield started
        finally:
            for host in started:
                host._close()


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """The number of a network that nobody on this machine uses; it is free again when this process has ended."""
    with socket.socket(socket.AF_UNIX) as claim:
        for number in range(200):
            try:
                claim.bind(f"\0sereno-hosts-{number}")
            except OSError:
                continue
            yield number  # not within the `try`: errors of the test are its own
            return
    raise RuntimeError("all 200 networks for tests are in use")


@contextlib.contextmanager
def _switch(number: int) -> Iterator[tuple[int, str]]:
    """A namespace with a bridge in it, and a cable from there to this process's own network."""
    gateway, outside = f"198.18.{number}.1", f"sereno{number}"
    holder = subprocess.Popen(
        ["unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"], preexec_fn=_die_with_parent
    )
    try:
        switch = _child(holder)
        own = os.readlink("/proc/self/ns/net")
        _until(lambda: os.readlink(f"/proc/{switch}/ns/net") != own, holder, "the switch to start")
        _in_network(switch, "ip link add name switch type bridge; ip link set switch up")
        _shell(f"ip link add name {outside} type veth peer name machine netns {switch}")
        _in_network(switch, "ip link set machine master switch; ip link set machine up")
        _shell(f"ip addr add {gateway}/24 dev {outside}; ip link set {outside} up")
        yield switch, gateway
    finally:
        subprocess.run(["ip", "link", "delete", outside], check=False, capture_output=True)
        holder.kill()
        holder.wait(PATIENCE)


def require() -> None:
    """Skips the test, or fails it with CI=1, where there can be no hosts."""
    if why := missing():
        if os.environ.get("CI"):
            pytest.fail(f"hosts of their own cannot be made: {why}")
        pytest.skip(f"LOUD: nothing about several hosts is tested here: {why}")


@cache
def missing() -> str:
    """Why there can be none here; empty: there can."""
    for tool in ("unshare", "nsenter", "ip", "hostname"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (packages util-linux, iproute2, hostname)"
    if os.geteuid() != 0:
        return "only root can make namespaces"
    trial = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && ip link add name a0 type veth peer name a1"
        " && ip link add name b0 type bridge"
    )
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--mount-proc", "bash", "-c", trial],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


# Ray


@dataclass(frozen=True)
class RayCluster:
    """One Ray node a host."""

    hosts: Sequence[Host]
    address: str  # of the head, as RAY_ADDRESS has it
    environment: dict[str, str] = field(repr=False)  # what whoever talks to it needs

    def run(self, script: str, timeout: float = PATIENCE, *, on: Host | None = None, cwd: Path | None = None) -> str:
        """What a Python script printed that ran on one of its hosts (the head, if not said) with this environment."""
        host = on or self.hosts[0]
        return host.run([sys.executable, "-c", script], timeout, self.environment, cwd=cwd)

    def join(self, host: Host, *options: str) -> None:
        """Another node, or one that was lost."""
        _start_node(host, self.environment, "--address", self.address, *options)


@contextlib.contextmanager
def ray_cluster(nodes: Sequence[Host], *, cpus: int = 1, options: Sequence[str] = ()) -> Iterator[RayCluster]:
    """Ray on each host, which waits until all have joined; the first is the head. It ends with its hosts."""
    head = f"{nodes[0].address}:6379"
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": head,
        # That a node is gone is seen within seconds, and not after the half minute that is usual.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
        # Whoever waits for an answer of a host whose power was cut waits for 7 minutes, unless it asks whether that is there.
        "RAY_grpc_client_keepalive_time_ms": "2000",
        "RAY_grpc_client_keepalive_timeout_ms": "2000",
    }
    common = [f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}", *options]
    started = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    _start_node(nodes[0], started, "--head", "--port=6379", "--include-dashboard=false", *common)
    joining = [_starting(host, started, "--address", head, *common) for host in nodes[1:]]
    for process in joining:
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
    yield RayCluster(nodes, head, environment)


def _start_node(host: Host, environment: Mapping[str, str], *options: str) -> None:
    process = _starting(host, environment, *options)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed


def _starting(host: Host, environment: Mapping[str, str], *options: str) -> Within:
    command = [BIN / "ray", "start", f"--node-ip-address={host.address}", "--disable-usage-stats", *options]
    without = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    return host.popen(command, without, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# How it is done


def _in_network(pid: int, script: str) -> None:
    _shell(f"nsenter --target={pid} --net -- sh -e -c '{script}'")


def _shell(script: str) -> None:
    done = subprocess.run(["sh", "-e", "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, (script, done.stderr)


def _child(process: subprocess.Popen[Any]) -> int:
    """The one process that this one has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.005)
    raise LookupError(f"{process.args!r} has no child")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(happens: Any, process: subprocess.Popen[Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert process.poll() is None, f"waited for {what}, which ended with {process.returncode}"
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.01)


def _die_with_parent() -> None:
    # A test process that is killed leaves nothing: PR_SET_PDEATHSIG is kept over exec.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
