"""A server on a node, as the process that a cluster starts there has it: without any cluster."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from sereno.serve.on_ray import replica as module
from sereno.serve.on_ray.replica import Replica, Spec, Status

MODEL = (Path(__file__).parents[1] / "models" / "weighted.py").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "total.py").write_text(MODEL)
    (tmp_path / "weight.txt").write_text("2")
    (tmp_path / "sereno.toml").write_text("")
    return tmp_path


def spec(folder: Path, **variables: str) -> Spec:
    return Spec(
        arguments=["--port", "0", "--", "total.py"], folder=str(folder), host=None, variables=variables, version="1"
    )


def status(replica: Replica) -> Status:
    return msgspec.json.decode(replica.status(), type=Status)


def wait_for(replica: Replica, true: Callable[[Status], object]) -> Status:
    deadline = time.monotonic() + 60
    while not true(found := status(replica)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def started(one: Spec) -> Iterator[tuple[Replica, threading.Event]]:
    left = threading.Event()
    replica = Replica(msgspec.json.encode(one), "127.0.0.1", left.set)
    try:
        yield replica, left
    finally:
        replica.kill()


def test_it_serves_reloads_refuses_drains_and_stays(folder: Path) -> None:
    with started(spec(folder, SERENO_MODELS__TOTAL__LOG="off")) as (replica, left):
        ready = wait_for(replica, lambda now: now.state == "ready")
        assert httpx.post(f"{ready.url}/predict", json={"id": 1, "x": 1.5}).json() == {"y": 3.0}
        assert not (folder / ".sereno" / "answers").exists()  # the variable reached it

        (folder / "weight.txt").write_text("4")
        replica.reload()
        assert wait_for(replica, lambda now: now.reloads == 1).refused == ""
        assert httpx.post(f"{ready.url}/predict", json={"id": 1, "x": 1.5}).json() == {"y": 6.0}

        (folder / "weight.txt").write_text("much")
        replica.reload()
        assert "load raised ValueError" in wait_for(replica, lambda now: now.reloads == 2).refused

        replica.stop()
        wait_for(replica, lambda now: now.state == "ended")
        assert not left.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(ready.pid, 0)


def test_a_server_that_is_killed_has_its_process_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_SECONDS", 0.2)
    with started(spec(folder)) as (replica, left):
        now = wait_for(replica, lambda now: now.state == "ready")
        os.kill(now.pid, signal.SIGKILL)
        assert "the server ended by signal 9." in wait_for(replica, lambda now: now.state == "failed").says
        assert left.wait(30)


def test_one_that_stands_still_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(module, "HANGS_SECONDS", 0.5)
    with started(spec(folder)) as (replica, left):
        now = wait_for(replica, lambda now: now.state == "ready")
        for process in (psutil.Process(now.pid), *(below := psutil.Process(now.pid).children(recursive=True))):
            process.suspend()
        wait_for(replica, lambda now: "has not answered for 0.5 s" in now.says or "by signal 9" in now.says)
        assert left.wait(30)
    psutil.wait_procs(below, 30)
    assert not [process for process in below if process.is_running()]


@pytest.mark.parametrize(
    ("weight", "moved", "error", "says"),
    [("much", "", "PredictError", "load raised ValueError"), ("2", "/not/there", "StorageError", "Every node needs")],
)
def test_what_cannot_start_says_why_and_another_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weight: str, moved: str, error: str, says: str
) -> None:
    monkeypatch.setattr(module, "FAILED_SECONDS", 0.2)
    (folder / "weight.txt").write_text(weight)
    with started(spec(Path(moved) if moved else folder)) as (replica, left):
        assert left.wait(60)
        now = status(replica)
        assert (now.state, now.error) == ("failed", error)
        assert says in now.says


def test_secrets_are_the_nodes_own_and_rays_token_is_not_handed_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERENO_SECRET_API_KEYS", "sha256:" + "0" * 64)
    monkeypatch.setenv("SERENO_LOOKUP_STORE", "redis://127.0.0.1:1")
    monkeypatch.setenv("SERENO_SERVE__PORT", "1")
    monkeypatch.setenv("SERENO_VALUES__TOKEN", "t0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with started(msgspec.structs.replace(spec(folder), own={"SERENO_VALUES__TOKEN": "a hash"})) as (replica, _):
        now = wait_for(replica, lambda now: now.state == "ready")
        assert httpx.post(f"{now.url}/predict", json={"id": 1, "x": 1.5}).status_code == 401
        variables = Path(f"/proc/{now.pid}/environ").read_bytes()
        assert b"RAY_" not in variables
        assert b"SERENO_LOOKUP_STORE=redis://127.0.0.1:1\0" in variables
        assert b"SERENO_VALUES__TOKEN=t0\0" in variables
        assert b"SERENO_SERVE__PORT" not in variables


def test_a_node_without_what_is_not_sent_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAILED_SECONDS", 0.2)
    with started(msgspec.structs.replace(spec(folder), own={"SERENO_LOOKUP_STORE": "0a1b2c3d"})) as (replica, left):
        assert left.wait(60)
        assert status(replica).error == "SettingsError"
        assert "SERENO_LOOKUP_STORE is set where the command was started, but not" in status(replica).says


def test_what_is_asked_for_is_told_apart_by_its_digest(folder: Path) -> None:
    assert spec(folder, A="1", B="2").digest == spec(folder, B="2", A="1").digest
    assert spec(folder).digest != spec(folder, A="1").digest != spec(folder / "x", A="1").digest
