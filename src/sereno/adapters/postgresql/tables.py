"""The statements of the PostgreSQL export. Each is called inside a transaction that holds the model's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

import psycopg
from psycopg import errors, sql

from sereno.adapters.postgresql.schema import MARK, NUMBER, Column, Names
from sereno.exceptions import ExportError

if TYPE_CHECKING:
    from sereno.snapshots import Snapshot

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

LOCK_SECONDS = 60
PATIENT: LiteralString = f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"
EMPTIED = "; emptied by transaction "


def lock(connection: Connection, model: str, schema: str) -> None:
    """Wait for other exporters of this model; held until the transaction ends, however it ends."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"sereno export {schema} {model}"])


def create(connection: Connection, names: Names, model: str) -> None:
    """The pointer and the list of snapshots, unless they exist. Raises ExportError where others have that name."""
    if connection.execute("SELECT to_regnamespace(quote_ident(%s))", [names.schema]).fetchone() == (None,):
        raise ExportError(
            f"The database has no schema {names.schema!r}. Create it (CREATE SCHEMA), or name another in the address: "
            "postgresql://…?schema=NAME"
        )
    columns = {
        f"{names.base}_served": (
            "snapshot bigint PRIMARY KEY, data_date date NOT NULL, data_time timestamptz NOT NULL, "
            "published_at timestamptz NOT NULL"
        ),
        f"{names.base}_snapshots": (
            "snapshot bigint PRIMARY KEY, attempt text NOT NULL, data_date date NOT NULL, "
            "data_time timestamptz NOT NULL, published_at timestamptz NOT NULL, "
            "rows bigint NOT NULL, rows_table text NOT NULL"
        ),
    }
    for name, definition in columns.items():
        if not own_comment(connection, names, name, model):
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(names.identifier(name), sql.SQL(definition)))
            set_comment(connection, names, "TABLE", name, f"{MARK}{model}")


def held(connection: Connection, names: Names) -> dict[int, str]:
    """The snapshots whose rows are here, with their attempts."""
    return dict(connection.execute(sql.SQL("SELECT snapshot, attempt FROM {}").format(names.snapshots)).fetchall())


def create_rows(connection: Connection, names: Names, model: str, table: str, columns: Sequence[Column]) -> bool:
    """The table for rows of these columns, unless it exists; whether it is new."""
    if own_comment(connection, names, table, model):
        set_comment(connection, names, "TABLE", table, f"{MARK}{model}")  # no longer emptied
        return False
    definitions = [sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in columns]
    definitions.append(sql.SQL("{} bigint NOT NULL").format(sql.Identifier(NUMBER)))
    connection.execute(
        # Every night one snapshot's rows die at once: the default waits until a fifth of the table is dead.
        sql.SQL("CREATE TABLE {} ({}) WITH (autovacuum_vacuum_scale_factor = 0.05)").format(
            names.identifier(table), sql.SQL(", ").join(definitions)
        )
    )
    set_comment(connection, names, "TABLE", table, f"{MARK}{model}")
    return True


def index_rows(connection: Connection, names: Names, table: str, keys: Sequence[str]) -> None:
    """After the first load, which is several times faster without an index."""
    connection.execute(
        sql.SQL("CREATE {} INDEX ON {} ({})").format(
            sql.SQL("UNIQUE" if keys else ""),
            names.identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, (NUMBER, *keys))),
        )
    )


def analyze(connection: Connection, names: Names) -> None:
    """Tell the planner what the tables hold now. It is a help, not a duty: the database does it by itself, later."""
    with contextlib.suppress(errors.LockNotAvailable), connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '3s'")
        for table in rows_tables(connection, names):
            connection.execute(sql.SQL("ANALYZE {}").format(names.identifier(table)))


def remember(connection: Connection, names: Names, snapshot: Snapshot, table: str) -> None:
    connection.execute(
        sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s, %s, %s)").format(names.snapshots),
        [
            *(snapshot.number, snapshot.attempt, snapshot.data_date, snapshot.data_time, snapshot.published_at),
            *(snapshot.rows, table),
        ],
    )


def forget(connection: Connection, names: Names, numbers: Sequence[int]) -> bool:
    """Delete these snapshots; readers whose transaction began before still see them."""
    gone = connection.execute(
        sql.SQL("DELETE FROM {} WHERE snapshot = ANY(%s) RETURNING rows_table, snapshot").format(names.snapshots),
        [list(numbers)],
    ).fetchall()
    for table, number in gone:
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} = %s").format(names.identifier(table), sql.Identifier(NUMBER)), [number]
        )
    return bool(gone)


def point(connection: Connection, names: Names, served: Sequence[Snapshot]) -> bool:
    """Move the pointer: the one statement that readers notice."""
    wanted = {(s.number, s.data_date, s.data_time, s.published_at) for s in served}
    query = sql.SQL("SELECT snapshot, data_date, data_time, published_at FROM {}").format(names.served)
    if set(connection.execute(query).fetchall()) == wanted:
        return False
    connection.execute(sql.SQL("DELETE FROM {}").format(names.served))
    connection.cursor().executemany(
        sql.SQL("INSERT INTO {} (snapshot, data_date, data_time, published_at) VALUES (%s, %s, %s, %s)").format(
            names.served
        ),
        sorted(wanted),
    )
    # So that the planner knows that they are few.
    connection.execute(sql.SQL("ANALYZE {}").format(names.served))
    return True


def prune(connection: Connection, names: Names, stay: Iterable[int]) -> bool:
    """Delete the snapshots that are not to stay, and note which tables that empties."""
    pruned = forget(connection, names, sorted(set(held(connection, names)) - set(stay)))
    used = {table for (table,) in connection.execute(sql.SQL("SELECT rows_table FROM {}").format(names.snapshots))}
    for table, comment in rows_tables(connection, names).items():
        if table not in used and EMPTIED not in comment:
            found = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
            number = found[0] if found else ""
            set_comment(connection, names, "TABLE", table, f"{comment}{EMPTIED}{number}")
    return pruned


def own_comment(connection: Connection, names: Names, name: str, model: str) -> str | None:
    """The comment of the relation, if it exists. Raises ExportError if it is not this model's."""
    found = connection.execute(
        "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class "
        "WHERE relname = %s AND relnamespace = to_regnamespace(quote_ident(%s))",
        [name, names.schema],
    ).fetchone()
    if found is None:
        return None
    comment = str(found[0])
    if not (comment + ";").startswith((f"{MARK}{model};", f"{MARK}{model}:")):
        raise ExportError(
            f"{names.schema}.{name} exists in the database, and is not an export of model {model!r} "
            f"(its comment: {comment!r}). Rename it, or let Sereno use another schema: postgresql://…?schema=NAME"
        )
    return comment


def rows_tables(connection: Connection, names: Names) -> dict[str, str]:
    found = connection.execute(
        "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class WHERE relkind = 'r' "
        "AND relnamespace = to_regnamespace(quote_ident(%s)) AND relname ~ %s "
        "AND obj_description(oid, 'pg_class') LIKE %s",
        [names.schema, f"^{names.base}_rows_[0-9a-f]{{8}}$", f"{MARK}%"],
    )
    return {str(name): str(comment) for name, comment in found}


def table_columns(connection: Connection, names: Names, table: str) -> tuple[Column, ...]:
    found = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attname <> %s ORDER BY attnum",
        [names.identifier(table).as_string(connection), NUMBER],
    )
    return tuple(Column(name=name, type=kind) for name, kind in found)


def set_comment(connection: Connection, names: Names, kind: str, name: str, text: str) -> None:
    connection.execute(
        sql.SQL("COMMENT ON {} {} IS {}").format(sql.SQL(kind), names.identifier(name), sql.Literal(text))
    )
