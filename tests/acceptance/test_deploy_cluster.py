"""`sereno deploy cluster`: what it writes for the API and the balancer is started on hosts that die, with the real nginx."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.project import DAY, Project
from tests.hosts import PATIENCE, Host, Within, hosts

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
FAIL_TIMEOUT = 2  # seconds, of the balancer's configuration
NAMES = ("node1.bank", "node2.bank", "scores.bank")
# Four callers that each ask and ask, until a file is there: how often they were answered otherwise than they should.
CALLERS = """
import json, pathlib, ssl, sys, threading, time
import httpx
folder, wrong, asked = pathlib.Path(sys.argv[1]), [], [0] * 4
def ask(number):
    with httpx.Client(verify=ssl.create_default_context(cafile=folder / "bank.crt"), timeout=30) as client:
        while not (folder / "enough").exists():
            answer = client.post("https://scores.bank/predict", json={"id": 1, "x": 3})
            if answer.status_code != 200 or answer.json()["y"] != 6:
                wrong.append(f"{answer.status_code} {answer.text}")
            asked[number] += 1
            (folder / f"asked.{number}").write_text(str(asked[number]))
            time.sleep(0.01)
threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"asked": sum(asked), "wrong": wrong}))
"""
CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    include {folder}/cluster/nginx.conf;
}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.new(tmp_path / "bank")
    project.within = True
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\nlog = "off"\n')
    project.rows(DAY, 100)
    project.sereno("run", "total.py", "--date", DAY)
    project.sereno(
        "deploy", "cluster", "--hosts", "node1.bank,node2.bank", "--domain", "scores.bank", "--to", "cluster"
    )
    return project


def test_the_balancer_passes_over_a_server_that_restarts_and_a_host_that_dies(project: Project) -> None:
    if NGINX is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("LOUD: nginx is not installed (package nginx-light)")
    folder = project.folder
    certified(folder)
    with hosts(3, folder, names=NAMES) as (first, second, balancer):
        servers = {host: serve(project, host) for host in (first, second)}
        for host in servers:
            ready(host, balancer)
        (folder / "all.conf").write_text(CONFIG.format(folder=folder))
        (line,) = [
            line for line in (folder / "cluster" / "README.md").read_text().splitlines() if "tcp_retries2" in line
        ]
        balancer.run(["sysctl", "-w", line.split()[1]])
        balancer.popen([NGINX, "-c", folder / "all.conf", "-p", folder], log=folder / "nginx.log")
        assert f"fail_timeout={FAIL_TIMEOUT}s;" in (folder / "cluster" / "nginx.conf").read_text()
        callers = balancer.popen(
            [sys.executable, "-c", CALLERS, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        go_on(folder, callers)

        servers[first].send_signal(signal.SIGTERM)  # as `systemctl restart` does
        assert servers[first].wait(PATIENCE) == 0
        go_on(folder, callers)
        servers[first] = serve(project, first)
        ready(first, balancer)
        time.sleep(FAIL_TIMEOUT)  # so long nginx passes over it, though it is there again
        go_on(folder, callers)

        second.kill()
        go_on(folder, callers)

        (folder / "enough").touch()
        printed, errors = callers.communicate(timeout=PATIENCE)
        assert callers.returncode == 0, errors
        assert json.loads(printed)["wrong"] == []
        assert "allowed_hosts" in balancer.run(["curl", "-skm3", "-H", "Host: other", "https://scores.bank/predict"])


def serve(project: Project, host: Host) -> Within:
    """Start what the host's unit starts."""
    unit = (project.folder / "cluster" / host.name / "bank-api.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    command = shlex.split(line.removeprefix("ExecStart="))
    environment = {"SERENO_SERVE__NO_AUTH": "true", "PYTHONWARNINGS": "error"}
    return host.popen(command, environment, cwd=project.folder, log=project.folder / f"{host.name}.log")


def ready(host: Host, balancer: Host) -> None:
    asks = [
        "curl",
        "-sfm3",
        "--retry",
        "100",
        "--retry-delay",
        "1",
        "--retry-all-errors",
        f"http://{host.name}:8000/readyz",
    ]
    balancer.run(asks)


def go_on(folder: Path, callers: Within) -> None:
    """Until each caller was answered so often again."""
    files = [folder / f"asked.{number}" for number in range(4)]
    before = [asked(file) for file in files]
    deadline = time.monotonic() + PATIENCE
    while any(asked(file) < count + 50 for file, count in zip(files, before, strict=True)):
        assert callers.poll() is None, callers.communicate()
        assert time.monotonic() < deadline, (folder / "nginx.log").read_text()
        time.sleep(0.05)


def asked(file: Path) -> int:
    return int(file.read_text() or 0) if file.exists() else 0


def certified(folder: Path) -> None:
    """A certificate for the balancer, which the files written name where it lies here."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=scores.bank", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:scores.bank"]
    files = ["-keyout", folder / "bank.key", "-out", folder / "bank.crt"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    config = folder / "cluster" / "nginx.conf"
    config.write_text(config.read_text().replace("/etc/sereno/tls", str(folder)))
