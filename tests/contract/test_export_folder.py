"""What the folder exports promise beyond `interfaces.Export`."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from sereno.adapters import durable, rendering
from sereno.exceptions import ExportError
from tests.contract.export_targets import MODEL, NONE, ROWS, FolderTarget, Maker, assert_shows


@pytest.mark.parametrize("lines", ["csv", "jsonl"])
def test_text_is_written_a_batch_at_a_time(
    lines: str, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "BATCH_ROWS", 7)
    target = FolderTarget(tmp_path, lines)
    target.export.follow([maker.snapshot(1)], NONE)
    assert_shows(target, 1)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_folder_reader_sees_one_snapshot_whole(kind: str, tmp_path: Path, maker: Maker) -> None:
    target = FolderTarget(tmp_path, kind)
    snapshots = [maker.snapshot(number) for number in range(1, 41)]
    target.export.follow(snapshots[:1], NONE)
    done = threading.Event()
    reads: tuple[list[int], ...] = ([], [])
    failures: list[BaseException] = []

    def read(of: list[int]) -> None:
        while not done.is_set():
            try:
                (number,), rows = target.read()
                assert len(rows) == ROWS
                assert {int(float(row["score"])) for row in rows} == {number}
                of.append(number)
            except BaseException as failure:  # noqa: BLE001 - told by the test
                failures.append(failure)
                return

    threads = [threading.Thread(target=read, args=[of]) for of in reads]
    for thread in threads:
        thread.start()
    for at in range(1, 40):
        target.export.follow([snapshots[at]], frozenset(range(at - 5, at + 1)))
        if at % 4 == 0:
            target.export.follow([snapshots[at - 1]], frozenset(range(at - 5, at + 2)))
        before = [len(of) for of in reads]
        # what is read stays for five snapshots: where the disk is memory, those pass before a file is opened
        while at % 2 == 0 and not failures and any(len(of) == count for of, count in zip(reads, before, strict=True)):
            time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({*reads[0], *reads[1]}) > 3


def test_a_damaged_folder_is_built_again(tmp_path: Path, maker: Maker) -> None:
    target = FolderTarget(tmp_path, "csv")
    snapshot = maker.snapshot(1)
    target.export.follow([snapshot], NONE)
    for damage in ("manifest.json", "part-00001.csv"):
        (target.root / "000001" / damage).unlink()
        assert target.export.follow([snapshot], NONE)
        assert_shows(target, 1)
    assert {path.name for path in target.root.iterdir()} == {".lock", "000001", "latest"}


def test_parquet_shares_the_bytes_of_the_parts(tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    target = FolderTarget(tmp_path, "parquet")
    snapshot = maker.snapshot(1)
    target.export.follow([snapshot], NONE)
    exported = target.root / "latest" / "part-00000.parquet"
    assert exported.samefile(snapshot.parts[0].path)
    assert exported.stat().st_mode & 0o777 == 0o444

    def refuse(self: Path, other: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    target.export.follow([maker.snapshot(2)], NONE)
    assert_shows(target, 2)


def test_the_manifest(tmp_path: Path, maker: Maker) -> None:
    target = FolderTarget(tmp_path, "jsonl")
    target.export.follow([maker.snapshot(7)], NONE)
    assert (target.root / "latest").readlink() == Path("000007")
    manifest = json.loads((target.root / "latest" / "manifest.json").read_bytes())
    files = manifest.pop("files")
    assert manifest == {
        "model": MODEL,
        "version": 7,
        "data_date": "2026-05-01",
        "data_time": "2026-05-01T22:00:00Z",
        "published_at": "2026-05-02T00:07:00Z",
        "rows": ROWS,
        "rejects": 2,
        "format": "jsonl",
        "columns": [
            {"name": "customer_id", "type": "int64"},
            {"name": "score", "type": "double"},
            {"name": "band", "type": "string"},
        ],
    }
    assert [sorted(file) for file in files] == [["bytes", "name", "rows", "sha256"]] * 2


@pytest.mark.parametrize(
    ("number", "told"),
    [(28, "the disk is full (No space left on device). Free space"), (30, "cannot be written (Read-only file system)")],
)
def test_a_disk_that_is_full_or_read_only(
    number: int, told: str, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FolderTarget(tmp_path, "csv")
    target.export.follow([maker.snapshot(1)], NONE)

    def fail(descriptor: int) -> None:
        raise OSError(number, {28: "No space left on device", 30: "Read-only file system"}[number])

    with monkeypatch.context() as patch:
        patch.setattr(durable, "seal", fail)
        with pytest.raises(ExportError) as caught:
            target.export.follow([maker.snapshot(2)], NONE)
    assert told in str(caught.value)
    assert str(target.root) in str(caught.value)
    assert "The publication stands; the next `sereno run`" in str(caught.value)
    assert_shows(target, 1)
    assert not list(target.root.glob(".tmp-*"))
