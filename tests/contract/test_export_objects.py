"""What the exports in an object store promise beyond `interfaces.Export`."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.adapters import export_objects, exports, rendering
from sereno.adapters.export_objects import ObjectExport
from sereno.exceptions import ExportError
from sereno.places import ObjectPath
from tests.contract.export_targets import MODEL, NONE, ROWS, Maker, ObjectTarget, assert_shows
from tests.objects import S3Server

FORMATS = ["parquet", "csv", "jsonl"]


@pytest.fixture
def target(tmp_path: Path, storage: ObjectPath) -> ObjectTarget:
    return ObjectTarget(tmp_path, "jsonl", storage)


def latest(target: ObjectTarget) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((target.root / "latest.json").read_bytes())
    return found


def names(target: ObjectTarget) -> list[str]:
    return sorted(str(path.relative_to(target.root)) for path, _ in target.root.below())


def test_what_is_there(target: ObjectTarget, maker: Maker, tmp_path: Path) -> None:
    target.export.follow([maker.snapshot(7)], NONE)
    assert names(target) == [
        *("000007/manifest.json", "000007/part-00000.jsonl", "000007/part-00001.jsonl", "latest.json"),
    ]
    assert latest(target) == {
        "version": 7,
        "data_date": "2026-05-01",
        "published_at": "2026-05-02T00:07:00Z",
        "folder": "000007",
        "manifest": "000007/manifest.json",
    }
    manifest = json.loads((target.root / "000007" / "manifest.json").read_bytes())
    assert [sorted(file) for file in manifest.pop("files")] == [["bytes", "name", "rows", "sha256"]] * 2
    assert [manifest[name] for name in ("model", "version", "rows", "rejects", "format")] == [
        MODEL,
        7,
        ROWS,
        2,
        "jsonl",
    ]
    assert list((tmp_path / ".sereno" / "scratch").iterdir()) == []  # nothing stays on this machine


@pytest.mark.parametrize("kind", FORMATS)
def test_a_reader_sees_one_snapshot_whole(kind: str, tmp_path: Path, storage: ObjectPath, maker: Maker) -> None:
    target = ObjectTarget(tmp_path, kind, storage)
    snapshots = [maker.snapshot(number) for number in range(1, 13)]
    target.export.follow(snapshots[:1], NONE)
    done = threading.Event()
    reads: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                (number,), rows = target.read()
                assert {int(float(row["score"])) for row in rows} == {number}
                reads.append(number)
            except BaseException as failure:  # noqa: BLE001 - told by the test
                failures.append(failure)
                return

    thread = threading.Thread(target=read)
    thread.start()
    for at in range(1, 12):
        target.export.follow([snapshots[at]], frozenset(range(at - 5, at + 1)))
        if at % 4 == 0:
            target.export.follow([snapshots[at - 1]], frozenset(range(at - 5, at + 2)))
    done.set()
    thread.join()
    assert failures == []
    assert len(set(reads)) > 3


def test_parts_in_a_bucket_are_copied_by_the_store(tmp_path: Path, storage: ObjectPath, maker: Maker) -> None:
    target = ObjectTarget(tmp_path, "parquet", storage)
    snapshot = in_bucket(maker.snapshot(1), storage)
    assert target.export.follow([snapshot], NONE)
    assert_shows(target, 1)
    assert not target.export.follow([snapshot], NONE)


class Unread:
    """Parts that nobody may ask for."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("a part, or the commit that names it, was read")


def test_nothing_is_read_of_what_is_there(target: ObjectTarget, maker: Maker) -> None:
    """Of hundreds of dates that are served, only the manifests are."""
    days = [maker.snapshot(number, day=number, disposition="partition") for number in (1, 2, 3)]
    target.export.follow(days, NONE)
    unread: Any = Unread()
    known = [dataclasses.replace(day, parts=unread) for day in days]
    assert not target.export.follow(known, frozenset({1, 2, 3}))
    assert target.export.follow([*known, maker.snapshot(4, day=4, disposition="partition")], NONE)
    assert target.held() == {1, 2, 3, 4}


def test_parts_in_another_bucket(
    tmp_path: Path, storage: ObjectPath, s3_bucket: tuple[S3Server, str], maker: Maker
) -> None:
    elsewhere = ObjectPath.of(f"s3://{s3_bucket[0].make_bucket()}/bank")
    target = ObjectTarget(tmp_path, "parquet", storage)
    assert target.export.follow([in_bucket(maker.snapshot(1), elsewhere)], NONE)
    assert_shows(target, 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_parts_in_a_bucket_as_text(
    kind: str, tmp_path: Path, storage: ObjectPath, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "BATCH_ROWS", 7)
    target = ObjectTarget(tmp_path, kind, storage)
    target.export.follow([in_bucket(maker.snapshot(1), storage)], NONE)
    assert_shows(target, 1)


def in_bucket(snapshot: Any, storage: ObjectPath) -> Any:
    """The same snapshot, with its parts in the bucket."""
    parts = []
    for part in snapshot.parts:
        path = storage / "predictions" / MODEL / snapshot.attempt / part.path.name
        path.upload(part.path)
        parts.append(dataclasses.replace(part, path=path))
    return dataclasses.replace(snapshot, parts=tuple(parts))


DAMAGE: dict[str, Callable[[ObjectPath], object]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_bytes(b'{"model": "cr'),
    "another's manifest": lambda folder: (folder / "manifest.json").write_bytes(b'{"model": "x", "files": []}'),
    "no part": lambda folder: (folder / "part-00001.jsonl").unlink(),
    "half a part": lambda folder: (folder / "part-00001.jsonl").write_bytes(b'{"customer_id"'),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_written_anew_beside(what: str, target: ObjectTarget, maker: Maker) -> None:
    snapshot = maker.snapshot(1)
    target.export.follow([snapshot], NONE)
    DAMAGE[what](target.root / "000001")
    assert target.export.follow([snapshot], NONE)
    assert_shows(target, 1)
    assert latest(target)["folder"].startswith("000001-")
    assert not target.export.follow([snapshot], NONE)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": "x", "published_at": "y"}'])
def test_a_damaged_latest_is_written_anew(content: bytes, target: ObjectTarget, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    (target.root / "latest.json").write_bytes(content)
    assert target.export.follow([maker.snapshot(1)], NONE)
    assert_shows(target, 1)


def test_a_pod_that_is_behind_changes_nothing(target: ObjectTarget, maker: Maker, storage: ObjectPath) -> None:
    other = ObjectTarget(maker.folder, "jsonl", storage)
    first, second = maker.snapshot(1), maker.snapshot(2)
    target.export.follow([first], NONE)
    other.export.follow([second], frozenset({1}))
    assert not target.export.follow([first], frozenset({1}))  # it read the table before 2 was published
    assert_shows(other, 2)
    assert target.held() == {1, 2}


def test_what_another_pod_is_writing_stays(target: ObjectTarget, maker: Maker) -> None:
    """Its folder is not whole yet, or is whole, and `latest.json` does not lead to it yet."""
    target.export.follow([maker.snapshot(3)], NONE)
    (target.root / "000002" / "part-00000.jsonl").write_bytes(b"")
    (target.root / "000004" / "manifest.json").write_bytes(b"{}")
    (target.root / "notes" / "a.txt").write_bytes(b"somebody's own")
    before = names(target)
    assert not target.export.follow([maker.snapshot(3)], frozenset({3}))
    assert names(target) == before


def test_what_another_pod_is_writing_stays_where_this_one_writes_for_hours(
    target: ObjectTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole by then, and in service."""
    write = ObjectExport._write

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=2)

    def slowly(self: ObjectExport, *arguments: Any) -> str:
        monkeypatch.setattr(export_objects, "datetime", Later)
        return write(self, *arguments)

    (target.root / "000002" / "part-00000.jsonl").write_bytes(b"")
    monkeypatch.setattr(ObjectExport, "_write", slowly)
    assert target.export.follow([maker.snapshot(3)], frozenset({2, 3}))
    assert "000002/part-00000.jsonl" in names(target)


def test_what_a_crash_left_goes(target: ObjectTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    target.export.follow([maker.snapshot(3)], NONE)
    (target.root / "000002" / "part-00000.jsonl").write_bytes(b"")
    (target.root / "000003-aa" / "part-00000.jsonl").write_bytes(b"")
    monkeypatch.setattr(export_objects, "YOUNG_SECONDS", -60)
    assert target.export.follow([maker.snapshot(3)], NONE)
    assert target.held() == {3}
    assert len(names(target)) == 4


def test_two_pods_at_once(target: ObjectTarget, maker: Maker, storage: ObjectPath) -> None:
    others = [ObjectTarget(maker.folder / str(n), "jsonl", storage) for n in range(3)]
    snapshots = [maker.snapshot(number) for number in range(1, 5)]
    failures: list[BaseException] = []

    def follow(other: ObjectTarget) -> None:
        try:
            for at, snapshot in enumerate(snapshots):
                other.export.follow([snapshot], frozenset(range(1, at + 2)))
        except BaseException as failure:  # noqa: BLE001 - told by the test
            failures.append(failure)

    threads = [threading.Thread(target=follow, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert_shows(target, 4)
    assert target.held() == {1, 2, 3, 4}


def test_one_that_others_write_all_the_time(
    target: ObjectTarget, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    monkeypatch.setattr(export_objects, "_read", lambda latest: ({}, '"another"'))
    with pytest.raises(ExportError, match="others write latest.json all the time. The publication stands; the next"):
        target.export.follow([maker.snapshot(2)], NONE)


def test_a_bucket_that_is_not_there(tmp_path: Path, storage: ObjectPath, maker: Maker) -> None:
    nowhere = ObjectPath.of("s3://bank-that-is-not-there/x")
    export = exports.make_export("csv", home=tmp_path, model=MODEL, storage=nowhere)
    with pytest.raises(ExportError) as caught:
        export.follow([maker.snapshot(1)], NONE)
    assert str(caught.value).startswith(f"The csv export to {nowhere}/exports/{MODEL}/csv failed: {nowhere}/")
    assert "there is no such bucket" in str(caught.value)
    assert str(caught.value).endswith("finishes the export.")


def test_the_page(tmp_path: Path, storage: ObjectPath, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who does what docs/exports.md says."""
    target = ObjectTarget(tmp_path, "parquet", storage)
    target.export.follow([maker.snapshot(7)], NONE)
    page = (
        (Path(__file__).parents[2] / "docs" / "exports.md")
        .read_text(encoding="utf-8")
        .split("## In an object store")[1]
    )
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    names: dict[str, Any] = {}
    exec(
        compile(program.replace("s3://bank/sereno/exports/credit-scoring/parquet", str(target.root)), "page", "exec"),
        names,
    )
    assert names["latest"] == latest(target)
    assert names["scores"].num_rows == ROWS
