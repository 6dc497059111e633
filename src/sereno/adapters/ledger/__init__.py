"""The ledger of runs: the same statements on SQLite, in a file of the home, and on PostgreSQL.

Light: what schedules for months, and what lists runs, loads this and no data frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sereno.adapters.ledger.statements import SqlLedger


def ledger_file(home: Path) -> Path:
    """Where the ledger of a home lies, unless it is in PostgreSQL."""
    return home / ".sereno" / "ledger.sqlite"


def open_at(address: str | None, home: Path) -> SqlLedger:
    """The ledger at a PostgreSQL address, or (None) in a file of the home. Nothing is connected, read or made before
    the first use. Raises MissingExtraError, and SettingsError for an address that cannot be read."""
    from sereno.adapters.ledger.statements import SqlLedger

    if address is None:
        from sereno.adapters.ledger.sqlite import SqliteDatabase

        return SqlLedger(SqliteDatabase(ledger_file(home)))
    from sereno.adapters.postgresql.address import require

    require("psycopg", "The ledger in PostgreSQL")
    from sereno.adapters.ledger.postgresql import PostgresqlDatabase

    return SqlLedger(PostgresqlDatabase(address))
