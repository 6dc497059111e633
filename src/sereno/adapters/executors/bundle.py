"""A model as one file: its Python files and its artefacts, for workers that do not see the folder they lie in.

The fingerprint of what was unpacked is that of the original, so whoever scores with it can tell whether it is the same.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sereno.exceptions import ArtifactError
from sereno.loader import artifact_paths, load_model, siblings
from sereno.model import Model

CONTENTS = "bundle.json"
CODE, ARTIFACTS = "code", "artifacts"


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a bundle."""

    model_file: str  # its name, in the folder of the code
    artifacts: dict[str, str]  # name → path within the bundle


def bundle_name(model: Model, fingerprint: str) -> str:
    """The name of its bundle: the same content, the same name. Raises ArtifactError."""
    names = [(name, path.name) for name, (path, _) in sorted(artifact_paths(model).items())]
    return f"sereno-{hashlib.sha256(msgspec.json.encode((fingerprint, names))).hexdigest()[:24]}"


def pack(model: Model, target: Path) -> None:
    """Write a bundle, a zip that is not compressed: artefacts seldom shrink. Raises ArtifactError, OSError."""
    assert model.file is not None
    contents = Contents(
        model_file=model.file.name,
        artifacts={name: f"{ARTIFACTS}/{name}/{path.name}" for name, (path, _) in artifact_paths(model).items()},
    )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        archive.writestr(CONTENTS, msgspec.json.encode(contents))
        for inside, file in _files(model):
            archive.write(file, inside)


def _files(model: Model) -> Iterator[tuple[str, Path]]:
    """Where each file lies in the bundle, and where it is: those that the fingerprint has."""
    assert model.file is not None
    for file in [model.file, *siblings(model.file)]:
        yield f"{CODE}/{file.relative_to(model.file.parent)}", file
    for name, (path, _) in sorted(artifact_paths(model).items()):
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            yield str(Path(ARTIFACTS, name, path.name, file.relative_to(path))), file


def load_bundle(folder: Path) -> Model:
    """The model of a bundle that was unpacked, with its artefacts where they are now.

    Raises ModelFileError, and ArtifactError where its model file declares artefacts that it did not when it was packed.
    """
    contents = msgspec.json.decode((folder / CONTENTS).read_bytes(), type=Contents)
    model = load_model(folder / CODE / contents.model_file)
    for name, declared in model.artifacts.items():
        if name not in contents.artifacts:
            raise ArtifactError(
                f"{contents.model_file} declares the artefact {name!r} here, and did not where the run was started: what it "
                "declares may not depend on the machine."
            )
        _, mark, pinned = declared.partition("#")
        model.artifacts[name] = f"{folder / contents.artifacts[name]}{mark}{pinned}"
    return model
