"""`sereno serve --on ray` on three hosts, with the real nginx in front, as docs/serving_cluster.md configures it: requests go
on all the while, and each is answered, whatever becomes of servers, nodes and the command itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.project import Project
from tests.hosts import Host, RayCluster, Within, hosts, ray_cluster

PAGE = Path(__file__).parents[3] / "docs" / "serving_cluster.md"
PATIENCE = 90.0
PORT = 8000
LIVE = (Path(__file__).parents[2] / "models" / "weighted.py").read_text()
OPEN = ("--no-auth", "--tls-terminated-upstream", "--set", "serve.allowed_hosts=scores.example.com")


def wait_for(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.05)
    return found


class Command:
    """`sereno serve --on ray` on a host."""

    def __init__(self, host: Host, cluster: RayCluster, project: Project, *arguments: str) -> None:
        self.log = project.folder / f"log{len(list(project.folder.glob('log*')))}"
        command = [sys.executable, "-m", "sereno", "serve", "--on", "ray", "--json", "--port", str(PORT), *arguments]
        self.out = self.log.with_suffix(".json")
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process: Within = host.popen(command, cluster.environment, cwd=project.folder, stdout=out, stderr=log)

    def told(self) -> dict[str, Any]:
        """What it printed, once it was ready."""
        wait_for(lambda: self.out.read_text().endswith("\n") or self.process.poll() is not None, "the servers")
        assert self.process.poll() is None, self.says
        return dict(json.loads(self.out.read_text()))

    @property
    def says(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> None:
        try:
            wait_for(lambda: re.search(pattern, self.says), "a line of the log")
        except AssertionError:
            raise AssertionError(f"{pattern!r} is not in the log:\n{self.says}") from None

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.new(tmp_path_factory.mktemp("cluster"))
    project.write("total.py", LIVE)
    project.write("sereno.toml", '[models.total]\nlog = "off"\n')
    return project


@pytest.fixture(scope="module")
def four(project: Project) -> Iterator[list[Host]]:
    with hosts(4, project.folder) as four:
        yield four


@pytest.fixture(scope="module")
def cluster(four: list[Host]) -> Iterator[RayCluster]:
    with ray_cluster(four[:3], cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def front(project: Project, cluster: RayCluster, four: list[Host]) -> str:
    """The address of nginx on a host of its own, set up as the page says."""
    balancer, page = four[3], PAGE.read_text()
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        assert not os.environ.get("CI"), "nginx is not installed"
        pytest.skip("LOUD: nothing in front of servers on a cluster is tested here: nginx is not installed")
    folder = project.folder / "nginx"
    folder.mkdir()
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=scores.example.com -keyout churn.key -out churn.crt"
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    (setting,) = re.findall(r"`sysctl (net\S+)`", page)
    balancer.run(["sysctl", "-w", setting])
    for place, host in enumerate(cluster.hosts, 11):
        block = block.replace(f"10.0.0.{place}:8000", f"{host.address}:{PORT}")
    block = block.replace("/etc/nginx/", f"{folder}/")
    assert "10.0.0." not in block
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\nevents {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n{block}}}\n"
    )
    balancer.popen([nginx, "-p", folder, "-e", folder / "error.log", "-c", config])
    wait_for(lambda: _connects(balancer.address), "nginx")
    return f"https://{balancer.address}"


def _connects(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, 443), 1):
        return True
    return False


class Callers:
    """Ask nginx all the while, from some threads: what came back, and from which weight."""

    def __init__(self, front: str, threads: int = 4) -> None:
        self._front = front
        self.failures: list[str] = []
        self.answers: Counter[float] = Counter()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, weight: float | None = None, times: int = 40) -> None:
        """Until so many more are answered (by a server that has read this weight)."""
        count = (lambda: self.answers[weight]) if weight is not None else self.answers.total
        before = count()
        wait_for(lambda: count() >= before + times or self.failures, "answers")

    def _ask(self) -> None:
        with httpx.Client(base_url=self._front, verify=False, timeout=PATIENCE) as client:
            while not self._is_over.wait(0.005):
                try:
                    answer = client.post("/predict", json={"id": 1, "x": 1.0}, headers={"Host": "scores.example.com"})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers[answer.json()["y"]] += 1
                else:
                    self.failures.append(f"{answer.status_code} {answer.text}")


def urls(cluster: RayCluster) -> set[str]:
    return {f"http://{host.address}:{PORT}" for host in cluster.hosts}


def ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    return False


def test_no_request_fails_whatever_becomes_of_servers_nodes_and_command(
    project: Project, cluster: RayCluster, front: str
) -> None:
    head, second, third = cluster.hosts
    given = ["--replicas", "2", "--set=ray.server_cpus=1.5", *OPEN, "total.py"]
    command = Command(head, cluster, project, *given)
    told = command.told()
    assert {one["url"] for one in told["servers"]} < urls(cluster)
    assert len({one["host"] for one in told["servers"]}) == 2  # one a node
    assert told["ray"] == cluster.address
    assert [one["models"][0]["name"] for one in told["servers"]] == ["total"] * 2

    with Callers(front) as callers:
        # each reads its files again, one after another
        project.write("weight.txt", "3")
        command.process.send_signal(signal.SIGHUP)
        command.wait_for("2 servers have read their files again")
        callers.answers.clear()
        callers.wait_for_more(3.0)
        assert set(callers.answers) == {3.0}

        # what does not load is refused by the first, and the others are not told
        project.write("weight.txt", "much")
        command.process.send_signal(signal.SIGHUP)
        command.wait_for("refused, total .* stays in service.*\n?.*1 other servers were not told")
        project.write("weight.txt", "3")

        # a server that is killed is started again by Ray
        victim = told["servers"][0]
        next(host for host in cluster.hosts if host.name == victim["host"]).run(["kill", "-9", str(victim["pid"])])
        command.wait_for(rf"server \d on host {victim['host']} is failed: the server ended by signal 9")
        command.wait_for(rf"server \d is ready on http://\S+ \(host {victim['host']}\)")

        # the command is killed: the servers go on; the next one, elsewhere, with other options, replaces one after another
        command.end(signal.SIGKILL)
        callers.wait_for_more()
        given = ["--workers", "2", *given]
        command = Command(third, cluster, project, *given)
        told_again = command.told()
        assert {one["url"] for one in told_again["servers"]} == {one["url"] for one in told["servers"]}
        assert not {(one["host"], one["pid"]) for one in told["servers"]} & {
            (one["host"], one["pid"]) for one in told_again["servers"]
        }
        callers.wait_for_more()

        # the same once more changes nothing
        assert command.end(signal.SIGUSR1) == 0
        command = Command(head, cluster, project, *given)
        assert command.told()["servers"] == told_again["servers"]
        other = Command(head, cluster, project, *given)

        # the power of a node is cut: its server is started on another one
        with_servers = {one["host"] for one in told_again["servers"]}
        lost = next(host for host in (second, third) if host.name in with_servers)
        (spare,) = (host for host in cluster.hosts if host.name not in with_servers)
        lost.kill()
        command.wait_for(rf"server \d is ready on \S+ \(host {spare.name}\)")
        callers.wait_for_more()

        # only one command at a time
        assert other.process.wait(PATIENCE) == 1
        assert re.search(r"runs already for this home \(pid \d+ on host host1\)", other.says), other.says
    assert callers.failures == []

    assert command.end(signal.SIGTERM) == 0, command.says
    assert not any(ready(url) for url in urls(cluster))
    left = "import ray; ray.init(); print('left:', ray.util.list_named_actors(all_namespaces=True))"
    assert "left: []" in cluster.run(left)


@pytest.mark.soak  # its parts have unit tests
def test_what_keeps_a_server_from_starting_ends_the_command(project: Project, cluster: RayCluster) -> None:
    head = cluster.hosts[0]
    closed = Command(head, cluster, project, "--replicas", "1", "total.py")
    assert closed.process.wait(PATIENCE) == 2
    assert re.search(r"The address 198\.18\.\d+\.\d+ can be reached from other machines", closed.says), closed.says
    assert "SettingsError" in closed.out.read_text()

    project.write("weight.txt", "much")
    broken = Command(head, cluster, project, "--replicas", "1", *OPEN, "total.py")
    assert broken.process.wait(PATIENCE) == 1
    assert "could not convert string to float" in broken.says
    left = "import ray; ray.init(); print('left:', ray.util.list_named_actors(all_namespaces=True))"
    assert "left: []" in cluster.run(left)


@pytest.mark.soak
def test_without_a_cluster_there_is_one_of_this_machine(project: Project) -> None:
    """To try it out: it ends with the command. A server that takes no CPUs has a place all the same."""
    project.write("weight.txt", "2")
    given = ["--port", "0", "--set", "ray.server_cpus=0", "total.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SERENO_", "RAY_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "sereno", "serve", "--on", "ray", *given],
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Serving total on 1 of 1 nodes. Ctrl-C ends it.\n"
        found = re.fullmatch(
            rf"  (http://127\.0\.0\.1:\d+)  {re.escape(socket.gethostname())}\n", process.stdout.readline()
        )
        assert found is not None
        assert httpx.post(f"{found[1]}/predict", json={"id": 1, "x": 4.0}).json() == {"y": 8.0}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert not ready(found[1])
