"""The tables of a ledger, the same in both databases, and how its values become rows and back.

Times are whole microseconds since 1970, UTC: SQLite has no type for them, and so they compare alike in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sereno.ledger import Entry, Notice, Pause, Transition

FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# {number}: a number that grows with each row
TABLES = (
    # format, began, token
    "CREATE TABLE sereno_ledger (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    """CREATE TABLE sereno_runs (
        model TEXT NOT NULL, run_key TEXT NOT NULL, data_date TEXT NOT NULL, data_time BIGINT NOT NULL, state TEXT NOT NULL,
        since BIGINT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL, attempt TEXT NOT NULL, version BIGINT,
        tries BIGINT NOT NULL, not_before BIGINT, label TEXT NOT NULL, PRIMARY KEY (model, run_key))""",
    "CREATE INDEX sereno_runs_by_model ON sereno_runs (model, data_time)",
    "CREATE INDEX sereno_runs_by_time ON sereno_runs (data_time)",
    "CREATE INDEX sereno_runs_by_state ON sereno_runs (state, data_time)",
    "CREATE INDEX sereno_runs_again ON sereno_runs (not_before) WHERE not_before IS NOT NULL",
    """CREATE TABLE sereno_transitions (
        number {number}, model TEXT NOT NULL, run_key TEXT NOT NULL, at BIGINT NOT NULL, before TEXT, after TEXT NOT NULL,
        reason TEXT NOT NULL, who TEXT NOT NULL, attempt TEXT NOT NULL)""",
    "CREATE INDEX sereno_transitions_by_run ON sereno_transitions (model, run_key)",
    # era and until: by the ledger's own clock (see `Now`)
    """CREATE TABLE sereno_leases (
        name TEXT PRIMARY KEY, holder TEXT NOT NULL, token BIGINT NOT NULL, era TEXT NOT NULL, until BIGINT NOT NULL,
        wall_until BIGINT NOT NULL)""",
    "CREATE TABLE sereno_pauses (model TEXT PRIMARY KEY, since BIGINT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL)",
    """CREATE TABLE sereno_notices (
        number {number}, model TEXT NOT NULL, run_key TEXT NOT NULL, kind TEXT NOT NULL, at BIGINT NOT NULL,
        says TEXT NOT NULL, tries BIGINT NOT NULL, told_at BIGINT, error TEXT NOT NULL, UNIQUE (model, run_key, kind))""",
    "CREATE INDEX sereno_notices_untold ON sereno_notices (number) WHERE told_at IS NULL",
)


def _columns(kind: type[Any]) -> str:
    return ", ".join(field.name for field in fields(kind))


ENTRY, TRANSITION, PAUSE = (_columns(kind) for kind in (Entry, Transition, Pause))
NOTICE = "number, model, run_key, kind, at, says, tries, told_at, error"


def storable(parameters: Sequence[Any]) -> list[Any]:
    """With texts that both databases take: names of files may have bytes that are no UTF-8, and messages anything."""
    return [_text(one) if isinstance(one, str) else one for one in parameters]


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


def micros(moment: datetime) -> int:
    """TypeError for a time without a zone."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)


def entry_of(row: Sequence[Any]) -> Entry:
    model, run_key, data_date, data_time, state, since, reason, who, attempt, version, tries, not_before, label = row
    return Entry(
        model=model,
        run_key=run_key,
        data_date=date.fromisoformat(data_date),
        data_time=moment(data_time),
        state=state,
        since=moment(since),
        reason=reason,
        who=who,
        attempt=attempt,
        version=version,
        tries=tries,
        not_before=None if not_before is None else moment(not_before),
        label=label,
    )


def row_of(entry: Entry) -> list[Any]:
    not_before = None if entry.not_before is None else micros(entry.not_before)
    return [
        *(entry.model, entry.run_key, entry.data_date.isoformat(), micros(entry.data_time)),
        *(entry.state, micros(entry.since), entry.reason, entry.who, entry.attempt, entry.version, entry.tries),
        *(not_before, entry.label),
    ]


def transition_of(row: Sequence[Any]) -> Transition:
    model, run_key, at, before, after, reason, who, attempt = row
    return Transition(
        model=model,
        run_key=run_key,
        at=moment(at),
        before=before,
        after=after,
        reason=reason,
        who=who,
        attempt=attempt,
    )


def pause_of(row: Sequence[Any]) -> Pause:
    model, since, who, why = row
    return Pause(model=model, since=moment(since), who=who, why=why)


def stored_kind(kind: str, attempt: str) -> str:
    """What makes a notice of one run another one: the attempt is kept with the kind."""
    return f"{kind} {attempt}" if attempt else kind


def notice_of(row: Sequence[Any]) -> Notice:
    number, model, run_key, stored, at, says, tries, told_at, error = row
    kind, _, attempt = stored.partition(" ")
    return Notice(
        number=number,
        model=model,
        run_key=run_key,
        kind=kind,
        at=moment(at),
        says=says,
        tries=tries,
        told_at=None if told_at is None else moment(told_at),
        error=error,
        attempt=attempt,
    )
