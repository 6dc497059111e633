"""The same rows from every kind of source: the published predictions are the same, and so are the rejects."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from sereno import read_predictions
from sereno.adapters.executors.local import LocalExecutor
from sereno.batch.attempts import Report
from sereno.batch.run import run
from sereno.config import load_settings
from sereno.exceptions import InputError, SettingsError, SourceError
from sereno.loader import load_model
from sereno.places import ObjectPath
from sereno.scoring import open_scorer

NOW = datetime(2026, 5, 2, 1, tzinfo=UTC)  # so that the last interval is 2026-05-01
ROWS: list[dict[str, Any]] = [
    {
        "id": i,
        "day": date(2026, 4, 1 + i % 28),
        "amount": None if i == 7 else i * 1.5,  # a null where none may be: a reject
        "kind": "other" if i == 11 else "ab"[i % 2],  # an unknown code: a reject
        "visits": None if i % 3 else i,
        "active": i % 2 == 0,
        "seen": datetime(2026, 4, 30, 12, i % 60, tzinfo=UTC),
    }
    for i in range(100)
]
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("day", pa.date32()),
        ("amount", pa.float64()),
        ("kind", pa.string()),
        ("visits", pa.int64()),
        ("active", pa.bool_()),
        ("seen", pa.timestamp("us", "UTC")),
    ]
)
REJECTED = {"7": "amount: is missing (null)", "11": "kind: must be one of a, b"}

MODEL = """
from datetime import date, datetime
from typing import Literal, TypedDict
import pyarrow, pyarrow.parquet
from sereno import Key, Model

class Visit(TypedDict):
    id: Key[int]
    day: Key[date]
    amount: float
    kind: Literal["a", "b"]
    visits: int | None
    active: bool
    seen: datetime

class Score(TypedDict):
    score: float
    note: str | None

model = Model("visits", inputs=Visit, outputs=Score{arguments})

@model.load
def load():
    return None

@model.predict
def predict(loaded, rows: list[Visit]) -> list[Score]:
    return [
        {{"score": r["amount"] + (r["visits"] or 0) + r["active"] + r["seen"].minute / 100, "note": r["kind"]}}
        for r in rows
    ]
"""
READ = """
@model.read
def read(data_date: date, folder: str):
    table = pyarrow.parquet.read_table(f"{folder}/{data_date}.parquet")
    RETURN
"""

Prepare = Callable[[Path], dict[str, Any]]


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS, schema=SCHEMA)


def text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date) else str(value)


def parquet_file(folder: Path) -> dict[str, Any]:
    pq.write_table(table(), folder / "visits-2026-05-01.parquet", row_group_size=30)
    return {"source": "visits-{data_date}.parquet"}


def parquet_folder_of_other_types(folder: Path) -> dict[str, Any]:
    """Narrow and dictionary types, columns in another order and one too many, hidden files beside."""
    narrow = table().set_column(0, "id", table()["id"].cast(pa.int32()))
    narrow = narrow.set_column(3, "kind", narrow["kind"].dictionary_encode()).append_column("more", table()["id"])
    (folder / "in").mkdir()
    pq.write_table(narrow.slice(0, 40), folder / "in" / "1.parquet")
    pq.write_table(
        table().select(["seen", "active", "visits", "kind", "amount", "day", "id"]).slice(40),
        folder / "in" / "2.parquet",
    )
    (folder / "in" / "_SUCCESS").touch()
    return {"source": "in"}


def hive_folders(folder: Path) -> dict[str, Any]:
    for kind in ("a", "b", "other"):
        (folder / "in" / f"kind={kind}").mkdir(parents=True)
        some = table().filter(pa.compute.equal(table()["kind"], kind)).drop_columns(["kind"])
        pq.write_table(some, folder / "in" / f"kind={kind}" / "x.parquet")
    return {"source": "in/**/*.parquet"}


def delta_table(folder: Path) -> dict[str, Any]:
    write_deltalake(folder / "in", table().slice(0, 60))
    write_deltalake(folder / "in", table().slice(60), mode="append")
    return {"source": "{folder}/in"}


def csv_file(folder: Path) -> dict[str, Any]:
    with (folder / "in.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(SCHEMA.names)
        writer.writerows([text(v) for v in row.values()] for row in ROWS)
    return {"source": "in.csv"}


def csv_packed(folder: Path) -> dict[str, Any]:
    csv_file(folder)
    with gzip.open(folder / "in.csv.gz", "wb") as stream:
        stream.write((folder / "in.csv").read_bytes())
    (folder / "in.csv").unlink()
    return {"source": "in.csv.gz"}


def json_lines(folder: Path) -> dict[str, Any]:
    lines = [json.dumps({k: text(v) if isinstance(v, date) else v for k, v in row.items()}) for row in ROWS]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"source": "in.jsonl"}


def sqlite(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(folder / "in.sqlite") as connection:
        connection.execute("create table visits (id, day, amount, kind, visits, active, seen, arrived)")
        rows = [[v if k == "active" else text(v) if isinstance(v, date) else v for k, v in row.items()] for row in ROWS]
        connection.executemany("insert into visits values (?, ?, ?, ?, ?, ?, ?, '2026-05-01')", rows)
        connection.execute("insert into visits (id, arrived) values (1, '2026-05-02')")
    connection.close()
    query = "select id, day, amount, kind, visits, active, seen from visits where arrived = {data_date}"
    return {"source": query, "database": "in.sqlite"}


def postgresql(folder: Path, url: str) -> dict[str, Any]:
    with psycopg.connect(url) as connection:
        connection.execute(
            "create table visits (id bigint, day date, amount float8, kind text, visits int, active bool, seen timestamptz, arrived date)"
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into visits values (%s, %s, %s, %s, %s, %s, %s, '2026-05-01')", [list(r.values()) for r in ROWS]
            )
        connection.execute("insert into visits (id, arrived) values (1, '2026-05-02')")
    query = "select id, day, amount, kind, visits, active, seen from visits where arrived = {data_date} order by id"
    return {"source": query, "database": url}


def read_returns(folder: Path) -> dict[str, Any]:
    pq.write_table(table(), folder / "2026-05-01.parquet")
    return {"read": READ.replace("RETURN", "return table.to_pandas()")}


def read_yields(folder: Path) -> dict[str, Any]:
    pq.write_table(table(), folder / "2026-05-01.parquet")
    return {"read": READ.replace("RETURN", "yield from (table.slice(i, 17) for i in range(0, 100, 17))")}


def read_polars(folder: Path) -> dict[str, Any]:
    pq.write_table(table(), folder / "2026-05-01.parquet")
    return {"read": READ.replace("RETURN", "import polars; return polars.from_arrow(table)")}


SOURCES: list[Prepare] = [
    parquet_file,
    parquet_folder_of_other_types,
    hive_folders,
    delta_table,
    csv_file,
    csv_packed,
    json_lines,
    sqlite,
    read_returns,
    read_yields,
    read_polars,
]


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    """Model files of tests share a name."""
    yield
    sys.modules.pop("visits", None)
    sys.path[:] = [p for p in sys.path if "pytest-" not in p]


def publish(folder: Path, declared: dict[str, Any], **settings: str) -> Report:
    read = declared.pop("read", "")
    arguments = "".join(f", {k}={v!r}" for k, v in declared.items())
    file = folder / "visits.py"
    file.write_text(MODEL.format(arguments=arguments) + read, encoding="utf-8")
    overrides = {"values.folder": str(folder), "workers": "1"} | {k: str(v) for k, v in settings.items()}
    model, chosen = load_model(file), load_settings(file, overrides=overrides)
    return run(model, chosen, LocalExecutor(1, lambda: open_scorer(model, chosen)), now=NOW)


def check_published(report: Report, home: Path) -> None:
    assert (report.state, report.rows_in, report.predictions, report.rejects) == ("published", 100, 98, 2)
    published = read_predictions("visits", home=home).sort_by("id")
    expected = [r for r in ROWS if str(r["id"]) not in REJECTED]
    assert published.column("id").to_pylist() == [r["id"] for r in expected]
    assert published.column("day").to_pylist() == [r["day"] for r in expected]
    score = [r["amount"] + (r["visits"] or 0) + r["active"] + r["seen"].minute / 100 for r in expected]
    assert published.column("score").to_pylist() == pytest.approx(score, rel=1e-12)
    rejects = pq.read_table(home / "predictions" / "visits" / report.rejects_file).to_pylist()
    found = {json.loads(r["key"])[0]: r["reason"] for r in rejects}
    assert {str(k): v for k, v in found.items()} == REJECTED
    assert {r["run"] for r in rejects} == {report.attempt}


@pytest.mark.parametrize("prepare", SOURCES, ids=lambda f: f.__name__)
def test_every_source_publishes_the_same(tmp_path: Path, prepare: Prepare) -> None:
    check_published(publish(tmp_path, prepare(tmp_path)), tmp_path)


IN_FILES = [parquet_file, parquet_folder_of_other_types, hive_folders, delta_table, csv_file, csv_packed, json_lines]


@pytest.mark.parametrize("prepare", IN_FILES, ids=lambda f: f.__name__)
def test_the_same_files_in_an_object_store(tmp_path: Path, storage: ObjectPath, prepare: Prepare) -> None:
    (tmp_path / "bank").mkdir()
    source = str(prepare(tmp_path / "bank")["source"]).removeprefix("{folder}/")
    for file in (tmp_path / "bank").rglob("*"):
        if file.is_file():
            (storage / file.relative_to(tmp_path / "bank").as_posix()).upload(file)
    report = publish(tmp_path, {"source": f"{storage}/{source}"})
    check_published(report, tmp_path)
    again = publish(tmp_path, {"source": f"{storage}/{source}"})
    assert again.revision == report.revision


def test_postgresql_publishes_the_same(tmp_path: Path, postgresql_url: str) -> None:
    check_published(publish(tmp_path, postgresql(tmp_path, postgresql_url)), tmp_path)


def test_a_query_without_a_database_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a SQL query, but no database is given"):
        publish(tmp_path, {"source": "select 1 as id"})


def test_a_query_that_lacks_a_column_fails_before_anything_is_scored(tmp_path: Path, postgresql_url: str) -> None:
    declared = postgresql(tmp_path, postgresql_url)
    declared["source"] = "select id, day, amount, kind, visits, active from visits"
    with pytest.raises(InputError, match="Column 'seen' is missing"):
        publish(tmp_path, declared)


def test_an_unreachable_database_is_told_without_its_password(tmp_path: Path) -> None:
    declared = {"source": "select 1", "database": "postgresql://me:hunter2@127.0.0.1:9/none"}
    with pytest.raises(SourceError) as told:
        publish(tmp_path, declared)
    assert "hunter2" not in str(told.value)


def test_a_query_without_rows_is_an_empty_source(tmp_path: Path) -> None:
    declared = sqlite(tmp_path)
    declared["source"] += " and id < 0"
    with pytest.raises(SourceError, match="gave no rows"):
        publish(tmp_path, declared)


def test_one_row_more_in_the_database_is_another_revision(tmp_path: Path) -> None:
    declared = sqlite(tmp_path)
    first = publish(tmp_path, dict(declared))
    sys.modules.pop("visits")
    with sqlite3.connect(tmp_path / "in.sqlite") as connection:
        connection.execute("update visits set amount = 1000 where id = 1 and arrived = '2026-05-01'")
    connection.close()
    second = publish(tmp_path, dict(declared))
    assert (first.version, second.version) == (1, 2)
    assert first.revision != second.revision


def test_a_source_in_the_settings_replaces_read(tmp_path: Path) -> None:
    declared = read_returns(tmp_path) | {}
    json_lines(tmp_path)
    (tmp_path / "2026-05-01.parquet").unlink()
    report = publish(tmp_path, declared, **{"models.visits.source": str(tmp_path / "in.jsonl")})
    check_published(report, tmp_path)
