"""Snapshots: what was published, what is served, and how one becomes the other. The Delta log is the only truth.

A *snapshot* is a published run's output; its number, in the commit's metadata, is what *version* means everywhere.

snapshot.py  one of them, its parts, and what is about to become one
state.py     all of them as the log tells them: what is served, withdrawn, kept
store.py     the table: publishing and rolling back, each by one commit
cleaning.py  what nobody needs any more goes
"""

from sereno.snapshots.cleaning import clean
from sereno.snapshots.snapshot import PARTITION, Part, Publication, Snapshot, schema_of
from sereno.snapshots.state import KEPT, Keep, Rollback, State
from sereno.snapshots.store import SnapshotStore

__all__ = [
    "KEPT",
    "PARTITION",
    "Keep",
    "Part",
    "Publication",
    "Rollback",
    "Snapshot",
    "SnapshotStore",
    "State",
    "clean",
    "schema_of",
]
