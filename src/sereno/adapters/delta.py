"""The Delta table: the one file that knows deltalake. Commits files that others wrote, and reads the log back.

In an object store a commit is a conditional write, which one of several writers wins, and lasts once it is there. On a
disk it is a hard link, and delta-rs flushes nothing, nor the checkpoints that it writes at each hundredth: whoever commits
flushes the log's file, `checkpoint_files` and the folder afterwards, and begins with `remove_torn_checkpoints`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.schema import Field, PrimitiveType, Schema
from deltalake.transaction import AddAction, create_table_with_add_actions

from sereno.exceptions import BusyError, PublishError, SourceError, StorageError
from sereno.places import ObjectPath, Place, place_of, write_place
from sereno.presence import Contents
from sereno.storage import GOES_ON, told

# History is the only truth about what was published, so the log is never cut: Delta's own default is 30 days.
TEN_YEARS = {
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 3650 days",
}


@dataclass(frozen=True, kw_only=True)
class AddedFile:
    """A data file of a commit."""

    path: str  # relative to the table
    size: int
    stats: str  # JSON, as Delta defines it
    partition: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of the log."""

    version: int
    metadata: dict[str, str]  # ours, without the prefix
    files: tuple[AddedFile, ...]


class NoCommitError(StorageError):
    """The log lacks a commit."""


class NotTakenError(StorageError):
    """An object store that takes other writes did not take a commit, and nobody else's is there: another try may succeed."""


T = TypeVar("T")

PREFIX = "sereno."
CHECKED_ROWS = 4_096  # of a checkpoint that are in memory
WHOLE_SECONDS = 1.0  # until a commit's file is taken for damaged, where it is not whole
TRIES, TRY_SECONDS = 5, 0.5  # of what an object store did not do; and at most, before another
KNOWN_SECONDS = 60.0  # for which the log is asked what came of a commit, where it does not answer
HEAD = 1 << 18  # bytes of a commit that are read for its metadata; the digests of 3,000 parts are among it
PASSES = re.compile(r"HTTP error|status code (408|409|429|5(?!01)\d\d)")  # no connection, or too much to do
BOUNDS = {
    "timeout": "30s",
    "connect_timeout": "5s",
    "max_retries": "8",
    "retry_timeout": "60s",
}  # of requests to a store


def options(table: Place) -> dict[str, str] | None:
    """What delta-rs opens a table with, beside where it is."""
    if isinstance(table, Path):
        return None
    from sereno.adapters.objects import settings_of

    return settings_of(f"{table.scheme}://{table.bucket}") | BOUNDS


def opened(table: Place, version: int, then: str = GOES_ON) -> DeltaTable:
    """The table as it was at a version. Raises what delta-rs raises; of an object store StorageError."""
    try:
        return _opened(table, version)
    except (DeltaError, OSError) as error:
        if isinstance(table, Path):
            raise
        raise StorageError(f"Table {table} cannot be read: {_said_of_store(error)} {then}") from error


def _opened(table: Place, version: int | None) -> DeltaTable:
    """Of an object store that fails it is tried again until the deadline of all that is asked there: delta-rs itself gives
    up after seconds. None: the newest version. Raises what delta-rs raises."""
    if isinstance(table, Path):
        return DeltaTable(str(table), version=version)
    from sereno.adapters import objects

    tries = objects.Tries()
    for n in itertools.count(1):
        try:
            return DeltaTable(str(table), version=version, storage_options=options(table))
        except (DeltaError, OSError) as error:
            may_pass = n < TRIES or PASSES.search(_plain(error))
            if not (may_pass and tries.pause(objects.DEADLINE)):
                raise
    raise AssertionError  # it goes on until it returns or raises


P = TypeVar("P", Path, ObjectPath)


def log_file(table: P, version: int) -> P:
    return table / "_delta_log" / _name(version)


def _name(version: int) -> str:
    return f"{version:020d}.json"


def current_version(table: Place) -> int:
    """The table's newest version; -1 if there is no table."""
    versions = [int(f.stem) for f in (table / "_delta_log").glob("*.json") if f.stem.isdigit()]
    return max(versions, default=-1)


def checkpoint_files(table: Path) -> list[Path]:
    """The newest checkpoint, and the file that says which it is."""
    newest = sorted((table / "_delta_log").glob("*.checkpoint*.parquet"))[-1:]
    return [path for path in (*newest, table / "_delta_log" / "_last_checkpoint") if path.exists()]


def remove_torn_checkpoints(table: Path) -> None:
    """A power cut may leave a checkpoint that nobody can read. Without it all is read from the log, which has it too."""
    log = table / "_delta_log"
    for path in sorted(log.glob("*.checkpoint*.parquet"), reverse=True):
        first = int(path.name.partition(".")[0])
        try:
            for _ in pq.ParquetFile(path, buffer_size=1 << 20).iter_batches(
                CHECKED_ROWS
            ):  # it names every file of years
                pass
            return  # older ones were flushed before
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, or this user's rights: nothing is known about the file
            if not log_file(table, first).exists():  # somebody cut the log
                return
            (log / "_last_checkpoint").unlink(missing_ok=True)  # before the file that it names
            path.unlink()


def metadata_of_commits(table: Place) -> Iterator[tuple[int, dict[str, str]]]:
    """Version and metadata of every commit, oldest first. Those of others (an OPTIMIZE, say) have none of ours.

    Their files are not read: a table that has been replaced by 10,000 parts for a year has millions. Nor are those digests
    told of which a table in an object store has as many: `read_commit` has them.
    """
    if isinstance(table, ObjectPath):
        commits = _log_of(table).read()
        for version, file in enumerate(commits):
            if int(file.stem) != version:
                raise _lacks(table, version)
            yield version, commits[file][1]
        return
    for version in range(current_version(table) + 1):
        yield version, read_metadata(table, version)


@cache
def _log_of(table: ObjectPath) -> Contents[dict[str, str]]:
    """The log of a table in an object store: a commit never changes, so each is read once by a process."""
    return Contents(table / "_delta_log", lambda path: path.suffix == ".json" and path.stem.isdigit(), _beginning)


def _beginning(commit: ObjectPath) -> dict[str, str]:
    """Our metadata of a commit, without its digests."""
    content = commit.read_range(0, HEAD)
    first, is_whole, _ = content.partition(b"\n")
    if len(content) == HEAD and not (is_whole and b'"commitInfo"' in first[:20]):
        content = commit.read_bytes()
    metadata = _metadata(_first_with_metadata(_lines(content)))
    return {name: text for name, text in metadata.items() if name != "sha256"}


def _lines(content: bytes) -> Iterator[str]:
    """As a file has them: a text within one may hold what else ends lines (U+2028), and the last one may be cut off."""
    return (line.decode() for line in content.split(b"\n") if line)


def read_metadata(table: Place, version: int) -> dict[str, str]:
    """What we wrote into a commit beside its files. Raises NoCommitError, StorageError."""
    return _whole(table, version, lambda lines: _metadata(_first_with_metadata(lines)))


def is_committed(table: Place, version: int, metadata: Mapping[str, str]) -> bool:
    """Whether a commit is there and says this of itself: what to ask where its answer was lost.

    A log that does not answer is asked again. Raises StorageError where it goes on so: the commit may be there.
    """
    deadline = time.monotonic() + KNOWN_SECONDS
    while True:
        try:
            return metadata.items() <= read_metadata(table, version).items()
        except NoCommitError:
            return False
        except (StorageError, OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"Commit {version} of table {table} may have been made, or not: its answer was lost, and the log cannot "
                    f"be read ({str(error).rstrip('.')}). So it may be in service. Mend that, then start it again, which "
                    "finds out, and does nothing twice."
                ) from error
        time.sleep(random.uniform(0, TRY_SECONDS))


def read_commit(table: Place, version: int) -> Commit:
    """A commit with its files. Raises NoCommitError, StorageError."""

    def read(lines: Iterable[str]) -> Commit:
        metadata: dict[str, str] = {}
        files = []
        for line in lines:
            action = json.loads(line)
            metadata |= _metadata(action)
            if "add" in action:
                add = action["add"]
                files.append(
                    AddedFile(
                        path=unquote(add["path"]),
                        size=add["size"],
                        stats=add.get("stats") or "{}",
                        partition=add.get("partitionValues") or {},
                    )
                )
        return Commit(version=version, metadata=metadata, files=tuple(files))

    return _whole(table, version, read)


def _metadata(action: dict[str, Any]) -> dict[str, str]:
    info = action.get("commitInfo", {})
    return {k.removeprefix(PREFIX): v for k, v in info.items() if k.startswith(PREFIX)}


def _first_with_metadata(lines: Iterable[str]) -> dict[str, Any]:
    """delta-rs writes it as a commit's first line, others may not. That one is read whatever it says: a file that is damaged
    must not be taken for somebody else's commit, nor one of which another host has written a part."""
    for number, line in enumerate(lines):
        if not number or '"commitInfo"' in line[:20]:
            action: dict[str, Any] = json.loads(line)
            if "commitInfo" in action:
                return action
    return {}


def _whole(table: Place, version: int, read: Callable[[Iterable[str]], T]) -> T:
    """What `read` finds in a commit's file. Another host's may get its name a moment before its content: it is waited for."""
    file: Place = table / "_delta_log" / _name(version)
    deadline = time.monotonic() + WHOLE_SECONDS
    while True:
        is_late = time.monotonic() > deadline
        try:
            if isinstance(file, ObjectPath):
                return read(_lines(file.read_bytes()))
            with file.open(encoding="utf-8") as lines:
                if is_late or os.fstat(lines.fileno()).st_size:
                    return read(lines)
        except FileNotFoundError:
            raise _lacks(table, version) from None
        except ValueError:
            if is_late:
                raise
        time.sleep(0.05)


def _lacks(table: Place, version: int) -> NoCommitError:
    return NoCommitError(
        f"The log of table {table} lacks commit {version}: somebody removed {table / '_delta_log' / _name(version)}. "
        "Restore the folder _delta_log from a backup."
    )


def commit(
    table: Place,
    *,
    expected: int,
    schema: pa.Schema,
    files: Sequence[AddedFile],
    metadata: Mapping[str, str],
    partition: str | None,
    partition_value: str | None,
) -> int:
    """Make `files` the content of the table, or of one partition, in one commit on top of version `expected` (-1: none).

    Returns the new version, which is not flushed to the disk yet. Raises BusyError if the table has moved on, StorageError
    (of an object store NotTakenError, where it may be tried again), and PublishError as `grown` does.
    """
    actions = [
        AddAction(
            path=f.path,
            size=f.size,
            partition_values=dict(f.partition),
            modification_time=int(time.time() * 1000),
            data_change=True,
            stats=f.stats,
        )
        for f in files
    ]
    properties = CommitProperties(custom_metadata={PREFIX + k: v for k, v in metadata.items()}, max_commit_retries=0)
    by = [partition] if partition else []
    moved = f"Table {table} was changed by another process just now. Start this again: a run goes on where it was."
    try:
        if expected < 0:
            table.mkdir(parents=True, exist_ok=True)
            create_table_with_add_actions(
                str(table),
                _nullable(schema),
                actions,
                mode="error",
                partition_by=by,
                configuration=TEN_YEARS,
                storage_options=options(table),
                commit_properties=properties,
            )
        else:
            there = opened(table, expected)  # which may read a hundred commits: once
            there.create_write_transaction(
                [*actions],
                mode="overwrite",
                schema=_grown(table, there, schema) if partition else _nullable(schema),
                partition_by=by or None,
                partition_filters=[(partition, "=", partition_value)] if partition else None,
                commit_properties=properties,
            )
    except CommitFailedError as error:
        if (
            isinstance(table, ObjectPath) and not log_file(table, expected + 1).exists()
        ):  # nobody's commit was in the way
            raise translated(table, error) from error
        raise BusyError(moved) from error
    except DeltaError as error:
        if "already exists" in str(error):
            raise BusyError(moved) from error
        raise translated(table, error) from error
    except OSError as error:
        raise translated(table, error) from error
    return expected + 1


def _nullable(schema: pa.Schema) -> Schema:
    """What is not null is checked before it gets here."""
    return Schema.from_arrow(pa.schema([f.with_nullable(True) for f in schema]))


def grown(table: Place, version: int, schema: pa.Schema) -> Schema:
    """The columns of a table that keeps its other partitions: those it has, and what is new in `schema`.

    Raises PublishError where a column has another type, because no reader could read both.
    """
    return _nullable(schema) if version < 0 else _grown(table, opened(table, version), schema)


def _grown(table: Place, there: DeltaTable, schema: pa.Schema) -> Schema:
    new = _nullable(schema)
    columns = {column.name: column for column in there.schema().fields}
    for column in new.fields:
        known = columns.setdefault(column.name, column)
        if known.type != column.type:
            raise PublishError(
                f"Column {column.name!r} of table {table} is {_words(known)}, and the model now gives {_words(column)}. Its "
                "dates lie in one table: give the output another name, or move the table away to start a new one."
            )
    return Schema(list(columns.values()))


def _words(field: Field) -> str:
    return field.type.type if isinstance(field.type, PrimitiveType) else str(field.type)


def translated(table: Place, error: BaseException, then: str = GOES_ON) -> StorageError:
    """What delta-rs says of a disk or a store that fails may mislead, so it is asked: can a file be written there?

    The answer is a NotTakenError where it can, and it is an object store.
    """
    what = f"The commit to table {table} failed"
    probe = table / "_delta_log" / ".probe"
    try:
        with told(what, then):
            try:
                write_place(probe, b"\0" * 65_536)
            finally:
                with contextlib.suppress(StorageError):
                    probe.unlink(missing_ok=True)
    except StorageError as cause:
        return cause if isinstance(table, Path) else StorageError(f"{what}: {cause} {then}")
    if isinstance(table, ObjectPath):
        return NotTakenError(f"{what}: {_said_of_store(error)} {then}")
    first_line = str(error).partition("\n")[0]  # a backtrace of Rust may follow
    return StorageError(f"{what}: {first_line}. {then}")


def _said_of_store(error: BaseException) -> str:
    from sereno.adapters.objects import HINTS

    text = str(error)
    for word, meaning, do in HINTS:
        if word in text:
            return f"{meaning}. {do}"
    return f"{_plain(error)[:400].rstrip('.')}."


def _plain(error: BaseException) -> str:
    """Its text in a line, without the paint that delta-rs gives its steps."""
    return " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).replace("↳", "").split())


def files_of_table(source: str) -> Iterator[tuple[Place, dict[str, str | None]]]:
    """The data files of any Delta table, on a disk or in an object store, with their partition columns.

    Raises SourceError, SettingsError where the store cannot be asked with these credentials, and StorageError.
    """
    folder = place_of(source)
    try:
        table = _opened(folder, None)
    except (TableNotFoundError, DeltaError, OSError) as error:
        if isinstance(folder, ObjectPath) and PASSES.search(_plain(error)):
            raise StorageError(f"The source {source} cannot be read: {_said_of_store(error)} {GOES_ON}") from error
        raise SourceError(f"{source} cannot be read as a Delta table: {_said_of_store(error)}") from error
    features = set(table.protocol().reader_features or [])
    unknown = features & {"deletionVectors", "columnMapping"}
    if unknown:
        raise SourceError(
            f"The Delta table {source} uses {', '.join(sorted(unknown))}, which is not read here. Read it with a `read` "
            "function, or rewrite the table without (REORG TABLE … APPLY (PURGE))."
        )
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    for action in sorted(actions, key=lambda a: str(a["path"])):
        partition = {
            k.removeprefix("partition."): None if v is None else str(v)
            for k, v in action.items()
            if k.startswith("partition.")
        }
        yield folder / unquote(action["path"]), partition
