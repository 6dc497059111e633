"""Pods of written manifests, as the kubelet would have them: their arguments, variables and volumes, their probes and their end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.acceptance.server import PATIENCE
from tests.kubernetes import Manifests, Object

NAMESPACE = "shop"
SHORT = 1.0  # seconds: what a test waits where the kubelet waits longer
MOST_TRIES = 30  # of a Job; it is given more


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Pod:
    """One pod of a Deployment or a CronJob, in the project's folder, which is that of the image.

    A pod has an address of its own; here it has a port. Its volumes lie in `folder`.
    """

    def __init__(
        self,
        manifests: Manifests,
        where: str,
        project: Path,
        folder: Path,
        secrets: Mapping[str, str],
        files: Mapping[str, str] = {},
        **more: str,
    ) -> None:
        """`secrets`: the variables of the Secret; `files`: the entries of one that is mounted."""
        (found,) = [(spec, container) for name, spec, container in manifests.pods() if name == where]
        self.spec: Object = found[0]
        self.container: Object = found[1]
        self.project = project
        self.port = free_port()
        variables = manifests.environment(self.container, secrets, namespace=NAMESPACE)
        self.places = {mount["mountPath"]: folder / mount["name"] for mount in self.container["volumeMounts"]}
        for place in self.places.values():
            place.mkdir(parents=True)
        for volume in self.spec["volumes"]:
            for name, text in files.items() if "secret" in volume else ():
                (folder / volume["name"] / name).write_text(text)
        variables = {name: text if name in secrets else self._here(text) for name, text in variables.items()}
        self.variables = variables | {"SERENO_SERVE__PORT": str(self.port)} | more
        self.log = folder / "log"

    def _here(self, text: str) -> str:
        """A path below a volume, as it is on this machine."""
        for mounted, place in self.places.items():
            if text.startswith("/") and Path(text).is_relative_to(mounted):
                return str(place / Path(text).relative_to(mounted))
        return text

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-P", "-m", "sereno", *self.container["args"]],
                cwd=self.project,
                env={"PATH": os.environ["PATH"], **self.variables},
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def probe(self, name: str) -> int | None:
        """The status of the answer, None: there is none. With the pod's address as Host, and no key, as the kubelet asks."""
        ask = self.container[name]["httpGet"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.container[name]["timeoutSeconds"])
        try:
            connection.request(
                "GET", ask["path"], headers={"Host": f"10.1.2.3:{self.port}", "User-Agent": "kube-probe/1.34"}
            )
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def until(self, name: str) -> None:
        """Until a probe finds what it asks for."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.probe(name)) is None or status >= 400:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{name}: {status}"
            time.sleep(0.05)

    def end(self, removed: Callable[[], None]) -> int:
        """As the kubelet ends it: preStop, SIGTERM, and SIGKILL once the grace is over. The exit code.

        `removed`: the last of those who send requests here hears of it, and it does so after the SIGTERM only.
        """
        stop = self.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        time.sleep(min(stop, SHORT))
        self.process.terminate()
        time.sleep(min(stop, SHORT) / 4)
        removed()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(self.spec["terminationGracePeriodSeconds"] - stop)
        self.kill()
        return -signal.SIGKILL

    def kill(self) -> None:
        """With all that it has started, as the end of a container does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(pod: Pod) -> Iterator[Pod]:
    pod.start()
    try:
        yield pod
    finally:
        pod.kill()


class Callers:
    """Whoever asks a Service: each connection goes to one of the pods that are in it, and every answer has to be there."""

    def __init__(self, host: str, key: str, pods: list[Pod], callers: int = 6) -> None:
        self.headers = {"Host": host, "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.pods = pods
        self.failures: list[str] = []
        self.answers: dict[int, int] = {}  # by the port of the pod
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=[number % 2 == 0]) for number in range(callers)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, pod: Pod, more: int = 50) -> None:
        """Until that pod has given so many answers more."""
        goal, deadline = self.answers.get(pod.port, 0) + more, time.monotonic() + PATIENCE
        while self.answers.get(pod.port, 0) < goal and not self.failures:
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.02)
        assert not self.failures, self.failures[:5]

    def ask(self, connection: http.client.HTTPConnection, x: float) -> tuple[int, Any, bool]:
        connection.request("POST", "/predict", json.dumps({"id": 1, "x": x}), self.headers)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if answer.status == 200 else body, answer.will_close

    def _call(self, keep_alive: bool) -> None:
        while not self._stop.is_set():
            with self._lock:
                pod = random.choice(self.pods)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pod.port, timeout=30)) as connection:
                closes = False
                while not (self._stop.is_set() or closes):
                    try:
                        status, said, closes = self.ask(connection, 3)
                    except (OSError, http.client.HTTPException) as error:
                        self.failures.append(f"{pod.port}: {error!r}")
                        return
                    if (status, said) != (200, {"y": 6.0}):
                        self.failures.append(f"{pod.port}: {status} {said!r}")
                        return
                    with self._lock:
                        self.answers[pod.port] = self.answers.get(pod.port, 0) + 1
                    closes = closes or not keep_alive


class Job:
    """A Job of a CronJob: pods one after the other, as its exit codes and its backoffLimit say."""

    def __init__(self, manifests: Manifests, cronjob: str, make: Callable[[], Pod]) -> None:
        spec = manifests.one("CronJob", cronjob)["spec"]["jobTemplate"]["spec"]
        self.ends = next(
            rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
        )
        self.tries = 1 + min(spec["backoffLimit"], MOST_TRIES)
        self.make = make
        self.codes: list[int] = []
        self.logs: list[str] = []

    def run(self) -> str:
        """Complete or Failed."""
        for _ in range(self.tries):
            with started(self.make()) as pod:
                self.codes.append(pod.process.wait(PATIENCE))
            self.logs.append(pod.log.read_text())
            if self.codes[-1] == 0:
                return "Complete"
            if self.codes[-1] in self.ends:
                return "Failed"
            time.sleep(SHORT / 2)  # the pause of a Job begins with ten seconds
        return "Failed"
