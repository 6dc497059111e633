"""Exports as folders: one immutable folder per snapshot with a manifest, and one `latest` link.

    exports/<model>/<format>/000007/part-00000.parquet …, manifest.json
    exports/<model>/<format>/latest -> 000007

A snapshot's folder is written under another name, made durable and renamed, so that whoever sees it sees it whole.
A reader resolves `latest` once and reads that folder: it is one snapshot, whatever is published meanwhile. A folder
that is no longer kept is renamed before its files go, and files that are open stay readable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pyarrow as pa

from sereno.adapters import durable, rendering
from sereno.exceptions import ExportError
from sereno.failpoints import failpoint
from sereno.storage import fsync

if TYPE_CHECKING:
    from datetime import datetime

    from sereno.places import Place
    from sereno.snapshots import Part, Snapshot

FolderFormat = Literal["parquet", "csv", "jsonl"]

LOCK_SECONDS = 60.0
_TEMPORARY = ".tmp-"
_MANIFEST = "manifest.json"


@dataclass
class FolderExport:
    """Follows the table into `root`. Several processes may call `follow` at once: one works, the others wait."""

    root: Path  # exports/<model>/<format>, absolute
    format: FolderFormat
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.format

    def follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._alone():
                return self._follow(served, keep)
        except OSError as error:
            self._translate(error)
        except pa.ArrowException as error:
            raise ExportError(
                f"The {self.format} export to {self.root} failed: a published part cannot be written so: {error}"
            ) from error

    def _follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        failpoint("export_before")
        self._sweep()
        changed = False
        for snapshot in served:
            if not self._is_there(snapshot):
                self._write(snapshot)
                changed = True
        failpoint("export_copied")
        if served:
            changed = self._point_to(folder_name(served[-1].number)) or changed
        failpoint("export_swapped")
        return self._prune(keep | {snapshot.number for snapshot in served}) or changed

    def _is_there(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot's folder says what it should; one of an earlier table of that name does not."""
        folder = self.root / folder_name(snapshot.number)
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            wanted = describe(snapshot, self.format)
            listed = manifest["files"]
            return (
                {key: value for key, value in manifest.items() if key != "files"} == wanted
                and len(listed) == len(snapshot.parts)
                and all((folder / file["name"]).stat().st_size == file["bytes"] for file in listed)
                and (
                    self.format != "parquet"
                    or [file["sha256"] for file in listed] == [part.sha256 for part in snapshot.parts]
                )
            )
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _write(self, snapshot: Snapshot) -> None:
        target = self.root / folder_name(snapshot.number)
        folder = self.root / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
            self._fill(folder, snapshot)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # above all where the disk is full
            raise
        if target.exists():
            # A wrong folder that `latest` may point to: exchanged in one step, so that a reader never finds nothing.
            durable.exchange(folder, target)
        else:
            folder.rename(target)
        fsync(self.root)

    def _fill(self, folder: Path, snapshot: Snapshot) -> None:
        written = [self._write_part(folder, index, part) for index, part in enumerate(snapshot.parts)]
        manifest = {**describe(snapshot, self.format), "files": written}
        with (folder / _MANIFEST).open("wb") as file:
            file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
            file.flush()
            durable.seal(file.fileno())
        fsync(folder)

    def _write_part(self, folder: Path, index: int, part: Part) -> dict[str, Any]:
        path = folder / f"part-{index:05}.{self.format}"
        if self.format == "parquet":
            assert isinstance(part.path, Path)  # a table in an object store has its exports there
            durable.link_or_copy(part.path, path)
            return {"name": path.name, "rows": part.rows, "bytes": part.size, "sha256": part.sha256}
        digest = hashlib.sha256()
        size = 0
        with path.open("wb") as file:
            for text in texts(part.path, self.format):
                file.write(text)
                digest.update(text)
                size += len(text)
            file.flush()
            durable.seal(file.fileno())
        return {"name": path.name, "rows": part.rows, "bytes": size, "sha256": digest.hexdigest()}

    def _point_to(self, target: str) -> bool:
        latest = self.root / "latest"
        with contextlib.suppress(OSError):  # not there, or not a link: replaced below, or told
            if latest.readlink() == Path(target):
                return False
        link = self.root / f"{_TEMPORARY}latest-{uuid.uuid4().hex[:8]}"
        link.symlink_to(target)
        link.replace(latest)
        fsync(self.root)
        return True

    def _prune(self, stay: frozenset[int]) -> bool:
        pruned = False
        link = self.root / "latest"
        latest = link.readlink().name if link.is_symlink() else None
        for path in sorted(self.root.iterdir()):
            if re.fullmatch(r"\d{6,}", path.name) and int(path.name) not in stay and path.name != latest:
                gone = path.with_name(f"{_TEMPORARY}gone-{path.name}-{uuid.uuid4().hex[:8]}")
                path.rename(gone)
                pruned = True
        self._sweep()
        return pruned

    def _sweep(self) -> None:
        """Remove what a crash left, and what was renamed to go."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            durable.remove(path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # The kernel lets go of the lock when its holder dies, so no crash leaves it locked.
        with (self.root / ".lock").open("a") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ExportError(
                            f"Another process has been writing to {self.root} for {LOCK_SECONDS:.0f} seconds. "
                            "Wait for it, or end it; then run again: the export goes on from what is there."
                        ) from None
                    time.sleep(0.05)
            yield

    def _translate(self, error: OSError) -> NoReturn:
        then = "The publication stands; the next `sereno run`, even one with nothing to do, finishes the export."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause = f"the disk is full ({error.strerror}). Free space there, or move `home` to a larger disk."
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            cause = f"the folder cannot be written ({error.strerror}). Make it writable for the user who runs Sereno."
        else:
            at = f" at {error.filename}" if error.filename else ""
            cause = f"{error.strerror or error}{at}. Mend that."
        raise ExportError(f"The {self.format} export to {self.root} failed: {cause} {then}") from error


def folder_name(number: int) -> str:
    """What the folder of a snapshot is called."""
    return f"{number:06}"


def describe(snapshot: Snapshot, format: str) -> dict[str, Any]:  # noqa: A002 - as the manifest says it
    """The manifest without its files."""
    schema = rendering.read_schema(snapshot.parts[0].path) if snapshot.parts else ()
    columns = [{"name": column.name, "type": str(column.type)} for column in schema]
    return identify(snapshot, format) | {"columns": columns}


def identify(snapshot: Snapshot, format: str) -> dict[str, Any]:  # noqa: A002
    """What a manifest says of its snapshot, for which no part need be read. No other snapshot has all of it."""
    return {
        "model": snapshot.model,
        "version": snapshot.number,
        "data_date": snapshot.data_date.isoformat(),
        "data_time": _utc(snapshot.data_time),
        "published_at": _utc(snapshot.published_at),
        "rows": snapshot.rows,
        "rejects": snapshot.rejects,
        "format": format,
    }


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def texts(part: Place, format: str) -> Iterator[bytes]:  # noqa: A002
    """A part as text, a batch at a time."""
    if format == "csv":
        yield rendering.csv_header(rendering.read_schema(part))
    render = rendering.csv_lines if format == "csv" else rendering.json_lines
    yield from map(render, rendering.read_batches(part))
