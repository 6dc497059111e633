"""What the log tells: every snapshot ever published, what is served, and what retention keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from sereno.places import Place
from sereno.snapshots.snapshot import LoggedParts, Snapshot

KEPT = 7  # snapshots whose parts and exports are kept, and any that is
KEPT_FOR = timedelta(hours=24)  # younger than this
PROFILES_KEPT_FOR = timedelta(days=400)

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

    table_version: int = -1  # of its newest commit; -1: there is none
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


def read_state(table: Place, until: datetime | None = None) -> State:
    """What the log of a table tells, as it was at a time. Raises StorageError."""
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

    for number, metadata in delta.metadata_of_commits(table):
        at = metadata.get("published_at") or metadata.get("at")
        when = datetime.fromisoformat(at) if at else None
        if until and when and when > until:
            break
        version = number
        what = metadata.get("kind")
        if what == "publish":
            last_rollback = None
            snapshot = logged_snapshot(table, number, metadata)
            snapshots[snapshot.number] = snapshot
            serve(snapshot, snapshot.data_date, snapshot.published_at)
        elif what == "rollback":
            assert when is not None
            told_by = ": ".join(text for text in (metadata["who"], metadata["why"]) if text)
            withdrawn |= dict.fromkeys(numbers_in(metadata["withdrawn"]), told_by)
            for again in numbers_in(metadata.get("restored", "")):
                withdrawn.pop(again, None)
            before, target = (snapshots.get(int(metadata[k] or 0)) for k in ("rolled_back", "serves"))
            last_rollback = (before, target)
            if target:
                withdrawn.pop(target.number, None)
            serve(target, date.fromisoformat(metadata["data_date"]), when)
    return State(
        table_version=version,
        snapshots=snapshots,
        served=tuple(served[d] for d in sorted(served)),
        withdrawn=frozenset(withdrawn),
        why_withdrawn=withdrawn,
        attempts={s.attempt: s.number for s in snapshots.values()},
        served_until=served_until,
        last_rollback=last_rollback,
    )


def logged_snapshot(table: Place, table_version: int, m: dict[str, str]) -> Snapshot:
    """The snapshot that a commit published, from its metadata."""
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
        parts=LoggedParts(table, table_version),
        rejects_file=m["rejects_file"],
        rejects_sha256=m["rejects_sha256"],
        profile_file=m.get("profile_file", ""),
        profile_sha256=m.get("profile_sha256", ""),
        token=int(m.get("token", 0)),
        table_version=table_version,
    )


def numbers_in(text: str) -> list[int]:
    """Of snapshots, as a commit lists them."""
    return [int(number) for number in text.split(",") if number]


def listed(snapshots: dict[int, Snapshot]) -> str:
    """Their numbers, for a message."""
    numbers = sorted(snapshots)
    return ", ".join(map(str, numbers[-10:])) + (" and older ones" if len(numbers) > 10 else "") if numbers else "none"
