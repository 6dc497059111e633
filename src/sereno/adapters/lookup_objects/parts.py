"""The parts of a snapshot that lie in a bucket, brought to the machine that builds their index."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sereno.adapters import durable
from sereno.adapters.lookup_objects.fetching import sha256_of
from sereno.exceptions import IndexingError
from sereno.lookup.pointer import AS_BEFORE
from sereno.snapshots import Part, Snapshot

AT_ONCE = 4


@contextlib.contextmanager
def near(snapshot: Snapshot, folder: Path) -> Iterator[Snapshot]:
    """The snapshot with its parts on this machine, as each is read more than once: those of a bucket in `folder`, meanwhile.

    Raises IndexingError where one is missing or damaged, and StorageError.
    """
    if all(isinstance(part.path, Path) for part in snapshot.parts):
        yield snapshot
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            parts = tuple(threads.map(lambda part: _copied(snapshot, part, folder), snapshot.parts))
        yield dataclasses.replace(snapshot, parts=parts)
    finally:
        durable.remove(folder)


def _copied(snapshot: Snapshot, part: Part, folder: Path) -> Part:
    file = folder / f"{part.sha256}.parquet"
    then = f"{AS_BEFORE} Restore the object from a backup, run data date {snapshot.data_date} again, or roll back."
    what = f"Version {snapshot.number} of model {snapshot.model!r} cannot be looked up: {part.path}"
    try:
        part.path.download(file)  # type: ignore[union-attr]
    except FileNotFoundError as error:
        raise IndexingError(f"{what} is missing. {then}") from error
    if sha256_of(file) != part.sha256:
        raise IndexingError(f"{what} is damaged: its SHA-256 is not that of what was published. {then}")
    return dataclasses.replace(part, path=file)
