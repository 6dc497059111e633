"""Snapshots beside other hosts: a rollback whose parts go, a commit of which nothing is heard, and what cleaning spares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters import delta
from sereno.config import load_settings
from sereno.exceptions import BusyError, NotFoundError, PublishError, StorageError
from sereno.home import Home, rollback
from sereno.places import ObjectPath
from sereno.snapshots import Keep, Part, Publication, Snapshot, SnapshotStore, State, clean

NOON = datetime(2026, 5, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path, "m")


def publication(store: SnapshotStore, number: int, day: int = 1, disposition: str = "replace") -> Publication:
    attempt = f"2026-05-{day:02}-{number:06x}"
    path = store.folder / attempt / "part-0.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"id": [1], "y": [number]})
    pq.write_table(table, path)
    return Publication(
        attempt=attempt,
        run_key=f"{day}",
        revision=f"r{number}",
        data_date=datetime(2026, 5, day, tzinfo=UTC).date(),
        data_time=datetime(2026, 5, day + 1, tzinfo=UTC),
        fingerprint="f",
        rows=1,
        rejects=0,
        disposition=disposition,
        keys=("id",),
        schema=table.schema,
        parts=((Part(path=path, rows=1, size=path.stat().st_size, sha256="0"), '{"numRecords":1}'),),
        rejects_file="",
        rejects_sha256="",
    )


def published(store: SnapshotStore, *numbers: int, disposition: str = "replace") -> State:
    for number in numbers:
        day = number if disposition == "partition" else 1
        store.publish(publication(store, number, day, disposition), force=True)
    return store.state()


# A rollback, and another host that cleans up


def removing(store: SnapshotStore, number: int, then: Callable[[], object] = lambda: None) -> Callable[[int], None]:
    """What `flush` becomes: after the first commit, the parts of a snapshot are gone."""
    parts = [part.path for part in store.state().snapshots[number].parts]

    def flush(version: int) -> None:
        if parts:
            parts.pop().unlink()
            then()

    return flush


def test_a_rollback_whose_parts_go_is_undone(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2, 3, 4)
    store.rollback(to=3)
    before = store.state()
    monkeypatch.setattr(store, "flush", removing(store, 1))
    with pytest.raises(
        NotFoundError,
        match=r"^Version 1 of model 'm' was not put back in service: another host removed its parts at the same moment, see "
        r"keep_snapshots and keep_hours\. Run data date 2026-05-01 again\.$",
    ):
        store.rollback(to=1)
    after = store.state()
    assert [s.number for s in after.served] == [3]
    assert (before.withdrawn, after.withdrawn) == ({4}, {4})
    assert after.table_version == before.table_version + 2
    assert pq.read_table(after.served[0].parts[0].path).column("y").to_pylist() == [3]


def test_parts_that_go_before_the_commit(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2)
    remove = removing(store, 1)
    monkeypatch.setattr("sereno.snapshots.store.failpoint", lambda name: remove(0))
    with pytest.raises(NotFoundError, match="Version 1 of model 'm' is no longer kept: its parts were removed"):
        store.rollback()
    assert [s.number for s in store.state().served] == [2]


def test_a_date_without_a_snapshot_is_empty_again(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2, 3, disposition="partition")
    assert store.rollback(day=datetime(2026, 5, 2, tzinfo=UTC).date())[1] is None
    before = store.state()
    monkeypatch.setattr(store, "flush", removing(store, 2))
    with pytest.raises(NotFoundError, match="Version 2 of model 'm' was not put back in service"):
        store.rollback(to=2)
    after = store.state()
    assert [s.number for s in after.served] == [1, 3]
    assert after.withdrawn == before.withdrawn == {2}


def test_a_rollback_that_somebody_has_published_over(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2)
    other = SnapshotStore(store.folder.parents[1], "m")  # type: ignore[arg-type]
    other._lock = None
    monkeypatch.setattr(store, "flush", removing(store, 1, lambda: published(other, 3)))
    with pytest.raises(NotFoundError, match="was not put back in service"):
        store.rollback(to=1)
    assert [s.number for s in store.state().served] == [3]


@pytest.mark.parametrize("what", ["commit", "metadata_of_commits", "read_commit"])
def test_a_rollback_that_cannot_be_undone(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    published(store, 1, 2)

    def broken(*_: Any, **__: Any) -> int:
        raise StorageError("The store is gone.")

    monkeypatch.setattr(store, "flush", removing(store, 1, lambda: monkeypatch.setattr(delta, what, broken)))
    with pytest.raises(
        PublishError,
        match=r"Version 1 of model 'm' is in service, but another host has removed its parts at the same moment, and it "
        r"could not be undone: The store is gone\. Then run data date 2026-05-01 again, or roll back to a version that is kept\.",
    ):
        store.rollback(to=1)


def test_no_rollback_leads_to_what_another_host_may_be_removing(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(store, 1, 2)
    few, later = Keep(snapshots=1, young=timedelta(0)), datetime.now(UTC) + HOUR * 0.75
    store.spared = HOUR  # as in an object store
    assert {1, 2} == store.state().kept(later, few, store.spared)  # which cleaning leaves for longer
    with monkeypatch.context() as clock:
        clock.setattr("sereno.snapshots.store._now", lambda: later)
        with pytest.raises(
            NotFoundError, match="^Version 1 of model 'm' is no longer kept: its parts may go at any moment, see keep_"
        ):
            store.rollback(keep=few)
        assert store.table_version() == 1
    assert store.rollback(keep=few)[1] is not None
    assert SnapshotStore(ObjectPath.of("s3://bank"), "m").spared == HOUR


# A commit of which nothing is heard


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are made, and their answers are lost."""
    commit = delta.commit

    def lost(*arguments: Any, **named: Any) -> int:
        commit(*arguments, **named)
        raise BusyError("nobody knows")

    monkeypatch.setattr(delta, "commit", lost)


@pytest.mark.usefixtures("deaf")
def test_a_log_that_does_not_answer_is_asked_again(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = delta.read_metadata, [StorageError("slow down"), OSError("gone"), ValueError("half of it")]

    def failing(table: Any, version: int) -> dict[str, str]:
        if failures:
            raise failures.pop()
        return read(table, version)

    monkeypatch.setattr(delta, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(delta, "read_metadata", failing)
    assert store.publish(publication(store, 1), force=False).number == 1
    assert failures == []


@pytest.mark.usefixtures("deaf")
def test_what_nobody_knows_is_told_so(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(table: Any, version: int) -> dict[str, str]:
        raise StorageError("The store is silent.")

    with monkeypatch.context() as silence:
        silence.setattr(delta, "KNOWN_SECONDS", -1.0)
        silence.setattr(delta, "read_metadata", silent)
        wanted = publication(store, 1)
        with pytest.raises(StorageError) as told:
            store.publish(wanted, force=False)
    assert str(told.value) == (
        f"Commit 0 of table {store.folder} may have been made, or not: its answer was lost, and the log cannot be read "
        "(The store is silent). So it may be in service. Mend that, then start it again, which finds out, and does nothing "
        "twice."
    )
    assert store.publish(wanted, force=False).number == 1
    assert store.table_version() == 0


def test_a_rollback_of_which_nothing_is_heard_goes_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(load_settings(tmp_path, home=tmp_path), "m")
    published(home.store, 1, 2, 3)
    commit = delta.commit

    def broken(*_: object, **__: object) -> Any:
        raise StorageError("The store is silent.")

    with monkeypatch.context() as silence:

        def lost(*arguments: Any, **named: Any) -> int:
            commit(*arguments, **named)
            silence.setattr(delta, "read_metadata", broken)
            return int(broken())

        silence.setattr(delta, "KNOWN_SECONDS", -1.0)
        silence.setattr(delta, "commit", lost)
        with pytest.raises(StorageError, match=r"Commit 3 of table .* may have been made, or not"):
            rollback(home)
    before, served = rollback(home)
    assert (before and before.number, served and served.number) == (3, 2)
    assert [s.number for s in home.store.state().served] == [2]


def test_a_publication_opens_its_table_once(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store that may take a hundred requests."""
    published(store, 1, disposition="partition")
    opened, versions = delta.opened, []

    def counted(table: Any, version: int) -> Any:
        versions.append(version)
        return opened(table, version)

    monkeypatch.setattr(delta, "opened", counted)
    published(store, 2, disposition="partition")
    assert versions == [0]
    other = publication(store, 3, 3, "partition")
    with pytest.raises(PublishError, match=r"Column 'y' of table .* is long, and the model now gives string"):
        store.publish(replace(other, schema=pa.schema({"id": pa.int64(), "y": pa.string()})), force=False)


# What cleaning spares


def snapshot(number: int, hours_ago: float) -> Snapshot:
    return Snapshot(
        model="m", number=number, attempt=f"{number}", run_key="k", revision="r", data_date=NOON.date(), data_time=NOON,
        published_at=NOON - hours_ago * HOUR, fingerprint="f", rows=1, rejects=0, disposition="replace", keys=("id",), parts=(),
    )  # fmt: skip


def test_what_was_kept_an_hour_ago() -> None:
    ages = {1: 50, 2: 40, 3: 24.5, 4: 20, 5: 0.5}
    snapshots = {number: snapshot(number, age) for number, age in ages.items()}
    state = State(snapshots=snapshots, served=(snapshots[5],), served_until={1: NOON - HOUR / 2, 4: NOON - HOUR / 2})
    few = Keep(snapshots=1, young=timedelta(0))
    assert state.kept(NOON, few) == {5}
    assert state.kept(NOON, few, HOUR) == {1, 4, 5}  # 4 was the last one then; 1 was served, after a rollback
    assert state.kept(NOON, Keep(snapshots=1)) == {4, 5}
    assert state.kept(NOON, Keep(snapshots=1), HOUR) == {1, 3, 4, 5}
    assert state.kept(NOON, few, 100 * HOUR) == {1, 2, 3, 4, 5}


def test_until_when_a_snapshot_was_served(store: SnapshotStore) -> None:
    state = published(store, 1, 2, 3)
    when = {n: s.published_at for n, s in state.snapshots.items()}
    assert state.served_until == {1: when[2], 2: when[3]}
    store.rollback(to=1)
    assert store.state().served_until.keys() == {1, 2, 3}
    assert store.state().served_until[3] > when[3]


def test_nothing_goes_while_the_table_moves_on(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2)
    few = Keep(snapshots=1, young=timedelta(0))
    with monkeypatch.context() as moving:
        moving.setattr(store, "table_version", lambda: 2)
        assert clean(store, lambda: (set(), set()), few) == {}
    assert [path.parent.name for path in clean(store, lambda: (set(), set()), few)] == ["2026-05-01-000001"]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("kept/x", "storage {0}/kept"),
        ("kept", "storage {0}/kept"),
        ("", "storage {0}/kept"),  # on the way there
        ("home/.sereno/locks", "home {0}/home"),
        ("else", "home {0}/home"),
    ],
)
def test_what_cannot_be_used_is_the_home_or_the_storage(tmp_path: Path, file: str, what: str) -> None:
    folder = tmp_path / "there"  # above the storage, and not above the home
    settings = load_settings(tmp_path, home=tmp_path / "home", environ={"SERENO_STORAGE": str(folder / "kept")})
    path = folder / file if not file.startswith("home") else tmp_path / file
    said = rf"^The {what.format(tmp_path if what.startswith('home') else folder)} cannot be used: the disk is full \({path}\)\. Wait"
    with pytest.raises(StorageError, match=said), Home(settings, "m").used("Wait"):
        raise OSError(28, "No space left on device", str(path))


@pytest.mark.parametrize(("storage", "what"), [("{0}", "home"), ("{0}/kept", "home"), ("{0}/..", "home")])
def test_what_lies_in_both_is_the_homes(tmp_path: Path, storage: str, what: str) -> None:
    home = tmp_path / "home"
    settings = load_settings(tmp_path, home=home, environ={"SERENO_STORAGE": storage.format(home)})
    with pytest.raises(StorageError, match=f"^The {what} "), Home(settings, "m").used():
        raise OSError(28, "No space left on device", str(home / "x"))
