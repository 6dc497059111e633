"""The view of the PostgreSQL export: defined, and defined anew when the columns change.

This is the one step that needs more than MVCC. A view is catalogue, not data: every reader sees the newest definition,
even one whose transaction began before and still sees the old rows. So the view reads the tables of the old columns
as well, until nobody can see their rows any more; only then are they dropped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from psycopg import errors, sql

from sereno.adapters import rendering
from sereno.adapters.postgresql import tables as tables
from sereno.adapters.postgresql.schema import MARK, Names, columns_of, digest, view_query
from sereno.exceptions import ExportError

if TYPE_CHECKING:
    from sereno.adapters.postgresql.tables import Connection
    from sereno.snapshots import Snapshot

WAIT_SECONDS = 30.0
_MOMENT = "SET LOCAL lock_timeout = '200ms'"


def define(connection: Connection, names: Names, model: str, served: Sequence[Snapshot]) -> bool:
    """Define the view, where it is not already so: the first time, and when the columns change.

    That needs the view for itself for a moment, and a transaction that has read it holds it until it ends. New readers
    queue behind us, so we ask for a moment only, again and again. Raises ExportError when a reader does not end.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _define(connection, names, model, served, without=frozenset())
        except errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise ExportError(
                    f"The columns of model {model!r} have changed, and its view {names.base} could not: transactions "
                    f"that read it did not end for {WAIT_SECONDS:.0f} seconds (process {_readers(connection, names)}). "
                    "End them, then run again; until then, readers see what they saw before."
                ) from None
            time.sleep(0.1)


def drop_unused(connection: Connection, names: Names, model: str, served: Sequence[Snapshot]) -> None:
    """Drop the tables of columns that no snapshot has any more, unless a reader may need them: then, next time."""
    emptied = {
        table: int(comment.rpartition(" ")[2])
        for table, comment in tables.rows_tables(connection, names).items()
        if tables.EMPTIED in comment
    }
    unseen = frozenset(table for table, number in emptied.items() if not _seen_by_readers(connection, number))
    if not unseen:
        return
    try:
        with connection.transaction():
            _define(connection, names, model, served, without=unseen)
            connection.execute(_MOMENT)
            for table in unseen:
                connection.execute(sql.SQL("DROP TABLE {}").format(names.identifier(table)))
    except errors.LockNotAvailable:
        return


def _define(
    connection: Connection, names: Names, model: str, served: Sequence[Snapshot], *, without: frozenset[str]
) -> bool:
    columns = {
        table: tables.table_columns(connection, names, table)
        for table in tables.rows_tables(connection, names)
        if table not in without
    }
    newest = columns_of(rendering.read_schema(served[-1].parts[0].path))
    several = any(snapshot.disposition == "partition" for snapshot in served)
    query = view_query(names, newest, columns, several=several)
    comment = f"{MARK}{model}: the served predictions ({digest(query.as_string(connection))})"
    if tables.own_comment(connection, names, names.base, model) == comment:
        return False
    with connection.transaction():
        connection.execute(_MOMENT)
        try:
            with connection.transaction():
                connection.execute(sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(names.view, query))
        except errors.InvalidTableDefinition:  # another column than one more at the end
            _replace_view(connection, names, query)
        tables.set_comment(connection, names, "VIEW", names.base, comment)
        connection.execute(tables.PATIENT)
    return True


def _replace_view(connection: Connection, names: Names, query: sql.Composed) -> None:
    grants = connection.execute(
        "SELECT privilege_type, CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, is_grantable "
        "FROM pg_class, aclexplode(relacl) WHERE oid = %s::regclass AND grantee <> relowner",
        [names.view.as_string(connection)],
    ).fetchall()
    try:
        connection.execute(sql.SQL("DROP VIEW {}").format(names.view))
    except errors.DependentObjectsStillExist as error:
        raise ExportError(
            f"The columns of view {names.base} have changed, and other views are built on it: "
            f"{error.diag.message_detail}. Drop those, run again, and create them anew; until then, readers see what "
            "they saw before."
        ) from error
    connection.execute(sql.SQL("CREATE VIEW {} AS {}").format(names.view, query))
    for privilege, role, grantable in grants:
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}{}").format(
                sql.SQL(privilege),
                names.view,
                sql.SQL("PUBLIC") if role is None else sql.Identifier(role),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )


def _readers(connection: Connection, names: Names) -> str:
    found = connection.execute(
        "SELECT DISTINCT pid FROM pg_locks WHERE relation = %s::regclass AND granted AND pid <> pg_backend_pid()",
        [names.view.as_string(connection)],
    )
    return ", ".join(str(pid) for (pid,) in found) or "unknown"


def _seen_by_readers(connection: Connection, transaction: int) -> bool:
    """Whether somebody may still see what that transaction deleted: a transaction, or a standby that tells its own."""
    found = connection.execute(
        "SELECT backend_xmin::text::bigint FROM pg_stat_activity WHERE backend_xmin IS NOT NULL "
        "AND pid <> pg_backend_pid() UNION ALL "
        "SELECT xmin::text::bigint FROM pg_replication_slots WHERE xmin IS NOT NULL"
    )
    # These are the low 32 bits of a counter that wraps: later means less than half the circle ahead.
    return any((oldest - transaction - 1) % 2**32 >= 2**31 for (oldest,) in found)
