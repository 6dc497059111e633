"""What the PostgreSQL export promises beyond `interfaces.Export`, above all to those who read while it works."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import IsolationLevel

from sereno.adapters import exports, postgresql_view, rendering
from sereno.exceptions import ExportError, MissingExtraError, SettingsError
from tests.contract.export_targets import MODEL, NONE, ROWS, Maker, PostgresqlTarget, assert_shows

pytestmark = pytest.mark.service

SUMMARY = (
    "SELECT count(*), min(snapshot), max(snapshot), min(floor(score)::int), max(floor(score)::int) FROM credit_scoring"
)
ISOLATION = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


@pytest.fixture
def target(tmp_path: Path, postgresql_url: str) -> PostgresqlTarget:
    return PostgresqlTarget(tmp_path, postgresql_url)


def one_snapshot(connection: psycopg.Connection[Any]) -> int:
    rows, *numbers = connection.execute(SUMMARY).fetchall()[0]
    assert rows == ROWS
    assert len(set(numbers)) == 1
    return int(numbers[0])


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


def test_readers_see_one_snapshot_whole_at_every_isolation_level(target: PostgresqlTarget, maker: Maker) -> None:
    snapshots = [maker.snapshot(number) for number in range(1, 46)]
    target.export.follow(snapshots[:1], NONE)
    with polling(target.url, [each_alone, many_in_a_transaction, by_cursor], ISOLATION):
        for at in range(1, 45):
            target.export.follow([snapshots[at]], frozenset({at}))
            if at % 3 == 0:
                target.export.follow([snapshots[at - 1]], frozenset({at + 1}))
    assert target.held() == {44, 45}


def test_readers_see_one_snapshot_whole_while_the_columns_change(target: PostgresqlTarget, maker: Maker) -> None:
    def wider(number: int) -> pa.Table:
        return pa.table({"customer_id": range(ROWS), "limit": [5] * ROWS, "score": [number + 0.5] * ROWS})

    snapshots = [
        maker.snapshot(number, tables=[wider(number)] if number % 2 else None, day=number) for number in range(1, 25)
    ]
    target.export.follow(snapshots[:1], NONE)
    with polling(target.url, [each_alone, many_in_a_transaction], ISOLATION):
        for at in range(1, 24):
            # Nothing of the old columns is kept, so their tables are dropped as soon as nobody can see them.
            target.export.follow([snapshots[at]], NONE)
    target.export.follow([snapshots[-1]], NONE)
    with psycopg.connect(target.url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_class WHERE relname ~ '_rows_[0-9a-f]{8}$'").fetchone()
    assert tables == (1,)


def test_a_long_reader_neither_waits_nor_is_waited_for(target: PostgresqlTarget, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(target.url) as reader:
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        assert one_snapshot(reader) == 1
        started = time.monotonic()
        for number in (2, 3):
            target.export.follow([maker.snapshot(number)], NONE)
        assert time.monotonic() - started < 10
        assert one_snapshot(reader) == 1
    assert_shows(target, 3)


def test_old_columns_stay_for_a_transaction_that_began_before(target: PostgresqlTarget, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    other = maker.snapshot(2, tables=[pa.table({"customer_id": range(ROWS), "score": [2] * ROWS})])
    with psycopg.connect(target.url) as reader:
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        target.export.follow([other], NONE)
        # Through the new view, whose `score` is now a whole number: what cannot be one without loss is left out.
        assert reader.execute("SELECT count(*), max(score) FROM credit_scoring").fetchone() == (ROWS, None)
    target.export.follow([other], NONE)
    with psycopg.connect(target.url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_class WHERE relname ~ '_rows_[0-9a-f]{8}$'").fetchone()
    assert tables == (1,)


def test_changed_columns_wait_for_readers_and_then_say_whom(
    target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_view, "WAIT_SECONDS", 0.5)
    target.export.follow([maker.snapshot(1)], NONE)
    other = maker.snapshot(2, tables=[pa.table({"customer_id": ["a"], "score": [2.5]})])
    with psycopg.connect(target.url) as reader:
        one_snapshot(reader)
        with pytest.raises(ExportError, match=rf"did not end for 0 seconds \(process {reader.info.backend_pid}\)"):
            target.export.follow([other], NONE)
        assert one_snapshot(reader) == 1
    target.export.follow([other], NONE)
    assert target.read()[0] == {2}


def test_grants_stay_when_the_view_is_made_anew(target: PostgresqlTarget, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(target.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS marketing")
        admin.execute("CREATE ROLE marketing LOGIN")
        admin.execute("GRANT SELECT ON credit_scoring TO marketing")
        target.export.follow([maker.snapshot(2, tables=[pa.table({"customer_id": [1], "limit": [2]})])], NONE)
        with psycopg.connect(target.url.replace("postgres@", "marketing@")) as reader:
            assert reader.execute('SELECT customer_id, "limit" FROM credit_scoring').fetchall() == [(1, 2)]
        admin.execute("REVOKE ALL ON credit_scoring FROM marketing")
        admin.execute("DROP ROLE marketing")


def test_a_view_built_on_ours_is_named_and_left_alone(target: PostgresqlTarget, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(target.url, autocommit=True) as admin:
        admin.execute("CREATE VIEW offers AS SELECT customer_id FROM credit_scoring WHERE band = 'A'")
        longer = [pa.table({"customer_id": [1], "score": [2.5], "band": ["A"], "limit": [5]})]
        target.export.follow([maker.snapshot(2, tables=longer)], NONE)  # one more at the end is no harm
        with pytest.raises(ExportError, match=r"view offers depends on view credit_scoring\. Drop those, run again"):
            target.export.follow([maker.snapshot(3, tables=[pa.table({"customer_id": [1]})])], NONE)
        assert admin.execute("SELECT * FROM offers").fetchall() == [(1,)]


def test_what_others_made_is_left_alone(target: PostgresqlTarget, maker: Maker) -> None:
    with psycopg.connect(target.url, autocommit=True) as admin:
        admin.execute("CREATE TABLE credit_scoring (precious int)")
        with pytest.raises(
            ExportError, match=r"public.credit_scoring exists .* not an export of model 'credit-scoring'"
        ):
            target.export.follow([maker.snapshot(1)], NONE)
        admin.execute("CREATE SCHEMA scores")
    other = exports.make_export(f"{target.url}&schema=scores", home=Path("unused"), model=MODEL)
    assert other.follow([maker.snapshot(1)], NONE)


def test_exporters_take_turns(target: PostgresqlTarget, maker: Maker) -> None:
    snapshot = maker.snapshot(1)
    answers: list[object] = []

    def follow() -> None:
        try:
            answers.append(target.export.follow([snapshot], NONE))
        except BaseException as failure:  # noqa: BLE001 - told by the test
            answers.append(failure)

    threads = [threading.Thread(target=follow) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, answers)) == ["False"] * 5 + ["True"]
    assert_shows(target, 1)


def test_a_connection_lost_in_the_middle(
    target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.export.follow([maker.snapshot(1)], NONE)

    def lose(path: Path) -> Iterator[pa.RecordBatch]:
        with psycopg.connect(target.url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sereno export%'"
            )
        yield from batches(path)

    batches = rendering.read_batches
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "read_batches", lose)
        with pytest.raises(ExportError, match="terminating connection due to administrator command"):
            target.export.follow([maker.snapshot(2)], NONE)
    assert_shows(target, 1)
    target.export.follow([maker.snapshot(2)], NONE)
    assert_shows(target, 2)


@pytest.mark.parametrize(
    "setting",
    [
        "postgresql://bank:s%65kret@127.0.0.1:1/offers",
        "postgresql://bank@127.0.0.1:1/offers?password=sekret",
        "postgresql://bank:sekret%zz@127.0.0.1:1/offers",
    ],
)
def test_no_message_tells_the_password(setting: str, maker: Maker) -> None:
    export = exports.make_export(setting, home=Path("unused"), model=MODEL)
    assert export.name == "postgresql://bank@127.0.0.1:1/offers"
    with pytest.raises(ExportError) as caught:
        export.follow([maker.snapshot(1)], NONE)
    told = f"{caught.value}{caught.value.__cause__}{export!r}"
    assert "to postgresql://bank@127.0.0.1:1/offers failed" in told
    assert "sekret" not in told
    assert "s%65kret" not in told


def test_missing_schema_role_and_package(
    target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(setting: str) -> Any:
        return exports.make_export(setting, home=Path("unused"), model=MODEL)

    with pytest.raises(ExportError, match="no schema 'nowhere'. Create it"):
        make(f"{target.url}&schema=nowhere").follow([maker.snapshot(1)], NONE)
    with psycopg.connect(target.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS stranger")
        admin.execute("CREATE ROLE stranger LOGIN")
        with pytest.raises(ExportError, match=r"permission denied for schema public\. The role needs USAGE and CREATE"):
            make(target.url.replace("postgres@", "stranger@")).follow([maker.snapshot(1)], NONE)
        admin.execute("DROP ROLE stranger")
    with pytest.raises(SettingsError, match="`schema` of a PostgreSQL address is empty"):
        make(f"{target.url}&schema=")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sereno.adapters.postgresql_address.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sereno\[postgresql\]'"):
        make(target.url)
