"""The runs that the scheduler has started: each is `sereno run` in a process of its own, within the limits of `[up]`.

A run gives way to the API beside it: it has a lower priority, and where memory runs out it is taken first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sereno.adapters.executors.quota import cores_of_quota
from sereno.exceptions import WorkerError
from sereno.ledger import Entry
from sereno.operate.scheduling.deciding import WHO, Scheduled, took_too_long
from sereno.operate.scheduling.endings import Ended
from sereno.operate.tied import tied
from sereno.schedule import span
from sereno.settings import UpSettings

LONGEST_LINE = 1 << 16  # of what a run writes; the rest of it is another line
LAST_WORDS = 0.5  # seconds that what a run wrote may take to be read, once it has ended
PATIENCE = 0.01  # seconds between two looks at runs that are to end
LOG = 2  # stderr


@dataclass(eq=False)
class _Run:
    model: str
    run_key: str
    prefix: str  # of its lines in the log
    process: subprocess.Popen[bytes]
    reader: threading.Thread
    printed: int  # the descriptor of a file that has its report
    seconds: float | None  # that it may take
    began: float
    ended_at: float | None = None  # when it was told to end, as it took longer

    def kill(self) -> None:
        """It and whatever it has started."""
        if self.process.returncode is None:  # until somebody asked how it ended, its number is no one else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end_in_time(self, patience: float) -> None:
        """Have it end where it takes longer than it may: it is asked to, and killed after some seconds."""
        now = time.monotonic()
        if self.seconds is None or self.has_ended():
            return
        if self.ended_at is None and now - self.began > self.seconds:
            self.ended_at = now
            self.process.terminate()
        elif self.ended_at is not None and now - self.ended_at > patience:
            self.kill()

    def has_ended(self) -> bool:
        """Whether it has. Then nothing of what it started in its group is left, and `process.returncode` tells how."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill()
            self.process.wait()
        return True


class Runs:
    """Starts runs, and hears of their end. For one thread, which lives as long as its process: runs are tied to it."""

    def __init__(
        self,
        limits: UpSettings,
        options: Sequence[str] = (),
        *,
        command: Sequence[str] = (),
        api_workers: int = 0,
        workers: int | None = None,
        executor: str = "local",
    ) -> None:
        """`options`: those of `sereno run` that all of them get; `command`: in place of `sereno run` (for tests).

        `api_workers`: processes of an API beside the runs, each of which keeps a core free of them as far as there are enough.
        `workers`, `executor`: the settings.
        """
        warnings = [f"-W{option}" for option in sys.warnoptions]
        self.limits = limits  # of those that start from now on
        self._command = [*(command or (sys.executable, "-P", *warnings, "-m", "sereno", "run"))]
        self._options = [*options]
        self._api_workers, self.workers, self.executor = api_workers, workers, executor
        self._runs: list[_Run] = []

    @property
    def busy(self) -> frozenset[str]:
        """The models of which a run has not ended, or nobody has asked yet how."""
        return frozenset(run.model for run in self._runs)

    @property
    def pids(self) -> dict[str, int]:
        """Model → the process of its run."""
        return {run.model: run.process.pid for run in self._runs}

    def start(self, entry: Entry, scheduled: Scheduled) -> None:
        """Start the run of an entry. Raises WorkerError where the system has no room for another process."""
        label = entry.label or entry.data_date.isoformat()
        # --json: the report itself is kept with the attempt; of it the log gets a line
        # --span, not --date: should the schedule have changed, a date may be another interval by now
        asked = ["--span", span(entry.run_key, entry.data_time), "--once=ever"]
        cores, most = cores_of_runs(scheduled.run_cores or self.limits.run_cores, self._api_workers)
        workers = []
        if most is not None and self.executor == "local":  # those of a cluster are on other machines
            workers = ["--workers", str(min(most, self.workers or most))]
        command = [*self._command, str(scheduled.file), *asked, "--json", *workers, *self._options]
        prefix = f"{entry.model} {label}: "
        ours, theirs = os.pipe()
        printed = os.memfd_create(label)
        try:
            process = subprocess.Popen(
                tied(
                    command,
                    nice=self.limits.run_nice,
                    cores=cores,
                    memory_bytes=scheduled.run_memory_bytes or self.limits.run_memory_bytes,
                    dies_first=True,
                ),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=theirs,
                process_group=0,
                env={**os.environ, "SERENO_WHO": WHO},
            )
        except OSError as error:
            os.close(ours)
            os.close(printed)
            raise WorkerError(f"The run of {entry.model} {label} cannot be started: {error.strerror}.") from error
        finally:
            os.close(theirs)
        reader = threading.Thread(target=_relay, args=[ours, prefix], daemon=True)
        reader.start()
        began = time.monotonic()
        self._runs.append(
            _Run(entry.model, entry.run_key, prefix, process, reader, printed, scheduled.run_seconds, began)
        )

    def ended(self) -> list[Ended]:
        """Those that have ended since this was asked last.

        What they wrote is in the log by then.
        """
        for run in self._runs:
            run.end_in_time(self.limits.stop_seconds)
        gone = [run for run in self._runs if run.has_ended()]
        found = []
        for run in gone:
            self._runs.remove(run)
            run.reader.join(LAST_WORDS)  # a process that it left in a group of its own may keep the pipe open for ever
            with open(run.printed, "rb") as printed:
                printed.seek(0)
                report = report_in(printed.read())
            if says := said(report):
                _write(f"{run.prefix}{says}\n".encode())
            reason = "" if run.ended_at is None or run.seconds is None else took_too_long(run.seconds)
            error = str(report.get("error", ""))
            found.append(Ended(run.model, run.run_key, run.process.returncode, error, reason))
        return found

    def stop(self, seconds: float) -> list[Ended]:
        """End all of them: they are asked to, given so many seconds, and killed. They go on at their next start."""
        for run in self._runs:
            if not run.has_ended():
                run.process.terminate()
        deadline = time.monotonic() + seconds
        while self._are_left() and time.monotonic() < deadline:
            time.sleep(PATIENCE)
        for run in self._runs:
            run.kill()
        while self._are_left():
            time.sleep(PATIENCE)
        return self.ended()

    def _are_left(self) -> bool:
        return any(not run.has_ended() for run in self._runs)


def cores_of_runs(count: int | None, api_workers: int = 0) -> tuple[list[int] | None, int | None]:
    """The cores that a run may use. Their numbers, the last ones of those that this process may; None: all of them. And, in a
    container that has a quota of cores' time, no numbers but how many: which ones are free there, nobody here knows, and other
    containers of the machine would be told the same last ones.

    Without a count it is those that an API beside it leaves, at least one. To give way is not enough: on shared cores, callers
    of the API waited four to five times as long at p99 whatever the priority, on a core of its own not longer at all
    (`benchmarks/results/operate-api-*`).
    """
    if count is None and not api_workers:
        return None, None
    ours, quota = sorted(os.sched_getaffinity(0)), cores_of_quota()
    count = min(count or max(1, (quota or len(ours)) - api_workers), quota or len(ours))
    return (None, count) if quota is not None else (ours[-count:], None)


def report_in(printed: bytes) -> dict[str, Any]:
    """What a run printed: its report, or its error; nothing where it was killed, or a model prints where only we do."""
    try:
        report = json.loads(printed)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def said(report: Mapping[str, Any]) -> str:
    """What came of a run, in a line, from its report; nothing where it failed: it has said why."""
    if "state" not in report:
        return ""
    if report["state"] != "published":
        says = report["says"]
        return f"held: {says}" if report["state"] == "held" else str(says)
    counts = f"{report['predictions']:,} predictions, {report['rejects']:,} rejects"
    return f"published as version {report['version']}: {counts}."


def _relay(descriptor: int, prefix: str) -> None:
    """Write what comes through a pipe to the log, line by line, until its last writer has closed it."""
    start = prefix.encode()
    rest = b""
    with open(descriptor, "rb", buffering=0) as pipe:
        while content := pipe.read(LONGEST_LINE):
            *lines, rest = (rest + content).split(b"\n")
            if len(rest) >= LONGEST_LINE:
                lines.append(rest)
                rest = b""
            for line in lines:
                _write(start + line + b"\n")
    if rest:
        _write(start + rest + b"\n")


def _write(line: bytes) -> None:
    """One line in one piece: others write to the same log."""
    with contextlib.suppress(OSError):  # nobody reads it any more; the run goes on
        while line:
            line = line[os.write(LOG, line) :]
