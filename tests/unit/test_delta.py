"""The table of predictions after a power cut."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from sereno import snapshots
from sereno.adapters.delta import checkpoint_files
from sereno.snapshots import SnapshotStore


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
    monkeypatch.setattr(snapshots, "fsync", flushed.append)
    store.flush(2)
    names = [path.name for path in flushed]
    assert names[:4] == [f"{2:020d}.json", f"{2:020d}.checkpoint.parquet", "_last_checkpoint", "_delta_log"]


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(400)], ids=["empty", "zeros"])
def test_a_torn_checkpoint_is_removed(store: SnapshotStore, content: bytes) -> None:
    checkpoint, _ = checkpoint_files(store.folder)
    checkpoint.write_bytes(content)
    with pytest.raises(DeltaError):
        DeltaTable(store.folder)
    with store._alone():
        assert len(DeltaTable(store.folder).file_uris()) == 3
    assert checkpoint_files(store.folder) == []


def test_a_checkpoint_that_is_well_stays(store: SnapshotStore) -> None:
    with store._alone():
        assert len(checkpoint_files(store.folder)) == 2
