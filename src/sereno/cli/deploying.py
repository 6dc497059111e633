"""What the environments of `sereno deploy` have in common: the project, its models, the files that are written."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli.commands import DONE
from sereno.cli.named import overrides_of, settings_of
from sereno.cli.printing import output
from sereno.exceptions import ModelFileError, SettingsError

if TYPE_CHECKING:
    from sereno.operate.declared import Declared
    from sereno.settings import Settings


def add_options(one: Any, *, folder: str) -> None:
    """Those that every environment has. `folder`: where its files lie if nothing is said."""
    one.add_argument("--to", type=Path, metavar="DIR", help=f"where to write them ({folder})")
    one.add_argument("--name", metavar="NAME", help="of what is written; the project's folder if not given")


def project_of(options: argparse.Namespace) -> tuple[Settings, Path]:
    """The settings, and the folder of sereno.toml. Raises SettingsError."""
    from sereno.config import find_home
    from sereno.settings import FILE_NAME

    settings = settings_of(options, Path.cwd())
    project = find_home(Path.cwd())
    if not (project / FILE_NAME).is_file():
        raise SettingsError(
            f"There is no {FILE_NAME} in {project} or above, which names the models of the project. Write one; see docs/settings.md."
        )
    return settings, project


def folder_of(options: argparse.Namespace) -> Path:
    """Where the files are to lie, of an environment that does not say another place."""
    return (options.to or Path("deploy")).absolute()


def env_of(options: argparse.Namespace) -> str | None:
    """The [env.NAME] that was chosen: what is deployed is to choose it, too."""
    return options.env or os.environ.get("SERENO_ENV")


def server_files(settings: Settings) -> dict[str, Path]:
    """Setting of [serve] → the file that it names, for the server alone: where it runs it is mounted, and no image has it."""
    named = ((name, getattr(settings.serve, name)) for name in ("keys_file", "tls_certificate", "tls_key"))
    return {name: file for name, file in named if file is not None}


def is_in_bucket(settings: Settings) -> bool:
    """Whether `storage` is an object store."""
    return settings.storage is not None and not isinstance(settings.storage, Path)


def left_here(settings: Settings, models: Iterable[Declared], in_image: Iterable[Path] = ()) -> Iterator[str]:
    """Warnings of what settings and model files name of this machine's disk: containers have it not. `in_image`: what has
    its place in the image, as far as that is known."""
    known = [place.resolve() for place in in_image]
    for what, text, place in _named_places(settings, models):
        if not any(place.is_relative_to(one) for one in known):
            known.append(place)  # a source in the folder that a value names, say: once is enough
            yield (
                f"WARNING: {what} is {text!r}, here {place}. A container has only what is mounted there, or is in its image "
                "(`sereno deploy docker --include`): mount it, or name a bucket that all reach, s3://bank/… say."
            )


def _named_places(settings: Settings, models: Iterable[Declared]) -> Iterator[tuple[str, str, Path]]:
    """The setting, its text, and what it names: of values, which may be anything, those that are there."""
    from sereno.settings.redacting import is_secret_name
    from sereno.urls import is_url

    for name, value in settings.values.items():
        text = value.value
        if isinstance(text, str) and text and not is_url(text) and not is_secret_name(name):
            with contextlib.suppress(OSError, ValueError):  # no name of a file
                if (place := (value.base / text).resolve()).exists():
                    yield f"values.{name}", text, place
    for model in models:
        text = model.awaited.template
        if model.awaited.is_source and not is_url(text):
            # up to what changes from run to run, and file to file
            fixed = itertools.takewhile(lambda part: not set(part) & set("{*?["), Path(model.awaited.base, text).parts)
            yield f"The source of {model.name}", text, Path(*fixed).resolve()


def files_in(settings: Settings) -> list[Path]:
    """The model files that sereno.toml names."""
    return [model.file for model in settings.models.values() if model.file is not None]


def declared_in(options: argparse.Namespace, settings: Settings) -> list[Declared]:
    """What those declare. Raises ModelFileError where one cannot be read."""
    from sereno.operate.declared import declared

    found = declared(files_in(settings), home=options.home, env=options.env, overrides=overrides_of(options))
    if found.failed:
        raise ModelFileError(found.failed[0].says)
    return [*found.models]


def wrote(options: argparse.Namespace, texts: Mapping[str, str], folder: Path, said: Iterable[str]) -> int:
    """Write the files, and say so, with what else is to be `said`. Raises SettingsError, StorageError."""
    from sereno.deploy.writing import write

    written = write(texts, folder)
    output(options, {"written": [str(path) for path in written]}, [*(f"Wrote {path}" for path in written), *said])
    return DONE


def names(text: str) -> tuple[str, ...]:
    """What stands between the commas of an option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
