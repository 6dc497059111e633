"""Artefacts in an object store, and in a registry whose files lie in one: fetched once, and by their content."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from sereno.config import load_settings
from sereno.exceptions import ArtifactError, ChangedError
from sereno.loader import file_digest, fingerprint
from sereno.places import ObjectPath
from sereno.scoring import open_scorer
from tests.registry import registry_server
from tests.unit.test_artifacts import declared, scored


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    """Model files of tests share a name."""
    yield
    sys.modules.pop("scaled", None)
    sys.path[:] = [p for p in sys.path if "pytest-" not in p]


def test_an_object_is_fetched_once_and_again_where_it_changed(tmp_path: Path, storage: ObjectPath) -> None:
    place = storage / "factor.txt"
    place.write_bytes(b"3")
    first = scored(tmp_path, str(place))
    here = tmp_path / "factor.txt"
    here.write_text("3")
    assert first.artifacts == {"factor": f"{place}#sha256={file_digest(here)}"}
    with mock.patch.object(ObjectPath, "download", side_effect=AssertionError("fetched twice")):
        again = scored(tmp_path, str(place))
    assert (again.state, again.version) == ("nothing", 1)
    assert fingerprint(declared(tmp_path, "factor.txt")) != ""
    place.write_bytes(b"4")
    moved = scored(tmp_path, str(place))
    assert (moved.state, moved.version) == ("published", 2)
    pinned = declared(tmp_path, f"{place}#sha256={file_digest(here)}")
    place.unlink()
    assert open_scorer(pinned, load_settings(tmp_path)).loaded == 3.0  # it is here, and cannot be another one


def test_a_folder_of_objects(tmp_path: Path, storage: ObjectPath) -> None:
    (storage / "net" / "factor.txt").write_bytes(b"5")
    (storage / "net" / "data" / "weights.bin").write_bytes(b"x" * (20 << 20))
    model = declared(tmp_path, f"{storage}/net")
    assert open_scorer(model, load_settings(tmp_path)).loaded == 5.0
    path = model.fetched["factor"].path
    assert (path.name, (path / "data" / "weights.bin").stat().st_size) == ("net", 20 << 20)
    before = fingerprint(model)
    (storage / "net" / "data" / "more.bin").write_bytes(b"y")
    other = declared(tmp_path, f"{storage}/net")
    open_scorer(other, load_settings(tmp_path))
    assert fingerprint(other) != before


def test_what_cannot_be_fetched_is_told(tmp_path: Path, storage: ObjectPath) -> None:
    with pytest.raises(
        ArtifactError, match=r"Artefact 'factor' is missing: there is no s3://.*/none\.txt\. Put it there"
    ):
        open_scorer(declared(tmp_path, f"{storage}/none.txt"), load_settings(tmp_path))
    place = storage / "factor.txt"
    place.write_bytes(b"3")
    with pytest.raises(ArtifactError, match=r"has SHA-256 .*, but the model file pins 00"):
        open_scorer(declared(tmp_path, f"{place}#sha256={'0' * 64}"), load_settings(tmp_path))
    download = ObjectPath.download

    def anew(path: ObjectPath, file: Path) -> object:
        path.write_bytes(b"4")
        return download(path, file)

    with (
        mock.patch.object(ObjectPath, "download", anew),
        pytest.raises(ChangedError, match="was written anew while it was fetched"),
    ):
        open_scorer(declared(tmp_path, str(place)), load_settings(tmp_path))


def test_a_registry_whose_files_lie_in_a_bucket(tmp_path: Path, storage: ObjectPath) -> None:
    (storage / "7" / "artifacts" / "factor.txt").write_bytes(b"7")
    with registry_server() as registry, mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=registry.url):
        registry.versions["scale", "7"] = f"{storage}/7/artifacts"
        registry.aliases["scale", "champion"] = "7"
        report = scored(tmp_path, "models:/scale@champion")
        assert (report.state, report.artifacts) == ("published", {"factor": "models:/scale/7"})
        with mock.patch.object(ObjectPath, "look", side_effect=AssertionError("a version does not change")):
            assert scored(tmp_path, "models:/scale@champion").state == "nothing"
