"""`sereno deploy docker`: what it writes is built, as far as that can be done without a builder, and run as containers are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import image
from tests.acceptance.project import DAY, MODEL, Project
from tests.image import Base, Builder, Container, Stage

ROOT = Path(__file__).parents[2]
WHY_NOT = image.missing()
NEEDS_NAMESPACES = pytest.mark.skipif(bool(WHY_NOT), reason=f"images cannot be built here: {WHY_NOT}")
OPEN = {"SERENO_SERVE__NO_AUTH": "true", "SERENO_SERVE__TLS_TERMINATED_UPSTREAM": "true", "PYTHONWARNINGS": "error"}
UID = 10001


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sereno's own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("sereno-*.whl")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Project:
    """A project with much that is nobody's business, after its command has been typed."""
    project = Project.new(tmp_path_factory.mktemp("project") / "bank")
    project.write("features/__init__.py", "")
    project.write("features/weights.py", "FACTOR = 1.0\n")
    project.write(
        "total.py",
        MODEL.replace("import pyarrow as pa\n", "import pyarrow as pa\nfrom features.weights import FACTOR\n"),
    )
    project.write("sereno.toml", '[values]\nx = 1\n[models.total]\nfile = "total.py"\nlookup = "off"\n')
    project.write(".env", "TOKEN=hidden")
    project.write("secrets/api_keys", "hidden")
    project.write("notebooks/train.py", "")
    project.rows(DAY, 100)
    (project.folder / "weight.txt").chmod(0o600)
    (project.folder / "wheels").mkdir()
    (project.folder / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    version = wheel.name.split("-")[1]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    project.write("requirements.txt", f"sereno=={version} \\\n    --hash=sha256:{digest}\n")
    project.sereno("deploy", "docker")
    return project


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    with image.builder(tmp_path_factory.mktemp("image") / "stages") as builder:
        yield builder


@pytest.fixture(scope="module")
def stage(builder: Builder, project: Project) -> Stage:
    return builder.build(project.folder, image.machine())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A volume, as a cluster gives it to the image's user."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    return home


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ended(container: Container, seconds: float = 60) -> tuple[int, str, str]:
    out, error = container.process.communicate(timeout=seconds)
    return container.process.returncode, out, error


def ask(port: int, path: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: bytes = answer.read()
        return found


def until_ready(port: int, container: Container) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(port, "/readyz")
        except OSError:
            assert container.process.poll() is None, ended(container)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_reaped(container: Container) -> None:
    """Whose parent is gone, as of a command that somebody types in the container, is no zombie once it has ended."""
    within = ["nsenter", f"--target={container.pid}", "--mount", "--pid", "--root"]

    def typed(line: str) -> str:
        command = [*within, "sh", "-c", line]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.strip()

    orphan = typed("sleep 600 >/dev/null & echo $!")
    proc = Path(f"/proc/{container.pid}/root/proc/{orphan}")
    assert "\nPPid:\t1\n" in (proc / "status").read_text()
    typed(f"kill {orphan}")
    until(lambda: not proc.exists())


def test_the_image_has_the_project_and_nothing_else(project: Project) -> None:
    assert [str(file) for file in image.let_in(project.folder)] == [
        "features/__init__.py",
        "features/weights.py",
        "requirements.txt",
        "sereno.toml",
        "total.py",
        "weight.txt",
        *(f"wheels/{wheel.name}" for wheel in (project.folder / "wheels").iterdir()),
    ]


@NEEDS_NAMESPACES
def test_it_serves_on_a_root_that_nobody_can_write(builder: Builder, stage: Stage, home: Path, tmp_path: Path) -> None:
    port = free_port()
    variables = {**OPEN, "PORT": str(port)}
    with builder.run(stage, volumes={home: "/var/lib/sereno"}, variables=variables) as container:
        until_ready(port, container)
        status = Path(f"/proc/{container.pid}/status").read_text()
        assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
        assert "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert b'"y":3.0' in ask(port, "/predict", {"x": 1.5})
        is_reaped(container)
        healthy = container.health()
        assert (healthy.returncode, healthy.stderr) == (0, "")
        container.stop(signal.Signals[stage.stop_signal])
        code, _, errors = ended(container)
    assert code == 0, errors
    assert "Read-only" not in errors


@NEEDS_NAMESPACES
def test_it_runs_on_a_root_that_nobody_can_write(builder: Builder, stage: Stage, project: Project, home: Path) -> None:
    volumes = {home: "/var/lib/sereno", project.folder / "input": "/app/input"}
    with builder.run(stage, "run", "total", "--date", DAY, "--json", volumes=volumes) as container:
        code, out, errors = ended(container)
    assert code == 0, errors
    assert json.loads(out)["state"] == "published"
    written = {path.relative_to(home).parts[0] for path in home.rglob("*")}
    assert written == {".sereno", "exports", "predictions"}


@NEEDS_NAMESPACES
def test_up_does_both_until_it_is_told_to_end(builder: Builder, stage: Stage, home: Path) -> None:
    port = free_port()
    with builder.run(
        stage, "up", volumes={home: "/var/lib/sereno"}, variables={**OPEN, "PORT": str(port)}
    ) as container:
        until_ready(port, container)
        assert container.process.stdout is not None
        assert any("Schedules total." in line for line in container.process.stdout), ended(container)
        is_reaped(container)
        healthy = container.health()
        assert (healthy.returncode, healthy.stderr) == (0, "")
        container.stop(signal.SIGTERM)
        code, _, errors = ended(container)
    assert code == 0, errors


@NEEDS_NAMESPACES
def test_a_run_that_is_told_to_end_does(builder: Builder, stage: Stage, project: Project, home: Path) -> None:
    """The kernel spares process 1 a SIGTERM that nothing catches: an engine would have to wait, and then kill."""
    volumes = {home: "/var/lib/sereno", project.folder / "input": "/app/input"}
    fault = {"SERENO_TESTING": "1", "SERENO_FAILPOINT": "commit_before:delay=60"}
    with builder.run(stage, "run", "total", "--date", DAY, volumes=volumes, variables=fault) as container:
        until(lambda: any(home.glob("predictions/total/**/*.parquet")))
        container.stop(signal.SIGTERM)
        code, _, _ = ended(container, 20)
    assert code == 128 + signal.SIGTERM


@NEEDS_NAMESPACES
def test_what_is_not_mounted_is_told(builder: Builder, stage: Stage) -> None:
    with builder.run(stage, "run", "total", "--date", DAY, volumes={}) as container:
        code, _, errors = ended(container)
    assert code == 1
    assert "/var/lib/sereno" in errors
    assert "the file system is read-only" in errors
    assert "Traceback" not in errors
    port = free_port()
    with builder.run(stage, volumes={}, variables={**OPEN, "PORT": str(port)}) as container:
        until_ready(port, container)
        assert b'"y":3.0' in ask(port, "/predict", {"x": 1.5})
        container.stop(signal.SIGTERM)
        code, _, errors = ended(container)
    assert code == 0, errors
    assert "The answers of total cannot be written: the file system is read-only (/var/lib/sereno/.sereno)" in errors
    assert "Traceback" not in errors


@NEEDS_NAMESPACES
def test_a_package_that_is_another_one_ends_the_build(builder: Builder, project: Project, tmp_path: Path) -> None:
    other = project.copy(tmp_path / "bank")
    text = (other.folder / "requirements.txt").read_text()
    other.write("requirements.txt", re.sub("sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, text))
    with pytest.raises(AssertionError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        builder.build(other.folder, image.machine())


@pytest.mark.soak
@NEEDS_NAMESPACES
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed")
def test_an_image_of_debian_with_packages_of_an_index(
    builder: Builder, project: Project, home: Path, tmp_path: Path
) -> None:
    """Nothing of this machine: a Debian that debootstrap fetches, its Python, and what the page says to lock, installed by pip."""
    debian = tmp_path / "debian"
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", debian],
        check=True,
        capture_output=True,
    )
    (debian / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")  # as images of Python call it
    environment = {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"}
    if certificate := os.environ.get("PIP_CERT"):  # of whoever stands before the index here
        environment["PIP_CERT"] = "/etc/ssl/certs/index.pem"
        shutil.copy(certificate, debian / "etc" / "ssl" / "certs" / "index.pem")
    builder.secrets["pip"] = pip_settings(tmp_path / "pip.conf")

    own = project.copy(tmp_path / "bank")
    own.write("requirements.in", "sereno\n")
    lock = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--python-version",
        "3.11",
        "--find-links",
        "wheels",
    ]
    subprocess.run(
        [*lock, "requirements.in", "--output-file", "requirements.txt"],
        cwd=own.folder,
        check=True,
        env={**os.environ, "PATH": f"{ROOT}/.tools/bin:{os.environ['PATH']}"},
    )
    (own.folder / "Dockerfile").unlink()
    said = own.sereno("deploy", "docker", "--base", "python:3.11-slim-bookworm").stdout
    assert "WARNING" not in said
    stage = builder.build(own.folder, Base(folder=debian, environment=environment))

    port = free_port()
    volumes = {home: "/var/lib/sereno", own.folder / "input": "/app/input"}
    with builder.run(stage, "run", "total", "--date", DAY, "--json", volumes=volumes) as container:
        code, out, errors = ended(container)
    assert (code, json.loads(out)["state"]) == (0, "published"), errors
    with builder.run(stage, volumes=volumes, variables={**OPEN, "PORT": str(port)}) as container:
        until_ready(port, container)
        assert b'"y":3.0' in ask(port, "/predict", {"x": 1.5})
        assert container.health().returncode == 0
        container.stop(signal.SIGTERM)
        assert ended(container)[0] == 0


def pip_settings(file: Path) -> Path:
    """Those of this machine, for the secret of a build."""
    listed = subprocess.run(
        [ROOT / ".tools" / "bin" / "python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^global\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    file.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in found if "cert" not in name)]))
    return file
