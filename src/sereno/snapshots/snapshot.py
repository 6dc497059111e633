"""What one run published, or is about to publish, and its parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, overload

from sereno.places import Place, readable

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = "data_date"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a snapshot; never changed once it is written."""

    path: Place  # absolute
    rows: int
    size: int  # bytes
    sha256: str  # hex, of the file


class LoggedParts(Sequence[Part]):
    """The parts of a snapshot as its commit names them, read when somebody asks for them: of all snapshots that a table ever
    had, which are in `State`, there may be millions. Raises StorageError then."""

    def __init__(self, table: Place, version: int) -> None:
        self._table, self._version = table, version
        self._known: tuple[Part, ...] | None = None

    @property
    def _parts(self) -> tuple[Part, ...]:
        if (
            self._known is None
        ):  # no cached_property: Python 3.11 has one lock for all of them, and they would be read one by one
            self._known = self._read()
        return self._known

    def _read(self) -> tuple[Part, ...]:
        from sereno.adapters import delta

        commit = delta.read_commit(self._table, self._version)
        digests = commit.metadata["sha256"].split(",") if commit.metadata["sha256"] else []
        return tuple(
            Part(path=self._table / f.path, rows=json.loads(f.stats)["numRecords"], size=f.size, sha256=digest)
            for f, digest in zip(commit.files, digests, strict=True)
        )

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Part, ...]: ...
    def __getitem__(self, index: int | slice) -> Part | tuple[Part, ...]:
        return self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A published run's output."""

    model: str
    number: int
    attempt: str
    run_key: str
    revision: str
    data_date: date
    data_time: datetime  # the end of the interval, UTC
    published_at: datetime  # UTC
    fingerprint: str  # of the model
    rows: int
    rejects: int
    disposition: str  # replace | partition
    keys: tuple[str, ...]
    parts: Sequence[Part] = field(compare=False)  # an attempt has the same ones for ever
    rejects_file: str = ""  # relative to the table, with its SHA-256 beside it
    rejects_sha256: str = ""
    profile_file: str = ""  # the same of its profile; "": it has none, as it was published before there were any
    profile_sha256: str = ""
    token: int = 0  # of the lease under which it was published; 0: none is known
    table_version: int = field(default=-1, compare=False)  # of the commit that published it


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is about to be published; becomes a Snapshot by a commit."""

    attempt: str
    run_key: str
    revision: str
    data_date: date
    data_time: datetime
    fingerprint: str
    rows: int
    rejects: int
    disposition: str
    keys: tuple[str, ...]
    schema: pa.Schema
    parts: tuple[tuple[Part, str], ...]  # with Delta's statistics
    rejects_file: str
    rejects_sha256: str
    profile_file: str = ""
    profile_sha256: str = ""
    token: int = 0  # of the lease under which it is published


def schema_of(snapshot: Snapshot) -> pa.Schema:
    import pyarrow.parquet as pq

    return pq.read_schema(readable(snapshot.parts[0].path))
