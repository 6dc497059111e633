"""Runs on a Ray cluster of three hosts, whose workers, nodes, driver and head die: what is published is what a local run
publishes, or nothing, and the next run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.project import DAY, MODEL, Project
from tests.hosts import Host, RayCluster, Within, hosts, ray_cluster

PATIENCE = 60.0
TASK_ROWS, TASKS = 70_000, 6  # a task is at least 65,536 rows
# A worker leaves a file with its host and pid, and waits at rows whose x is at least what `hold` says.
WAITS = """
def predict(weight, rows: pa.Table) -> pa.Table:
    import socket, time
    import numpy as np
    hold, at = Path("hold"), Path("at", f"{socket.gethostname()}-{os.getpid()}")
    if Path("poison").exists() and bool(np.any(rows["x"].to_numpy() == float(Path("poison").read_text()))):
        at.write_text("died")
        os.kill(os.getpid(), 9)  # as the kernel does to a process that takes too much memory
    while hold.exists() and rows["x"][0].as_py() >= float(hold.read_text() or 0):
        at.write_text("waits")
        time.sleep(0.02)
    print("predicted by", socket.gethostname())
"""


class OnRay(Project):
    """A project on a folder that the cluster's hosts share."""

    ray: RayCluster
    begun: list[Within]
    host: Host  # where its commands are started: a ledger in SQLite is for one host

    @classmethod
    def on(cls, ray: RayCluster, host: Host, folder: Path) -> OnRay:
        project = cls.new(folder)
        project.ray, project.host, project.begun = ray, host, []
        project.write("total.py", MODEL.replace("def predict(weight, rows: pa.Table) -> pa.Table:", WAITS.strip()))
        (folder / "at").mkdir()
        project.rows(DAY, TASKS * TASK_ROWS, parts=TASKS)
        return project

    def begin(self, *arguments: str, **variables: str) -> Within:
        """`sereno … --json`, whose errors go to the file `errors`."""
        command = [sys.executable, "-W", "error", "-m", "sereno", *arguments, "--json"]
        with (self.folder / "errors").open("wb") as errors:
            process = self.host.popen(
                command,
                self.ray.environment | variables,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.begun.append(process)
        return process

    def begin_run(self, executor: str = "ray", **variables: str) -> Within:
        return self.begin("run", "total.py", "--date", DAY, "--executor", executor, **variables)

    def end(self, process: Within, code: int = 0) -> Any:
        """What it printed, once it has ended with this exit code."""
        printed, _ = process.communicate(timeout=PATIENCE)
        errors = (self.folder / "errors").read_text()
        assert process.returncode == code, (process.returncode, printed[:2000], errors)
        return json.loads(printed)

    def hold(self, x: float = 0) -> None:
        self.write("hold", str(x))

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def waiting(self) -> dict[str, list[int]]:
        """The workers that wait, or did so when they were lost: pids by host."""
        found: dict[str, list[int]] = {}
        for file in (self.folder / "at").iterdir():
            host, _, pid = file.name.partition("-")
            found.setdefault(host, []).append(int(pid))
        return found

    def forget(self, *names: str) -> None:
        """The lost workers of some hosts: a host that was booted again may give a new worker the pid of an old one."""
        for name in names:
            for pid in self.waiting()[name]:
                (self.folder / "at" / f"{name}-{pid}").unlink()

    def until_all_wait(self, process: Within, *names: str) -> None:
        wanted = set(names or ("host1", "host2", "host3"))
        self.until(lambda: wanted <= set(self.waiting()), process)

    def until(self, happens: Callable[[], bool], process: Within | None = None) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happens():
            if process is not None:
                assert process.poll() is None, (process.communicate(), (self.folder / "errors").read_text())
            assert time.monotonic() < deadline, (
                self.waiting(),
                (self.folder / "errors").read_text(),
                [h.run(["ps", "ax", "-o", "pid,ppid,stat,cmd"]) for h in self.ray.hosts],
            )
            time.sleep(0.02)

    def finished(self) -> int:
        """How many tasks are."""
        return len(list((self.folder / ".sereno" / "runs" / "total").glob("*/tasks/*.json")))

    def at_work(self, host: Host) -> bool:
        """Whether a worker is at work on a host."""
        return "ray::RemoteWorker" in host.run(["ps", "ax"])

    def assert_as_local(self) -> None:
        """What is published is what a local run publishes."""
        local = Project.new(self.folder.parent / f"{self.folder.name}-local")
        (local.folder / "input").symlink_to(self.folder / "input")
        local.run()
        wanted, published = local.published(), self.published()
        assert wanted is not None
        assert published is not None
        assert published.equals(wanted)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[RayCluster]:
    with hosts(3, shared) as three, ray_cluster(three) as ray:
        yield ray


@pytest.fixture
def project(cluster: RayCluster, shared: Path, request: pytest.FixtureRequest) -> Iterator[OnRay]:
    name = request.node.name.strip("]").replace("[", "_")  # no pattern of file names
    project = OnRay.on(cluster, cluster.hosts[1], shared / name)
    yield project
    for process in project.begun:  # what a test that failed has left would have the cluster's CPUs
        process.kill()


def test_workers_and_nodes_die_and_come(cluster: RayCluster, project: OnRay) -> None:
    """A worker is killed, and a node; the node comes back while the run goes on, and has a worker again."""
    first, _, third = cluster.hosts
    project.hold()
    run = project.begin_run()
    project.until_all_wait(run)
    first.run(["kill", "-9", str(project.waiting()["host1"][0])])
    third.kill()
    project.forget("host1", "host3")
    third.boot()
    cluster.join(third, "--num-cpus=1", f"--object-store-memory={100 << 20}")
    project.until_all_wait(run)
    project.let_go()

    report = project.end(run)
    assert (report["state"], report["tasks"]) == ("published", TASKS)
    assert report["workers"] >= 3  # the node that came back may have had one before the other one was missed
    errors = (project.folder / "errors").read_text()
    assert errors.count("a worker is lost") == 2
    assert "\npredicted by host2\n" in errors
    assert "\n(host1) predicted by host1\n" in errors
    assert "raylet" not in errors
    project.assert_as_local()


@pytest.mark.soak
def test_a_challenger_is_compared(cluster: RayCluster, project: OnRay) -> None:
    project.end(project.begin_run("local"))
    found = project.end(project.begin("compare", "total.py", "--against", "served", "--executor", "ray"))
    assert (found["both"], found["same"]) == (TASKS * TASK_ROWS, True)
    assert not list((project.folder / ".sereno").glob("compare/*"))


@pytest.mark.soak
def test_a_batch_that_kills_whoever_scores_it(cluster: RayCluster, project: OnRay) -> None:
    """Nothing is published; once the batch is mended, the next run goes on where this one was."""
    project.write("poison", str((TASK_ROWS * 2 + 7) / 8))  # in the third task
    told = project.end(project.begin_run(), code=1)

    assert told["error"] == "WorkerError"
    assert "Task 2 (" in told["says"]
    assert f"input/{DAY}/2.parquet, 70,000 rows) was tried 4 times, and each time its worker was lost" in told["says"]
    assert "start the run again and it goes on where it was" in told["says"]
    assert project.published() is None

    (project.folder / "poison").unlink()
    report = project.end(project.begin_run("local"))
    assert report["resumed_tasks"] > 0
    project.assert_as_local()


@pytest.mark.parametrize("signal", [9, pytest.param(2, marks=pytest.mark.soak)])
def test_the_driver_dies(cluster: RayCluster, project: OnRay, signal: int) -> None:
    """Its workers with it. The next run goes on where it was."""
    project.hold(TASK_ROWS * 3 / 8)  # half of the tasks are done
    run = project.begin_run()
    project.until(lambda: project.finished() == 3 and bool(project.waiting()), run)
    run.send_signal(signal)
    assert run.wait(10) == (130 if signal == 2 else -signal)
    project.until(lambda: not any(project.at_work(host) for host in cluster.hosts))
    assert project.published() is None
    project.let_go()

    report = project.end(project.begin_run())
    assert report["resumed_tasks"] == 3
    project.assert_as_local()


def test_a_node_is_cut_off_and_comes_back(cluster: RayCluster, project: OnRay) -> None:
    """What it had is scored by others, and what it writes afterwards does not count."""
    third = cluster.hosts[2]
    project.hold()
    run = project.begin_run()
    project.until_all_wait(run)
    third.cut()
    project.until(lambda: "a worker is lost" in (project.folder / "errors").read_text(), run)
    third.mend()
    project.let_go()
    report = project.end(run)
    assert (report["state"], report["tasks"]) == ("published", TASKS)
    project.assert_as_local()
    third.kill()
    third.boot()
    cluster.join(third, "--num-cpus=1", f"--object-store-memory={100 << 20}")


def test_what_cannot_be_reached(cluster: RayCluster, project: OnRay) -> None:
    told = project.end(project.begin_run(RAY_AUTH_TOKEN=""), code=2)
    assert told["error"] == "SettingsError"
    assert "Set RAY_AUTH_TOKEN to that of the cluster" in told["says"]
    told = project.end(project.begin_run(SERENO_RAY__ADDRESS=f"{cluster.hosts[0].address}:1"), code=1)
    assert told["error"] == "WorkerError"
    assert "cannot be reached: Connection refused" in told["says"]
    assert project.published() is None


def test_the_head_dies(cluster: RayCluster, project: OnRay) -> None:
    """The run ends and says so, before Ray ends it. (The last test: the cluster is no more.)"""
    project.hold(TASK_ROWS * 3 / 8)
    run = project.begin_run(RAY_gcs_rpc_server_reconnect_timeout_s="8")
    project.until(lambda: project.finished() >= 3, run)
    cluster.hosts[0].kill()
    told = project.end(run, code=1)
    assert told["error"] == "WorkerError"
    assert "has not answered for" in told["says"]
    project.let_go()

    report = project.end(project.begin_run("local"))
    assert report["resumed_tasks"] >= 3
    project.assert_as_local()
