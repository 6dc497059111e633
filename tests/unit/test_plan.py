"""Plans: every row group, line and spooled row is in one task, and wrong columns are told before anything is scored."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno import Interval, Key, Model
from sereno.adapters.files import Piece, read_piece
from sereno.batch import plan as module
from sereno.batch.plan import Plan, make_plan
from sereno.batch.tasks import Task
from sereno.checks import check_table
from sereno.exceptions import InputError, PredictError, SettingsError, SourceError
from sereno.rows import JsonRows
from sereno.settings import Settings, Value


class Row(TypedDict):
    id: Key[int]
    x: float | None


class Daily(TypedDict):
    id: Key[int]
    day: date


class Out(TypedDict):
    y: float


INTERVAL = Interval(start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 2, tzinfo=UTC))


def planned(folder: Path, inputs: type = Row, *, workers: int = 2, **declared: Any) -> Plan:
    model = Model("m", inputs=inputs, outputs=Out, **{k: v for k, v in declared.items() if k != "read"})
    if "read" in declared:
        model.read(declared["read"])
    settings = Settings(home=folder, values={"warehouse": Value(value="data", base=folder)})
    chosen = settings.model(model.name, model.declared, folder)
    return make_plan(model, settings, chosen, INTERVAL, folder / "spool", workers)


def rows_of(plan: Plan, inputs: Any = Row) -> list[dict[str, Any]]:
    """What the tasks of a plan hold, as the workers see it."""
    model = Model("m", inputs=inputs, outputs=Out)
    rows: list[dict[str, Any]] = []
    for task in plan.tasks:
        for piece in task.pieces:
            for batch in read_piece(piece, model.inputs, 1000):
                if isinstance(batch, list):
                    rows += JsonRows(model.inputs).decode(batch).table.to_pylist()
                else:
                    rows += check_table(
                        model.inputs, batch, "text" if piece.kind == "text" else "typed"
                    ).table.to_pylist()
    return rows


WANTED = [{"id": 1, "x": 0.5}, {"id": 2, "x": None}, {"id": 3, "x": 2.0}]


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(WANTED), path, row_group_size=2)


def write_csv(path: Path) -> None:
    path.write_text("id,x\n1,0.5\n2,\n3,2\n")


def write_jsonl(path: Path) -> None:
    path.write_text('{"id": 1, "x": 0.5}\n{"id": 2, "x": null}\n{"x": 2, "id": 3.0}\n')


@pytest.mark.parametrize(("suffix", "write"), [("parquet", write_parquet), ("csv", write_csv), ("jsonl", write_jsonl)])
@pytest.mark.parametrize("source", ["{{warehouse}}/{{data_date}}.{0}", "{{warehouse}}/*.{0}", "data"])
def test_sources_of_files(tmp_path: Path, suffix: str, write: Callable[[Path], None], source: str) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / f"data/2026-05-01.{suffix}")
    plan = planned(tmp_path, source=source.format(suffix))
    assert rows_of(plan) == WANTED
    assert plan.known_before is (suffix != "csv")
    digest = plan.input_digest
    again = planned(tmp_path, source=source.format(suffix))
    list(again.tasks)
    assert again.input_digest == digest


@pytest.mark.parametrize(("suffix", "write"), [("parquet", write_parquet), ("csv", write_csv), ("jsonl", write_jsonl)])
def test_folders_that_are_columns(tmp_path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    for day in ("2026-05-01", "2026-05-02"):
        (tmp_path / f"data/day={day}").mkdir(parents=True)
        write(tmp_path / f"data/day={day}/a.{suffix}")
    rows = rows_of(planned(tmp_path, Daily, source="data"), Daily)
    assert rows == [{"id": i, "day": date(2026, 5, d)} for d in (1, 2) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.parquet", pa.table({"x": [1.0]}), InputError, "a.parquet: Column 'id' is missing"),
        (
            "a.parquet",
            pa.table({"id": ["1"], "x": [1.0]}),
            InputError,
            "a.parquet: Column 'id' is string here, but is declared int",
        ),
        (
            "a.parquet",
            pa.table({"id": pa.array([], pa.int64()), "x": pa.array([], pa.float64())}),
            SourceError,
            "holds no rows",
        ),
        ("a.parquet", b"PAR1", SourceError, "cannot be read as Parquet"),
        ("a.csv", b"x\n1\n", InputError, "a.csv: Column 'id' is missing"),
        ("a.csv", b"", SourceError, "is empty: a CSV file starts"),
        ("a.jsonl", b"", SourceError, "is empty. Nothing was published"),
        ("a.xlsx", b"", SourceError, "holds .xlsx; valid is one kind of"),
    ],
)
def test_sources_that_cannot_be_a_result(
    tmp_path: Path, name: str, content: Any, error: type[Exception], words: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(content, tmp_path / name)
    with pytest.raises(error) as caught:
        list(planned(tmp_path, source=name).tasks)
    assert words in str(caught.value)


def test_nothing_to_read_from(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"Model 'm' has nothing to read from. Write a function under `@model.read`"
    ):
        planned(tmp_path)
    with pytest.raises(SourceError, match="is missing"):
        planned(tmp_path, source="{data_date}.parquet")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{wherehouse}/a.csv",
            "asks for 'wherehouse', which nothing gives. Known are data_date, interval_end, interval_start, warehouse",
        ),
        ("{", "The source cannot be filled in: "),
        ("{0}", "Write {{ and }} for braces that are meant."),
        ("https://bank/a.parquet", "is no place for files"),
    ],
)
def test_paths_that_cannot_be_filled(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        planned(tmp_path, source=template)
    assert words in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 300_000), max_size=6), min_size=1, max_size=5), st.integers(1, 8))
def test_row_groups_are_each_in_one_task(files: list[list[int]], workers: int) -> None:
    units = [(Piece(kind="parquet", path=f"/{f}"), tuple(sizes)) for f, sizes in enumerate(files)]
    total = sum(map(sum, files))
    tasks = list(module._grouped(units, total, workers))
    assert [t.index for t in tasks] == list(range(len(tasks)))
    assert sum(t.rows or 0 for t in tasks) == total
    held = [(p.path, g) for t in tasks for p in t.pieces for g in p.row_groups or ()]
    wanted = [(f"/{f}", g, size) for f, sizes in enumerate(files) for g, size in enumerate(sizes)]
    assert held == [(path, group) for path, group, _ in wanted[: len(held)]]
    assert all(size == 0 for *_, size in wanted[len(held) :])
    assert all(len({p.path for p in t.pieces}) == len(t.pieces) for t in tasks)
    if total <= 2 * module.SMALLEST_TASK:
        assert len(tasks) <= 1
    largest = max((size for *_, size in wanted), default=0)
    assert all((t.rows or 0) <= max(module.LARGEST_TASK, largest) for t in tasks)


def test_many_files_are_read_some_at_a_time_and_planned_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FOOTERS", 3)
    for file in range(10):
        table = pa.table({"id": [2 * file, 2 * file + 1], "x": [0.5, 0.5]})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=1)
    plan = planned(tmp_path, source="*.parquet")
    assert plan.rows == 20
    assert [row["id"] for row in rows_of(plan)] == list(range(20))
    (tmp_path / "7.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"7\.parquet cannot be read as Parquet"):
        planned(tmp_path, source="*.parquet")


# A `read` function


def read_pandas(data_date: date, warehouse: str) -> pd.DataFrame:
    assert (data_date, warehouse) == (date(2026, 5, 1), "data")
    return pd.DataFrame({"id": [1, 2, 3], "x": [0.5, None, 2.0], "mixed": [1, "a", object()]})


def read_polars(interval: Interval) -> pl.DataFrame:
    assert interval is INTERVAL
    return pl.DataFrame(WANTED)


def read_lazily() -> pl.LazyFrame:
    return pl.LazyFrame(WANTED)


def read_rows() -> list[dict[str, Any]]:
    return WANTED


def read_in_parts() -> Iterator[Any]:
    yield pd.DataFrame({"id": [1], "x": [0.5]})
    yield pa.table({"id": [2], "x": pa.nulls(1)})
    yield pl.DataFrame({"x": [2], "id": [3]})


@pytest.mark.parametrize("read", [read_pandas, read_polars, read_lazily, read_rows, read_in_parts])
def test_what_read_may_return(tmp_path: Path, read: Any) -> None:
    assert rows_of(planned(tmp_path, read=read)) == WANTED


def read_none() -> None: ...
def read_text() -> pd.DataFrame:
    return pd.DataFrame({"id": ["a"], "x": [1.0]})


def read_less() -> Iterator[pd.DataFrame]:
    yield pd.DataFrame({"id": [1], "x": [1.0]})
    yield pd.DataFrame({"x": [1.0]})


def read_mixed() -> pd.DataFrame:
    return pd.DataFrame({"id": [1, "a"], "x": [1.0, 2.0]})


def read_late() -> pd.DataFrame:
    return pd.read_parquet("not/there.parquet")


def read_broken() -> pd.DataFrame:
    raise ZeroDivisionError("oh")


def read_unknown(house: str) -> None: ...


@pytest.mark.parametrize(
    ("read", "error", "words"),
    [
        (read_none, InputError, "read: Rows came as NoneType"),
        (read_text, InputError, "read: Column 'id' is large_string here, but is declared int"),
        (read_less, InputError, "read: Column 'id' is missing"),
        (read_mixed, InputError, "read: Column 'id' of the frame mixes types"),
        (
            read_late,
            SourceError,
            "read found no not/there.parquet. If the data arrives later, start the run again then",
        ),
        (read_broken, PredictError, "read raised ZeroDivisionError: oh"),
        (read_unknown, SettingsError, "nothing gives read_unknown its parameter 'house'"),
    ],
)
def test_what_read_may_do_wrong(tmp_path: Path, read: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        list(planned(tmp_path, read=read).tasks)
    assert f"test_plan.py:{read.__code__.co_firstlineno}: {words}" in str(caught.value)


def test_what_is_read_is_spooled_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPOOL_ROWS", 10)
    drawn = 0

    def read() -> Iterator[pa.Table]:
        nonlocal drawn
        for start in range(0, 45, 7):
            drawn += 1
            yield pa.table({"id": range(start, start + 7), "x": [0.5] * 7})

    plan = planned(tmp_path, read=read)
    assert drawn == 0
    first = next(plan.tasks)
    assert drawn == 2  # its tasks start before the input ends
    tasks: list[Task] = [first, *plan.tasks]
    assert all((t.rows or 0) <= 10 for t in tasks)
    assert [t.index for t in tasks] == list(range(len(tasks)))
    assert len(plan.inputs) == len(tasks)
    plan.tasks = iter(tasks)
    assert [r["id"] for r in rows_of(plan)] == list(range(49))


def test_broken_lines_come_with_their_task(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x\n1,0.5\n2,1,1\n")
    (task,) = planned(tmp_path, source="a.csv").tasks
    assert (task.rows, task.broken) == (1, (("2,1,1", "row 3: has 3 columns instead of 2"),))


def test_sqlite(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table t (id, x)")
        connection.executemany("insert into t values (?, ?)", [(1, 0.5), (2, None), (3, 2)])
    connection.close()
    plan = planned(
        tmp_path, source="select * from t where date({data_date}) = '2026-05-01' order by id", database="shop.db"
    )
    assert rows_of(plan) == WANTED
    with pytest.raises(InputError, match="The query's answer: Column 'id' is missing"):
        list(planned(tmp_path, source="select x from t", database="shop.db").tasks)
    with pytest.raises(SettingsError, match="no database is given"):
        planned(tmp_path, source="select 1")
    with pytest.raises(SettingsError, match="valid are postgresql://"):
        planned(tmp_path, source="select 1", database="mysql://host/db")
