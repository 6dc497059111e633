"""A requirements file with hashes, as `uv pip compile --generate-hashes` and `pip-compile --generate-hashes` write it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sereno import __version__
from sereno.places import SCHEMES, is_url
from sereno.settings import Settings

WHEELS = "wheels"  # a folder of the project, for packages that no index has

# What an extra of Sereno's brings, by which its absence is seen.
BROUGHT = {
    "cloud": "obstore",
    "notify": "apprise",
    "postgresql": "psycopg",
    "ray": "ray",
    "redis": "redis",
    "spark": "pyspark",
}


@dataclass(frozen=True, kw_only=True)
class Locked:
    """What a requirements file has."""

    versions: Mapping[str, str]  # name of the package, as indexes spell it → its version; "": by a URL
    unlocked: tuple[str, ...]  # lines that do not name one version and its hashes

    def lacks(self, requirement: str) -> bool:
        """Whether there is no version that this asks for."""
        asked = Requirement(requirement)
        if asked.marker is not None and not asked.marker.evaluate():
            return False
        version = self.versions.get(canonicalize_name(asked.name))
        return version is None or bool(version and not asked.specifier.contains(Version(version), prereleases=True))


def locked_in(text: str) -> Locked:
    """Read a requirements file."""
    versions: dict[str, str] = {}
    unlocked = []
    for line in _lines(text):
        asked, _, hashes = line.partition(" --hash=")
        try:
            requirement = Requirement(asked.strip())
        except InvalidRequirement:
            if not asked.startswith("--"):  # an option, of an index say
                unlocked.append(asked)
            continue
        pins = [one.version for one in requirement.specifier if one.operator == "==" and "*" not in one.version]
        if not hashes or not (pins or requirement.url):
            unlocked.append(asked.strip())
        versions[canonicalize_name(requirement.name)] = pins[0] if pins else ""
    return Locked(versions=versions, unlocked=tuple(unlocked))


def _lines(text: str) -> Iterator[str]:
    """Without comments; one that ends in a backslash goes on in the next."""
    for line in re.sub(r"\\\r?\n\s*", " ", re.sub(r"(?m)(^|\s)#.*$", "", text)).splitlines():
        if line.strip():
            yield " ".join(line.split())


def extras_for(settings: Settings, artifacts: Iterable[str]) -> list[str]:
    """The extras of Sereno's that these settings and artefacts want."""
    said = [str(one) for model in settings.models.values() for one in (model.source, model.database) if one]
    said += [export for model in settings.models.values() for export in model.exports]
    said += [str(value.value) for value in settings.values.values()]
    said += [*artifacts, str(settings.storage or ""), settings.ledger or "", settings.lookup_store or ""]
    schemes = {text.partition("://")[0] for text in said if is_url(text)}
    wanted = {
        "cloud": bool(schemes & {*SCHEMES}),
        "notify": bool(settings.notify) or any(model.notify for model in settings.models.values()),
        "postgresql": bool(schemes & {"postgresql", "postgres"}),
        "ray": settings.executor == "ray",
        "redis": settings.lookup_store is not None,
        "spark": settings.executor == "spark",
    }
    return [extra for extra, is_wanted in wanted.items() if is_wanted]


def lacking_extras(locked: Locked, extras: Iterable[str]) -> list[str]:
    """Those of these extras that it has not."""
    return [extra for extra in extras if BROUGHT[extra] not in locked.versions]


def how_to_lock(
    file: Path, extras: Iterable[str], asked: Iterable[str], *, has_wheels: bool, folder: Path
) -> Iterator[str]:
    """What to type in `folder` so that `file`, named from there on, is made. `asked`: what model files ask for."""
    own = f"sereno[{joined}]" if (joined := ",".join(extras)) else "sereno"
    wanted = [f"{own}=={__version__}", *dict.fromkeys(one for one in asked if one != "sereno")]
    source, output = shlex.quote(str(file.with_suffix(".in"))), shlex.quote(str(file))
    find = f"--find-links {WHEELS} " if has_wheels else ""
    yield f"In {folder}:"
    yield f"  printf '%s\\n' {' '.join(map(shlex.quote, wanted))} > {source}"
    yield f"  uv pip compile --generate-hashes {find}{source} --output-file {output}"
    if not has_wheels:
        yield (
            f"  # Where no index has one, sereno perhaps: put its wheel into {WHEELS}/, add --find-links {WHEELS}, and type "
            "`sereno deploy docker` again"
        )


def warnings(locked: Locked, file: Path, extras: Iterable[str], requirements: Iterable[str]) -> Iterator[str]:
    """What of the file would end a build, or a run. `requirements`: what the script blocks of model files ask for."""
    if locked.unlocked:
        few = ", ".join(locked.unlocked[:3]) + (", …" if len(locked.unlocked) > 3 else "")
        yield (
            f"WARNING: {file.name} has no version and hash for {few}, so that the build refuses it. Make it with "
            "`uv pip compile --generate-hashes` or `pip-compile --generate-hashes`."
        )
    if "sereno" not in locked.versions:
        yield f"WARNING: {file.name} has no sereno. Lock sereno=={__version__}, too."
    elif locked.versions["sereno"] not in ("", __version__):
        yield f"WARNING: {file.name} has sereno {locked.versions['sereno']}; this is {__version__}. Lock the one that you try here."
    if lacking := lacking_extras(locked, extras):
        yield f"WARNING: The settings want sereno[{','.join(lacking)}], which {file.name} has not. Lock it with that."
    if missing := sorted({one for one in requirements if locked.lacks(one)}):
        yield f"WARNING: Model files ask for {', '.join(missing)}, which {file.name} has not. Lock that, too."
