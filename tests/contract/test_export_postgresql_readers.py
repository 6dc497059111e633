"""Those who read the PostgreSQL export while it works see one snapshot whole, at every isolation level."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import IsolationLevel

from tests.contract.export_targets import NONE, ROWS, Maker, PostgresqlTarget, assert_shows, one_snapshot

pytestmark = pytest.mark.service

ISOLATION = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


def each_alone(connection: psycopg.Connection[Any]) -> Iterator[int]:
    connection.autocommit = True
    while True:
        yield one_snapshot(connection)


def many_in_a_transaction(connection: psycopg.Connection[Any]) -> Iterator[int]:
    """A transaction's first read may come long after its snapshot was taken, and its locks stay from read to read."""
    while True:
        with connection.transaction():
            connection.execute("SELECT 1")
            time.sleep(0.02)
            seen = []
            for _ in range(4):
                seen.append(one_snapshot(connection))
                time.sleep(0.01)
            # Several served in one transaction are right only where each statement sees the newest.
            assert len(set(seen)) == 1 or connection.isolation_level == IsolationLevel.READ_COMMITTED
        yield from seen


def by_cursor(connection: psycopg.Connection[Any]) -> Iterator[int]:
    while True:
        with connection.transaction(), connection.cursor("slow") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT snapshot, floor(score)::int FROM credit_scoring")
            rows = []
            for row in cursor:
                rows.append(row)
                if len(rows) % 100 == 0:
                    time.sleep(0.01)
            assert len(rows) == ROWS
            (found,) = set(rows)
            assert found[0] == found[1]
        yield found[0]


Reader = Callable[[psycopg.Connection[Any]], Iterator[int]]


@contextmanager
def polling(url: str, readers: list[Reader], levels: list[IsolationLevel]) -> Iterator[dict[str, set[int]]]:
    """Read all the while, at every isolation level; afterwards, no read was anything but one whole snapshot."""
    done = threading.Event()
    failures: list[str] = []
    reads: dict[str, set[int]] = {}

    def poll(reader: Reader, level: IsolationLevel) -> None:
        name = f"{reader.__name__} {level.name}"
        seen = reads.setdefault(name, set())
        try:
            with psycopg.connect(url) as connection:
                connection.isolation_level = level
                for number in reader(connection):
                    seen.add(number)
                    if done.is_set():
                        return
        except BaseException as failure:  # noqa: BLE001 - told below
            failures.append(f"{name}: {failure!r}")

    threads = [threading.Thread(target=poll, args=(reader, level)) for reader in readers for level in levels]
    for thread in threads:
        thread.start()
    try:
        yield reads
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for name, seen in reads.items():
        assert len(seen) > 3, f"{name} saw only {seen}"


def test_readers_see_one_snapshot_whole_at_every_isolation_level(
    postgresql_target: PostgresqlTarget, maker: Maker
) -> None:
    snapshots = [maker.snapshot(number) for number in range(1, 46)]
    postgresql_target.export.follow(snapshots[:1], NONE)
    with polling(postgresql_target.url, [each_alone, many_in_a_transaction, by_cursor], ISOLATION):
        for at in range(1, 45):
            postgresql_target.export.follow([snapshots[at]], frozenset({at}))
            if at % 3 == 0:
                postgresql_target.export.follow([snapshots[at - 1]], frozenset({at + 1}))
    assert postgresql_target.held() == {44, 45}


def test_readers_see_one_snapshot_whole_while_the_columns_change(
    postgresql_target: PostgresqlTarget, maker: Maker
) -> None:
    def wider(number: int) -> pa.Table:
        return pa.table({"customer_id": range(ROWS), "limit": [5] * ROWS, "score": [number + 0.5] * ROWS})

    snapshots = [
        maker.snapshot(number, tables=[wider(number)] if number % 2 else None, day=number) for number in range(1, 25)
    ]
    postgresql_target.export.follow(snapshots[:1], NONE)
    with polling(postgresql_target.url, [each_alone, many_in_a_transaction], ISOLATION):
        for at in range(1, 24):
            # Nothing of the old columns is kept, so their tables are dropped as soon as nobody can see them.
            postgresql_target.export.follow([snapshots[at]], NONE)
    postgresql_target.export.follow([snapshots[-1]], NONE)
    with psycopg.connect(postgresql_target.url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_class WHERE relname ~ '_rows_[0-9a-f]{8}$'").fetchone()
    assert tables == (1,)


def test_a_long_reader_neither_waits_nor_is_waited_for(postgresql_target: PostgresqlTarget, maker: Maker) -> None:
    postgresql_target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(postgresql_target.url) as reader:
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        assert one_snapshot(reader) == 1
        started = time.monotonic()
        for number in (2, 3):
            postgresql_target.export.follow([maker.snapshot(number)], NONE)
        assert time.monotonic() - started < 10
        assert one_snapshot(reader) == 1
    assert_shows(postgresql_target, 3)


def test_old_columns_stay_for_a_transaction_that_began_before(
    postgresql_target: PostgresqlTarget, maker: Maker
) -> None:
    postgresql_target.export.follow([maker.snapshot(1)], NONE)
    other = maker.snapshot(2, tables=[pa.table({"customer_id": range(ROWS), "score": [2] * ROWS})])
    with psycopg.connect(postgresql_target.url) as reader:
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        postgresql_target.export.follow([other], NONE)
        # Through the new view, whose `score` is now a whole number: what cannot be one without loss is left out.
        assert reader.execute("SELECT count(*), max(score) FROM credit_scoring").fetchone() == (ROWS, None)
    postgresql_target.export.follow([other], NONE)
    with psycopg.connect(postgresql_target.url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_class WHERE relname ~ '_rows_[0-9a-f]{8}$'").fetchone()
    assert tables == (1,)
