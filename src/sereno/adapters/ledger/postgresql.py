"""A ledger in PostgreSQL: for homes that several hosts share. Its clock is the database's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import errors, sql

from sereno.adapters.ledger.statements import Cursor, Now, check, create
from sereno.adapters.ledger.tables import storable
from sereno.adapters.postgresql.address import Address
from sereno.exceptions import LedgerError

T = TypeVar("T")
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
CONNECT_SECONDS = 10
BUSY_SECONDS = 5  # how long others may keep a transaction waiting
_NUMBER = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
# A client that sleeps in the middle, or whose host is gone, must not keep the others waiting.
_PATIENCE = (
    f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; SET LOCAL statement_timeout = '60s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{2 * BUSY_SECONDS}s'; SET LOCAL synchronous_commit = on; "
)
_READS = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; "
_WRITES = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; "
# Whoever writes waits for the others that do.
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('sereno ledger ' || current_schema(), 0))"


@cache
def _spelled(statement: str) -> str:
    return statement.replace("%", "%%").replace("?", "%s")


class _Transaction:
    def __init__(self, connection: Connection, again: bool) -> None:
        self._connection = connection
        self.again = again

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._execute(statement, parameters).fetchall()

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return self._execute(statement, parameters).rowcount

    def _execute(self, statement: str, parameters: Sequence[Any]) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.execute(_spelled(statement).encode(), storable(parameters))

    def now(self) -> Now:
        ((ticks,),) = self.rows(_NOW)
        return Now(era="", ticks=ticks, wall=ticks)


class PostgresqlDatabase:
    """The tables of a ledger in one schema of one database. One connection, which threads take turns with."""

    def __init__(self, url: str) -> None:
        self._address = Address.parse(url)
        # without one, that which the connection comes to by itself
        options = dict(parse_qsl(urlsplit(url).query))
        self._schema = options.get("schema")
        self.shown = self._address.shown
        self._turn = threading.RLock()
        self._connection: Connection | None = None

    def read(self, work: Callable[[Cursor], T]) -> T:
        return self._do(work, _READS, "")

    def write(self, work: Callable[[Cursor], T]) -> T:
        return self._do(work, _WRITES, _TURN)

    def _do(self, work: Callable[[Cursor], T], kind: str, turn: str) -> T:
        with self._turn, self._translated():
            fresh = self._connection is None
            try:
                return self._once(work, kind, turn, again=False)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if fresh or (self._connection is not None and not self._connection.closed):
                    raise
            except errors.UndefinedTable:
                if fresh:
                    raise
                self.close()  # somebody has dropped the tables: they are made when it is connected again
                return self._once(work, kind, turn, again=False)
            # It was lost, at the latest while this one was committed: the server was started anew, say.
            return self._once(work, kind, turn, again=True)

    def _once(self, work: Callable[[Cursor], T], kind: str, turn: str, *, again: bool) -> T:
        connection = self._ready()
        with connection.transaction():
            connection.execute((kind + self._settings() + turn).encode())
            return work(_Transaction(connection, again))

    def _settings(self) -> str:
        if self._schema is None:
            return _PATIENCE
        return f"{_PATIENCE}SET LOCAL search_path = {sql.Identifier(self._schema).as_string()}; "

    def verify(self) -> None:
        self.read(lambda cursor: check(cursor, self.shown))

    def close(self) -> None:
        with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _ready(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._connection = None
        connection = psycopg.connect(
            self._address.url,
            connect_timeout=CONNECT_SECONDS,
            client_encoding="UTF8",
            prepare_threshold=None,  # some poolers lose prepared statements
            application_name="sereno ledger",
            keepalives_idle=10,
            tcp_user_timeout=20_000,
        )
        try:
            with connection.transaction():
                connection.execute((_WRITES + self._settings()).encode())
                if not _is_there(connection):
                    connection.execute(_TURN.encode())
                    if not _is_there(connection):
                        create(_Transaction(connection, again=False), _NUMBER)
                check(_Transaction(connection, again=False), self.shown)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._told(error) from (error if self._address.redact(str(error)) == str(error) else None)

    def _told(self, error: psycopg.Error) -> LedgerError:
        said = str(error).strip().splitlines()
        cause = self._address.redact(said[0]).rstrip(".") if said else type(error).__name__
        match error:
            case errors.LockNotAvailable() | errors.QueryCanceled():
                return LedgerError(
                    f"The ledger {self.shown} is locked: another session has kept it for {BUSY_SECONDS} seconds. Try again; "
                    "if that goes on, end that session."
                )
            case errors.DiskFull():
                return LedgerError(
                    f"The ledger {self.shown} cannot be written: the disk is full. Free space there, then try again."
                )
            case errors.DataCorrupted() | errors.IndexCorrupted():
                return LedgerError(
                    f"The ledger {self.shown} is damaged: {cause}. Restore the database from a backup; or drop the tables "
                    "sereno_*, and `sereno repair` makes them again from what was published.",
                    damaged=True,
                )
            case errors.InsufficientPrivilege() | errors.InvalidSchemaName():
                then = "The role needs USAGE and CREATE on its schema. Mend that, then try again"
            case psycopg.OperationalError() | psycopg.InterfaceError():
                return LedgerError(
                    f"The ledger {self.shown} cannot be reached: {cause}. Check that the server runs and that address, user "
                    "and password are right; then try again."
                )
            case _:
                then = "Mend that, then try again"
        return LedgerError(f"The ledger {self.shown} cannot be used: {cause}. {then}.")


def _is_there(connection: Connection) -> bool:
    # By the catalogue itself: to_regclass() remembers what it did not find, while another makes it.
    return (
        connection.execute(
            "SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = 'sereno_ledger' AND n.nspname = ANY (current_schemas(false))"
        ).fetchone()
        is not None
    )
