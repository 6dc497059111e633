"""Home: what belongs to one model (its table, its attempts, its exports), and what is asked of it between runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.adapters.exports import make_export
from sereno.batch.attempts import Attempts
from sereno.batch.lease import hold_name
from sereno.batch.record import but_not_told, tell_rollbacks
from sereno.exceptions import (
    ExportError,
    LedgerError,
    NotFoundError,
    SerenoError,
    SettingsError,
)
from sereno.interfaces import Export, RunLedger
from sereno.ledger import Lease, lease_name, open_ledger
from sereno.lookup.pointer import lookup_folder
from sereno.lookup.where import Where, few, lookup_home, objects_of, redis_of, where_of
from sereno.places import Place, write_place
from sereno.predictions import find_reject, find_row
from sereno.settings import ModelSettings, Settings
from sereno.snapshots import Keep, Rollback, SnapshotStore, State, clean
from sereno.status import Status, change_status
from sereno.storage import GOES_ON, exclusive, refresh, told

if TYPE_CHECKING:
    from sereno.adapters.lookup_redis.store import LookupRedis

EXPORT_PATIENCE = 300.0  # seconds that an export may keep the next one waiting
STATUS_PATIENCE = 10.0  # and who writes the status file, which takes a millisecond
AS_IT_WAS = "What was in service stays. Mend that, then try again."


class Home:
    """What belongs to one model: its table, its attempts, its exports, its lookups.

    All that must last lies below `root`: the home, a folder of this machine, or the place that the setting `storage` names.
    """

    def __init__(self, settings: Settings, name: str, chosen: ModelSettings | None = None) -> None:
        self.path = settings.home.resolve()  # one spelling, so that paths that were written down compare
        self.root: Place = settings.root.resolve()
        self.lookups = lookup_home(settings)
        self.name = name
        self.chosen = chosen or settings.model(name, {})
        self.store = SnapshotStore(self.root, name, partial(self._across, "publish"), self.path)
        self.attempts = Attempts(self.path, name, self.root)
        self.settings = settings

    @contextlib.contextmanager
    def used(self, then: str = GOES_ON) -> Iterator[None]:
        """As `told`: what cannot be used is the home, or the storage, by the file that the error names."""
        try:
            yield
        except OSError as error:
            what = f"storage {self.root}" if self._is_in_storage(error.filename) else f"home {self.path}"
            with told(f"The {what} cannot be used", then):
                raise

    def _is_in_storage(self, file: object) -> bool:
        """Whether it lies there, or on the way there, and not in the home."""
        if not isinstance(file, str | Path) or not isinstance(self.root, Path) or self.root == self.path:
            return False
        path = Path(file)
        is_at_home = path.is_relative_to(self.path) and not self.root.is_relative_to(self.path)
        return not is_at_home and (path.is_relative_to(self.root) or self.root.is_relative_to(path))

    @contextlib.contextmanager
    def ledger(self) -> Iterator[RunLedger]:
        """The ledger of runs, for who writes to it: it is made where there is none. Raises LedgerError."""
        with contextlib.closing(open_ledger(self.settings)) as ledger:
            yield ledger

    def exports(self) -> list[Export]:
        return [
            make_export(setting, home=self.path, model=self.name, storage=self.root) for setting in self.chosen.exports
        ]

    def token(self, lease: Lease) -> int:
        """What a snapshot that is published under a lease keeps of it; 0: nothing that another ledger's could be held against."""
        is_shared = self.settings.ledger is not None or isinstance(self.root, Path)
        return lease.token if is_shared else 0

    @property
    def keep(self) -> Keep:
        """What retention keeps of the table and its exports. Indexes of lookups: of those, the default's."""
        chosen = self.chosen
        return Keep(
            snapshots=chosen.keep_snapshots,
            young=timedelta(hours=chosen.keep_hours),
            profiles=timedelta(days=chosen.keep_run_days),
        )

    @property
    def is_looked_up(self) -> bool:
        """Whether the index of lookups is to follow the table here: a server asked for it by its folder, or a setting."""
        if self.chosen.lookup == "auto":
            return lookup_folder(self.lookups, self.name).is_dir()
        return self.chosen.lookup == "required"

    def follow(self, *, succeeded: bool = False, due_at: datetime | None = None) -> None:
        """Make lookups and every export show what is served; lookups that are off go. Raises ExportError after all were tried.

        The status file follows, too: that a run `succeeded` if all did, and when the next is due. One process at a time,
        which reads the log when its turn comes: else the slower of two would undo the other.
        """
        locks = self.path / ".sereno" / "locks"
        busy = f"Another process (pid {{pid}}) is exporting {self.name!r}. Start this again when it is done."
        with (
            exclusive(locks / f"{self.name}.export", busy, wait_seconds=EXPORT_PATIENCE),
            self._across("export", busy, EXPORT_PATIENCE),
        ):
            state = self.store.state()
            self._follow(state, succeeded, due_at)
            while self._has_moved_on(state):  # this one stood still, and another host took its turn
                state = self.store.state()
                self._follow(state, succeeded, due_at)

    def shared_lookups(self) -> LookupRedis | None:
        """The lookups that several hosts share, where a setting says so. Nothing is opened yet.

        Raises SettingsError, and MissingExtraError.
        """
        where = where_of(self.settings)
        if where is None or self.settings.lookup_store is None:
            return None
        return redis_of(where, self.path, self.name)

    def _lookup_followers(self, state: State, indexed: frozenset[int]) -> list[tuple[str, Callable[[], object]]]:
        """What makes the lookups show what is served, or removes those that are off."""
        followers: list[tuple[str, Callable[[], object]]] = []
        where = where_of(self.settings)
        if where is not None and where.is_objects:
            return [("lookup", partial(self._follow_objects, where, state, indexed))]
        is_shared = self.settings.lookup_store is not None
        if is_shared:
            followers.append(("lookup", partial(self._follow_shared, state, indexed)))
        if (self.is_looked_up and not is_shared) or lookup_folder(self.lookups, self.name).is_dir():
            from sereno.adapters.lookup_folder import LookupFolder

            lookups = LookupFolder(self.lookups, self.name)
            # what is not in service is left to a server, so that nobody waits for it here, unless there may be none
            most = None if self.chosen.lookup == "required" else 0
            if self.is_looked_up and not is_shared:
                followers.append(("lookup", partial(lookups.follow, state, indexed, most=most)))
            else:
                followers.append(("lookup", lookups.remove))
        return followers

    def _follow_objects(self, where: Where, state: State, indexed: frozenset[int]) -> None:
        lookups = objects_of(where, self.path, self.name)
        if self.chosen.lookup == "off":
            lookups.remove()
        elif self.chosen.lookup == "required" or lookups.is_wanted():
            # of what is not in service those indexes stay that are there; none is built that nobody may ever need
            lookups.follow(state, indexed, most=0)

    def _follow_shared(self, state: State, indexed: frozenset[int]) -> None:
        shared = self.shared_lookups()
        assert shared is not None
        if self.chosen.lookup != "off":
            shared.follow(state, few(state, indexed, self.settings.lookup_versions))
        else:
            shared.remove()

    def _follow(self, state: State, succeeded: bool, due_at: datetime | None) -> None:
        if not state.served:
            return
        self.store.flush(state.table_version)
        keep = state.kept(datetime.now(UTC), self.keep)
        followers = self._lookup_followers(state, state.kept(datetime.now(UTC)) & keep)
        followers += [(export.name, partial(export.follow, state.served, keep)) for export in self.exports()]
        failed = []
        for name, follow in followers:
            try:
                follow()
            except SerenoError as error:
                failed.append(f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 - the others follow, whatever keeps this one from it
                failed.append(f"{name}: {type(error).__name__}: {error}.")
        self._write_status(state, succeeded=succeeded and not failed, due_at=due_at)
        if failed:
            raise ExportError(
                f"Version {state.served[-1].number} is in service, but {len(failed)} of its exports could not "
                f"follow: {' '.join(failed)}"
            )

    @contextlib.contextmanager
    def _across(self, what: str, busy: str, patience: float) -> Iterator[None]:
        """Keep other hosts out, too, where there may be any: where the ledger is one that several can use.

        The locks of files may be each host's own. Should the ledger fail, it goes on with those alone: a rollback must be
        possible without it, no commit needs it, and exports that two hosts have mixed up follow with the next run.
        """
        with contextlib.ExitStack() as stack:
            if self.settings.ledger is not None:
                with contextlib.suppress(LedgerError):
                    ledger = stack.enter_context(self.ledger())
                    told_where = busy.replace("(pid", "on host {host} (pid")
                    stack.enter_context(hold_name(ledger, f"{what}:{self.name}", told_where, patience))
                self.store.refresh()
            yield

    def _has_moved_on(self, state: State) -> bool:
        if self.settings.ledger is None and isinstance(self.root, Path):
            return False
        self.store.refresh()
        return self.store.table_version() > state.table_version

    def succeeded(self, due_at: datetime | None) -> None:
        """A run has ended well; the next one is due then, if that is known. Raises OSError where it cannot be noted."""
        self._write_status(None, succeeded=True, due_at=due_at)

    def _write_status(self, state: State | None, *, succeeded: bool, due_at: datetime | None) -> None:
        """Bring the status file up to date; `state` is read where there is no file yet. What stays the same is not written."""

        def changed(before: Status | None) -> Status | None:
            nonlocal state
            if state is None and before is None:
                state = self.store.state()
            after = before
            if state is not None and state.newest is not None:
                newest = state.newest
                published = max(s.published_at for s in state.snapshots.values())
                after = Status(
                    model=self.name,
                    last_success_at=before.last_success_at if before else published,
                    version=newest.number,
                    data_date=newest.data_date,
                    data_time=newest.data_time,
                    published_at=newest.published_at,
                    due_at=before.due_at if before else None,
                )
            if after is not None and succeeded:
                later = max((t for t in (after.due_at, due_at) if t), default=None)
                after = msgspec.structs.replace(after, last_success_at=datetime.now(UTC), due_at=later)
            return after

        lock = self.path / ".sereno" / "locks" / f"{self.name}.status"
        busy = f"Another process (pid {{pid}}) writes the status file of {self.name!r}. Start this again."
        with exclusive(lock, busy, wait_seconds=STATUS_PATIENCE):
            change_status(self.root, self.name, changed)

    @property
    def rolling_back(self) -> Place:
        """A file that names the table's version after a rollback, from before its commit until its exports followed."""
        return self.root / ".sereno" / "locks" / f"{self.name}.rolling-back"

    def clean(self, ledger: RunLedger | None = None, *, dry_run: bool = False) -> dict[Place, int]:
        """Remove files that nothing needs any more, neither here nor (as the ledger knows) on another host that works on
        a run of this model; which, and how large they were."""

        def elsewhere(run_key: str) -> bool:
            try:
                return ledger is not None and ledger.holder(lease_name(self.name, run_key)) is not None
            except LedgerError:
                return True  # nobody knows: they are removed another time

        def needed() -> tuple[set[str], set[Place]]:
            if self.settings.ledger is not None and isinstance(self.attempts.folder, Path):
                refresh(self.attempts.folder)  # an attempt that another host has just begun
            return self.attempts.needed(elsewhere)

        return clean(self.store, needed, self.keep, dry_run=dry_run)


def rollback(home: Home, *, to: int | None = None, day: str | None = None, why: str = "", who: str = "") -> Rollback:
    """Put an older snapshot back in service, exports included. Returns what was in service and what is now.

    It needs no ledger, which is told at the end. Raises NotFoundError, PublishError, ExportError where an export could not
    follow, and LedgerError.
    """
    chosen = None
    if day is not None:
        try:
            chosen = date.fromisoformat(day)
        except ValueError:
            raise SettingsError(f"{day!r} is no date; write it as 2026-05-01.") from None
    with home.used(AS_IT_WAS):
        state = home.store.state()
        unfinished = home.rolling_back.exists() and home.rolling_back.read_text() == str(state.table_version)
        if unfinished and state.last_rollback:
            before, served = state.last_rollback
            if to in (None, served and served.number) and chosen in (None, before and before.data_date):
                # It died, or its exports failed, after its commit: this one finishes it, and goes no further back.
                home.follow()
                home.rolling_back.unlink(missing_ok=True)
                _tell_ledger(home, who)
                return state.last_rollback
        write_place(home.rolling_back, str(state.table_version + 1).encode())
        done = home.store.rollback(to=to, day=chosen, why=why, who=who, keep=home.keep)
        home.follow()
        home.rolling_back.unlink(missing_ok=True)
        _tell_ledger(home, who)
    return done


def _tell_ledger(home: Home, who: str) -> None:
    """What the ledger says of runs whose versions were rolled back, or are in service again. Raises LedgerError."""
    served = home.store.state()
    numbers = ", ".join(str(s.number) for s in served.served[-1:])
    with but_not_told(f"Version {numbers} is in service again."), home.ledger() as ledger:
        tell_rollbacks(ledger, home.name, served, who)


def get(home: Home, key: Sequence[str], *, version: int | None = None) -> dict[str, Any]:
    """The published prediction of one key, given as texts in declared order: key, outputs, version, data date, age.

    Raises NotFoundError.
    """
    state = home.store.state()
    if state.newest is None:
        raise NotFoundError(f"No snapshot of model {home.name!r} is published. `sereno run` publishes the first.")
    snapshots = list(reversed(state.served)) if version is None else [home.store.kept_snapshot(state, version)]
    for snapshot in snapshots:  # by date: the newest date that has the key
        row = find_row(snapshot, key)
        if row is not None:
            age = (datetime.now(UTC) - snapshot.data_time).total_seconds()
            return row | {
                "version": snapshot.number,
                "data_date": snapshot.data_date.isoformat(),
                "data_time": snapshot.data_time.isoformat(),
                "age_seconds": round(age),
            }
    shown = ", ".join(key)
    if reason := find_reject(home.store.folder, snapshots[0], key):
        raise NotFoundError(f"Key {shown} was rejected in version {snapshots[0].number} of {home.name!r}: {reason}.")
    raise NotFoundError(
        f"Key {shown} is not in version {snapshots[0].number} of {home.name!r} ({snapshots[0].rows:,} rows)."
    )
