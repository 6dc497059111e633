"""Snapshots: what was published, what is served, and how one becomes the other. The Delta log is the only truth.

A *snapshot* is a published run's output; its number, in the commit's metadata, is what *version* means everywhere.
The table's own versions are not snapshot numbers: a rollback is a commit too, which names the snapshot it serves.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from sereno.exceptions import BusyError, LeaseLostError, NotFoundError, OlderDataError, PublishError, StorageError
from sereno.failpoints import failpoint
from sereno.places import ObjectPath, Place, name_below, readable
from sereno.presence import remove, sizes, together
from sereno.storage import exclusive, fsync, refresh, told

if TYPE_CHECKING:
    import pyarrow as pa

    from sereno.adapters.delta import AddedFile

KEPT = 7  # snapshots whose parts and exports are kept, and any that is
KEPT_FOR = timedelta(hours=24)  # younger than this
PROFILES_KEPT_FOR = timedelta(days=400)
PATIENCE = 60.0  # seconds to wait for another process that publishes to the table, which takes it well under one
PARTITION = "data_date"
RACES = 20  # that may be lost to others who commit to a table in an object store, one after the other
RACE_SECONDS = 0.5  # at most, before another try
SPARED = timedelta(
    hours=1
)  # for which parts stay in an object store that are no longer kept: another host may roll back to them
OWN = ("kind", "attempt", "at", "who")  # by which a commit is known to be one's own

# what BusyError says (`{pid}`), and how long to wait → a context in which no other host works on the table
Across = Callable[[str, float], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a snapshot; never changed once it is written."""

    path: Place  # absolute
    rows: int
    size: int  # bytes
    sha256: str  # hex, of the file


class LoggedParts(Sequence[Part]):
    """The parts of a snapshot as its commit names them, read when somebody asks for them: of all snapshots that a table ever
    had, which are in `State`, there may be millions. Raises StorageError then."""

    def __init__(self, table: Place, version: int) -> None:
        self._table, self._version = table, version

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        from sereno.adapters import delta

        commit = delta.read_commit(self._table, self._version)
        digests = commit.metadata["sha256"].split(",") if commit.metadata["sha256"] else []
        return tuple(
            Part(path=self._table / f.path, rows=json.loads(f.stats)["numRecords"], size=f.size, sha256=digest)
            for f, digest in zip(commit.files, digests, strict=True)
        )

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Part, ...]: ...
    def __getitem__(self, index: int | slice) -> Part | tuple[Part, ...]:
        return self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A published run's output."""

    model: str
    number: int
    attempt: str
    run_key: str
    revision: str
    data_date: date
    data_time: datetime  # the end of the interval, UTC
    published_at: datetime  # UTC
    fingerprint: str  # of the model
    rows: int
    rejects: int
    disposition: str  # replace | partition
    keys: tuple[str, ...]
    parts: Sequence[Part] = field(compare=False)  # an attempt has the same ones for ever
    rejects_file: str = ""  # relative to the table, with its SHA-256 beside it
    rejects_sha256: str = ""
    profile_file: str = ""  # the same of its profile; "": it has none, as it was published before there were any
    profile_sha256: str = ""
    token: int = 0  # of the lease under which it was published; 0: none is known
    table_version: int = field(default=-1, compare=False)  # of the commit that published it


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is about to be published; becomes a Snapshot by a commit."""

    attempt: str
    run_key: str
    revision: str
    data_date: date
    data_time: datetime
    fingerprint: str
    rows: int
    rejects: int
    disposition: str
    keys: tuple[str, ...]
    schema: pa.Schema
    parts: tuple[tuple[Part, str], ...]  # with Delta's statistics
    rejects_file: str
    rejects_sha256: str
    profile_file: str = ""
    profile_sha256: str = ""
    token: int = 0  # of the lease under which it is published


# what was in service (of a data date), and what is since; None: nothing
Rollback = tuple[Snapshot | None, Snapshot | None]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What retention keeps, beside what is served."""

    snapshots: int = KEPT
    young: timedelta = KEPT_FOR
    profiles: timedelta = PROFILES_KEPT_FOR


@dataclass(frozen=True, kw_only=True)
class State:
    """The table as its log tells it."""

    version: int = -1  # of the table; -1: there is none
    snapshots: dict[int, Snapshot] = field(default_factory=dict)  # every one ever published, by number
    served: tuple[Snapshot, ...] = ()  # one, or one per data date, oldest first
    withdrawn: frozenset[int] = frozenset()
    why_withdrawn: dict[int, str] = field(default_factory=dict)  # number → who rolled it back, and why
    attempts: dict[str, int] = field(default_factory=dict)  # attempt → snapshot number
    served_until: dict[int, datetime] = field(default_factory=dict)  # number → when it was replaced, UTC
    last_rollback: Rollback | None = None  # if nothing was published since

    @property
    def newest(self) -> Snapshot | None:
        """The served snapshot of the newest data date."""
        return self.served[-1] if self.served else None

    def served_for(self, day: date) -> Snapshot | None:
        return next((s for s in self.served if s.data_date == day), None)

    def published(self, run_key: str, revision: str) -> Snapshot | None:
        """The latest snapshot of this very run."""
        found = [s for s in self.snapshots.values() if s.run_key == run_key and s.revision == revision]
        return max(found, key=lambda s: s.number, default=None)

    def published_key(self, run_key: str) -> Snapshot | None:
        """The latest snapshot of this interval, whatever its revision."""
        return max((s for s in self.snapshots.values() if s.run_key == run_key), key=lambda s: s.number, default=None)

    def baseline(self, day: date) -> Snapshot | None:
        """What a run of a data date is compared with: the newest snapshot of the nearest earlier date, unless withdrawn."""
        earlier = [s for n, s in self.snapshots.items() if s.data_date < day and n not in self.withdrawn]
        return max(earlier, key=lambda s: (s.data_date, s.number), default=None)

    def kept(self, now: datetime, keep: Keep | None = None, spared: timedelta = timedelta(0)) -> frozenset[int]:
        """Numbers of the snapshots that retention keeps, and of those that it kept so long ago."""
        keep = keep or Keep()
        numbers = sorted(self.snapshots)
        before = [n for n in numbers if self.snapshots[n].published_at <= now - spared]
        young = {n for n in numbers if now - self.snapshots[n].published_at < keep.young + spared}
        served = {s.number for s in self.served} | {n for n, until in self.served_until.items() if until > now - spared}
        return frozenset(before[-keep.snapshots :]) | young | served

    def profiled(self, now: datetime, keep: Keep | None = None) -> frozenset[int]:
        """Numbers of the snapshots whose profiles retention keeps: of the latter, and of what runs will be compared with."""
        keep = keep or Keep()
        young = {n for n, s in self.snapshots.items() if now - s.published_at < keep.profiles}
        days = [date.max, *(s.data_date for s in self.served[-2:])]
        baselines = {s.number for day in days if (s := self.baseline(day))}
        return self.kept(now, keep) | young | baselines


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

    def version(self) -> int:
        """Of the table now, whoever made it; -1: there is none."""
        from sereno.adapters import delta

        return delta.current_version(self.folder)

    def refresh(self) -> None:
        """See what other hosts have committed until now. Raises OSError."""
        if isinstance(self.folder, Path):
            refresh(self.folder / "_delta_log")

    def state(self, until: datetime | None = None) -> State:
        """Read the log, as it was at a time."""
        from sereno.adapters import delta

        snapshots: dict[int, Snapshot] = {}
        served: dict[date, Snapshot] = {}
        served_until: dict[int, datetime] = {}
        withdrawn: dict[int, str] = {}
        last_rollback = None
        version = -1

        def serve(snapshot: Snapshot | None, day: date, when: datetime) -> None:
            everything = snapshot is not None and snapshot.disposition == "replace"
            for replaced in list(served) if everything else [day]:
                if gone := served.pop(replaced, None):
                    served_until[gone.number] = when
            if snapshot is not None:
                served[day] = snapshot

        for number, metadata in delta.metadata_of_commits(self.folder):
            at = metadata.get("published_at") or metadata.get("at")
            when = datetime.fromisoformat(at) if at else None
            if until and when and when > until:
                break
            version = number
            what = metadata.get("kind")
            if what == "publish":
                last_rollback = None
                snapshot = self._snapshot(number, metadata)
                snapshots[snapshot.number] = snapshot
                serve(snapshot, snapshot.data_date, snapshot.published_at)
            elif what == "rollback":
                assert when is not None
                told_by = ": ".join(text for text in (metadata["who"], metadata["why"]) if text)
                withdrawn |= dict.fromkeys(_numbers(metadata["withdrawn"]), told_by)
                for again in _numbers(metadata.get("restored", "")):
                    withdrawn.pop(again, None)
                before, target = (snapshots.get(int(metadata[k] or 0)) for k in ("rolled_back", "serves"))
                last_rollback = (before, target)
                if target:
                    withdrawn.pop(target.number, None)
                serve(target, date.fromisoformat(metadata["data_date"]), when)
        return State(
            version=version,
            snapshots=snapshots,
            served=tuple(served[d] for d in sorted(served)),
            withdrawn=frozenset(withdrawn),
            why_withdrawn=withdrawn,
            attempts={s.attempt: s.number for s in snapshots.values()},
            served_until=served_until,
            last_rollback=last_rollback,
        )

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
            with self._alone():
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
    def _alone(self) -> Iterator[None]:
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
            delta.grown(self.folder, state.version, schema)

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
        return self._snapshot(version, metadata)

    def _commit(
        self, state: State, schema: pa.Schema, files: Sequence[AddedFile], metadata: dict[str, str], day: str | None
    ) -> int:
        """One commit on top of `state`; the table's version then. `day`: the data date whose partition it replaces."""
        from sereno.adapters import delta

        version = state.version + 1
        for left in reversed(range(delta.TRIES)):
            try:
                return delta.commit(
                    self.folder,
                    expected=state.version,
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

    def rollback(self, *, to: int | None = None, day: date | None = None, why: str = "", who: str = "") -> Rollback:
        """Put an older snapshot back in service (`partition`: of one data date, default the newest).

        What was rolled back is withdrawn: no run publishes its revision again unless forced. A data date without an
        earlier snapshot becomes empty, but never the whole table. Raises NotFoundError, PublishError, BusyError where
        another publishes at this moment, and StorageError.
        """
        with self._alone():
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
            version = self._commit(state, schema_of(subject), files, metadata, kept_day if by_date else None)
            self.flush(version)
            if target is not None and not self._is_whole(target):
                self._take_back(state, metadata)
            return current, target

    def _take_back(self, before: State, done: dict[str, str]) -> None:
        """Undo a rollback just made, to a snapshot whose parts another host was removing. Raises NotFoundError, which says so,
        and PublishError where it cannot be undone."""
        target = before.snapshots[int(done["serves"])]
        current = before.snapshots.get(int(done["rolled_back"] or 0))
        undone = {
            "rolled_back": done["serves"],
            "serves": done["rolled_back"],
            "withdrawn": str(target.number) if target.number in before.withdrawn else "",
            "restored": ",".join(str(n) for n in _numbers(done["withdrawn"]) if n not in before.withdrawn),
            "data_date": (current or target).data_date.isoformat(),
            "why": f"the parts of version {target.number} were removed at the same moment",
        }
        day = done["data_date"] if target.disposition == "partition" else None
        schema, files = schema_of(current or before.served[0]), self._files(current) if current else []
        for left in reversed(range(RACES)):
            state = self.state()
            if target not in state.served:  # somebody has published since
                break
            try:
                self.flush(self._commit(state, schema, files, done | undone | {"at": _now().isoformat()}, day))
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

    def _snapshot(self, table_version: int, m: dict[str, str]) -> Snapshot:
        return Snapshot(
            model=m["model"],
            number=int(m["snapshot"]),
            attempt=m["attempt"],
            run_key=m["run_key"],
            revision=m["revision"],
            data_date=date.fromisoformat(m["data_date"]),
            data_time=datetime.fromisoformat(m["data_time"]),
            published_at=datetime.fromisoformat(m["published_at"]),
            fingerprint=m["fingerprint"],
            rows=int(m["rows"]),
            rejects=int(m["rejects"]),
            disposition=m["disposition"],
            keys=tuple(m["keys"].split(",")),
            parts=LoggedParts(self.folder, table_version),
            rejects_file=m["rejects_file"],
            rejects_sha256=m["rejects_sha256"],
            profile_file=m.get("profile_file", ""),
            profile_sha256=m.get("profile_sha256", ""),
            token=int(m.get("token", 0)),
            table_version=table_version,
        )

    def clean(
        self, needed: Callable[[], tuple[set[str], set[Place]]], keep: Keep | None = None, *, dry_run: bool = False
    ) -> dict[Place, int]:
        """Remove the files that neither a kept snapshot nor an attempt needs; which, and how large they were.

        `needed` gives attempts, and files, to keep. The rejects of a snapshot go with its parts; its profile stays
        longer, as later runs are compared with it. Only files that a run wrote are touched. Other runs may begin, write and
        publish meanwhile, hence the order: what there is, then who is at work, then what is published. A file of theirs is
        either not listed yet, or found needed at one of the two.

        In an object store other hosts may roll back meanwhile: what was kept an hour ago stays. Where the table has
        moved on before anything is removed, nothing is: who moved it cleans up.
        """
        if not self.folder.is_dir():
            return {}
        with self._alone():  # a rollback may be about to serve what is about to go
            there = self._written()
            attempts, files = needed()
            state = self.state()
            spared = SPARED if isinstance(self.folder, ObjectPath) else timedelta(0)
            numbers = state.kept(_now(), keep, spared)
            kept = [state.snapshots[n] for n in numbers]
            together(lambda s: len(s.parts), kept)  # which reads their commits
            files |= {p.path for s in kept for p in s.parts}
            files |= {self.folder / s.rejects_file for s in kept if s.rejects_file}
            profiled = [state.snapshots[n] for n in state.profiled(_now(), keep) | numbers]
            files |= {self.folder / s.profile_file for s in profiled if s.profile_file}
            gone = {
                file: file.stat().st_size if isinstance(file, Path) else size
                for file, size in there.items()
                if file not in files and _attempt_of(file) not in attempts
            }
            if dry_run:
                return gone
            if self.version() != state.version:
                return {}
            remove(gone)
            for folder in {f.parent for f in gone if isinstance(f, Path) and f.parent.name not in BESIDE}:
                with contextlib.suppress(OSError):  # not empty: other files in it are kept
                    folder.rmdir()
            return gone

    def _written(self) -> dict[Place, int]:
        """The files that runs wrote, and their sizes, of objects."""
        if isinstance(self.folder, ObjectPath):
            objects = [(path, meta) for path, meta in self.folder.below() if path.parent.parent == self.folder]
            return {p: m.size for p, m in objects if _is_of_runs(p.parent.name) and _attempt_of(p)}
        folders = [folder for folder in self.folder.iterdir() if _is_of_runs(folder.name)]
        files = [file for folder in folders for file in folder.iterdir()]
        return {file: 0 for file in files if _attempt_of(file) and not file.is_dir()}


BESIDE = ("_rejects", "_profiles")  # folders beside the parts, with a file of an attempt each
ATTEMPT = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{4})?-[0-9a-f]{6}")
IN_THEM = re.compile(rf"\.?({ATTEMPT.pattern})\.(json|parquet)(\.tmp)?")  # also what is being written


def _is_of_runs(folder: str) -> bool:
    return folder in BESIDE or ATTEMPT.fullmatch(folder) is not None


def _attempt_of(file: Place) -> str:
    """The attempt that wrote a file of the table; "": a file of somebody else."""
    if file.parent.name not in BESIDE:
        return file.parent.name
    found = IN_THEM.fullmatch(file.name)
    return found[1] if found else ""


def schema_of(snapshot: Snapshot) -> pa.Schema:
    import pyarrow.parquet as pq

    return pq.read_schema(readable(snapshot.parts[0].path))


def _numbers(text: str) -> list[int]:
    """Of snapshots, as a commit lists them."""
    return [int(number) for number in text.split(",") if number]


def listed(snapshots: dict[int, Snapshot]) -> str:
    numbers = sorted(snapshots)
    return ", ".join(map(str, numbers[-10:])) + (" and older ones" if len(numbers) > 10 else "") if numbers else "none"


def _now() -> datetime:
    return datetime.now(UTC)
