"""Runs as the scheduler starts them: their limits, their words, their end."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic

import psutil
import pytest

from sereno.exceptions import WorkerError
from sereno.ledger import Entry
from sereno.operate.scheduling import runs as module
from sereno.operate.scheduling.endings import Ended
from sereno.operate.scheduling.runs import Runs, cores_of_runs
from sereno.settings import UpSettings

PATIENCE = 60.0
SPAN = "2026-05-01T00:00Z/2026-05-02T00:00Z"


@dataclass
class Scheduled:
    file: str
    run_seconds: float | None = None
    run_cores: int | None = None
    run_memory_bytes: int | None = None


def entry(model: str = "churn", label: str = "2026-05-01") -> Entry:
    now = datetime(2026, 5, 2, tzinfo=UTC)
    return Entry(
        model=model,
        run_key="2026-05-01T00:00Z",
        data_date=date(2026, 5, 1),
        data_time=now,
        state="due",
        since=now,
        label=label,
    )


def until(true: Callable[[], object]) -> None:
    deadline = monotonic() + PATIENCE
    while not true():
        assert monotonic() < deadline
        threading.Event().wait(0.01)


def command(text: str) -> list[str]:
    """In place of `sereno run`: a script that gets its arguments."""
    return [sys.executable, "-I", "-S", "-c", text]


@pytest.fixture(autouse=True)
def no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the container has in which the tests run."""
    monkeypatch.setattr(module, "cores_of_quota", lambda: None)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """What runs write, instead of our stderr."""
    with (tmp_path / "log").open("ab", buffering=0) as file:
        monkeypatch.setattr(module, "LOG", file.fileno())
        yield lambda: (tmp_path / "log").read_text()


def end(runs: Runs) -> list[Ended]:
    """Wait until all have ended."""
    ended = []
    while runs.busy:
        ended += runs.ended()
        threading.Event().wait(0.01)
    return ended


def started(text: str, limits: UpSettings = UpSettings(), options: list[str] | None = None) -> Runs:  # noqa: B008
    runs = Runs(limits, options or [], command=command(text))
    runs.start(entry(), Scheduled("churn.py"))
    return runs


def test_it_is_the_command_that_a_person_would_type(log: Callable[[], str]) -> None:
    runs = started(
        "import sys; print('a report'); print(sys.argv[1:], file=sys.stderr)", options=["--home", "here", "--set=a=b"]
    )
    assert runs.busy == {"churn"}
    assert end(runs) == [Ended("churn", "2026-05-01T00:00Z", 0)]  # what is no report is nobody's business
    given = ["churn.py", "--span", SPAN, "--once=ever", "--json", "--home", "here", "--set=a=b"]
    assert log() == f"churn 2026-05-01: {given}\n"
    assert Runs(UpSettings())._command[-3:] == ["-m", "sereno", "run"]


def test_an_entry_without_a_label_is_named_by_its_date(log: Callable[[], str]) -> None:
    runs = Runs(UpSettings(), command=command("import sys; print('hello', file=sys.stderr)"))
    runs.start(entry(label=""), Scheduled("churn.py"))
    end(runs)
    assert log() == "churn 2026-05-01: hello\n"


def test_how_they_ended(log: Callable[[], str]) -> None:
    runs = Runs(
        UpSettings(), command=command("import os, sys; os.kill(os.getpid(), 9) if 'a' in sys.argv[1] else sys.exit(3)")
    )
    runs.start(entry("a"), Scheduled("a"))
    runs.start(entry("b"), Scheduled("b"))
    assert {(one.model, one.code) for one in end(runs)} == {("a", -9), ("b", 3)}
    assert runs.ended() == []


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            {"state": "published", "version": 3, "predictions": 1998, "rejects": 2, "says": ""},
            "churn 2026-05-01: published as version 3: 1,998 predictions, 2 rejects.\n",
        ),
        ({"state": "held", "version": None, "says": "row count: …"}, "churn 2026-05-01: held: row count: …\n"),
        ({"state": "nothing", "version": 2, "says": "Published already."}, "churn 2026-05-01: Published already.\n"),
        ({"error": "SourceError", "says": "It said so itself."}, ""),
    ],
)
def test_what_came_of_it_is_a_line(log: Callable[[], str], report: dict[str, object], line: str) -> None:
    end(started(f"print({json.dumps(json.dumps(report))})"))
    assert log() == line


WHAT_IT_MAY = """
import json, os, resource, sys
print(json.dumps({
    "nice": os.nice(0), "policy": os.sched_getscheduler(0), "cores": sorted(os.sched_getaffinity(0)),
    "memory": resource.getrlimit(resource.RLIMIT_DATA)[0], "first": int(open("/proc/self/oom_score_adj").read()),
}), file=sys.stderr)
"""


def what_it_may(limits: UpSettings, log: Callable[[], str]) -> dict[str, object]:
    end(started(WHAT_IT_MAY, limits))
    told: dict[str, object] = json.loads(log().splitlines()[-1].removeprefix("churn 2026-05-01: "))
    return told


def test_it_gives_way(log: Callable[[], str]) -> None:
    ours = sorted(os.sched_getaffinity(0))
    told = what_it_may(UpSettings(), log)
    assert told == {"nice": 19, "policy": os.SCHED_IDLE, "cores": ours, "memory": -1, "first": 500}
    told = what_it_may(UpSettings(run_nice=0), log)
    assert (told["nice"], told["policy"]) == (os.nice(0), os.SCHED_OTHER)
    told = what_it_may(UpSettings(run_nice=10), log)
    assert (told["nice"], told["policy"]) == (os.nice(0) + 10, os.SCHED_BATCH)


def test_it_gets_as_many_cores_as_are_said(log: Callable[[], str]) -> None:
    ours = sorted(os.sched_getaffinity(0))
    assert what_it_may(UpSettings(run_cores=1), log)["cores"] == ours[-1:]
    assert what_it_may(UpSettings(run_cores=99), log)["cores"] == ours
    assert what_it_may(UpSettings(), log)["cores"] == ours


def test_it_leaves_the_api_a_core_for_each_of_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 4, 5})
    assert cores_of_runs(None) == (None, None)  # no API beside it
    assert cores_of_runs(None, api_workers=1) == ([4, 5, 7], None)
    assert cores_of_runs(None, api_workers=3) == ([7], None)
    assert cores_of_runs(None, api_workers=4) == ([7], None)  # at least one, whatever the API would have
    assert cores_of_runs(2, api_workers=3) == ([5, 7], None)  # what was set is what it gets


def test_of_a_containers_quota_it_has_a_share_and_of_the_machine_any_core(
    monkeypatch: pytest.MonkeyPatch, log: Callable[[], str]
) -> None:
    monkeypatch.setattr(module, "cores_of_quota", lambda: 3)
    assert cores_of_runs(None) == (None, None)
    assert cores_of_runs(None, api_workers=1) == (None, 2)
    assert cores_of_runs(None, api_workers=4) == (None, 1)
    assert cores_of_runs(2, api_workers=3) == (None, 2)
    assert cores_of_runs(8) == (None, 3)
    shown = "import os, sys; print(sys.argv[6:], os.sched_getaffinity(0), file=sys.stderr)"
    for workers, executor, said in ((None, "local", 2), (1, "local", 1), (8, "local", 2), (8, "ray", None)):
        runs = Runs(UpSettings(run_cores=2), command=command(shown), workers=workers, executor=executor)
        runs.start(entry(), Scheduled("churn.py"))
        end(runs)
        given = ["--workers", str(said)] if said is not None else []
        assert log().splitlines()[-1] == f"churn 2026-05-01: {given} {os.sched_getaffinity(0)}"


def test_it_gets_as_much_memory_as_is_said(log: Callable[[], str]) -> None:
    assert what_it_may(UpSettings(run_memory_bytes=1 << 30), log)["memory"] == 1 << 30
    code = end(started("x = bytearray(200_000_000)", UpSettings(run_memory_bytes=100_000_000)))[0][2]
    assert code == 1
    assert "churn 2026-05-01: MemoryError\n" in log()


def test_limits_may_change_between_two_runs(log: Callable[[], str]) -> None:
    runs = Runs(UpSettings(), command=command(WHAT_IT_MAY))
    for nice in (5, 7):
        runs.limits = replace(runs.limits, run_nice=nice)
        runs.start(entry(), Scheduled("churn.py"))
        end(runs)
    assert [json.loads(line.partition(": ")[2])["nice"] - os.nice(0) for line in log().splitlines()] == [5, 7]


def test_lines_are_whole_and_none_is_lost(log: Callable[[], str]) -> None:
    text = """
import os, sys
name = sys.argv[1]
for i in range(2000):
    line = f"{name} {i} " + "x" * (i % 300) + "\\n"
    half = i % len(line)
    os.write(2, line[:half].encode()); os.write(2, line[half:].encode())
os.write(2, b"the last")
"""
    runs = Runs(UpSettings(), command=command(text))
    for model in "abc":
        runs.start(entry(model), Scheduled(model))
    end(runs)
    lines = log().splitlines()
    for model in "abc":
        own = [line.removeprefix(f"{model} 2026-05-01: ") for line in lines if line.startswith(f"{model} 2026")]
        assert own == [f"{model} {i} " + "x" * (i % 300) for i in range(2000)] + ["the last"]
    assert len(lines) == 3 * 2001


def test_a_line_without_an_end_does_not_fill_the_memory(log: Callable[[], str]) -> None:
    end(started("import os; [os.write(2, b'y' * 1000) for _ in range(1000)]"))
    lines = log().splitlines()
    assert sum(line.count("y") for line in lines) == 1_000_000
    assert max(map(len, lines)) < 4 * module.LONGEST_LINE


def test_what_a_run_leaves_behind_ends_with_it(log: Callable[[], str], tmp_path: Path) -> None:
    runs = started(
        "import os, subprocess, sys;"
        "print(subprocess.Popen(['sleep', '600']).pid, file=sys.stderr, flush=True);"
        "os._exit(1)"
    )
    assert end(runs)[0][2] == 1
    pid = int(log().rpartition(" ")[2])
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_stop_asks_first(log: Callable[[], str]) -> None:
    text = "import signal, sys, time; signal.signal(15, {}); print('up', file=sys.stderr, flush=True); time.sleep(600)"
    polite, deaf = text.format("lambda *_: sys.exit(7)"), text.format("signal.SIG_IGN")
    for text, seconds, code in ((polite, PATIENCE, 7), (deaf, 0.1, -9)):
        before = log().count("up")
        runs = started(text)
        until(lambda: log().count("up") > before)  # noqa: B023
        assert runs.stop(seconds) == [Ended("churn", "2026-05-01T00:00Z", code)]
        assert runs.busy == frozenset()


def test_no_run_outlives_who_started_it(tmp_path: Path) -> None:
    text = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tests.unit.test_operate_runs import *
runs = started("import time; time.sleep(600)")
process = psutil.Process(runs.pids["churn"])
until(lambda: process.cmdline()[4] == "import time; time.sleep(600)")
print(runs.pids["churn"], flush=True)
time.sleep(600)
"""
    with psutil.Popen([sys.executable, "-c", text], stdout=-1, text=True) as process:
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_no_room_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerError, match="The run of churn 2026-05-01 cannot be started: Resource temporarily"):
        started("pass")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_it_failed_of_is_told(log: Callable[[], str]) -> None:
    runs = started('print(\'{"error": "BusyError", "says": "Wait."}\'); raise SystemExit(1)')
    assert end(runs) == [Ended("churn", "2026-05-01T00:00Z", 1, "BusyError")]


def test_a_model_has_limits_of_its_own(log: Callable[[], str]) -> None:
    runs = Runs(UpSettings(run_memory_bytes=1 << 34), command=command(WHAT_IT_MAY))
    runs.start(entry(), Scheduled("churn.py", run_cores=1, run_memory_bytes=1 << 30))
    end(runs)
    told = json.loads(log().partition(": ")[2])
    assert (told["cores"], told["memory"]) == (sorted(os.sched_getaffinity(0))[-1:], 1 << 30)


@pytest.mark.parametrize("asked", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_a_run_that_takes_longer_than_it_may_is_ended(log: Callable[[], str], asked: str) -> None:
    text = f"import signal, time; signal.signal(15, {asked}); time.sleep(600)"
    runs = Runs(UpSettings(stop_seconds=0.1), command=command(text))
    runs.start(entry(), Scheduled("churn.py", run_seconds=0.5))
    (ended,) = end(runs)
    assert ended.code in (-15, -9)
    assert ended.reason.startswith("RunError: It took longer than run_seconds (0.5), and was ended.")
