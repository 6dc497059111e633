"""A run on a Ray that is started for it on this machine: nothing of it is left, however the run ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sereno.adapters.executors import ray_connection
from sereno.adapters.executors.ray_connection import RECONNECT, RayConnection, temporary_folder
from sereno.exceptions import WorkerError
from tests.acceptance.project import DAY, MODEL, Project
from tests.acceptance.test_up import SETTINGS, Up, published

PATIENCE = 60.0
WAITS = """
    print("scored beside", os.getppid())
    while Path("wait").exists():
        Path("began").touch()
        os.times()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Where Ray has its files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def on_ray(project: Project, place: Path) -> Project:
    project.write("total.py", MODEL.replace("    return pa.table", WAITS + "    return pa.table"))
    project.variables = {"TMPDIR": str(place)}
    return project


def processes(place: Path) -> list[psutil.Process]:
    """Ray's, of that place."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(place) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def until(happens: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_comes_and_goes_with_the_run(on_ray: Project, place: Path, tmp_path: Path) -> None:
    """What is printed is the report alone; what the model prints is seen, and nothing that Ray says."""
    local = on_ray.copy(tmp_path / "local")
    for project in (local, on_ray):
        project.rows(DAY, 150_000, parts=2)
    on_ray.settings()
    on_ray.write("sereno.toml", 'executor = "ray"\nworkers = 2\n')
    done = on_ray.sereno("run", "total.py", "--date", DAY, "--json")
    report = json.loads(done.stdout)
    assert (report["state"], report["tasks"], report["workers"]) == ("published", 2, 2)
    lines = done.stderr.splitlines()
    assert lines
    assert [line for line in lines if not line.startswith(("scored beside ", "score: "))] == []  # of progress, too
    assert list(place.iterdir()) == []
    assert processes(place) == []
    local.run()
    published, wanted = on_ray.published(), local.published()
    assert published is not None
    assert wanted is not None
    assert published.equals(wanted)
    assert on_ray.run()["state"] == "nothing"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, -15, marks=pytest.mark.soak),
    ],
)
def test_it_ends_with_the_run(on_ray: Project, place: Path, number: signal.Signals, code: int) -> None:
    on_ray.rows(DAY, 100)
    on_ray.write("wait", "")
    run = on_ray.start("run", "total.py", "--date", DAY, "--executor", "ray", "--workers", "1")
    until((on_ray.folder / "began").exists, run)
    run.send_signal(number)
    _, errors = run.communicate(timeout=10)
    assert run.returncode == code
    if number == signal.SIGINT:
        assert errors == "sereno: interrupted; finished tasks are kept, the next run goes on where this one was.\n"
    until(lambda: processes(place) == [])
    assert on_ray.published() is None


@pytest.mark.soak
def test_one_that_stood_still_goes_on(on_ray: Project) -> None:
    """Longer than a head may be silent: it was not the head that was."""
    on_ray.rows(DAY, 100)
    on_ray.write("wait", "")
    on_ray.variables |= {RECONNECT: "8"}
    run = on_ray.start("run", "total.py", "--date", DAY, "--executor", "ray", "--workers", "1", "--json")
    until((on_ray.folder / "began").exists, run)
    run.send_signal(signal.SIGSTOP)
    time.sleep(12)
    run.send_signal(signal.SIGCONT)
    time.sleep(2)
    (on_ray.folder / "wait").unlink()
    printed, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert json.loads(printed)["state"] == "published"


@pytest.mark.soak
def test_its_head_dies(on_ray: Project, place: Path) -> None:
    on_ray.rows(DAY, 100)
    on_ray.write("wait", "")
    on_ray.variables |= {RECONNECT: "8"}
    run = on_ray.start("run", "total.py", "--date", DAY, "--executor", "ray", "--workers", "1")
    until((on_ray.folder / "began").exists, run)
    (head,) = [process for process in processes(place) if process.name() == "gcs_server"]
    head.kill()
    _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1
    assert "Ray on this machine has lost its head, which has not answered for " in errors
    assert "rpc_client" not in errors
    assert list(place.iterdir()) == []


def test_what_listens_is_no_head(on_ray: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told soon; and who does not want to wait for it ends the run."""
    monkeypatch.setattr(ray_connection, "HEAD_SECONDS", 2)
    on_ray.rows(DAY, 100)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(
            WorkerError, match=f"What listens at {address} has not answered for 2 s as the head of a Ray"
        ):
            RayConnection(address)
        listener.settimeout(PATIENCE)
        listener.accept()[0].close()
        run = on_ray.start("run", "total.py", "--date", DAY, "--executor", "ray", "--set", f"ray.address={address}")
        listener.accept()[0].close()
        run.terminate()
        run.communicate(timeout=5)
        assert run.returncode == -signal.SIGTERM


def test_a_scheduled_run(on_ray: Project, place: Path) -> None:
    """It gives way to everything else, on one core, with little memory for each process."""
    on_ray.rows(DAY, 100)
    on_ray.write("total.py", (on_ray.folder / "total.py").read_text().replace("{data_date}", DAY))
    limits = "[up]\nrun_cores = 1\nrun_memory_bytes = 2_000_000_000\n"
    on_ray.write("sereno.toml", f'executor = "ray"\n{SETTINGS}\n{limits}')
    with Up(on_ray.folder, "--no-api", SERENO_UP__RUN_NICE="10", **on_ray.variables) as up:
        up.until(lambda: published(on_ray), "publish")
        up.wait_for(r"^total \d{4}-\d\d-\d\d: scored beside \d+$")
        up.until(lambda: not list(place.iterdir()), "end its Ray")  # once it has published
    assert processes(place) == []
    assert list(place.iterdir()) == []


def test_what_a_killed_run_has_left_is_removed_by_a_later_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    old = place / f"sereno-ray-{ended.stdout.strip()}-abc"
    new = place / f"sereno-ray-{int(ended.stdout)}-def"
    ours = place / f"sereno-ray-{os.getpid()}-abc"
    for folder in (old, new, ours):
        (folder / "session").mkdir(parents=True)
    for folder in (old, ours):
        os.utime(folder, (0, 0))
    made = temporary_folder()
    assert made.name.startswith(f"sereno-ray-{os.getpid()}-")
    assert {*place.iterdir()} == {made, new, ours}
