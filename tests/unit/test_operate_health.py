"""Health: what is wrong and what is not, of ledgers and status files that tell of all sorts of nights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.cli import main
from sereno.config import load_settings
from sereno.exceptions import NotFoundError
from sereno.interfaces import RunLedger
from sereno.ledger import LEASE_SECONDS, Entry, Pause, RunState, holder_here, open_ledger
from sereno.operate.health import Health, look
from sereno.operate.notices.words import MOST_TRIES, Told, kept, key_of, place_of
from sereno.settings import ModelSettings, Settings
from sereno.status import Status, write_status

DAY = timedelta(days=1)
MIDNIGHT = datetime(2026, 5, 2, tzinfo=UTC)  # the run of 2026-05-01 is due
MORNING = MIDNIGHT + timedelta(hours=9)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[RunLedger]:
    ledger = open_ledger(Settings(home=tmp_path))
    yield ledger
    ledger.close()


def entry(state: RunState, days: int = 0, model: str = "churn", **more: Any) -> Entry:
    start = MIDNIGHT + (days - 1) * DAY
    given: dict[str, Any] = {
        "since": start + DAY,
        "who": "ana",
        "label": f"{start:%Y-%m-%d}",
        "attempt": "a-1",
        "version": 7,
    }
    return Entry(
        model=model,
        run_key=f"{start:%Y-%m-%dT%H:%MZ}",
        data_date=start.date(),
        data_time=start + DAY,
        state=state,
        **(given | more),
    )


def publish(home: Path, days: int = 0, model: str = "churn") -> None:
    """The run of 2026-05-01 ended well, or so many days later."""
    data_time = MIDNIGHT + days * DAY
    write_status(
        home,
        Status(
            model=model,
            last_success_at=data_time + timedelta(minutes=10),
            version=7,
            data_date=(data_time - DAY).date(),
            data_time=data_time,
            published_at=data_time + timedelta(minutes=10),
            due_at=data_time + DAY,
        ),
    )


def health(home: Path, now: datetime = MORNING, **given: Any) -> Health:
    given.setdefault("settings", Settings(home=home))
    return look(given.pop("settings"), now=now, **given)


def wrong(home: Path, now: datetime = MORNING, **given: Any) -> list[str]:
    return [one.what for one in health(home, now, **given).wrong]


def test_all_is_well(tmp_path: Path, ledger: RunLedger) -> None:
    publish(tmp_path)
    ledger.move(entry("published"))
    found = health(tmp_path)
    assert found.ok
    (one,) = found.models
    assert (one.model, one.state, one.version, one.data_date, one.data_time) == (
        "churn", "published", 7, "2026-05-01", MIDNIGHT,
    )  # fmt: skip
    assert one.freshness_seconds == 9 * 3600
    assert one.last_success_at == MIDNIGHT + timedelta(minutes=10)
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["models"][0]["ok"]


def test_a_folder_without_models_is_not_well(tmp_path: Path) -> None:
    assert wrong(tmp_path) == ["nothing"]
    assert os.listdir(tmp_path) == []  # to look makes no ledger
    known = Settings(home=tmp_path, models={"churn": ModelSettings(file=Path("churn.py"))})
    assert wrong(tmp_path, settings=known) == ["nothing", "never"]
    assert wrong(tmp_path, settings=known, max_age=1) == ["nothing", "never", "old"]
    with pytest.raises(NotFoundError, match=r"There is no model 'chrun' in .* \(there are: churn\)"):
        health(tmp_path, settings=known, model="chrun")


@pytest.mark.parametrize("state", ["failed", "held"])
def test_until_something_newer_is_published(tmp_path: Path, ledger: RunLedger, state: RunState) -> None:
    publish(tmp_path)
    ledger.move(entry("published"))
    ledger.move(entry(state, days=1, reason="SourceError: password=hunter2 is wrong"))
    now = MORNING + DAY
    (one,) = health(tmp_path, now).wrong
    assert (one.model, one.what) == ("churn", state)
    assert "2026-05-02" in one.says
    assert "hunter2" not in one.says
    assert ("sereno release a-1 --model churn" in one.do) == (state == "held")
    ledger.acquire("scheduler", holder_here(), LEASE_SECONDS)
    ledger.move(entry("due", days=2))  # that another is due is no help
    assert wrong(tmp_path, now + DAY) == [state, "overdue"]
    publish(tmp_path, days=2)
    ledger.move(entry("published", days=2))
    assert wrong(tmp_path, now + DAY) == []


def test_a_first_run_that_failed(tmp_path: Path, ledger: RunLedger) -> None:
    ledger.move(entry("failed", attempt=""))
    (one,) = health(tmp_path).wrong
    at = f"--home {tmp_path}"  # there is no sereno.toml
    assert one.do == f"sereno runs churn {at}; once it is mended, sereno run FILE --date 2026-05-01 {at}"


def test_without_status_files_the_ledger_knows_what_was_published(tmp_path: Path, ledger: RunLedger) -> None:
    ledger.move(entry("failed"))
    ledger.move(entry("published", days=1))
    assert wrong(tmp_path) == []
    ledger.move(entry("failed", days=2))
    assert wrong(tmp_path, MORNING + 2 * DAY) == ["failed"]


@pytest.mark.parametrize("state", ["due", "waiting", "running"])
def test_overdue_is_what_has_not_ended_by_its_deadline(tmp_path: Path, ledger: RunLedger, state: RunState) -> None:
    publish(tmp_path, days=-1)
    ledger.acquire("scheduler", holder_here(), LEASE_SECONDS)
    ledger.move(entry("published", days=-1))
    ledger.move(entry(state, reason="/in/2026-05-01 is not there"))
    assert wrong(tmp_path, MIDNIGHT + timedelta(hours=5, minutes=59)) == []
    (one,) = health(tmp_path, MIDNIGHT + timedelta(hours=7)).wrong
    assert one.what == "overdue"
    assert one.says == f"The run for 2026-05-01 is {state}, and was due 7.0 h ago. /in/2026-05-01 is not there"
    patient = Settings(home=tmp_path, models={"churn": ModelSettings(deadline_seconds=8 * 3600.0)})
    assert wrong(tmp_path, MIDNIGHT + timedelta(hours=7), settings=patient) == []


def test_overdue_is_what_nobody_has_begun(tmp_path: Path) -> None:
    publish(tmp_path)
    assert wrong(tmp_path, MIDNIGHT + DAY + timedelta(hours=5)) == []
    (one,) = health(tmp_path, MIDNIGHT + DAY + timedelta(hours=7)).wrong
    assert one.says == "No run has begun since 2026-05-03 00:00 UTC, when the next one was due."
    by_hand = Settings(home=tmp_path, models={"churn": ModelSettings(scheduled=False)})
    assert wrong(tmp_path, MORNING + 9 * DAY, settings=by_hand) == []
    ledger = open_ledger(Settings(home=tmp_path))
    ledger.move(entry("skipped", days=1))  # somebody has decided
    assert wrong(tmp_path, MIDNIGHT + DAY + timedelta(hours=7)) == ["scheduler"]
    ledger.close()


@pytest.mark.parametrize(("who", "expected"), [("ana", []), ("sereno", ["paused"])])
def test_a_pause_is_wrong_where_nobody_decided_it(
    tmp_path: Path, ledger: RunLedger, who: str, expected: list[str]
) -> None:
    publish(tmp_path)
    ledger.pause(Pause(model="churn", since=MIDNIGHT, who=who, why="40 dates were missed"))
    found = health(tmp_path, MORNING + 30 * DAY)
    assert [one.what for one in found.wrong] == expected
    assert found.models[0].paused is not None
    assert found.to_dict()["models"][0]["paused"]["why"] == "40 dates were missed"


def test_the_age_that_is_asked_for(tmp_path: Path) -> None:
    publish(tmp_path)
    assert wrong(tmp_path, max_age=10 * 3600) == []
    (one,) = health(tmp_path, max_age=8 * 3600).wrong
    assert one.says == "What is served is of 2026-05-01, 9.0 h old; at most 8.0 h are asked for."


def test_an_export_that_could_not_follow(tmp_path: Path, ledger: RunLedger) -> None:
    publish(tmp_path)
    ledger.move(entry("published", reason="ExportError: the disk is full"))
    (one,) = health(tmp_path).wrong
    assert (one.what, one.says) == (
        "exports",
        "Version 7 is published, but an export could not follow: ExportError: the disk is full",
    )


def test_a_scheduler_that_is_gone(tmp_path: Path, ledger: RunLedger) -> None:
    publish(tmp_path)
    ledger.move(entry("running"))
    ledger.move(entry("published"))
    assert wrong(tmp_path) == []  # there never was one
    publish(tmp_path, days=1)
    for state in ("due", "running", "published"):
        ledger.move(entry(state, days=1))  # type: ignore[arg-type]
    assert wrong(tmp_path, MORNING + DAY) == ["scheduler"]
    lease = ledger.acquire("scheduler", holder_here(), LEASE_SECONDS)
    assert lease is not None
    assert health(tmp_path, MORNING + DAY).scheduler == lease.holder
    assert wrong(tmp_path, MORNING + DAY) == []
    ledger.release(lease)
    for days in range(2, 23):  # on to cron
        ledger.move(entry("running", days=days))
        ledger.move(entry("published", days=days))
    publish(tmp_path, days=22)
    assert wrong(tmp_path, MORNING + 22 * DAY) == []


def test_notices_that_could_not_be_told(tmp_path: Path, ledger: RunLedger) -> None:
    publish(tmp_path)
    settings = Settings(home=tmp_path, notify=("json://a", "json://b"))
    ledger.add_notice("churn", "2026-05-01T00:00Z", "late", "", MORNING - timedelta(minutes=59))
    assert wrong(tmp_path, settings=settings) == []  # it is just being told
    (one,) = health(tmp_path, MORNING + timedelta(hours=1), settings=settings).wrong
    assert "has not been told for an hour" in one.says
    (notice,) = ledger.untold()
    state = {"json://a": Told(tries=MOST_TRIES, says="Connection refused"), "json://b": Told(tries=1, told=True)}
    state = {key_of(notice, address): told for address, told in state.items()}
    ledger.tried(notice.number, told_at=None, error=kept(state))
    (one,) = health(tmp_path, settings=settings).wrong
    assert one.says == "That churn was late (2026-05-01T00:00Z) could not be told to json://a: Connection refused."
    at = f"--home {tmp_path}"
    assert one.do == f"sereno notify --test {at}, and once that works: sereno notify {at}"
    assert wrong(tmp_path) == []  # nobody is to be told any more


def test_a_ledger_that_cannot_be_read(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / ".sereno" / "ledger.sqlite").write_text("no ledger" * 1000)
    found = health(tmp_path)
    assert [one.what for one in found.wrong] == ["ledger"]
    assert "is damaged" in found.wrong[0].says
    assert found.models[0].data_date == "2026-05-01"  # which the status file knows


def test_one_model_of_many(tmp_path: Path, ledger: RunLedger) -> None:
    publish(tmp_path)
    publish(tmp_path, model="risk")
    ledger.move(entry("failed", days=1, model="risk"))
    assert wrong(tmp_path) == ["failed"]
    assert wrong(tmp_path, model="risk") == ["failed"]
    assert wrong(tmp_path, model="churn") == []


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], ledger: RunLedger) -> None:
    now = datetime.now(UTC)
    days = (now - MIDNIGHT).days
    publish(tmp_path, days)
    ledger.move(entry("published", days))
    at = ["--home", str(tmp_path)]
    assert main(["health", *at]) == 0
    out, error = capsys.readouterr()
    assert "1 of 1 models are well; scheduler: none" in out
    assert error == ""
    assert main(["health", "churn", "--max-age", "1", *at]) == 1
    out, error = capsys.readouterr()
    assert out.splitlines()[1].split()[:3] == ["churn", "OLD", "published"]
    assert error.startswith("sereno: churn: What is served is of ")
    assert f"\n    → sereno runs churn --home {tmp_path}\n" in error
    assert main(["health", "--max-age", "1", "--json", *at]) == 1
    out, error = capsys.readouterr()
    told = json.loads(out)
    assert (told["ok"], told["wrong"][0]["what"], error) == (False, "old", "")
    assert main(["health", "nobody", *at]) == 1
    assert main(["notify", *at]) == 2
    assert "Nobody is to be told: 'notify' is not set" in capsys.readouterr().err


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A thousand models."""
    ledger: Any = open_ledger(Settings(home=tmp_path))
    days = (datetime.now(UTC) - MIDNIGHT).days
    folder = tmp_path / ".sereno" / "status"
    publish(tmp_path, days, "m-0")
    template = (folder / "m-0.json").read_text()
    for n in range(1000):
        (folder / f"m-{n}.json").write_text(template.replace('"m-0"', f'"m-{n}"'))
    ledger.move(entry("published", days, "m-0"))
    ledger.close()
    (tmp_path / "sereno.toml").write_text("".join(f'[models.m-{n}]\nfile = "m{n}.py"\n' for n in range(1000)))
    return tmp_path


def test_of_a_thousand_models_nothing_heavy_is_imported(many: Path) -> None:
    """It is asked every few minutes. (How long that takes is the machine's affair.)"""
    show = "import sys; from sereno.cli import main; code = main(['health']); print(*sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", show], cwd=many, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1000 of 1000 models are well" in done.stdout
    heavy = {"numpy", "pyarrow", "deltalake", "pandas", "apprise", "requests", "asyncio", "cronsim"}
    assert heavy & set(done.stdout.split()) == set()


# Where nothing was ever published


def known(home: Path, **more: Any) -> Settings:
    return Settings(home=home, models={"churn": ModelSettings(file=home / "churn.py", **more)})


def test_where_nothing_has_ever_run_all_is_not_well(tmp_path: Path) -> None:
    found = health(tmp_path, settings=known(tmp_path))
    assert [one.what for one in found.wrong] == ["nothing", "never"]
    assert "no scheduler is at work" in found.wrong[0].says
    assert wrong(tmp_path, settings=known(tmp_path, scheduled=False)) == ["nothing"]
    publish(tmp_path, model="other")
    assert wrong(tmp_path, settings=known(tmp_path)) == ["never"]
    assert wrong(tmp_path, settings=known(tmp_path, scheduled=False)) == []


def test_of_what_was_never_published_the_run_may_be_on_its_way(tmp_path: Path, ledger: RunLedger) -> None:
    given: dict[str, Any] = {"settings": known(tmp_path)}
    lease = ledger.acquire("scheduler", holder_here(), LEASE_SECONDS)
    assert lease is not None
    assert wrong(tmp_path, **given) == []  # one that has just started
    ledger.move(entry("due"))
    assert wrong(tmp_path, MIDNIGHT + timedelta(hours=1), **given) == []
    assert wrong(tmp_path, **given) == ["overdue"]
    ledger.move(entry("skipped", reason="late: nothing came"))
    (one,) = health(tmp_path, **given).wrong
    assert (one.what, "late: nothing came" in one.says) == ("never", True)
    ledger.move(entry("failed"))
    assert wrong(tmp_path, **given) == ["failed"]
    ledger.move(entry("published"))
    ledger.release(lease)
    assert "never" not in wrong(tmp_path, **given)


def test_commands_that_are_told_are_of_the_same_environment(
    tmp_path: Path, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sereno.toml").write_text("[models.churn]\nfile = 'churn.py'\n[env.prod.models.churn]\nretries = 1\n")
    ledger.move(entry("failed"))
    monkeypatch.setenv("SERENO_ENV", "prod")
    (one,) = health(tmp_path, settings=load_settings(tmp_path)).wrong
    more = "--env prod"
    assert (
        one.do == f"sereno show a-1 --model churn {more}; once it is mended, sereno run churn --date 2026-05-01 {more}"
    )
    monkeypatch.delenv("SERENO_ENV")
    given = {"values.day": "1 2", "notify": "json://hunter2", "values.password": "hunter2", "serve.port": "1"}
    settings = load_settings(tmp_path, env="prod", overrides=given, home=tmp_path / "other")
    at = ("--home", str(tmp_path / "other"), "--env", "prod", "--set", "values.day=1 2")
    place = place_of(settings)
    assert (place.folder, place.options) == (str(tmp_path), at)
    assert place.command("runs").endswith(" --env prod --set 'values.day=1 2'")
