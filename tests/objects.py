"""A real S3 server (SeaweedFS, from a wheel) that tests start, and kill: with keys, conditional writes and multipart."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest import mock

from sereno.adapters import objects

START_SECONDS = 40
KEY, SECRET = "sereno-tests", "not-a-secret-of-anybody"
GRPC = 10_000  # SeaweedFS listens there, too: above each of its ports


@dataclass(kw_only=True)
class S3Server:
    """One server on ports of its own. What it holds lies in its folder, and is there again after a restart."""

    folder: Path
    ports: tuple[int, ...]  # S3, master, volume, filer
    process: subprocess.Popen[bytes] | None = None
    buckets: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program finds it by, and may do all there."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "eu-south-2",
        }

    def start(self) -> None:
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        s3, master, volume, filer = self.ports
        command = [
            *(str(Path(sys.executable).with_name("weed")), "-logtostderr", "server", f"-dir={self.folder}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}"),
            *(
                "-volume.max=100",
                "-master.volumeSizeLimitMB=256",
                "-master.telemetry=false",
                "-filer",
                f"-filer.port={filer}",
            ),
            *(
                "-s3",
                f"-s3.port={s3}",
                f"-s3.config={config}",
                "-s3.iam=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        self._until_ready()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process is not None and self.process.poll() is None:
            try:
                name = self.make_bucket()
                soon = mock.patch.object(objects, "DEADLINE", timedelta(seconds=1))
                with self.reached(), soon:  # it takes writes some time after it answers
                    objects.put(f"s3://{name}", "ready", "ready", b"yes", None)
                return
            except Exception:  # noqa: BLE001 - not yet
                time.sleep(0.1)
        raise RuntimeError(f"the S3 server did not start: {(self.folder / 'log').read_text()[-3000:]}")

    def make_bucket(self, name: str = "") -> str:
        """A new bucket; its name."""
        import http.client

        name = name or f"bank-{secrets.token_hex(4)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[3], timeout=5)
        connection.request("POST", f"/buckets/{name}/")  # of the filer: a bucket is a folder there
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"no bucket {name}: {answer.status}")
        self.buckets.append(name)
        return name

    @contextlib.contextmanager
    def reached(self, **more: str) -> Iterator[None]:
        """This process finds the server meanwhile: `environment`, and `more` of it."""
        with mock.patch.dict(os.environ, self.environment | more):
            objects.forget()
            try:
                yield
            finally:
                objects.forget()

    def kill(self) -> None:
        """As a crash does. (It takes 15 s to stop in order.)"""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that ends, with all it holds, with the context."""
    server = S3Server(folder=folder, ports=_free_ports(4))
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that are free, as are those GRPC above them."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(20_000)
        if port not in found and all(_is_free(p) for p in (port, port + GRPC)):
            found.append(port)
    return tuple(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
