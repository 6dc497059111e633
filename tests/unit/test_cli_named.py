"""Who decides something, as the ledger has it."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from sereno.cli import main
from sereno.cli.named import who


def test_who_says_so_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `kubectl exec … env SERENO_WHO=ana sereno pause churn`: all who type there are one user."""
    (tmp_path / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(getpass, "getuser", lambda: "sereno")
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("SERENO_WHO", "ana")
    assert main(["pause", "churn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["who"] == "ana"
    monkeypatch.delenv("SERENO_WHO")
    assert main(["pause", "churn"]) == 0
    assert "by ana." in capsys.readouterr().out  # it is paused already


def test_what_is_to_be_typed_next_means_the_same_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sereno.toml").write_text('[env.trial.models.churn]\nfile = "churn.py"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["pause", "churn", "--env", "trial"]) == 0
    assert "until `sereno resume churn --env trial`." in capsys.readouterr().out


def test_a_mistyped_model_is_told_with_the_one_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["run", "churm"]) == 4
    assert f"(it knows: churn). Did you mean 'churn'? The folder is {tmp_path}." in capsys.readouterr().err


@pytest.mark.parametrize(("user", "found"), [("ben", "ben"), ("sereno", "user sereno")])
def test_a_user_is_not_the_scheduler(monkeypatch: pytest.MonkeyPatch, user: str, found: str) -> None:
    monkeypatch.delenv("SERENO_WHO", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    assert who() == found
