"""What the ledger does, in statements that SQLite and PostgreSQL both understand.

A database runs `work` in one transaction, alone among those that write: so what a transaction has read still holds when
it writes, and no statement here needs to mind others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, TypeVar

from sereno.adapters.ledger.tables import (
    ENTRY,
    FORMAT,
    NOTICE,
    PAUSE,
    TABLES,
    TRANSITION,
    entry_of,
    micros,
    notice_of,
    pause_of,
    row_of,
    stored_kind,
    transition_of,
)
from sereno.exceptions import LedgerError
from sereno.ledger import Entry, Lease, Notice, NoticeKind, Pause, RunState, Transition

T = TypeVar("T")
OPEN = ("due", "waiting", "running")
ENDED = ("published", "failed", "skipped", "discarded")  # held is not: somebody is to decide
CHUNK = 1_000  # runs that one transaction prunes or adds: others wait for no more
_DAY = 86_400_000_000  # µs

_NEWEST = f"""
WITH RECURSIVE models (model) AS (
    SELECT min(model) FROM sereno_runs
    UNION ALL
    SELECT (SELECT min(r.model) FROM sereno_runs r WHERE r.model > models.model) FROM models WHERE models.model IS NOT NULL
)
SELECT {", ".join(f"r.{name}" for name in ENTRY.split(", "))} FROM models JOIN sereno_runs r ON r.model = models.model
AND r.data_time = (SELECT max(s.data_time) FROM sereno_runs s WHERE s.model = models.model AND s.data_time <= ?)
ORDER BY r.model, r.run_key
"""
# one per model stays: the newest
_ENDED_BEFORE = f"""
data_time < ? AND since < ? AND not_before IS NULL AND state IN ({", ".join(f"'{state}'" for state in ENDED)})
AND data_time < (SELECT max(s.data_time) FROM sereno_runs s WHERE s.model = sereno_runs.model)
"""


@dataclass(frozen=True, kw_only=True)
class Now:
    """The ledger's own clock."""

    era: str  # within one, `ticks` never go back; SQLite: this boot of the host
    ticks: int  # µs
    wall: int  # µs since 1970


class Cursor(Protocol):
    """A transaction that is going on."""

    again: bool  # its connection was lost when it ended: it may have been done already

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a SELECT finds. `?` stands for each parameter."""
        ...

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """How many rows it changed."""
        ...

    def now(self) -> Now: ...


class Database(Protocol):
    """Where a ledger is kept. `shown` is what messages call it."""

    shown: str

    def read(self, work: Callable[[Cursor], T]) -> T:
        """Run a transaction that only reads, and sees one state. Raises LedgerError."""
        ...

    def write(self, work: Callable[[Cursor], T]) -> T:
        """Run one that writes, after all others that do. What raises changes nothing. Raises LedgerError."""
        ...

    def verify(self) -> None:
        """Read all of it, as far as a database is not its own operator's affair. Raises LedgerError."""
        ...

    def close(self) -> None: ...


def create(cursor: Cursor, number: str) -> None:
    """Make the tables."""
    for statement in TABLES:
        cursor.change(statement.replace("{number}", number))
    # Tokens go on growing if the ledger was lost and this is another one: they begin with the time, in milliseconds.
    began = cursor.now().wall // 1000
    for name, value in (("format", FORMAT), ("began", began), ("token", began)):
        cursor.change("INSERT INTO sereno_ledger (name, value) VALUES (?, ?)", (name, value))


def check(cursor: Cursor, shown: str) -> None:
    """Raises LedgerError for a ledger that this version cannot use."""
    found = dict(cursor.rows("SELECT name, value FROM sereno_ledger"))
    if not found.keys() >= {"format", "began", "token"}:
        raise damaged(shown, "it does not say which format it has")
    if found["format"] > FORMAT:
        raise LedgerError(
            f"The ledger {shown} was made by a newer version of Sereno (format {found['format']}; this one knows {FORMAT}). "
            "Upgrade Sereno here, too."
        )


def damaged(shown: str, why: str) -> LedgerError:
    return LedgerError(
        f"The ledger {shown} is damaged: {why}. `sereno repair` puts it aside and makes it again from what was published.",
        damaged=True,
    )


class SqlLedger:
    """A RunLedger in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.shown = database.shown  # where it is kept, without any password
        self.chunk = CHUNK

    def verify(self) -> None:
        """Raises LedgerError where something in it is damaged, or it cannot be used at all."""
        self._database.verify()

    def began(self) -> int:
        found = self._database.read(lambda cursor: cursor.rows("SELECT value FROM sereno_ledger WHERE name = 'began'"))
        if not found:
            raise damaged(self.shown, "it does not say when it began")
        return int(found[0][0])

    def versions(self) -> dict[str, int]:
        statement = "SELECT model, max(version) FROM sereno_runs WHERE version IS NOT NULL GROUP BY model"
        return dict(self._database.read(lambda cursor: cursor.rows(statement)))

    def move(
        self,
        entry: Entry,
        *,
        expected: Collection[RunState | None] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        row = row_of(entry)

        def work(cursor: Cursor) -> bool:
            if lease is not None and not _has(cursor, lease):
                return False
            found = cursor.rows(f"SELECT {ENTRY} FROM sereno_runs WHERE model = ? AND run_key = ?", row[:2])
            before = found[0][4] if found else None
            if cursor.again and found and list(found[0]) == row:
                return True
            if expected is not None and before not in expected:
                return False
            _put(cursor, row)
            # A published run stays so: what becomes of it then (it is rolled back, exports do not follow) is its reason.
            if before != entry.state or (before == "published" and entry_of(found[0]).reason != entry.reason):
                _tell(cursor, replace(_birth(entry), before=before))
            return True

        return self._database.write(work)

    def entry(self, model: str, run_key: str) -> Entry | None:
        statement = f"SELECT {ENTRY} FROM sereno_runs WHERE model = ? AND run_key = ?"
        return next(iter(self._entries(statement, (model, run_key))), None)

    def entries(
        self,
        *,
        model: str | None = None,
        states: Collection[RunState] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        terms: list[str] = []
        parameters: list[Any] = []
        for term, value in (
            ("model = ?", model),
            ("data_time >= ?", since and micros(since)),
            ("data_time < ?", until and micros(until)),
        ):
            if value is not None:
                terms.append(term)
                parameters.append(value)

        def work(cursor: Cursor) -> list[Entry]:
            found = []
            # Each state on its own: then an index has them in order, and a limit ends the search.
            chosen: list[str] = sorted(set(states)) or [""]
            for state in chosen:
                where = " AND ".join([*terms, "state = ?" if state else "? = ''"])
                found += cursor.rows(
                    f"SELECT {ENTRY} FROM sereno_runs WHERE {where} ORDER BY data_time DESC"
                    + ("" if limit is None else f" LIMIT {int(limit)}"),
                    [*parameters, state],
                )
            return [entry_of(row) for row in found]

        found = sorted(self._database.read(work), key=lambda e: (e.model, e.run_key))
        found.sort(key=lambda e: e.data_time, reverse=True)
        return found[:limit]

    def newest(self, until: datetime) -> dict[str, Entry]:
        return {entry.model: entry for entry in self._entries(_NEWEST, (micros(until),))}

    def open_entries(self) -> list[Entry]:
        return self._entries(
            f"SELECT {ENTRY} FROM sereno_runs WHERE state IN (?, ?, ?) "
            f"UNION SELECT {ENTRY} FROM sereno_runs WHERE not_before IS NOT NULL ORDER BY data_time, model, run_key",
            OPEN,
        )

    def _entries(self, statement: str, parameters: Sequence[Any]) -> list[Entry]:
        return self._database.read(lambda cursor: [entry_of(row) for row in cursor.rows(statement, parameters)])

    def transitions(self, model: str, run_key: str) -> list[Transition]:
        statement = f"SELECT {TRANSITION} FROM sereno_transitions WHERE model = ? AND run_key = ? ORDER BY number"
        return self._database.read(lambda cursor: [transition_of(r) for r in cursor.rows(statement, (model, run_key))])

    def forget(self, model: str, run_key: str) -> None:
        def work(cursor: Cursor) -> None:
            for table in ("sereno_transitions", "sereno_notices", "sereno_runs"):
                cursor.change(f"DELETE FROM {table} WHERE model = ? AND run_key = ?", (model, run_key))

        self._database.write(work)

    def prune(self, before: datetime, *, model: str | None = None, dry_run: bool = False) -> int:
        until = micros(before)
        of_model, named = ("", ()) if model is None else (" AND model = ?", (model,))
        ended, given = f"{_ENDED_BEFORE}{of_model}", (until, until, *named)
        if dry_run:
            counted = f"SELECT count(*) FROM sereno_runs WHERE {ended}"
            return int(self._database.read(lambda cursor: cursor.rows(counted, given)[0][0]))
        chosen = f"SELECT model, run_key FROM sereno_runs WHERE {ended} ORDER BY data_time, model LIMIT {CHUNK}"

        def work(cursor: Cursor) -> int:
            for table in ("sereno_transitions", "sereno_notices"):
                cursor.change(f"DELETE FROM {table} WHERE (model, run_key) IN ({chosen})", given)
            return cursor.change(f"DELETE FROM sereno_runs WHERE (model, run_key) IN ({chosen})", given)

        pruned = self._database.write(work)
        while pruned and pruned % CHUNK == 0 and (more := self._database.write(work)):
            pruned += more
        # those of runs that stay, stay: else they would be told again
        orphans = f"at < ?{of_model} AND (model, run_key) NOT IN (SELECT model, run_key FROM sereno_runs)"
        self._database.write(lambda cursor: cursor.change(f"DELETE FROM sereno_notices WHERE {orphans}", given[1:]))
        return pruned

    def acquire(self, name: str, holder: str, seconds: float, *, by_force: bool = False) -> Lease | None:
        def work(cursor: Cursor) -> Lease | None:
            now = cursor.now()
            found = _lease(cursor, name)
            if found and found[0] not in ("", holder) and not _is_over(found, now) and not by_force:
                return None
            ((last,),) = cursor.rows("SELECT value FROM sereno_ledger WHERE name = 'token'")
            token = max(last + 1, now.wall // 1000)
            cursor.change("UPDATE sereno_ledger SET value = ? WHERE name = 'token'", (token,))
            _hold(cursor, Lease(name=name, holder=holder, token=token), seconds, now)
            # What was given back stays for a day, so that a holder that slept through it learns that it was lost.
            cursor.change(
                "DELETE FROM sereno_leases WHERE (era = ? AND until < ?) OR (era <> ? AND wall_until < ?)",
                (now.era, now.ticks - _DAY, now.era, now.wall - _DAY),
            )
            return Lease(name=name, holder=holder, token=token)

        return self._database.write(work)

    def renew(self, lease: Lease, seconds: float) -> bool:
        def work(cursor: Cursor) -> bool:
            if not _has(cursor, lease):
                return False
            _hold(cursor, lease, seconds, cursor.now())
            return True

        return self._database.write(work)

    def release(self, lease: Lease) -> None:
        def work(cursor: Cursor) -> None:
            now = cursor.now()
            cursor.change(
                "UPDATE sereno_leases SET holder = '', era = ?, until = ?, wall_until = ? "
                "WHERE name = ? AND holder = ? AND token = ?",
                (now.era, now.ticks, now.wall, lease.name, lease.holder, lease.token),
            )

        self._database.write(work)

    def holder(self, name: str) -> Lease | None:
        def work(cursor: Cursor) -> Lease | None:
            found = _lease(cursor, name)
            if not found or not found[0] or _is_over(found, cursor.now()):
                return None
            return Lease(name=name, holder=found[0], token=found[1])

        return self._database.read(work)

    def pause(self, pause: Pause) -> bool:
        row = (pause.model, micros(pause.since), pause.who, pause.why)

        def work(cursor: Cursor) -> bool:
            found = cursor.rows(f"SELECT {PAUSE} FROM sereno_pauses WHERE model = ?", (pause.model,))
            if not found:
                cursor.change(f"INSERT INTO sereno_pauses ({PAUSE}) VALUES (?, ?, ?, ?)", row)
            return not found or (cursor.again and found[0] == row)

        return self._database.write(work)

    def resume(self, model: str) -> Pause | None:
        def work(cursor: Cursor) -> Pause | None:
            found = cursor.rows(f"SELECT {PAUSE} FROM sereno_pauses WHERE model = ?", (model,))
            cursor.change("DELETE FROM sereno_pauses WHERE model = ?", (model,))
            return pause_of(found[0]) if found else None

        return self._database.write(work)

    def pauses(self) -> dict[str, Pause]:
        statement = f"SELECT {PAUSE} FROM sereno_pauses ORDER BY model"
        return {p.model: p for p in self._database.read(lambda cursor: [pause_of(r) for r in cursor.rows(statement)])}

    def add_notice(
        self, model: str, run_key: str, kind: NoticeKind, says: str, at: datetime, attempt: str = ""
    ) -> bool:
        statement = (
            "INSERT INTO sereno_notices (model, run_key, kind, at, says, tries, error) VALUES (?, ?, ?, ?, ?, 0, '') "
            "ON CONFLICT (model, run_key, kind) DO NOTHING"
        )
        row = (model, run_key, stored_kind(kind, attempt), micros(at), says)
        return self._database.write(lambda cursor: cursor.change(statement, row) == 1)

    def untold(self) -> list[Notice]:
        return self._notices(f"SELECT {NOTICE} FROM sereno_notices WHERE told_at IS NULL ORDER BY number", ())

    def notices(self, model: str, limit: int) -> list[Notice]:
        statement = f"SELECT {NOTICE} FROM sereno_notices WHERE model = ? ORDER BY number DESC LIMIT {int(limit)}"
        return self._notices(statement, (model,))

    def _notices(self, statement: str, parameters: Sequence[Any]) -> list[Notice]:
        return self._database.read(lambda cursor: [notice_of(row) for row in cursor.rows(statement, parameters)])

    def tried(self, number: int, *, told_at: datetime | None, error: str = "") -> None:
        told = None if told_at is None else micros(told_at)
        statement = "UPDATE sereno_notices SET tries = tries + 1, told_at = ?, error = ? WHERE number = ?"
        self._database.write(lambda cursor: cursor.change(statement, (told, error, number)))

    def add(self, entries: Iterable[Entry], *, are_new: bool = True) -> int:
        """Runs that the ledger does not know yet; how many it did not know. The others stay as they are.

        `are_new`: nothing else happened to them but that they came to be as they are.
        """

        def put(cursor: Cursor, entry: Entry) -> int:
            added = _put(cursor, row_of(entry), "NOTHING")
            if added and are_new:
                _tell(cursor, _birth(entry))
            return added

        return self._add(entries, put)

    def add_transitions(self, transitions: Iterable[Transition]) -> int:
        """What happened to runs, oldest first. How many there were."""
        return self._add(transitions, _tell)

    def _add(self, things: Iterable[T], put: Callable[[Cursor, T], int]) -> int:
        """In several transactions, so that others need not wait."""
        iterator, added = iter(things), 0
        while chunk := list(islice(iterator, self.chunk)):
            added += self._database.write(lambda cursor, chunk=chunk: sum(put(cursor, one) for one in chunk))  # type: ignore[misc]
        return added

    def add_kept(self, notices: Iterable[Notice], token: int) -> None:
        """Notices of another ledger, told or not; and tokens are greater than those that it gave."""

        def work(cursor: Cursor) -> None:
            for n in notices:
                cursor.change(
                    f"INSERT INTO sereno_notices ({NOTICE.removeprefix('number, ')}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (model, run_key, kind) DO NOTHING",
                    (
                        n.model,
                        n.run_key,
                        stored_kind(n.kind, n.attempt),
                        micros(n.at),
                        n.says,
                        n.tries,
                        n.told_at and micros(n.told_at),
                        n.error,
                    ),
                )
            cursor.change("UPDATE sereno_ledger SET value = ? WHERE name = 'token' AND value < ?", (token, token))

        self._database.write(work)

    def close(self) -> None:
        self._database.close()


def _birth(entry: Entry) -> Transition:
    return Transition(
        model=entry.model,
        run_key=entry.run_key,
        at=entry.since,
        before=None,
        after=entry.state,
        reason=entry.reason,
        who=entry.who,
        attempt=entry.attempt,
    )


def _tell(cursor: Cursor, one: Transition) -> int:
    return cursor.change(
        f"INSERT INTO sereno_transitions ({TRANSITION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (one.model, one.run_key, micros(one.at), one.before, one.after, one.reason, one.who, one.attempt),
    )


_COLUMNS = ENTRY.split(", ")
_CHANGED = "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])


def _put(cursor: Cursor, row: Sequence[Any], where_known: str = _CHANGED) -> int:
    return cursor.change(
        f"INSERT INTO sereno_runs ({ENTRY}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
        f"ON CONFLICT (model, run_key) DO {where_known}",
        row,
    )


_Held = tuple[str, int, str, int, int]  # holder ("": given back), token, era, until, until by the wall's clock


def _lease(cursor: Cursor, name: str) -> _Held | None:
    found = cursor.rows("SELECT holder, token, era, until, wall_until FROM sereno_leases WHERE name = ?", (name,))
    return found[0] if found else None


def _is_over(held: _Held, now: Now) -> bool:
    _, _, era, until, wall_until = held
    return until <= now.ticks if era == now.era else wall_until <= now.wall


def _has(cursor: Cursor, lease: Lease) -> bool:
    """Nobody else has had it since. Its time may be over."""
    found = _lease(cursor, lease.name)
    if found is not None:
        return found[:2] == (lease.holder, lease.token)
    # A ledger that was lost gave it, and in this one nobody has asked for it: whoever holds it may keep it.
    ((began,),) = cursor.rows("SELECT value FROM sereno_ledger WHERE name = 'began'")
    return lease.token < int(began)


def _hold(cursor: Cursor, lease: Lease, seconds: float, now: Now) -> None:
    length = round(seconds * 1e6)
    cursor.change(
        "INSERT INTO sereno_leases (name, holder, token, era, until, wall_until) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, era = excluded.era, "
        "until = excluded.until, wall_until = excluded.wall_until",
        (lease.name, lease.holder, lease.token, now.era, now.ticks + length, now.wall + length),
    )
