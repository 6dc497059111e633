"""Exports in an object store: the objects of each snapshot with a manifest, and one `latest.json` that leads to them.

    exports/<model>/<format>/000007/part-00000.parquet …, manifest.json (written last)
    exports/<model>/<format>/latest.json                  {"version": 7, "folder": "000007", …}

Nothing that a reader may be led to is ever overwritten: where a snapshot of another table, or a damaged one, has the
folder, the next one is `000007-<random>`. A reader reads `latest.json` once, and then that folder's manifest and the files
that it names: they are one snapshot, whatever is published meanwhile.

Several pods may follow at once, without a lock: `latest.json` is written on condition that it is as it was read, and never
goes back to what was published before.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sereno.adapters.export_folder import FolderFormat, describe, folder_name, identify, texts
from sereno.exceptions import ExportError, SerenoError
from sereno.failpoints import failpoint
from sereno.object_path import ConditionError, Object, ObjectPath
from sereno.presence import together

if TYPE_CHECKING:
    from sereno.snapshots import Part, Snapshot

AT_ONCE = 16  # parts; the store copies them, which costs this machine next to nothing
TRIES = 5  # to write latest.json, which another pod may do at the same moment
YOUNG_SECONDS = 3_600  # for which a folder that is newer than all that is known here is taken for another pod's work
_FOLDER = re.compile(r"(\d{6,})(-[0-9a-f]+)?")
_MANIFEST = "manifest.json"
THEN = "The publication stands; the next `sereno run`, even one with nothing to do, finishes the export."


@dataclass
class ObjectExport:
    """Follows the table into `root`. Several processes, on several hosts, may call `follow` at once."""

    root: ObjectPath  # exports/<model>/<format>
    format: FolderFormat
    scratch: Path  # a folder of this machine, for files that are being written
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.format

    def follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        try:
            return self._follow(served, keep)
        except ExportError:
            raise
        except (SerenoError, OSError, pa.ArrowException) as error:
            cause = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            raise ExportError(f"The {self.format} export to {self.root} failed: {cause.rstrip('.')}. {THEN}") from error

    def _follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        failpoint("export_before")
        there = _Folders(self.root)
        found: dict[int, str] = {}
        changed = False
        for snapshot, folder in zip(served, together(lambda one: self._found(one, there), served), strict=True):
            changed = changed or folder is None
            found[snapshot.number] = folder or self._write(snapshot, there)
        failpoint("export_copied")
        if served:
            changed = self._point_to(served[-1], found[served[-1].number], keep) or changed
        failpoint("export_swapped")
        return self._prune(there, keep, found) or changed

    def _found(self, snapshot: Snapshot, there: _Folders) -> str | None:
        """The folder that holds the snapshot, whole; one of an earlier table of that name does not.

        It takes one request: of hundreds of snapshots that are served, one for each data date, neither commits nor parts are
        read to find that nothing is to be done.
        """
        return next((name for name in there.of(snapshot.number) if self._holds(snapshot, there, name)), None)

    def _holds(self, snapshot: Snapshot, there: _Folders, name: str) -> bool:
        objects = there.folders[name]
        try:
            manifest = json.loads((self.root / name / _MANIFEST).read_bytes())
            return (
                identify(snapshot, self.format).items() <= manifest.items()
                and sum(file["rows"] for file in manifest["files"]) == snapshot.rows
                and all(objects[file["name"]].size == file["bytes"] for file in manifest["files"])
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _write(self, snapshot: Snapshot, there: _Folders) -> str:
        name = folder_name(snapshot.number)
        if any(folder == name for folder in there.of(snapshot.number)):  # somebody's, or what a crash left
            name = f"{name}-{secrets.token_hex(4)}"
        folder = self.root / name
        with ThreadPoolExecutor(AT_ONCE if self.format == "parquet" else 1) as threads:
            work = [threads.submit(self._write_part, folder, i, part) for i, part in enumerate(snapshot.parts)]
            try:
                written = [one.result() for one in work]
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
        manifest = {**describe(snapshot, self.format), "files": written}
        (folder / _MANIFEST).write_bytes(_json(manifest))
        return name

    def _write_part(self, folder: ObjectPath, index: int, part: Part) -> dict[str, Any]:
        path = folder / f"part-{index:05}.{self.format}"
        if self.format == "parquet":
            copy_part(part.path, path, self.scratch)
            return {"name": path.name, "rows": part.rows, "bytes": part.size, "sha256": part.sha256}
        digest = hashlib.sha256()
        size = 0
        with _file(self.scratch) as file:
            for text in texts(part.path, self.format):
                file.write(text)
                digest.update(text)
                size += len(text)
            file.flush()
            path.upload(_name(file))
        return {"name": path.name, "rows": part.rows, "bytes": size, "sha256": digest.hexdigest()}

    def _point_to(self, snapshot: Snapshot, folder: str, keep: frozenset[int]) -> bool:
        """Have `latest.json` lead to a snapshot, unless it leads to one that was published after all that is known here."""
        latest = self.root / "latest.json"
        wanted = {
            "version": snapshot.number,
            "data_date": snapshot.data_date.isoformat(),
            "published_at": identify(snapshot, self.format)["published_at"],
            "folder": folder,
            "manifest": f"{folder}/{_MANIFEST}",
        }
        for _ in range(TRIES):
            now, tag = _read(latest)
            if now == wanted:
                return False
            if _is_of_later(now, snapshot, keep):
                return False
            try:
                latest.write_bytes(_json(wanted), only_if=tag)
            except ConditionError:
                continue  # another pod was faster: what it wrote is looked at
            return True
        raise ExportError(
            f"The {self.format} export to {self.root} failed: others write latest.json all the time. {THEN}"
        )

    def _prune(self, there: _Folders, keep: frozenset[int], served: Mapping[int, str]) -> bool:
        """Remove the folders that are no longer kept, and what crashes have left, of those that were there at first."""
        latest, _ = _read(self.root / "latest.json")
        known = max({*keep, *served}) if keep else float("inf")
        before = there.listed_at - timedelta(seconds=YOUNG_SECONDS)
        pruned = False
        for name, objects in there.folders.items():
            number = there.number(name)
            if number is None or name in served.values() or name == latest.get("folder"):
                continue
            is_whole = _MANIFEST in objects
            is_kept = number in keep and number not in served  # else another folder holds it
            if is_whole and is_kept:
                continue
            is_young = max(one.modified_at for one in objects.values()) >= before
            if is_young and (not is_whole or number > known or number in served):
                continue  # another pod has published since, or is writing this
            # In this order: what has no manifest is no snapshot, if this is interrupted.
            (self.root / name / _MANIFEST).unlink(missing_ok=True)
            (self.root / name).remove_below()
            pruned = True
        return pruned


class _Folders:
    """What lies below an export: its objects by folder and name, from one listing."""

    def __init__(self, root: ObjectPath) -> None:
        self.listed_at = datetime.now(UTC)  # what is young then may be whole by the time that something is removed
        self.folders: dict[str, dict[str, Object]] = {}
        for path, found in root.below():
            folder, *rest = path.relative_to(root).parts
            if rest:
                self.folders.setdefault(folder, {})["/".join(rest)] = found

    def number(self, name: str) -> int | None:
        match = _FOLDER.fullmatch(name)
        return int(match[1]) if match else None

    def of(self, number: int) -> Iterator[str]:
        return (name for name in self.folders if self.number(name) == number)


def copy_part(part: Any, path: ObjectPath, scratch: Path) -> None:
    """The content of a part, which never changes, as another object."""
    if isinstance(part, Path):
        path.upload(part)
    elif part.parts[0] == path.parts[0]:
        part.copy_to(path)
    else:  # another bucket, which may be another store
        with _file(scratch) as file:
            part.download(_name(file))
            path.upload(_name(file))


def _file(folder: Path) -> Any:
    """A file that has no name: whatever ends this process, nothing is left of it."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _name(file: Any) -> Path:
    """How the same process opens it once more."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _read(latest: ObjectPath) -> tuple[dict[str, Any], str]:
    """What `latest.json` says, and its tag; nothing where it is not there, or says nothing."""
    try:
        content, tag = latest.read_tagged()
    except FileNotFoundError:
        return {}, ""
    try:
        found = json.loads(content)
    except ValueError:
        return {}, tag
    return (found if isinstance(found, dict) else {}), tag


def _is_of_later(now: Mapping[str, Any], snapshot: Snapshot, keep: frozenset[int]) -> bool:
    """Whether another pod exports what was published after this one read the table, which keeps what is newest."""
    try:
        published_at = datetime.fromisoformat(now["published_at"])
        return bool(keep) and now["version"] > max(keep) and published_at > snapshot.published_at
    except (KeyError, ValueError, TypeError):
        return False
