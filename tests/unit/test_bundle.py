"""A model as one file: what is unpacked elsewhere has the same fingerprint, and finds its artefacts."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from sereno.adapters.executors.bundle import bundle_name, load_bundle, pack
from sereno.exceptions import ArtifactError
from sereno.loader import artifact_paths, file_digest, fingerprint, load_model
from sereno.model import Model

NUMBERS = count()
MODEL = """
from typing import TypedDict
import numpy as np
from sereno import Key, Model
from {package}.scale import FACTOR

class Row(TypedDict):
    id: Key[int]
    x: float

class Score(TypedDict):
    y: float

model = Model("bundled", inputs=Row, outputs=Score, artifacts={artifacts})

@model.load
def load({names}): return FACTOR

@model.predict
def predict(factor, rows: np.ndarray): return rows[:, 0] * factor
"""


@pytest.fixture(autouse=True)
def _modules_and_paths() -> Iterator[None]:
    """A worker is a process of its own, which knows nothing of the folder the model came from."""
    path = [*sys.path]
    yield
    sys.path[:] = path


def written(folder: Path, artifacts: dict[str, str]) -> Model:
    number = next(NUMBERS)
    folder.mkdir()
    (folder / f"package{number}").mkdir()
    (folder / f"package{number}" / "__init__.py").touch()
    (folder / f"package{number}" / "scale.py").write_text("FACTOR = 2.0\n")
    file = folder / f"bundled_{number}.py"
    file.write_text(MODEL.format(package=f"package{number}", artifacts=artifacts, names=", ".join(artifacts)))
    return load_model(file)


def unpacked(model: Model, folder: Path) -> Model:
    """As a worker has it, which has not seen the original."""
    pack(model, folder / "bundle.zip")
    zipfile.ZipFile(folder / "bundle.zip").extractall(folder / "worker")
    for name in [*sys.modules]:
        if name.startswith(("bundled_", "package")):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not path.startswith(str(folder))]
    return load_bundle(folder / "worker")


def test_the_fingerprint_is_that_of_the_original(tmp_path: Path) -> None:
    """Artefacts beside the file, above it, anywhere else, folders, and one that is pinned."""
    elsewhere = tmp_path / "else where"
    (elsewhere / "tree" / "deep").mkdir(parents=True)
    (elsewhere / "tree" / "deep" / "a.txt").write_text("a")
    (elsewhere / "tree" / "b.txt").write_text("b")
    (elsewhere / "model.cbm").write_bytes(b"\0" * 1000)
    (tmp_path / "above.txt").write_text("above")
    pinned = f"{elsewhere / 'model.cbm'}#sha256={file_digest(elsewhere / 'model.cbm')}"
    artifacts = {"tree": str(elsewhere / "tree"), "pinned": pinned, "above": "../above.txt", "beside": "package.txt"}
    model = written(tmp_path / "model", artifacts)
    (tmp_path / "model" / "package.txt").write_text("beside")
    wanted = fingerprint(model)

    there = unpacked(model, tmp_path)
    assert fingerprint(there) == wanted
    paths = {name: path for name, (path, _) in artifact_paths(there).items()}
    assert {path.relative_to(tmp_path / "worker").parts[:2] for path in paths.values()} == {
        ("artifacts", name) for name in artifacts
    }
    assert paths["pinned"].name == "model.cbm"  # a loader may go by what a file is called
    assert artifact_paths(there)["pinned"][1] == file_digest(elsewhere / "model.cbm")
    assert (paths["tree"] / "deep" / "a.txt").read_text() == "a"


def test_the_same_model_has_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "weight.txt").write_text("2")
    (tmp_path / "other.txt").write_text("2")
    model = written(tmp_path / "model", {"weight": "../weight.txt"})
    name = bundle_name(model, fingerprint(model))
    assert name == bundle_name(model, fingerprint(model))
    model.artifacts["weight"] = "../other.txt"  # the same content under another name
    assert name != bundle_name(model, fingerprint(model))


def test_artefacts_that_depend_on_the_machine(tmp_path: Path) -> None:
    (tmp_path / "weight.txt").write_text("2")
    model = written(tmp_path / "model", {"weight": "../weight.txt"})
    del model.artifacts["weight"]
    with pytest.raises(
        ArtifactError, match="declares the artefact 'weight' here, and did not where the run was started"
    ):
        unpacked(model, tmp_path)
