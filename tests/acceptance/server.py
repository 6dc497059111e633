"""A server as a user starts it: `sereno serve …` on a free port, ready when the block begins, ended when it is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

PATIENCE = 120.0  # seconds; a busy machine, not a limit


class Server:
    """`with Server(folder, "total.py") as server: httpx.get(server.url + "/readyz")`.

    `arguments` are those of `sereno serve`, a port of its own unless they name one; `variables` come on top of the
    environment, without the SERENO_… that are there. Only what `--json` prints tells that it is ready.
    """

    command = "serve"

    def __init__(self, folder: Path, *arguments: str, ready: bool = True, **variables: str) -> None:
        self.folder = folder
        self.arguments = list(arguments)
        if not {"--port", "--unix"} & set(arguments) and "AIP_HTTP_PORT" not in variables:
            self.arguments += ["--port", "0"]
        self.variables = variables
        self.told: dict[str, Any] = {}  # what it printed when it was ready
        self._ready = ready
        self._lines: list[str] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERENO_")} | self.variables
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "sereno", self.command, "--json", *self.arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C ends the tests, not the server in their middle
        )
        self._open = 2  # of its streams
        self._threads = [threading.Thread(target=self._read, args=[name]) for name in ("stdout", "stderr")]
        for thread in self._threads:
            thread.start()
        if self._ready:
            self._until(lambda: bool(self.told) or not self._open, "be ready")
            if not self.told:
                self._end()
                raise AssertionError(f"`sereno {self.command}` ended with {self.process.returncode}:\n{self.log}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            kind = kind or AssertionError
        self._end()
        if kind is not None:
            print(self.log, file=sys.stderr)  # pytest shows it beside the failure
        else:
            assert "Traceback" not in self.log, self.log

    @property
    def url(self) -> str:
        """Of its first address, without a slash at the end."""
        return str(self.told["url"])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything that it wrote to stderr so far."""
        with self._news:
            return "".join(self._lines)

    def workers(self) -> list[int]:
        """The pids of its worker processes, those that start or drain included, oldest first."""
        return self.below("sereno.serve.processes.worker")

    def below(self, word: str | None = None) -> list[int]:
        """The pids of the processes below it that have this word in their command, oldest first."""
        found = []
        try:
            for child in psutil.Process(self.pid).children(recursive=True):
                try:
                    if word is None or word in child.cmdline():
                        found.append((child.create_time(), child.pid))
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return []
        return [pid for _, pid in sorted(found)]

    def send(self, number: int) -> None:
        """A signal to the server's own process."""
        self.process.send_signal(number)

    def wait_for_all(self, workers: int) -> None:
        """Until so many workers are ready; it is told when the first one is."""
        ready = f'sereno_workers{{state="ready"}} {workers}\n'
        self.until(lambda: ready in httpx.get(f"{self.url}/metrics").text, f"have {workers} workers ready")

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """The lines of the log that match, once there are so many of them."""

        def matching() -> list[str]:
            return [line.rstrip("\n") for line in self._lines if re.search(pattern, line)]

        self._until(lambda: len(matching()) >= times or not self._open, f"log {pattern!r}")
        with self._news:
            found = matching()
        assert len(found) >= times, f"{pattern!r} is not in the log:\n{self.log}"
        return found

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Look again and again until it is true; for what nobody tells."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"The server did not {what} in {PATIENCE:g} s:\n{self.log}"
            threading.Event().wait(0.02)

    def reload(self) -> None:
        """SIGHUP, and wait until it says how that went."""
        before = len([line for line in self._lines if _RELOADED.search(line)])
        self.send(signal.SIGHUP)
        self.wait_for(_RELOADED.pattern, before + 1)

    def kill_worker(self, pid: int) -> None:
        """As the kernel does when memory runs out."""
        os.kill(pid, signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code, after that signal."""
        self.send(number)
        return self.process.wait(PATIENCE)

    def _until(self, true: Callable[[], bool], what: str) -> None:
        with self._news:
            done = self._news.wait_for(true, PATIENCE)
        assert done, f"The server did not {what} in {PATIENCE:g} s:\n{self.log}"

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            with self._news:
                if name == "stderr":
                    self._lines.append(line)
                elif self.told:
                    raise AssertionError(f"stdout is for one line of JSON, not for {line!r}")
                else:
                    self.told = json.loads(line)
                self._news.notify_all()
        with self._news:
            self._open -= 1
            self._news.notify_all()

    def _end(self) -> None:
        """No process of it is left, and nothing that it said is lost."""
        for pid in self.below():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


_RELOADED = re.compile(r"sereno: (reloaded|the reload was refused)")
