"""Starting Spark: what is set of it, and what it writes to the terminal.

Its Java process writes many lines that are of no use to whoever scores. Where we start it ourselves, they are kept aside
(`Chatter`). Under `spark-submit`, or in a session of the caller's own, its logging is the caller's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway

from sereno.adapters.executors.spawn import THREAD_VARIABLES, cores, threads_each
from sereno.exceptions import SettingsError, WorkerError
from sereno.settings import Settings

PREFIX = "sereno-spark-"  # of temporary folders
ON_THIS_MACHINE = re.compile(r"local(?:\[(?P<workers>\d+|\*)(?:,(?P<tries>\d+))?\])?")
TRIES = 4  # of a task, as many as Spark makes on a cluster
NO_JAVA = re.compile(  # in the words of Spark's scripts, and of a Java that is too old
    r"JAVA_HOME is not set|\bjava: (?:No such file|command not found|Permission)|UnsupportedClassVersion|Unrecognized option"
)
KEPT_LINES = 400  # of what Spark wrote, for the message when it fails
COMES_SECONDS = 20.0  # until a cluster has given a worker; it may take longer, but plans are made without
REACH_SECONDS = 10.0  # until a master that does not answer is told: Spark itself would try for a minute
SETTLES_SECONDS = 0.5  # without another worker: those that are there have come
UNSUPPORTED = "PySpark does not yet fully support pandas"  # it says so whether pandas is used or not
LIGHT = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # it hands out tasks, for which it need not compile for minutes
LOG = """\
rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
"""


def master_of(master: str | None, settings: Settings) -> str:
    """The master that Spark is given, where it is this machine: with several tries of a task, as elsewhere."""
    found = ON_THIS_MACHINE.fullmatch(master or "local[*]")
    if found is None:
        assert master is not None
        return master
    told = found["workers"] or "1"
    workers = (settings.workers or cores()) if told == "*" else min(int(told), settings.workers or int(told))
    return f"local[{workers},{found['tries'] or TRIES}]"


def start(settings: Settings) -> SparkContext:
    """A context of our own. Raises SettingsError where it cannot be as it is set, and WorkerError."""
    master = settings.spark.master
    if master is not None and master.startswith("sc:"):
        raise SettingsError(
            f"'spark.master' is {master!r}, a server of Spark Connect, which runs no Python functions of other kinds than "
            'SQL\'s. Give the cluster\'s own master: "spark://host:7077" or "yarn".'
        )
    own = _own_settings(settings)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # what it reports is raised, too
    warnings.filterwarnings("ignore", UNSUPPORTED, FutureWarning)
    os.environ["PYSPARK_PYTHON"] = os.environ.get("PYSPARK_PYTHON") or sys.executable
    gateway = SparkContext._gateway or Chatter().launch(own)
    conf = SparkConf(loadDefaults=True, _jvm=gateway.jvm)
    submitted = conf.get("spark.master") if "PYSPARK_GATEWAY_PORT" in os.environ else None
    for name, value in own.items():
        conf.set(name, value)
    conf.setMaster(master_of(_chosen(submitted, master, conf.get("spark.master")), settings))
    if conf.get("spark.app.name") in (None, "pyspark-shell"):
        conf.setAppName("sereno")
    for name, value in _defaults(conf, settings).items():
        conf.setIfMissing(name, value)
    before = signal.getsignal(signal.SIGINT)
    context = None
    try:
        _reach(conf.get("spark.master") or "")
        context = SparkContext(conf=conf, gateway=gateway)
        _wait_for_workers(context)
    except BaseException as error:
        if context is not None:
            with contextlib.suppress(Exception):
                context.stop()
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        raise WorkerError(
            f"Spark at {conf.get('spark.master')} did not start: {first_line(text_of(error))} Nothing was published. See that the "
            "master can be reached from here, and what is set of Spark."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)  # Spark's own would speak to Java wherever the signal comes
    return context


def _chosen(submitted: str | None, asked: str | None, default: str | None) -> str | None:
    """The master: what was typed comes first. `spark-submit` gives "local[*]" where nobody said another."""
    if submitted not in (None, "local[*]"):
        return submitted
    return asked or default


def _reach(master: str) -> None:
    """Raises OSError where none of the masters of Spark's own cluster listens."""
    if not master.startswith("spark://"):
        return
    refused: OSError | None = None
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():  # which Spark tells
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
            return
        except OSError as error:
            refused = error
    assert refused is not None
    raise refused


def _own_settings(settings: Settings) -> dict[str, str]:
    """What the file `[spark] config` sets."""
    file = settings.spark.config
    if file is None:
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"'spark.config' is {file}, which cannot be read as JSON: {error}.") from None
    plain = str | int | float | bool
    if not isinstance(found, dict) or not all(isinstance(one, plain) for one in found.values()):
        raise SettingsError(
            f"{file}, from 'spark.config', is not what Spark is set with: an object of names and texts or numbers, "
            'such as {"spark.executor.memory": "4g"}.'
        )
    return {name: json.dumps(one) if isinstance(one, bool) else str(one) for name, one in found.items()}


def _defaults(conf: SparkConf, settings: Settings) -> dict[str, str]:
    """What is set unless the caller, `spark-submit` or the file of defaults says otherwise."""
    master = conf.get("spark.master")
    assert master is not None
    cpus = _whole(conf, "spark.task.cpus")
    defaults = {
        "spark.ui.enabled": "false",  # a page without a password
        "spark.ui.retainedJobs": "20",  # memory stays the same however many there are
        "spark.ui.retainedStages": "20",
        "spark.ui.retainedTasks": "1000",
        "spark.python.worker.faulthandler.enabled": "true",
    }
    if master.startswith("local["):
        here = ("spark.driver.host", "spark.driver.bindAddress")
        return defaults | dict.fromkeys(here, "127.0.0.1") | {"spark.authenticate": "true"}
    if settings.workers:
        each = max(1, _whole(conf, "spark.executor.cores") // cpus)
        defaults["spark.cores.max"] = str(settings.workers * cpus)
        defaults["spark.executor.instances"] = str(-(-settings.workers // each))
    return defaults


def threads_of(context: SparkContext) -> int:
    """How many threads the libraries of each worker may use."""
    if _is_here(context):
        return threads_each(slots(context))
    return _whole(context.getConf(), "spark.task.cpus")


def _whole(conf: SparkConf, name: str) -> int:
    """How many are set; 1 if none. Raises SettingsError."""
    told = conf.get(name, "1") or "1"
    if not told.isdecimal() or int(told) < 1:
        raise SettingsError(f"{name} is {told!r}; valid is a whole number, 1 or more. See what spark.config sets.")
    return int(told)


def variables_of(context: SparkContext, attempt: str) -> dict[str, str]:
    """The environment of the workers, beside what their nodes give them. Those of another run are other processes."""
    threads = str(threads_of(context))
    quiet = f"ignore:{UNSUPPORTED}:FutureWarning"
    asked = os.environ.get("PYTHONWARNINGS")
    return {
        "SERENO_ATTEMPT": attempt,
        "PYTHONWARNINGS": f"{asked},{quiet}" if asked else quiet,
        **dict.fromkeys(THREAD_VARIABLES, threads),
    }


def slots(context: SparkContext) -> int:
    """How many tasks the workers that are there score at once."""
    spark = context._jsc.sc()  # its defaultParallelism may be set to anything
    return max(1, int(spark.maxNumConcurrentTasks(spark.resourceProfileManager().defaultResourceProfile())))


def has_workers(context: SparkContext) -> bool:
    """Whether there is anybody to score."""
    return bool(_executors(context))


def _executors(context: SparkContext) -> int:
    known = int(context._jsc.sc().getExecutorMemoryStatus().size())  # the driver is one of them
    return known if _is_here(context) else known - 1


def _is_here(context: SparkContext) -> bool:
    return ON_THIS_MACHINE.match(context.master or "") is not None


def _wait_for_workers(context: SparkContext) -> None:
    """Until those have come that come at once: what is planned depends on how many there are."""
    began = changed = time.monotonic()
    known = 0
    while not _is_here(context):
        now = time.monotonic()
        found = _executors(context)
        if found != known:
            known, changed = found, now
        if now - changed > (SETTLES_SECONDS if known else COMES_SECONDS) or now - began > COMES_SECONDS:
            return
        time.sleep(0.05)


def text_of(error: BaseException) -> str:
    """What went wrong, of a Java exception or another."""
    java = getattr(error, "java_exception", None)
    if java is not None:
        with contextlib.suppress(Exception):  # its process may be gone
            return str(java.getMessage())
    return str(error) or type(error).__name__


def first_line(text: str) -> str:
    line = (text.strip().splitlines() or ["it does not say why"])[0]
    return f"{line.rstrip('.')}."


class Chatter:
    """What our Java process writes: read to the end, and kept for the message when it fails."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def launch(self, own: dict[str, str]) -> Any:
        """Start the Java process, or find the one that `spark-submit` started. Raises SettingsError."""
        if "PYSPARK_GATEWAY_PORT" in os.environ:
            return launch_gateway()  # type: ignore[no-untyped-call]
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
            log = Path(folder, "log4j2.properties")
            log.write_text(LOG)
            conf = SparkConf(loadDefaults=False).set("spark.ui.showConsoleProgress", "false")
            for name, value in own.items():
                conf.set(name, value)
            options = own.get("spark.driver.extraJavaOptions", LIGHT)
            conf.set("spark.driver.extraJavaOptions", f"{options} -Dlog4j2.configurationFile={log}".strip())
            reads, writes = os.pipe()
            reader = threading.Thread(target=self._read, args=(reads,), name="spark-output", daemon=True)
            reader.start()
            try:
                return launch_gateway(conf, {"stdout": writes, "stderr": writes})  # type: ignore[no-untyped-call]
            except Exception as error:
                os.close(writes)
                writes = -1
                reader.join(1.0)
                raise SettingsError(f"{self._why()}{self.told()}") from error
            finally:
                if writes >= 0:
                    os.close(writes)

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                self._lines.append(line.rstrip())

    def _why(self) -> str:
        """What to do where the Java process did not start."""
        if NO_JAVA.search("\n".join(self._lines)):
            return (
                "Spark needs Java 17 or newer, and its Java process did not start: install one (Debian: "
                "openjdk-17-jre-headless), or set JAVA_HOME."
            )
        return "Spark did not start: see what spark.config sets, and spark-defaults.conf."

    def told(self) -> str:
        """The last of what Spark wrote, as the end of a message."""
        last = [line for line in self._lines if line and not line.startswith("\t") and "WARN" not in line][-3:]
        return f" The last of what it wrote: {' / '.join(last)}" if last else ""
