"""Removing the parts, rejects and profiles that nobody needs any more."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sereno.places import ObjectPath, Place
from sereno.presence import remove, together
from sereno.snapshots.state import Keep
from sereno.snapshots.store import SnapshotStore

BESIDE = ("_rejects", "_profiles")  # folders beside the parts, with a file of an attempt each
ATTEMPT = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{4})?-[0-9a-f]{6}")
IN_THEM = re.compile(rf"\.?({ATTEMPT.pattern})\.(json|parquet)(\.tmp)?")  # also what is being written


def clean(
    store: SnapshotStore,
    needed: Callable[[], tuple[set[str], set[Place]]],
    keep: Keep | None = None,
    *,
    dry_run: bool = False,
) -> dict[Place, int]:
    """Remove the files that neither a kept snapshot nor an attempt needs; which, and how large they were.

    `needed` gives attempts, and files, to keep. The rejects of a snapshot go with its parts; its profile stays
    longer, as later runs are compared with it. Only files that a run wrote are touched. Other runs may begin, write and
    publish meanwhile, hence the order: what there is, then who is at work, then what is published. A file of theirs is
    either not listed yet, or found needed at one of the two.

    In an object store other hosts may roll back meanwhile: what was kept an hour ago stays. Where the table has
    moved on before anything is removed, nothing is: who moved it cleans up.
    """
    if not store.folder.is_dir():
        return {}
    with store.alone():  # a rollback may be about to serve what is about to go
        there = _written(store.folder)
        attempts, files = needed()
        state, now = store.state(), datetime.now(UTC)
        numbers = state.kept(now, keep, store.spared)
        kept = [state.snapshots[n] for n in numbers]
        together(lambda s: len(s.parts), kept)  # which reads their commits
        files |= {p.path for s in kept for p in s.parts}
        files |= {store.folder / s.rejects_file for s in kept if s.rejects_file}
        profiled = [state.snapshots[n] for n in state.profiled(now, keep) | numbers]
        files |= {store.folder / s.profile_file for s in profiled if s.profile_file}
        gone = {
            file: file.stat().st_size if isinstance(file, Path) else size
            for file, size in there.items()
            if file not in files and _attempt_of(file) not in attempts
        }
        if dry_run:
            return gone
        if store.table_version() != state.table_version:
            return {}
        remove(gone)
        for folder in {f.parent for f in gone if isinstance(f, Path) and f.parent.name not in BESIDE}:
            with contextlib.suppress(OSError):  # not empty: other files in it are kept
                folder.rmdir()
        return gone


def _written(table: Place) -> dict[Place, int]:
    """The files that runs wrote, and their sizes, of objects."""
    if isinstance(table, ObjectPath):
        objects = [(path, meta) for path, meta in table.below() if path.parent.parent == table]
        return {p: m.size for p, m in objects if _is_of_runs(p.parent.name) and _attempt_of(p)}
    folders = [folder for folder in table.iterdir() if _is_of_runs(folder.name)]
    files = [file for folder in folders for file in folder.iterdir()]
    return {file: 0 for file in files if _attempt_of(file) and not file.is_dir()}


def _is_of_runs(folder: str) -> bool:
    return folder in BESIDE or ATTEMPT.fullmatch(folder) is not None


def _attempt_of(file: Place) -> str:
    """The attempt that wrote a file of the table; "": a file of somebody else."""
    if file.parent.name not in BESIDE:
        return file.parent.name
    found = IN_THEM.fullmatch(file.name)
    return found[1] if found else ""
