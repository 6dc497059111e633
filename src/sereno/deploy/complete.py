"""Whether an image has what its model files need: `python -P -m sereno.deploy.complete`, where the image is built.

Each is read as a server and a run would, so that a package or module that lacks is told, and the artefacts that are files
must be there and be readable. Nothing is loaded, and nothing is asked for that is there only later: secrets, sources.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sereno.config import load_settings
from sereno.deploy.docker import files_of_artifacts
from sereno.exceptions import SerenoError
from sereno.operate.declared import Declared, declared


def lacking(project: Path) -> tuple[list[Declared], list[str]]:
    """The models of a project, and what they lack. Raises SerenoError."""
    settings = load_settings(project)
    found = declared([model.file for model in settings.models.values() if model.file is not None])
    says = [one.says for one in found.failed]
    says += [text for model in found.models for text in _unreadable(model)]
    return [*found.models], says


def _unreadable(model: Declared) -> Iterator[str]:
    for place in files_of_artifacts(Path(model.file), model.artifacts):
        if not place.exists():
            yield f"{model.name}: there is no artefact {place}. Is it in .dockerignore? `sereno deploy docker` writes that."
        for one in [place, *place.rglob("*")] if place.is_dir() else [place] if place.exists() else []:
            if not os.access(one, os.R_OK | (os.X_OK if one.is_dir() else 0)):
                yield f"{model.name}: uid {os.getuid()} may not read {one}."


def main() -> int:
    try:
        models, says = lacking(Path.cwd())
    except SerenoError as error:
        models, says = [], [str(error)]
    for model in models:
        sys.stdout.write(f"{model.name}: {model.file}\n")
    for text in says:
        sys.stderr.write(f"sereno: {text}\n")
    return 1 if says else 0


if __name__ == "__main__":
    sys.exit(main())
