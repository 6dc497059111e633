"""The table of predictions after a power cut, and with a long history of many parts."""

from __future__ import annotations

import threading
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from sereno.adapters import delta, objects
from sereno.adapters.delta import AddedFile, checkpoint_files
from sereno.exceptions import StorageError
from sereno.places import ObjectPath
from sereno.presence import together
from sereno.snapshots import Part, SnapshotStore


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A table whose newest commit has a checkpoint, as delta-rs makes it at each hundredth."""
    store = SnapshotStore(tmp_path, "m")
    for number in range(3):
        write_deltalake(store.folder, pa.table({"id": [number]}), mode="append")
    DeltaTable(store.folder).create_checkpoint()
    return store


def test_checkpoints_are_flushed(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("sereno.snapshots.store.fsync", flushed.append)
    store.flush(2)
    names = [path.name for path in flushed]
    assert names[:4] == [f"{2:020d}.json", f"{2:020d}.checkpoint.parquet", "_last_checkpoint", "_delta_log"]


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(400)], ids=["empty", "zeros"])
def test_a_torn_checkpoint_is_removed(store: SnapshotStore, content: bytes) -> None:
    checkpoint, _ = checkpoint_files(store.folder)
    checkpoint.write_bytes(content)
    with pytest.raises(DeltaError):
        DeltaTable(store.folder)
    with store.alone():
        assert len(DeltaTable(store.folder).file_uris()) == 3
    assert checkpoint_files(store.folder) == []


def test_a_checkpoint_that_is_well_stays(store: SnapshotStore) -> None:
    with store.alone():
        assert len(checkpoint_files(store.folder)) == 2


# A long history


def publish(store: SnapshotStore, number: int, parts: int) -> None:
    """A commit as a run makes it, of parts that nobody wrote."""
    attempt = f"2026-05-01-{number:06x}"
    files = [AddedFile(path=f"{attempt}/part-{i:05d}.parquet", size=9, stats='{"numRecords":7}') for i in range(parts)]
    when = "2026-05-02T00:00:00+00:00"
    metadata = dict.fromkeys(("rejects_file", "rejects_sha256", "profile_file", "profile_sha256"), "") | {
        "kind": "publish",
        "model": "m",
        "snapshot": str(number),
        "attempt": attempt,
        "run_key": str(number),
        "revision": "r",
        "data_date": "2026-05-01",
        "data_time": when,
        "published_at": when,
        "fingerprint": "f",
        "rows": str(7 * parts),
        "rejects": "0",
        "disposition": "replace",
        "keys": "id",
        "token": "1",
        "sha256": ",".join(f"{i:064x}" for i in range(parts)),
    }
    schema = pa.schema([("id", pa.int64())])
    delta.commit(
        store.folder,
        expected=number - 2,
        schema=schema,
        files=files,
        metadata=metadata,
        partition=None,
        partition_value=None,
    )


def test_memory_of_a_history_does_not_depend_on_its_parts(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "m")
    for number in range(1, 21):
        publish(store, number, parts=500)
    store.state()
    tracemalloc.start()
    try:
        state = store.state()
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20 * 5_000  # bytes; each of the 10,000 parts would take 600
    assert most < 1_000_000
    assert state.newest is not None
    assert [p.rows for p in state.newest.parts[:2]] == [7, 7]
    assert len(state.newest.parts) == 500
    assert state.newest.parts[499] == Part(
        path=store.folder / "2026-05-01-000014" / "part-00499.parquet", rows=7, size=9, sha256=f"{499:064x}"
    )
    assert state.newest == store.state().newest


def test_parts_of_several_snapshots_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore(tmp_path, "m")
    for number in (1, 2):
        publish(store, number, parts=number)
    read, both = delta.read_commit, threading.Barrier(2)

    def waiting(table: Path, version: int) -> delta.Commit:
        both.wait(10)
        return read(table, version)

    monkeypatch.setattr(delta, "read_commit", waiting)
    assert together(lambda snapshot: len(snapshot.parts), list(store.state().snapshots.values())) == [1, 2]


def test_metadata_is_found_wherever_a_writer_puts_it(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "m")
    publish(store, 1, parts=2)
    log = delta.log_file(store.folder, 0)
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([*others, first]))
    state = store.state()
    assert list(state.snapshots) == [1]
    assert len(state.snapshots[1].parts) == 2


def test_lines_of_a_log_end_where_those_of_a_file_do() -> None:
    assert list(delta._lines('{"why": "a\u2028b\u0085"}\n{"ö": 1}\n'.encode())) == [
        '{"why": "a\u2028b\u0085"}',
        '{"ö": 1}',
    ]
    first = next(delta._lines('{}\n{"ö'.encode()[:-1]))  # cut within a letter, which nobody asks for
    assert first == "{}"


def test_parts_whose_commit_was_removed_since(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "m")
    publish(store, 1, parts=2)
    snapshot = store.state().snapshots[1]
    delta.log_file(store.folder, 0).unlink()
    with pytest.raises(StorageError, match="lacks commit 0"):
        len(snapshot.parts)


PAINTED = "Kernel error -> Generic S3 error \x1b[31m↳\x1b[0m Server returned non-2xx status code \x1b[31m↳\x1b[0m "


@pytest.mark.parametrize(
    ("said", "times", "opens"),
    [
        (f"{PAINTED}500 Internal Server Error", 40, True),
        ("Generic S3 error \x1b[31m↳\x1b[0m HTTP error \x1b[31m↳\x1b[0m error sending request", 40, True),
        ("Got invalid list response", delta.TRIES - 1, True),
        (f"{PAINTED}403 Forbidden", delta.TRIES, False),
    ],
)
def test_a_table_in_a_store_that_fails_for_a_while(
    monkeypatch: pytest.MonkeyPatch, said: str, times: int, opens: bool
) -> None:
    failures = [OSError(said)] * times

    def fail(*_: object, **__: object) -> str:
        if failures:
            raise failures.pop()
        return "the table"

    monkeypatch.setattr(delta, "DeltaTable", fail)
    monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(milliseconds=1))
    table = ObjectPath.of("s3://bank/predictions/total")
    if opens:
        assert str(delta.opened(table, 0)) == "the table"
    else:
        with pytest.raises(StorageError, match="Table s3://bank/predictions/total cannot be read: .* 403 Forbidden"):
            delta.opened(table, 0)
    assert failures == []


def test_a_source_in_a_store_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_deltalake(tmp_path, pa.table({"id": [1]}))
    failures = [OSError(f"{PAINTED}503 Service Unavailable")] * 40

    def fail(*_: object, **__: object) -> DeltaTable:
        if failures:
            raise failures.pop()
        return DeltaTable(tmp_path)

    monkeypatch.setattr(delta, "DeltaTable", fail)
    monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(milliseconds=1))
    (found,) = delta.files_of_table("s3://bank/landing")
    assert str(found[0]).startswith("s3://bank/landing/part-")
    assert failures == []
    monkeypatch.setattr(objects, "DEADLINE", timedelta(0))
    failures += [OSError(f"{PAINTED}503 Service Unavailable")]
    with pytest.raises(
        StorageError, match="The source s3://bank/landing cannot be read: Kernel error -> Generic S3 error"
    ):
        next(delta.files_of_table("s3://bank/landing"))


@pytest.mark.parametrize("content", ["", '{"commitInfo":{"sereno.kind":"publ'])
def test_a_commit_that_another_host_writes_is_waited_for(tmp_path: Path, content: str) -> None:
    file = delta.log_file(tmp_path, 0)
    file.parent.mkdir()
    file.write_text(content)
    whole = '{"commitInfo":{"sereno.kind":"publish"}}\n{"add":{"path":"a","size":1}}\n'
    writer = threading.Timer(0.2, lambda: file.write_text(whole))
    writer.start()
    assert delta.read_metadata(tmp_path, 0) == {"kind": "publish"}
    assert [added.path for added in delta.read_commit(tmp_path, 0).files] == ["a"]
    writer.join()


def test_a_commit_that_is_damaged_is_not_taken_for_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "WHOLE_SECONDS", 0.0)
    file = delta.log_file(tmp_path, 0)
    file.parent.mkdir()
    for content in ("{", '{"commitInfo":{"sereno.kind":"publ', "\0\0\0"):
        file.write_text(content)
        with pytest.raises(ValueError, match="Expecting|Unterminated"):
            delta.read_metadata(tmp_path, 0)
    file.write_text('{"protocol":{}}\n{"commitInfo":{"sereno.kind":"publish"}}\n')
    assert delta.read_metadata(tmp_path, 0) == {"kind": "publish"}
