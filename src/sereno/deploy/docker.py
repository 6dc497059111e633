"""`sereno deploy docker`: a Dockerfile for a project, and a .dockerignore that lets in what the image is made of."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sereno.artifacts import is_elsewhere
from sereno.deploy.locked import WHEELS
from sereno.deploy.writing import filled
from sereno.exceptions import SettingsError

UID = 10001  # of the user within; above those that hosts give to people and services
HOME = "/var/lib/sereno"  # within, for a volume
FILES = "/etc/sereno"  # within, for what the server alone reads, and no image has
NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
BASE = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]*(?:@sha256:[0-9a-f]{64})?")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:=[A-Za-z0-9.+:~-]+)?")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def default_base() -> str:
    """The image of this Python, for which the requirements were locked."""
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"


@dataclass(frozen=True, kw_only=True)
class Image:
    """What the files say. Raises SettingsError for what no Dockerfile can hold."""

    project: Path  # the folder that is built from
    name: str
    included: Sequence[Path]  # what the image has of the project: files, and folders whole
    requirements: Path  # with a hash for each package
    base: str
    packages: Sequence[str] = ()  # of the base's system
    port: int = 8000

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SettingsError(
                f"{self.name!r} cannot be the name of an image: use small letters, digits, and . - _ between them. Say another "
                "one with --name."
            )
        if not BASE.fullmatch(self.base):
            raise SettingsError(
                f"{self.base!r} is no name of an image. Write --base {default_base()}, or one of your own registry, with "
                "@sha256:… so that it stays the same."
            )
        for package in self.packages:
            if not PACKAGE.fullmatch(package):
                raise SettingsError(f"{package!r} in --apt is no name of a Debian package. Write --apt libgomp1.")

    def files(self, folder: Path) -> dict[str, str]:
        """Name of the file → its text, to lie in that folder. Raises SettingsError."""
        # it is looked for in the folder that is built from, or beside a Dockerfile that lies elsewhere, under its name
        ignore = ".dockerignore" if folder == self.project else "Dockerfile.dockerignore"
        return {"Dockerfile": self._dockerfile(), ignore: self._dockerignore()}

    @property
    def has_wheels(self) -> bool:
        return (self.project / WHEELS).is_dir()

    @property
    def locked(self) -> Path:
        """The requirements, from the project's folder on. Raises SettingsError."""
        found = within(self.project, self.requirements)
        if not PLAIN.fullmatch(str(found)):
            raise SettingsError(f"{str(found)!r} cannot stand in a Dockerfile as it is. Call it requirements.txt.")
        return found

    def _dockerfile(self) -> str:
        removed = f"rm -rf /app/{WHEELS} && " if self.has_wheels else ""
        return filled(
            "docker/Dockerfile",
            name=self.name,
            base=self.base,
            requirements=str(self.locked),
            locked=self.locked.name,
            wheels=f"COPY {WHEELS} ./{WHEELS}/\n" if self.has_wheels else "",
            find=f"--find-links {WHEELS} " if self.has_wheels else "",
            removed=removed,
            apt=self._apt(),
            uid=str(UID),
            home=HOME,
            port=str(self.port),
        )

    def _apt(self) -> str:
        if not self.packages:
            return ""
        return (
            "# As they are on the day of the build, with the fixes of the base's system.\n"
            "# hadolint ignore=DL3008\n"
            "RUN apt-get update \\\n"
            f"    && apt-get install --yes --no-install-recommends {' '.join(self.packages)} \\\n"
            "    && rm -rf /var/lib/apt/lists/*\n"
        )

    def _dockerignore(self) -> str:
        lines = {pattern(within(self.project, place)) for place in (self.requirements, *self.included)}
        if self.has_wheels:
            lines.add(f"{WHEELS}/*.whl")
        return filled("docker/dockerignore", name=self.name, included="\n".join(f"!{line}" for line in sorted(lines)))


def within(project: Path, place: Path) -> Path:
    """The same, from the project's folder on. Raises SettingsError where it, or what it links to, lies elsewhere."""
    place = Path(os.path.abspath(place))  # abspath, not resolve: a link is copied as one
    if not (place.is_relative_to(project) and place.resolve().is_relative_to(project.resolve())):
        raise SettingsError(
            f"{place} lies outside of {project}, and an image is built from that folder alone. Put it below, or, an artefact, "
            "name it by a URL (s3://…)."
        )
    return place.relative_to(project)


def pattern(place: Path) -> str:
    """As a .dockerignore takes it: as it stands, whatever it is called. Raises SettingsError."""
    text = place.as_posix()
    if text != text.strip() or any(ord(letter) < 32 for letter in text):
        raise SettingsError(f"The name {text!r} cannot stand in a .dockerignore. Rename the file.")
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def files_of_artifacts(file: Path, artifacts: Mapping[str, str]) -> Iterator[Path]:
    """Where the artefacts of a model file lie that are files or folders here; others are fetched by their URL."""
    for declared in artifacts.values():
        if not is_elsewhere(declared):
            yield file.parent / declared.partition("#")[0]


def with_targets(project: Path, places: Iterable[Path]) -> Iterator[Path]:
    """These, and what they link to: without it, a link in the image would lead nowhere."""
    for place in places:
        yield place
        target = place.resolve()
        if target != Path(os.path.abspath(place)) and target.is_relative_to(project.resolve()):
            yield project / target.relative_to(project.resolve())


def next_steps(
    image: Image, folder: Path, *, stop_seconds: int, env: str | None = None, server_files: Mapping[str, Path] = {}
) -> Iterator[str]:
    """What an operator does with them. `server_files`: setting of [serve] → a file of this machine."""
    name, project = image.name, shlex.quote(str(image.project))
    where = "" if folder == image.project else f"--file {shlex.quote(str(folder / 'Dockerfile'))} "
    run = f"docker run --read-only --tmpfs /tmp --volume {name}:{HOME} --cap-drop ALL --security-opt no-new-privileges"
    run += f" --env SERENO_ENV={shlex.quote(env)}" if env is not None else ""
    yield "Read them, then:"
    yield f"  docker build --tag {name} {where}{project}"
    yield f"  {run} \\"
    yield f"    --stop-timeout {stop_seconds} --publish {image.port}:{image.port} --volume /etc/sereno/secrets:/run/secrets:ro \\"
    for setting, file in server_files.items():
        there = f"{FILES}/{setting}"
        yield f"    --volume {shlex.quote(f'{file}:{there}:ro')} --env SERENO_SERVE__{setting.upper()}={there} \\"
    upstream = "" if "tls_certificate" in server_files else "--env SERENO_SERVE__TLS_TERMINATED_UPSTREAM=true "
    keys = "" if "keys_file" in server_files else "; its keys: /etc/sereno/secrets/api_keys"
    yield f"    {upstream}{name}   # the API{keys}"
    yield f"  {run} {name} run MODEL"
    if "@sha256:" not in image.base:
        yield f"NOTE: {image.base} is another image every few weeks. --base NAME@sha256:… keeps it the same."
