"""What readers ask of the published table: the predictions of a version, or of one key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.exceptions import NotFoundError
from sereno.places import Place, is_url, place_of, readable
from sereno.presence import together
from sereno.settings import FILE_NAME
from sereno.snapshots import PARTITION, Snapshot, SnapshotStore, schema_of

if TYPE_CHECKING:
    import pyarrow as pa


def read_predictions(
    model: str, version: int | None = None, as_of: date | datetime | None = None, home: str | Path | None = None
) -> pa.Table:
    """The published predictions of a model: keys and outputs (and `data_date`, where the table has one per date).

    Args:
        model: its name.
        version: a snapshot's number; the one in service if not given.
        as_of: what was in service at that time (a date: until its end, UTC).
        home: folder of the project, or where its `storage` is, "s3://…"; found from the working directory upwards if not
            given.

    Raises NotFoundError, StorageError.
    """
    if version is not None and as_of is not None:
        raise NotFoundError("Give version or as_of, not both.")
    place = _root(home)
    store = SnapshotStore(place.absolute(), model)
    state = store.state(_moment(as_of) if as_of else None)
    if not state.served:
        when = f" by {_moment(as_of).isoformat()}" if as_of else ""
        raise NotFoundError(
            f"No snapshot of model {model!r} is published in {place}{when}. `sereno run` publishes the first."
        )
    numbers = [version] if version is not None else [s.number for s in state.served]
    return _rows_of(together(lambda n: store.kept_snapshot(state, n), numbers))


def _root(home: str | Path | None) -> Place:
    from sereno.config import load_settings

    if home is None:
        return load_settings(Path.cwd()).root
    if isinstance(home, str) and is_url(home):
        return place_of(home)
    return load_settings(Path(home), home=Path(home)).root if (Path(home) / FILE_NAME).is_file() else Path(home)


def _moment(as_of: date | datetime) -> datetime:
    if not isinstance(as_of, datetime):
        return datetime.combine(as_of + timedelta(days=1), datetime.min.time(), UTC)
    if as_of.tzinfo is None:
        raise NotFoundError(f"as_of {as_of.isoformat()} has no time zone; write datetime(…, tzinfo=timezone.utc).")
    return as_of


def _rows_of(snapshots: Sequence[Snapshot]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(of: tuple[Snapshot, Place]) -> pa.Table:
        snapshot, part = of
        table = pq.read_table(readable(part), partitioning=None)
        if snapshot.disposition == "partition":
            table = table.append_column(PARTITION, pa.repeat(pa.scalar(snapshot.data_date), table.num_rows))
        return table

    tables = together(rows, [(snapshot, part.path) for snapshot in snapshots for part in snapshot.parts])
    return pa.concat_tables(tables, promote_options="default")  # a date of long ago may lack a column of today


def find_row(snapshot: Snapshot, key: Sequence[str]) -> dict[str, Any] | None:
    """The prediction of one key, whose values are given as texts. Raises NotFoundError where they do not fit the key."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    names = ", ".join(snapshot.keys)
    if len(key) != len(snapshot.keys):
        raise NotFoundError(
            f"A key of model {snapshot.model!r} has {len(snapshot.keys)} values ({names}), not {len(key)}."
        )
    if not snapshot.parts:
        return None
    schema = schema_of(snapshot)
    condition = None
    for name, text in zip(snapshot.keys, key, strict=True):
        try:
            value = pa.scalar(text).cast(schema.field(name).type)
        except pa.ArrowInvalid:
            kind = schema.field(name).type
            raise NotFoundError(f"{text!r} is no {name}: it is {kind}, and this cannot be read as one.") from None
        one = pc.field(name) == value
        condition = one if condition is None else condition & one
    paths = [part.path for part in snapshot.parts]
    if isinstance(paths[0], Path):
        found = ds.dataset([str(path) for path in paths], schema=schema).to_table(filter=condition).to_pylist()
    else:
        found = _find_far(paths, condition)
    return found[0] if found else None


def _find_far(parts: Sequence[Place], condition: Any) -> list[dict[str, Any]]:
    """The rows of objects that a condition holds for, several objects at once."""
    import pyarrow.parquet as pq

    def rows(part: Place) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(readable(part), filters=condition, partitioning=None).to_pylist()
        return found

    return [row for some in together(rows, parts) for row in some]


def find_reject(table: Place, snapshot: Snapshot, key: Sequence[str]) -> str | None:
    """Why the run that made a snapshot rejected a key, whose values are given as texts; None: it did not."""
    import json

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = table / snapshot.rejects_file
    if not snapshot.rejects_file or not file.is_file():
        return None
    # a composite key stands there as a JSON list of its values, which are compared as texts
    text = pc.field("key") == key[0] if len(key) == 1 else pc.field("key").is_valid()
    rejects = pq.read_table(readable(file), columns=["key", "reason"], filters=text, partitioning=None)
    for reject in rejects.to_pylist():
        if len(key) == 1 or [str(v) for v in json.loads(reject["key"])] == list(key):
            return str(reject["reason"])
    return None
