"""Retention: what is kept, and what goes. Each run cleans up after itself; this looks at everything, also between runs.

Parts and rejects go with their snapshots (`keep_snapshots`, `keep_hours`); profiles, reports of runs and what the ledger
knows of them after `keep_run_days`. What is served, held, may be resumed or is to be compared with stays, whatever its age.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sereno.batch.attempts import Report
from sereno.compare.temporary import leftovers, remove
from sereno.home import AS_IT_WAS, Home
from sereno.interfaces import RunLedger
from sereno.ledger import open_ledger
from sereno.places import Place
from sereno.settings import Settings
from sereno.shared import left_checks
from sereno.storage import is_held, told

ENDED = ("published", "failed", "discarded", "nothing")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What went, or would go, of one kind."""

    model: str  # "": of all
    what: str
    count: int
    size: int  # bytes


def models_of(root: Place) -> list[str]:
    """Every model that has left something in a home, or below another root."""
    places = [root / part for part in ("predictions", ".sereno/runs")]
    return sorted({folder.name for one in places if one.is_dir() for folder in one.iterdir() if folder.is_dir()})


def prune(settings: Settings, models: Sequence[str], *, dry_run: bool = False) -> list[Pruned]:
    """Remove what retention does not keep; what went. Raises StorageError, BusyError, LedgerError."""
    found: list[Pruned] = []
    with (
        contextlib.closing(open_ledger(settings)) as ledger,
        told(f"The home {settings.home} cannot be pruned", AS_IT_WAS),
    ):
        for name in models:
            found += _of_model(Home(settings, name), ledger, dry_run)
        found.append(_of_comparisons(settings.home, dry_run))
        found.append(_of_checks(settings.home, dry_run))
    return [one for one in found if one.count]


def _of_model(home: Home, ledger: RunLedger, dry_run: bool) -> Iterator[Pruned]:
    exports = _old_exports(home)  # before the parts go: of those, an export may be another name
    yield Pruned(model=home.name, what="folders of exports", count=len(exports), size=sum(map(_size, exports)))
    files = home.clean(ledger, dry_run=dry_run)
    yield Pruned(model=home.name, what="files of old snapshots", count=len(files), size=sum(files.values()))
    before = _days_ago(home.chosen.keep_run_days)
    reports = _old_reports(home, before)
    folders = [home.attempts.lasting(report) for report in reports]
    count = ledger.prune(before, model=home.name, dry_run=dry_run)
    yield Pruned(model=home.name, what="runs in the ledger", count=count, size=0)
    yield Pruned(model=home.name, what="reports of runs", count=len(reports), size=sum(map(_size, folders)))
    locks = list(_old_locks(home, before))
    yield Pruned(model=home.name, what="locks of runs", count=len(locks), size=0)
    if not dry_run:
        if exports:
            home.follow()
        for report in reports:
            home.attempts.forget(report, ignore_errors=False)
        for lock in locks:
            lock.unlink(missing_ok=True)


def _of_comparisons(home: Path, dry_run: bool) -> Pruned:
    folders = leftovers(home)
    pruned = Pruned(model="", what="comparisons that were killed", count=len(folders), size=sum(map(_size, folders)))
    if not dry_run:
        for folder in folders:
            remove(home, folder)
    return pruned


def _of_checks(home: Path, dry_run: bool) -> Pruned:
    folders = left_checks(home)
    what = "checks of shared folders, of runs that were killed"
    pruned = Pruned(model="", what=what, count=len(folders), size=sum(map(_size, folders)))
    if not dry_run:
        for folder in folders:
            shutil.rmtree(folder)
    return pruned


def _old_exports(home: Home) -> list[Place]:
    """Folders of snapshots that exports have and need not. (What a database has is pruned at each run.)"""
    state = home.store.state()
    kept = state.kept(datetime.now(UTC), home.keep)
    place = home.root / "exports" / home.name
    formats: list[Place] = list(place.iterdir()) if place.is_dir() else []
    folders: list[Place] = [folder for one in formats if one.is_dir() for folder in one.iterdir()]
    return [one for one in folders if one.name.isdecimal() and not one.is_symlink() and int(one.name) not in kept]


def _old_reports(home: Home, before: datetime) -> list[Report]:
    state = home.store.state()
    kept = {state.snapshots[number].attempt for number in state.kept(datetime.now(UTC), home.keep)}
    return [
        report
        for report in home.attempts.all()
        if report.started_at < before and report.state in ENDED and report.attempt not in kept
    ]


def _old_locks(home: Home, before: datetime) -> Iterator[Path]:
    for lock in (home.path / ".sereno" / "locks").glob(f"{home.name}.*.run"):
        if lock.stat().st_mtime < before.timestamp() and not is_held(lock):
            yield lock


def _days_ago(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=min(days, 700_000))  # the calendar begins a little before


def _size(folder: Place) -> int:
    """Bytes that nothing else names: on a disk, an export of Parquet is links to the parts."""
    if not isinstance(folder, Path):
        return sum(meta.size for _, meta in folder.below())
    known = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(one.st_size for one in known if one.st_nlink == 1)
