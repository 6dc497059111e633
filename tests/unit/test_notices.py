"""Notices: which are wanted, what they say, who is told, how often; over real channels, with processes that die."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters.channels import Channel, import_apprise, is_known
from sereno.exceptions import LedgerError, MissingExtraError, SettingsError
from sereno.interfaces import RunLedger
from sereno.ledger import LEASE_SECONDS, Entry, Notice, NoticeKind, Pause, RunState, holder_here, open_ledger
from sereno.operate.notices import sender
from sereno.operate.notices import sending as telling
from sereno.operate.notices.sender import Sender, job_of, resolved, send, tell_test
from sereno.operate.notices.sending import Sending, after_run, is_due
from sereno.operate.notices.words import (
    MOST_TRIES,
    Place,
    Teller,
    add_outcome,
    add_recovered,
    addresses,
    compose,
    compose_many,
    everyone,
    host_of,
    is_pending,
    labels,
    place_of,
    told_of,
    told_to,
    untellable,
    wants,
)
from sereno.settings import ModelSettings, Settings
from sereno.status import Status
from tests.channels import MailServer, Webhook

NOW = datetime(2026, 5, 2, 3, 4, tzinfo=UTC)
MIDNIGHT = datetime(2026, 5, 2, tzinfo=UTC)


def entry(model: str = "churn", state: RunState = "failed", *, days: int = 0, **more: Any) -> Entry:
    """The run of 2026-05-01, or so many days later."""
    start = MIDNIGHT + timedelta(days=days - 1)
    given: dict[str, Any] = {
        "reason": "SourceError: There is no file.",
        "since": NOW,
        "who": "ana",
        "attempt": f"{start:%Y-%m-%d}-3f9a2c",
        "label": f"{start:%Y-%m-%d}",
    }
    return Entry(
        model=model,
        run_key=f"{start:%Y-%m-%dT%H:%MZ}",
        data_date=start.date(),
        data_time=start + timedelta(days=1),
        state=state,
        **(given | more),
    )


@pytest.fixture
def channels() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[RunLedger]:
    ledger = open_ledger(Settings(home=tmp_path))
    yield ledger
    ledger.close()


def settings_for(home: Path, *notify: str, **more: Any) -> Settings:
    return Settings(home=home, notify=notify, **more)


def fail(ledger: RunLedger, settings: Settings, *entries: Entry) -> None:
    for one in entries or (entry(),):
        ledger.move(one)
        assert add_outcome(ledger, settings, one, NOW)


# Which are wanted


def test_who_is_told_of_what() -> None:
    home = Path("/srv/x")
    settings = Settings(
        home=home,
        notify=("json://all",),
        notify_on=("failed", "held"),
        models={
            "own": ModelSettings(notify=("json://own", "json://all")),
            "none": ModelSettings(notify=()),
            "all_kinds": ModelSettings(notify_on=("late",)),
        },
    )
    assert addresses(settings, "churn") == ("json://all",)
    assert addresses(settings, "own") == ("json://own", "json://all")
    assert addresses(settings, "none") == ()
    assert addresses(settings, "all-kinds") == ("json://all",)  # of a variable, which has no "-"
    assert everyone(settings) == ("json://all", "json://own")

    def kinds(model: str) -> list[NoticeKind]:
        every: list[NoticeKind] = ["failed", "held", "late", "recovered"]
        return [kind for kind in every if wants(settings, model, kind)]

    assert kinds("churn") == kinds("own") == ["failed", "held"]
    assert kinds("none") == []
    assert kinds("all-kinds") == ["late"]
    assert not wants(Settings(home=home), "churn", "failed")


def test_how_a_run_ended_is_told_where_it_is_anything_to_tell(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://x")
    states: list[RunState] = ["due", "waiting", "running", "published", "skipped", "discarded"]
    assert not any(add_outcome(ledger, settings, entry(state=state), NOW) for state in states)
    assert add_outcome(ledger, settings, entry(), NOW)
    assert add_outcome(ledger, settings, entry(state="held", reason="drift"), NOW)
    behind = entry(state="published", days=1, not_before=NOW, reason="ExportError: the disk is full")
    assert add_outcome(ledger, settings, behind, NOW)
    assert [(one.kind, one.says) for one in ledger.untold()] == [
        ("failed", "SourceError: There is no file."),
        ("held", "drift"),
        ("failed", "ExportError: the disk is full"),
    ]


def test_of_one_run_and_kind_people_are_told_once(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://x")
    teller = Teller(ledger, settings)
    assert teller.tell(entry(), "failed", "", NOW)
    assert not teller.tell(entry(), "failed", "another reason", NOW)
    other = open_ledger(settings)  # another process, or this one after a restart
    assert not Teller(other, settings).tell(entry(), "failed", "", NOW)
    other.close()
    ledger.tried(ledger.untold()[0].number, told_at=NOW)
    assert not teller.tell(entry(), "failed", "", NOW)
    assert teller.tell(entry(days=1), "failed", "", NOW)
    teller.settings = Settings(home=tmp_path)
    assert not teller.tell(entry(days=2), "failed", "", NOW)


def test_recovered_is_told_once(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://x")

    def published(days: int) -> bool:
        return add_recovered(ledger, settings, entry(state="published", days=days), NOW)

    assert not published(0)  # nothing was wrong
    fail(ledger, settings, entry(days=1))
    assert not published(-3)  # another date, of before
    assert published(1)
    assert not published(1)
    assert not published(2)
    fail(ledger, settings, entry("churn", "held", days=4))
    fail(ledger, settings, entry("churn", "failed", days=3))
    assert not published(3)  # a later date is held still
    assert Teller(ledger, settings).tell_published(entry(state="published", days=5), NOW)
    assert not published(6)
    assert [one.kind for one in ledger.untold()] == ["failed", "recovered", "held", "failed", "recovered"]
    assert not add_recovered(ledger, replace(settings, notify_on=("failed",)), entry(state="published", days=9), NOW)


# What they are called


def test_no_secret_is_in_what_an_address_is_called() -> None:
    given = [
        "slack://hunter2/hunter2/hunter2",
        "json://u:hunter2@hooks.example.com:8443/hunter2?x=hunter2",
        "jsons://hooks.example.com/hunter2",
        "jsons://hooks.example.com/other",
        "mailto://ana:hunter2@smtp.example.com?to=b@example.com",
        "json://u:hunter/hunter2@h",
        "json://u:1234?hunter2@h",
        "json://hunter2",  # a host, as far as anybody can tell
        "secret:alerts",
        "SLACK://hunter2/x",
    ]
    called = labels(given)
    assert list(called.values()) == given
    assert list(called) == [
        "slack://",
        "json://hooks.example.com:8443",
        "jsons://hooks.example.com",
        "jsons://hooks.example.com #2",
        "mailto://smtp.example.com",
        "json://",
        "json:// #2",
        "json://hunter2",
        "secret:alerts",
        "slack:// #2",
    ]
    assert host_of("tgram://hunter2/1") == ""


@pytest.mark.parametrize(
    "address",
    [
        "ntfy://hunter2",
        "ntfys://hunter2/",
        "matrixs://hunter2?mode=t2bot",
        "mqtt://hunter2",
        "gotify://hunter2",
        "signal://hunter2/1",
        "mailto:ana:hunter2@smtp.example.com",
        "hunter2/B/C",
    ],
)
def test_what_may_be_a_secret_is_not_called_a_host(address: str) -> None:
    called = list(labels([address, address]))
    assert "hunter2" not in str(called)
    assert called[1] == f"{called[0]} #2"


@pytest.mark.parametrize(
    "address",
    [
        "json://ana:hunter2@127.0.0.1:1/hunter3/hunter4?-token=hunter5",
        "json://127.0.0.1:1/hunter%32/?%2Btoken=hunter3",
        "mailto://ana:hunter2@127.0.0.1:1?to=hunter3@example.com&from=a@example.com",
        "slack://hunter2-hunter3",
    ],
)
def test_no_secret_is_in_what_went_wrong(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        said = Channel(address).tell("Subject", "Text", "failed")
    finally:
        logging.getLogger().removeHandler(handler)
    assert said
    assert "hunter" not in said
    assert "hunter" not in "".join(capfd.readouterr())


def test_what_went_wrong_has_its_cause() -> None:
    said = Channel("json://127.0.0.1:1/x").tell("Subject", "Text", None)
    assert said == "A Connection error occurred sending JSON notification to 127.0.0.1: Connection refused"
    with Webhook(lambda path: 403) as webhook:
        said = Channel(webhook.address("/x")).tell("Subject", "Text", None)
    assert "error=403" in said


def test_addresses_that_apprise_knows() -> None:
    assert is_known("json://localhost/x")
    assert not is_known("jsn://localhost/x")
    assert Channel("jsn://hunter2/x").tell("Subject", "Text", None).startswith("apprise knows no such address")


def test_a_plugin_that_raises_is_an_address_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    apprise = import_apprise()

    def notify(*_: object, **__: object) -> None:
        raise RuntimeError("hunter2 is no integer")

    monkeypatch.setattr(apprise.Apprise, "notify", notify)
    assert Channel("json://u:hunter2@h/x").tell("Subject", "Text", "held") == "RuntimeError: *** is no integer"


def test_apprise_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sereno\[notify\]'"):
        import_apprise()


def test_an_address_may_be_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path, "secret:alerts", secrets_folder=tmp_path / "secrets")
    with pytest.raises(SettingsError, match="There is no secret 'alerts'"):
        resolved(settings, "secret:alerts")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "alerts").write_text("json://h/x\n")
    assert resolved(settings, "secret:alerts") == "json://h/x"
    monkeypatch.setenv("SERENO_SECRET_ALERTS", "json://h/y")
    assert resolved(settings, "secret:alerts") == "json://h/y"
    assert resolved(settings, "json://z") == "json://z"


# What they say

PLACE = Place(host="bank01", home="/srv/our bank", folder="/srv/our bank")
SERVED = Status(
    model="churn", last_success_at=NOW, version=12, data_date=date(2026, 4, 30), data_time=MIDNIGHT, published_at=NOW
)


def notice(kind: NoticeKind, says: str = "SourceError: There is no file.", number: int = 1) -> Notice:
    return Notice(number=number, model="churn", run_key="2026-05-01T00:00Z", kind=kind, at=NOW, says=says)


def told(kind: NoticeKind, one: Entry | None, place: Place = PLACE, pause: Pause | None = None) -> tuple[str, str]:
    return compose(notice(kind), place, entry=one, pause=pause, status=SERVED)


def test_of_a_run_that_failed() -> None:
    assert told("failed", entry()) == (
        "churn failed for 2026-05-01",
        """\
The run of churn for 2026-05-01 failed.
Why: SourceError: There is no file.

In service: version 12, data date 2026-04-30, published 2026-05-02 03:04 UTC.

What to do, on bank01:
  cd '/srv/our bank'
  sereno show 2026-05-01-3f9a2c --model churn   # what it did, and why it ended so
  sereno run churn --date 2026-05-01            # once the cause is mended

Host bank01, home /srv/our bank, 2026-05-02 03:04 UTC.
""",
    )


@pytest.mark.parametrize(
    ("kind", "one", "subject", "commands"),
    [
        ("failed", entry(attempt=""), "churn failed for 2026-05-01", ["run churn --date 2026-05-01"]),
        (
            "held",
            entry(state="held"),
            "churn is held for 2026-05-01",
            [
                "show 2026-05-01-3f9a2c --model churn",
                "release 2026-05-01-3f9a2c --model churn",
                "discard 2026-05-01-3f9a2c --model churn",
            ],
        ),
        (
            "late",
            entry(state="held", attempt=""),
            "churn is late: data of 2026-05-01",
            [
                "run churn --date 2026-05-01",
                "release 2026-05-01 --model churn",
                "discard 2026-05-01 --model churn",
            ],
        ),
        (
            "late",
            entry(state="skipped", attempt=""),
            "churn is late: data of 2026-05-01",
            ["run churn --date 2026-05-01"],
        ),
        ("recovered", entry(state="published"), "churn has recovered: 2026-05-01 is published", ["runs churn"]),
        ("failed", None, "churn failed for 2026-05-01T00:00Z", ["runs churn"]),
        (
            "failed",
            entry(label="2026-05-01T13:00"),
            "churn failed for 2026-05-01T13:00",
            ["show 2026-05-01-3f9a2c --model churn", "run churn --date 2026-05-01T13:00"],
        ),
    ],
)
def test_what_to_do(kind: NoticeKind, one: Entry | None, subject: str, commands: list[str]) -> None:
    title, text = told(kind, one)
    assert title == subject
    assert [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("  sereno ")] == [
        f"sereno {command}" for command in commands
    ]
    parser = __import__("sereno.cli").cli.parser_of()
    for line in text.splitlines():
        if line.startswith("  sereno "):
            parser.parse_args(shlex.split(line, comments=True)[1:])  # there is such a command


def test_of_a_model_that_was_paused() -> None:
    pause = Pause(model="churn", since=NOW, who="sereno", why="40 dates were missed")
    for one in (None, entry(state="due", attempt="")):
        title, text = told("held", one, pause=pause)
        assert title == "churn is paused"
        assert "  sereno resume churn                 # run all that was missed, oldest first" in text
        assert "  sereno resume churn --skip-missed" in text
    assert told("held", entry(state="held"), pause=pause)[0] == "churn is held for 2026-05-01"


def test_where_sereno_toml_is_elsewhere_commands_name_the_home() -> None:
    place = Place(
        host="bank01",
        home="/srv/x",
        folder="/srv/x",
        options=("--home", "/srv/x"),
        files={"churn": "/opt/models/churn.py"},
    )
    text = told("failed", entry(), place)[1]
    assert "sereno run /opt/models/churn.py --date 2026-05-01 --home /srv/x " in text


def test_what_happened_since_is_told_too() -> None:
    assert "By now it is running." in told("failed", entry(state="running"))[1]
    assert "Since then it was published, as version 13." in told("held", entry(state="published", version=13))[1]
    for kind, state in (("failed", "failed"), ("held", "held"), ("late", "held"), ("recovered", "published")):
        text = told(kind, entry(state=state))[1]  # type: ignore[arg-type]
        assert "By now" not in text
        assert "Since then" not in text


def test_the_report_is_named_where_there_is_a_page_of_it(tmp_path: Path) -> None:
    place = place_of(Settings(home=tmp_path))
    assert (place.home, place.folder, place.host) == (str(tmp_path), str(tmp_path), os.uname().nodename)
    assert place.options == ("--home", str(tmp_path))
    assert "Report:" not in told("held", entry(state="held"), place)[1]
    page = tmp_path / ".sereno" / "runs" / "churn" / "2026-05-01-3f9a2c" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<html>")
    assert f"\nReport: {page}\n" in told("held", entry(state="held"), place)[1]


def test_what_others_wrote_stays_text() -> None:
    says = "x\x1b[31m\r\nSubject: forged\u202e password=hunter2 postgresql://u:hunter2@h/d " + "y" * 5_000
    title, text = compose(notice("failed", says), PLACE, entry=None, pause=None, status=None)
    assert title == "churn failed for 2026-05-01T00:00Z"
    assert "hunter2" not in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text) < 3_000
    assert "In service: nothing is known to be." in text


def test_many_at_once_are_one_message() -> None:
    many = [notice("failed", f"reason {n}\n", n) for n in range(250)] + [notice("held", "drift", 999)]
    title, text = compose_many(many, PLACE, {1: entry()})
    assert title == "251 notices: 250 failed, 1 held"
    assert "- churn failed for 2026-05-01: reason 1\n" in text
    assert "- churn failed for 2026-05-01T00:00Z: reason 199\n- and 51 more\n" in text
    assert "  sereno health " in text


def test_held_once_more_is_told_once_more(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a")
    fail(ledger, settings, entry(state="held", attempt="a"))
    assert not add_outcome(ledger, settings, entry(state="held", attempt="a"), NOW)
    ledger.move(entry(state="discarded", attempt="a"))
    fail(ledger, settings, entry(state="held", attempt="b"))
    published = entry(state="published", attempt="b")
    assert add_outcome(ledger, settings, published, NOW)
    assert not add_outcome(ledger, settings, published, NOW)
    fail(ledger, settings, entry(state="held", attempt="c"))
    assert add_outcome(ledger, settings, entry(state="published", attempt="c"), NOW)
    kinds = [f"{one.kind} {one.attempt}" for one in ledger.untold() if one.kind == "held"]
    assert kinds == ["held a", "held b", "held c"]


def test_a_failure_is_told_again_where_it_is_another_one(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a")
    fail(ledger, settings, entry(attempt="a"))

    def again(**more: Any) -> bool:
        one = entry(**more)
        ledger.move(entry(state="running"))
        ledger.move(one)
        return add_outcome(ledger, settings, one, NOW + timedelta(hours=2))

    assert not again(attempt="b")  # for the same reason: cron, say, tries every few minutes
    assert not again(attempt="c", who="sereno", reason="StorageError: The disk is full.")  # its own try
    assert again(attempt="d", reason="PredictError: No.")
    assert not again(attempt="e", reason="PredictError: No.")
    ledger.move(entry(state="held", attempt="f", since=NOW + timedelta(hours=3)))
    assert again(attempt="g", reason="PredictError: No.")


# How they are told


class Scripted:
    """A channel whose answers are given: texts, or functions that give one."""

    def __init__(self, *answers: str | Callable[[], str]) -> None:
        self.answers = list(answers)
        self.told: list[str] = []

    def tell(self, subject: str, text: str, kind: NoticeKind | None) -> str:
        answer = self.answers.pop(0) if self.answers else ""
        error = answer if isinstance(answer, str) else answer()
        if not error:
            self.told.append(subject)
        return error


def run_sender(
    ledger: RunLedger, settings: Settings, script: dict[str, Scripted], *, seconds: float = 30.0, **how: bool
) -> None:
    lease = ledger.acquire(sender.LEASE, holder_here(), LEASE_SECONDS)
    assert lease is not None
    one = Sender(
        ledger, settings, place_of(settings), lease, script.__getitem__, seconds_for_one=seconds, pauses=(0.0,) * 3
    )
    one.run(threading.Event(), **how)
    ledger.release(lease)


def test_an_address_that_fails_keeps_no_other_from_being_told_once(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a", "json://b")
    fail(ledger, settings)
    script = {"json://a": Scripted("no", "no", "no"), "json://b": Scripted()}
    run_sender(ledger, settings, script)
    assert script["json://a"].told == script["json://b"].told == ["churn failed for 2026-05-01"]
    (done,) = ledger.notices("churn", 5)
    assert done.told_at is not None
    assert {label: one.tries for label, one in told_to(done, settings.notify).items()} == {"json://a": 4, "json://b": 1}
    run_sender(ledger, settings, script)
    assert len(script["json://b"].told) == 1


def test_whoever_was_told_stays_told_however_the_addresses_are_ordered(tmp_path: Path, ledger: RunLedger) -> None:
    first, second, dead = "json://h/hunter1", "json://h/hunter2", "json://dead"
    settings = settings_for(tmp_path, first, dead)
    fail(ledger, settings)
    script = {first: Scripted(), second: Scripted(), dead: Scripted("no", "no")}
    run_sender(ledger, settings, script, once=True)
    settings = settings_for(tmp_path, second, first, dead)  # both are called json://h, with and without a number
    run_sender(ledger, settings, script, once=True)
    assert [len(one.told) for one in script.values()] == [1, 1, 0]
    assert "hunter" not in ledger.untold()[0].error


def test_what_always_fails_is_given_up_and_seen(
    tmp_path: Path, ledger: RunLedger, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, "json://a", "json://b")
    fail(ledger, settings)
    script = {"json://a": Scripted(*["no"] * 50), "json://b": Scripted()}
    run_sender(ledger, settings, script)
    assert len(script["json://a"].answers) == 50 - MOST_TRIES
    (left,) = ledger.untold()
    assert not is_pending(left, settings.notify)
    assert untellable(left, settings.notify) == {"json://a": "no"}
    assert "churn: json://a is given up after 10 tries" in caplog.text
    run_sender(ledger, settings, script)  # it stays so
    assert len(script["json://a"].answers) == 50 - MOST_TRIES
    script["json://a"].answers = ["no"]
    run_sender(ledger, settings, script, again=True)
    run_sender(ledger, settings, script, again=True)
    assert ledger.untold() == []
    assert len(script["json://a"].told) == len(script["json://b"].told) == 1


def test_once_is_one_try(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a")
    fail(ledger, settings, entry(), entry(days=1))
    script = {"json://a": Scripted("no", "no", "no", "no")}
    run_sender(ledger, settings, script, once=True)
    assert len(script["json://a"].answers) == 2
    assert [told_to(one, settings.notify)["json://a"].tries for one in ledger.untold()] == [1, 1]


def test_a_pause_between_tries_outlives_the_sender(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a")
    fail(ledger, settings)
    lease = ledger.acquire(sender.LEASE, holder_here(), LEASE_SECONDS)
    assert lease is not None
    script = {"json://a": Scripted("no", "no")}
    Sender(ledger, settings, place_of(settings), lease, script.__getitem__).run(threading.Event(), once=True)
    (left,) = ledger.untold()
    assert 0 < told_to(left, settings.notify)["json://a"].not_before - time.time() <= sender.PAUSES[0]
    stop = threading.Event()
    thread = threading.Timer(1.0, stop.set)
    thread.start()
    Sender(ledger, settings, place_of(settings), lease, script.__getitem__).run(stop)
    assert len(script["json://a"].answers) == 1  # it waited, until it was told to stop
    thread.join()


def test_a_channel_that_hangs_has_failed_and_keeps_nobody_waiting(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a", "json://b")
    fail(ledger, settings)
    hangs = threading.Event()
    script = {"json://a": Scripted(lambda: str(hangs.wait(60) or "")), "json://b": Scripted()}
    run_sender(ledger, settings, script, seconds=0.1, once=True)
    assert script["json://b"].told == ["churn failed for 2026-05-01"]
    (left,) = ledger.untold()
    assert told_to(left, settings.notify)["json://a"].says == "it took more than 0.1 s"
    hangs.set()


def test_what_was_done_after_all_was_told(tmp_path: Path, ledger: RunLedger) -> None:
    """One that took too long, and then was delivered, is not told again."""
    settings = settings_for(tmp_path, "json://a", "json://b")
    fail(ledger, settings)
    slow, is_over = threading.Event(), threading.Event()

    def late() -> str:
        slow.wait(60)
        return ""

    def other() -> str:
        while not (one := ledger.untold()) or not told_of(one[0]):
            time.sleep(0.01)
        slow.set()
        is_over.wait(0.3)
        return ""

    script = {"json://a": Scripted(late, "it was told again"), "json://b": Scripted(other)}
    lease = ledger.acquire(sender.LEASE, holder_here(), LEASE_SECONDS)
    assert lease is not None
    one = Sender(ledger, settings, place_of(settings), lease, script.__getitem__, seconds_for_one=1.0, pauses=(60.0,))
    one._busy = _slow_to_give_up(one._busy, "json://b")
    one.run(threading.Event())
    assert ledger.untold() == []
    assert script["json://a"].answers == ["it was told again"]


def _slow_to_give_up(busy: Any, address: str) -> Any:
    class Patient(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if key == address:
                value.until += 60
            super().__setitem__(key, value)

    return Patient(busy)


def test_four_at_once_are_one_message(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a", models={"other": ModelSettings(notify=("json://b",))})
    fail(ledger, settings, *(entry(days=n) for n in range(4)), entry("other"))
    script = {"json://a": Scripted("no"), "json://b": Scripted()}
    run_sender(ledger, settings, script)
    assert script["json://a"].told == ["4 notices: 4 failed"]
    assert script["json://b"].told == ["other failed for 2026-05-01"]
    assert ledger.untold() == []


def test_a_notice_of_whom_nobody_wants_to_hear_is_left(tmp_path: Path, ledger: RunLedger) -> None:
    fail(ledger, settings_for(tmp_path, "json://a"))
    nobody = settings_for(tmp_path)
    run_sender(ledger, nobody, {})
    (left,) = ledger.untold()
    assert not is_pending(left, ())
    assert not is_due(ledger, nobody)


def test_a_sender_that_lost_its_lease_tells_no_more(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://a")
    fail(ledger, settings)
    lease = ledger.acquire(sender.LEASE, "host:1:x", LEASE_SECONDS)
    assert lease is not None
    one = Sender(ledger, settings, place_of(settings), lease, {"json://a": Scripted()}.__getitem__)
    one._renewed -= 100  # it stood still for a while
    ledger.acquire(sender.LEASE, "host:2:y", LEASE_SECONDS, by_force=True)
    one.run(threading.Event())
    assert len(ledger.untold()) == 1


def test_two_senders_at_once_tell_once(tmp_path: Path, channels: ExitStack, ledger: RunLedger) -> None:
    webhook = channels.enter_context(Webhook())
    settings = settings_for(tmp_path, webhook.address())
    fail(ledger, settings, entry(), entry(days=1))
    senders = [telling.start_sender(settings) for _ in range(3)]
    for process in senders:
        assert process.wait(60) == 0
    assert sorted(webhook.titles) == ["churn failed for 2026-05-01", "churn failed for 2026-05-02"]
    assert ledger.untold() == []
    assert ledger.holder(sender.LEASE) is None


def test_by_webhook_and_e_mail(tmp_path: Path, channels: ExitStack, ledger: RunLedger) -> None:
    webhook, mail = channels.enter_context(Webhook()), channels.enter_context(MailServer())
    settings = settings_for(tmp_path, webhook.address(), mail.address())
    fail(ledger, settings, entry("churn", "held", reason="drift: score, PSI 0.31 > 0.25"))
    send(ledger, settings, place_of(settings), threading.Event())
    assert webhook.told[0]["type"] == "warning"
    assert webhook.told[0]["title"] == mail.told[0]["title"] == "churn is held for 2026-05-01"
    for one in (webhook.told[0], mail.told[0]):
        assert "sereno release 2026-05-01-3f9a2c --model churn" in one["message"]
        assert "PSI 0.31" in one["message"]
    assert mail.told[0]["to"] == ["RCPT TO:<people@example.com>"] or "people@example.com" in str(mail.told[0]["to"])
    assert ledger.untold() == []


def test_a_dead_channel_beside_a_living_one(tmp_path: Path, channels: ExitStack, ledger: RunLedger) -> None:
    alive = channels.enter_context(Webhook())
    refusing = channels.enter_context(Webhook(lambda path: 500))
    given = (alive.address(), refusing.address("/x"), "json://127.0.0.1:1/hunter2", "jsn://hunter2", "secret:hunter")
    settings = settings_for(tmp_path, *given, secrets_folder=tmp_path / "none")
    fail(ledger, settings)
    send(ledger, settings, place_of(settings), threading.Event(), once=True)
    assert alive.titles == ["churn failed for 2026-05-01"]
    (left,) = ledger.untold()
    state = told_to(left, given)
    assert [one.told for one in state.values()].count(True) == 1
    says = {label: one.says for label, one in state.items() if not one.told}
    assert "error=500" in says.pop(f"json://127.0.0.1:{refusing.port}")
    assert "Connection refused" in says.pop("json://127.0.0.1:1")
    assert "apprise knows no such address" in says.pop("jsn://")
    assert "There is no secret 'hunter'" in says.pop("secret:hunter")
    assert says == {}
    assert "hunter2" not in left.error


def test_a_sender_that_is_killed_loses_nothing(
    tmp_path: Path, channels: ExitStack, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when a message had left, before that was written down: it leaves again; the other address is told once."""
    webhook = channels.enter_context(Webhook())
    settings = settings_for(tmp_path, webhook.address("/a"), webhook.address("/b"))
    fail(ledger, settings)
    monkeypatch.setenv("SERENO_TESTING", "1")
    monkeypatch.setenv("SERENO_FAILPOINT", "notice_sent:kill@2")
    assert telling.start_sender(settings).wait(60) == -signal.SIGKILL
    assert sorted(webhook.asked) == ["/a", "/b"]
    (left,) = ledger.untold()
    (first,) = [label for label, one in told_to(left, settings.notify).items() if one.told]
    monkeypatch.undo()
    lease = ledger.holder(sender.LEASE)
    assert lease is not None  # nobody else tells as long as it might be alive
    assert not is_due(ledger, settings)
    ledger.release(lease)  # as its time is over
    assert telling.start_sender(settings).wait(60) == 0
    assert ledger.untold() == []
    again = "/b" if first.endswith(str(webhook.port)) else "/a"
    assert sorted(webhook.asked) == sorted(["/a", "/b", again])


def test_a_sender_without_a_ledger_says_so(tmp_path: Path) -> None:
    (tmp_path / ".sereno").mkdir()
    (tmp_path / ".sereno" / "ledger.sqlite").write_text("no ledger" * 1000)
    settings = settings_for(tmp_path, "json://u:hunter2@h/x")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sereno.operate.notices.sender"],
        input=job_of(settings),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"sereno: Nobody can be told: The ledger " in done.stderr
    assert b"hunter2" not in done.stderr + done.stdout


def test_the_job_holds_secrets_that_nobody_sees_in_a_list_of_processes(tmp_path: Path, channels: ExitStack) -> None:
    webhook = channels.enter_context(Webhook(lambda path: 0))
    settings = settings_for(tmp_path, webhook.address("/hunter2"))
    ledger = open_ledger(settings)
    fail(ledger, settings)
    process = telling.start_sender(settings, silent=True)
    webhook.wait_until_asked(1)
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"hunter2" not in command
    process.kill()
    process.wait()
    ledger.close()
    for file in (tmp_path / ".sereno").rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes()


def test_a_test_of_every_address(tmp_path: Path, channels: ExitStack) -> None:
    webhook = channels.enter_context(Webhook(lambda path: 0 if path == "/slow" else 200))
    settings = settings_for(
        tmp_path,
        webhook.address("/a"),
        "json://127.0.0.1:1/x",
        webhook.address("/slow"),
        "secret:none",
        models={"churn": ModelSettings(notify=("jsn://x",))},
    )
    found = tell_test(settings, seconds=3.0)
    port = webhook.port
    assert found[0] == (f"json://127.0.0.1:{port}", "")
    assert found[1][0] == "json://127.0.0.1:1"
    assert "Connection refused" in found[1][1]
    assert found[2] == (f"json://127.0.0.1:{port} #2", "it took more than 3 s")
    assert found[3][0] == "secret:none"
    assert found[4][0] == "jsn://"
    assert webhook.titles == ["Test"]


# Who starts the sender


def until(true: Callable[[], object], look: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        look()
        time.sleep(0.02)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("often")
def test_beside_a_scheduler(tmp_path: Path, channels: ExitStack, ledger: RunLedger) -> None:
    webhook = channels.enter_context(Webhook())
    settings = settings_for(tmp_path, webhook.address())
    notes: list[str] = []
    sending = Sending(Settings(home=tmp_path), ledger, notes.append)
    fail(ledger, settings)
    sending.look()
    assert sending._process is None  # nobody is to be told
    sending.settings = settings
    until(lambda: not ledger.untold(), sending.look)
    until(lambda: sending._process is None, sending.look)
    assert webhook.titles == ["churn failed for 2026-05-01"]
    sending.look()
    assert (sending._process, notes) == (None, [])
    ledger.add_notice("churn", "2026-05-02T00:00Z", "late", "", NOW)
    until(lambda: len(webhook.titles) == 2, sending.look)
    sending.stop()
    sending.stop()


@pytest.mark.usefixtures("often")
def test_a_sender_that_is_at_it_is_ended_with_the_scheduler(
    tmp_path: Path, channels: ExitStack, ledger: RunLedger
) -> None:
    webhook = channels.enter_context(Webhook(lambda path: 0))
    settings = settings_for(tmp_path, webhook.address())
    fail(ledger, settings)
    sending = Sending(settings, ledger, lambda text: None)
    sending.look()
    webhook.wait_until_asked(1)
    process = sending._process
    assert process is not None
    sending.look()
    assert sending._process is process  # one at a time
    sending.stop()
    assert process.returncode == 0
    assert ledger.holder(sender.LEASE) is None
    assert len(ledger.untold()) == 1


@pytest.mark.usefixtures("often")
def test_a_sender_that_dies_is_started_later_each_time(
    tmp_path: Path, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, "json://127.0.0.1:1")
    fail(ledger, settings)
    notes: list[str] = []
    sending = Sending(settings, ledger, notes.append)
    monkeypatch.setattr(telling, "start_sender", lambda *_: subprocess.Popen(["false"]))
    for _ in range(2):
        sending._due = 0
        sending.look()
        assert sending._process is not None
        sending._process.wait()
        sending.look()
    assert notes == [
        "the sender of notices ended with 1; it starts again in 2 s. No notice is lost.",
        "the sender of notices ended with 1; it starts again in 4 s. No notice is lost.",
    ]

    def cannot(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(telling, "start_sender", cannot)
    sending._due = 0
    sending.look()
    assert "cannot be started: Resource temporarily unavailable" in notes[-1]


def test_after_a_run(tmp_path: Path, channels: ExitStack, ledger: RunLedger) -> None:
    webhook = channels.enter_context(Webhook())
    settings = settings_for(tmp_path, webhook.address())
    ledger.move(entry(days=-5))  # long before
    ledger.move(entry(since=NOW + timedelta(seconds=5)))
    since = NOW + timedelta(seconds=1)
    assert after_run(settings, "churn", since) == ""
    assert after_run(settings, "churn", since) == ""
    assert webhook.titles == ["churn failed for 2026-05-01"]
    ledger.move(entry(state="published"))  # before `since`: it was found to be published already
    assert after_run(settings, "churn", since, run_key=entry().run_key) == ""
    assert webhook.titles[1:] == ["churn has recovered: 2026-05-01 is published"]
    assert after_run(Settings(home=tmp_path / "nowhere"), "churn", since) == ""
    assert not (tmp_path / "nowhere").exists()


def test_a_scheduler_has_it_told(tmp_path: Path, ledger: RunLedger) -> None:
    settings = settings_for(tmp_path, "json://127.0.0.1:1")
    ledger.move(entry())
    ledger.acquire("scheduler", f"{os.uname().nodename}:{os.getppid()}:x", LEASE_SECONDS)
    assert after_run(settings, "churn", NOW) == ""
    assert ledger.untold() == []  # it has started us, and tells when it does not try again
    ledger.acquire("scheduler", f"{os.uname().nodename}:{os.getpid()}:x", LEASE_SECONDS, by_force=True)
    assert after_run(settings, "churn", NOW) == ""
    (left,) = ledger.untold()  # it sends what somebody's own run has added
    assert left.error == ""


def test_a_run_is_not_kept_by_people_who_cannot_be_told(
    tmp_path: Path, channels: ExitStack, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PATIENCE", 0.5)
    webhook = channels.enter_context(Webhook(lambda path: 0))
    settings = settings_for(tmp_path, webhook.address("/hunter2"))
    ledger.move(entry())
    said = after_run(settings, "churn", NOW)
    assert said == (
        "People could not be told yet (the sender is still at it after 0.5 s). The next run tries again; so does "
        "`sereno notify`."
    )
    until(lambda: ledger.holder(sender.LEASE) is None or webhook.asked)
    webhook.let_go.set()
    until(lambda: ledger.holder(sender.LEASE) is None)
    monkeypatch.setattr(telling, "PATIENCE", 30)
    said = after_run(settings_for(tmp_path, "json://127.0.0.1:1/hunter2"), "churn", NOW)
    assert "json://127.0.0.1:1: A Connection error" in said
    assert "hunter2" not in said


def test_a_ledger_that_cannot_be_read_is_told_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> RunLedger:
        raise LedgerError("The ledger is damaged.")

    monkeypatch.setattr(telling, "open_ledger", broken)
    said = after_run(settings_for(tmp_path, "json://x"), "churn", NOW)
    assert said == "People could not be told: The ledger is damaged."


def test_the_scheduler_can_afford_it() -> None:
    show = "import sys, sereno.operate.notices.sending, sereno.operate.notices.words, sereno.operate.health; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    heavy = {"apprise", "requests", "numpy", "pyarrow", "deltalake", "pandas", "asyncio"}
    assert heavy & set(done.stdout.split()) == set()


def test_the_sender_is_light(tmp_path: Path) -> None:
    show = "import sys, sereno.operate.notices.sender, sereno.adapters.channels; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert {"numpy", "pyarrow", "deltalake", "pandas"} & set(done.stdout.split()) == set()


def test_what_the_ledger_keeps_of_tries_may_be_of_anybody() -> None:
    assert told_of(replace(notice("failed"), error="some text")) == {}
    assert told_of(replace(notice("failed"), error=json.dumps({"json://x": {"tries": "one"}}))) == {}
