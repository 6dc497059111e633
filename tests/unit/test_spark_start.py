"""How Spark is set, before it is started; and what is said where it cannot be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.executors import choosing
from sereno.adapters.executors.dispatch import GOES_ON
from sereno.adapters.executors.leftovers import own_folder
from sereno.adapters.executors.spark_executor import _lost
from sereno.adapters.executors.spark_start import (
    PREFIX,
    Chatter,
    _chosen,
    _defaults,
    _own_settings,
    _reach,
    master_of,
    start,
)
from sereno.adapters.executors.spawn import cores
from sereno.adapters.files import Piece
from sereno.batch.tasks import Task
from sereno.exceptions import MissingExtraError, SettingsError
from sereno.settings import Settings, SparkSettings


def settings(workers: int | None = None, **spark: Any) -> Settings:
    return Settings(home=Path("/tmp"), executor="spark", workers=workers, spark=SparkSettings(**spark))


@pytest.mark.parametrize(
    ("master", "workers", "given"),
    [
        (None, None, f"local[{cores()},4]"),
        (None, 3, "local[3,4]"),
        ("local", None, "local[1,4]"),
        ("local[*]", 5, "local[5,4]"),
        ("local[8]", None, "local[8,4]"),
        ("local[8]", 2, "local[2,4]"),
        ("local[2,7]", None, "local[2,7]"),
        ("yarn", 2, "yarn"),
        ("spark://node1:7077", None, "spark://node1:7077"),
    ],
)
def test_masters(master: str | None, workers: int | None, given: str) -> None:
    assert master_of(master, settings(workers)) == given


def conf(**given: str) -> Any:
    from pyspark import SparkConf

    made = SparkConf(loadDefaults=False)
    for name, value in given.items():
        made.set(f"spark.{name.replace('_', '.')}", value)
    return made


def test_a_spark_of_this_machine_is_for_it_alone() -> None:
    found = _defaults(conf(master="local[2,4]"), settings())
    assert found["spark.driver.bindAddress"] == found["spark.driver.host"] == "127.0.0.1"
    assert (found["spark.authenticate"], found["spark.ui.enabled"]) == ("true", "false")
    assert "spark.authenticate" not in _defaults(conf(master="yarn"), settings())


def test_of_a_cluster_no_more_is_asked_than_workers() -> None:
    found = _defaults(conf(master="yarn", executor_cores="4", task_cpus="2"), settings(5))
    assert (found["spark.cores.max"], found["spark.executor.instances"]) == ("10", "3")
    assert "spark.cores.max" not in _defaults(conf(master="yarn"), settings())


def test_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "spark.json"
    file.write_text(json.dumps({"spark.executor.memory": "4g", "spark.task.cpus": 2, "spark.speculation": True}))
    assert _own_settings(settings(config=file)) == {
        "spark.executor.memory": "4g", "spark.task.cpus": "2", "spark.speculation": "true",
    }  # fmt: skip
    assert _own_settings(settings()) == {}
    for text, says in [("{", "cannot be read as JSON"), ("[1]", "is not what"), ('{"a": {}}', "is not what")]:
        file.write_text(text)
        with pytest.raises(SettingsError, match=says):
            _own_settings(settings(config=file))
    file.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        _own_settings(settings(config=file))


def test_a_master_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match=r"'spark\.master' is 'sc://host', a server of Spark Connect"):
        start(settings(master="sc://host"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a pipe that Spark leaves open
def test_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    with pytest.raises(SettingsError, match=r"Spark needs Java 17 or newer, .* or set JAVA_HOME\. .*/nowhere"):
        Chatter().launch({})


@pytest.mark.parametrize(
    ("wrote", "is_java"),
    [
        ("JAVA_HOME is not set", True),
        ("spark-class: line 71: /nowhere/bin/java: No such file or directory", True),
        ("\tjava.lang.UnsupportedClassVersionError: … (class file version 61.0)", True),  # of an older Java
        ("Invalid maximum heap size: -Xmxlots", False),
        ('Exception in thread "main" org.apache.spark.SparkException: Executor cores must be a positive number', False),
    ],
)
def test_java_is_named_where_it_is_missing_or_too_old(wrote: str, is_java: bool) -> None:
    chatter = Chatter()
    chatter._lines.append(wrote)
    says = "Spark needs Java 17" if is_java else "Spark did not start: see what spark.config sets"
    assert chatter._why().startswith(says)


def test_numbers_that_are_none() -> None:
    with pytest.raises(SettingsError, match=r"spark\.task\.cpus is 'two'; valid is a whole number, 1 or more\."):
        _defaults(conf(master="yarn", task_cpus="two"), settings())
    with pytest.raises(SettingsError, match=r"spark\.executor\.cores is '0'"):
        _defaults(conf(master="yarn", executor_cores="0"), settings(2))


@pytest.mark.parametrize(
    ("submitted", "asked", "default", "given"),
    [
        ("yarn", "spark://node1:7077", "yarn", "yarn"),
        ("local[2]", "yarn", "local[2]", "local[2]"),
        ("local[*]", "yarn", "local[*]", "yarn"),  # what `spark-submit` gives where nobody said a master
        (None, "yarn", "spark://node1:7077", "yarn"),
        (None, None, "spark://node1:7077", "spark://node1:7077"),
    ],
)
def test_the_submitted_master_comes_first(
    submitted: str | None, asked: str | None, default: str | None, given: str
) -> None:
    assert _chosen(submitted, asked, default) == given


def test_a_master_is_asked_for_before_spark_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listens:
        there = listens.getsockname()[1]
        _reach(f"spark://127.0.0.1:9,127.0.0.1:{there}")
    with pytest.raises(ConnectionRefusedError):
        _reach(f"spark://127.0.0.1:9,127.0.0.1:{there}")
    for other in ("local[2,4]", "yarn", "spark://127.0.0.1"):
        _reach(other)


def test_what_killed_processes_have_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    old, new, ours = (tmp_path / f"{PREFIX}{name}" for name in (f"{ended}-a", f"{ended}-b", f"{os.getpid()}-c"))
    for folder in (old, new, ours):
        folder.mkdir()
        (folder / "bundle.zip").touch()
    for folder in (old, ours):
        os.utime(folder, (0, 0))
    made = own_folder(PREFIX, tmp_path)
    assert made.name.startswith(f"{PREFIX}{os.getpid()}-")
    assert {*tmp_path.iterdir()} == {new, ours, made}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.delitem(sys.modules, "sereno.adapters.executors.spark_executor")
    with pytest.raises(MissingExtraError, match=r"pip install 'sereno\[spark\]'"):
        choosing.make_executor(None, settings())  # type: ignore[arg-type]


FAILED = (
    "Job aborted due to stage failure: Task 1 in stage 7.0 failed 4 times, most recent failure: Lost task 1.3 in stage 7.0 "
    "(TID 6) (node2 executor 3): "
)
TASKS = [Task(index=index, pieces=(Piece(kind="parquet", path=f"{index}.parquet"),), rows=7) for index in (4, 5)]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed): \n\tat org…\n",
            (
                "Task 5 (5.parquet, 7 rows) was tried 4 times, and each time its worker was lost: the last time on node2, "
                "SparkException: Python worker exited unexpectedly (crashed). A batch of it may take more memory"
            ),
        ),
        (
            (
                "ExecutorLostFailure (executor 3 exited caused by one of the running tasks) Reason: Remote RPC client "
                "disassociated.\nDriver stacktrace:"
            ),
            (
                "the last time on node2, ExecutorLostFailure (executor 3 exited caused by one of the running tasks) Reason: "
                "Remote RPC client disassociated. A batch"
            ),
        ),
        (
            (
                'org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n  File "x.py", line 1\n'
                "ModuleNotFoundError: No module named 'sereno'\n\n\tat org.apache…"
            ),
            (
                "The Python processes of Spark cannot score; on node2 they ended with ModuleNotFoundError: No module named "
                "'sereno'. Every node needs Sereno"
            ),
        ),
        (
            (
                'java.io.IOException: Cannot run program "/nowhere/python": error=2, No such file or directory\n\tat java.base…\n'
                "Caused by: java.io.IOException: error=2, No such file or directory\n\tat java.base…"
            ),
            (
                'The Python processes of Spark cannot score; on node2 they ended with IOException: Cannot run program "/nowhere/'
                'python": error=2, No such file or directory. Every node needs Sereno'
            ),
        ),
    ],
)
def test_what_is_said_of_a_loss(how: str, says: str) -> None:
    found = _lost(RuntimeError(FAILED + how), TASKS)
    assert says in found
    assert found.endswith(GOES_ON)


def test_what_is_said_of_another_end() -> None:
    raised = (
        "[PYTHON_EXCEPTION] An exception was thrown from the Python worker: Traceback (most recent call last):\n"
        '  File "pyspark/worker_util.py", line 75, in read_command\n    command = serializer.loads(file)\n'
        "ModuleNotFoundError: No module named 'msgspec'\n SQLSTATE: 38000"
    )
    assert _lost(RuntimeError(raised), TASKS).startswith(
        "The Python processes of Spark cannot score; they ended with ModuleNotFoundError: No module named 'msgspec'. Every node"
    )
    assert _lost(RuntimeError("Job 3 cancelled\nmore"), TASKS) == f"Spark ended: Job 3 cancelled. {GOES_ON}"
