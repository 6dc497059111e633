"""Batches as text for other systems: CSV and JSON lines, at the speed of columns.

Both write datetimes as RFC 3339 in UTC (`2026-05-01T22:00:00.000000Z`), dates as ISO 8601 and decimals with all
their digits. CSV quotes every text and no other null, so that a null (nothing) and an empty text (`""`) differ.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from sereno.places import readable

if TYPE_CHECKING:
    from sereno.places import Place

BATCH_ROWS = 65_536

_encoder = msgspec.json.Encoder()  # decimals as text, datetimes as RFC 3339


def read_batches(path: Place) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet part, in batches of bounded size; categories come as their plain values."""
    with pq.ParquetFile(readable(path)) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield _plain(batch)


def read_schema(path: Place) -> pa.Schema:
    """The columns of a Parquet part, as `read_batches` gives them."""
    schema = pq.read_schema(readable(path))
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def with_constant(batch: pa.RecordBatch, name: str, value: int) -> pa.RecordBatch:
    """The batch with one more column, the same in every row."""
    return batch.append_column(name, pa.repeat(pa.scalar(value, pa.int64()), batch.num_rows))


def csv_header(schema: pa.Schema) -> bytes:
    """The first line of a CSV file: the names of the columns."""
    return _csv(pa.RecordBatch.from_pylist([], schema=pa.schema([(name, pa.string()) for name in schema.names])), True)


def csv_lines(batch: pa.RecordBatch) -> bytes:
    """The rows as CSV (RFC 4180, but lines end with a line feed), without a header."""
    columns = [_csv_column(column) for column in batch.columns]
    return _csv(pa.RecordBatch.from_arrays(columns, names=batch.schema.names), False)


def json_lines(batch: pa.RecordBatch) -> bytes:
    """The batch as JSON lines: one object a row, every column present, nulls as null."""
    if not batch.num_rows:
        return b""
    pieces: list[pa.Array | pa.Scalar] = []
    for index, (name, column) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        pieces.append(pa.scalar(("{" if index == 0 else ",") + _encoder.encode(name).decode() + ":"))
        pieces.append(pc.fill_null(_json_column(column), "null"))
    pieces += [pa.scalar("}\n"), pa.scalar("")]  # the last one is the separator
    lines = pc.binary_join_element_wise(*pieces)
    # The texts of an Arrow column lie one after the other: no need to make them Python objects to join them.
    _, ends, text = lines.buffers()
    first, last = (memoryview(ends).cast("i")[lines.offset + at] for at in (0, len(lines)))
    return bytes(memoryview(text)[first:last])


def json_text(column: pa.Array) -> pa.Array:
    """Each value of the column as JSON text; nulls stay null."""
    # Most texts repeat (categories, bands), so each distinct one is encoded once.
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        distinct = column.dictionary_encode()
        return _encode_each(distinct.dictionary).take(distinct.indices)
    return _encode_each(column)


def _encode_each(column: pa.Array) -> pa.Array:
    values = (None if value is None else _encoder.encode(value).decode() for value in column.to_pylist())
    return pa.array(values, pa.string())


def _csv(batch: pa.RecordBatch, header: bool) -> bytes:
    buffer = io.BytesIO()
    pcsv.write_csv(batch, buffer, pcsv.WriteOptions(include_header=header, quoting_style="needed"))
    return buffer.getvalue()


def _csv_column(column: pa.Array) -> pa.Array:
    if pa.types.is_nested(column.type):
        return json_text(column)
    if pa.types.is_timestamp(column.type):
        return _rfc3339(column)
    return column


def _json_column(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind):
        # JSON has no infinity, and a row type that allows it is rare: it becomes null, as in every JSON writer.
        column = pc.if_else(pc.is_finite(column), column, None)
        return pc.cast(column, pa.string())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_timestamp(kind):
        return _quoted(_rfc3339(column))
    if pa.types.is_date(kind) or pa.types.is_decimal(kind):
        return _quoted(pc.cast(column, pa.string()))
    return json_text(column)


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def _rfc3339(column: pa.Array) -> pa.Array:
    # Arrow's cast writes a space; strftime would do too, and is ten times slower.
    utc = column.cast(pa.timestamp("us", "UTC"))
    return pc.binary_replace_slice(pc.cast(utc, pa.string()), 10, 11, "T")


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    if not any(pa.types.is_dictionary(field.type) for field in batch.schema):
        return batch
    columns = [column.cast(_plain_type(column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
