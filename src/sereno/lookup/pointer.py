"""Which index of a model's lookups is served, as its folder tells it; and whether the table has moved on since.

Light: whoever only looks imports nothing but this. `adapters/lookup_folder.py` writes what is read here.
"""

from __future__ import annotations

import os
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from sereno.lookup.keys import KeyCodec

AS_BEFORE = "Lookups answer as before."  # follows what is wrong with a snapshot, before what to do about it
IndexName = Annotated[str, msgspec.Meta(pattern="^([0-9]{6,}-[0-9A-Za-z_-]+)?$")]


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """`served.json`: which index is served."""

    format: Literal[1] = 1
    index: IndexName  # 000012-ATTEMPT; empty: the table serves nothing
    build: str  # of the index: another one as soon as another file has its name
    table_version: int  # which was followed
    commit: int  # when the file of that version was written (ns): of another table, it was at another time
    before: list[IndexName]  # the indexes of older snapshots that were not withdrawn, newest first
    missing: list[IndexName] = []  # those of other snapshots that are still to be built
    left_out: list[IndexName] = []  # and those that cannot be

    def is_there(self, home: Path, model: str) -> bool:
        """Whether the files of the index are. (Whether they are undamaged is found when they are opened.)"""
        folder = lookup_folder(home, model)
        return not self.index or (
            os.path.exists(index_path(folder, self.index)) and os.path.exists(manifest_path(folder, self.index))
        )


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What an index is, whichever store has it."""

    number: int  # of the snapshot
    attempt: str
    data_date: date
    data_time: datetime  # UTC
    fingerprint: str  # of the model
    rows: int
    keys: list[tuple[str, Literal["int", "str", "date"]]]  # name and kind, in declared order
    build: str  # what tells it from another index of the same snapshot

    @property
    def codec(self) -> KeyCodec:
        from sereno.lookup.keys import KeyCodec

        return KeyCodec(tuple(n for n, _ in self.keys), tuple(k for _, k in self.keys))


class Manifest(Described, frozen=True, kw_only=True):
    """`000012-ATTEMPT.json`. Without it there is no index."""

    format: Literal[1] = 1
    size: int  # of the index, in bytes
    crc32: int


def lookup_folder(home: Path, model: str) -> Path:
    """Where a model's indexes are. That it is there says that they are wanted: a server of the model makes it."""
    return home / ".sereno" / "lookup" / model


def lock_path(home: Path, model: str) -> Path:
    """The lock of whoever writes there."""
    return home / ".sereno" / "locks" / f"{model}.lookup"


def pointer_path(folder: Path) -> Path:
    return folder / "served.json"


def index_path(folder: Path, index: str) -> Path:
    return folder / f"{index}.lmdb"


def manifest_path(folder: Path, index: str) -> Path:
    return folder / f"{index}.json"


_read_pointer = msgspec.json.Decoder(Pointer).decode
_read_manifest = msgspec.json.Decoder(Manifest).decode


def read_pointer(home: Path, model: str) -> Pointer | None:
    """None: there is none, or it cannot be read, or it is damaged (the next who follows writes it anew)."""
    try:
        return _read_pointer(pointer_path(lookup_folder(home, model)).read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):  # whoever only looks must not die of a disk
        return None


def read_manifest(folder: Path, index: str) -> Manifest | None:
    """None: there is none, or it cannot be read, or it is damaged."""
    try:
        return _read_manifest(manifest_path(folder, index).read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def commit_time(log: Path, version: int) -> int | None:
    """When a version of a table was committed (ns, by the file of its log); None: it has no such version."""
    try:
        return os.stat(log / f"{version:020d}.json").st_mtime_ns
    except OSError:
        return None


def is_behind(home: Path, model: str) -> bool:
    """Whether whoever follows the table would find something to do: it was committed to, or an index is missing.

    A few questions to the file system, however long the table's log is.
    """
    pointer = read_pointer(home, model)
    return has_moved_on(home, model, pointer) or (pointer is not None and not pointer.is_there(home, model))


def has_moved_on(home: Path, model: str, pointer: Pointer | None) -> bool:
    """Whether the table is another than that which the pointer followed, or was committed to since."""
    if pointer is None:
        return _newest_commit(home, model) >= 0
    log = _log(home, model)
    return (
        commit_time(log, pointer.table_version) != pointer.commit
        or commit_time(log, pointer.table_version + 1) is not None
    )


class Work(NamedTuple):
    """What whoever follows the table finds to do; another one as soon as the table has moved on."""

    commit: tuple[int, int | None]  # the newest of the table, and when it was
    missing: tuple[str, ...]  # indexes that are to be built beside the served one; none: it is about that one


def work(home: Path, model: str) -> Work | None:
    """None: lookups have followed the table, and there is an index of every snapshot that is to have one.

    As cheap as `is_behind` where they have.
    """
    if is_behind(home, model):
        return work_of(home, model, None)
    pointer = read_pointer(home, model)
    return work_of(home, model, pointer) if pointer is not None else None


def work_of(home: Path, model: str, pointer: Pointer | None) -> Work | None:
    """What there is to do beside what this pointer serves; of none (the table has moved on, an index is lost), that."""
    if pointer is None:
        newest = _newest_commit(home, model)
        return Work((newest, commit_time(_log(home, model), newest)), ())
    if not pointer.missing:
        return None
    return Work((pointer.table_version, pointer.commit), tuple(pointer.missing))


def _log(home: Path, model: str) -> Path:
    return home / "predictions" / model / "_delta_log"


def _newest_commit(home: Path, model: str) -> int:
    """-1: there is no table."""
    try:
        names = os.listdir(_log(home, model))
    except OSError:
        return -1
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=-1)
