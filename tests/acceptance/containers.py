"""A container as a platform starts it, without a container: `sereno` with these arguments and no variables but these."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

PATIENCE = 120.0  # seconds; a busy machine, not a limit

# The model of all images: it loads and predicts when it is let.
MODEL = """
import time
from pathlib import Path
from typing import Annotated, TypedDict

from annotated_types import Ge
from sereno import Key, Model

HERE = Path(__file__).parent


class Customer(TypedDict):
    customer_id: Key[int]
    age: Annotated[int, Ge(18)]
    spend: float | None


class Churn(TypedDict):
    probability: float


model = Model("churn", inputs=Customer, outputs=Churn)


@model.load
def load():
    while (HERE / "loading").exists():
        time.sleep(0.01)


@model.predict
def predict(loaded, rows: list) -> list:
    if any(row["age"] == 99 for row in rows):
        (HERE / "predicting").touch()
        while (HERE / "predicting").exists():
            time.sleep(0.01)
    return [{"probability": row["age"] / 100} for row in rows]
"""


class Container:
    """`with Container(folder, ["serve"], {"PORT": "8080"}) as one: one.wait_for("/ping", timeout=2)`.

    The folder is the image's working folder. Left, it is stopped as the platform does, unless a test has done so; it must
    have ended by itself when the platform would kill it.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        *,
        port: int,
        kill_seconds: float,
        under: Sequence[str] = (),
    ) -> None:
        self.folder, self.port, self.kill_seconds = folder, port, kill_seconds
        self.url = f"http://127.0.0.1:{port}"
        # what the image has, and nothing of this process
        image = {"PATH": os.environ["PATH"], "SERENO_HOME": str(folder / "home"), "SERENO_SERVE__HOST": "0.0.0.0"}
        self._command = [*under, sys.executable, "-P", "-W", "error", "-m", "sereno", *arguments]
        self._variables = image | dict(variables)

    def __enter__(self) -> Self:
        self._log = (self.folder.parent / f"{self.folder.name}.log").open("w+")
        self.process = subprocess.Popen(
            self._command, cwd=self.folder, env=self._variables, stdout=self._log, stderr=self._log, process_group=0
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.process.poll() is None:
                assert self.stop() == 0
        finally:
            self._end()
            if kind is not None:
                print(self.log, file=sys.stderr)  # pytest shows it beside the failure
            self._log.close()
        if kind is None:
            assert "Traceback" not in self.log, self.log

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def wait(self) -> int:
        """Its exit code, when it has done what it was started for."""
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        """Its exit code, after a SIGTERM. Fails where it would get a SIGKILL."""
        return self._ended(self._terminate())

    @property
    def first(self) -> psutil.Process:
        """The container's first process, which gets the signals."""
        started = psutil.Process(self.process.pid)
        return started.children()[0] if started.name() == "unshare" else started

    def _terminate(self) -> float:
        """When it will be killed."""
        self.first.send_signal(signal.SIGTERM)
        return time.monotonic() + self.kill_seconds

    def _ended(self, killed_at: float) -> int:
        try:
            return self.process.wait(max(0.0, killed_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It would have been killed after {self.kill_seconds:g} s:\n{self.log}") from None

    def wait_for(self, path: str, *, timeout: float, **headers: str) -> httpx.Response:
        """What a probe gets that is repeated until it succeeds, as each platform does it."""
        given_up = time.monotonic() + PATIENCE
        while time.monotonic() < given_up and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                reply = httpx.get(self.url + path, timeout=timeout, headers=headers)
                if reply.is_success:
                    return reply
            time.sleep(0.05)
        raise AssertionError(f"GET {path} did not succeed ({self.process.poll()}):\n{self.log}")

    @contextlib.contextmanager
    def predicting(self, ask: Callable[[], httpx.Response]) -> Iterator[list[httpx.Response]]:
        """A request that is under way within the block, and its reply after it."""
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(ask()))
        thread.start()
        mark = self.folder / "predicting"
        until(mark.exists, "predict")
        try:
            yield replies
        finally:
            mark.unlink(missing_ok=True)
            thread.join(PATIENCE)

    def stop_while_predicting(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """The reply to a request that was under way when the SIGTERM came; then it has ended by itself."""
        with self.predicting(ask) as replies:
            killed_at = self._terminate()
            until(self._drains, "drain")
        assert self._ended(killed_at) == 0
        (reply,) = replies
        return reply

    def _drains(self) -> bool:
        try:
            return httpx.get(self.url + "/readyz", timeout=5).status_code == 503
        except httpx.TransportError:
            return True  # it takes no more

    def _end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.wait()


def until(true: Callable[[], bool], what: str) -> None:
    given_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < given_up, f"It did not {what} in {PATIENCE:g} s."
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def as_mounted(model: Path, at: str) -> list[str]:
    """What to start a command under, so that it finds that folder at another place. Skips where no mounts can be made."""
    top = "/" + at.split("/")[1]
    mounts = f'mount -t tmpfs tmpfs {top} && mkdir -p {at} && mount --bind "$0" {at} && exec "$@"'
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    under = ["unshare", *own, "--mount", "bash", "-c", mounts, str(model)]
    tried = subprocess.run([*under, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"LOUD: {at} is not tested here, as no folder can be mounted: {tried.stderr.strip()}")
    return under


def as_first_process() -> list[str]:
    """What to start a command under, so that it is process 1, as in a container. Skips where that cannot be."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    under = ["unshare", *own, "--pid", "--fork", "--mount-proc", "--kill-child"]
    tried = subprocess.run([*under, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"LOUD: no first process is tested here, as there can be none: {tried.stderr.strip()}")
    return under


def values_of(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Variables of a definition, as name and value; secrets are the test's to give."""
    return {pair["name"]: pair["value"] for pair in pairs if "value" in pair}
