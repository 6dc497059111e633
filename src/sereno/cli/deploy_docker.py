"""`sereno deploy docker`: its options, and what it reads of the settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli import deploying
from sereno.cli.commands import Commands
from sereno.exceptions import SettingsError

if TYPE_CHECKING:
    from sereno.deploy.docker import Image
    from sereno.operate.declared import Declared
    from sereno.settings import Settings


def add(environments: Commands) -> None:
    one = environments.command(
        "docker", _docker, "a Dockerfile, and a .dockerignore that lets in what its image is made of"
    )
    deploying.add_options(one, folder="the project")
    one.add_argument("--base", metavar="IMAGE", help="the image that it begins with (python:3.…-slim-bookworm)")
    one.add_argument("--requirements", type=Path, metavar="FILE", help="the packages, with hashes (requirements.txt)")
    one.add_argument("--include", type=Path, nargs="+", metavar="PATH", help="what models read beside their artefacts")
    one.add_argument("--apt", nargs="+", metavar="PACKAGE", help="Debian packages, libgomp1 say")


def _docker(options: argparse.Namespace) -> int:
    from sereno.deploy.docker import next_steps
    from sereno.deploy.stopping import stop_seconds

    settings, project = deploying.project_of(options)
    image, models = _image(options, settings, project)
    folder = image.project if options.to is None else options.to.absolute()
    steps = next_steps(
        image,
        folder,
        stop_seconds=stop_seconds(settings),
        env=deploying.env_of(options),
        server_files=deploying.server_files(settings),
    )
    return deploying.wrote(options, image.files(folder), folder, [*_warnings(image, settings, models), *steps])


def _image(options: argparse.Namespace, settings: Settings, project: Path) -> tuple[Image, list[Declared]]:
    from sereno.deploy.docker import Image, default_base, files_of_artifacts, with_targets

    models = deploying.declared_in(options, settings)
    places = [project / "sereno.toml", *(Path(path) for model in models for path in model.belongs)]
    for model in models:
        places += files_of_artifacts(Path(model.file), model.artifacts)
    places += [path.absolute() for path in options.include or ()]
    if missing := next((place for place in places if not place.exists() and place.name != "sereno.toml"), None):
        raise SettingsError(
            f"There is no {missing}, which the image is to have. Train the model first, or mend its name."
        )
    for name, file in deploying.server_files(settings).items():
        if any(file.resolve().is_relative_to(place.resolve()) for place in places):  # a link comes with its target
            raise SettingsError(
                f"{file}, which 'serve.{name}' names, would be in the image, and so with all who may pull it. Leave it out of "
                "--include, and mount it where the container runs."
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
    return image, models


def _warnings(image: Image, settings: Settings, models: list[Declared]) -> Iterator[str]:
    """What a build or a container would stumble over."""
    from sereno.deploy.docker import UID
    from sereno.deploy.locked import extras_for, how_to_lock, locked_in, warnings
    from sereno.loader import script_requirements

    if not models:
        yield (
            f"WARNING: {image.project / 'sereno.toml'} names no model: the image has packages alone, for a platform that brings the "
            'model. Else write [models.NAME] with file = "NAME.py".'
        )
    for name, file in deploying.server_files(settings).items():
        yield (
            f"NOTE: {file}, which 'serve.{name}' names, is not in the image, as no secret is. It is mounted, as below, and user {UID} "
            "has to be able to read it; on Kubernetes, `sereno deploy kubernetes` has a Secret for it."
        )
    extras = extras_for(settings, (text for model in models for text in model.artifacts.values()))
    # containers that share a bucket share a ledger
    with_ledger = sorted({*extras, "postgresql"}) if deploying.is_in_bucket(settings) else extras
    asked = [one for model in models for one in script_requirements(Path(model.file))]
    yield from deploying.left_here(settings, models, image.included)
    if not image.requirements.is_file():
        yield f"WARNING: There is no {image.requirements}, which the build needs."
        yield from how_to_lock(image.locked, with_ledger, asked, has_wheels=image.has_wheels, folder=image.project)
        return
    locked = locked_in(image.requirements.read_text("utf-8"))
    yield from warnings(locked, image.requirements, extras, asked)
    if with_ledger != extras and "psycopg" not in locked.versions:
        yield (
            f"NOTE: {image.requirements.name} has no psycopg, which a ledger of PostgreSQL wants, as on Kubernetes or of several "
            f"containers. For one, lock sereno[{','.join(with_ledger)}]."
        )
    if "lightgbm" in locked.versions and "libgomp1" not in image.packages:
        yield "WARNING: LightGBM wants OpenMP of the system, which a slim image has not. Say --apt libgomp1."
    if settings.executor == "spark" and not any("jre" in package for package in image.packages):
        yield "WARNING: Spark runs on Java, which the image has not. Say --apt openjdk-17-jre-headless."
