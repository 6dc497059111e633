"""The process that makes the lookups of one model follow its table: `python -m sereno.lookup.builder HOME MODEL`.

Not for people. A server starts it whenever the table is ahead of its lookups and nobody else saw to it: whoever published
died, has no right to write there, or knew nothing of a server. It builds one index, so that each model has its turn. From an
object store it fetches what is served, and builds only what nobody else does.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.lookup.where import few, objects_of, redis_of, where_told
from sereno.places import ObjectPath
from sereno.presence import sizes

if TYPE_CHECKING:
    from sereno.snapshots import Snapshot, State

LOG = logging.getLogger("sereno.lookup")
NICE = 5  # requests are answered first


def main(home: Path, model: str) -> int:
    from sereno.exceptions import SerenoError
    from sereno.snapshots import SnapshotStore
    from sereno.storage import told

    logging.basicConfig(format="sereno: %(message)s", level=logging.INFO)
    os.nice(NICE)
    try:
        with told(
            f"The lookups of {model} in {home} cannot follow its table", "They go on as they are; it is tried again."
        ):
            where = where_told()
            if where is not None and where.is_objects:
                table = SnapshotStore(ObjectPath.of(where.address), model)
                objects_of(where, home, model).catch_up(table.state, lambda state: state.kept(datetime.now(UTC)))
                return 0
            store = SnapshotStore(where.root or home if where is not None else home, model)
            state = store.state()
            if state.served:
                store.flush(state.table_version)  # a commit that a power cut could take back is not shown to anybody
            if where is None:
                from sereno.adapters.lookup_folder import LookupFolder

                LookupFolder(home, model).follow(state, _indexed(state), most=1)
            else:
                shared = redis_of(where, home, model)
                shared.follow(state, few(state, _indexed(state), where.versions), most=1)
    except SerenoError as error:
        LOG.error("%s", error)
        return 1
    return 0


def _indexed(state: State) -> frozenset[int]:
    """What has an index: of what is kept by default, as the settings are not known here, what the settings have left."""
    kept = state.kept(datetime.now(UTC))
    return frozenset(n for n in kept if _has_all(state.snapshots[n]))


def _has_all(snapshot: Snapshot) -> bool:
    parts = snapshot.parts
    return len(sizes(part.path for part in parts)) == len(parts)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
