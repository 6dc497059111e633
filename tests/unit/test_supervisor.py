"""What the supervisor is made of, where no process is needed to see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sereno.exceptions import WorkerError
from sereno.serve.processes.compacting import Compacting
from sereno.serve.processes.control import (
    Accept,
    Control,
    Drain,
    Failed,
    Job,
    Ready,
    Served,
    close_all,
    from_worker,
    to_worker,
)
from sereno.serve.processes.process import start_worker

HEAVY = {"asyncio", "numpy", "pyarrow", "pandas", "uvicorn", "uvloop", "starlette", "deltalake", "httpx", "watchfiles"}


def test_the_supervisor_is_light() -> None:
    """Its memory, and the time until the first worker starts."""
    asks = "import sereno.serve.command, sereno.serve.metrics, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


JOB = Job(
    files=["a.py"], home=None, env=None, overrides={"serve.port": "0"}, slot=1, workers=2, watch=False, verbose=False
)
SERVED = Served(name="total", fingerprint="12", tries="curl URL", home="/home", log_days=None, is_looked_up=False)


def test_messages_arrive_whole_with_their_descriptors() -> None:
    control, other = Control.pair()
    theirs = Control(other)
    with pytest.raises(BlockingIOError):
        control.receive()
    for message in (JOB, Accept(1), Drain(seconds=1.0, accept_seconds=None)):
        control.send(message, [other.fileno()])
    for message in (JOB, Accept(1), Drain(seconds=1.0, accept_seconds=None)):
        content, descriptors = theirs.receive()
        assert to_worker(content) == message
        assert len(descriptors) == 1
        close_all(descriptors)
    for answer in (Ready([SERVED], 1.0, ""), Failed("ModelFileError", "x" * 20_000)):
        theirs.send(answer)
        assert from_worker(control.receive()[0]) == answer
    theirs.close()
    assert control.receive() == (b"", [])
    control.close()


def test_nothing_but_messages_is_understood() -> None:
    for content in (b"", b"{}", b'{"type": "Job"}', b"[1]", b'{"type": "Accept", "place": "1"}'):
        with pytest.raises(msgspec.DecodeError):
            to_worker(content)


def test_no_process_and_no_descriptor_are_failures_like_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    said: list[str] = []
    compacting = Compacting(said.append)
    for module, name in ((subprocess, "Popen"), (Control, "pair")):
        monkeypatch.setattr(module, name, fail)
        with pytest.raises(WorkerError, match=r"No worker can be started: Resource temporarily unavailable\."):
            start_worker()
        compacting.serve(
            [Served(name="total", fingerprint="12", tries="", home=str(tmp_path), log_days=3, is_looked_up=False)]
        )
    (line,) = said  # it waits, and tries again
    assert "cannot be started: Resource temporarily unavailable. It starts again in 2 s" in line


def test_a_compactor_whose_parent_was_gone_before_it_asked_ends(tmp_path: Path) -> None:
    """It inherits the pipe, so that the pipe's end tells of its own."""
    starts = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-P', '-m', 'sereno.answers.compactor', "
        f"sys.argv[1], f'--parent={{os.getpid()}}']); os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", starts, os.fspath(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
