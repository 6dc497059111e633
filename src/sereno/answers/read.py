"""What readers ask of the answer log: the answers of a time, a key or a request, from the table and the segments as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sereno.adapters.answer_table import DataFile, TableState
from sereno.adapters.delta import current_version
from sereno.answers.columns import DAY, EMPTY, conform, key_columns, matches_key, place, tables_of
from sereno.answers.compact import Compactor, Pending
from sereno.answers.segments import read_segment
from sereno.exceptions import BusyError, NotFoundError, StorageError
from sereno.places import ObjectPath, Place, readable

if TYPE_CHECKING:
    from sereno.answers.segments import Segment

TRIES = 10  # to read table and segments between two commits of the compactor, which come minutes apart
BUSY = "The answers of {} are being put into their table all the time. Try again in a minute."


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which answers to read."""

    since: datetime | None = None
    until: datetime | None = None  # not included
    key: tuple[str, ...] | None = None  # its values as texts, in declared order
    request: str | None = None
    newest: int | None = None  # so many of them only
    declared: Sequence[Sequence[str]] = ()  # orders of the key's columns

    def of(self, table: pa.Table, keys: Sequence[str]) -> pa.Table:
        """The rows of a table that are wanted, and of these the newest."""
        found = table
        if self.since is not None:
            found = found.filter(pc.greater_equal(found.column("answered_at"), pa.scalar(self.since)))
        if self.until is not None:
            found = found.filter(pc.less(found.column("answered_at"), pa.scalar(self.until)))
        if self.request is not None:
            found = found.filter(pc.equal(found.column("request_id"), self.request))
        if self.key is not None:
            found = found.filter(matches_key(found, keys, self.key, self.declared))
        if self.newest is not None and found.num_rows > self.newest:
            found = found.take(pc.sort_indices(found.column("answered_at")).slice(found.num_rows - self.newest))
        return found

    def may_hold(self, file: DataFile) -> bool:
        """Whether a file of the table may hold what is wanted."""
        return (self.since is None or file.last >= self.since) and (self.until is None or file.first < self.until)


def read_answers(
    model: str,
    since: date | datetime | None = None,
    until: date | datetime | None = None,
    key: Any = None,
    home: str | Path | None = None,
) -> pa.Table:
    """What the online API answered, oldest first: when, to which request, by which model, its inputs and outputs.

    Args:
        model: its name.
        since: the first moment (a date: its beginning, UTC).
        until: the moment after the last (a date: its end, UTC).
        key: only the answers of this key; of a key of several columns a tuple of their values.
        home: folder of the project; found from the working directory upwards if not given.

    Raises NotFoundError.
    """
    from sereno.config import load_settings

    settings = load_settings(Path.cwd()) if home is None else load_settings(Path(home), home=Path(home))
    values = None if key is None else key if isinstance(key, tuple | list) else (key,)
    wanted = Wanted(
        since=None if since is None else moment(since),
        until=None if until is None else moment(until, end=True),
        key=None if values is None else tuple(map(str, values)),
    )
    return find_answers(settings.home.absolute(), model, wanted, settings.storage)


def moment(when: date | datetime, *, end: bool = False) -> datetime:
    """A time with its zone; of a date the beginning or the end."""
    if not isinstance(when, datetime):
        return datetime.combine(when + timedelta(days=1) if end else when, time(), UTC)
    if when.tzinfo is None:
        raise NotFoundError(f"{when.isoformat()} has no time zone; write datetime(…, tzinfo=timezone.utc).")
    return when


def models_with_answers(home: Path, root: Place | None = None) -> list[str]:
    if isinstance(root, ObjectPath):
        tables = {table.name for table in (root / "answers").iterdir() if (table / "_delta_log").is_dir()}
    else:
        tables = {log.parent.name for log in (root or home).glob("answers/*/_delta_log")}
    return sorted(tables | {folder.name for folder in (home / ".sereno" / "answers").glob("*") if folder.is_dir()})


def unknown(home: Path, model: str, root: Place | None = None) -> str:
    there = ", ".join(models_with_answers(home, root)) or "none"
    return (
        f"No answers of model {model!r} are kept in {root or home} (models with answers: {there}). `sereno serve` keeps them, unless "
        "the setting `log` is off."
    )


def find_answers(home: Path, model: str, wanted: Wanted, root: Place | None = None) -> pa.Table:
    """The answers that are wanted, oldest first. Raises NotFoundError, BusyError and StorageError.

    `root`: below which the table lies, if not below the home; then what other pods have not put there yet is not among them.
    """
    if model not in models_with_answers(home, root):
        raise NotFoundError(unknown(home, model, root))
    compactor = Compactor(home, model, root)
    _check_rights(compactor)
    wanted = replace(wanted, declared=compactor.declared)
    for _ in range(TRIES):
        try:
            found = _between_commits(compactor, wanted)
        except FileNotFoundError:
            continue  # joined with others, or dropped, and then removed
        if found is not None:
            return found
    raise BusyError(BUSY.format(model))


def _check_rights(compactor: Compactor) -> None:
    """Else this user would be shown what is in the table, and not the newest."""
    if compactor.segments.exists() and not os.access(compactor.segments, os.R_OK | os.X_OK):
        raise StorageError(
            f"The newest answers of {compactor.model} lie in {compactor.segments}, which this user may not read. Ask as the "
            "user that `sereno serve` runs as."
        )


def _between_commits(compactor: Compactor, wanted: Wanted) -> pa.Table | None:
    """The answers at one version of the table; None: it was committed to meanwhile.

    The order matters. What was committed before the first look is either pending still, or its segments are gone.
    """
    state = compactor.state()
    pending = Pending.read(compactor.segments)
    committed: set[str] = set()
    if pending is not None and compactor.is_committed(pending):
        committed = {Path(name).stem for name in pending.segments}
    schema = EMPTY if state is None else state.schema
    pieces: list[pa.Table] = []
    listed = [path for kind in ("open", "sealed") for path in compactor.segments.glob(f"*.{kind}")]
    for name, path in sorted({path.stem: path for path in listed}.items()):  # one may be sealed between the two looks
        if name in committed:
            continue
        segment = _read_if_there(path)
        if segment is None or segment.header is None:
            continue
        schema = place(segment.header, schema).schema
        pieces += [wanted.of(table, key_columns(schema)) for table in tables_of(segment, schema)]
    if (-1 if state is None else state.version) != current_version(compactor.table):
        return None
    if wanted.key is not None:
        from sereno.answers.tidy import check_key

        check_key(compactor, schema, wanted.key)
    found = _joined(pieces, schema, wanted)
    if state is not None:
        found = _with_table(compactor.table, state, found, schema, wanted)
    return found.sort_by("answered_at")


def _read_if_there(path: Path) -> Segment | None:
    """A segment that has just been sealed has another name; one that is gone was committed, which is noticed."""
    for name in (path, path.with_suffix(".sealed")):
        try:
            return read_segment(name)
        except FileNotFoundError:
            continue
    return None


def _joined(pieces: Sequence[pa.Table], schema: pa.Schema, wanted: Wanted) -> pa.Table:
    shown = pa.schema([field for field in schema if field.name != DAY])
    tables = [conform(piece, shown) for piece in pieces if piece.num_rows]
    if not tables:
        return shown.empty_table()
    return wanted.of(pa.concat_tables(tables), key_columns(schema))


def _with_table(table: Place, state: TableState, found: pa.Table, schema: pa.Schema, wanted: Wanted) -> pa.Table:
    keys = key_columns(schema)
    pieces = [found]
    # From the newest on, so that the newest few are found without reading the rest.
    for file in sorted(filter(wanted.may_hold, state.files), key=lambda f: f.last, reverse=True):
        if _is_enough(found, file.last, wanted):
            break
        with pq.ParquetFile(readable(table / file.path)) as source:
            for last, number in _groups(source):
                if _is_enough(found, last, wanted):
                    break
                pieces.append(wanted.of(source.read_row_group(number), keys))
                if wanted.newest is not None:
                    found = _joined(pieces, schema, wanted)
                    pieces = [found]
    return _joined(pieces, schema, wanted)


def _is_enough(found: pa.Table, last: datetime | None, wanted: Wanted) -> bool:
    """Whether the newest ones were found already, where what remains is not younger than `last`."""
    if wanted.newest is None or last is None or found.num_rows < wanted.newest:
        return False
    return bool(pc.min(found.column("answered_at")).as_py() > last)


def _groups(source: pq.ParquetFile) -> list[tuple[datetime | None, int]]:
    """The row groups of a file by their newest answer, the newest first."""
    column = source.schema_arrow.get_field_index("answered_at")
    groups = []
    for number in range(source.num_row_groups):
        statistics = source.metadata.row_group(number).column(column).statistics
        last = statistics.max if statistics is not None and statistics.has_min_max else None
        groups.append((last, number))
    return sorted(groups, key=lambda g: (g[0] is None, g[0] or datetime.min.replace(tzinfo=UTC), g[1]), reverse=True)
