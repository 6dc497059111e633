"""What can still be read of a damaged file: the rows of each table before, between and after what is damaged."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from sereno.adapters.ledger.sqlite import beside
from sereno.adapters.ledger.tables import ENTRY, NOTICE, PAUSE, TRANSITION, entry_of, notice_of, pause_of, transition_of
from sereno.ledger import Entry, Notice, Pause, RunState, Transition

T = TypeVar("T")
_MOST = 1 << 40  # rows


@contextlib.contextmanager
def salvage(file: Path) -> Iterator[Salvage]:
    """Read a copy: the file itself stays as it is. Raises OSError where the copy does not fit on the disk."""
    with tempfile.TemporaryDirectory(prefix="sereno-ledger-") as folder:
        copy = Path(folder) / file.name
        for end in ("", "-wal"):
            if beside(file, end).exists():
                shutil.copyfile(beside(file, end), beside(copy, end))
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            yield Salvage(connection)


class Salvage:
    """A damaged file that is read. Each method yields rows in their order, and notes in `unread` what it could not."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.unread: list[str] = []

    def entries(self) -> Iterator[Entry]:
        known = get_args(RunState)
        return (entry for entry in self._values("runs", ENTRY, entry_of) if entry.state in known)

    def transitions(self) -> Iterator[Transition]:
        return self._values("transitions", TRANSITION, transition_of)

    def pauses(self) -> Iterator[Pause]:
        return self._values("pauses", PAUSE, pause_of)

    def notices(self) -> Iterator[Notice]:
        return self._values("notices", NOTICE, notice_of)

    def token(self) -> int:
        """The greatest that was given."""
        given = self._values("leases", "token", _whole)
        counted = self._values("ledger", "value", _whole)
        return max([*given, *counted], default=0)

    def _values(self, table: str, columns: str, made: Callable[[Sequence[Any]], T]) -> Iterator[T]:
        read, self._is_whole = 0, True
        for row in self._rows(table, columns):
            try:
                value = made(row)
            except (ValueError, TypeError, OverflowError):
                self._is_whole = False
                continue
            read += 1
            yield value
        if not self._is_whole:
            self.unread.append(f"the table of {table}: {read:,} of its rows could be read")

    def _rows(self, table: str, columns: str) -> Iterator[Sequence[Any]]:
        """Past each place that cannot be read, in steps that grow until rows are found again."""
        after, step = -1, 1
        # by the rows themselves: an index may be damaged, too
        select = f"SELECT rowid, {columns} FROM sereno_{table} NOT INDEXED WHERE rowid > ? ORDER BY rowid"
        while after < _MOST:
            try:
                for number, *row in self._connection.execute(select, (after,)):
                    after, step = number, 1
                    yield row
                return
            except (sqlite3.Error, UnicodeDecodeError):
                self._is_whole = False
            after, step = after + step, step * 2


def _whole(row: Sequence[Any]) -> int:
    return int(row[0])
