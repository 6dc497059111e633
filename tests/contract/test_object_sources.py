"""Sources in an object store: found as files are, read as they were planned, waited for, and told where they cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict
from unittest import mock

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from sereno import Interval, Key, Model
from sereno.adapters import fetched, objects
from sereno.adapters.files import read_piece
from sereno.adapters.objects import settings_of
from sereno.batch import plan as module
from sereno.batch.plan import Plan, make_plan
from sereno.exceptions import ChangedError, SettingsError, SourceError, StorageError
from sereno.operate.arrivals.looking import look
from sereno.places import ObjectPath
from sereno.settings import Settings
from sereno.sources import find_files
from tests.objects import S3Server


class Row(TypedDict):
    id: Key[int]
    x: float | None


class Out(TypedDict):
    y: float


INTERVAL = Interval(start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 2, tzinfo=UTC))
MODEL = Model("m", inputs=Row, outputs=Out)


def planned(folder: Path, source: str) -> Plan:
    model = Model("m", inputs=Row, outputs=Out, source=source)
    settings = Settings(home=folder)
    return make_plan(model, settings, settings.model("m", model.declared, folder), INTERVAL, folder / "spool", 2)


def read(plan: Plan) -> list[int]:
    batches = [b for t in plan.tasks for p in t.pieces for b in read_piece(p, MODEL.inputs, 1000)]
    return [i for batch in batches for i in batch.column("id").to_pylist()]


def listed(batch: pa.RecordBatch | list[bytes]) -> list[int]:
    if isinstance(batch, list):
        return [msgspec.json.decode(line)["id"] for line in batch]
    return [int(i) for i in batch.column("id").to_pylist()]


def put_parquet(place: ObjectPath, folder: Path, ids: range, **options: Any) -> None:
    pq.write_table(pa.table({"id": ids, "x": [i / 2 for i in ids], "y": ids}), folder / "some.parquet", **options)
    place.upload(folder / "some.parquet")


NAMES = [
    "in/1.parquet",
    "in/2.parquet",
    "in/_SUCCESS",
    "in/.part.crc",
    "in/_temporary/3.parquet",
    "in/day=1/4.parquet",
    "in/day=2/5.parquet",
    "in/day=2/6.csv",
    "in/day=2/deep/7.parquet",
    "in2/8.parquet",
    "in/odd[1].parquet",
]


@pytest.mark.parametrize(
    "source",
    [
        "in", "in/", "in/1.parquet", "in/*", "in/*.parquet", "in/*/*.parquet", "in/**/*.parquet", "in/**", "in*/*.parquet",
        "in/day=[2-9]/**/*.parquet", "in/day=?/*.csv", "in/odd[1].parquet", "in/_temporary/*.parquet", "in/_temporary",
        "**/7.parquet", "in/*/deep/*",
    ],
)  # fmt: skip
def test_what_is_found_is_what_would_be_on_a_disk(tmp_path: Path, storage: ObjectPath, source: str) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        (storage / name).write_bytes(name.encode())
    here = [str(path.relative_to(tmp_path)) for path in find_files(f"{tmp_path}/{source}")]
    there = [str(path.relative_to(storage)) for path in find_files(f"{storage}/{source}")]  # type: ignore[arg-type]
    assert there == here
    for is_source in (True, False):
        on_disk = look(f"{tmp_path}/{source}", is_source=is_source, in_full=False)
        assert look(f"{storage}/{source}", is_source=is_source, in_full=False).found == on_disk.found


def test_folders_that_other_programs_note_as_objects_are_no_files(storage: ObjectPath) -> None:
    (storage / "in_$folder$").write_bytes(b"")
    (storage / "in" / "deep_$folder$").write_bytes(b"")
    with pytest.raises(SourceError, match=r"The source s3://.*/in is missing: there is no such file"):
        find_files(f"{storage}/in")


def test_row_groups_are_read_side_by_side_and_once(tmp_path: Path, storage: ObjectPath) -> None:
    put_parquet(storage / "a.parquet", tmp_path, range(50_000), row_group_size=10_000, data_page_size=4_000)
    asked = list[tuple[int, int]]()
    read_range = ObjectPath.read_range

    def noted(path: ObjectPath, start: int, length: int, tag: str = "") -> bytes:
        asked.append((start, length))
        return read_range(path, start, length, tag)

    with (
        mock.patch.multiple(fetched, WHOLE=20_000, LEAST=4_000, REQUEST=30_000),
        mock.patch.object(module, "SMALLEST_TASK", 20_000),
        mock.patch.object(ObjectPath, "read_range", noted),
    ):
        plan = planned(tmp_path, f"{storage}/a.parquet")
        assert read(plan) == [*range(50_000)]
    size = (storage / "a.parquet").look().size
    assert sum(length for _, length in asked) < size  # of three columns, two


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_what_the_listing_has_told_is_not_asked_again(tmp_path: Path, storage: ObjectPath, kind: str) -> None:
    for n in range(3):
        if kind == "parquet":
            put_parquet(storage / "in" / f"{n}.parquet", tmp_path, range(2 * n, 2 * n + 2))
        else:
            lines = {"jsonl": '{"id": %d, "x": 1}\n{"id": %d, "x": 2}\n', "csv": "id,x\n%d,1\n%d,2\n"}[kind]
            (storage / "in" / f"{n}.{kind}").write_bytes((lines % (2 * n, 2 * n + 1)).encode())
    with mock.patch.object(objects, "head", side_effect=objects.head) as head:
        plan = planned(tmp_path, f"{storage}/in")
        rows = [r for t in plan.tasks for p in t.pieces for b in read_piece(p, MODEL.inputs, 9) for r in listed(b)]
    assert sorted(rows) == [*range(6)]
    # whether it is an object itself
    assert [asked.args[1].rpartition("/")[2] for asked in head.call_args_list] == ["in"]


def test_an_object_that_is_written_anew_stops_the_run(tmp_path: Path, storage: ObjectPath) -> None:
    place = storage / "a.parquet"
    put_parquet(place, tmp_path, range(10))
    plan = planned(tmp_path, str(place))
    put_parquet(place, tmp_path, range(10, 20))  # the same size
    with pytest.raises(ChangedError, match=r"a\.parquet changed while it was read\. Nothing was published"):
        read(plan)
    plan = planned(tmp_path, str(place))
    place.unlink()
    with pytest.raises(ChangedError, match="changed while it was read"):
        read(plan)
    (storage / "a.jsonl").write_bytes(b'{"id": 1}\n')
    plan = planned(tmp_path, str(storage / "a.jsonl"))
    (storage / "a.jsonl").write_bytes(b'{"id": 2}\n')
    with pytest.raises(ChangedError, match="changed while it was read"):
        read(plan)


def test_the_same_content_is_the_same_input(tmp_path: Path, storage: ObjectPath) -> None:
    place = storage / "day=1" / "a.parquet"
    put_parquet(place, tmp_path, range(10))
    first = planned(tmp_path, str(storage))
    place.write_bytes(place.read_bytes())
    assert planned(tmp_path, str(storage)).input_digest == first.input_digest
    (storage / "day=2" / "a.parquet").write_bytes(place.read_bytes())
    place.unlink()
    assert planned(tmp_path, str(storage)).input_digest != first.input_digest


def test_what_cannot_be_read_is_told(tmp_path: Path, storage: ObjectPath) -> None:
    (storage / "a.parquet").write_bytes(b"PAR1 that is none")
    with pytest.raises(SourceError, match=r"s3://.*/a\.parquet cannot be read as Parquet: .* have it written again"):
        planned(tmp_path, str(storage / "a.parquet"))
    with pytest.raises(SourceError, match=r"The source s3://.*/none is missing"):
        planned(tmp_path, str(storage / "none"))
    with pytest.raises(StorageError, match=r"s3://no-such-bank-here/in cannot be looked at|there is no such bucket"):
        planned(tmp_path, "s3://no-such-bank-here/in")
    with pytest.raises(SettingsError, match="is no place for files"):
        planned(tmp_path, "https://bank/in.csv")
    (storage / "table" / "_delta_log" / "00000000000000000000.json").write_bytes(b"{}")
    with pytest.raises(SourceError, match="cannot be read as a Delta table"):
        planned(tmp_path, str(storage / "table"))


def test_wrong_keys_are_told(tmp_path: Path, s3_bucket: tuple[S3Server, str]) -> None:
    server, bucket = s3_bucket
    with (
        server.reached(AWS_SECRET_ACCESS_KEY="wrong"),
        pytest.raises(StorageError, match="the secret key is wrong|may not do that there"),
    ):
        planned(tmp_path, f"s3://{bucket}/in")


def test_a_partitioned_table_in_an_object_store(tmp_path: Path, storage: ObjectPath) -> None:
    """Another program's, with its columns in the folders' names."""
    table = pa.table({"id": range(6), "x": [1.0, 1.0, 2.0, 2.0, None, None]})
    options = settings_of(f"s3://{storage.bucket}")
    write_deltalake(str(storage), table, partition_by=["x"], storage_options=options)
    plan = planned(tmp_path, str(storage))
    rows = [r for t in plan.tasks for p in t.pieces for b in read_piece(p, MODEL.inputs, 9) for r in b.to_pylist()]
    assert sorted((r["id"], r["x"]) for r in rows) == sorted(zip(*table.to_pydict().values(), strict=True))


def test_an_arrival_in_an_object_store(storage: ObjectPath) -> None:
    url = f"{storage}/2026-05-01"
    found = look(url, is_source=True, in_full=True)
    assert (found.found, found.says, found.folder) == (False, f"{url} is not there", None)
    assert look(f"{url}/*.csv", is_source=True, in_full=True).says == f"nothing matches {url}/*.csv"
    (storage / "2026-05-01" / "_SUCCESS").write_bytes(b"")
    assert not look(url, is_source=True, in_full=True).found
    assert look(f"{url}/_SUCCESS", is_source=False, in_full=True).says == f"{url}/_SUCCESS is there"
    assert look(f"{storage}/*/_SUCCESS", is_source=False, in_full=True).found
    (storage / "2026-05-01" / "a.csv").write_bytes(b"id\n1\n")
    first = look(url, is_source=True, in_full=True)
    assert (first.found, first.says) == (True, f"{url} is there")
    assert abs(first.changed - datetime.now(UTC).timestamp()) < 600
    assert look(url, is_source=True, in_full=True).digest == first.digest
    (storage / "2026-05-01" / "a.csv").write_bytes(b"id\n2\n")
    assert look(url, is_source=True, in_full=True).digest != first.digest
    said = look("s3://no-such-bank-here/in", is_source=True, in_full=False)
    assert not said.found
    assert said.says.startswith("s3://no-such-bank-here/in cannot be looked at: ")


def test_an_arrival_of_a_table_in_an_object_store(storage: ObjectPath) -> None:
    options = settings_of(f"s3://{storage.bucket}")
    write_deltalake(str(storage / "t"), pa.table({"id": [1]}), storage_options=options)
    first = look(str(storage / "t"), is_source=True, in_full=True)
    assert first.found
    write_deltalake(str(storage / "t"), pa.table({"id": [2]}), mode="append", storage_options=options)
    assert look(str(storage / "t"), is_source=True, in_full=True).digest != first.digest
