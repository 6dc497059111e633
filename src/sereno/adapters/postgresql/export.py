"""An export into PostgreSQL: a view that always shows exactly the served snapshots.

For a model credit-scoring:

    credit_scoring                  the view that others read: snapshot, data_date, keys, outputs
    credit_scoring_served           the pointer: one row a served snapshot
    credit_scoring_snapshots        the snapshots that are held here, each with the table of its rows
    credit_scoring_rows_1b2c3d4e    the rows, of all snapshots with the same columns

A publication is one transaction: the rows are copied in and the pointer moves. Nothing is created, attached, renamed
or truncated, so all that a reader depends on is that it sees one state of the tables, which PostgreSQL promises at
every isolation level. (One partition per snapshot was tried first: a READ COMMITTED transaction that had read before
saw no rows after a new partition was attached, because its own list of partitions was stale; and one of REPEATABLE
READ saw none after an old partition was dropped.) Only when the columns change is the view defined anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, LiteralString, NoReturn

import psycopg
from psycopg import errors, sql

from sereno.adapters import rendering
from sereno.adapters.postgresql import tables as tables
from sereno.adapters.postgresql import view as view
from sereno.adapters.postgresql.address import Address
from sereno.adapters.postgresql.schema import NUMBER, Names, columns_of
from sereno.exceptions import ExportError
from sereno.failpoints import failpoint

if TYPE_CHECKING:
    from sereno.snapshots import Snapshot

CONNECT_SECONDS = 15
_SETTINGS: tuple[LiteralString, ...] = (
    # A role's own time limits are meant for its queries, not for a load of millions of rows.
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    tables.PATIENT,
)


@dataclass
class PostgresqlExport:
    """Follows the table into one schema of one database. Exporters of one model wait for each other."""

    url: str = field(repr=False)  # postgresql://…, with ?schema=… for another than `public`
    model: str
    name: str = field(init=False)
    _address: Address = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._address = Address.parse(self.url)
        self.name = self._address.shown

    def follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        if not served:
            return False
        failpoint("export_before")
        names = Names.of(self.model, self._address.schema)
        try:
            with self._connect() as connection:
                with self._transaction(connection):
                    changed = self._publish(connection, names, served)
                failpoint("export_swapped")
                # Afterwards and on its own: what is served must not wait for what is not.
                with self._transaction(connection):
                    pruned = tables.prune(connection, names, keep | {snapshot.number for snapshot in served})
                    if changed:
                        tables.analyze(connection, names)
                with self._transaction(connection):
                    view.drop_unused(connection, names, self.model, served)
                return changed or pruned
        except psycopg.Error as error:
            self._translate(error)

    def _publish(self, connection: tables.Connection, names: Names, served: Sequence[Snapshot]) -> bool:
        tables.create(connection, names, self.model)
        held = tables.held(connection, names)
        changed = False
        for snapshot in served:
            if held.get(snapshot.number) != snapshot.attempt:
                self._load(connection, names, snapshot)
                changed = True
        failpoint("export_copied")
        changed = tables.point(connection, names, served) or changed
        return view.define(connection, names, self.model, served) or changed

    def _load(self, connection: tables.Connection, names: Names, snapshot: Snapshot) -> None:
        # The same number with another attempt is of an earlier table of that name.
        tables.forget(connection, names, [snapshot.number])
        columns = columns_of(rendering.read_schema(snapshot.parts[0].path))
        table = names.rows(columns, snapshot.keys)
        new = tables.create_rows(connection, names, self.model, table, columns)
        copied = [sql.Identifier(column.name) for column in columns]
        # Text and not ADBC's binary: as fast here (1 M rows × 3: 0.9 s), and it knows numeric and jsonb.
        statement = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT csv)").format(
            table=names.identifier(table), columns=sql.SQL(", ").join([*copied, sql.Identifier(NUMBER)])
        )
        with connection.cursor().copy(statement) as copy:
            for part in snapshot.parts:
                for batch in rendering.read_batches(part.path):
                    copy.write(rendering.csv_lines(rendering.with_constant(batch, NUMBER, snapshot.number)))
        if new:
            tables.index_rows(connection, names, table, snapshot.keys)
        tables.remember(connection, names, snapshot, table)

    def _connect(self) -> tables.Connection:
        connection = psycopg.connect(
            self._address.url,
            connect_timeout=CONNECT_SECONDS,
            client_encoding="UTF8",
            prepare_threshold=None,  # nothing here runs often, and some poolers lose prepared statements
            application_name=f"sereno export {self.model}",
        )
        # Whatever the role's defaults are: a SERIALIZABLE writer could make readers fail.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.read_only = False
        return connection

    @contextlib.contextmanager
    def _transaction(self, connection: tables.Connection) -> Iterator[None]:
        with connection.transaction():
            for setting in _SETTINGS:
                connection.execute(setting)
            try:
                tables.lock(connection, self.model, self._address.schema)
            except errors.LockNotAvailable as error:
                raise ExportError(
                    f"Another process has been exporting model {self.model!r} to {self.name} for {tables.LOCK_SECONDS} "
                    "seconds. Wait for it, or end it; then run again: the export goes on from what is there."
                ) from error
            yield

    def _translate(self, error: psycopg.Error) -> NoReturn:
        cause = self._address.redact(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        match error:
            case errors.InsufficientPrivilege():
                then = f"The role needs USAGE and CREATE on schema {self._address.schema!r}, and must own what is there"
            case errors.DiskFull():
                then = "Free space on the database's disk"
            case psycopg.OperationalError() if error.sqlstate is None:
                then = "Check that the server runs and that address, user and password are right"
            case _:
                then = "Mend that"
        # Without its cause where that would tell the password.
        raise ExportError(
            f"The export of model {self.model!r} to {self.name} failed: {cause.rstrip('.')}. {then}; then run again. "
            "The publication stands, and readers of the export see what they saw before."
        ) from (error if self._address.redact(str(error)) == str(error) else None)
