"""What a task writes: one part (its predictions), the hashes of their keys, and its rejects. Each is there for good once it
is closed: flushed to the disk, and the part uploaded where the table lies in an object store.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.batch.keys import hash_keys, write_hashes
from sereno.places import ObjectPath, Place
from sereno.storage import fsync

ROW_GROUP = 131_072  # rows of a part's row groups
ROWS_AT_ONCE = (
    32  # between two looks at the size of a page, which whoever reads has in memory whole: texts may be large
)
MOST_REASONS, OTHER_REASONS = 100, "other reasons"  # that are counted one by one: of a task, and of a run
REJECTS = pa.schema(
    [
        pa.field("row", pa.int64()),  # position in the task; in the run, once merged; null: a line that is no row
        pa.field("key", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("data", pa.string()),  # the row as JSON
    ]
)


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    path: str  # absolute, or a URL
    rows: int
    size: int
    sha256: str
    stats: str  # Delta's JSON statistics


def working_file(place: Place, work: Path) -> Path:
    """What to write on this machine so that `settle` can bring it to its place. Its folder is made. Raises OSError."""
    file = work / place.name if isinstance(place, ObjectPath) else place
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def settle(file: Path, place: Place) -> None:
    """Make a written file last: flush it, or upload it and remove it here. Raises OSError, StorageError."""
    if isinstance(place, ObjectPath):
        place.upload(file)
        file.unlink()
    else:
        fsync(file)


class PartWriter:
    """Writes one part (Parquet) and the sorted hashes of its keys; there for good once it is closed."""

    def __init__(self, place: Place, work: Path, keys_path: Path, schema: pa.Schema, *, keys: int) -> None:
        """`work`: a folder for the part while it grows, where its place is in an object store."""
        self._place, self._work, self._keys_path = place, work, keys_path
        self._path = Path()  # what is written, once there is a row
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._hashes: list[np.ndarray[Any, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._key_count = keys  # the first columns
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self.rows += table.num_rows
        if self._waiting_rows >= ROW_GROUP:
            self._flush()

    def close(self) -> tuple[WrittenPart | None, str | None]:
        self._flush()
        if self._writer is None:
            return None, None
        self._writer.close()
        write_hashes(self._keys_path, np.concatenate(self._hashes))
        return settled_part(self._path, self._place, self.rows), str(self._keys_path)

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        if self._writer is None:
            self._path = working_file(self._place, self._work)
            self._writer = open_part(self._path, self._schema, self._key_count)
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._hashes.append(hash_keys(table.select(range(self._key_count))))


def settled_part(file: Path, place: Place, rows: int) -> WrittenPart:
    """A part that was written, made to last. Raises OSError, StorageError."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    part = WrittenPart(path=str(place), rows=rows, size=file.stat().st_size, sha256=digest, stats=delta_stats(file))
    settle(file, place)
    return part


def open_part(path: Path, schema: pa.Schema, keys: int) -> pq.ParquetWriter:
    """A writer of parts, whose first `keys` columns are the keys."""
    # a dictionary of values that all differ, as keys and scores do, is built for nothing: it took most of the time
    dictionary = [f.name for f in list(schema)[keys:] if not pa.types.is_floating(f.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary, write_batch_size=ROWS_AT_ONCE)


def delta_stats(path: Path) -> str:
    """Rows, and the least and greatest of whole-number columns, so that readers skip parts without their key."""
    metadata = pq.read_metadata(path)
    least: dict[str, int] = {}
    greatest: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for c in range(metadata.num_columns):
            column = metadata.row_group(group).column(c)
            stats = column.statistics
            if (
                column.physical_type != "INT64"
                or "." in column.path_in_schema
                or stats is None
                or not stats.has_min_max
            ):
                continue
            if not isinstance(stats.min, int):
                continue
            name = column.path_in_schema
            least[name] = min(stats.min, least.get(name, stats.min))
            greatest[name] = max(stats.max, greatest.get(name, stats.max))
    stats_json = {"numRecords": metadata.num_rows, "minValues": least, "maxValues": greatest}
    return msgspec.json.encode(stats_json).decode()


class RejectWriter:
    """Rejects of a task, in a Parquet file that is made with the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[dict[str, Any]] = []
        self.count = 0
        self.reasons: dict[str, int] = {}

    def add(self, row: int | None, key: str | None, reason: str, data: str) -> None:
        self._waiting.append({"row": row, "key": key, "reason": reason, "data": data})
        self.count += 1
        # lines of a file are told apart by their number, which would make every reason another one
        short = reason if len(self.reasons) < MOST_REASONS or reason in self.reasons else OTHER_REASONS
        self.reasons[short] = self.reasons.get(short, 0) + 1
        if len(self._waiting) >= 10_000:
            self._flush()

    def close(self) -> str | None:
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        fsync(self._path)
        return str(self._path)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, REJECTS)
        self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=REJECTS))
        self._waiting = []
