"""The Delta table of answers: what its log says, and commits that add files, exchange some for others, or drop them.

The caller holds the table's lock, flushes files before the commit that names them, and the log afterwards
(`flush_log`). In an object store there is neither: what is written lasts, and of two commits at once one is refused. Unlike
the table of predictions it has no history to keep: what was exchanged or dropped is removed from the disk by `vacuum`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.schema import Schema
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from sereno.adapters.delta import (
    PREFIX,
    checkpoint_files,
    current_version,
    log_file,
    opened,
    options,
    remove_torn_checkpoints,
    translated,
)
from sereno.exceptions import BusyError, StorageError
from sereno.places import ObjectPath, Place
from sereno.storage import fsync

# No statistics of inputs: least and greatest values would stay in the log after a person's rows were erased.
CONFIGURATION = {
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 1 days",
    "delta.dataSkippingStatsColumns": "answered_at",
}
# A checkpoint is made by `flush_log`: only once it is on the disk for good may old files of the log go.
NO_CHECKPOINT = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
# In an object store each pod commits what it has answered, and each look at the log lists it.
IN_OBJECTS = {"delta.logRetentionDuration": "interval 2 days"}
CHECKPOINT_EVERY = 100  # commits
AT_ONCE = 8  # of them are read, in an object store
WHEN = "answered_at"
THEN = "No answer is lost: the compactor tries again."


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of the table."""

    path: str  # relative to the table
    day: date
    size: int
    rows: int
    first: datetime  # answered_at
    last: datetime


class CommitId(NamedTuple):
    """What tells a commit from others: Delta's transaction of an application."""

    writer: str  # who makes one commit after the other; a table keeps the number of the last, also when its log is cut
    number: int


@dataclass(frozen=True, kw_only=True)
class TableState:
    """The table at one version."""

    version: int
    schema: pa.Schema  # with the column of the partition, `day`
    files: tuple[DataFile, ...]


def read_state(table: Place) -> TableState | None:
    """The newest version; None if there is no table."""
    version = current_version(table)
    if version < 0:
        return None
    with _reading(table):
        there = opened(table, version, THEN)
        actions = pa.table(there.get_add_actions(flatten=True)).to_pylist()
    files = tuple(
        DataFile(
            path=unquote(a["path"]),
            day=a["partition.day"],
            size=a["size_bytes"],
            rows=a["num_records"] or 0,
            # a file that somebody else wrote (an OPTIMIZE, say) may come without statistics
            first=a.get(f"min.{WHEN}") or datetime.combine(a["partition.day"], datetime.min.time(), UTC),
            last=a.get(f"max.{WHEN}") or datetime.combine(a["partition.day"], datetime.max.time(), UTC),
        )
        for a in actions
    )
    return TableState(version=version, schema=_plain(pa.schema(there.schema().to_arrow())), files=files)


def commit(
    table: Place,
    state: TableState | None,
    *,
    schema: pa.Schema,
    add: Sequence[DataFile] = (),
    remove: Sequence[DataFile] = (),
    metadata: Mapping[str, str],
    commit_id: CommitId | None = None,
    same_rows: bool = False,
) -> None:
    """One commit on top of `state` (None: it makes the table). Columns that are new are added by a commit before it.

    `commit_id`: what `has_commit` finds the commit by. `same_rows`: what is added holds the rows of what is removed, so that
    whoever follows the table may skip the commit.

    Raises BusyError where somebody else changed the table meanwhile, and StorageError. After either, an object store may have
    done it all the same, its answer lost; after a StorageError it may even do it later.
    """
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [_add(file, now, not same_rows) for file in add]
    actions += [
        RemoveAction(f.path, not same_rows, now, size=f.size, partition_values={"day": f.day.isoformat()})
        for f in remove
    ]
    properties = CommitProperties(
        custom_metadata={PREFIX + k: v for k, v in metadata.items()},
        max_commit_retries=0,
        app_transactions=[Transaction(commit_id.writer, commit_id.number)] if commit_id else None,
    )
    with _reading(table):
        there = None if state is None else opened(table, state.version, THEN)
    version = 0 if state is None else state.version + 1
    try:
        if state is None or there is None:
            table.mkdir(parents=True, exist_ok=True)
            create_table_with_add_actions(
                str(table),
                Schema.from_arrow(schema),
                [_add(file, now, True) for file in add],
                mode="error",
                partition_by=["day"],
                configuration=CONFIGURATION | (IN_OBJECTS if isinstance(table, ObjectPath) else {}),
                storage_options=options(table),
                commit_properties=properties,
                post_commithook_properties=NO_CHECKPOINT,
            )
            return
        new = [field for field in Schema.from_arrow(schema).fields if field.name not in state.schema.names]
        if new:
            there.alter.add_columns(
                new,
                commit_properties=CommitProperties(max_commit_retries=0),
                post_commithook_properties=NO_CHECKPOINT,
            )
            version += 1
        there.create_write_transaction(
            actions,
            mode="append",
            schema=there.schema(),
            partition_by=["day"],
            commit_properties=properties,
            post_commithook_properties=NO_CHECKPOINT,
        )
    except CommitFailedError as error:
        if isinstance(table, ObjectPath) and not log_file(table, version).exists():
            raise translated(table, error, THEN) from error  # nobody's commit was in the way
        raise BusyError(f"Table {table} was changed by another program just now. {THEN}") from error
    except Exception as error:  # delta-rs raises plain ones too
        if state is None and "already exists" in str(error):
            raise BusyError(f"Table {table} was made by another program just now. {THEN}") from error
        raise translated(table, error, THEN) from error


def _add(file: DataFile, now: int, data_change: bool) -> AddAction:
    stats = {"numRecords": file.rows, "minValues": {WHEN: _text(file.first)}, "maxValues": {WHEN: _text(file.last)}}
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values={"day": file.day.isoformat()},
        modification_time=now,
        data_change=data_change,
        stats=json.dumps(stats),
    )


def _text(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def has_commit(table: Place, commit_id: CommitId) -> bool:
    """Whether it is the last commit of its writer. Raises StorageError."""
    version = current_version(table)
    if version < 0:
        return False
    with _reading(table):
        return bool(opened(table, version, THEN).transaction_version(commit_id.writer) == commit_id.number)


def flush_log(table: Place, after: int) -> None:
    """Make all commits younger than a version last; now and then with a checkpoint, after which old ones go."""
    newest = current_version(table)
    if isinstance(table, Path):
        for file in (table / "_delta_log").glob("*.json"):
            if file.stem.isdigit() and int(file.stem) > after:
                fsync(file)
        fsync(table / "_delta_log")
    if newest - _last_checkpoint(table) < CHECKPOINT_EVERY:
        return
    with _reading(table):
        there = opened(table, newest, THEN)
    try:
        there.create_checkpoint()
        if isinstance(table, Path):
            for path in (*checkpoint_files(table), table / "_delta_log"):
                fsync(path)
        there.cleanup_metadata()
    except OSError:
        raise
    except Exception as error:
        raise translated(table, error, THEN) from error


def mend_log(table: Place) -> None:
    """A power cut may leave the newest files of the log empty; nothing in them was relied on yet."""
    if not isinstance(table, Path):
        return
    while (newest := log_file(table, current_version(table))).exists() and not newest.read_bytes().strip(b"\0"):
        newest.unlink()
    remove_torn_checkpoints(table)


def vacuum(table: Place, hours: int) -> int:
    """Remove files that no version needs that was current in the last hours; how many."""
    with _reading(table):
        there = opened(table, current_version(table), THEN)
    try:
        gone = there.vacuum(
            retention_hours=hours,
            dry_run=False,
            enforce_retention_duration=False,
            post_commithook_properties=NO_CHECKPOINT,
            full=True,
        )
    except Exception as error:
        raise translated(table, error, THEN) from error
    for folder in table.glob("day=*") if isinstance(table, Path) else ():
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)
    return len(gone)


def forget_removed(table: ObjectPath) -> None:
    """Remove the files that were exchanged or dropped, and no others: what no version names another pod may be writing."""
    state = read_state(table)
    used = {file.path for file in state.files} if state is not None else set()
    with ThreadPoolExecutor(AT_ONCE) as threads:  # pods commit thousands of times in two days
        removed = set().union(*threads.map(_removed_by, (table / "_delta_log").glob("*.json")))
    for path in removed - used:
        (table / path).unlink(missing_ok=True)


def _removed_by(commit: ObjectPath) -> set[str]:
    try:
        lines = commit.read_bytes().split(b"\n")  # not `splitlines`: a column's name may hold what else ends lines
    except FileNotFoundError:  # another pod has cut the log: what is that old, `vacuum` has removed
        return set()
    actions = (json.loads(line) for line in lines if line)
    return {unquote(action["remove"]["path"]) for action in actions if "remove" in action}


@contextlib.contextmanager
def _reading(table: Place) -> Iterator[None]:
    """Turn what delta-rs raises into StorageError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"The table {table} cannot be read: {error}.") from error


def _last_checkpoint(table: Place) -> int:
    if isinstance(table, Path):
        return max((int(path.name.partition(".")[0]) for path in checkpoint_files(table)[:-1]), default=-1)
    try:
        version: int = json.loads((table / "_delta_log" / "_last_checkpoint").read_bytes())["version"]
    except (FileNotFoundError, ValueError, KeyError):
        return -1
    return version


def _plain(schema: pa.Schema) -> pa.Schema:
    """The columns as they were given: delta-rs has several kinds of text."""
    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(pa.field("element", _plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _plain_type(f.type)) for f in kind])
    return kind
