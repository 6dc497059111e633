"""What the supervisor is made of, where no process is needed to see it."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from sereno.serve.control import Accept, Control, Drain, Failed, Job, Ready, Served, close_all, from_worker, to_worker

HEAVY = {"asyncio", "numpy", "pyarrow", "pandas", "uvicorn", "uvloop", "starlette", "deltalake", "httpx", "watchfiles"}


def test_the_supervisor_is_light() -> None:
    """Its memory, and the time until the first worker starts."""
    asks = "import sereno.serve.command, sereno.serve.metrics, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


JOB = Job(
    files=["a.py"], home=None, env=None, overrides={"serve.port": "0"}, slot=1, workers=2, watch=False, verbose=False
)
SERVED = Served(name="total", fingerprint="12", tries="curl URL", home="/home", log_days=None)


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
