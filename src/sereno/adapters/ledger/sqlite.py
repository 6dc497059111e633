"""A ledger in a file of the home: for one host, any number of processes and threads.

Its clock is the host's, counted from its start: leases end in time, however the clock on the wall is set.

Where several hosts share a home, SQLite would damage the file: neither its locks nor its memory reach over a network. So
whoever uses it leaves a mark beside it, `ledger.host`, every few seconds, and whoever finds a young one of another host
keeps its hands off. How old it is says the clock of the file server, by the time of a file that was made just now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sereno.adapters.ledger.statements import Cursor, Now, check, create, damaged
from sereno.adapters.ledger.tables import storable
from sereno.exceptions import BusyError, LedgerError
from sereno.storage import CAUSES, exclusive, fsync

T = TypeVar("T")
BUSY_SECONDS = 5.0  # how long another process may keep a transaction waiting
MARK_SECONDS = 15.0  # between two marks of a host that uses it
USED_SECONDS = 60.0  # for so long after a mark it is that host's
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a file
_NUMBER = "INTEGER PRIMARY KEY AUTOINCREMENT"
_LITTLE = 1 << 16  # bytes: a disk with no more than this is full
_DAMAGES = {
    sqlite3.SQLITE_CORRUPT: "its pages do not fit together",
    sqlite3.SQLITE_NOTADB: "it is no SQLite file any more",
    sqlite3.SQLITE_ERROR: "it lacks what a ledger has",
    sqlite3.SQLITE_MISMATCH: "it has values of another kind",
    sqlite3.SQLITE_FORMAT: "it is of another kind",
}
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_UNWRITABLE = (*_READ_ONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)


class _Transaction:
    again = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, storable(parameters)).fetchall()

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(statement, storable(parameters)).rowcount

    def now(self) -> Now:
        ticks = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        return Now(era=_boot(), ticks=ticks, wall=time.time_ns() // 1000)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class SqliteDatabase:
    """The file. One connection, which threads take turns with."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.shown = str(file)
        self._turn = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, ...] = ()  # process, device and inode that the connection is of
        self._for_once = False  # this connection can only read
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._marked_at = -MARK_SECONDS  # by the host's clock

    def read(self, work: Callable[[Cursor], T]) -> T:
        return self._do(work, reads=True)

    def write(self, work: Callable[[Cursor], T]) -> T:
        return self._do(work, reads=False)

    def _do(self, work: Callable[[Cursor], T], *, reads: bool) -> T:
        with self._turn, self._translated():
            for last in (False, False, True):
                is_old = self._connection is not None
                try:
                    return self._once(work, reads)
                except sqlite3.Error as error:
                    if _code(error) in _BUSY:
                        raise
                    self.close()  # what is mended is found when it is opened again
                    may_be_mended = is_old and _code(error) == sqlite3.SQLITE_READONLY
                    if last or not (may_be_mended or self._this() != self._opened):
                        raise
            raise AssertionError

    def _once(self, work: Callable[[Cursor], T], reads: bool) -> T:
        connection = self._ready(reads)
        connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
        try:
            done = work(_Transaction(connection))
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some errors have rolled back already
                connection.execute("ROLLBACK")
            raise
        return done

    def close(self) -> None:
        with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None and self._opened[:1] == (os.getpid(),):
                # the last to close it writes it back, and may find the disk full: the next one does it
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            if self._copy is not None:
                self._copy.cleanup()
                self._copy = None

    def _ready(self, reads: bool) -> sqlite3.Connection:
        """The connection, to the file that is there now: somebody may have removed or replaced it.

        A fork must not use its parent's, and must not close it either.
        """
        if (now := time.clock_gettime(time.CLOCK_BOOTTIME)) - self._marked_at >= MARK_SECONDS:
            _mark_use(self._file)
            self._marked_at = now
        this = self._this()
        if self._connection is not None and this == self._opened and not self._for_once:
            return self._connection
        self.close()
        if not this:
            _make(self._file)
        self._opened, self._for_once = self._this(), False
        with _in_place(self._file):
            try:
                connection = _connected(self._file, "mode=rw")
            except sqlite3.OperationalError as error:
                if not reads or _code(error) not in _UNWRITABLE:
                    raise
                connection = self._connected_to_read()
                self._for_once = True  # next time this process may be able to write
        try:
            check(_Transaction(connection), self.shown)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _this(self) -> tuple[int, ...]:
        """This process and the file that is there; nothing: there is none."""
        try:
            there = os.stat(self._file)
        except FileNotFoundError:
            return ()
        return (os.getpid(), there.st_dev, there.st_ino)

    def _connected_to_read(self) -> sqlite3.Connection:
        """Who cannot write, not even what SQLite needs beside the file to read, finds all the same what is there."""
        with contextlib.suppress(sqlite3.OperationalError):
            return _connected(self._file, "mode=ro")  # somebody else has it open
        # Nobody has. What the last one could not write back, if it was killed, lies beside it.
        self._copy = tempfile.TemporaryDirectory(prefix="sereno-ledger-")
        for path in (self._file, beside(self._file, "-wal")):
            if path.exists():
                shutil.copyfile(path, Path(self._copy.name) / path.name)
        return _connected(Path(self._copy.name) / self._file.name, "mode=rw")

    def verify(self) -> None:
        """Read every page. Raises LedgerError where one is damaged."""
        for (said,) in self.read(lambda cursor: cursor.rows("PRAGMA integrity_check(1)")):
            if said != "ok":
                raise damaged(self.shown, str(said).splitlines()[-1])

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._told(error) from error
        except OSError as error:
            cause = CAUSES.get(error.errno or 0, str(error))
            raise LedgerError(f"The ledger {self.shown} cannot be used: {cause}. Mend that, then try again.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged(self.shown, f"it has a value of another kind ({error})") from error

    def _told(self, error: sqlite3.Error) -> LedgerError:
        code = _code(error)
        if code in _BUSY:
            return LedgerError(
                f"The ledger {self.shown} is locked: another process has kept it for {BUSY_SECONDS:g} seconds. "
                "Try again; if that goes on, end whatever has it open, such as a shell of sqlite3."
            )
        full = code == sqlite3.SQLITE_FULL
        if code in _UNWRITABLE and not full:
            with contextlib.suppress(OSError):
                full = shutil.disk_usage(self._file.parent).free <= _LITTLE
        if full:
            return LedgerError(
                f"The ledger {self.shown} cannot be written: the disk is full. Free space, then try again."
            )
        is_unread = code is None and isinstance(error, sqlite3.OperationalError)  # Python found no text in it
        if code in _DAMAGES or _extended(error) == sqlite3.SQLITE_IOERR_SHORT_READ or is_unread:
            return damaged(self.shown, f"{_DAMAGES.get(code or 0, 'it cannot be read')} ({error})")
        if code in _READ_ONLY:
            why = "it is read-only, or this user may not write there"
        else:
            why = str(error)
        return LedgerError(f"The ledger {self.shown} cannot be used: {why}. Mend that, then try again.")


def _code(error: sqlite3.Error) -> int | None:
    extended = _extended(error)
    return None if extended is None else extended & 0xFF


def _extended(error: sqlite3.Error) -> int | None:
    """None: Python itself could not read a value."""
    return getattr(error, "sqlite_errorcode", None)


def beside(file: Path, end: str) -> Path:
    return file.with_name(file.name + end)


def _connected(file: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?{mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")  # what was told lasts, over a power cut, too
        connection.execute("PRAGMA cache_size = -8000")  # 8 MB: what a scheduler asks all the time is read once
        connection.execute("PRAGMA wal_autocheckpoint = 250")  # 1 MB
        connection.execute("PRAGMA journal_size_limit = 1000000")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master")  # nothing is read before, and no error found
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _mark_use(file: Path) -> None:
    """Say that this host uses a ledger. Raises LedgerError where another one does.

    Hosts are told apart by name and by boot: a host that was started anew goes on with its own, and so do containers of one.
    """
    mark = file.with_name("ledger.host")
    boot, host = _boot(), socket.gethostname()
    try:
        with mark.open("rb") as stream:
            known = stream.read(1000).decode("utf-8", "replace").split()
            marked_at = os.fstat(stream.fileno()).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        known, marked_at = [], 0.0
    if known == [boot, host]:
        with contextlib.suppress(OSError):  # it is another user's, or the disk can only be read
            os.utime(mark)
        return
    new = file.with_name(f".ledger.host.{secrets.token_hex(6)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(f"{boot} {host}\n")
        age = new.stat().st_mtime - marked_at
        if len(known) == 2 and boot != known[0] and host != known[1] and age < USED_SECONDS:
            raise LedgerError(
                f"The ledger {file} is in use on host {known[1]}, and SQLite cannot be shared with this one ({host}): it would "
                'be damaged. Give the hosts that share a home a ledger in PostgreSQL: ledger = "postgresql://…" in sereno.toml. '
                f"If {known[1]} has stopped using it, try again in a minute."
            )
        os.replace(new, mark)
    except OSError:  # this user may not write there, or the disk is full: who writes will be told
        pass
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _lock(file: Path) -> Path:
    return file.parent / "locks" / "ledger"


@contextlib.contextmanager
def _in_place(file: Path) -> Iterator[None]:
    """While a connection is opened nobody puts another file there: the file and those beside it belong together."""
    try:
        stream = _lock(file).open("rb")
    except OSError:  # nobody has made one here, or this user may not look
        yield
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _putting(file: Path) -> Iterator[None]:
    """Only this process puts a file there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another process (pid {{pid}}) is making the ledger {file}. Start this again when it is done."
    try:
        with exclusive(_lock(file), busy, wait_seconds=BUSY_SECONDS):
            yield
    except BusyError as error:
        raise LedgerError(str(error)) from error


def _make(file: Path) -> None:
    """Make a ledger, and put it in place whole: one that is there without its tables is damaged, not new."""
    with _putting(file):
        if file.exists():
            return
        new = file.with_name(f".{file.name}.new")
        for end in ("", *BESIDE):
            beside(new, end).unlink(missing_ok=True)
            # of the ledger that was there before: it must not become part of this one
            beside(file, end).unlink(missing_ok=True)
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            connection.execute("BEGIN")
            create(_Transaction(connection), _NUMBER)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")  # written in the file: whoever opens it heeds it
        finally:
            connection.close()
        fsync(new)
        os.replace(new, file)
        fsync(file.parent)


def put_aside(file: Path, new: Path) -> Path:
    """Put a new ledger, which nobody has open, in the place of a damaged one; where that is now.

    Whoever has the damaged one open finds the new one with its next transaction.
    """
    if beside(new, "-wal").exists():
        raise LedgerError(f"The ledger {new} could not be written whole: is the disk full? Free space, then try again.")
    with _putting(file):
        name = f"{file.name}.damaged-{datetime.now(UTC):%Y-%m-%d}"
        taken = {path.name for path in file.parent.glob(f"{name}*")}
        name = next(n for n in chain([name], (f"{name}-{more}" for more in count(2))) if n not in taken)
        aside = file.with_name(name)
        # What belongs to the damaged one goes first: else it would become part of the new one.
        for end in BESIDE:
            if beside(file, end).exists():
                os.replace(beside(file, end), beside(aside, end))
        os.link(file, aside)
        os.replace(new, file)
        fsync(file.parent)
        return aside
