"""What the tests of lookup stores share: a table that is published to without a model, and the stores themselves."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from sereno.adapters.lookup_folder import LookupFolder
from sereno.adapters.lookup_objects.store import LookupObjects
from sereno.adapters.lookup_redis.store import LookupRedis
from sereno.batch.parts import PartWriter
from sereno.exceptions import IndexingError
from sereno.failpoints import failpoint
from sereno.interfaces import LookupIndex, LookupStore
from sereno.lookup.entries import Entries
from sereno.lookup.keys import KeyCodec
from sereno.lookup.packed import read_served
from sereno.places import ObjectPath
from sereno.snapshots import Part, Publication, Snapshot, SnapshotStore, State
from tests.valkey import Valkey

MODEL = "scores"
ALL = frozenset(range(1_000))
FIRST_DAY = date(2026, 5, 1)


class Table:
    """A published table below a home, and what it takes to publish to it."""

    def __init__(self, home: Path, root: ObjectPath | None = None) -> None:
        self.home = home
        self.store = SnapshotStore(root or home, MODEL, home=home)

    @property
    def state(self) -> State:
        return self.store.state()

    def publish(
        self,
        *tables: pa.Table,
        day: int = 1,
        keys: Sequence[str] = ("id",),
        disposition: str = "replace",
    ) -> Snapshot:
        """Publish these, or else three rows that say their version: ids 1 to 3."""
        number = max(self.state.snapshots, default=0) + 1
        tables = tables or (scores(number),)
        data_date = FIRST_DAY + timedelta(days=day - 1)
        attempt = f"{data_date}-{number:06x}"
        writers = [self._written(attempt, index, table, len(keys)) for index, table in enumerate(tables)]
        return self.store.publish(
            Publication(
                attempt=attempt,
                run_key=f"{MODEL}@{data_date}",
                revision=str(number),
                data_date=data_date,
                data_time=datetime(2026, 5, 2, tzinfo=UTC) + timedelta(days=day - 1),
                fingerprint="f" * 64,
                rows=sum(table.num_rows for table in tables),
                rejects=0,
                disposition=disposition,
                keys=tuple(keys),
                schema=tables[0].schema,
                parts=tuple(writers),
                rejects_file="",
                rejects_sha256="",
            ),
            force=True,
        )

    def _written(self, attempt: str, index: int, table: pa.Table, keys: int) -> tuple[Part, str]:
        path = self.store.folder / attempt / f"part-{index:05}.parquet"
        work = self.home / "work" / attempt
        writer = PartWriter(path, work, work / f"{index}.keys", table.schema, keys=keys)
        writer.write(table)
        written, _ = writer.close()
        assert written is not None
        return Part(path=path, rows=written.rows, size=written.size, sha256=written.sha256), written.stats


def scores(number: int, ids: Sequence[int] = (3, 1, 2)) -> pa.Table:
    return pa.table({"id": list(ids), "score": [float(number)] * len(ids), "band": ["A"] * len(ids)})


def answer(number: int) -> bytes:
    """What every id of `scores(number)` is answered."""
    return b'{"score":%d.0,"band":"A"}' % number


class Kept(Protocol):
    """A store, and what a test sees of it."""

    store: LookupStore
    again: LookupStore  # as another process has it

    def held(self) -> set[int]:
        """The snapshots whose indexes take space."""
        ...


class FolderKept:
    def __init__(self, home: Path) -> None:
        self.store: LookupStore = LookupFolder(home, MODEL)
        self.again: LookupStore = LookupFolder(home, MODEL)
        self.folder = home / ".sereno" / "lookup" / MODEL

    def held(self) -> set[int]:
        files = {path.name for path in self.folder.iterdir()} - {"served.json"}
        assert files == {f"{path.stem}{end}" for path in self.folder.glob("*.lmdb") for end in (".lmdb", ".json")}
        return {int(path.name[:6]) for path in self.folder.glob("*.lmdb")}


class RedisKept:
    """Lookups in a server that the tests have started: SERVERS has it."""

    def __init__(self, home: Path) -> None:
        self.server = SERVERS[0]
        self.server.client.flushall()
        self.store: LookupStore = LookupRedis(home, MODEL, address=self.server.url, prefix="test")
        self.again: LookupStore = LookupRedis(home, MODEL, address=self.server.url, prefix="test")

    def held(self) -> set[int]:
        client = self.server.client
        keys = {key.decode() for key in client.scan_iter()} - {"test:{scores}:catalogue"}
        stay = {key for key in keys if client.ttl(key) == -1}  # the others go by themselves
        assert all(key.startswith("test:{scores}:0") for key in keys)
        return {int(key.split(":")[2][:6]) for key in stay}


class ObjectsKept:
    """Lookups in a bucket, of a table that lies below the home: PLACES has where."""

    def __init__(self, home: Path) -> None:
        self.place = PLACES[0] / uuid.uuid4().hex[:8]
        self.store: LookupStore = LookupObjects(home, MODEL, self.place, home)
        self.again: LookupStore = LookupObjects(home, MODEL, self.place, home)
        self.folder = self.place / ".sereno" / "lookup" / MODEL

    def held(self) -> set[int]:
        served = read_served((self.folder / "served.json").read_bytes())
        objects = {path.name for path, _ in self.folder.below()} - {"served.json", "lock.json", "wanted"}
        assert objects == {packed.object for packed in served.indexes.values()}
        return {packed.number for packed in served.indexes.values()}


class MemoryKept:
    def __init__(self, home: Path) -> None:
        self.store = self.again = MemoryStore(home)

    def held(self) -> set[int]:
        return {number for number, _ in self.store.indexes}


class MemoryIndex:
    def __init__(self, snapshot: Snapshot, keys: KeyCodec, predictions: dict[bytes, bytes]) -> None:
        self.number, self.data_date, self.data_time = snapshot.number, snapshot.data_date, snapshot.data_time
        self.rows, self.keys = snapshot.rows, keys
        self.mark: object = (snapshot.number, snapshot.attempt)
        self._predictions = predictions

    def get(self, key: bytes) -> bytes | None:
        return self._predictions.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def close(self) -> None:
        pass


class MemoryStore:
    """The least that a store must be: everything in a dictionary, for one process."""

    is_far = False

    def __init__(self, home: Path) -> None:
        self._table = SnapshotStore(home, MODEL)
        self._followed = -1
        self._served: tuple[int, str] | None = None
        self.indexes: dict[tuple[int, str], MemoryIndex] = {}

    def follow(self, state: State, keep: frozenset[int]) -> bool:
        if self._followed > state.table_version and self._table.state().table_version >= self._followed:
            return False
        before = (self._served, set(self.indexes))
        newest = state.newest
        if newest is not None:
            self._build(newest)
        failpoint("lookup_swap_before")
        self._served = (newest.number, newest.attempt) if newest is not None else None
        self._followed = state.table_version
        failpoint("lookup_swapped")
        for number in sorted(keep & state.snapshots.keys() - state.withdrawn):
            with contextlib.suppress(IndexingError):
                self._build(state.snapshots[number])
        stay = {
            (n, state.snapshots[n].attempt) for n in keep | {s.number for s in state.served} if n in state.snapshots
        }
        self.indexes = {name: index for name, index in self.indexes.items() if name in stay}
        return before != (self._served, set(self.indexes))

    def _build(self, snapshot: Snapshot) -> None:
        if (snapshot.number, snapshot.attempt) in self.indexes:
            return
        entries = Entries(snapshot)
        predictions: dict[bytes, bytes] = {}
        with tempfile.TemporaryDirectory() as folder:
            for keys, values in entries.chunks(Path(folder) / "scratch"):
                predictions |= zip(keys, values, strict=True)
                failpoint("lookup_build")
        self.indexes[snapshot.number, snapshot.attempt] = MemoryIndex(snapshot, entries.keys, predictions)

    def mark(self) -> object:
        return self._served

    def is_behind(self) -> bool:
        return self._table.state().table_version != self._followed

    def was_rolled_back(self, number: int) -> bool:
        return self._served is not None and number > self._served[0]

    def open(self) -> LookupIndex | None:
        return self.indexes[self._served] if self._served is not None else None


KEPT: dict[str, Any] = {"folder": FolderKept, "memory": MemoryKept, "redis": RedisKept, "objects": ObjectsKept}
PLACES: list[ObjectPath] = []  # the one below which "objects" lie
SERVERS: list[Valkey] = []  # the one that "redis" uses
