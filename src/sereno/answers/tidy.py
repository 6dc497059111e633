"""What keeps the table of answers small and lawful: old days go, small files are joined, a person's answers are erased."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.adapters import answer_table
from sereno.adapters.answer_table import DataFile, TableState
from sereno.answers.columns import CHUNK, OWN, key_columns, matches_key
from sereno.answers.compact import Compactor, Done
from sereno.answers.folder import ask_to_seal, is_alive, is_tidy, late_writers, open_segments, say_tidy, worker_of
from sereno.answers.parts import Parts
from sereno.exceptions import BusyError, NotFoundError
from sereno.places import ObjectPath, readable
from sereno.storage import age

SMALL_BYTES = 32 << 20  # files of a past day that are smaller are joined,
SMALL_FILES = 8  # once there are more of them than this
ONCE_BYTES = 1 << 30  # of files that one commit exchanges
OLD_HOURS = 24  # how long a file stays that is no longer in the table, for those who are reading it
HAND_OVER_SECONDS = 10.0  # how long a worker may take to seal what it has


def drop_old_days(compactor: Compactor, days: int | None, done: Done) -> None:
    """Once a day: drop days that are older than so many, and remove the files that nobody needs since yesterday."""
    today = datetime.now(UTC).date()
    if is_tidy(compactor.segments, days):
        return
    state = compactor.state()
    if state is None:
        if isinstance(compactor.table, ObjectPath):  # whether there is one, nobody is to ask all the time
            say_tidy(compactor.segments, days)
        return
    for path in [*compactor.segments.glob("*.new"), *compactor.segments.glob("*.writer")]:  # of workers that died
        with contextlib.suppress(FileNotFoundError):  # it has got its name, or was removed
            if not is_alive(path) and age(path) > 60:
                path.unlink()
    if days is not None:
        first = today - timedelta(days=days)
        old = [f for f in state.files if f.day < first]
        if old:
            compactor.commit(state, _nothing, kind="drop", schema=state.schema, columns=(), remove=old)
            done.dropped_days = len({f.day for f in old})
        for path in compactor.segments.glob("*.unreadable"):
            if path.stat().st_mtime < time.time() - days * 86_400:
                path.unlink(missing_ok=True)
    answer_table.vacuum(compactor.table, OLD_HOURS)
    say_tidy(compactor.segments, days)


def _nothing(parts: Parts) -> None:
    """A commit that only removes."""


def join_small_files(compactor: Compactor, done: Done) -> None:
    """Join the small files of the newest past day that has too many: a bounded number of bytes a call."""
    state = compactor.state()
    if state is None:
        return
    today = datetime.now(UTC).date()
    small: dict[date, list[DataFile]] = {}
    for file in state.files:
        if file.day < today and file.size < SMALL_BYTES:
            small.setdefault(file.day, []).append(file)
    for day in sorted(small, reverse=True):
        if len(small[day]) > SMALL_FILES:
            chosen = _some(sorted(small[day], key=lambda f: f.first))
            _exchange(compactor, state, chosen, done, None)
            done.joined_files = len(chosen)
            return


def erase(compactor: Compactor, key: Sequence[str]) -> Done:
    """Remove the answers of a key, given as texts in declared order, up to this moment: from segments, table and disk.

    Raises NotFoundError where no key has so many values, BusyError where a worker does not hand over what it has (the
    rest is erased then), and StorageError. What was interrupted is done by erasing once more.
    """
    done = Done()
    kept_back = hand_over(compactor)
    with compactor.alone():
        compactor.take_segments(done, without=key)
        for path in compactor.segments.glob("*.unreadable"):
            path.unlink()  # whose answers these are cannot be known
        state = compactor.state()
        if state is None and not kept_back:
            raise NotFoundError(f"No answer of model {compactor.model!r} is kept.")
        if state is not None:
            check_key(compactor, state.schema, key)
            while compactor.tried(lambda: _erase_some(compactor, key, done), done):
                pass
            if isinstance(compactor.table, ObjectPath):
                answer_table.forget_removed(compactor.table)
            else:
                answer_table.vacuum(compactor.table, 0)
    if kept_back:
        raise BusyError(
            f"{done.erased:,} answers were erased, but the process {', '.join(kept_back)} did not hand over its newest "
            "ones. Erase once more when it answers again or has ended."
        )
    return done


def _erase_some(compactor: Compactor, key: Sequence[str], done: Done) -> bool:
    """Exchange some files that have answers of a key, in one commit; whether there were any."""
    state = compactor.state()
    found = [file for file in state.files if _has(compactor, state, file, key)] if state is not None else []
    if state is not None and found:
        _exchange(compactor, state, _some(found), done, key)
    return bool(found)


def check_key(compactor: Compactor, schema: pa.Schema, key: Sequence[str]) -> None:
    """Raise NotFoundError where no key of the model has so many values."""
    names = [*compactor.declared, key_columns(schema)][-2 if compactor.declared else -1]
    if len(key) > max(map(len, [names, *compactor.declared])):
        raise NotFoundError(
            f"A key of model {compactor.model!r} has {len(names)} value{'s' * (len(names) > 1)} ({', '.join(names)}), not {len(key)}."
            if names
            else f"Model {compactor.model!r} has no answers yet, and so no key."
        )


def hand_over(compactor: Compactor) -> list[str]:
    """Have the workers seal all that was answered until now; the pids of those that did not."""
    folder = compactor.segments
    if not folder.is_dir():
        return []
    before = open_segments(folder)
    request = ask_to_seal(folder)
    deadline = time.monotonic() + HAND_OVER_SECONDS
    while True:
        there = [worker_of(path) for path in before if path in open_segments(folder)]
        late = sorted({*there, *late_writers(folder, request)})
        if not late or time.monotonic() > deadline:
            return late
        time.sleep(0.05)


def _some(files: Sequence[DataFile]) -> list[DataFile]:
    """The first of them, as many as one commit exchanges."""
    chosen = [files[0]]
    for file in files[1:]:
        if sum(f.size for f in chosen) + file.size > ONCE_BYTES:
            break
        chosen.append(file)
    return chosen


def _has(compactor: Compactor, state: TableState, file: DataFile, key: Sequence[str]) -> bool:
    names = key_columns(state.schema)
    with pq.ParquetFile(readable(compactor.table / file.path)) as source:
        there = [name for name in names if name in source.schema_arrow.names]
        tables = (pa.Table.from_batches([batch]) for batch in source.iter_batches(CHUNK, columns=there))
        return any(pc.any(matches_key(table, names, key, compactor.declared)).as_py() for table in tables)


def _exchange(
    compactor: Compactor, state: TableState, files: Sequence[DataFile], done: Done, without: Sequence[str] | None
) -> None:
    """Write the rows of some files into as few as possible, without those of a key, in one commit."""
    columns = set(OWN.names)
    for file in files:
        columns.update(pq.read_schema(readable(compactor.table / file.path)).names)

    def write(parts: Parts) -> None:
        for file in files:
            with pq.ParquetFile(readable(compactor.table / file.path)) as source:
                for batch in source.iter_batches(CHUNK):
                    table = pa.Table.from_batches([batch])
                    parts.write(table if without is None else compactor.leave_out(table, state.schema, without, done))

    compactor.commit(
        state,
        write,
        kind="join" if without is None else "erase",
        schema=state.schema,
        columns=columns - {"day"},
        remove=files,
        same_rows=without is None,
    )
