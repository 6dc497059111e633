"""`sereno up` as an operator meets it: one command, whose processes are killed, reloaded and ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.project import MODEL, Project
from tests.acceptance.server import PATIENCE, Server

SETTINGS = """
workers = 1

[models.total]
file = "total.py"
log = "off"
ready = "off"
"""


class Up(Server):
    """`with Up(folder, "--no-schedule") as up: …`: `sereno up`, ready when the block begins, ended when it is left."""

    command = "up"

    def __init__(self, folder: Path, *arguments: str, ready: bool = True, **variables: str) -> None:
        # on a busy machine, a run that gives way to whoever tests something else beside it would wait for long
        super().__init__(folder, *arguments, ready=ready, **{"SERENO_UP__RUN_NICE": "0"} | variables)

    @property
    def url(self) -> str:
        return str(self.told["api"]["url"])

    def api(self) -> int | None:
        """The pid of the API's supervisor."""
        return next(iter(self.below("serve")), None)

    def scheduler(self) -> int | None:
        return next(iter(self.below("sereno.operate.scheduling.process")), None)

    def runs(self) -> list[int]:
        """The pids of runs, those of their workers not included."""
        return self.below("run")


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    """The model `total` (y = x × weight), which is run by its schedule: the data of last night is there."""
    project = Project.new(tmp_path / "shop")
    project.write("sereno.toml", SETTINGS)
    for day in nights():
        project.rows(day, 1_000)
    return project


def nights() -> list[str]:
    """The data dates of last night, and of the next one, which may come while a test goes on."""
    today = datetime.now(UTC).date()
    return [(today - timedelta(days=1)).isoformat(), today.isoformat()]


def ask(up: Up, x: float = 3) -> Any:
    return httpx.post(f"{up.url}/predict", json={"id": 1, "x": x}, timeout=PATIENCE).json()["y"]


def answers(up: Up) -> bool:
    try:
        return httpx.get(f"{up.url}/readyz", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


def refused(folder: Path, *arguments: str, code: int, **variables: str) -> str:
    """What it says that cannot start."""
    with Up(folder, *arguments, ready=False, **variables) as up:
        assert up.process.wait(PATIENCE) == code, up.log
    return up.log


# Start


def test_it_serves(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule") as up:
        assert ask(up) == 6
        assert up.told["pid"] == up.pid
        assert up.told["home"] == str(shop.folder)
        assert up.told["scheduler"] is None
        assert up.told["api"]["pid"] == up.api()
        assert up.stop() == 0
        assert up.below() == []


def test_people_are_told_what_runs(shop: Project) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sereno", "up", "--no-schedule", "--port", "0"],
        cwd=shop.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    with process:
        assert re.fullmatch(r"Serving total on http://127.0.0.1:\d+\.\n", process.stdout.readline())
        assert process.stdout.readline() == "Ctrl-C ends it.\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_what_cannot_be_is_told_before_anything_starts(shop: Project) -> None:
    assert "there is nothing to run" in refused(shop.folder, "--no-api", "--no-schedule", code=2)
    assert "The address 0.0.0.0 can be reached from other machines" in refused(shop.folder, "--host", "0.0.0.0", code=2)
    assert "There is no setting 'up.nice'" in refused(shop.folder, "--set", "up.nice=3", code=2)
    told = refused(shop.folder, "--set", "up.run_nice=20", code=2)
    assert "'up.run_nice' is 20, from the command line. Valid: a whole number from 0 to 19." in told
    (shop.folder.parent / "total.py").write_text(MODEL)
    shop.write("sereno.toml", SETTINGS.replace("total.py", "../total.py"))
    told = refused(shop.folder, code=2)
    assert (
        f"is not below the folder of that sereno.toml: its home would be {shop.folder.parent}, not {shop.folder}"
        in told
    )
    (shop.folder / "link.py").symlink_to("../total.py")
    shop.write("sereno.toml", SETTINGS.replace("total.py", "link.py"))
    told = refused(shop.folder, code=2)
    assert (
        f"link.py, is a link to {shop.folder.parent}/total.py. A run works where that lies: its home would be" in told
    )
    shop.write("sereno.toml", "")
    assert "There is nothing to run: no model of sereno.toml" in refused(shop.folder, code=2)
    assert not (shop.folder / ".sereno").exists()


def test_a_second_one_is_refused(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule") as up:
        told = refused(shop.folder, "--no-schedule", code=1)
        assert f"`sereno up` runs already for {shop.folder} on this machine (pid {up.pid})" in told
        elsewhere = shop.folder.with_name("elsewhere")
        with Up(shop.folder, "--no-schedule", "--home", str(elsewhere)):
            assert ask(up) == 6


def test_a_port_that_is_taken_is_tried_again(shop: Project) -> None:
    with Server(shop.folder, "total.py") as server:
        port = ("--port", str(server.port))
        with Up(shop.folder, "--no-schedule", *port, ready=False) as up:
            up.wait_for(r"^sereno: Port \d+ is taken by another `sereno serve`")
            up.wait_for("^sereno: the API ended with exit code 1. Another one starts now.$")
            assert server.stop() == 0
            up.until(lambda: bool(up.told), "take the port")
            assert ask(up) == 6


def test_an_api_that_does_not_start_keeps_no_schedule_waiting(shop: Project) -> None:
    weight = (shop.folder / "weight.txt").read_text()
    (shop.folder / "weight.txt").unlink()
    shop.write("sereno.toml", SETTINGS + "scheduled = false\n")
    with Up(shop.folder) as up:
        assert up.told["api"] is None
        assert up.told["scheduler"]["models"] == []
        up.wait_for("^sereno: the API ended with exit code 1. Another one starts now.$")
        (shop.folder / "weight.txt").write_text(weight)
        (line,) = up.wait_for(r"^sereno: the API is ready now \(pid \d+\) on http://\S+\.$")
        url = line.partition(" on ")[2].rstrip(".")
        assert httpx.post(f"{url}/predict", json={"id": 1, "x": 3}, timeout=PATIENCE).json()["y"] == 6


def test_its_own_workers_are_the_api_s(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule", "--workers", "2") as up:
        assert up.told["api"]["workers"] == 2
        up.wait_for_all(2)


# Reload


def test_it_reads_what_was_changed(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule") as up:
        shop.write("weight.txt", "3")
        up.wait_for("sereno: reloaded")
        assert ask(up) == 9
        up.reload()
        shop.write("sereno.toml", SETTINGS + "wrong = 1\n")
        up.wait_for("sereno: the settings were read again and refused; those before stay: .*'models.total.wrong'")
        up.wait_for("sereno: the reload was refused, total")
        up.send(signal.SIGHUP)
        up.wait_for("sereno: the settings were read again and refused", times=2)
        assert ask(up) == 9
        before = up.log.count("sereno: reloaded")
        shop.write("weight.txt", "4")
        shop.write("sereno.toml", SETTINGS)
        up.wait_for("sereno: reloaded", times=before + 1)
        up.until(lambda: ask(up) == 12, "answer by the new weight")


# What dies


def test_the_api_is_started_again(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule", "--port", "0") as up:
        pid = up.api()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        up.wait_for("sereno: the API was ended by signal 9. Another one starts now.")
        up.wait_for(r"sereno: the API is back \(pid \d+\)")
        assert up.api() != pid
        assert ask(up) == 6  # on the port that it had, though any would do


def test_nobody_outlives_it_and_the_next_one_starts_at_once(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule") as up:
        port, left = up.port, [psutil.Process(pid) for pid in up.below()]
        assert len(left) >= 2
        up.process.kill()
        up.process.wait()
        with Up(shop.folder, "--no-schedule", "--port", str(port)) as following:
            assert ask(following) == 6
            following.until(lambda: not any(one.is_running() and one.status() != "zombie" for one in left), "be alone")


# Runs


def published(shop: Project, model: str = "total") -> list[Any]:
    """The versions of a model, once there is one."""
    if not (shop.folder / "predictions" / model / "_delta_log").exists():
        return []
    return list(shop.look("versions", model))


def test_a_fresh_project_publishes_last_night_by_itself(shop: Project) -> None:
    with Up(shop.folder) as up:
        assert up.told["scheduler"]["models"] == ["total"]
        up.wait_for(r"^total \d{4}-\d\d-\d\d: published as version 1: 1,000 predictions, 0 rejects\.$")
        assert published(shop)[0]["data_date"] in nights()
        found = f"{up.url}/predictions/7"
        up.until(lambda: httpx.get(found, timeout=PATIENCE).status_code == 200, "answer from it")
        assert httpx.get(found).json()["prediction"]["y"] == 7 / 8 * 2
        assert up.stop() == 0
    assert len(published(shop)) == 1


SAYS_WHAT_IT_MAY = """
    if Path(__file__).with_name("ask").exists():
        import json, resource
        print(json.dumps([os.nice(0), os.sched_getscheduler(0), len(os.sched_getaffinity(0)),
                          resource.getrlimit(resource.RLIMIT_DATA)[0]]))
"""


def test_runs_keep_to_their_limits_and_write_to_one_log(shop: Project) -> None:
    shop.write("total.py", MODEL.replace("    return pa.table", SAYS_WHAT_IT_MAY + "    return pa.table"))
    shop.write("ask", "")
    shop.write("sereno.toml", f"{SETTINGS}\n[up]\nrun_memory_bytes = 4_000_000_000\n")
    with Up(shop.folder, "--set", "up.run_nice=7") as up:
        (line,) = up.wait_for(r"^total \d{4}-\d\d-\d\d: \[")
        assert json.loads(line.partition(": ")[2]) == [
            os.nice(0) + 7,
            os.SCHED_BATCH,
            max(1, len(os.sched_getaffinity(0)) - 1),  # one is the API's
            4_000_000_000,
        ]
        assert psutil.Process(up.api() or 0).nice() == os.nice(0)
        up.until(lambda: published(shop), "publish")


def test_a_run_that_wants_more_memory_than_it_may_fails_alone(shop: Project) -> None:
    shop.write("total.py", MODEL.replace("    return pa.table", "    bytearray(8_000_000_000)\n    return pa.table"))
    shop.write("sereno.toml", f"{SETTINGS}\n[up]\nrun_memory_bytes = 4_000_000_000\n")
    with Up(shop.folder) as up:
        up.wait_for(r"^total \d{4}-\d\d-\d\d: sereno: .*MemoryError")
        up.until(lambda: shop.look("runs", "total")[-1]["state"] == "failed", "tell that it failed")
    assert published(shop) == []


WAITS = """
    Path(__file__).with_name("began").touch()
    while Path(__file__).with_name("wait").exists():
        import time
        time.sleep(0.01)
"""


def test_a_run_that_is_cut_off_goes_on_with_the_next_one(shop: Project) -> None:
    shop.write("total.py", MODEL.replace("    return pa.table", WAITS + "    return pa.table"))
    shop.write("wait", "")
    with Up(shop.folder, "--set", "up.stop_seconds=0.5") as up:
        up.until(lambda: (shop.folder / "began").exists(), "begin")
        runs = up.runs()
        assert len(runs) == 1
        assert up.stop() == 0
        assert not psutil.pid_exists(runs[0])
    assert published(shop) == []
    (shop.folder / "wait").unlink()
    with Up(shop.folder) as up:
        up.until(lambda: published(shop), "publish")
    assert len(published(shop)) == 1


def test_as_many_runs_go_on_at_once_as_are_said(shop: Project) -> None:
    settings = SETTINGS + '[models.other]\nfile = "other.py"\nlog = "off"\nready = "off"\n'
    waits = MODEL.replace("    return pa.table", WAITS + "    return pa.table")
    shop.write("total.py", waits)
    shop.write("other.py", waits.replace('"total"', '"other"'))
    shop.write("wait", "")
    shop.write("sereno.toml", settings)
    with Up(shop.folder) as up:
        up.until(lambda: (shop.folder / "began").exists(), "begin")
        assert len(up.runs()) == 1
        shop.write("sereno.toml", settings + "[up]\nmax_runs = 2\n")
        up.until(lambda: len(up.runs()) == 2, "begin the other one, too")
        (shop.folder / "wait").unlink()
        up.until(lambda: published(shop) and published(shop, "other"), "publish")


def test_a_model_that_is_added_is_run_and_served(shop: Project) -> None:
    with Up(shop.folder) as up:
        up.until(lambda: published(shop), "publish")
        shop.write("other.py", MODEL.replace('"total"', '"other"'))
        shop.write("sereno.toml", SETTINGS + '[models.other]\nfile = "other.py"\nlog = "off"\nready = "off"\n')
        up.until(lambda: published(shop, "other"), "publish the new model, too")
        up.until(lambda: httpx.get(f"{up.url}/models/other/predict").status_code == 405, "serve it")


# Whatever is killed

TARGETS: dict[str, Callable[[Up], list[int]]] = {
    "up": lambda up: [up.pid],
    "the API": lambda up: up.below("serve"),
    "a worker of the API": lambda up: up.workers(),
    "the scheduler": lambda up: up.below("sereno.operate.scheduling.process"),
    "a run": lambda up: up.runs(),
    "any": lambda up: [pid for pid in up.below() if pid not in up.runs()],
}
# Of 20; a run that is killed is tried again after some seconds, so of those there are few
OFTEN = {"up": 2, "the API": 3, "a worker of the API": 4, "the scheduler": 4, "a run": 1, "any": 6}
PLAIN = MODEL.replace(', artifacts={"weight": "weight.txt"}', "").replace("weight: Path", "")
PLAIN = PLAIN.replace("float(weight.read_text())", "2.0")  # never a no-op by its revision
SLOW = PLAIN.replace("    return pa.table", "    import time\n    time.sleep(0.2)\n    return pa.table")


@pytest.mark.parametrize(
    ("twenties", "days", "names"),
    [(1, 3, 2), pytest.param(10, 15, 4, marks=[pytest.mark.soak, pytest.mark.timeout(0)])],
)
def test_whatever_is_killed_comes_back_and_each_night_is_published_once(
    shop: Project, twenties: int, days: int, names: int
) -> None:
    chance = random.Random(5)
    models = [f"total{number}" for number in range(names)]
    today = datetime.now(UTC).date()
    nights = [(today - timedelta(days=back)).isoformat() for back in range(days + 1, -1, -1)]
    settings = "[up]\nmax_runs = 2\n"
    for model in models:
        shop.write(f"{model}.py", SLOW.replace('"total"', f'"{model}"'))
        settings += f'[models.{model}]\nfile = "{model}.py"\nlog = "off"\nready = "off"\ndisposition = "partition"\n'
        settings += "retries = 1000\nretry_seconds = 100000\n"
    shop.write("sereno.toml", settings)
    for night in nights:
        shop.rows(night, 1_000)
    shop.within = True
    for model in models:  # with this one known, all those after it are due
        shop.sereno("run", f"{model}.py", "--date", nights[0])
    deck = [name for name, often in OFTEN.items() for _ in range(often * twenties)]
    chance.shuffle(deck)
    took, killed, port = [(0.0, "")], Counter[str](), "0"
    while deck:
        with Up(shop.folder, "--port", port) as up:
            port = str(up.port)
            while deck and up.process.poll() is None:
                threading.Event().wait(chance.uniform(0, 0.3))
                name = deck.pop()
                pids = TARGETS[name](up) or up.below()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
                    killed[name] += 1
                if name == "up":
                    up.process.wait()
                    break
                started = monotonic()
                up.until(lambda: answers(up) and up.scheduler() is not None, "be back")
                took.append((monotonic() - started, name))
    print(f"{dict(killed)}; seconds until it was back: {sorted(took)[-5:]}, mostly {sorted(took)[len(took) // 2]}")
    with Up(shop.folder, "--port", port) as up:
        for model in models:
            for count in range(1, days + 2):
                up.until(lambda: len(published(shop, model)) >= count, f"publish night {count} of {model}")  # noqa: B023
        assert up.stop() == 0
    for model in models:
        dates = [version["data_date"] for version in published(shop, model)]
        assert sorted(dates)[: days + 1] == nights[: days + 1]
        assert len(set(dates)) == len(dates)
