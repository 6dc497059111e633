"""Artefacts that lie elsewhere: fetched once, kept below the home by their content, and resolved once a run.

Either an object or a folder of an object store (`s3://bank/models/net.onnx`), or a version in an MLflow registry
(`models:/credit@champion`). What is fetched never changes afterwards: `<home>/.sereno/artifacts/<SHA-256>/<name>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sereno.exceptions import ArtifactError, ChangedError, SettingsError
from sereno.model import Fetched, Model
from sereno.places import ObjectPath, is_url, place_of
from sereno.storage import told, write_atomically

MODELS = "models:/"
KEPT_SECONDS = 30 * 86_400  # of what nobody has asked for since


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an artefact lies just now."""

    says: str  # what is recorded of it
    key: str  # another one whenever the content may be another
    name: str  # of the file or folder
    fetch: Callable[[Path], None]  # copies it to a path of this machine, where nothing is yet


def is_elsewhere(declared: str) -> bool:
    """Whether an artefact, as the model file declares it, is fetched: it is no path."""
    return is_url(declared) or declared.startswith(MODELS[:-1])  # without its /, it is told of


def pinned_as(name: str, declared: str) -> tuple[str, str]:
    """Where an artefact lies, and the SHA-256 that is pinned ("": none). Raises ArtifactError."""
    text, _, fragment = declared.partition("#")
    if fragment and not re.fullmatch(r"sha256=[0-9a-f]{64}", fragment):
        raise ArtifactError(
            f"Artefact {name!r}: {declared!r} should end in `#sha256=` and 64 digits 0-9a-f, or have no #."
        )
    return text, fragment.removeprefix("sha256=")


def fetch_artifacts(model: Model, home: Path, *, anew: bool = False) -> None:
    """Have every artefact on this machine. Those that this process has are not asked for again, unless `anew`.

    Raises ArtifactError where there is none, or it is not the one that is pinned; ChangedError where it changes meanwhile;
    StorageError, and MissingExtraError.
    """
    for name, declared in model.artifacts.items():
        if is_elsewhere(declared) and (anew or name not in model.fetched):
            with told(f"Artefact {name!r} could not be fetched"):
                model.fetched[name] = _fetched(name, declared, home.absolute() / ".sereno" / "artifacts")


def _fetched(name: str, declared: str, folder: Path) -> Fetched:
    text, pinned = pinned_as(name, declared)
    if pinned and (kept := folder / pinned / text.rpartition("/")[2]).is_file():
        return _used(kept, f"{text}#sha256={pinned}")  # it is compared again before it is loaded
    origin = _origin(name, text)
    note = folder / "known" / hashlib.sha256(origin.key.encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError):
        digest = note.read_text()
        if (kept := folder / digest / origin.name).exists() and pinned in ("", digest):
            return _used(kept, _recorded(origin, digest))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
        new = Path(work, "new")
        new.mkdir(mode=0o700)
        try:
            origin.fetch(new / origin.name)
        except FileNotFoundError as error:
            raise ChangedError(
                f"Artefact {name!r} was removed while it was fetched: {error}. Start it again."
            ) from error
        digest = _closed(new / origin.name)
        if pinned and digest != pinned:
            raise ArtifactError(
                f"Artefact {name!r} ({text}) has SHA-256 {digest}, but the model file pins {pinned}. Restore it, or pin the "
                "new hash after you have checked where it comes from."
            )
        kept = _keep(new / origin.name, folder / digest)
    write_atomically(note, digest.encode(), temporary=f".{os.getpid()}-{time.monotonic_ns()}.tmp")
    _forget_old(folder)
    return _used(kept, _recorded(origin, digest))


def _recorded(origin: Origin, digest: str) -> str:
    return origin.says if origin.says.startswith(MODELS) else f"{origin.says}#sha256={digest}"


def _used(kept: Path, origin: str) -> Fetched:
    with contextlib.suppress(OSError):  # a home that may not be written to
        os.utime(kept.parent)
    return Fetched(path=kept, origin=origin)


def _closed(path: Path) -> str:
    """The SHA-256 of what was fetched, which only this user can change from now on: of a folder, of all names and content."""
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        file.chmod(0o700 if file.is_dir() else 0o600)
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if file == path:
                return digest
            whole.update(f"{file.relative_to(path)}\0{digest}\0".encode())
    return whole.hexdigest()


def _keep(new: Path, folder: Path) -> Path:
    """Move it to where it is kept. Another process may have done so before; the content is the same."""
    kept = folder / new.name
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        os.rename(new, kept)
    except OSError:
        if not kept.exists():
            raise
    return kept


def _forget_old(folder: Path) -> None:
    before = time.time() - KEPT_SECONDS
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes it, too
            if path.name != "known" and path.stat().st_mtime < before:
                shutil.rmtree(path)


def _origin(name: str, text: str) -> Origin:
    if text.startswith(MODELS):
        return _of_registry(name, text)
    if text.startswith(MODELS[:-1]):
        meant = MODELS + text.removeprefix(MODELS[:-1])
        raise ArtifactError(f"Artefact {name!r}: {text!r} names nothing in a registry: did you mean {meant}?")
    try:
        place = place_of(text)
    except SettingsError as error:
        raise ArtifactError(f"Artefact {name!r}: {error} An artefact may also be {MODELS}NAME@ALIAS.") from None
    assert isinstance(place, ObjectPath)
    return _of_objects(name, place, str(place), [])


def _of_objects(name: str, place: ObjectPath, says: str, key: list[str]) -> Origin:
    """With a key, it is one that never changes."""
    found = [] if key else _listed(name, place)
    known = msgspec.json.encode(key or [says, found]).decode()

    def fetch(target: Path) -> None:
        for inside, size, tag in found or _listed(name, place):
            file = target / inside if inside else target
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                got = (place / inside if inside else place).download(file)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno is not None:
                    raise  # of this machine's disk
                got = None
            if got is None or (got.size, got.tag) != (size, tag):
                raise ChangedError(
                    f"Artefact {name!r} ({place}) was written anew while it was fetched. Start it again when it is whole."
                )

    return Origin(says=says, key=known, name=place.name or place.bucket, fetch=fetch)


def _listed(name: str, place: ObjectPath) -> list[tuple[str, int, str]]:
    """Name below the place, size and tag of each object: one without a name, where it is an object itself."""
    try:
        known = place.look()
        return [("", known.size, known.tag)]
    except FileNotFoundError:
        found = [(str(path.relative_to(place)), known.size, known.tag) for path, known in place.below()]
    if not found:
        raise ArtifactError(
            f"Artefact {name!r} is missing: there is no {place}. Put it there, or mend artifacts= in the model file."
        )
    return found


def _of_registry(name: str, text: str) -> Origin:
    from sereno.adapters.mlflow_registry import Registry

    try:
        registry = Registry.of_environment(text)
        version = registry.resolve(text)
    except SettingsError as error:
        raise type(error)(f"Artefact {name!r}: {error}") from None
    except (ArtifactError, ChangedError) as error:
        raise type(error)(f"Artefact {name!r}: {error}") from error
    location = place_of(version.location) if is_url(version.location) else None
    if isinstance(location, ObjectPath):
        return _of_objects(name, location, version.says, version.key)
    key = msgspec.json.encode(version.key).decode()
    return Origin(
        says=version.says,
        key=key,
        name=version.location.rstrip("/").rpartition("/")[2],
        fetch=lambda target: registry.copy(version.location, target),
    )
