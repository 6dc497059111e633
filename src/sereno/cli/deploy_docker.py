"""`sereno deploy docker`: what its options mean."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli.commands import DONE
from sereno.cli.named import overrides_of
from sereno.cli.printing import output
from sereno.exceptions import ModelFileError, SettingsError

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.deploy.docker import Image
    from sereno.operate.declared import Declared

OPTIONS = ("base", "requirements", "include", "apt")  # that no other environment has
OF_OTHERS = ("user", "memory", "timers", "hosts", "domain")


def add_options(one: Any) -> None:
    one.add_argument(
        "--base", metavar="IMAGE", help="of docker: the image that it begins with (python:3.…-slim-bookworm)"
    )
    one.add_argument(
        "--requirements", type=Path, metavar="FILE", help="of docker: the packages, with hashes (requirements.txt)"
    )
    one.add_argument(
        "--include", type=Path, nargs="+", metavar="PATH", help="of docker: what models read beside their artefacts"
    )
    one.add_argument("--apt", nargs="+", metavar="PACKAGE", help="of docker: Debian packages, libgomp1 say")


def given_here(options: argparse.Namespace) -> list[str]:
    """The options that were given of those that only this environment has."""
    return [name for name in OPTIONS if getattr(options, name)]


def deploy(options: argparse.Namespace, settings: Settings, project: Path) -> int:
    """Write the files. Raises SettingsError, ModelFileError, StorageError."""
    from sereno.deploy.docker import next_steps
    from sereno.deploy.writing import write

    if given := next((name for name in OF_OTHERS if getattr(options, name)), None):
        raise SettingsError(f"--{given} is not of docker: what starts a container says it. Leave it out.")
    image, models = _image(options, settings, project)
    folder = image.project if options.to is None else options.to.absolute()
    files = image.files(folder)
    said = [*_warnings(image, settings, models)]
    written = write(files, folder)
    stop_seconds = max(settings.serve.drain_seconds, settings.up.stop_seconds)
    said += next_steps(image, folder, stop_seconds=stop_seconds)
    output(options, {"written": [str(path) for path in written]}, [*(f"Wrote {path}" for path in written), *said])
    return DONE


def _image(options: argparse.Namespace, settings: Settings, project: Path) -> tuple[Image, list[Declared]]:
    from sereno.deploy.docker import Image, default_base, files_of_artifacts, with_targets
    from sereno.operate.declared import declared

    files = [model.file for model in settings.models.values() if model.file is not None]
    found = declared(files, home=options.home, env=options.env, overrides=overrides_of(options))
    if found.failed:
        raise ModelFileError(found.failed[0].says)
    places = [project / "sereno.toml", *(Path(path) for model in found.models for path in model.belongs)]
    for model in found.models:
        places += files_of_artifacts(Path(model.file), model.artifacts)
    places += [path.absolute() for path in options.include or ()]
    if missing := next((place for place in places if not place.exists() and place.name != "sereno.toml"), None):
        raise SettingsError(
            f"There is no {missing}, which the image is to have. Train the model first, or mend its name."
        )
    image = Image(
        project=project,
        name=options.name or project.name.lower(),
        included=[place for place in with_targets(project, places) if place.exists()],
        requirements=(options.requirements or project / "requirements.txt").absolute(),
        base=options.base or default_base(),
        packages=options.apt or (),
        port=settings.serve.port or 8000,
    )
    return image, [*found.models]


def _warnings(image: Image, settings: Settings, models: list[Declared]) -> Iterator[str]:
    """What a build or a container would stumble over."""
    from sereno.deploy.locked import extras_for, locked_in, warnings
    from sereno.loader import script_requirements

    if not models:
        yield (
            f"WARNING: {image.project / 'sereno.toml'} names no model: the image has packages alone, for a platform that brings the "
            'model. Else write [models.NAME] with file = "NAME.py".'
        )
    extras = extras_for(settings, (text for model in models for text in model.artifacts.values()))
    asked = [one for model in models for one in script_requirements(Path(model.file))]
    if not image.requirements.is_file():
        yield f"WARNING: There is no {image.requirements}, which the build needs. {how_to_lock(extras, asked)}"
        return
    locked = locked_in(image.requirements.read_text("utf-8"))
    yield from warnings(locked, image.requirements, extras, asked)
    if "lightgbm" in locked.versions and "libgomp1" not in image.packages:
        yield "WARNING: LightGBM wants OpenMP of the system, which a slim image has not. Say --apt libgomp1."
    if settings.executor == "spark" and not any("jre" in package for package in image.packages):
        yield "WARNING: Spark runs on Java, which the image has not. Say --apt openjdk-17-jre-headless."


def how_to_lock(extras: list[str], asked: list[str]) -> str:
    """How a requirements file is made."""
    from sereno import __version__

    own = f"sereno[{','.join(extras)}]" if extras else "sereno"
    wanted = " ".join([f"{own}=={__version__}", *dict.fromkeys(one for one in asked if one != "sereno")])
    return f"Write {wanted} into requirements.in, and lock that: uv pip compile --generate-hashes requirements.in -o requirements.txt"
