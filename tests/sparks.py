"""A Spark for tests: in this process, or a cluster of hosts of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sereno.settings import Settings, SparkSettings
from tests.hosts import Host, Within

PATIENCE = 200.0  # on a machine with much else to do
DEFAULTS = """\
spark.authenticate              true
spark.authenticate.secret       {secret}
spark.network.crypto.enabled    true
spark.executor.memory           512m
spark.executor.extraJavaOptions  -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.master.ui.port            0
spark.worker.ui.port            0
"""


def require() -> None:
    """Skips the test, or fails it with CI=1, where there is no Java."""
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        if os.environ.get("CI"):
            pytest.fail("there is no Java, which Spark needs: openjdk-17-jre-headless")
        pytest.skip("LOUD: nothing about Spark is tested here: there is no Java (openjdk-17-jre-headless)")


@contextlib.contextmanager
def started_spark(home: Path, workers: int) -> Iterator[None]:
    """A context in this process, which executors find and leave open."""
    require()
    from sereno.adapters.executors.spark_start import start

    settings = Settings(home=home, workers=workers, spark=SparkSettings(master=f"local[{workers}]"))
    context = start(settings)
    try:
        yield
    finally:
        context.stop()


@dataclass(frozen=True)
class SparkCluster:
    """A master and a worker of Spark on each of the other hosts."""

    master: str  # as the setting has it
    environment: dict[str, str]  # what whoever talks to it needs
    log: Path  # of the master

    def join(self, *hosts: Host) -> None:
        """Other nodes, or some that were lost: until the master knows them."""
        before = self._known
        for host in hosts:
            _daemon(host, self.environment, "worker.Worker", "--cores", "1", "--memory", "1g", self.master)
        until(lambda: self._known == before + len(hosts), "the workers of Spark to join")

    @property
    def _known(self) -> int:
        return self.log.read_text().count("Registering worker")


@contextlib.contextmanager
def spark_cluster(folder: Path, head: Host, others: Sequence[Host]) -> Iterator[SparkCluster]:
    """Spark's own cluster, which asks whoever talks to it for a secret, and encrypts. It ends with its hosts.

    `folder` is shared. Each worker has one core.
    """
    require()
    configuration = folder / "spark-defaults.conf"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.touch(mode=0o600)
    configuration.write_text(DEFAULTS.format(secret=secrets.token_hex(32)))
    environment = {
        "SPARK_CONF_DIR": str(folder),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "PYSPARK_PYTHON": sys.executable,
    }
    cluster = SparkCluster(f"spark://{head.address}:7077", environment, folder / f"{head.name}.log")
    _daemon(head, environment, "master.Master", "--host", head.address, "--port", "7077")
    until(lambda: "New state: ALIVE" in cluster.log.read_text(), "the master of Spark to start")
    cluster.join(*others)
    yield cluster


def until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.02)


def _daemon(host: Host, environment: Mapping[str, str], name: str, *options: str) -> Within:
    log = Path(environment["SPARK_CONF_DIR"], f"{host.name}.log")
    import pyspark  # the script in the environment's bin looks for another Python first

    command = [Path(pyspark.__file__).parent / "bin" / "spark-class", f"org.apache.spark.deploy.{name}", *options]
    return host.popen(command, {**environment, "SPARK_LOCAL_IP": host.address}, log=log)
