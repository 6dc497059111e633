"""The ledger: what is known of every run, whoever started it, and who may work on what right now.

A run is in one of these states:

    due ──► waiting ──► running ──► published
     │         │           ├──────► held ──► published, discarded
     │         │           └──────► failed ──► due (another try), running
     └────┬────┴──► held, skipped ──► running, due

The Delta log stays the truth about what is published, and an attempt's report about what it did: `sereno repair` makes
a ledger from them again. Only the ledger knows what is due, waited for or skipped, pauses, leases and notices.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sereno.interfaces import RunLedger
    from sereno.settings import Settings

RunState = Literal["due", "waiting", "running", "held", "published", "failed", "skipped", "discarded"]
NoticeKind = Literal["failed", "held", "late", "recovered"]
LEASE_SECONDS = 20.0  # a holder that does not renew its lease for so long has lost it: taken over within 30 s
BEAT_SECONDS = 5.0  # between two renewals
_PLACE, _RANDOM = 8, 8  # digits of the third part of a holder
# why an entry failed whose process did not live to say so
INTERRUPTED = "WorkerError: Interrupted: its process is gone. What it had finished is kept."
# why an entry is due that was held because its input was late: it is started as it is
RELEASED_LATE = "released: the input is not waited for any longer"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run, as the ledger knows it."""

    model: str
    run_key: str  # start of the interval, UTC, as Interval.key
    data_date: date
    data_time: datetime  # end of the interval, UTC
    state: RunState
    since: datetime  # UTC: when it came into this state
    reason: str = ""  # in words: why it is in this state
    who: str = ""  # who brought it there: a user's name, or "sereno" (the scheduler)
    attempt: str = ""  # the newest one
    version: int | None = None  # of the snapshot it published
    tries: int = 0  # attempts that were begun
    not_before: datetime | None = None  # UTC: when the next try is due, of an entry that is to be tried again
    label: str = ""  # what --date takes for it: Interval.label


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A change of state of one run, kept for good (until it is pruned)."""

    model: str
    run_key: str
    at: datetime  # UTC
    before: RunState | None  # None: the ledger did not know the run
    after: RunState
    reason: str
    who: str
    attempt: str = ""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on something, for a while."""

    name: str  # "run:MODEL:RUN_KEY", "scheduler"
    holder: str  # who: see `holder_here`
    token: int  # greater than that of every holder before: whoever has a smaller one has lost it


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A model whose schedule starts no runs."""

    model: str
    since: datetime  # UTC
    who: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that people are to be told, once."""

    number: int
    model: str
    run_key: str
    kind: NoticeKind
    at: datetime  # UTC
    says: str
    tries: int = 0  # how often it was tried to tell it
    told_at: datetime | None = None
    error: str = ""  # of the last try
    attempt: str = ""  # of which it is, where the same may be told of a later one again


def lease_name(model: str, run_key: str) -> str:
    """Of the lease of a run."""
    return f"run:{model}:{run_key}"


def holder_here() -> str:
    """This process, as leases name it: "host:pid:place and random". Two processes never have the same."""
    import os
    import secrets
    import socket

    return f"{socket.gethostname()}:{os.getpid()}:{_place()}{secrets.token_hex(4)}"


def is_here(holder: str) -> bool:
    """Whether a holder's pid is one of those that this process sees.

    The name alone does not say so: machines that were copied share theirs, and so may containers. Who believed that the other's
    process is gone, because no process here has its pid, would take its lease away, again and again.
    """
    import socket

    host, _, rest = holder.partition(":")
    number = rest.partition(":")[2]
    return host == socket.gethostname() and (len(number) != _PLACE + _RANDOM or number[:_PLACE] == _place())


def is_left(lease: Lease | None) -> bool:
    """Whether the process that holds it was one of this host, and is gone: nobody will renew it, or give it back."""
    import os

    if lease is None or not is_here(lease.holder):
        return False
    pid = lease.holder.split(":")[1] if ":" in lease.holder else ""
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, and another user's
        pass
    return False


@cache
def _place() -> str:
    """Where a pid means the same process: one start of one machine, and one namespace of it."""
    import hashlib
    import os

    known = ""
    with contextlib.suppress(OSError):  # where there is no /proc, the name has to do
        known = f"{Path('/proc/sys/kernel/random/boot_id').read_text()}{os.readlink('/proc/self/ns/pid')}"
    return hashlib.sha256(known.encode()).hexdigest()[:_PLACE]


def open_ledger(settings: Settings) -> RunLedger:
    """The ledger of a home: SQLite in `.sereno/ledger.sqlite`, or PostgreSQL where the setting `ledger` has its address.

    Raises LedgerError where it cannot be opened, MissingExtraError where PostgreSQL's driver is not installed.
    """
    from sereno.adapters.ledger import open_at

    return open_at(settings.ledger, settings.home)
