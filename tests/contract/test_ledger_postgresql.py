"""What a ledger in PostgreSQL promises beyond `interfaces.RunLedger`."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sereno.adapters.ledger import open_at, postgresql
from sereno.exceptions import LedgerError, MissingExtraError, SettingsError
from sereno.ledger import Pause
from tests import services
from tests.contract.ledgers import START, Place, entry, eventually, labels, moved

pytestmark = pytest.mark.service


@pytest.fixture
def place(tmp_path: Path, postgresql_url: str) -> Iterator[Place]:
    place = Place(address=postgresql_url, home=tmp_path)
    yield place
    place.close()


def admin(place: Place) -> psycopg.Connection[Any]:
    assert place.address is not None
    return psycopg.connect(place.address, autocommit=True)


def test_the_driver_is_asked_for_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sereno.adapters.postgresql.address.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"^The ledger in PostgreSQL needs the package 'psycopg', .*sereno\[postg"
    ):
        open_at("postgresql://db/x", tmp_path)


def test_an_address_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read") as error:
        open_at("postgresql://me:hush@[db/x", tmp_path)
    assert "hush" not in str(error.value)


def test_nothing_lies_in_the_home(place: Place) -> None:
    moved(place.open(), entry())
    assert [*place.home.iterdir()] == []


def test_each_schema_has_its_own(place: Place) -> None:
    with admin(place) as connection:
        connection.execute('CREATE SCHEMA "Night\'s"')
        connection.execute("CREATE SCHEMA other")
    urls = [f"{place.address}&schema={name}" for name in ("Night's", "other")]
    one, two = (Place(address=url, home=place.home) for url in urls)
    moved(place.open(), entry(1))
    moved(one.open(), entry(2), entry(3))
    moved(two.open(), entry(4))
    assert [labels(p.open().entries()) for p in (place, one, two)] == [
        ["churn/01"],
        ["churn/03", "churn/02"],
        ["churn/04"],
    ]
    with admin(place) as connection:
        found = connection.execute("SELECT schemaname, count(*) FROM pg_tables WHERE tablename ~ '^sereno_' GROUP BY 1")
        assert dict(found.fetchall()) == {"Night's": 6, "other": 6, "public": 6}
    one.close()
    two.close()


def test_a_schema_that_is_not_there(place: Place) -> None:
    ledger = open_at(f"{place.address}&schema=missing", place.home)
    with pytest.raises(
        LedgerError, match=r"no schema has been selected.* The role needs USAGE and CREATE on its schema\."
    ):
        ledger.entries()


def test_a_role_that_may_not_make_tables_uses_those_that_are_there(place: Place) -> None:
    with admin(place) as connection:
        connection.execute("DROP ROLE IF EXISTS scoring")
        connection.execute("CREATE ROLE scoring LOGIN")
        assert place.address is not None
        ledger = open_at(place.address.replace("postgres@", "scoring@"), place.home)
        with pytest.raises(LedgerError, match="permission denied.* The role needs USAGE and CREATE on its schema"):
            ledger.entries()
        moved(place.open(), entry(1))
        connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO scoring")
        moved(ledger, entry(2))
        assert ledger.acquire("scheduler", "me", 30) is not None
        assert ledger.add_notice("churn", "a", "late", "It is late.", START)
        assert labels(place.open().entries()) == ["churn/02", "churn/01"]
        ledger.close()
        connection.execute("DROP OWNED BY scoring")
        connection.execute("DROP ROLE scoring")


def test_a_newer_format_is_refused(place: Place) -> None:
    moved(place.open(), entry())
    with admin(place) as connection:
        connection.execute("UPDATE sereno_ledger SET value = 2 WHERE name = 'format'")
    with pytest.raises(
        LedgerError, match=r"was made by a newer version of Sereno \(format 2; this one knows 1\)\."
    ) as error:
        place.open().entries()
    assert not error.value.damaged


def test_one_whose_tables_were_emptied(place: Place) -> None:
    moved(place.open(), entry())
    with admin(place) as connection:
        connection.execute("TRUNCATE sereno_ledger")
    with pytest.raises(LedgerError, match="is damaged: it does not say which format it has") as error:
        place.open().verify()
    assert error.value.damaged


def test_one_that_another_session_has_locked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = place.open()
    moved(ledger, entry(1))
    monkeypatch.setattr(postgresql, "_PATIENCE", "SET LOCAL lock_timeout = '200ms'; ")
    with admin(place) as connection, connection.transaction():
        connection.execute(postgresql._TURN)
        assert labels(ledger.entries()) == ["churn/01"]  # who reads does not wait
        with pytest.raises(
            LedgerError, match=r"is locked: another session has kept it for 5 seconds\. Try again"
        ) as error:
            ledger.move(entry(2))
        assert not error.value.damaged
    assert ledger.move(entry(2))


def test_a_session_that_sleeps_in_the_middle_does_not_keep_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = place.open()
    monkeypatch.setattr(postgresql, "_PATIENCE", postgresql._PATIENCE.replace("'10s'", "'300ms'"))
    may_go_on, begun = threading.Event(), threading.Event()

    def work(cursor: Any) -> None:
        cursor.rows("SELECT 1")
        begun.set()
        may_go_on.wait(20)
        cursor.rows("SELECT 1")

    said: list[LedgerError] = []

    def sleep() -> None:
        try:
            place.open()._database.write(work)  # type: ignore[attr-defined]
        except LedgerError as error:
            said.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    assert begun.wait(20)
    assert ledger.move(entry(2))
    may_go_on.set()
    thread.join()
    assert [error.damaged for error in said] == [False]


def test_a_lost_connection_is_made_again(place: Place) -> None:
    ledger = place.open()
    moved(ledger, entry(1))
    lease = ledger.acquire("scheduler", "me", 30)
    assert lease is not None
    for _ in range(2):
        end_sessions(place)
        assert labels(ledger.entries()) == ["churn/01"]
        end_sessions(place)
        assert ledger.renew(lease, 30)
    end_sessions(place)
    assert ledger.move(entry(2), expected=[None])


def test_tables_that_are_dropped_under_a_connection_are_made_again(place: Place) -> None:
    ledger = place.open()
    moved(ledger, entry(1))
    began = ledger.began()
    assert ledger.began() == began
    with admin(place) as connection:
        for name in ("ledger", "runs", "transitions", "leases", "pauses", "notices"):
            connection.execute(f"DROP TABLE sereno_{name}")
    assert ledger.entries() == []
    assert ledger.began() > began
    moved(ledger, entry(2))
    with admin(place) as connection:
        connection.execute("DROP TABLE sereno_pauses")
    with pytest.raises(LedgerError, match=r'cannot be used: relation "sereno_pauses" does not exist'):
        ledger.pauses()


def end_sessions(place: Place) -> None:
    with admin(place) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_what_was_done_as_the_connection_was_lost_is_not_done_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit went through, and its answer was lost."""
    ledger = place.open()
    moved(ledger, entry(1))
    once = postgresql.PostgresqlDatabase._once

    def lost_afterwards(self: Any, work: Any, kind: str, turn: str, *, again: bool) -> Any:
        done = once(self, work, kind, turn, again=again)
        if again:
            return done
        self._connection.close()
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(postgresql.PostgresqlDatabase, "_once", lost_afterwards)
    running = replace(entry(1), state="running", who="ana", not_before=START)
    assert ledger.move(running, expected=["due"])
    assert [t.after for t in ledger.transitions("churn", running.run_key)] == ["due", "running"]
    assert not ledger.move(replace(running, who="bob"), expected=["due"])
    pause = Pause(model="churn", since=START, who="ana", why="")
    assert ledger.pause(pause)
    assert not ledger.pause(replace(pause, who="bob"))
    first = ledger.acquire("scheduler", "me", 30)
    assert first is not None
    assert ledger.renew(first, 30)
    assert ledger.acquire("scheduler", "you", 30) is None


def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    with services.server() as server:
        place = Place(address=server.url, home=tmp_path)
        ledger = place.open()
        moved(ledger, entry(1))
        lease = ledger.acquire("run:churn:a", "me", 60)
        server.kill()
        for _ in range(2):
            with pytest.raises(
                LedgerError, match=r"cannot be reached: .*\. Check that the server runs and that"
            ) as error:
                ledger.entries()
            assert not error.value.damaged
        server.start()
        assert labels(ledger.entries()) == ["churn/01"]
        assert lease is not None
        assert ledger.renew(lease, 60)
        server.kill()
        server.start()
        assert ledger.move(entry(2), lease=lease)  # at the first call
        assert place.open().acquire("run:churn:a", "you", 60) is None
        place.close()


def test_a_password_is_never_told(tmp_path: Path) -> None:
    ledger = open_at("postgresql://me:hush@127.0.0.1:1/x?password=alsohush", tmp_path)
    with pytest.raises(LedgerError, match=r"^The ledger postgresql://me@127\.0\.0\.1:1/x cannot be reached: ") as error:
        ledger.entries()
    assert "hush" not in str(error.value)
    assert "hush" not in repr(ledger.__dict__)


def test_times_are_the_databases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    ledger = place.open()
    lease = ledger.acquire("scheduler", "me", 0.3)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert ledger.holder("scheduler") == lease
    eventually(lambda: ledger.holder("scheduler") is None)
