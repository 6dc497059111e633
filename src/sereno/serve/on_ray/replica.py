"""A server on a node: the process that Ray has started there has `sereno serve` as its child, and looks after its health.

    starting ──answers──► ready ◄──► unready ──stop──► ending ──► ended
        └──ended───────────┴─► failed: the process ends, too, and Ray starts another, there or on another node

The server is tied to the process: killed with it, however that ended. What it says goes where the process's own words go.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from sereno.exceptions import SettingsError
from sereno.operate.tied import tied

LOOK_SECONDS = 0.5  # between two looks at its health
ANSWER_SECONDS = 2.0  # that /readyz may take
HANGS_SECONDS = 30.0  # without any answer: it is killed
TOLD_SECONDS = 0.7  # before another one is started: for whoever asks why
FAILED_SECONDS = 5.0  # the same where it did not get ready, and the next one may not either
MOST_WORDS = 30  # lines of its log that are told
# What may hold passwords, or names a file that does: each node has its own, as SERENO_SECRET_…
OWN = ("SERENO_LEDGER", "SERENO_LEDGER_FILE", "SERENO_LOOKUP_STORE", "SERENO_LOOKUP_STORE_FILE")
RELOADED, REFUSED = "sereno: reloaded in ", "sereno: the reload was refused, "  # as the supervisor notes it


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served, and how. Two that are the same need no update."""

    arguments: list[str]  # of `sereno serve`, without its address
    folder: str  # where it is started, on every node
    host: str | None  # the address to listen on; None: the node's own
    variables: dict[str, str]  # SERENO_… of whoever asked
    own: dict[
        str, str
    ] = {}  # those of each node that whoever asked has as well → a hash, so that another value is seen
    version: str  # of Sereno

    @property
    def digest(self) -> str:
        """Short; part of a replica's name."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:12]


@dataclass(frozen=True, order=True)
class Name:
    """Which replica of a home."""

    generation: int  # of places
    index: int  # its place
    digest: str  # of its spec


class Status(msgspec.Struct, kw_only=True):
    """What a replica tells whoever asks."""

    state: str  # see the module
    spec: Spec
    host: str  # the node's name
    address: str  # and its address
    url: str = ""  # of the server, once it was ready
    pid: int = 0  # of the server, on that node
    nice: int = 0  # how far it gives way to others on its node
    served: dict[str, Any] | None = None  # what `sereno serve --json` has printed
    error: str = ""  # the class of the error with which it ended
    says: str = ""  # why it is unready or has failed
    reloads: int = 0  # how many had ended when it was last asked how it is
    refused: str = ""  # why the last of them was


class Replica:
    """See the module. Its methods return at once; the server is the affair of a thread that lives as long as the process."""

    def __init__(self, spec: bytes, address: str, leave: Callable[[], None] | None = None) -> None:
        """`spec`: a Spec, as JSON. `leave`: ends this process, so that another is started."""
        self._spec = msgspec.json.decode(spec, type=Spec)
        self._leave = leave or (lambda: os._exit(1))
        self._status = Status(state="starting", spec=self._spec, host=socket.gethostname(), address=address)
        self._process: subprocess.Popen[str] | None = None
        self._words: collections.deque[str] = collections.deque(maxlen=MOST_WORDS)
        self._reloads = 0
        self._is_stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sereno-server", daemon=True)
        self._thread.start()

    def status(self) -> bytes:
        """A Status, as JSON."""
        return msgspec.json.encode(self._status)

    def reload(self) -> None:
        """Have the server read its files again: `reloads` of the status counts it once it is over."""
        self._send(signal.SIGHUP)

    def stop(self) -> None:
        """Have the server drain and end: then the state is `ended`, and nothing is started any more."""
        with self._lock:
            self._is_stopped = True
            if self._process is None:
                self._status.state = "ended"
            elif self._status.state not in ("ended", "failed"):
                self._status.state = "ending"
        # one that has not been ready yet has nothing to finish
        self._send(signal.SIGTERM if self._status.served is not None else signal.SIGKILL)

    def kill(self) -> None:
        """The server ends at once."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    # The server, in a thread

    def _run(self) -> None:
        status = self._status
        with contextlib.suppress(OSError):  # only some may: else the operator is told
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # of this thread, and all that it starts
        status.nice = os.getpriority(os.PRIO_PROCESS, 0)
        with self._lock:  # either it is stopped before it starts, or there is something to stop
            if self._is_stopped:
                return
            try:
                process = self._start()
            except OSError as error:
                status.error, status.says = "StorageError", self._not_started(error)
                process = None
            except SettingsError as error:
                status.error, status.says = "SettingsError", str(error)
                process = None
            self._process = process
        if process is None:
            self._fail(was_ready=False)
            return
        status.pid = process.pid
        readers = [
            threading.Thread(target=read, args=[stream], daemon=True)
            for read, stream in ((self._read_told, process.stdout), (self._read_words, process.stderr))
        ]
        for reader in readers:
            reader.start()
        was_ready = self._watch(process)
        how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with exit code {process.returncode}"
        if not self._is_stopped:
            self._tell("failed", status.says if status.error else f"the server ended {how}.")
        for reader in readers:
            reader.join(0.5)  # its last words; a worker that drains may hold the stream
        if self._has_stopped():
            return
        status.says = status.says if status.error else "\n".join([f"the server ended {how}.", *self._words])
        self._fail(was_ready=was_ready)

    def _start(self) -> subprocess.Popen[str]:
        spec = self._spec
        if missing := [name for name in spec.own if name not in os.environ]:
            raise SettingsError(
                f"{missing[0]} is set where the command was started, but not where Ray was on host {self._status.host}. It may "
                "hold a password, and is not sent: set it on every node."
            )
        own = (
            "SERENO_SECRET_",
            *OWN,
            *spec.own,
        )  # secrets are each node's own, and Ray's token is none of the server's affair
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(own) or not name.startswith(("SERENO_", "RAY_"))
        }
        command = [sys.executable, "-P", "-m", "sereno", "serve", "--json", "--host", spec.host or self._status.address]
        return subprocess.Popen(
            tied([*command, *spec.arguments]),
            cwd=spec.folder,
            env=environment | spec.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )

    def _not_started(self, error: OSError) -> str:
        return (
            f"The server cannot be started in {self._spec.folder} on host {self._status.host}: {error.strerror}. Every node "
            "needs that folder under that name: share it."
        )

    def _watch(self, process: subprocess.Popen[str]) -> bool:
        """Until it has ended; whether it ever answered."""
        was_ready, heard_at = False, time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
                return was_ready
            if self._status.served is None or self._is_stopped:
                heard_at = time.monotonic()
                continue
            reloads = self._reloads
            state, why = self._asked()
            if state is not None:
                heard_at, was_ready = time.monotonic(), True
                self._tell(state, why)
                self._status.reloads = reloads
            elif time.monotonic() - heard_at > HANGS_SECONDS:
                self._tell("unready", f"it has not answered for {HANGS_SECONDS:g} s, and is killed.")
                for pid in (*_below(process.pid), process.pid):  # workers that stand still would not see it go
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            elif was_ready:
                self._tell("unready", "it does not answer.")

    def _tell(self, state: str, why: str) -> None:
        with self._lock:
            if not self._is_stopped:
                self._status.state, self._status.says = state, why

    def _asked(self) -> tuple[str | None, str]:
        """What /readyz answers; None: nothing at all."""
        served = self._status.served or {}
        at = urlsplit(str(served["url"]))
        connection: http.client.HTTPConnection
        if at.scheme == "https":  # the certificate is for the callers' names; this is the node's own server
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                at.hostname or "", at.port, timeout=ANSWER_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/readyz", headers={"Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            return None, ""
        finally:
            connection.close()
        if answer.status == 200:
            return "ready", ""
        with contextlib.suppress(ValueError, AttributeError):
            return "unready", "; ".join(json.loads(content).get("because", ()))
        return "unready", f"/readyz answers {answer.status}."

    def _read_told(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    if "error" in told:
                        self._status.error, self._status.says = str(told["error"]), str(told.get("says", ""))
                    elif "url" in told and self._status.served is None:
                        self._status.url = self._reached(str(told["url"]))
                        self._status.served = told

    def _reached(self, url: str) -> str:
        """Under which other hosts reach it: what listens on all addresses calls itself by this machine's own."""
        at, address = urlsplit(url), self._status.address
        if self._spec.host is not None and ipaddress.ip_address(self._spec.host).is_loopback:
            return url
        return f"{at.scheme}://{f'[{address}]' if ':' in address else address}:{at.port}"

    def _read_words(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line)
                    sys.stderr.flush()
                self._words.append(line.rstrip("\n"))
                if line.startswith((RELOADED, REFUSED)):
                    self._status.refused = line.removeprefix("sereno: ").strip() if line.startswith(REFUSED) else ""
                    self._reloads += 1  # is told with how it is since then

    def _fail(self, *, was_ready: bool) -> None:
        self._status.state = "failed"
        time.sleep(TOLD_SECONDS if was_ready else FAILED_SECONDS)
        if not self._has_stopped():
            self._leave()

    def _has_stopped(self) -> bool:
        with self._lock:
            if self._is_stopped:
                self._status.state = "ended"
            return self._is_stopped


def _below(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += [int(one) for one in file.read().split()]
    return [*found, *(one for child in found for one in _below(child))]
