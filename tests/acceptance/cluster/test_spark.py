"""Runs on Spark: the same output as on this machine, whatever is lost on the way; or a clear failure, and nothing published."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyspark
import pytest

from tests.acceptance.project import DAY, PART_ROWS, PARTS, ROWS, Project
from tests.hosts import Host, Within, hosts
from tests.sparks import PATIENCE, SparkCluster, require, spark_cluster, until

SOON = {  # that a node says nothing any more is noticed, and not after two minutes
    "spark.network.timeout": "10s",
    "spark.network.timeoutInterval": "2s",
    "spark.executor.heartbeatInterval": "1s",
    "spark.rpc.askTimeout": "120s",
}

# What goes wrong is a file in the home, named for it, which the first worker that finds it takes away.
MODEL = """
import os, signal, socket, time
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from sereno import Key, Model
from scale import scaled


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": WEIGHT})


@model.load
def load(weight: Path, home: Path):
    print("loaded by", os.getpid(), "in", os.getcwd())
    return float(weight.read_text()), home


def asked(home, what):
    try:
        (home / "faults" / what).unlink()
    except FileNotFoundError:
        return False
    return True


@model.predict
def predict(loaded, rows: pa.Table) -> pa.Table:
    weight, home = loaded
    if asked(home, "kill-worker"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked(home, "kill-executor"):
        daemon = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(daemon, signal.SIGKILL)
        time.sleep(60)
    if (home / "faults" / "poison").exists() and pc.any(pc.equal(rows["x"], POISON)).as_py():
        os.kill(os.getpid(), signal.SIGKILL)
    if asked(home, f"wait-{socket.gethostname()}"):
        (home / "faults" / f"waits-{socket.gethostname()}").touch()
        while not (home / "faults" / "go").exists():
            time.sleep(0.02)
    return pa.table({"y": scaled(rows["x"], weight)})


if __name__ == "__main__":
    model.main()
"""
SCALE = """
import pyarrow.compute as pc


def scaled(column, weight):
    return pc.multiply(column, weight)
"""


class OnSpark(Project):
    """A project whose model may be told what is to go wrong."""

    def fault(self, *names: str) -> None:
        for name in names:
            self.write(f"faults/{name}", "")

    def waits(self, name: str) -> None:
        """Until a worker says that it waits."""
        until(lambda: (self.folder / "faults" / f"waits-{name}").exists(), f"a worker on {name}")

    def go(self) -> None:
        self.fault("go")


def prepared(folder: Path, model: Path | None = None) -> OnSpark:
    """A project with its input; the model lies elsewhere if said."""
    project = OnSpark(folder)
    project.write("sereno.toml", f'values.home = "{folder}"\nmodels.total.source = "input/{{data_date}}/*.parquet"\n')
    project.rows(DAY, ROWS, parts=PARTS)
    write_model(model or folder)
    return project


def write_model(folder: Path, weight: str = "weight.txt") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "total.py").write_text(MODEL.replace("WEIGHT", repr(weight)).replace("POISON", str(PART_ROWS / 8)))
    (folder / "scale.py").write_text(SCALE)
    (folder / weight).write_text("2")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the local executor publishes."""
    project = prepared(tmp_path_factory.mktemp("local") / "project")
    project.run()
    published = project.published()
    assert published is not None
    return published


# On this machine


@pytest.fixture
def here(tmp_path: Path) -> OnSpark:
    require()
    project = prepared(tmp_path / "project")
    project.variables = {"SERENO_EXECUTOR": "spark", "SERENO_SPARK__MASTER": "local[2]"}
    return project


def test_a_batch_that_kills_its_worker(here: OnSpark, expected: pa.Table) -> None:
    here.fault("poison")
    said = here.run(code=1)
    assert said["error"] == "WorkerError"
    assert said["says"].startswith(
        f"Task 1 ({here.folder}/input/{DAY}/1.parquet, {PART_ROWS:,} rows) was tried 4 times, and each time its worker was "
        "lost: the last time on "
    )
    assert (
        "SparkException: Python worker exited unexpectedly (crashed). A batch of it may take more memory"
        in said["says"]
    )
    assert here.published() is None
    assert here.states() == ["failed"]
    (here.folder / "faults" / "poison").unlink()
    report = here.run()
    assert report["resumed_tasks"] >= 1
    assert here.published() == expected


def test_a_node_whose_python_lacks_packages(here: OnSpark, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    here.variables["PYSPARK_PYTHON"] = str(bare)
    said = here.run(code=1)
    assert said["error"] == "WorkerError"
    assert re.match(
        r"The Python processes of Spark cannot score; (on \S+ )?they ended with ModuleNotFoundError: No module named '\w+'\. "
        "Every node needs Sereno ",
        said["says"],
    )
    assert here.published() is None


@pytest.mark.soak
def test_ctrl_c(here: OnSpark, expected: pa.Table) -> None:
    name = os.uname().nodename
    here.fault(f"wait-{name}")
    run = here.start("run", "total.py", "--date", DAY)
    here.waits(name)
    until(lambda: any((here.folder / ".sereno" / "runs" / "total").glob("*/tasks/*.json")), "a task to be done")
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("java" in child.name() for child in children)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, error
    assert error.splitlines()[-1] == (
        "sereno: interrupted; finished tasks are kept, the next run goes on where this one was."
    )
    psutil.wait_procs(children, timeout=PATIENCE)
    assert not any(child.is_running() for child in children)
    assert here.published() is None
    report = here.run()
    assert report["resumed_tasks"] >= 1
    assert here.published() == expected


def test_spark_submit(here: OnSpark, expected: pa.Table) -> None:
    """In which Java starts the model file, what Spark writes is as the caller has it, and the master is the submitted one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SERENO_")}
    environment |= {"PYSPARK_PYTHON": sys.executable, "SERENO_SPARK__MASTER": "spark://127.0.0.1:9"}
    submit = [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[2]"]
    quiet = ["--conf", "spark.ui.enabled=false", "--conf", "spark.driver.host=127.0.0.1"]
    done = subprocess.run(
        [*submit, *quiet, "total.py", "run", "--date", DAY],
        cwd=here.folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "published as version 1" in done.stdout
    assert "Running Spark version" in done.stderr  # `executor` is not set: who submits to Spark means Spark
    assert here.published() == expected


# On a cluster


class Cluster(NamedTuple):
    spark: SparkCluster
    driver: Host  # where the command runs; the master, too
    nodes: list[Host]  # with a worker each
    folder: Path  # that all share


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require()
    folder = tmp_path_factory.mktemp("cluster")
    with hosts(3, folder) as (driver, *nodes), spark_cluster(folder / "spark", driver, nodes) as spark:
        yield Cluster(spark, driver, nodes, folder)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> OnSpark:
    """A project in the folder that all share."""
    return prepared(cluster.folder / tmp_path.name)


def command(project: OnSpark, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "sereno", "run", "total.py", "--date", DAY, "--json", *arguments]


def started(cluster: Cluster, project: OnSpark) -> Within:
    """A run that goes on on the driver's host."""
    environment = cluster.spark.environment | {"SERENO_EXECUTOR": "spark", "SERENO_SPARK__MASTER": cluster.spark.master}
    environment["SERENO_WORKERS"] = "2"  # so that tasks are the same though a node comes late
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return cluster.driver.popen(command(project), environment, cwd=project.folder, **pipes)


def ended(run: Within, code: int = 0) -> Any:
    """What it printed."""
    out, error = run.communicate(timeout=PATIENCE)
    assert run.returncode == code, (out, error)
    return json.loads(out) | {"stderr": error}


def test_the_model_is_shipped(cluster: Cluster, project: OnSpark, expected: pa.Table) -> None:
    """Its file, the module beside it and an artefact elsewhere are on the driver's host alone; predictions are the same."""
    for name in ("total.py", "scale.py", "weight.txt"):
        (project.folder / name).rename(cluster.folder / name)
    moved = "mkdir /tmp/model /tmp/weights; mv total.py scale.py /tmp/model; mv weight.txt /tmp/weights"
    cluster.driver.run(["sh", "-e", "-c", moved], cwd=cluster.folder)
    cluster.driver.run(["sed", "-i", "s:'weight.txt':'/tmp/weights/weight.txt':", "/tmp/model/total.py"])
    environment = cluster.spark.environment | {"SERENO_EXECUTOR": "spark", "SERENO_SPARK__MASTER": cluster.spark.master}
    run = [*command(project), "--home", str(project.folder), "--source", str(project.folder / "input" / DAY)]
    run[run.index("total.py")] = "/tmp/model/total.py"
    with cluster.driver.popen(
        run, environment, cwd=Path("/tmp"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        report = ended(process)
    assert report["workers"] == 2
    assert project.published() == expected
    loaded = re.findall(r"^\((host\d)\) loaded by \d+ in (.*)$", report["stderr"], re.MULTILINE)
    assert sorted(loaded) == [("host2", str(project.folder)), ("host3", str(project.folder))]  # once in each process
    others = [
        line for line in report["stderr"].splitlines() if "loaded by" not in line and not line.startswith("score:")
    ]
    assert others == []


def test_processes_that_are_killed(cluster: Cluster, project: OnSpark, expected: pa.Table) -> None:
    """A worker's, and one of Spark's that has it as its child."""
    project.fault("kill-worker", "kill-executor")
    report = ended(started(cluster, project))
    assert not [*(project.folder / "faults").iterdir()]
    assert (report["rows_in"], report["resumed_tasks"]) == (ROWS, 0)
    assert project.published() == expected


def test_the_driver_is_killed(cluster: Cluster, project: OnSpark, expected: pa.Table) -> None:
    project.fault("wait-host2")
    run = started(cluster, project)
    project.waits("host2")
    work = project.folder / ".sereno" / "runs" / "total"
    until(lambda: len([*work.glob("*/tasks/*.json")]) == PARTS - 1, "the other tasks")
    run.kill()
    run.communicate()
    assert project.published() is None
    processes = ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c pyspark[.]daemon || true"]
    until(lambda: cluster.nodes[0].run(processes).strip() == "0", "workers to end")
    report = ended(started(cluster, project))
    assert report["resumed_tasks"] == PARTS - 1
    assert project.published() == expected


@pytest.mark.soak
def test_a_node_without_the_home(cluster: Cluster, project: OnSpark) -> None:
    missing = cluster.nodes[1]
    missing.hide(project.folder)
    try:
        said = ended(started(cluster, project), code=1)
    finally:
        missing.show(project.folder)
    assert said["error"] == "NotSharedError"
    assert f"The folder {project.folder} is not the same on host host3 as on host host1" in said["says"]
    assert project.published() is None


@pytest.mark.parametrize("how", ["power", pytest.param("cable", marks=pytest.mark.soak)])
def test_a_node_is_lost(cluster: Cluster, project: OnSpark, expected: pa.Table, how: str) -> None:
    """Its power is cut; or its cable is pulled, and it goes on, and comes back once the run has ended."""
    node = cluster.nodes[1]
    project.write("spark.json", json.dumps(SOON))
    project.write("sereno.toml", (project.folder / "sereno.toml").read_text() + 'spark.config = "spark.json"\n')
    project.fault(f"wait-{node.name}")
    run = started(cluster, project)
    project.waits(node.name)
    if how == "power":
        node.kill()
    else:
        node.cut()
    report = ended(run)
    assert report["rows_in"] == ROWS
    assert project.published() == expected
    if how == "power":
        node.boot()
        cluster.spark.join(node)
    else:
        project.go()  # whoever still waits there goes on, and writes what nobody asked for any more
        node.mend()
    assert ended(started(cluster, project))["state"] == "nothing"
    assert project.published() == expected
