"""Every snippet of docs/reading.md, run against a table that was published and rolled back."""

import contextlib
import importlib.util
import re
import shutil
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.batch.parts import delta_stats
from sereno.home import Home
from sereno.loader import file_digest
from sereno.settings import Settings
from sereno.snapshots import Part, Publication

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
SCORES = pa.table(
    {
        "customer_id": pa.array([1, 2, 3], pa.int64()),
        "probability_of_default": [0.05, 0.3, 0.9],
        "band": ["A", "C", "D"],
    }
)
OLDER = SCORES.slice(0, 2)
EVERYBODY = {"customer_id": [1, 2, 3], "band": ["A", "C", "D"]}


def snippets(library: str | None = None) -> list[str]:
    """The page's Python blocks; those that import a library."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [s for s in found if library is None or re.search(rf"^(import|from) {library}\b", s, re.MULTILINE)]


def publication(home: Home, attempt: str, table: pa.Table, rejects: pa.Table | None = None) -> Publication:
    part = home.store.folder / attempt / "part-00000-abc.parquet"
    part.parent.mkdir(parents=True)
    pq.write_table(table, part)
    rejects_file = ""
    if rejects is not None:
        rejects_file = f"_rejects/{attempt}.parquet"
        (home.store.folder / "_rejects").mkdir(exist_ok=True)
        pq.write_table(rejects, home.store.folder / rejects_file)
    day = date.fromisoformat(attempt[:10])
    return Publication(
        attempt=attempt,
        run_key=f"{day}T00:00Z",
        revision=attempt,
        data_date=day,
        data_time=datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1),
        fingerprint="f" * 64,
        rows=table.num_rows,
        rejects=0 if rejects is None else rejects.num_rows,
        disposition="replace",
        keys=("customer_id",),
        schema=table.schema,
        parts=(
            (
                Part(path=part, rows=table.num_rows, size=part.stat().st_size, sha256=file_digest(part)),
                delta_stats(part),
            ),
        ),
        rejects_file=rejects_file,
        rejects_sha256=file_digest(home.store.folder / rejects_file) if rejects_file else "",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A home where version 2 was rolled back and put in service again, and a part of a killed run lies about."""
    home = Home(Settings(home=tmp_path), "credit-scoring")
    home.store.publish(publication(home, "2026-05-01-aaaaaa", OLDER), force=False)
    rejects = pa.table({"run": ["2026-05-02-bbbbbb"], "row": [7], "key": ["4"], "reason": ["age: …"], "data": ["{}"]})
    home.store.publish(publication(home, "2026-05-02-bbbbbb", SCORES, rejects), force=False)
    home.store.rollback(to=1)
    home.store.rollback(to=2)
    unpublished = home.store.folder / "2026-05-03-cccccc" / "part-00000-def.parquet"
    unpublished.parent.mkdir()
    pq.write_table(SCORES, unpublished)
    home.follow()
    with contextlib.chdir(tmp_path):
        yield tmp_path


def run(snippet: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    return names


def test_every_snippet_has_a_test() -> None:
    known = {"sereno", "polars", "deltalake", "duckdb", "delta", "json", "pyarrow"}
    assert len(snippets()) == 9
    for snippet in snippets():
        assert re.search(rf"^(import|from) ({'|'.join(known)})\b", snippet, re.MULTILINE), snippet


def test_read_predictions(folder: Path) -> None:
    (snippet,) = snippets("sereno")
    names = run(snippet)
    assert names["scores"].equals(SCORES)
    assert names["before"].num_rows == OLDER.num_rows
    assert names["frame"]["band"].tolist() == ["A", "C", "D"]


def test_polars(folder: Path) -> None:
    delta, files = (run(snippet) for snippet in sorted(snippets("polars"), key=lambda s: "read_delta" not in s))
    for names in (delta, files):
        assert names["scores"].select("customer_id", "band").sort("customer_id").to_dict(as_series=False) == EVERYBODY
    assert delta["risky"]["customer_id"].to_list() == [3]


def test_pandas_and_arrow(folder: Path) -> None:
    (snippet,) = [s for s in snippets("deltalake") if "to_pandas" in s]
    names = run(snippet)
    assert names["scores"].to_dict("list") == EVERYBODY
    assert names["arrow"].sort_by("customer_id").to_pydict() == SCORES.to_pydict()


def test_duckdb(folder: Path) -> None:
    delta, files = (run(snippet) for snippet in snippets("duckdb"))
    assert delta["bands"] == files["bands"] == [("A", 1), ("C", 1), ("D", 1)]


def test_which_snapshot_it_is(folder: Path) -> None:
    (snippet,) = [s for s in snippets("deltalake") if "sereno.serves" in s]
    names = run(snippet)
    assert (names["served"], names["data_date"]) == ("2", "2026-05-02")  # after a rollback
    home = Home(Settings(home=folder), "credit-scoring")
    home.store.publish(publication(home, "2026-05-04-dddddd", SCORES), force=False)
    names = run(snippet)
    assert (names["served"], names["data_date"]) == ("3", "2026-05-04")  # after a publication


def test_files_without_sereno(folder: Path) -> None:
    (snippet,) = snippets("json")
    names = run(snippet)
    assert names["scores"].select(["customer_id", "band"]).to_pydict() == EVERYBODY
    assert names["manifest"]["version"] == 2
    assert names["is_last_nights"] is False


def test_rejects(folder: Path) -> None:
    (snippet,) = [s for s in snippets("deltalake") if "rejects_file" in s]
    assert run(snippet)["rejects"].column("key").to_pylist() == ["4"]


def test_a_pattern_over_the_tables_folder_reads_too_much(folder: Path) -> None:
    """What the page warns of."""
    files = [p for p in (folder / "predictions" / "credit-scoring").rglob("*.parquet") if p.parent.name != "_rejects"]
    assert sum(pq.read_metadata(p).num_rows for p in files) > SCORES.num_rows


def test_spark(folder: Path) -> None:
    missing = [name for name in ("pyspark", "delta") if importlib.util.find_spec(name) is None]
    if shutil.which("java") is None:
        missing.append("java")
    if missing:
        pytest.skip(f"the Spark example of docs/reading.md was not run: {', '.join(missing)} not installed")
    (snippet,) = snippets("delta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = run(snippet)
        try:
            rows = names["scores"].select("customer_id", "band").orderBy("customer_id").collect()
            assert [tuple(r) for r in rows] == list(zip(*EVERYBODY.values(), strict=True))
        finally:
            names["spark"].stop()
