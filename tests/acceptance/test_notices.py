"""People are told how a run ended that somebody, or cron, has started; the run itself is none the worse for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.project import DAY, NEXT_DAY, Project
from tests.acceptance.test_up import Up
from tests.channels import MailServer, Webhook

SECRET = "s3cr3t-t0ken"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


def told_by(project: Project, *addresses: str) -> Project:
    project.variables["SERENO_NOTIFY"] = json.dumps(addresses)
    project.within = True
    return project


def no_secret_is_kept(folder: Path) -> None:
    for file in folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_failed_then_recovered(project: Project, webhook: Webhook) -> None:
    told_by(project, webhook.address(f"/{SECRET}"))
    project.rows(DAY, 50)
    project.run(DAY)
    assert webhook.told == []  # nothing was wrong
    done = project.sereno("run", "total.py", "--date", NEXT_DAY, code=1)
    assert webhook.titles == [f"total failed for {NEXT_DAY}"]
    (told,) = webhook.told
    assert told["type"] == "failure"
    assert "SourceError: " in told["message"]
    assert f"In service: version 1, data date {DAY}" in told["message"]
    assert "sereno run total.py --date" in told["message"].replace(f"{project.folder}/", "")
    project.sereno("run", "total.py", "--date", NEXT_DAY, code=1)
    assert len(webhook.told) == 1  # once
    project.rows(NEXT_DAY, 50)
    project.run(NEXT_DAY)
    project.run(NEXT_DAY, "--force")
    assert webhook.titles[1:] == [f"total has recovered: {NEXT_DAY} is published"]
    assert SECRET not in done.stdout + done.stderr
    no_secret_is_kept(project.folder)


def test_held_then_released(project: Project, webhook: Webhook) -> None:
    told_by(project, webhook.address())
    project.rows(DAY, 50)
    project.run(DAY)
    project.rows(NEXT_DAY, 5)
    report = project.run(NEXT_DAY, code=3)
    assert webhook.titles == [f"total is held for {NEXT_DAY}"]
    assert f"sereno release {report['attempt']} --model total" in webhook.told[0]["message"]
    project.sereno("release", report["attempt"])
    assert webhook.titles[1:] == [f"total has recovered: {NEXT_DAY} is published"]


def test_by_e_mail_and_in_a_process_of_its_own(project: Project) -> None:
    with MailServer() as mail:
        told_by(project, mail.address())
        project.within = False
        project.sereno("run", "total.py", "--date", DAY, code=1)
        (told,) = mail.told
    assert told["title"] == f"total failed for {DAY}"
    assert "sereno@example.com" in told["from"]
    assert "people@example.com" in str(told["to"])


def test_a_channel_that_fails_changes_nothing_about_a_run(project: Project, webhook: Webhook) -> None:
    told_by(project, f"json://127.0.0.1:1/{SECRET}")
    project.rows(DAY, 50)
    project.run(DAY)
    project.rows(NEXT_DAY, 5)
    done = project.sereno("run", "total.py", "--date", NEXT_DAY, "--json", code=3)
    assert json.loads(done.stdout)["state"] == "held"
    assert "sereno: People could not be told yet (json://127.0.0.1:1: A Connection error" in done.stderr
    assert SECRET not in done.stderr
    assert [one["what"] for one in project.json("health", code=1)["wrong"] if one["what"] == "held"] == ["held"]
    told_by(project, webhook.address())  # mended
    assert project.json("notify") == {"told": 1, "untold": []}
    assert webhook.titles == [f"total is held for {NEXT_DAY}"]
    no_secret_is_kept(project.folder)


@pytest.mark.soak
def test_a_channel_that_hangs_keeps_a_run_no_longer_than_it_may(project: Project) -> None:
    """The run ends; whoever reads its output is not kept by the sender, which outlives it."""
    with Webhook(lambda path: 0) as webhook:
        # apprise waits four seconds for an answer, this one a hundred
        project.variables["SERENO_NOTIFY"] = json.dumps([webhook.address() + "?rto=100"])
        begin = time.monotonic()
        process = project.start("run", "total.py", "--date", DAY)
        webhook.wait_until_asked(1)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the sender is still at it after 15 s" in error
        assert time.monotonic() - begin < 60


def test_nobody_is_told_where_nobody_is_to_be(project: Project) -> None:
    project.sereno("run", "total.py", "--date", DAY, code=1)
    done = project.sereno("notify", code=2)
    assert "Nobody is to be told: 'notify' is not set for" in done.stderr


def test_a_test_of_the_addresses(project: Project, webhook: Webhook) -> None:
    project.variables["SERENO_SECRET_ALERTS"] = webhook.address("/alerts")
    told_by(project, webhook.address(f"/{SECRET}"), "secret:alerts")
    results: list[dict[str, Any]] = project.json("notify", "--test")
    assert results == [
        {"address": f"json://127.0.0.1:{webhook.port}", "ok": True, "says": ""},
        {"address": "secret:alerts", "ok": True, "says": ""},
    ]
    assert webhook.titles == ["Test", "Test"]
    told_by(project, f"jsn://{SECRET}", webhook.address())
    done = project.sereno("notify", "--test", code=1)
    assert SECRET not in done.stdout + done.stderr
    assert "apprise knows no such address" in done.stdout


def test_beside_sereno_up(project: Project, webhook: Webhook) -> None:
    """The scheduler has people told, also what somebody's own run has found; and health knows that it is at work."""
    told_by(project, webhook.address(f"/{SECRET}"))
    project.write("sereno.toml", 'workers = 1\n[models.total]\nfile = "total.py"\nready = "off"\n')
    with Up(project.folder, "--no-api", **project.variables) as up:
        (title,) = webhook.wait_for(1)
        day = title.removeprefix("total failed for ")
        assert webhook.told[0]["type"] == "failure"
        assert f"sereno run total --date {day}" in webhook.told[0]["message"]
        told = project.json("health", code=1)
        assert [one["what"] for one in told["wrong"]] == ["failed"]
        assert told["scheduler"]
        project.rows(day, 50)
        project.run(day)
        assert webhook.wait_for(2)[1:] == [f"total has recovered: {day} is published"]
        assert project.json("health")["ok"]
        assert up.stop() == 0
        log = up.log
    assert SECRET not in log
    assert [one["what"] for one in project.json("health", code=1)["wrong"]] == ["scheduler"]
    no_secret_is_kept(project.folder)
