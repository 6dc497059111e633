"""What the PostgreSQL export calls things, and which columns they have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from psycopg import sql

from sereno.exceptions import ExportError

MARK = "Sereno export of model "  # comments start so, so that nothing of anybody else is ever changed
NUMBER = "sereno_snapshot"  # the column of the rows table that says whose row it is
_NAME_BYTES = 63


@dataclass(frozen=True, kw_only=True)
class Column:
    name: str
    type: str  # as PostgreSQL writes it


@dataclass(frozen=True, kw_only=True)
class Names:
    """The relations of one model."""

    schema: str
    base: str  # the view

    @classmethod
    def of(cls, model: str, schema: str) -> Names:
        base = model.replace("-", "_")
        # PostgreSQL cuts longer names silently, and then two of them may be one.
        longest = _NAME_BYTES - len("_snapshots_12345678")
        if len(base) > longest:
            base = f"{base[: longest - 9]}_{digest(model)}"
        return cls(schema=schema, base=base)

    @property
    def view(self) -> sql.Identifier:
        return self.identifier(self.base)

    @property
    def served(self) -> sql.Identifier:
        return self.identifier(f"{self.base}_served")

    @property
    def snapshots(self) -> sql.Identifier:
        return self.identifier(f"{self.base}_snapshots")

    def rows(self, columns: Sequence[Column], keys: Sequence[str]) -> str:
        """The name of the table for rows of these columns: each list of columns has its own."""
        text = repr(([(column.name, column.type) for column in columns], list(keys)))
        return f"{self.base}_rows_{digest(text)}"

    def identifier(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.schema, name)


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns of a part, as PostgreSQL will have them."""
    columns = tuple(Column(name=field.name, type=_type_of(field)) for field in schema)
    for column in columns:
        if column.name == NUMBER or len(column.name.encode()) > _NAME_BYTES or "\0" in column.name or not column.name:
            raise ExportError(
                f"PostgreSQL cannot have a column {column.name!r} here: a name has 1 to {_NAME_BYTES} bytes, "
                f"and {NUMBER!r} is Sereno's own. Rename that output or key."
            )
    return columns


def view_query(
    names: Names, target: Sequence[Column], tables: Mapping[str, Sequence[Column]], *, several: bool
) -> sql.Composed:
    """What the view selects: the rows of the served snapshots, in the columns of the newest one.

    `tables` are all that hold rows which some reader may still see: a reader whose transaction began before the
    columns changed looks through the new view at the old rows, and must find them.
    """
    own = {column.name for column in target}
    extras = [name for name in ("snapshot", "data_date") if name not in own]
    branches = []
    for table, columns in sorted(tables.items()):
        types = {column.name: column.type for column in columns}
        selected = [sql.SQL("served.{}").format(sql.Identifier(name)) for name in extras]
        selected += [_cast(column, types.get(column.name)) for column in target]
        # One served snapshot: its number is known before the scan starts, and the planner uses the index for it.
        # (A plain join over an unknown number of dates was 20 times slower for a whole read.)
        only = (
            sql.SQL("")
            if several
            else sql.SQL(" WHERE r.{number} = (SELECT max(snapshot) FROM {served})").format(
                number=sql.Identifier(NUMBER), served=names.served
            )
        )
        branches.append(
            sql.SQL(
                "SELECT {selected} FROM {rows} r JOIN {served} served ON served.snapshot = r.{number}{only}"
            ).format(
                selected=sql.SQL(", ").join(selected),
                rows=names.identifier(table),
                served=names.served,
                number=sql.Identifier(NUMBER),
                only=only,
            )
        )
    return sql.SQL(" UNION ALL ").join(branches)


def _cast(column: Column, was: str | None) -> sql.Composed:
    value = sql.SQL("r.{}").format(sql.Identifier(column.name))
    kind = sql.SQL(column.type)  # from _type_of: never a text of the user's
    if was == column.type:
        return sql.SQL("{} AS {}").format(value, sql.Identifier(column.name))
    # Only what can never fail: an error in one old row would be an error of the whole view.
    if was is not None and (
        column.type == "text" or (column.type == "double precision" and re.match("bigint|numeric", was))
    ):
        return sql.SQL("{}::{} AS {}").format(value, kind, sql.Identifier(column.name))
    return sql.SQL("NULL::{} AS {}").format(kind, sql.Identifier(column.name))


def _type_of(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_nested(kind):
        return "jsonb"
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})"
    plain = {
        pa.types.is_integer: "bigint",
        pa.types.is_floating: "double precision",
        pa.types.is_boolean: "boolean",
        pa.types.is_string: "text",
        pa.types.is_large_string: "text",
        pa.types.is_date: "date",
        pa.types.is_timestamp: "timestamp with time zone",
    }
    for matches, name in plain.items():
        if matches(kind):
            return name
    raise ExportError(f"The column {field.name!r} has the type {kind}, which the PostgreSQL export does not know.")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
