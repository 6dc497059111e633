"""`sereno up` as an operator meets it: one command, whose processes are killed, reloaded and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.project import Project
from tests.acceptance.server import PATIENCE, Server

SETTINGS = """
workers = 1

[models.total]
file = "total.py"
log = "off"
"""


class Up(Server):
    """`with Up(folder, "--no-schedule") as up: …`: `sereno up`, ready when the block begins, ended when it is left."""

    command = "up"

    @property
    def url(self) -> str:
        return str(self.told["api"]["url"])

    def api(self) -> int | None:
        """The pid of the API's supervisor."""
        return next(iter(self.below("serve")), None)

    def scheduler(self) -> int | None:
        return next(iter(self.below("sereno.operate.process")), None)

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


def test_nobody_outlives_it_and_the_next_one_starts_at_once(shop: Project) -> None:
    with Up(shop.folder, "--no-schedule") as up:
        port, left = up.port, [psutil.Process(pid) for pid in up.below()]
        assert len(left) >= 2
        up.process.kill()
        up.process.wait()
        with Up(shop.folder, "--no-schedule", "--port", str(port)) as following:
            assert ask(following) == 6
            following.until(lambda: not any(one.is_running() and one.status() != "zombie" for one in left), "be alone")
