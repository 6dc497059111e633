"""What a platform's variables say, as settings of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sereno.config import load_settings
from sereno.exceptions import SettingsError
from sereno.serve.options import Options
from sereno.serve.platforms import connects_early, for_platform, is_batch, model_files, on_platform, platform_of
from sereno.settings import ModelSettings

NOWHERE = Path("/nowhere/opt/ml/model")


def test_anywhere_else_nothing_is_said() -> None:
    assert platform_of({}, NOWHERE) is None
    studio = {"SAGEMAKER_APP_TYPE": "JupyterLab", "SAGEMAKER_BATCH": "", "SAGEMAKER_INTERNAL_IMAGE_URI": "x"}
    assert platform_of(studio, NOWHERE) is None


def test_vertex() -> None:
    platform = platform_of({"AIP_HTTP_PORT": "8085", "AIP_MODE": "PREDICTION"}, NOWHERE)
    assert platform is not None
    assert (platform.name, platform.said_by, platform.folder) == ("vertex", "AIP_HTTP_PORT", None)
    assert platform.variables == {
        "SERENO_SERVE__HOST": "0.0.0.0",
        "SERENO_SERVE__PORT": "8085",
        "SERENO_SERVE__ALLOWED_HOSTS": "*",
        "SERENO_SERVE__MAX_BODY_BYTES": str(2 << 20),
    }


def test_only_vertex_wants_to_connect_while_the_model_loads() -> None:
    assert connects_early({"AIP_HTTP_PORT": "8080"})
    assert not connects_early({"SAGEMAKER_BATCH": "true"})
    assert not connects_early({})


@pytest.mark.parametrize(("port", "listens"), [("8085", "8085"), (None, "8080")])
def test_knative(port: str | None, listens: str) -> None:
    environ = {"K_SERVICE": "churn", "K_REVISION": "churn.1"} | ({} if port is None else {"PORT": port})
    platform = platform_of(environ, NOWHERE)
    assert platform is not None
    assert (platform.name, platform.said_by, platform.folder) == ("knative", "K_SERVICE", None)
    assert platform.variables == {
        "SERENO_SERVE__HOST": "0.0.0.0",
        "SERENO_SERVE__PORT": listens,
        "SERENO_SERVE__ALLOWED_HOSTS": "*",
        "SERENO_SERVE__DRAIN_SECONDS": "8",  # it kills after 10
    }


def test_azure_container_apps() -> None:
    platform = platform_of({"CONTAINER_APP_PORT": "8085", "CONTAINER_APP_NAME": "churn"}, NOWHERE)
    assert platform is not None
    assert (platform.name, platform.said_by) == ("azure", "CONTAINER_APP_PORT")
    assert platform.variables == {
        "SERENO_SERVE__HOST": "0.0.0.0",
        "SERENO_SERVE__PORT": "8085",
        "SERENO_SERVE__ALLOWED_HOSTS": "*",
    }


class TestPort:
    """`PORT`, which many platforms say, and many programs have."""

    @pytest.fixture(autouse=True)
    def _nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PORT", "8085")
        for name in ("SERENO_SERVE__HOST", "SERENO_SERVE__PORT"):
            monkeypatch.setenv(name, "")  # so that it is as it was, whatever is set here
            monkeypatch.delenv(name)

    def listens(self, **overrides: str) -> int:
        options = Options(files=[], overrides={f"serve.{name}": text for name, text in overrides.items()})
        return on_platform(options, os.environ).settings().serve.port

    def test_on_this_machine_alone_it_is_not_meant(self) -> None:
        assert self.listens() == 8000
        assert self.listens(host="127.0.0.1") == 8000

    def test_who_listens_openly_is_asked_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SERENO_SERVE__HOST", "0.0.0.0")
        assert self.listens() == 8085

    def test_also_where_an_option_says_so(self) -> None:
        assert self.listens(host="0.0.0.0") == 8085

    def test_what_is_set_counts_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.listens(host="0.0.0.0", port="9000") == 9000
        monkeypatch.setenv("SERENO_SERVE__PORT", "9001")
        assert self.listens(host="0.0.0.0") == 9001

    def test_and_so_does_what_is_read_from_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "port").write_text("9002")
        monkeypatch.setenv("SERENO_SERVE__PORT_FILE", str(tmp_path / "port"))
        assert self.listens(host="0.0.0.0") == 9002

    def test_it_must_be_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "tcp://10.0.0.1:80")
        with pytest.raises(SettingsError, match="^The variable PORT is 'tcp://10.0.0.1:80'. It must be a whole number"):
            self.listens(host="0.0.0.0")


def test_sagemaker_by_the_folder_of_its_model(tmp_path: Path) -> None:
    platform = platform_of({}, tmp_path)
    assert platform is not None
    assert (platform.name, platform.said_by, platform.folder) == ("sagemaker", str(tmp_path), tmp_path)
    assert platform.variables["SERENO_SERVE__PORT"] == "8080"
    assert platform.variables["SERENO_SERVE__MAX_BODY_BYTES"] == str(25 << 20)
    assert "SERENO_SERVE__MAX_ROWS" not in platform.variables
    # a training job has that folder too, for what it makes
    assert platform_of({"TRAINING_JOB_NAME": "x"}, tmp_path) is None


def test_sagemaker_by_its_port() -> None:
    platform = platform_of({"SAGEMAKER_BIND_TO_PORT": "9000"}, NOWHERE)
    assert platform is not None
    assert platform.folder is None
    assert platform.variables["SERENO_SERVE__PORT"] == "9000"


@pytest.mark.parametrize(("payload", "bytes_"), [("2", 2 << 20), ("0", 100 << 20), (None, 6 << 20)])
def test_a_batch_transform_job_sends_as_many_rows_as_its_payload_holds(payload: str | None, bytes_: int) -> None:
    environ = {"SAGEMAKER_BATCH": "true"} | ({} if payload is None else {"SAGEMAKER_MAX_PAYLOAD_IN_MB": payload})
    platform = platform_of(environ, NOWHERE)
    assert platform is not None
    assert platform.variables["SERENO_SERVE__MAX_BODY_BYTES"] == str(bytes_)
    assert platform.variables["SERENO_SERVE__MAX_ROWS"] == str(bytes_ // 2)
    assert platform.variables["SERENO_SERVE__REQUEST_TIMEOUT_SECONDS"] == "600"


def test_what_is_said_are_settings_and_what_is_set_counts_more(tmp_path: Path) -> None:
    environ = {"SAGEMAKER_BATCH": "true", "SERENO_SERVE__PORT": "8090"}
    platform = platform_of(environ, tmp_path)
    assert platform is not None
    serve = load_settings(tmp_path, environ={**platform.variables, **environ}).serve
    assert (serve.host, serve.port, serve.allowed_hosts, serve.max_body_bytes) == ("0.0.0.0", 8090, ("*",), 6 << 20)
    assert not serve.no_auth  # whoever builds the image says so
    assert not serve.tls_terminated_upstream


def test_a_folder_that_cannot_be_written_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    platform = platform_of({}, tmp_path)
    assert platform is not None
    assert platform.variables["SERENO_HOME"] == "/tmp/sereno"


class TestServing:
    @pytest.fixture
    def model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        monkeypatch.setattr("sereno.serve.platforms.SAGEMAKER_MODEL", folder)
        monkeypatch.chdir(tmp_path)
        return folder

    def test_elsewhere_nothing_changes(self) -> None:
        environ: dict[str, str] = {}
        options = Options(files=[])
        assert on_platform(options, environ) is options
        assert environ == {}

    def test_the_model_file_that_the_platform_put_there(self, model: Path) -> None:
        (model / "churn.py").write_text("")
        environ = {"SERENO_SERVE__PORT": "9"}
        assert on_platform(Options(files=[]), environ).files == [model / "churn.py"]
        assert (environ["SERENO_SERVE__HOST"], environ["SERENO_SERVE__PORT"]) == ("0.0.0.0", "9")

    def test_a_project_there(self, model: Path) -> None:
        (model / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\n')
        options = on_platform(Options(files=[]), {})
        assert options.model_files() == [model / "churn.py"]

    def test_artefacts_alone_are_for_the_model_of_the_image(self, model: Path, tmp_path: Path) -> None:
        (model / "churn.joblib").write_text("")
        (tmp_path / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\n')
        assert on_platform(Options(files=[]), {}).model_files() == [tmp_path / "churn.py"]

    def test_a_file_that_was_named(self, model: Path) -> None:
        (model / "churn.py").write_text("")
        assert on_platform(Options(files=[Path("mine.py")]), {}).files == [Path("mine.py")]


@pytest.mark.parametrize("port", ["x", "-1", "70000", "٣"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(
        SettingsError, match="^The variable AIP_HTTP_PORT is '.*'. It must be a whole number, 0 to 65535.$"
    ):
        platform_of({"AIP_HTTP_PORT": port}, NOWHERE)


def test_the_model_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"has no model file. Put one there, with its artefacts beside it; or several,"
    ):
        model_files(tmp_path)
    (tmp_path / "churn.py").write_text("x = 1")
    assert model_files(tmp_path) == [tmp_path / "churn.py"]  # the loader says what is wrong with it
    (tmp_path / "churn.py").write_text("import sereno\n\nmodel = sereno.Model(\n    'churn')")
    (tmp_path / "features.py").write_text("def model():\n    return Model(1)")
    assert model_files(tmp_path) == [tmp_path / "churn.py"]
    (tmp_path / "other.py").write_text("m = Model('other')")
    with pytest.raises(SettingsError, match=r"has 2 model files \(churn.py, other.py\). Put one there"):
        model_files(tmp_path)
    (tmp_path / "sereno.toml").write_text("")
    assert model_files(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "batch"), [("true", True), ("True", True), ("false", False), ("", False), (None, False)]
)
def test_the_environment_says_that_it_is_a_job(value: str | None, batch: bool) -> None:
    assert is_batch({} if value is None else {"SAGEMAKER_BATCH": value}) is batch


def test_a_batch_transform_job_is_never_turned_away() -> None:
    plain = ModelSettings()
    assert for_platform(plain, {}) is plain
    wide = for_platform(plain, {"SAGEMAKER_BATCH": "true"})
    assert (wide.queue_rows, wide.queue_seconds) == (sys.maxsize, 600.0)
    chosen = ModelSettings(queue_rows=5, given={"queue_rows": Path()})
    assert for_platform(chosen, {"SAGEMAKER_BATCH": "true"}).queue_rows == 5
