"""How the tests of the exports make snapshots, and read each export as another system would."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from sereno.adapters import export_folder, export_objects, exports
from sereno.interfaces import Export
from sereno.places import ObjectPath, Place
from sereno.snapshots import Part, Snapshot

MODEL = "credit-scoring"
ROWS = 300
NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes snapshots with real parts; every row says which snapshot it belongs to."""

    folder: Path

    def snapshot(
        self,
        number: int,
        *,
        day: int = 1,
        disposition: str = "replace",
        tables: Sequence[pa.Table] | None = None,
        attempt: str | None = None,
    ) -> Snapshot:
        attempt = attempt or f"2026-05-{day:02}-{number:06x}"
        tables = tables or [scores(number, range(ROWS // 2)), scores(number, range(ROWS // 2, ROWS))]
        data_date = date(2026, 5, 1) + timedelta(days=day - 1)
        return Snapshot(
            model=MODEL,
            number=number,
            attempt=attempt,
            run_key=f"{MODEL}@{data_date}",
            revision="r",
            data_date=data_date,
            data_time=datetime(2026, 5, 1, 22, tzinfo=UTC) + timedelta(days=day - 1),
            published_at=datetime(2026, 5, 2, tzinfo=UTC) + timedelta(minutes=number),
            fingerprint="f",
            rows=sum(table.num_rows for table in tables),
            rejects=2,
            disposition=disposition,
            keys=("customer_id",),
            parts=tuple(self._part(attempt, index, table) for index, table in enumerate(tables)),
        )

    def _part(self, attempt: str, index: int, table: pa.Table) -> Part:
        path = self.folder / attempt / f"part-{index:05}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        content = path.read_bytes()
        return Part(path=path, rows=table.num_rows, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def scores(number: int, keys: range) -> pa.Table:
    return pa.table({"customer_id": list(keys), "score": [number + 0.25] * len(keys), "band": ["A"] * len(keys)})


class Target(Protocol):
    export: Export
    module: Any  # where the adapter looks up what the tests make fail
    accumulates: bool  # all served snapshots at once, or the newest only

    def read(self) -> tuple[set[int], list[dict[str, Any]]]:
        """The numbers of the snapshots that a reader sees, and their rows."""
        ...

    def held(self) -> set[int]:
        """The snapshots that take space."""
        ...


class FolderTarget:
    accumulates = False
    module: Any = export_folder

    def __init__(self, home: Path, kind: str) -> None:
        self.export: Export = exports.make_export(kind, home=home, model=MODEL)
        self.root = home / "exports" / MODEL / kind
        self.format = kind

    def read(self) -> tuple[set[int], list[dict[str, Any]]]:
        folder = (self.root / "latest").resolve(strict=True)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        assert folder.name == f"{manifest['version']:06}"
        return {manifest["version"]}, rows_of(manifest, folder, self.format)

    def held(self) -> set[int]:
        return {int(path.name) for path in self.root.iterdir() if path.name.isdecimal()}


def rows_of(manifest: dict[str, Any], folder: Place, kind: str) -> list[dict[str, Any]]:
    """What the files hold that a manifest names, which are as it says."""
    rows: list[dict[str, Any]] = []
    for file in manifest["files"]:
        content = (folder / file["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert len(content) == file["bytes"]
        part = _parse(content, manifest["columns"], kind)
        assert len(part) == file["rows"]
        rows += part
    assert len(rows) == manifest["rows"]
    return rows


def _parse(content: bytes, columns: Sequence[Mapping[str, str]], kind: str) -> list[dict[str, Any]]:
    if kind == "parquet":
        return list(pq.read_table(io.BytesIO(content)).to_pylist())
    if kind == "jsonl":
        return [json.loads(line) for line in content.splitlines()]
    texts = {column["name"]: pa.string() for column in columns}
    options = pcsv.ConvertOptions(
        column_types=texts, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
    )
    parse = pcsv.ParseOptions(newlines_in_values=True)
    return list(pcsv.read_csv(io.BytesIO(content), convert_options=options, parse_options=parse).to_pylist())


class ObjectTarget:
    accumulates = False
    module: Any = export_objects

    def __init__(self, home: Path, kind: str, storage: ObjectPath) -> None:
        self.export: Export = exports.make_export(kind, home=home, model=MODEL, storage=storage)
        self.root = storage / "exports" / MODEL / kind
        self.format = kind

    def read(self) -> tuple[set[int], list[dict[str, Any]]]:
        latest = json.loads((self.root / "latest.json").read_bytes())
        folder = self.root / latest["folder"]
        manifest = json.loads((self.root / latest["manifest"]).read_bytes())
        assert manifest["version"] == latest["version"]
        return {manifest["version"]}, rows_of(manifest, folder, self.format)

    def held(self) -> set[int]:
        folders = {path.relative_to(self.root).parts[0] for path, _ in self.root.below()} - {"latest.json"}
        return {int(name[:6]) for name in folders}


class PostgresqlTarget:
    accumulates = True
    module: Any

    def __init__(self, home: Path, url: str) -> None:
        from sereno.adapters.postgresql import export

        self.module = export
        self.export: Export = exports.make_export(url, home=home, model=MODEL)
        self.url = url

    def read(self) -> tuple[set[int], list[dict[str, Any]]]:
        with psycopg.connect(self.url, row_factory=psycopg.rows.dict_row) as connection:
            rows = connection.execute("SELECT * FROM credit_scoring ORDER BY snapshot, customer_id").fetchall()
        numbers = {row.pop("snapshot") for row in rows}
        for row in rows:
            row.pop("data_date")
        return numbers, rows

    def held(self) -> set[int]:
        with psycopg.connect(self.url) as connection:
            listed = {number for (number,) in connection.execute("SELECT snapshot FROM credit_scoring_snapshots")}
            stored: set[int] = set()
            tables = connection.execute("SELECT relname FROM pg_class WHERE relname ~ '_rows_[0-9a-f]{8}$'").fetchall()
            for (table,) in tables:
                query = f"SELECT DISTINCT sereno_snapshot FROM {table}"
                stored |= {number for (number,) in connection.execute(query)}
        assert stored == listed
        return stored


def assert_shows(target: Target, *numbers: int) -> None:
    seen, rows = target.read()
    wanted = set(numbers) if target.accumulates else {numbers[-1]}
    assert seen == wanted
    assert len(rows) == ROWS * len(wanted)
    assert {int(float(row["score"])) for row in rows} == wanted


_SUMMARY = (
    "SELECT count(*), min(snapshot), max(snapshot), min(floor(score)::int), max(floor(score)::int) FROM credit_scoring"
)


def one_snapshot(connection: psycopg.Connection[Any]) -> int:
    rows, *numbers = connection.execute(_SUMMARY).fetchall()[0]
    assert rows == ROWS
    assert len(set(numbers)) == 1
    return int(numbers[0])
