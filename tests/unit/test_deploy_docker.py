"""What is written for an image: held to hadolint, and to how a builder reads a .dockerignore."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sereno import __version__
from sereno.cli import deploying, main
from sereno.config import load_settings
from sereno.deploy.complete import lacking
from sereno.deploy.docker import Image, default_base, files_of_artifacts, next_steps, with_targets
from sereno.deploy.locked import extras_for, locked_in, warnings
from sereno.exceptions import SettingsError
from sereno.serve.alive import ask, settings_of, started
from sereno.settings import ServeSettings
from tests import image as images

HADOLINT = Path(sys.executable).with_name("hadolint")
DIGEST = "sha256:" + "0" * 64
MODEL = """
from typing import TypedDict
from sereno import Key, Model
from beside import X
class Row(TypedDict):
    id: Key[int]
    x: float
class Score(TypedDict):
    y: int
model = Model("m", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt", "far": "s3://bank/far.joblib"})
@model.load
def load(weight, far):
    return 1
@model.predict
def predict(loaded, rows: list[Row]):
    return rows
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "bank"
    folder.mkdir()
    texts = {"m.py": MODEL, "beside.py": "X = 1", "weight.txt": "2", "sereno.toml": '[models.m]\nfile = "m.py"\n'}
    for name, text in {**texts, "notes.md": "ours", "requirements.txt": ""}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def image(project: Path) -> Image:
    return Image(
        project=project,
        name="bank",
        included=[project / "m.py"],
        requirements=project / "requirements.txt",
        base="python:3.11-slim-bookworm",
    )


def deploy(project: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    before = Path.cwd()
    os.chdir(project)
    try:
        code = main(["deploy", "docker", *options])
    finally:
        os.chdir(before)
    out, error = capsys.readouterr()
    return code, out, error


# The Dockerfile


@pytest.mark.parametrize("wheels", [False, True])
@pytest.mark.parametrize("packages", [(), ("libgomp1", "tini=0.19.0-1")])
def test_hadolint_finds_nothing(image: Image, tmp_path: Path, wheels: bool, packages: tuple[str, ...]) -> None:
    if wheels:
        (image.project / "wheels").mkdir()
    file = tmp_path / "Dockerfile"
    file.write_text(replace(image, packages=packages).files(image.project)["Dockerfile"])
    read = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stdout, read.stderr) == (0, "", "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd / && sudo pip install sereno\nCMD sereno serve\n")
    read = subprocess.run(
        [HADOLINT, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert read.returncode == 1
    assert {"DL3003", "DL3004", "DL3006", "DL3025"} <= {word for word in read.stdout.split() if word.startswith("DL")}


def test_no_shell_is_between_the_signal_and_sereno(image: Image) -> None:
    told = dict(images.instructions(image.files(image.project)["Dockerfile"]))  # of those given twice, the last
    assert json.loads(told["ENTRYPOINT"]) == ["/opt/venv/bin/python", "-P", "-m", "sereno"]
    assert json.loads(told["CMD"]) == ["serve"]
    assert json.loads(told["HEALTHCHECK"].partition("CMD ")[2])[-1] == "sereno.serve.alive"
    assert told["STOPSIGNAL"] == "SIGTERM"
    assert told["USER"] == "10001:10001"
    assert told["EXPOSE"] == "8000"


def test_the_user_is_a_number_before_anything_is_started(image: Image) -> None:
    *_, last = image.files(image.project)["Dockerfile"].split("\nFROM ")
    names = [name for name, _ in images.instructions("FROM " + last)]
    assert names.count("USER") == 1
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "root" not in last.partition("USER")[2].split("\n")[0]


def test_packages_are_installed_by_hash_and_from_wheels(image: Image) -> None:
    (run,) = [
        rest
        for _, rest in images.instructions(image.files(image.project)["Dockerfile"])
        if "pip" in rest and "install" in rest
    ]
    assert "--require-hashes --only-binary :all: --requirement requirements.txt" in run
    (image.project / "wheels").mkdir()
    assert "--find-links wheels " in image.files(image.project)["Dockerfile"]


def test_the_base_is_of_this_python() -> None:
    version = sys.version_info
    assert default_base() == f"python:{version.major}.{version.minor}-slim-bookworm"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "Bank Scores"}, "cannot be the name of an image"),
        ({"base": "python:3.11 AS x"}, "is no name of an image. Write --base python:3"),
        ({"base": "python@sha256:12"}, "is no name of an image"),
        ({"packages": ("libgomp1; rm",)}, "'libgomp1; rm' in --apt is no name of a Debian package"),
        ({"requirements": Path("/etc/requirements.txt")}, "/etc/requirements.txt lies outside of "),
        ({"requirements": Path("my requirements.txt")}, "cannot stand in a Dockerfile as it is"),
        ({"included": [Path("x \n")]}, "cannot stand in a .dockerignore"),
    ],
)
def test_wrong_words_are_refused(image: Image, wrong: dict[str, Any], says: str) -> None:
    if "requirements" in wrong:
        wrong = {"requirements": image.project / wrong["requirements"]}
    if "included" in wrong:
        wrong = {"included": [image.project / place for place in wrong["included"]]}
    with pytest.raises(SettingsError, match=says):
        replace(image, **wrong).files(image.project)


def test_a_base_of_ones_own_is_taken(image: Image) -> None:
    own = f"registry.bank:5000/base/python:3.11@{DIGEST}"
    text = replace(image, base=own).files(image.project)["Dockerfile"]
    assert f"\nARG BASE={own}\n" in text
    steps = "\n".join(next_steps(replace(image, base=own), image.project, stop_seconds=55))
    assert "NOTE" not in steps
    assert "--stop-timeout 55 " in steps
    assert "NOTE: python:3.11-slim-bookworm is another image every few weeks" in "\n".join(
        next_steps(image, image.project, stop_seconds=25)
    )


# What is let in


def test_a_dockerfile_elsewhere_has_its_own_list_beside_it(image: Image, tmp_path: Path) -> None:
    assert sorted(image.files(image.project)) == [".dockerignore", "Dockerfile"]
    assert sorted(image.files(tmp_path)) == ["Dockerfile", "Dockerfile.dockerignore"]
    (build,) = [line for line in next_steps(image, tmp_path, stop_seconds=1) if "docker build" in line]
    assert f"--file {tmp_path}/Dockerfile {image.project}" in build


@pytest.mark.parametrize("name", ["plain", "with space", "[a]", "star*", "what?", "back\\slash", "!bang", "#hash", "ü"])
def test_what_is_let_in_is_that_file_whatever_it_is_called(image: Image, name: str) -> None:
    (image.project / name).write_text("")
    (image.project / "folder" / name).mkdir(parents=True)
    (image.project / "folder" / name / "x").write_text("")
    (image.project / "folder" / "__pycache__").mkdir()
    (image.project / "folder" / "__pycache__" / "x.pyc").write_text("")
    (image.project / "a").write_text("")  # what a pattern would fit
    included = [image.project / name, image.project / "folder"]
    ignored = replace(image, included=included).files(image.project)[".dockerignore"]
    found = {str(file) for file in images.let_in(image.project, ignored)}
    assert found == {name, f"folder/{name}/x", "requirements.txt"}


def test_the_command_lets_in_what_the_models_are_made_of(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = deploy(project, capsys)
    assert code == 0
    assert out.startswith(f"Wrote {project}/Dockerfile\nWrote {project}/.dockerignore\n")
    assert "--stop-timeout 55 " in out  # 25 to drain, and what else a server and `up` may take
    assert [str(file) for file in images.let_in(project)] == [
        "beside.py",
        "m.py",
        "requirements.txt",
        "sereno.toml",
        "weight.txt",
    ]
    assert deploy(project, capsys)[0] == 0  # the same again is nothing
    assert deploy(project, capsys, "--include", "notes.md")[0] == 0
    assert Path("notes.md") in images.let_in(project)
    with (project / ".dockerignore").open("a") as file:
        file.write("*.secret\n")
    code, _, error = deploy(project, capsys)
    assert code == 2
    assert "exists and differs from what would be written" in error
    assert Path("notes.md") in images.let_in(project)


def test_a_place_where_nothing_can_be_written_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = deploy(project, capsys, "--to", "/proc/x")
    assert code == 1
    assert error == (
        "sereno: The files could not be written: No such file or directory (/proc/x). Mend that, or write elsewhere with --to.\n"
    )


def test_a_container_chooses_the_environment_that_was_chosen(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sereno.toml").write_text("[env.prod]\n")
    assert "SERENO_ENV" not in deploy(project, capsys)[1]
    out = deploy(project, capsys, "--env", "prod")[1]
    assert out.count(" --env SERENO_ENV=prod ") == 2
    assert out.count("docker run ") == 2


def test_an_image_may_have_packages_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sereno.toml").write_text("")
    code, out, _ = deploy(project, capsys)
    assert code == 0
    assert f"{project}/sereno.toml names no model: the image has packages alone" in out
    assert [str(file) for file in images.let_in(project)] == ["requirements.txt", "sereno.toml"]
    assert lacking(project) == ([], [])


def test_a_link_is_let_in_with_what_it_leads_to(project: Path) -> None:
    (project / "v2.txt").write_text("2")
    (project / "weight.txt").unlink()
    (project / "weight.txt").symlink_to("v2.txt")
    places = list(with_targets(project, files_of_artifacts(project / "m.py", {"w": "weight.txt#sha256=0"})))
    assert places == [project / "weight.txt", project / "v2.txt"]


@pytest.mark.parametrize("how", ["path", "link"])
def test_what_lies_outside_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    (tmp_path / "elsewhere.txt").write_text("2")
    if how == "path":
        (project / "m.py").write_text(MODEL.replace('"weight.txt"', '"../elsewhere.txt"'))
    else:
        (project / "weight.txt").unlink()
        (project / "weight.txt").symlink_to(tmp_path / "elsewhere.txt")
    code, _, error = deploy(project, capsys)
    assert code == 2
    assert f"lies outside of {project}, and an image is built from that folder alone" in error


@pytest.mark.parametrize(
    ("change", "options", "code", "says"),
    [
        (("weight.txt", None), (), 2, "weight.txt, which the image is to have. Train the model first"),
        (("m.py", "import nothing_such"), (), 1, "the module 'nothing_such' is not installed"),
        (("sereno.toml", None), (), 2, "There is no sereno.toml"),
        (None, ("--include", "none.csv"), 2, "none.csv, which the image is to have"),
    ],
)
def test_what_cannot_be_written_is_told(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str | None] | None,
    options: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    if change is not None and change[1] is None:
        (project / change[0]).unlink()
    elif change is not None:
        (project / change[0]).write_text(str(change[1]))
    found, _, error = deploy(project, capsys, *options)
    assert (found, says in error) == (code, True), error
    assert not (project / "Dockerfile").exists()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("docker --replicas 3", "--replicas 3 (--replicas is of `sereno deploy kubernetes`)"),
        (
            "docker --memory=2G",
            "--memory=2G (--memory is of `sereno deploy server`, `sereno deploy cluster`, `sereno deploy",
        ),
        ("docker --hosts a,b", "--hosts a,b (--hosts is of `sereno deploy cluster`)"),
        ("server --apt libgomp1", "--apt libgomp1 (--apt is of `sereno deploy docker`)"),
        ("server --hosts node1,node2", "--hosts node1,node2 (--hosts is of `sereno deploy cluster`)"),
        (
            "server --domain a.bank",
            "--domain a.bank (--domain is of `sereno deploy cluster`, `sereno deploy kubernetes`)",
        ),
        ("server --image x:1", "--image x:1 (--image is of `sereno deploy kubernetes`)"),
        ("cluster --hosts a,b --domain c --timers", "--timers (--timers is of `sereno deploy server`)"),
        (
            "kubernetes --image x:1 --user me",
            "--user me (--user is of `sereno deploy server`, `sereno deploy cluster`)",
        ),
        ("kubernetes --image x:1 --nothing", "--nothing\n"),
    ],
)
def test_options_of_other_environments_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], typed: str, says: str
) -> None:
    environment, *_ = words = typed.split()
    before = Path.cwd()
    os.chdir(project)
    try:
        with pytest.raises(SystemExit, match="2"):
            main(["deploy", *words])
    finally:
        os.chdir(before)
    error = capsys.readouterr().err
    assert f"sereno deploy {environment}: error: unrecognized arguments: {says}" in error
    assert error.startswith(f"usage: sereno deploy {environment} ")  # what is valid
    assert not any(name in error for name in ("Dockerfile", "Wrote"))


def test_help_of_an_environment_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["deploy", "kubernetes", "--help"])
    said = capsys.readouterr().out
    assert "--replicas" in said
    assert not any(option in said for option in ("--apt", "--timers", "--hosts", "--user"))


# The packages

LOCK = f"""\
# made by uv pip compile
--index-url https://index.bank/simple
numpy==2.1.0 \\
    --hash={DIGEST} \\
    --hash={DIGEST}
    # via -r requirements.in
Scikit_Learn==1.6.1 ; python_version >= "3.11" --hash={DIGEST}
sereno[cloud]=={__version__} --hash={DIGEST}
own @ https://index.bank/own-1.0-py3-none-any.whl --hash={DIGEST}
"""


def test_a_file_of_requirements_is_read() -> None:
    locked = locked_in(LOCK)
    assert locked.unlocked == ()
    assert locked.versions == {"numpy": "2.1.0", "scikit-learn": "1.6.1", "sereno": __version__, "own": ""}
    assert not locked.lacks("scikit-learn>=1.5")
    assert locked.lacks("scikit-learn>=1.7")
    assert locked.lacks("pandas")
    assert not locked.lacks("pandas; python_version < '3'")
    assert not locked.lacks("own>=7")  # its version is not known
    loose = locked_in(f"a==1.0\nb>=2 --hash={DIGEST}\nc==1.* --hash={DIGEST}\n-e .\n")
    assert loose.unlocked == ("a==1.0", "b>=2", "c==1.*", "-e .")


def test_what_a_file_lacks_is_told(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    assert list(warnings(locked_in(LOCK), file, [], ["numpy", "scikit-learn"])) == []
    hashes, own, extras, asked = warnings(locked_in("numpy==2.1.0"), file, ["cloud", "ray"], ["pandas>=2", "numpy"])
    assert "requirements.txt has no version and hash for numpy==2.1.0, so that the build refuses it" in hashes
    assert f"Lock sereno=={__version__}, too" in own
    assert "The settings want sereno[cloud,ray], which requirements.txt has not" in extras
    assert "Model files ask for pandas>=2, which requirements.txt has not" in asked
    (version,) = warnings(locked_in(f"sereno==0.0.1 --hash={DIGEST}"), file, [], [])
    assert f"has sereno 0.0.1; this is {__version__}" in version


def test_extras_follow_from_the_settings(tmp_path: Path) -> None:
    assert extras_for(load_settings(tmp_path, environ={}), ["weight.txt"]) == []
    given = {
        "SERENO_LEDGER": "postgresql://db/x",
        "SERENO_LOOKUP_STORE": "redis://x:6379/0",
        "SERENO_NOTIFY": "mailto://x",
        "SERENO_STORAGE": "s3://bank/x",
    }
    found = extras_for(load_settings(tmp_path, environ=given), ["models:/credit@champion"])
    assert found == ["cloud", "notify", "postgresql", "redis"]
    assert extras_for(load_settings(tmp_path, environ={"SERENO_EXECUTOR": "ray"}), []) == ["ray"]
    assert extras_for(load_settings(tmp_path, environ={"SERENO_EXECUTOR": "spark"}), []) == ["spark"]


def test_what_a_build_would_stumble_over_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "requirements.txt").write_text(
        f"sereno=={__version__} --hash={DIGEST}\nlightgbm==4.6.0 --hash={DIGEST}\n"
    )
    _, out, _ = deploy(project, capsys)
    assert "LightGBM wants OpenMP of the system, which a slim image has not. Say --apt libgomp1." in out
    (project / "Dockerfile").unlink()
    assert "WARNING: LightGBM" not in deploy(project, capsys, "--apt", "libgomp1")[1]
    _, out, _ = deploy(project, capsys, "--set", "executor=spark", "--apt", "libgomp1")
    assert "Spark runs on Java, which the image has not" in out
    assert "has no psycopg" not in out
    _, out, _ = deploy(project, capsys, "--set", "storage=s3://bank/sereno", "--apt", "libgomp1")
    assert "NOTE: requirements.txt has no psycopg" in out
    assert "lock sereno[cloud,postgresql]." in out


def test_how_requirements_are_locked_can_be_typed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*options: str) -> list[str]:
        lines = deploy(project, capsys, "--set", "storage=s3://bank/sereno", *options)[1].splitlines()
        (first,) = [number for number, line in enumerate(lines) if line.startswith("WARNING: There is no ")]
        return lines[first : lines.index("Read them, then:")]

    (project / "m.py").write_text(
        '# /// script\n# dependencies = ["sereno", "pandas<3; python_version > \'3\'"]\n# ///\n' + MODEL
    )
    warning, where, write, lock, wheels = said("--requirements", "nope.txt")
    assert warning == f"WARNING: There is no {project}/nope.txt, which the build needs."
    assert where == f"In {project}:"
    subprocess.run(["sh", "-c", write], cwd=project, check=True)
    assert (project / "nope.in").read_text().splitlines() == [
        f"sereno[cloud,postgresql]=={__version__}",
        "pandas<3; python_version > '3'",
    ]
    assert lock == "  uv pip compile --generate-hashes nope.in --output-file nope.txt"
    assert "add --find-links wheels, and type `sereno deploy docker` again" in wheels
    (project / "wheels").mkdir()
    *_, lock = said("--requirements", "nope.txt")
    assert lock == "  uv pip compile --generate-hashes --find-links wheels nope.in --output-file nope.txt"


def test_a_folder_of_this_machine_that_settings_name_is_told(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(environment: str, *options: str) -> list[str]:
        monkeypatch.chdir(project)
        assert main(["deploy", *environment.split(), *options, "--to", "deploy"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "A container has only what is mounted" in line]

    (project / "m.py").write_text(
        MODEL.replace("artifacts=", 'source="{warehouse}/rows/{data_date}/*.parquet", artifacts=')
    )
    (project / "warehouse").mkdir()
    with (project / "sereno.toml").open("a") as file:
        file.write('[values]\nwarehouse = "warehouse"\nbucket = "s3://bank"\nword = "not a file"\ntoken = "m.py"\n')
    for environment in ("docker", "kubernetes --image scores:1"):
        (one,) = warned(environment)  # and not of the source, which lies there
        assert one.startswith(f"WARNING: values.warehouse is 'warehouse', here {project}/warehouse. A container")
    assert warned("docker", "--include", "warehouse") == []
    assert warned("docker", "--set", "values.warehouse=s3://bank/x") == []
    (one,) = warned("docker", "--set", "models.m.source=/data/rows/{data_date}.csv")[1:]
    assert one.startswith("WARNING: The source of m is '/data/rows/{data_date}.csv', here /data/rows. A container")


# Where it is built


def test_a_key_of_the_server_is_in_no_image(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "declared_in", lambda *_: [])  # asked of a process of its own
    key = project / "tls" / "server.key"
    key.parent.mkdir()
    key.write_text("secret")
    settings = '[serve]\ntls_certificate = "/etc/tls/server.pem"\ntls_key = "tls/server.key"\n'
    (project / "sereno.toml").write_text((project / "sereno.toml").read_text() + settings)
    (project / "conf").symlink_to("tls")
    for included in (key, key.parent, project / "conf"):
        code, _, error = deploy(project, capsys, "--include", str(included))
        assert code == 2
        assert f"{key}, which 'serve.tls_key' names, would be in the image" in error
    _, out, _ = deploy(project, capsys)
    mounts = {"tls_certificate": "/etc/tls/server.pem", "tls_key": str(key)}
    for setting, file in mounts.items():
        assert f"{file}, which 'serve.{setting}' names, is not in the image" in out
        there = f"/etc/sereno/{setting}"
        assert f"\n    --volume {file}:{there}:ro --env SERENO_SERVE__{setting.upper()}={there} \\\n" in out
    assert "\n    bank   # the API; its keys: " in out
    assert "TLS_TERMINATED_UPSTREAM" not in out  # it speaks TLS itself
    assert "!tls" not in (project / ".dockerignore").read_text()


def test_an_image_that_lacks_nothing_passes(project: Path) -> None:
    models, says = lacking(project)
    assert ([model.name for model in models], says) == (["m"], [])


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("weight.txt", "m: there is no artefact "),
        ("beside.py", "the module 'beside' is not installed"),
        ("m.py", "There is no file "),
    ],
)
def test_what_an_image_lacks_is_told(project: Path, gone: str, says: str) -> None:
    (project / gone).unlink()
    _, (told,) = lacking(project)
    assert says in told
    command = [sys.executable, "-P", "-m", "sereno.deploy.complete"]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 1
    assert says in built.stderr


# Whether it lives


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["/opt/venv/bin/python", "-P", "-m", "sereno", "serve", "--port", "9"], ["serve", "--port", "9"]),
        (["/sbin/docker-init", "--", "/opt/venv/bin/python", "-P", "-m", "sereno", "run", "m"], ["run", "m"]),
        (["/opt/venv/bin/python", "/opt/venv/bin/sereno", "up"], ["up"]),
        (["/pause"], []),
    ],
)
def test_what_the_first_process_was_told_is_found(command: list[str], told: list[str]) -> None:
    assert started(command) == told


@pytest.mark.parametrize(
    ("arguments", "environ", "port"),
    [
        (["serve"], {}, 8000),
        (["serve", "--port", "8017"], {}, 8017),
        (["serve", "m.py", "--port", "8017"], {}, 8017),
        (["serve"], {"AIP_HTTP_PORT": "8081"}, 8081),
        (["up"], {}, 8000),
        (["up", "--no-api"], {}, None),
        (["run", "m"], {}, None),
        (["serve", "--on", "ray"], {}, None),
        (["nonsense"], {}, None),
        ([], {}, None),
    ],
)
def test_the_port_that_is_asked_is_the_servers(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    port: int | None,
) -> None:
    monkeypatch.chdir(project)
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    for name in (
        "SERENO_SERVE__HOST",
        "SERENO_SERVE__PORT",
        "SERENO_SERVE__ALLOWED_HOSTS",
        "SERENO_SERVE__MAX_BODY_BYTES",
    ):
        monkeypatch.delenv(name, raising=False)
    with mock.patch.dict(os.environ):  # what a platform says is put there, for workers
        found = settings_of(arguments, os.environ)
    assert (found.port if found is not None else None) == port


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_asked_whether_it_lives(server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = ServeSettings(host="0.0.0.0", port=server.server_address[1])
    assert ask(serve) == ""
    monkeypatch.setattr(Answers, "status", 503)
    assert ask(serve) == f"/livez on port {serve.port} answers 503."
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert ask(replace(serve, port=port)).startswith(f"Nothing answers on port {port}: ")
    assert "a free one that nobody else knows" in ask(replace(serve, port=0))
    assert ask(replace(serve, unix=Path("/nonexistent"))).startswith("Nothing answers on the socket: ")
