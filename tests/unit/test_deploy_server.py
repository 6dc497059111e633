"""Units for systemd: held to systemd's own tools where they are, and their times to cronsim's."""

import shutil
import subprocess
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from sereno.cli import main
from sereno.deploy.calendar import Timed, on_calendar
from sereno.deploy.server import Server, next_steps
from sereno.deploy.writing import write
from sereno.exceptions import SettingsError

NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there: units are verified where it is"
)
START = datetime(2026, 11, 23, tzinfo=UTC)
SCHEDULES = [
    "0 0 * * *",
    "*/15 8-18 * * mon-fri",
    "5 4 1,15 * sun",
    "0 12 */2 * 1",
    "30 1 * jan,jul 7",
    "0 0 1-7 * */2",
    "59 23 31 12 *",
    "0 0-23/6 * * *",
    "7/20 3 * * 0,6",
    "0 5 * * 5-7",
]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(project=tmp_path, home=tmp_path, name="bank", user="daemon")


@NEEDS_SYSTEMD
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_timer_is_due_when_cron_is(schedule: str) -> None:
    zone = "Europe/Madrid"
    due = CronSim(schedule, START.astimezone(ZoneInfo(zone)))
    expected = [moment.astimezone(UTC) for moment in islice(due, 12)]
    found: set[datetime] = set()
    for line in on_calendar(schedule, zone):
        command = ["systemd-analyze", "calendar", "--iterations=12", f"--base-time={START:%Y-%m-%d %H:%M:%S} UTC", line]
        shown = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"}
        )
        times = [
            row.partition(": ")[2] for row in shown.stdout.splitlines() if "Next elapse" in row or "Iter. #" in row
        ]
        found |= {datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC) for text in times}
    assert sorted(found)[:12] == expected


def test_what_systemd_has_no_word_for_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"systemd has no word for 'L' in the schedule '0 0 L \* \*'"):
        on_calendar("0 0 L * *", "UTC")


@NEEDS_SYSTEMD
@pytest.mark.parametrize("folder", ["plain", "with space", "100%", "$HOME", 'quo"te'])
def test_units_are_valid(server: Server, tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    there = Server(project=place, home=place, name="bank", user="daemon", memory="4G")
    models = [Timed(name="credit-scoring", schedule="5 4 1,15 * sun", time_zone="Europe/Madrid")]
    written = write(there.units() | there.units_with_timers(models), tmp_path / "units")
    assert {path.name for path in written} == {
        "bank.service",
        "bank-api.service",
        "bank-run-credit-scoring.service",
        "bank-run-credit-scoring.timer",
    }
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, written)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@NEEDS_SYSTEMD
def test_services_are_hardened(server: Server, tmp_path: Path) -> None:
    models = [Timed(name="m", schedule="0 0 * * *", time_zone="UTC")]
    for unit in write(server.units() | server.units_with_timers(models), tmp_path / "units"):
        if unit.suffix == ".service":
            command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
            rated = subprocess.run(command, capture_output=True, text=True, check=False)
            assert rated.returncode == 0, rated.stdout[-500:]


def test_the_model_files_cannot_be_written(server: Server, tmp_path: Path) -> None:
    unit = server.units()["bank.service"]
    (writes,) = [line for line in unit.splitlines() if line.startswith("ReadWritePaths=")]
    assert writes == f"ReadWritePaths={tmp_path}/predictions {tmp_path}/exports {tmp_path}/answers {tmp_path}/.sereno"
    assert "ProtectSystem=strict" in unit


def test_a_folder_of_what_must_last_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sereno.toml").write_text('storage = "/home/lasting"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", "server", "--name", "bank"]) == 0
    unit = (tmp_path / "deploy" / "bank.service").read_text()
    there = " ".join(f"/home/lasting/{name}" for name in ("predictions", "exports", "answers", ".sereno"))
    assert f"\nReadWritePaths={there} {tmp_path}/.sereno\n" in unit
    assert "\nProtectHome=read-only\n" in unit


def test_what_is_done_with_them_is_said(tmp_path: Path) -> None:
    server = Server(project=tmp_path / "a b", home=tmp_path / "a b", name="bank", user="sereno")
    timers = server.units_with_timers([Timed(name="m", schedule="0 0 * * *", time_zone="UTC")])
    steps = list(next_steps(server, tmp_path, timers))
    assert any(f"'{tmp_path}/a b/predictions'" in step for step in steps)
    assert "  systemctl enable --now bank-api.service bank-run-m.timer" in steps


def test_the_service_chooses_the_environment_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sereno.toml").write_text("[env.prod]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", "server", "--name", "bank", "--env", "prod"]) == 0
    assert "&& echo SERENO_ENV=prod >> /etc/sereno/bank.env " in capsys.readouterr().out


def test_a_dollar_is_doubled_in_commands_alone(tmp_path: Path) -> None:
    place = tmp_path / "a$b"
    unit = Server(project=place, home=place, name="bank", user="sereno", python=place / "python").units()[
        "bank.service"
    ]
    assert f"ReadWritePaths={tmp_path}/a$b/predictions " in unit
    assert f"ExecStart={tmp_path}/a$$b/python -P" in unit


def test_an_interpreter_that_nobody_may_read_is_told(server: Server, tmp_path: Path) -> None:
    hidden = Server(project=tmp_path, home=tmp_path, name="bank", user="sereno", python=Path("/root/venv/bin/python"))
    assert any(
        line.startswith("WARNING: Python lies in /root/") for line in next_steps(hidden, tmp_path, hidden.units())
    )


def test_what_was_changed_by_hand_stays(server: Server, tmp_path: Path) -> None:
    units = server.units()
    write(units, tmp_path)
    write(units, tmp_path)  # the same again is nothing
    (tmp_path / "bank.service").write_text("mine")
    with pytest.raises(SettingsError, match="exists and differs from what would be written"):
        write(units, tmp_path)
    assert (tmp_path / "bank.service").read_text() == "mine"


@pytest.mark.parametrize("name", ["bank.service", "README.md"])
def test_what_nobody_has_changed_is_written_anew(tmp_path: Path, name: str) -> None:
    """After an upgrade, or where a model is new; and one that was changed keeps the others as they are, too."""
    write({name: "one\n", "other": "one\n"}, tmp_path)
    write({name: "two\n", "other": "two\n"}, tmp_path)
    old = (tmp_path / name).read_text()
    assert old.startswith("two\n")
    for changed in (old.replace("two", "2"), old.removesuffix("\n"), f"{old}\n", f"{old}three\n", "two\n", "\xff"):
        (tmp_path / name).write_text(changed, "latin-1")
        with pytest.raises(SettingsError, match="somebody has changed it since `sereno deploy` wrote it"):
            write({"other": "three\n", name: "three\n"}, tmp_path)
        assert (tmp_path / name).read_text("latin-1") == changed
    assert (tmp_path / "other").read_text().startswith("two\n")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"user": "root"}, "is not to run as root"),
        ({"user": "Bad User"}, "is no name of a user"),
        ({"name": "../x"}, "cannot be the name of a unit"),
        ({"memory": "lots"}, "is no amount of memory"),
        ({"memory": "8"}, "--memory '8' cannot be meant: 64M is the least"),
        ({"memory": "8000K"}, "cannot be meant"),
        ({"memory": "101%"}, "cannot be meant"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, wrong: dict[str, str], says: str) -> None:
    right = {"name": "bank", "user": "sereno", "memory": "80%"}
    with pytest.raises(SettingsError, match=says):
        Server(project=tmp_path, home=tmp_path, **(right | wrong))  # type: ignore[arg-type]
