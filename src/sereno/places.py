"""Places: where files lie, on a disk (`pathlib.Path`) or in an object store (`ObjectPath`), asked alike.

What only one of the two can do (locks and renames there, conditional writes here) is asked of that one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from sereno.exceptions import SettingsError
from sereno.object_path import ObjectPath
from sereno.storage import write_atomically
from sereno.urls import SCHEMES, is_url, mistake_of

Place: TypeAlias = Path | ObjectPath

__all__ = ["SCHEMES", "ObjectPath", "Place", "is_url", "name_below", "place_of", "readable", "write_place"]


def place_of(text: str | Path, base: Place | None = None) -> Place:
    """What a text names: an object or what lies below its URL, or a path; a relative one is below `base`.

    Raises SettingsError for a URL of another kind, one that is misspelt, and one without a bucket.
    """
    if isinstance(text, Path) or not is_url(text):
        return Path(text) if base is None or Path(text).is_absolute() else base / str(text)
    if mistake := mistake_of(text):
        raise SettingsError(f"{mistake} Valid are a path, {', '.join(f'{s}://…' for s in SCHEMES)}.")
    return ObjectPath.of(text)


def readable(place: Place) -> Any:
    """What pyarrow reads a file by: its path, or a stream over the object, which the caller closes or lets go."""
    return place if isinstance(place, Path) else place.open()


def name_below(place: Place, folder: Place) -> str:
    """What a place is called in a folder that it lies in: "a/b.parquet"."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.relative_to(folder).as_posix()
    if isinstance(place, ObjectPath) and isinstance(folder, ObjectPath):
        return str(place.relative_to(folder))
    raise ValueError(f"{place} is not below {folder}")


def write_place(place: Place, content: bytes) -> None:
    """Write a small file whole: a reader finds the old content or the new. Raises OSError, StorageError."""
    if isinstance(place, Path):
        write_atomically(place, content)
    else:
        place.write_bytes(content)
