"""Whoever ends a server gives it the time that it may take: `sereno up`, systemd, a container engine, Kubernetes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sereno.config import load_settings
from sereno.deploy.docker import Image, default_base
from sereno.deploy.docker import next_steps as steps_of
from sereno.deploy.kubernetes import STOP_SECONDS, Kubernetes
from sereno.deploy.server import Server
from sereno.deploy.stopping import stop_seconds
from sereno.operate.up import command
from sereno.operate.up.children import GRACE
from sereno.serve.options import Options
from sereno.serve.processes.compacting import Compacting
from sereno.serve.processes.indexing import Indexing

TIMES = [(25.0, 20.0), (90.5, 20.0), (25.0, 300.0), (0.0, 0.0)]


def longest(drain: float) -> float:
    """From the SIGTERM until the last process of a server was killed: workers drain, then one after the other is waited for."""
    beside = (Compacting(lambda _: None), Indexing(lambda _: None, lambda _: None))
    return drain + sum(one._ending._seconds for one in beside)


@pytest.mark.parametrize(("drain", "runs"), TIMES)
def test_a_server_has_the_time_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drain: float, runs: float
) -> None:
    (tmp_path / "sereno.toml").write_text(
        f'[serve]\ndrain_seconds = {drain}\n[up]\nstop_seconds = {runs}\n[models.m]\nfile = "m.py"\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = load_settings(tmp_path)

    found = []
    monkeypatch.setattr(command, "Children", lambda children, *_, **__: found.extend(children) or Ends())
    given: dict[str, Any] = {"verbose": False, "as_json": False, "tell": print, "note": print}
    command.up(Options(files=[]), workers=None, api=True, schedule=True, **given)
    seconds = {child.name: child.seconds_to_end(settings) for child in found}
    assert seconds == {command.API: longest(drain), command.SCHEDULER: runs}

    whole = stop_seconds(settings)
    assert whole > max(seconds.values()) + GRACE
    unit = Server(project=tmp_path, home=tmp_path, name="bank", user="daemon", stop_seconds=whole).units()
    assert f"\nTimeoutStopSec={whole}\n" in unit["bank.service"]
    image = Image(project=tmp_path, name="bank", included=[], requirements=tmp_path / "r.txt", base=default_base())
    assert any(f"--stop-timeout {whole} " in line for line in steps_of(image, tmp_path, stop_seconds=whole))
    pods = Kubernetes(name="bank", image="bank:1", drain_seconds=drain)
    assert pods.grace_seconds > STOP_SECONDS + math.ceil(longest(drain))


class Ends:
    """In place of the processes."""

    def run(self) -> int:
        return 0
