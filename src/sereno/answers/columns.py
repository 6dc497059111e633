"""Answers as columns: from the values in segments to Arrow tables, under the names that they have in the table.

The table outlives the model's versions. A column is known by name, type and *part*: "key", "input", "prediction", or "own"
for those that every table has. What a version brings that the table does not have yet becomes a new column, null in older
rows. A name that is taken, by another type or part, gets a number: `savings` was a whole number and is now a float, so the
new values go to `savings_2`. Nothing is converted, and no row is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sereno.answers.segments import Header, Segment, Shape

PART = b"sereno.part"
DAY = "day"
OWN = pa.schema(
    [
        pa.field("answered_at", pa.timestamp("us", "UTC"), metadata={PART: b"own"}),
        pa.field("request_id", pa.string(), metadata={PART: b"own"}),
        pa.field("model_fingerprint", pa.string(), metadata={PART: b"own"}),
    ]
)
EMPTY = OWN.append(pa.field(DAY, pa.date32(), metadata={PART: b"own"}))  # the table before its first answer
CHUNK = 65_536  # rows of a table's row groups
AT_ONCE = (
    4_096  # rows made into columns at once: their values stay in the processor's cache, which is four times as fast
)

_PLAIN: dict[str, tuple[Any, pa.DataType]] = {
    "int": (int, pa.int64()),
    "float": (float, pa.float64()),
    "bool": (bool, pa.bool_()),
    "str": (str, pa.string()),
    "date": (date, pa.date32()),
    "datetime": (datetime, pa.timestamp("us", "UTC")),
}
_Batch = tuple[int, list[bytes], list[Any], list[Any]]


def part_of(field: pa.Field) -> str:
    """ "key", "input", "prediction" or "own"; of a column that somebody else added: "other"."""
    return str((field.metadata or {}).get(PART, b"other"), "utf-8")


def key_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if part_of(field) == "key"]


def arrow_type(shape: Shape) -> pa.DataType:
    """Nothing is required at any depth, so that another version of the model has the same type."""
    if _is_text(shape):
        return pa.string()
    if shape.item is not None:
        return pa.list_(pa.field("element", arrow_type(shape.item)))
    if shape.kind == "row":
        return pa.struct([pa.field(f.name, arrow_type(f)) for f in shape.fields])
    if shape.kind == "decimal":
        return pa.decimal128(shape.precision, shape.scale)
    return _PLAIN[shape.kind][1]


def _is_text(shape: Shape) -> bool:
    """Whether values are kept as JSON: nested rows whose fields differ by case only, which no Delta table can have."""
    names = {field.name.lower() for field in shape.fields}
    inner = [*shape.fields, *([shape.item] if shape.item else [])]
    return len(names) < len(shape.fields) or any(map(_is_text, inner))


def _python_type(shape: Shape) -> Any:
    """What msgspec is to make of a value."""
    if _is_text(shape):
        return Any
    if shape.item is not None:
        return list[_python_type(shape.item)] | None  # type: ignore[misc]
    if shape.kind == "row":
        fields = {f.name: _python_type(f) for f in shape.fields}
        nested: Any = typing.TypedDict("nested", fields, total=False)  # type: ignore[misc]
        return nested | None
    return (Decimal if shape.kind == "decimal" else _PLAIN[shape.kind][0]) | None


@dataclass(frozen=True)
class Place:
    """Where the values of one version of the model go."""

    names: list[str]  # of its inputs, then its outputs, in the table
    schema: pa.Schema  # the table's, grown by what is new


def place(header: Header, schema: pa.Schema) -> Place:
    """The names of a segment's columns in a table that has these columns."""
    names: list[str] = []
    taken = {field.name.lower(): field for field in schema}
    for part, shape in [*(("input", s) for s in header.inputs), *(("prediction", s) for s in header.outputs)]:
        mark = "key" if shape.key else part
        field = pa.field(shape.name, arrow_type(shape), metadata={PART: mark.encode()})
        number = 1
        while (there := taken.get(field.name.lower())) is not None and not (
            field.name not in names and field.equals(there, check_metadata=True)
        ):
            number += 1
            field = field.with_name(f"{shape.name}_{number}")
        if there is None:
            schema = schema.append(field)
            taken[field.name.lower()] = field
        names.append(field.name)
    return Place(names, schema)


class Reader:
    """Makes tables of the answers in segments of one header."""

    def __init__(self, header: Header, place: Place) -> None:
        shapes = [*header.inputs, *header.outputs]
        self._fingerprint = header.fingerprint
        self._types = [arrow_type(shape) for shape in shapes]
        self._texts = [i for i, shape in enumerate(shapes) if _is_text(shape)]
        fields = [place.schema.field(name) for name in place.names]
        self._schema = pa.schema([*OWN, *fields])
        self._row: Any = tuple[tuple(map(_python_type, header.inputs))]  # type: ignore[misc]
        self._answer: Any = tuple[tuple(map(_python_type, header.outputs))]  # type: ignore[misc]
        batch: Any = tuple[int, list[bytes], list[self._row], list[self._answer]]  # type: ignore[name-defined]
        self._decode = msgspec.msgpack.Decoder(list[batch]).decode
        self.lost = 0  # answers whose values are not what the header says

    def tables(self, payloads: Iterable[memoryview]) -> Iterator[pa.Table]:
        """The answers of these payloads in order, in tables of bounded size."""
        waiting: list[_Batch] = []
        rows = 0
        for payload in payloads:
            for batch in self._batches(payload):
                waiting.append(batch)
                rows += len(batch[1])
            if rows >= AT_ONCE:
                yield self._table(waiting)
                waiting, rows = [], 0
        if rows:
            yield self._table(waiting)

    def _batches(self, payload: memoryview) -> Iterable[_Batch]:
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return self._one_by_one(payload)

    def _one_by_one(self, payload: memoryview) -> Iterator[_Batch]:
        """What can be read of a payload that does not fit its header."""
        try:
            batches = msgspec.msgpack.decode(payload, type=list[tuple[int, list[bytes], list[Any], list[Any]]])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.lost += 1
            return
        for when, *columns in batches:
            good = []
            for id_, row, answer in zip(*columns, strict=False):
                try:
                    # dates and decimals are texts here, as they were written
                    row = msgspec.convert(row, self._row)
                    answer = msgspec.convert(answer, self._answer)
                except msgspec.MsgspecError:
                    self.lost += 1
                else:
                    good.append((id_, row, answer))
            if good:
                ids, rows, answers = map(list, zip(*good, strict=True))
                yield when, ids, rows, answers

    def _table(self, batches: Sequence[_Batch]) -> pa.Table:
        times = [when for when, ids, _, _ in batches for _ in ids]
        ids = [id_ for _, some, _, _ in batches for id_ in some]
        rows = [row for _, _, some, _ in batches for row in some]
        answers = [answer for _, _, _, some in batches for answer in some]
        columns = [*zip(*rows, strict=True), *zip(*answers, strict=True)]
        for i in self._texts:
            columns[i] = tuple(None if v is None else msgspec.json.encode(v).decode() for v in columns[i])
        try:
            arrays = [pa.array(values, kind) for values, kind in zip(columns, self._types, strict=True)]
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            good = [i for i, values in enumerate(zip(*columns, strict=True)) if self._fits(values)]
            self.lost += len(times) - len(good)
            times, ids = [times[i] for i in good], [ids[i] for i in good]
            arrays = [pa.array([v[i] for i in good], kind) for v, kind in zip(columns, self._types, strict=True)]
        own = [
            pa.array(times, pa.timestamp("us", "UTC")),
            pa.array([id_.decode("utf-8", "replace") for id_ in ids], pa.string()),
            pa.repeat(pa.scalar(self._fingerprint, pa.string()), len(times)),
        ]
        return pa.Table.from_arrays([*own, *arrays], schema=self._schema)

    def _fits(self, values: Sequence[Any]) -> bool:
        with contextlib.suppress(ValueError, TypeError, OverflowError, pa.ArrowException):
            for value, kind in zip(values, self._types, strict=True):
                pa.array([value], kind)
            return True
        return False


def tables_of(segment: Segment, schema: pa.Schema) -> Iterator[pa.Table]:
    """The answers of a segment, in the columns that `place` gives them. What is lost counts as the segment's damage."""
    assert segment.header is not None
    reader = Reader(segment.header, place(segment.header, schema))
    yield from reader.tables(segment.answers)
    segment.lost += reader.lost


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with exactly these columns; null where they have none."""
    there = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def meanings(keys: Sequence[str], declared: Sequence[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    """Which columns so many values of a key may belong to, value by value. `keys`: the table's key columns.

    In the order in which a version of the model has declared them, each in any of its types (`id`, `id_2`). Of columns
    that nobody is known to have declared the order is not known: any will do.
    """
    found: dict[tuple[str, ...], None] = {}
    known: set[str] = set()
    for names in declared:
        columns = {n: [key for key in keys if re.fullmatch(rf"{re.escape(n)}(_\d+)?", key)] for n in names}
        known.update(*columns.values())
        for some in itertools.combinations(names, count):
            found.update(dict.fromkeys(c for c in itertools.product(*(columns[n] for n in some)) if len({*c}) == count))
    found.update(dict.fromkeys(c for c in itertools.permutations(keys, count) if not known.issuperset(c)))
    return list(found)


def matches_key(
    table: pa.Table, keys: Sequence[str], texts: Sequence[str], declared: Sequence[Sequence[str]] = ()
) -> pa.ChunkedArray:
    """Whether each row's key is this one, whose values are given as texts in declared order.

    `keys`: the table's key columns. `declared`: their orders, where they are known. A row has a key of as many values as
    are not null: the key columns of other versions of the model are null in it.
    """
    there = [name for name in keys if name in table.column_names]
    nowhere = pa.chunked_array([pa.repeat(pa.scalar(False), table.num_rows)])
    found = nowhere
    for chosen in meanings(there, declared, len(texts)):
        fits = pc.invert(nowhere)
        for name in there:
            column = table.column(name)
            if name in chosen:
                same = _equal(column, texts[chosen.index(name)])
                fits = nowhere if same is None else pc.and_(fits, pc.fill_null(same, False))
            else:
                fits = pc.and_(fits, pc.is_null(column))
        found = pc.or_(found, fits)
    return found


def _equal(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray | None:
    try:
        return pc.equal(column, pa.scalar(text).cast(column.type))
    except pa.ArrowInvalid:  # no such value can be there
        return None
