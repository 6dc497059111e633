"""Artefacts in a registry: resolved once a run, kept by their content, recorded, and told where they cannot be had."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import msgspec
import pytest

from sereno import artifacts
from sereno.adapters import mlflow_registry
from sereno.adapters.executors.local import LocalExecutor
from sereno.adapters.executors.worker import load_for
from sereno.artifacts import fetch_artifacts, is_elsewhere
from sereno.batch.attempts import Report
from sereno.batch.run import run
from sereno.batch.tasks import Job
from sereno.cli import main
from sereno.config import load_settings
from sereno.exceptions import ArtifactError, ChangedError, SettingsError, StorageError
from sereno.loader import artifact_paths, file_digest, fingerprint, load_model
from sereno.model import Model
from sereno.scoring import open_scorer
from tests.registry import Registry, registry_server

NOW = datetime(2026, 5, 2, 1, tzinfo=UTC)
MODEL = """
from pathlib import Path
from typing import TypedDict
from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    x: float

class Out(TypedDict):
    y: float

model = Model("{name}", inputs=Row, outputs=Out, source="in.csv", artifacts={{"factor": "{declared}"}})

@model.load
def load(factor: Path):
    return float((factor / "factor.txt" if factor.is_dir() else factor).read_text())

@model.predict
def predict(factor, rows: list[Row]) -> list[Out]:
    return [{{"y": r["x"] * factor}} for r in rows]
"""


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    """Model files of tests share a name."""
    yield
    sys.modules.pop("scaled", None)
    sys.path[:] = [p for p in sys.path if "pytest-" not in p]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Two versions of a model, of which the first is the champion."""
    for name in os.environ:
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(mlflow_registry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(mlflow_registry, "LONGEST_WAIT", 0.002)
    with registry_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        for number in ("1", "2"):
            server.versions["scale", number] = f"models:/m-{number}"
            server.locations[f"models:/m-{number}"] = f"mlflow-artifacts:/0/models/m-{number}/artifacts"
            folder = f"0/models/m-{number}/artifacts"
            server.files |= {f"{folder}/MLmodel": b"flavors: {}\n", f"{folder}/data/odd name.bin": b"x" * 70_000}
            server.files[f"{folder}/factor.txt"] = number.encode()
        server.aliases["scale", "champion"] = "1"
        yield server


def declared(folder: Path, text: str) -> Model:
    sys.modules.pop("scaled", None)
    (folder / "in.csv").write_text("id,x\n1,1\n2,2\n")
    file = folder / "scaled.py"
    file.write_text(MODEL.format(name="scaled", declared=text))
    return load_model(file)


def scored(folder: Path, text: str) -> Report:
    model = declared(folder, text)
    settings = load_settings(folder / "scaled.py", overrides={"workers": "1"})
    return run(model, settings, LocalExecutor(1, lambda: open_scorer(model, settings)), now=NOW)


def test_an_alias_is_resolved_once_a_run_and_recorded(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    first = scored(tmp_path, "models:/scale@champion")
    assert (first.state, first.version) == ("published", 1)
    assert first.artifacts == {"factor": "models:/scale/1"}
    assert sum("alias" in asked for asked in registry.asked) == 1
    saved = tmp_path / ".sereno" / "runs" / "scaled" / first.attempt / "report.json"
    assert msgspec.json.decode(saved.read_bytes())["artifacts"] == {"factor": "models:/scale/1"}
    for options in ((), ("--json",)):
        capsys.readouterr()
        assert main(["show", first.attempt, "--home", str(tmp_path), *options]) == 0
        shown = capsys.readouterr().out
        if options:
            told = msgspec.json.decode(shown)
            assert (told["artifacts"], told["fingerprint"]) == ({"factor": "models:/scale/1"}, first.fingerprint)
        else:
            assert f"\n  model {first.fingerprint[:12]}\n  artefact factor: models:/scale/1\n" in shown
    registry.asked.clear()
    again = scored(tmp_path, "models:/scale@champion")
    assert (again.state, again.version) == ("nothing", 1)
    assert not any("mlflow-artifacts" in asked for asked in registry.asked)  # what is here is not fetched again
    registry.aliases["scale", "champion"] = "2"
    moved = scored(tmp_path, "models:/scale@champion")
    assert (moved.state, moved.version, moved.artifacts) == ("published", 2, {"factor": "models:/scale/2"})
    assert moved.fingerprint != first.fingerprint


def test_a_process_that_runs_twice_asks_twice(tmp_path: Path, registry: Registry) -> None:
    model = declared(tmp_path, "models:/scale@champion")
    settings = load_settings(tmp_path / "scaled.py", overrides={"workers": "1"})
    for number in ("1", "2"):
        registry.aliases["scale", "champion"] = number
        found = run(model, settings, LocalExecutor(1, lambda: open_scorer(model, settings)), now=NOW)
        assert found.artifacts == {"factor": f"models:/scale/{number}"}


def test_workers_take_what_the_run_has(tmp_path: Path, registry: Registry) -> None:
    model = declared(tmp_path, "models:/scale@champion")
    fetch_artifacts(model, tmp_path)
    job = Job(
        model_file=str(tmp_path / "scaled.py"),
        home=str(tmp_path),
        values={},
        secrets_folder=str(tmp_path),
        attempt="a",
        parts_folder="",
        work_folder="",
        batch_rows=1,
        fingerprint=fingerprint(model),
        revision_of_model="",
        artifacts={name: str(one.path) for name, one in model.fetched.items()},
    )
    registry.aliases["scale", "champion"] = "2"
    registry.asked.clear()
    worker = declared(tmp_path, "models:/scale@champion")
    assert load_for(job, worker).loaded == 1.0
    assert fingerprint(worker) == job.fingerprint
    assert registry.asked == []


def test_the_content_is_that_of_the_version(tmp_path: Path, registry: Registry) -> None:
    model = declared(tmp_path, "models:/scale/2")
    fetch_artifacts(model, tmp_path)
    ((path, pinned),) = artifact_paths(model).values()
    assert pinned == ""
    assert path.is_relative_to(tmp_path / ".sereno" / "artifacts")
    assert {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} == {
        "MLmodel", "data/odd name.bin", "factor.txt",
    }  # fmt: skip
    assert (path / "factor.txt").stat().st_mode & 0o077 == 0
    assert [p.name for p in (tmp_path / ".sereno" / "artifacts").iterdir() if p.name.startswith(".")] == []


def test_one_file_of_a_version_can_be_pinned(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "one").write_text("1")
    digest = file_digest(tmp_path / "one")
    model = declared(tmp_path, f"models:/scale@champion/factor.txt#sha256={digest}")
    assert open_scorer(model, load_settings(tmp_path)).loaded == 1.0
    registry.asked.clear()
    assert open_scorer(
        declared(tmp_path, f"models:/scale@champion/factor.txt#sha256={digest}"), load_settings(tmp_path)
    )
    assert registry.asked == []  # it is here, and cannot be another one
    registry.aliases["scale", "champion"] = "2"
    other = declared(tmp_path, f"models:/scale@champion/factor.txt#sha256={'0' * 64}")
    with pytest.raises(ArtifactError, match=r"Artefact 'factor' .* has SHA-256 .*, but the model file pins 0000"):
        fetch_artifacts(other, tmp_path)


@pytest.mark.parametrize("pin", ["sha256=abc", "sha25=x", "sha256=" + "A" * 64])
def test_a_pin_that_is_none_is_told_before_anything_is_fetched(tmp_path: Path, registry: Registry, pin: str) -> None:
    text = f"models:/scale@champion/factor.txt#{pin}"
    with pytest.raises(ArtifactError, match=rf"Artefact 'factor': '{text}' should end in `#sha256=` and 64 digits"):
        fetch_artifacts(declared(tmp_path, text), tmp_path)
    assert registry.asked == []


@pytest.mark.parametrize("scheme", ["runs", "file", "path", "http", "logged"])
def test_wherever_a_registry_says_that_it_lies(tmp_path: Path, registry: Registry, scheme: str) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "deep" / "factor.txt").write_text("7")
    registry.files["5/r/artifacts/deep/factor.txt"] = b"7"
    registry.runs |= {"r": "mlflow-artifacts:/5/r/artifacts", "m-9": "mlflow-artifacts:/5/r/artifacts/deep"}
    source = {
        "runs": "runs:/r/deep",
        "file": f"file://{tmp_path}/there/deep",
        "path": f"{tmp_path}/there/deep",
        "http": f"{registry.url}/api/2.0/mlflow-artifacts/artifacts/5/r/artifacts/deep",
        "logged": "models:/m-9",
    }[scheme]
    registry.versions["scale", "3"] = source
    model = declared(tmp_path, "models:/scale/3")
    assert open_scorer(model, load_settings(tmp_path)).loaded == 7.0


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/scale@nobody", "has no models:/scale@nobody: Registered model alias nobody not found. Register it"),
        ("models:/none@champion", "Registered Model with name=none not found"),
        ("models:/scale/9", r"Model Version \(name=scale, version=9\) not found"),
        ("models:/scale/Production", "names no version. Valid are models:/NAME@ALIAS and models:/NAME/7"),
        ("models:/scale@champion/../x", "names no version"),
        ("models:/scale/1/none.txt", "No such artifact: '0/models/m-1/artifacts/none.txt'"),
        ("models:/scale/4", "lies at dbfs:/x, which cannot be read from here. Valid are s3://"),
        ("models:/scale/5", "There is no /no/such/folder on this machine"),
        ("models:scale/3", "'models:scale/3' names nothing in a registry: did you mean models:/scale/3?"),
        ("s3:/bank/net.bin", "'s3:/bank/net.bin' is none of an object store: did you mean s3://bank/net.bin?"),
        ("https://bank/net.bin", r"https://… is no place for files\..* may also be models:/NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, registry: Registry, uri: str, words: str) -> None:
    registry.versions |= {("scale", "4"): "dbfs:/x", ("scale", "5"): "/no/such/folder"}
    model = declared(tmp_path, uri)
    with pytest.raises(ArtifactError, match=words) as told:
        fetch_artifacts(model, tmp_path)
    assert "rtefact 'factor'" in str(told.value) or "No such artifact" in words or "There is no" in words


def test_a_version_that_is_not_ready(tmp_path: Path, registry: Registry) -> None:
    registry.status = "PENDING_REGISTRATION"
    with pytest.raises(ChangedError, match="is version 1, which is PENDING_REGISTRATION"):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)


def test_a_server_that_falters_is_asked_again_and_one_that_is_gone_is_told(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_registry, "LONGEST_WAIT", 0.01)
    registry.failures = [503, 0, 429, 500] * 5  # no count ends it
    fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)
    assert registry.failures == []
    monkeypatch.setattr(mlflow_registry, "DEADLINE", 1.0)
    registry.failures = [503] * 5_000
    with pytest.raises(StorageError, match=r"does not answer \(it answers 503\)\. Start it, or mend"):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)
    assert len(registry.failures) < 4_998
    with (
        mock.patch.dict(os.environ, MLFLOW_TRACKING_URI="http://me:hunter2@127.0.0.1:9"),
        pytest.raises(StorageError, match=r"server http://127\.0\.0\.1:9 does not answer") as told,
    ):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)
    assert "hunter2" not in str(told.value)


def test_a_name_is_resolved_within_one_deadline(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests that takes: each of them may be slow."""
    now = time.monotonic()
    clock = mock.Mock(monotonic=lambda: now, sleep=lambda seconds: None)
    monkeypatch.setattr(mlflow_registry, "time", clock)
    client = mlflow_registry.Registry.of_environment("models:/scale/1")
    send = client._http.send

    def slow(*of: Any, **options: Any) -> httpx.Response:
        nonlocal now
        now += 25
        return send(*of, **options)

    monkeypatch.setattr(client._http, "send", slow)
    began, registry.failures = now, [503, 503, 503, 503]
    with pytest.raises(StorageError, match="does not answer"):
        client.resolve("models:/scale@champion")
    assert now == began + 75
    registry.failures.clear()
    registry.asked.clear()
    assert client.resolve("models:/scale@champion").says == "models:/scale/1"


@pytest.mark.parametrize("failures", [[200 - 200, 503], [500, 0]])
def test_a_download_that_breaks_off_is_begun_again(
    tmp_path: Path, registry: Registry, failures: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_registry.Registry.of_environment("models:/scale/1")
    version = client.resolve("models:/scale/1/factor.txt")
    registry.failures = failures
    client._download("0/models/m-1/artifacts/factor.txt", tmp_path / "got")
    assert (tmp_path / "got").read_text() == "1"
    assert version.says == "models:/scale/1/factor.txt"
    registry.cuts = mlflow_registry.DOWNLOADS - 1
    client._download("0/models/m-1/artifacts/factor.txt", tmp_path / "got")
    assert ((tmp_path / "got").read_text(), registry.cuts) == ("1", 0)
    registry.cuts = 100
    with pytest.raises(StorageError, match=r"does not answer \(RemoteProtocolError: .*, 5 times\)"):
        client._download("0/models/m-1/artifacts/factor.txt", tmp_path / "got")
    assert registry.cuts == 95
    registry.cuts, registry.failures = 0, [503] * 500
    monkeypatch.setattr(mlflow_registry, "DEADLINE", 0.05)
    with pytest.raises(StorageError, match=r"does not answer \(it answers 503\)"):
        client._download("0/models/m-1/artifacts/factor.txt", tmp_path / "got")


def test_credentials(tmp_path: Path, registry: Registry) -> None:
    registry.password = "hunter2"
    with pytest.raises(StorageError, match=r"refuses these credentials \(401\)\. See MLFLOW_TRACKING_USERNAME"):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)
    with mock.patch.dict(os.environ, MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD="hunter2"):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)
    registry.password, registry.token = "", "t"
    with mock.patch.dict(os.environ, MLFLOW_TRACKING_TOKEN="t"):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "set MLFLOW_TRACKING_URI to its server's address .* It is not set"),
        ("databricks", ".* It is databricks://…"),
        ("sqlite:///m.db", ".* It is sqlite://…"),
    ],
)
def test_no_server(tmp_path: Path, registry: Registry, address: str, words: str) -> None:
    with (
        mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=address),
        pytest.raises(
            SettingsError, match=f"Artefact 'factor': models:/scale@champion is in an MLflow registry: {words}"
        ),
    ):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)


def test_another_program_at_that_address(tmp_path: Path, registry: Registry) -> None:
    with (
        mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=f"{registry.url}/other"),
        pytest.raises(StorageError, match="answers 404, as no MLflow server does"),
    ):
        fetch_artifacts(declared(tmp_path, "models:/scale@champion"), tmp_path)


def test_what_nobody_asks_for_any_more_goes(tmp_path: Path, registry: Registry) -> None:
    first = declared(tmp_path, "models:/scale/1")
    fetch_artifacts(first, tmp_path)
    kept = first.fetched["factor"].path.parent
    long_ago = time.time() - artifacts.KEPT_SECONDS - 60
    os.utime(kept, (long_ago, long_ago))
    fetch_artifacts(declared(tmp_path, "models:/scale/2"), tmp_path)
    assert not kept.exists()
    fetch_artifacts(again := declared(tmp_path, "models:/scale/1"), tmp_path)
    assert again.fetched["factor"].path.exists()


def test_two_names_of_one_content(tmp_path: Path, registry: Registry) -> None:
    for inside in ("one.txt", "two.txt"):
        registry.files[f"0/models/m-1/artifacts/{inside}"] = b"5"
        model = declared(tmp_path, f"models:/scale/1/{inside}")
        assert open_scorer(model, load_settings(tmp_path)).loaded == 5.0
        assert model.fetched["factor"].path.name == inside


def test_what_was_not_fetched_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Artefact 'factor' \(models:/scale/1\) was not fetched yet"):
        fingerprint(declared(tmp_path, "models:/scale/1"))
    assert [is_elsewhere(text) for text in ("a.bin", "/a/b", "models/a", "s3://a/b", "models:/a@b")] == [
        False, False, False, True, True,
    ]  # fmt: skip
