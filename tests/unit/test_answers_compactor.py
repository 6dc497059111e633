"""The compactor and its passes, as processes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.answers.folder import segments_folder
from sereno.serve.processes.compacting import Compacting
from sereno.serve.processes.control import Served
from sereno.serve.processes.ending import Ending


@pytest.fixture
def silent() -> Iterator[str]:
    """A store that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_compactor_that_is_to_end_before_it_has_begun_ends_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Ending, "end", lambda _, process: started.append(process))
    compacting = Compacting(lambda text: None)
    compacting.serve(
        [Served(name="total", fingerprint="1", tries="", home=str(tmp_path), log_days=3, is_looked_up=False)]
    )
    compacting.stop()
    (process,) = started
    process.terminate()  # its interpreter has not started yet
    assert process.wait(20) == 0  # so its last pass was made, if it has one to make
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_pass_ends_with_its_compactor(tmp_path: Path, silent: str) -> None:
    segments_folder(tmp_path, "total").mkdir(parents=True)
    keys = {"AWS_ENDPOINT_URL": silent, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    command = [sys.executable, "-m", "sereno.answers.compactor", str(tmp_path), "--storage=s3://bank"]
    command += ["--every=0.1", "--days=total=30"]  # old ones are dropped, if there are any
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as held:
        process = subprocess.Popen(command, env=os.environ | keys, pass_fds=[writing], stdout=writing)
        os.close(writing)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            assert process.poll() is None
        process.kill()
        process.wait()
        ended, _, _ = select.select([held], [], [], 20)  # it is at its end when nobody is left that has it open
        assert ended
