"""What can still be read of a damaged file: each row that is whole, from both ends of each table."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from sereno.adapters.ledger.sqlite import beside
from sereno.adapters.ledger.tables import ENTRY, NOTICE, PAUSE, TRANSITION, entry_of, notice_of, pause_of, transition_of
from sereno.ledger import Entry, Notice, Pause, RunState, Transition

T = TypeVar("T")


@dataclass(kw_only=True)
class Salvaged:
    """What was read, and which tables were not read whole."""

    entries: list[Entry] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    token: int = 0  # the greatest that was given
    unread: list[str] = field(default_factory=list)


def salvage(file: Path) -> Salvaged:
    """Read a copy: the file itself stays as it is. Raises OSError where the copy does not fit on the disk."""
    found = Salvaged()
    with tempfile.TemporaryDirectory(prefix="sereno-ledger-") as folder:
        copy = Path(folder) / file.name
        for end in ("", "-wal"):
            if beside(file, end).exists():
                shutil.copyfile(beside(file, end), beside(copy, end))
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            tables = _Tables(connection, found.unread)
            found.entries = _with_known_states(tables.all("runs", ENTRY, entry_of))
            found.transitions = tables.all("transitions", TRANSITION, transition_of)
            found.pauses = tables.all("pauses", PAUSE, pause_of)
            found.notices = sorted(tables.all("notices", NOTICE, notice_of), key=lambda n: n.number)
            tokens = tables.all("leases", "token", lambda row: int(row[0]))
            tokens += tables.all("ledger", "value", lambda row: int(row[0]))
            found.token = max(tokens, default=0)
    return found


def _with_known_states(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state in get_args(RunState)]


@dataclass
class _Tables:
    connection: sqlite3.Connection
    unread: list[str]

    def all(self, table: str, columns: str, made: Callable[[Sequence[Any]], T]) -> list[T]:
        """The rows of a table, as far as they can be read, in their order."""
        rows, whole = self._from(table, columns, "")
        if not whole:
            others, _ = self._from(table, columns, "DESC")
            rows |= dict(reversed([*others.items()]))
        values = []
        for _, row in sorted(rows.items()):
            try:
                values.append(made(row))
            except (ValueError, TypeError, OverflowError):
                whole = False
        if not whole:
            self.unread.append(f"the table of {table}: {len(values):,} of its rows could be read")
        return values

    def _from(self, table: str, columns: str, order: str) -> tuple[dict[int, Sequence[Any]], bool]:
        """Row numbers and rows from one end, up to the first that cannot be read; whether that is all."""
        rows: dict[int, Sequence[Any]] = {}
        try:
            # by the rows themselves: an index may be damaged, too
            for number, *row in self._read(
                f"SELECT rowid, {columns} FROM sereno_{table} NOT INDEXED ORDER BY rowid {order}"
            ):
                rows[number] = row
        except (sqlite3.Error, UnicodeDecodeError):
            return rows, False
        return rows, True

    def _read(self, statement: str) -> Iterator[Sequence[Any]]:
        yield from self.connection.execute(statement)
