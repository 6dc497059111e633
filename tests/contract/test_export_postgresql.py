"""What the PostgreSQL export promises beyond `interfaces.Export`."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from sereno.adapters import exports, rendering
from sereno.adapters.postgresql import view
from sereno.exceptions import ExportError, MissingExtraError, SettingsError
from tests.contract.export_targets import MODEL, NONE, Maker, PostgresqlTarget, assert_shows, one_snapshot

pytestmark = pytest.mark.service


def test_changed_columns_wait_for_readers_and_then_say_whom(
    postgresql_target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "WAIT_SECONDS", 0.5)
    postgresql_target.export.follow([maker.snapshot(1)], NONE)
    other = maker.snapshot(2, tables=[pa.table({"customer_id": ["a"], "score": [2.5]})])
    with psycopg.connect(postgresql_target.url) as reader:
        one_snapshot(reader)
        with pytest.raises(ExportError, match=rf"did not end for 0 seconds \(process {reader.info.backend_pid}\)"):
            postgresql_target.export.follow([other], NONE)
        assert one_snapshot(reader) == 1
    postgresql_target.export.follow([other], NONE)
    assert postgresql_target.read()[0] == {2}


def test_grants_stay_when_the_view_is_made_anew(postgresql_target: PostgresqlTarget, maker: Maker) -> None:
    postgresql_target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(postgresql_target.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS marketing")
        admin.execute("CREATE ROLE marketing LOGIN")
        admin.execute("GRANT SELECT ON credit_scoring TO marketing")
        postgresql_target.export.follow(
            [maker.snapshot(2, tables=[pa.table({"customer_id": [1], "limit": [2]})])], NONE
        )
        with psycopg.connect(postgresql_target.url.replace("postgres@", "marketing@")) as reader:
            assert reader.execute('SELECT customer_id, "limit" FROM credit_scoring').fetchall() == [(1, 2)]
        admin.execute("REVOKE ALL ON credit_scoring FROM marketing")
        admin.execute("DROP ROLE marketing")


def test_a_view_built_on_ours_is_named_and_left_alone(postgresql_target: PostgresqlTarget, maker: Maker) -> None:
    postgresql_target.export.follow([maker.snapshot(1)], NONE)
    with psycopg.connect(postgresql_target.url, autocommit=True) as admin:
        admin.execute("CREATE VIEW offers AS SELECT customer_id FROM credit_scoring WHERE band = 'A'")
        longer = [pa.table({"customer_id": [1], "score": [2.5], "band": ["A"], "limit": [5]})]
        postgresql_target.export.follow([maker.snapshot(2, tables=longer)], NONE)  # one more at the end is no harm
        with pytest.raises(ExportError, match=r"view offers depends on view credit_scoring\. Drop those, run again"):
            postgresql_target.export.follow([maker.snapshot(3, tables=[pa.table({"customer_id": [1]})])], NONE)
        assert admin.execute("SELECT * FROM offers").fetchall() == [(1,)]


def test_what_others_made_is_left_alone(postgresql_target: PostgresqlTarget, maker: Maker) -> None:
    with psycopg.connect(postgresql_target.url, autocommit=True) as admin:
        admin.execute("CREATE TABLE credit_scoring (precious int)")
        with pytest.raises(
            ExportError, match=r"public.credit_scoring exists .* not an export of model 'credit-scoring'"
        ):
            postgresql_target.export.follow([maker.snapshot(1)], NONE)
        admin.execute("CREATE SCHEMA scores")
    other = exports.make_export(f"{postgresql_target.url}&schema=scores", home=Path("unused"), model=MODEL)
    assert other.follow([maker.snapshot(1)], NONE)


def test_exporters_take_turns(postgresql_target: PostgresqlTarget, maker: Maker) -> None:
    snapshot = maker.snapshot(1)
    answers: list[object] = []

    def follow() -> None:
        try:
            answers.append(postgresql_target.export.follow([snapshot], NONE))
        except BaseException as failure:  # noqa: BLE001 - told by the test
            answers.append(failure)

    threads = [threading.Thread(target=follow) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, answers)) == ["False"] * 5 + ["True"]
    assert_shows(postgresql_target, 1)


def test_a_connection_lost_in_the_middle(
    postgresql_target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgresql_target.export.follow([maker.snapshot(1)], NONE)

    def lose(path: Path) -> Iterator[pa.RecordBatch]:
        with psycopg.connect(postgresql_target.url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sereno export%'"
            )
        yield from batches(path)

    batches = rendering.read_batches
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "read_batches", lose)
        with pytest.raises(ExportError, match="terminating connection due to administrator command"):
            postgresql_target.export.follow([maker.snapshot(2)], NONE)
    assert_shows(postgresql_target, 1)
    postgresql_target.export.follow([maker.snapshot(2)], NONE)
    assert_shows(postgresql_target, 2)


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
    postgresql_target: PostgresqlTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(setting: str) -> Any:
        return exports.make_export(setting, home=Path("unused"), model=MODEL)

    with pytest.raises(ExportError, match="no schema 'nowhere'. Create it"):
        make(f"{postgresql_target.url}&schema=nowhere").follow([maker.snapshot(1)], NONE)
    with psycopg.connect(postgresql_target.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS stranger")
        admin.execute("CREATE ROLE stranger LOGIN")
        with pytest.raises(ExportError, match=r"permission denied for schema public\. The role needs USAGE and CREATE"):
            make(postgresql_target.url.replace("postgres@", "stranger@")).follow([maker.snapshot(1)], NONE)
        admin.execute("DROP ROLE stranger")
    with pytest.raises(SettingsError, match="`schema` of a PostgreSQL address is empty"):
        make(f"{postgresql_target.url}&schema=")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sereno.adapters.postgresql.address.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sereno\[postgresql\]'"):
        make(postgresql_target.url)
