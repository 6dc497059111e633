"""A model file that does not load: people are told once, and health names it, until it loads again."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sereno.adapters.ledger import open_at
from sereno.cli import main
from sereno.operate.notices.unread import unread_file
from tests.acceptance.test_schedules import data, folder, project, scheduling, states
from tests.channels import Webhook

__all__ = ["folder"]

FAILED, RECOVERED = "scores cannot be run: its file does not load", "scores has recovered: its file loads again"


def health(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    capsys.readouterr()
    code = main(["health", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code == 0) == told["ok"]
    return [(one["what"], one["says"]) for one in told["wrong"]]


def kinds(folder: Path) -> list[str]:
    with contextlib.closing(open_at(None, folder)) as ledger:
        return [one.kind for one in ledger.notices("scores", 9) if one.run_key.startswith("file:")][::-1]


def test_people_are_told_once_and_health_says_so_until_it_is_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(folder)
    model = folder / "scores.py"
    whole = model.read_text()
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    data(folder, yesterday)
    model.write_text(f"{whole}import nosuchpackage\n")
    with Webhook() as webhook:
        monkeypatch.setenv("SERENO_NOTIFY", json.dumps([webhook.address()]))
        with scheduling(folder) as one:
            assert webhook.wait_for(1) == [FAILED]
            said = webhook.told[0]["message"]
            assert "nosuchpackage" in said
            assert "  sereno check scores   # what is wrong with it" in said
            ((what, says),) = health(capsys)
            assert what == "file"
            assert "scores.py does not load" in says
            assert "nosuchpackage" in says
            one.end()
        assert ("file", says) in health(capsys)  # nobody has mended it, though nobody schedules
        with scheduling(folder) as one:  # over a restart nobody is told again
            one.wait(lambda: "nosuchpackage" in one.log.read_text())
            one.wait(lambda: unread_file(folder).exists())
            model.write_text(whole)
            one.process.send_signal(signal.SIGHUP)
            assert webhook.wait_for(2) == [FAILED, RECOVERED]
            one.wait(lambda: states(folder) == {yesterday: "published"})
            assert health(capsys) == []
            assert not unread_file(folder).exists()
            model.write_text(f"{whole}import nosuchpackage\n")  # the same once more: people heard that it was well
            one.process.send_signal(signal.SIGHUP)
            one.wait(lambda: kinds(folder) == ["failed", "recovered", "failed"])
            assert [what for what, _ in health(capsys)] == ["file"]
            one.end()
        assert subprocess.run([sys.executable, "-m", "sereno", "run", "scores"], capture_output=True).returncode == 4
        model.write_text(whole)
        assert "file" not in [what for what, _ in health(capsys)]
        assert kinds(folder) == ["failed", "recovered", "failed"]
