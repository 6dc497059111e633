"""Plan: a source becomes tasks.

Parquet and JSON lines are split where they lie. What cannot be split (a `read` function, CSV, a SQL cursor) is spooled
to Parquet as it streams, and its tasks start before it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sereno.adapters.fetched import FetchedFile
from sereno.adapters.files import (
    Piece,
    format_of,
    names_of,
    open_object,
    open_parquet,
    partition_of,
    read_csv,
    spans,
    stamp,
    stamp_of_object,
    with_constants,
)
from sereno.batch.tasks import Task
from sereno.checks import check_table, default_array
from sereno.exceptions import InputError, PredictError, SettingsError, SourceError
from sereno.loader import bind, file_digest
from sereno.model import Model, place
from sereno.object_path import Object
from sereno.places import Place
from sereno.schedule import Interval
from sereno.scoring import arrow_of
from sereno.settings import IS_SQL
from sereno.signals import NOT_THE_MODELS
from sereno.sources import fill, fill_path, find_files, is_delta_table, values_for
from sereno.storage import told

if TYPE_CHECKING:
    from sereno.settings import ModelSettings, Settings

SMALLEST_TASK = 65_536  # rows
LARGEST_TASK = 1_048_576
SPOOL_ROWS = 262_144  # rows of a spooled task
SPAN_BYTES = 32 << 20  # of JSON lines
FOOTERS_AT_ONCE, MOST_FOOTERS = 8, 512  # of Parquet files that are read, and are in memory


@dataclass(kw_only=True)
class Plan:
    """The tasks of one run, drawn once, and what is known of its input."""

    tasks: Iterator[Task]
    known_before: bool  # the input's digest is known before the tasks are drawn
    rows: int | None  # in all, where it is known
    inputs: list[str] = field(default_factory=list)  # fingerprints of files or spooled chunks; whole once drawn

    def draw(self) -> None:
        """Read the input to its end now, so that its digest is known before anything is scored."""
        self.tasks, self.known_before = iter(list(self.tasks)), True

    @property
    def input_digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self.inputs)).hexdigest()


def make_plan(
    model: Model, settings: Settings, chosen: ModelSettings, interval: Interval, spool: Path, workers: int
) -> Plan:
    """The plan of one interval's run. Raises SourceError, InputError (before anything is scored) and SettingsError."""
    if chosen.source is None:
        if model.read_function is None:
            raise SettingsError(
                f"Model {model.name!r} has nothing to read from. Write a function under `@model.read`, give "
                "`source=` a path, or run with --source PATH."
            )
        return _read(model, settings, interval, spool)
    values = values_for(settings, interval)
    if IS_SQL.match(chosen.source):
        return _sql(model, chosen, values, spool, settings)
    source = fill_path(chosen.source, values, settings, chosen.source_base or settings.home)
    if is_delta_table(source):
        from sereno.adapters.delta import files_of_table

        listed = [(path, None, partition) for path, partition in files_of_table(source)]
        return _parquet(model, listed, source, workers)
    files = find_files(source)
    kind = format_of(files, source)
    if kind == "parquet":
        return _parquet(model, [(f, known, partition_of(f)) for f, known in files.items()], source, workers)
    if kind == "jsonl":
        return _json_lines(model, files, source)
    return _csv(model, files, spool)


_Listed: TypeAlias = tuple[
    Place, Object | None, dict[str, str | None]
]  # what a store says of it; what stands in its path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Footer:
    """What the end of a Parquet file says, and what stands in its path."""

    piece: Piece  # the whole file
    schema: pa.Schema
    groups: tuple[int, ...]  # rows of each row group


def _parquet(model: Model, files: Sequence[_Listed], source: str, workers: int) -> Plan:
    """Tasks of whole row groups. They shrink towards the end, so that no worker is left with a large last one."""
    units: list[tuple[Piece, tuple[int, ...]]] = []
    seen: list[tuple[pa.Schema, set[str]]] = []
    for footer in _footers(files):
        partition = footer.piece.partition
        if (footer.schema, set(partition)) not in seen:
            _check_types(model, footer.schema, partition, footer.piece.path)
            seen.append((footer.schema, set(partition)))
        if footer.groups:
            units.append((footer.piece, footer.groups))
    total = sum(sum(groups) for _, groups in units)
    if not total:
        raise SourceError(f"The source {source} holds no rows. Nothing was published; see what feeds it.")
    return Plan(
        tasks=_grouped(units, total, workers),
        known_before=True,
        rows=total,
        inputs=sorted({piece.identity for piece, _ in units}),
    )


def _footers(files: Sequence[_Listed]) -> Iterator[_Footer]:
    """In the order of the files; several are read at once, for those of a file server are waited for. Raises SourceError."""
    names = names_of([path for path, _, _ in files])
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        for first in range(0, len(files), MOST_FOOTERS):  # so that few are in memory
            some = slice(first, first + MOST_FOOTERS)
            yield from threads.map(_footer, files[some], names[some])


def _footer(file: _Listed, name: str) -> _Footer:
    place, known, partition = file
    with _opened(place, known) as source, open_parquet(source) as opened:
        piece = _piece("parquet", source, name, partition)
        metadata = opened.metadata
        groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return _Footer(piece=piece, schema=opened.schema_arrow, groups=groups)


def _opened(place: Place, known: Object | None) -> contextlib.AbstractContextManager[Path | FetchedFile]:
    return contextlib.nullcontext(place) if isinstance(place, Path) else open_object(place, known)


def _piece(
    kind: Literal["parquet", "text", "json"], source: Path | FetchedFile, name: str, partition: dict[str, str | None]
) -> Piece:
    """The whole of a file or object as it is now."""
    if isinstance(source, Path):
        return Piece(kind=kind, path=str(source.absolute()), partition=partition, stamp=stamp(name, source))
    known = source.known
    return Piece(
        kind=kind,
        path=str(source.path),
        partition=partition,
        stamp=stamp_of_object(name, known),
        size=known.size,
        tag=known.tag,
    )


def _grouped(units: list[tuple[Piece, tuple[int, ...]]], total: int, workers: int) -> Iterator[Task]:
    index, pieces, rows, left = 0, list[tuple[Piece, int]](), 0, total
    for piece, groups in units:
        for group, size in enumerate(groups):
            target = min(max(left // (2 * workers), SMALLEST_TASK), LARGEST_TASK)
            if total <= 2 * SMALLEST_TASK:
                target = total  # not worth a second process
            if pieces and rows + size > target:
                yield Task(index=index, pieces=_joined(pieces), rows=rows)
                index, pieces, left, rows = index + 1, [], left - rows, 0
            pieces.append((piece, group))
            rows += size
    if rows:
        yield Task(index=index, pieces=_joined(pieces), rows=rows)


def _joined(groups: list[tuple[Piece, int]]) -> tuple[Piece, ...]:
    """Neighbouring row groups of one file as one piece."""
    by_file = itertools.groupby(groups, key=lambda one: one[0].path)
    return tuple(
        replace(piece, row_groups=(first, *(group for _, group in others))) for _, ((piece, first), *others) in by_file
    )


def _check_types(
    model: Model, schema: pa.Schema, partition: dict[str, str | None], where: str, door: Any = "typed"
) -> None:
    """Raise InputError where the columns' types cannot be right, before anything is scored."""
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    names = {c.name for c in model.inputs.columns}
    constants = {n: t for n, t in partition.items() if n in names and n not in schema.names}
    try:
        check_table(model.inputs, with_constants(empty, model.inputs, constants), door)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_names(model: Model, row: dict[str, Any]) -> None:
    for column in model.inputs.columns:
        if column.name not in row:
            try:
                default_array(column, 0)
            except InputError as error:
                raise InputError(f"The query's answer: {error}") from None


def _json_lines(model: Model, files: dict[Place, Object | None], source: str) -> Plan:
    names = {c.name for c in model.inputs.columns}
    pieces = []
    for (file, known), name in zip(files.items(), names_of(files), strict=True):
        partition = {n: t for n, t in partition_of(file).items() if n in names}
        with _opened(file, known) as opened:
            whole = _piece("json", opened, name, partition)
            pieces += [replace(whole, span=span) for span in spans(opened, SPAN_BYTES)]
    if not pieces:
        raise SourceError(f"The source {source} is empty. Nothing was published; see what feeds it.")
    tasks = [Task(index=i, pieces=(p,)) for i, p in enumerate(pieces)]
    return Plan(tasks=iter(tasks), known_before=True, rows=None, inputs=sorted({p.identity for p in pieces}))


def _csv(model: Model, files: dict[Place, Object | None], spool: Path) -> Plan:
    def batches() -> Iterator[tuple[pa.RecordBatch, list[tuple[str, str]]]]:
        for file, known in files.items():
            with _opened(file, known) as opened:
                whole = _piece("text", opened, "", partition_of(file))
            names = {c.name for c in model.inputs.columns}
            for number, (batch, broken) in enumerate(read_csv(file, model.inputs, known)):
                # what stands in the path is text too, like every column of a CSV file
                for name, text in whole.partition.items():
                    if name in names and name not in batch.schema.names:
                        batch = batch.append_column(name, pa.array([text] * batch.num_rows, pa.string()))
                if number == 0:
                    _check_types(model, batch.schema, {}, str(file), "text")
                yield batch, broken
            whole.check_unchanged()

    return _spooled_batches(batches(), spool, "text")


def _sql(model: Model, chosen: ModelSettings, values: dict[str, Any], spool: Path, settings: Settings) -> Plan:
    from sereno.adapters import sql

    assert chosen.source is not None
    if chosen.database is None:
        raise SettingsError(
            "The source is a SQL query, but no database is given. Set `database` to postgresql://… or to the path of "
            "an SQLite file."
        )
    database = fill(chosen.database, values, "database")
    if database.startswith(("postgresql://", "postgres://")):
        query, parameters = sql.bind(chosen.source, values, "$")
        batches = sql.read_postgresql(database, query, parameters)
        return _spooled_batches(((b, []) for b in batches), spool, "parquet", model, "The query's answer")
    if "://" in database:
        raise SettingsError(
            f"database is {database.split('://')[0]}://…; valid are postgresql://… and the path of an SQLite file."
        )
    query, parameters = sql.bind(chosen.source, values, "?")
    booleans = frozenset(c.name for c in model.inputs.columns if c.kind == "bool")
    path = chosen.given.get("database", settings.home) / database
    return _spooled_lines(sql.read_sqlite(path, query, parameters, booleans), spool, model)


def _frames_of(model: Model, settings: Settings, interval: Interval) -> Iterator[pa.Table]:
    """What the user's `read` returns or yields."""
    assert model.read_function is not None
    given = {"data_date": interval.data_date, "interval": interval}
    arguments = bind(model, model.read_function, settings, given=given)
    where = place(model.read_function)
    names = {c.name for c in model.inputs.columns}
    try:
        answer = model.read_function(**arguments)
        frames: Iterable[Any] = answer if _yields_frames(answer) else [answer]
        for frame in frames:
            yield arrow_of(frame, names)
    except InputError as error:
        raise InputError(f"{where}: read: {error}") from error
    except FileNotFoundError as error:
        raise SourceError(
            f"{where}: read found no {error.filename or error}. If the data arrives later, start the run again then."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{where}: read could not read its data: {type(error).__name__}: {error}.") from error
    except NOT_THE_MODELS:
        raise
    except BaseException as error:
        raise PredictError(f"{where}: read raised {type(error).__name__}: {error}.") from error


def _yields_frames(answer: Any) -> bool:
    return hasattr(answer, "__next__") or isinstance(answer, pa.RecordBatchReader)


def _read(model: Model, settings: Settings, interval: Interval, spool: Path) -> Plan:
    assert model.read_function is not None
    frames = _frames_of(model, settings, interval)
    batches = (
        (batch, list[tuple[str, str]]()) for frame in frames for batch in frame.to_batches(max_chunksize=SPOOL_ROWS)
    )
    return _spooled_batches(batches, spool, "parquet", model, f"{place(model.read_function)}: read")


def _spooled_batches(
    batches: Iterator[tuple[pa.RecordBatch, list[tuple[str, str]]]],
    spool: Path,
    kind: Literal["parquet", "text"],
    model: Model | None = None,
    where: str = "",
) -> Plan:
    """Tasks of SPOOL_ROWS; with a model, the types of the batches are checked before they are spooled."""
    plan = Plan(tasks=iter(()), known_before=False, rows=None)

    def tasks() -> Iterator[Task]:
        index = 0
        waiting: list[pa.RecordBatch] = []
        broken: list[tuple[str, str]] = []
        rows = 0

        def flush() -> Task:
            path = spool / f"{index:05d}.parquet"
            with told("The rows that were read could not be spooled"):
                spool.mkdir(parents=True, exist_ok=True)
                table = pa.Table.from_batches(waiting)
                pq.write_table(table, path, compression="lz4", use_dictionary=False, row_group_size=SPOOL_ROWS)
            digest = file_digest(path)
            plan.inputs.append(digest)
            piece = Piece(kind=kind, path=str(path), digest=digest)
            return Task(index=index, pieces=(piece,), rows=rows, broken=tuple(broken))

        for batch, found in batches:
            if model is not None and not (waiting and batch.schema == waiting[0].schema):
                _check_types(model, batch.schema, {}, where)
            if waiting and (rows + batch.num_rows > SPOOL_ROWS or batch.schema != waiting[0].schema):
                yield flush()
                index, waiting, broken, rows = index + 1, [], [], 0
            waiting.append(batch)
            broken += found
            rows += batch.num_rows
        if rows or broken:
            yield flush()

    plan.tasks = _told_apart(tasks())
    return plan


def _told_apart(tasks: Iterator[Task]) -> Iterator[Task]:
    """A task is known by its content. Two chunks with equal content (which means duplicate keys) stay two tasks."""
    seen: dict[str, int] = {}
    for task in tasks:
        first = task.pieces[0]
        times = seen[first.digest] = seen.get(first.digest, 0) + 1
        if times > 1:
            task = replace(task, pieces=(replace(first, digest=f"{first.digest}-{times}"),))
        yield task


def _spooled_lines(batches: Iterator[list[dict[str, Any]]], spool: Path, model: Model) -> Plan:
    """Rows of a database without column types (SQLite) are spooled as JSON lines, and decided value by value."""
    plan = Plan(tasks=iter(()), known_before=False, rows=None)

    def tasks() -> Iterator[Task]:
        spool.mkdir(parents=True, exist_ok=True)
        encoder = msgspec.json.Encoder()
        for index, rows in enumerate(batches):
            if index == 0 and rows:
                _check_names(model, rows[0])
            path = spool / f"{index:05d}.jsonl"
            with told("The rows that were read could not be spooled"):
                path.write_bytes(b"\n".join(encoder.encode(r) for r in rows))
            digest = file_digest(path)
            plan.inputs.append(digest)
            yield Task(index=index, pieces=(Piece(kind="json", path=str(path), digest=digest),), rows=len(rows))

    plan.tasks = _told_apart(tasks())
    return plan
