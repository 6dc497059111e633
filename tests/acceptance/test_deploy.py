"""`sereno deploy server`: its units run under a real systemd, with all that they are not allowed to."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import systemd
from tests.acceptance.project import Project

ROOT = Path(__file__).parents[2]
WHY_NOT = systemd.missing()
NEEDS_SYSTEMD = pytest.mark.skipif(bool(WHY_NOT), reason=f"units cannot be run here: {WHY_NOT}")
INSIDE = "/srv/bank"
INSTALLED = "/opt/sereno"  # where this checkout lies within: services see no /tmp but their own
PYTHON = sys.executable
SPY = """
from pathlib import Path
for place in ("predictions/x", "answers/x", ".sereno/x", "total.py", "/etc/x", "/root/x", "/usr/x"):
    try:
        Path(place).write_text("x")
        print(place, "written")
    except OSError as error:
        print(place, error.strerror)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose model reads what does not depend on the date."""
    project = Project.new(tmp_path / "bank")
    text = project.folder.joinpath("total.py").read_text()
    project.write("total.py", text.replace("input/{data_date}/*.parquet", "input/2024-05-01/*.parquet"))
    project.write("sereno.toml", '[serve]\nport = 8017\n[models.total]\nfile = "total.py"\n')
    project.rows("2024-05-01", 100)
    return project


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def units_of(project: Project, *options: str) -> dict[str, str]:
    """What the command writes, as of a project that lies in /srv."""
    project.sereno("deploy", "server", "--to", "units", "--user", "daemon", "--memory", "2G", *options)
    found = (project.folder / "units").iterdir()
    texts = {unit.name: unit.read_text() for unit in found}
    path = f"Environment=PYTHONPATH={INSTALLED}/src\nEnvironmentFile="
    return {
        name: text.replace(str(project.folder), INSIDE).replace(str(ROOT), INSTALLED).replace("EnvironmentFile=", path)
        for name, text in texts.items()
    }


def give_away(project: Project) -> None:
    """As the steps say that are printed: what the service writes is its user's."""
    for name in ("predictions", "exports", "answers", ".sereno"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
        (project.folder / name).mkdir()
        shutil.chown(project.folder / name, "daemon", "daemon")


@NEEDS_SYSTEMD
def test_the_service_runs_and_may_do_nothing_else(project: Project, tmp_path: Path) -> None:
    units = units_of(project)
    assert [*units] == ["bank.service"]
    unit = units["bank.service"]
    spy = unit.replace("Type=notify\n", "Type=oneshot\n").replace("Restart=always\n", "Restart=no\n")
    spy = spy.replace("-P -m sereno up", "spy.py").replace("SyslogIdentifier=bank", "SyslogIdentifier=spy")
    project.write("spy.py", SPY)
    give_away(project)
    with systemd.booted(
        tmp_path / "systemd",
        {**units, "spy.service": spy},
        shown={project.folder: INSIDE, ROOT: INSTALLED},
        readable=[Path(PYTHON).resolve()],
    ) as booted:
        until(lambda: booted.state("bank.service") != "activating")
        assert booted.state("bank.service") == "active", booted.journal("bank.service")
        versions = project.folder / "predictions" / "total" / "_delta_log"
        until(lambda: versions.is_dir() and len(list(versions.glob("*.json"))) == 1)
        until(lambda: '"version":1' in booted.run("curl", "-sm3", "http://localhost:8017/predictions/8", check=False))
        assert (project.folder / ".sereno").owner() == "daemon"
        assert "Schedules total." in booted.journal("bank.service")

        # killed, it is back
        before = booted.run("systemctl", "show", "--value", "--property=MainPID", "bank.service").strip()
        booted.run("kill", "-9", before)
        until(lambda: before not in booted.run("systemctl", "show", "--property=MainPID", "bank.service"))
        until(lambda: booted.state("bank.service") == "active")
        until(lambda: '"version":1' in booted.run("curl", "-sm3", "http://localhost:8017/predictions/8", check=False))

        until(lambda: booted.state("spy.service") in ("inactive", "failed"))
        said = dict(
            line.split(" ", 1)
            for line in booted.journal("spy.service").splitlines()
            if line.startswith(("/", ".", "a", "p", "t"))
        )
        denied = "Read-only file system"
        assert {
            name: said[name] for name in ("predictions/x", "answers/x", ".sereno/x", "total.py", "/etc/x", "/usr/x")
        } == {
            "predictions/x": "written",
            "answers/x": "written",
            ".sereno/x": "written",
            "total.py": denied,
            "/etc/x": denied,
            "/usr/x": denied,
        }
        assert said["/root/x"] in (denied, "Permission denied")

        booted.run("systemctl", "stop", "bank.service")
        result = booted.run("systemctl", "show", "--property=Result,ExecMainStatus", "bank.service")
        assert result.split() == ["Result=success", "ExecMainStatus=0"]


@NEEDS_SYSTEMD
def test_a_timer_starts_a_run(project: Project, tmp_path: Path) -> None:
    units = units_of(project, "--timers")
    assert sorted(units) == ["bank-api.service", "bank-run-total.service", "bank-run-total.timer"]
    # due at once, in place of midnight
    lines = units["bank-run-total.timer"].splitlines()
    timer = ["OnActiveSec=1" if line.startswith("OnCalendar=") else line for line in lines]
    units["bank-run-total.timer"] = "\n".join(line for line in timer if not line.startswith("Persistent="))
    give_away(project)
    with systemd.booted(
        tmp_path / "systemd", units, shown={project.folder: INSIDE, ROOT: INSTALLED}, readable=[Path(PYTHON).resolve()]
    ) as booted:
        log = project.folder / "predictions" / "total" / "_delta_log"
        until(lambda: log.is_dir() and len(list(log.glob("*.json"))) == 1)
        until(lambda: booted.state("bank-run-total.service") == "inactive")
        shown = booted.run("systemctl", "show", "--property=Result", "bank-run-total.service")
        assert shown.strip() == "Result=success", booted.journal("bank-run-total.service")
        until(lambda: '"version":1' in booted.run("curl", "-sm3", "http://localhost:8017/predictions/8", check=False))


def test_what_is_written_and_said(project: Project) -> None:
    said = project.sereno("deploy", "server", "--user", "daemon").stdout
    assert said.startswith(f"Wrote {project.folder}/deploy/bank.service\n")
    assert "Read them, then as root:\n" in said
    assert "systemctl enable --now bank.service" in said
    assert "\nTimeoutStopSec=55\n" in (project.folder / "deploy" / "bank.service").read_text()
    done = project.json("deploy", "server", "--user", "daemon", "--to", "elsewhere", "--timers")
    names = ["bank-api.service", "bank-run-total.service", "bank-run-total.timer"]
    assert done == {"written": [f"{project.folder}/elsewhere/{name}" for name in names]}


def test_a_project_without_settings_is_refused(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SERENO_")}
    command = [PYTHON, "-m", "sereno", "deploy", "server", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["says"].startswith("There is no sereno.toml in")


def test_a_cluster_gets_a_folder_for_each_host(project: Project) -> None:
    (line,) = re.findall(r"^sereno (deploy cluster .*)$", (ROOT / "docs/deploy_cluster.md").read_text(), re.MULTILINE)
    done = project.sereno(*line.replace("~/cluster", "cluster").split(), "--user", "daemon")
    folder = project.folder / "cluster"
    assert f"Wrote {folder}/node3.bank/bank-api.service\n" in done.stdout
    assert "WARNING: The ledger is a file of the home" in done.stdout
    assert done.stdout.endswith(f"Read {folder}/README.md: it says what goes where.\n")
    assert f"{project.folder}" in (folder / "README.md").read_text()
    assert ":8017 max_fails" in (folder / "nginx.conf").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cluster", "--hosts", "node1,node2"], "A cluster needs its hosts and its name"),
        (["cluster", "--domain", "scores.bank"], "A cluster needs its hosts and its name"),
    ],
)
def test_a_cluster_has_hosts_and_a_name(project: Project, arguments: list[str], says: str) -> None:
    project.within = True
    assert says in project.sereno("deploy", *arguments, code=2).stderr


@NEEDS_SYSTEMD
def test_a_run_of_the_cluster_goes_through_ray_and_the_api_answers(project: Project, tmp_path: Path) -> None:
    settings = 'executor = "ray"\nworkers = 1\n[ray]\naddress = "127.0.0.1:6379"\n'
    project.write("sereno.toml", settings + project.folder.joinpath("sereno.toml").read_text())
    cluster = ["--hosts", "127.0.0.1,127.0.0.2", "--domain", "scores.bank", "--memory", "4G"]
    project.sereno("deploy", "cluster", *cluster, "--to", "units", "--user", "daemon")
    given = f"Environment=PYTHONPATH={INSTALLED}/src RAY_AUTH_TOKEN={'ab' * 32} SERENO_SERVE__NO_AUTH=true"
    units = {
        unit.name: unit.read_text()
        .replace(str(project.folder), INSIDE)
        .replace(str(ROOT), INSTALLED)
        .replace("/bin/ray ", "/bin/python -m ray.scripts.scripts ")  # that script's own Python may lie out of sight
        .replace("EnvironmentFile=/etc/sereno/bank.env", given)
        for unit in (project.folder / "units" / "127.0.0.1").iterdir()
    }
    give_away(project)
    with systemd.booted(
        tmp_path / "systemd", units, shown={project.folder: INSIDE, ROOT: INSTALLED}, readable=[Path(PYTHON).resolve()]
    ) as booted:
        asks = ("curl", "-sm3", "-H", "Host: scores.bank", "http://127.0.0.1:8017/predictions/8")
        until(lambda: '"version":1' in booted.run(*asks, check=False))
        until(lambda: "published as version 1: 100 predictions" in booted.journal("bank-schedule.service"))
        assert "allowed_hosts" in booted.run(*asks[:3], "Host: other.bank", asks[4], check=False)
