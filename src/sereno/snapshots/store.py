"""The published table of one model: what publishes, rolls back and reads it. The Delta log is the only truth.

The table's own versions are not snapshot numbers: a rollback is a commit too, which names the snapshot it serves.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.exceptions import BusyError, LeaseLostError, NotFoundError, OlderDataError, PublishError, StorageError
from sereno.failpoints import failpoint
from sereno.places import ObjectPath, Place, name_below
from sereno.presence import sizes
from sereno.snapshots.snapshot import PARTITION, Publication, Snapshot, schema_of
from sereno.snapshots.state import Keep, Rollback, State, listed, logged_snapshot, numbers_in, read_state
from sereno.storage import exclusive, fsync, refresh, told

if TYPE_CHECKING:
    import pyarrow as pa

    from sereno.adapters.delta import AddedFile

PATIENCE = 60.0  # seconds to wait for another process that publishes to the table, which takes it well under one
RACES = 20  # that may be lost to others who commit to a table in an object store, one after the other
RACE_SECONDS = 0.5  # at most, before another try
SPARED = timedelta(hours=1)  # for which cleaning leaves what is no longer kept, in an object store
OWN = ("kind", "attempt", "at", "who")  # by which a commit is known to be one's own

# what BusyError says (`{pid}`), and how long to wait → a context in which no other host works on the table
Across = Callable[[str, float], contextlib.AbstractContextManager[None]]


class SnapshotStore:
    """The published table of one model, in one folder, or below one URL of an object store.

    Processes that publish to a folder wait for one another. There is no lock in an object store: of two commits at once
    one is refused, and looks again at what is there by then.
    """

    def __init__(self, root: Place, model: str, across: Across | None = None, home: Path | None = None) -> None:
        """`across` keeps other hosts out while this one publishes, rolls back or cleans up; None: there are none.

        `home` has the lock of this machine's processes where `root` is in an object store.
        """
        self.model = model
        self.folder = root / "predictions" / model
        locks = home if isinstance(root, ObjectPath) else root
        self._lock = None if locks is None else locks / ".sereno" / "locks" / f"{model}.publish"
        self._across = across or (lambda busy, patience: contextlib.nullcontext())
        self.spared = SPARED if isinstance(root, ObjectPath) else timedelta(0)  # else locks tell who rolls back

    def table_version(self) -> int:
        """Of the table now, whoever made it; -1: there is none."""
        from sereno.adapters import delta

        return delta.current_version(self.folder)

    def refresh(self) -> None:
        """See what other hosts have committed until now. Raises OSError."""
        if isinstance(self.folder, Path):
            refresh(self.folder / "_delta_log")

    def state(self, until: datetime | None = None) -> State:
        """What the log tells, as it was at a time. Raises StorageError."""
        return read_state(self.folder, until)

    def publish(
        self,
        publication: Publication,
        *,
        force: bool,
        known: Collection[int] | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """One commit makes the parts the table's new content. Returns the snapshot: that of another attempt, where the
        very same was published since this run planned, and it was not forced.

        `known`: the snapshots that there were when this run planned (None: all). `confirm` is called between reading the
        log and the commit on top of what was read; it raises LeaseLostError where somebody else may do this by now.
        Raises OlderDataError where a newer data date is served (unless forced; `partition` has a place for each date),
        LeaseLostError where another has taken the run over and published it, and BusyError where another process is
        publishing to this table.
        """
        for left in reversed(range(RACES)):
            with self.alone():
                state = self.state()
                if publication.attempt in state.attempts:  # it was committed before a crash
                    return state.snapshots[state.attempts[publication.attempt]]
                if other := self._published_meanwhile(state, publication, known, force):
                    return other
                self._refuse_older(state, publication, force)
                self._refuse_other_disposition(state, publication.disposition)
                try:
                    return self._commit_publication(state, publication, confirm)
                except BusyError:
                    if isinstance(self.folder, Path) or not left:  # nobody of ours was in the way there
                        raise
            time.sleep(random.uniform(0, RACE_SECONDS))
        raise AssertionError  # the last try returns or raises

    def _refuse_older(self, state: State, publication: Publication, force: bool) -> None:
        newest = state.newest
        if publication.disposition == "replace" and newest and newest.data_time > publication.data_time and not force:
            raise OlderDataError(
                f"Data date {publication.data_date} is older than {newest.data_date}, which is in service (version "
                f"{newest.number}). Nothing was published. `sereno run --force` puts the older one in service."
            )

    def _published_meanwhile(
        self, state: State, publication: Publication, known: Collection[int] | None, force: bool
    ) -> Snapshot | None:
        """The same run and revision, by another attempt since this one planned. Raises LeaseLostError.

        Only what came since then is looked at: a ledger that was lost begins to count its tokens again.
        """
        new = [s for n, s in state.snapshots.items() if known is not None and n not in known]
        same = [s for s in new if s.run_key == publication.run_key]
        for snapshot in same:
            if snapshot.token > publication.token:
                raise LeaseLostError(
                    f"Another process took this run over and published version {snapshot.number} ({snapshot.attempt}), "
                    f"because {publication.attempt} did not move for too long. Nothing was published by it."
                )
        return next((s for s in same if s.revision == publication.revision and not force), None)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else publishes, rolls back or cleans up meanwhile, as far as locks tell. Raises BusyError."""
        from sereno.adapters import delta

        busy = f"Another process (pid {{pid}}) is publishing to {self.folder}. Start this again when it is done."
        lock = contextlib.nullcontext() if self._lock is None else exclusive(self._lock, busy, wait_seconds=PATIENCE)
        with lock, self._across(busy, PATIENCE):
            if isinstance(self.folder, Path):
                delta.remove_torn_checkpoints(self.folder)
            yield

    def refuse_other_kind(self, state: State, disposition: str, schema: pa.Schema) -> None:
        """Raise PublishError where a publication could not become part of the table that is there. The commit would, too:
        better to know before hours of scoring."""
        from sereno.adapters import delta

        self._refuse_other_disposition(state, disposition)
        if disposition == "partition":
            delta.grown(self.folder, state.table_version, schema)

    def _refuse_other_disposition(self, state: State, disposition: str) -> None:
        for snapshot in state.served:
            if snapshot.disposition != disposition:
                raise PublishError(
                    f"Table {self.folder} was made with disposition = {snapshot.disposition!r}; the settings say "
                    f"{disposition!r}. Set it back, or move the table away to start a new one."
                )

    def _commit_publication(self, state: State, publication: Publication, confirm: Callable[[], None]) -> Snapshot:
        from sereno.adapters import delta

        number = max(state.snapshots, default=0) + 1
        day = publication.data_date.isoformat()
        by_date = publication.disposition == "partition"
        files = [
            delta.AddedFile(
                path=name_below(part.path, self.folder),
                size=part.size,
                stats=stats,
                partition={PARTITION: day} if by_date else {},
            )
            for part, stats in publication.parts
        ]
        metadata = {
            "kind": "publish",
            "model": self.model,
            "snapshot": str(number),
            "attempt": publication.attempt,
            "run_key": publication.run_key,
            "revision": publication.revision,
            "data_date": day,
            "data_time": publication.data_time.isoformat(),
            "published_at": _now().isoformat(),
            "fingerprint": publication.fingerprint,
            "rows": str(publication.rows),
            "rejects": str(publication.rejects),
            "rejects_file": publication.rejects_file,
            "rejects_sha256": publication.rejects_sha256,
            "profile_file": publication.profile_file,
            "profile_sha256": publication.profile_sha256,
            "disposition": publication.disposition,
            "keys": ",".join(publication.keys),
            "sha256": ",".join(part.sha256 for part, _ in publication.parts),
            "token": str(publication.token),
        }
        failpoint("fsync")
        if isinstance(self.folder, Path):
            with told("The parts could not be flushed to the disk"):
                folders = {part.path.parent for part, _ in publication.parts} | {self.folder}
                for folder in folders:
                    if isinstance(folder, Path):
                        fsync(folder)
        confirm()
        there = sizes(part.path for part, _ in publication.parts)
        for part, _ in publication.parts:  # another host may have cleaned up behind a process that stood still
            if part.path not in there:
                raise PublishError(f"{part.path} was removed since it was scored. Run the data date again.")
        failpoint("commit_before")
        version = self._commit(state, publication.schema, files, metadata, day if by_date else None)
        failpoint("commit_after")
        self.flush(version)
        return logged_snapshot(self.folder, version, metadata)

    def _commit(
        self, state: State, schema: pa.Schema, files: Sequence[AddedFile], metadata: dict[str, str], day: str | None
    ) -> int:
        """One commit on top of `state`; the table's version then. `day`: the data date whose partition it replaces."""
        from sereno.adapters import delta

        version = state.table_version + 1
        for left in reversed(range(delta.TRIES)):
            try:
                return delta.commit(
                    self.folder,
                    expected=state.table_version,
                    schema=self._schema(schema, day is not None),
                    files=files,
                    metadata=metadata,
                    partition=PARTITION if day else None,
                    partition_value=day,
                )
            except (BusyError, StorageError) as error:
                # What came of a commit that failed is not always known; the log knows.
                if delta.is_committed(self.folder, version, {n: metadata[n] for n in OWN if n in metadata}):
                    break
                if not (left and isinstance(error, delta.NotTakenError)):
                    raise
            time.sleep(random.uniform(0, delta.TRY_SECONDS))
        return version

    def flush(self, version: int) -> None:
        """Make a commit last: the log and every folder on the way to it. Whoever commits may die before, so all who
        come later do it before they show the commit to others. In an object store it lasts as soon as it is there."""
        from sereno.adapters import delta

        if not isinstance(self.folder, Path):
            return
        log = delta.log_file(self.folder, version)
        with told(
            f"The newest commit to table {self.folder} is there for readers, but could not be flushed to the disk",
            "A power cut may take it back. See to the disk; the next `sereno run` (also one with nothing to do) flushes it again.",
        ):
            for path in (
                log,
                *delta.checkpoint_files(self.folder),
                log.parent,
                self.folder,
                self.folder.parent,
                self.folder.parent.parent,
            ):
                fsync(path)

    def rollback(
        self, *, to: int | None = None, day: date | None = None, why: str = "", who: str = "", keep: Keep | None = None
    ) -> Rollback:
        """Put an older snapshot back in service (`partition`: of one data date, default the newest).

        What was rolled back is withdrawn: no run publishes its revision again unless forced. A data date without an
        earlier snapshot becomes empty, but never the whole table. Raises NotFoundError, PublishError, BusyError where
        another publishes at this moment, and StorageError.
        """
        with self.alone():
            state = self.state()
            if state.newest is None:
                raise NotFoundError(
                    f"No snapshot of model {self.model!r} is published. `sereno run` publishes the first."
                )
            chosen = self.kept_snapshot(state, to) if to is not None else None
            by_date = state.newest.disposition == "partition"
            if chosen is not None and by_date:
                day = chosen.data_date
            current = state.served_for(day) if by_date and day else state.newest
            if current is None and chosen is None:
                raise NotFoundError(f"Model {self.model!r} has nothing in service for data date {day}.")
            if current is not None and current == chosen:
                raise PublishError(f"Version {current.number} of model {self.model!r} is in service already.")
            target = chosen or self._earlier(state, current, by_date)
            subject = target or current
            assert subject is not None
            if target is not None:
                self.kept_snapshot(state, target.number)
                self._refuse_what_goes(state, target, keep)
            elif len(state.served) == 1:
                raise NotFoundError(
                    f"Version {subject.number} of model {self.model!r} has no earlier version that was not withdrawn. "
                    "Name one with --to, or run the model again."
                )
            rolled_back = [
                n
                for n, s in state.snapshots.items()
                if current is not None
                and (target.number if target else 0) < n <= current.number
                and (not by_date or s.data_date == current.data_date)
            ]
            kept_day = subject.data_date.isoformat()
            failpoint("rollback")
            metadata = {
                "kind": "rollback",
                "model": self.model,
                "rolled_back": str(current.number) if current else "",
                "serves": str(target.number) if target else "",
                "withdrawn": ",".join(map(str, rolled_back)),
                "data_date": kept_day,
                "at": _now().isoformat(),
                "why": why,
                "who": who,
            }
            files = self._files(target) if target else []
            try:
                schema = schema_of(subject)
            except FileNotFoundError:  # another host has removed it just now
                self.kept_snapshot(state, subject.number)
                raise
            version = self._commit(state, schema, files, metadata, kept_day if by_date else None)
            self.flush(version)
            if target is not None and not self._is_whole(target):
                self._take_back(state, metadata)
            return current, target

    def _refuse_what_goes(self, state: State, target: Snapshot, keep: Keep | None) -> None:
        """Another host may be removing what was not kept for long: half of that time is between what either does."""
        if self.spared and target.number not in state.kept(_now(), keep, self.spared / 2):
            raise NotFoundError(
                f"Version {target.number} of model {self.model!r} is no longer kept: its parts may go at any moment, see "
                f"keep_snapshots and keep_hours. Run data date {target.data_date} again."
            )

    def _take_back(self, before: State, done: dict[str, str]) -> None:
        """Undo a rollback just made, to a snapshot whose parts another host was removing. Raises NotFoundError, which says so,
        and PublishError where it cannot be undone."""
        target = before.snapshots[int(done["serves"])]
        current = before.snapshots.get(int(done["rolled_back"] or 0))
        undone = {
            "rolled_back": done["serves"],
            "serves": done["rolled_back"],
            "withdrawn": str(target.number) if target.number in before.withdrawn else "",
            "restored": ",".join(str(n) for n in numbers_in(done["withdrawn"]) if n not in before.withdrawn),
            "data_date": (current or target).data_date.isoformat(),
            "why": f"the parts of version {target.number} were removed at the same moment",
        }
        day = done["data_date"] if target.disposition == "partition" else None
        for left in reversed(range(RACES)):
            try:
                state = self.state()
                if target not in state.served:  # somebody has published since
                    break
                schema, files = schema_of(current or before.served[0]), self._files(current) if current else []
                self.flush(self._commit(state, schema, files, done | undone | {"at": _now().isoformat()}, day))
                break
            except (BusyError, StorageError) as error:
                if isinstance(error, StorageError) or not left:
                    raise PublishError(
                        f"Version {target.number} of model {self.model!r} is in service, but another host has removed its "
                        f"parts at the same moment, and it could not be undone: {error} Then run data date "
                        f"{target.data_date} again, or roll back to a version that is kept."
                    ) from error
        raise NotFoundError(
            f"Version {target.number} of model {self.model!r} was not put back in service: another host removed its parts "
            f"at the same moment, see keep_snapshots and keep_hours. Run data date {target.data_date} again."
        )

    def _earlier(self, state: State, current: Snapshot | None, by_date: bool) -> Snapshot | None:
        if current is None:
            return None
        candidates = [
            s
            for n, s in state.snapshots.items()
            if n < current.number and n not in state.withdrawn and (not by_date or s.data_date == current.data_date)
        ]
        return max(candidates, key=lambda s: s.number, default=None)

    def kept_snapshot(self, state: State, number: int) -> Snapshot:
        """A snapshot by its number, if its parts are still there. Raises NotFoundError."""
        snapshot = state.snapshots.get(number)
        if snapshot is None:
            raise NotFoundError(f"Model {self.model!r} has no version {number}. It has {listed(state.snapshots)}.")
        if not self._is_whole(snapshot):
            raise NotFoundError(
                f"Version {number} of model {self.model!r} is no longer kept: its parts were removed, see keep_snapshots and "
                f"keep_hours. Run data date {snapshot.data_date} again."
            )
        return snapshot

    def _is_whole(self, snapshot: Snapshot) -> bool:
        return len(sizes(p.path for p in snapshot.parts)) == len(snapshot.parts)

    def _files(self, snapshot: Snapshot) -> Sequence[AddedFile]:
        from sereno.adapters import delta

        return delta.read_commit(self.folder, snapshot.table_version).files

    def _schema(self, schema: pa.Schema, by_date: bool) -> pa.Schema:
        import pyarrow as pa

        return schema.append(pa.field(PARTITION, pa.date32())) if by_date else schema


def _now() -> datetime:
    return datetime.now(UTC)
