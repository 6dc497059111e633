"""Queries against a real PostgreSQL and a real SQLite."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import psycopg
import pyarrow as pa
import pytest

from sereno.adapters.sql import bind, read_postgresql, read_sqlite
from sereno.exceptions import InputError, SettingsError, SourceError

DAY = date(2026, 5, 1)
MOMENT = datetime(2026, 5, 1, 23, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("query", "style", "bound", "parameters"),
    [
        ("select * from t where d = {data_date}", "$", "select * from t where d = $1", [DAY]),
        ("{a} {data_date} {a}", "$", "$1 $2 $1", ["x", DAY]),
        ("{a} {data_date} {a}", "?", "? ? ?", ["x", DAY, "x"]),
        ("select '{{1,2}}'::int[], j->'{{}}'", "$", "select '{1,2}'::int[], j->'{}'", []),
        ("select {{}} -- {not} a 'name\n, {a}", "$", "select {} -- {not} a 'name\n, $1", ["x"]),
        ("/* {not} */ 'it''s' {a}", "?", "/* {not} */ 'it''s' ?", ["x"]),
    ],
)
def test_names_become_parameters(query: str, style: Literal["$", "?"], bound: str, parameters: list[object]) -> None:
    assert bind(query, {"data_date": DAY, "a": "x"}, style) == (bound, parameters)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select {b}\nfrom t", "names {b}, which no setting gives: select {b}. Known are a, data_date."),
        (
            "select '{a}'",
            "{a} is inside quotes in the query: select '{a}'. Write it without them, {a}: values are bound",
        ),
        ("select }", "A lone } in the query: select }. A brace is written {{ or }}."),
        ("select {1,2}", "names {1,2}, which no setting gives"),
    ],
)
def test_names_that_cannot_be_bound(query: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        bind(query, {"data_date": DAY, "a": "x"}, "$")
    assert told in str(caught.value)


@pytest.mark.service
class TestPostgresql:
    def read(self, url: str, query: str, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        batches = read_postgresql(url, *bind(query, values or {}, "$"))
        return [row for batch in batches for row in batch.to_pylist()]

    def test_columns_and_types(self, postgresql_url: str) -> None:
        (row,) = self.read(
            postgresql_url,
            "SELECT 1 AS i, 2.5::float8 AS f, true AS b, 'ñ' AS s, NULL::int AS n, date '2026-05-01' AS d, "
            "timestamptz '2026-05-01 22:00Z' AS t, array['a', NULL] AS l, 1.5::numeric::float8 AS m",
        )
        moment = datetime(2026, 5, 1, 22, tzinfo=UTC)
        scalars = {"i": 1, "f": 2.5, "b": True, "s": "ñ", "n": None, "d": DAY, "t": moment, "m": 1.5}
        assert row == {**scalars, "l": ["a", None]}

    @pytest.mark.parametrize(
        "value",
        [
            DAY,
            MOMENT,
            MOMENT.replace(tzinfo=None),
            "x'; DROP TABLE t; --",
            "",
            "=",
            2**62,
            -1.5,
            True,
            None,
            Decimal("1.50"),
        ],
    )
    def test_any_value_is_bound_as_what_it_is(self, postgresql_url: str, value: object) -> None:
        (row,) = self.read(
            postgresql_url, "SELECT ({v})::text AS v, pg_typeof({v})::text AS t, {v} IS NULL AS n", {"v": value}
        )
        kinds = {
            date: "date",
            str: "text",
            int: "bigint",
            float: "double precision",
            bool: "boolean",
            Decimal: "numeric",
        }
        zoned = "timestamp with time zone" if value == MOMENT else "timestamp without time zone"
        assert row["t"] == {**kinds, datetime: zoned, type(None): "text"}[type(value)]
        assert row["n"] is (value is None)
        if type(value) in (str, date, Decimal, int):
            assert row["v"] == str(value)
        if value == MOMENT:
            assert datetime.fromisoformat(row["v"]) == MOMENT

    def test_a_parameter_filters_and_the_answer_is_streamed(self, postgresql_url: str) -> None:
        with psycopg.connect(postgresql_url) as connection:
            connection.execute(
                "CREATE TABLE applicants AS SELECT g AS id, date '2026-05-01' + g % 2 AS day, repeat('x', 100) AS pad "
                "FROM generate_series(1, 1000000) g"
            )
        batches = read_postgresql(postgresql_url, *bind("SELECT * FROM applicants WHERE day = {d}", {"d": DAY}, "$"))
        sizes = []
        before = pa.total_allocated_bytes()
        most = 0
        for batch in batches:
            sizes.append(batch.num_rows)
            most = max(most, pa.total_allocated_bytes() - before)
        assert sum(sizes) == 500_000
        assert len(sizes) > 2
        assert most < 50_000_000  # of 60 MB of answer, and no more for a longer one

    @pytest.mark.parametrize(
        ("column", "told"),
        [
            (
                "1.5::numeric",
                "'amount' of the query has the type numeric, .* cast it in SQL, e.g. amount::float8 AS amount",
            ),
            ("'{}'::jsonb", "the type jsonb, .* amount::text"),
            ("gen_random_uuid()", "the type uuid, .* amount::text"),
            ("'\\x00'::bytea", "the type bytea"),
            ("1.99::money", "the type money, .* amount::numeric::float8"),
        ],
    )
    def test_a_type_that_is_no_column_is_named(self, postgresql_url: str, column: str, told: str) -> None:
        with pytest.raises(InputError, match=told):
            list(read_postgresql(postgresql_url, f"SELECT 1 AS id, {column} AS amount"))

    def test_a_reader_may_stop_early(self, postgresql_url: str) -> None:
        batches = read_postgresql(postgresql_url, "SELECT repeat('x', 100) AS pad FROM generate_series(1, 500000) g")
        assert next(batches).num_rows
        del batches
        gc.collect()
        with psycopg.connect(postgresql_url) as connection:
            others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            assert connection.execute(others).fetchone() == (1,)

    def test_a_name_twice(self, postgresql_url: str) -> None:
        with pytest.raises(InputError, match="Two columns of the query have the name 'id'"):
            list(read_postgresql(postgresql_url, "SELECT 1 AS id, 2 AS id"))

    @pytest.mark.parametrize(
        ("query", "told"),
        [
            ("SELECT nothing\nFROM pg_class", 'column "nothing" does not exist. It begins: SELECT nothing. Try it'),
            ("DELETE FROM precious RETURNING id", "cannot execute DELETE in a read-only transaction"),
            ("SELECT 1 / (id - 2) AS x FROM precious", "division by zero"),
        ],
    )
    def test_what_the_database_says_is_told(self, postgresql_url: str, query: str, told: str) -> None:
        with psycopg.connect(postgresql_url) as connection:
            connection.execute("CREATE TABLE precious AS SELECT g AS id FROM generate_series(1, 3) g")
        with pytest.raises(SourceError) as caught:
            list(read_postgresql(postgresql_url, query))
        assert told in str(caught.value)

    def test_no_message_tells_the_password(self) -> None:
        with pytest.raises(SourceError) as caught:
            list(read_postgresql("postgresql://bank:sekret@127.0.0.1:1/offers", "SELECT 1"))
        assert "postgresql://bank@127.0.0.1:1/offers refused the query: Failed to connect" in str(caught.value)
        assert "sekret" not in f"{caught.value}{caught.value.__cause__}"


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "a ? database#1.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (id INTEGER, amount REAL, member INTEGER, day TEXT, photo BLOB)")
            connection.executemany(
                "INSERT INTO t VALUES (?, ?, ?, ?, ?)",
                [(1, 0.5, 1, "2026-05-01", None), (2, None, 0, "2026-05-02", None), (3, 1.0, None, "2026-05-01", b"x")],
            )
        connection.close()
        return path

    def test_rows_and_booleans(self, path: Path) -> None:
        query, parameters = bind("SELECT id, amount, member FROM t WHERE day = {data_date}", {"data_date": DAY}, "?")
        (rows,) = read_sqlite(path, query, parameters, frozenset({"member"}))
        assert rows == [{"id": 1, "amount": 0.5, "member": True}, {"id": 3, "amount": 1.0, "member": None}]
        assert [type(row["member"]) for row in rows] == [bool, type(None)]

    def test_moments_are_bound_as_sqlite_writes_them(self, path: Path) -> None:
        query, parameters = bind("SELECT datetime({m}) = {m} AS same, {m} AS m", {"m": MOMENT}, "?")
        assert list(read_sqlite(path, query, parameters)) == [[{"same": 1, "m": "2026-05-01 21:30:00"}]]

    def test_batches(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sereno.adapters.sql.BATCH_ROWS", 2)
        assert [len(rows) for rows in read_sqlite(path, "SELECT id FROM t")] == [2, 1]

    def test_a_blob_is_named(self, path: Path) -> None:
        with pytest.raises(InputError, match=r"'photo' of the query holds a BLOB.*CAST\(photo AS TEXT\)"):
            list(read_sqlite(path, "SELECT * FROM t"))

    @pytest.mark.parametrize(
        ("query", "told"),
        [
            ("SELECT absent\nFROM t", "refused the query: no such column: absent. It begins: SELECT absent."),
            ("DELETE FROM t", "attempt to write a readonly database"),
            ("SELECT 1; SELECT 2", "You can only execute one statement at a time"),
        ],
    )
    def test_what_the_database_says_is_told(self, path: Path, query: str, told: str) -> None:
        with pytest.raises(SourceError) as caught:
            list(read_sqlite(path, query))
        assert told in str(caught.value)

    def test_no_database_and_no_names(self, path: Path) -> None:
        with pytest.raises(SourceError, match="There is no SQLite database"):
            list(read_sqlite(path.with_name("other"), "SELECT 1"))
        with pytest.raises(InputError, match="have the name 'id'"):
            list(read_sqlite(path, "SELECT id, id FROM t"))
        path.write_bytes(b"not a database" * 100)
        with pytest.raises(SourceError, match="file is not a database"):
            list(read_sqlite(path, "SELECT 1 FROM t"))
