"""Is all well? For `sereno health`, a dead-man's switch: it must not need the process that it watches over.

It reads the ledger and the status files, never the log of a table, so that it takes well under a second however many
models there are. Light: nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sereno.adapters.objects import within
from sereno.exceptions import LedgerError, NotFoundError
from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Notice, Pause, RunState, open_ledger
from sereno.operate.notices.unread import Unread, read_unread
from sereno.operate.notices.words import addresses, is_pending, untellable
from sereno.settings import ModelSettings, Settings, redact
from sereno.status import Status, read_statuses
from sereno.typed import options_of, typed

BY_SCHEDULER = "sereno"  # who paused a model, where nobody did
UNTOLD_FOR = timedelta(hours=1)  # what was not told for so long, nobody tells
STORE_DEADLINE = timedelta(seconds=10)  # an object store that has not answered by then is what is wrong
TRACES = 20  # runs that are looked at to find whether a scheduler was here
MOST_REASON = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """Something that needs somebody."""

    model: str | None  # None: it concerns all
    what: str  # file, storage, never, failed, held, overdue, paused, old, exports, scheduler, notices, ledger, nothing
    says: str
    do: str  # what to do about it


@dataclass(frozen=True, kw_only=True)
class ModelHealth:
    """One model."""

    model: str
    state: str  # of its newest run; "": none is known
    data_date: str | None  # of what is served, as everything below but the last two
    data_time: datetime | None
    version: int | None
    published_at: datetime | None
    freshness_seconds: float | None
    last_success_at: datetime | None
    paused: Pause | None
    wrong: list[Wrong] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Health:
    """What `sereno health` tells."""

    at: datetime
    home: str
    models: list[ModelHealth]
    wrong: list[Wrong]  # of the models, too
    scheduler: str | None  # who holds its lease

    @property
    def ok(self) -> bool:
        return not self.wrong

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "at": self.at.isoformat(),
            "home": self.home,
            "scheduler": self.scheduler,
            "wrong": [vars(one) for one in self.wrong],
            "models": [_plain(vars(one)) | {"ok": not one.wrong} for one in self.models],
        }


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    plain = {
        n: value.isoformat() if isinstance(value, datetime) else value for n, value in told.items() if n != "wrong"
    }
    if pause := told.get("paused"):
        plain["paused"] = _plain(vars(pause))
    return plain


def look(
    settings: Settings, *, model: str | None = None, max_age: float | None = None, now: datetime | None = None
) -> Health:
    """How everything is, or one model. Raises NotFoundError for a model that nobody has heard of, and StorageError."""
    now = now or datetime.now(UTC)
    with within(STORE_DEADLINE):
        statuses = read_statuses(settings.root)
    try:
        with contextlib.closing(_open(settings)) as ledger:
            known = _Known.of(ledger, settings, statuses, now)
    except LedgerError as error:
        known = _Known(trouble=str(error), options=options_of(settings), unread=read_unread(settings.home))
    names = {
        *statuses,
        *known.newest,
        *known.pauses,
        *(n for n, one in settings.models.items() if one.file is not None),
    }
    if model is not None and model not in names:
        raise NotFoundError(
            f"There is no model {model!r} in {settings.home} (there are: {', '.join(sorted(names)) or 'none'}). Say where it "
            "lies with --home."
        )
    chosen = sorted(names) if model is None else [model]
    models = [_judge(one, settings, statuses.get(one), known, max_age, now) for one in chosen]
    wrong = [
        *_of_all(settings, known, names, chosen, now, has_run=bool(statuses or known.newest)),
        *(w for one in models for w in one.wrong),
    ]
    return Health(at=now, home=str(settings.home), models=models, wrong=wrong, scheduler=known.scheduler)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the ledger has to say."""

    newest: dict[str, Entry] = field(default_factory=dict)
    open: dict[str, list[Entry]] = field(default_factory=dict)
    troubled: dict[str, list[Entry]] = field(default_factory=dict)  # failed and held, newest data time first
    published: dict[str, datetime] = field(default_factory=dict)  # data times, of models without a status file
    pauses: dict[str, Pause] = field(default_factory=dict)
    untold: list[Notice] = field(default_factory=list)
    unread: dict[str, Unread] = field(default_factory=dict)
    scheduler: str | None = None
    was_scheduled: bool = False
    trouble: str = ""  # it cannot be read
    elsewhere: frozenset[str] = frozenset()  # models of which the ledger tells what was published to another storage
    options: tuple[str, ...] = ()  # that each command gets which is told

    files: frozenset[str] = frozenset()  # models whose file the settings know: their name is enough

    def run(self, entry: Entry) -> str:
        """What runs it again."""
        return self.typed("run", entry.model if entry.model in self.files else "FILE", "--date", _date(entry))

    def typed(self, *words: str) -> str:
        return typed(self.options, *words)

    @classmethod
    def of(cls, ledger: RunLedger, settings: Settings, statuses: dict[str, Status], now: datetime) -> _Known:
        newest = ledger.newest(now)
        published: dict[str, datetime] = {}
        ended: tuple[RunState, ...] = ("published",)
        for name in newest.keys() - statuses.keys():
            published |= {one.model: one.data_time for one in ledger.entries(model=name, states=ended, limit=1)}
        holder = ledger.holder("scheduler")
        return cls(
            newest=newest,
            open=_by_model(ledger.open_entries()),
            troubled=_by_model(ledger.entries(states=("failed", "held"))),
            published=published,
            elsewhere=frozenset(name for name in published if lies_elsewhere(settings, name)),
            pauses=ledger.pauses(),
            untold=ledger.untold(),
            options=options_of(settings),
            files=frozenset(name for name, one in settings.models.items() if one.file is not None),
            unread=read_unread(settings.home),
            scheduler=holder.holder if holder else None,
            was_scheduled=_was_scheduled(ledger, newest.values()),
        )


def _open(settings: Settings) -> RunLedger:
    """The ledger; where there is none yet, an empty one that leaves no file behind."""
    if settings.ledger is None and not (settings.home / ".sereno" / "ledger.sqlite").exists():
        return cast("RunLedger", _Nothing())
    return open_ledger(settings)


class _Nothing:
    """A ledger that knows nothing: to look must not make one."""

    def newest(self, until: datetime) -> dict[str, Entry]:
        return {}

    def pauses(self) -> dict[str, Pause]:
        return {}

    def entries(self, **_: object) -> list[Entry]:
        return []

    def open_entries(self) -> list[Entry]:
        return []

    def untold(self) -> list[Notice]:
        return []

    def holder(self, name: str) -> None:
        return None

    def close(self) -> None:
        pass


def _by_model(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.model].append(entry)
    return found


def lies_elsewhere(settings: Settings, model: str) -> bool:
    """Whether nothing of a model that was published is in this storage. Raises StorageError."""
    if settings.storage is None:
        return False
    with within(STORE_DEADLINE):
        return not (settings.root / "predictions" / model).is_dir()


def says_elsewhere(settings: Settings, model: str) -> str:
    """What is to be known of such a model."""
    return (
        f"Nothing of {model} is in the storage {settings.root}: what the ledger of the home {settings.home} calls published "
        "was published to another one."
    )


def _elsewhere(settings: Settings, model: str) -> Wrong:
    do = "name that storage, or give this one a home of its own: --home, or SERENO_HOME"
    return Wrong(model=model, what="storage", says=says_elsewhere(settings, model), do=do)


def _was_scheduled(ledger: RunLedger, newest: Iterable[Entry]) -> bool:
    """Whether a scheduler had the latest runs: no one else finds that a run is due.

    Who moves on to cron, or to systemd's timers, is thus not told for ever that no scheduler is at work.
    """
    latest = sorted(newest, key=lambda one: one.since, reverse=True)[:TRACES]
    return any(
        one.after in ("due", "skipped") for entry in latest for one in ledger.transitions(entry.model, entry.run_key)
    )


def _of_all(
    settings: Settings, known: _Known, names: set[str], chosen: list[str], now: datetime, *, has_run: bool
) -> Iterator[Wrong]:
    if known.trouble:
        yield Wrong(model=None, what="ledger", says=known.trouble, do=f"{known.typed('repair')}, if it is damaged")
    elif not names:
        yield Wrong(
            model=None,
            what="nothing",
            says=f"No model has ever run in {settings.home}, and its sereno.toml knows none.",
            do="say where they are with --home, or start in their folder",
        )
    elif known.scheduler is None and not has_run:
        yield Wrong(
            model=None,
            what="nothing",
            says=f"Nothing has ever run in {settings.home}, and no scheduler is at work there.",
            do=f"{known.typed('up')}; or, if this is the wrong folder, say where it is with --home",
        )
    if known.scheduler is None and known.was_scheduled:
        yield Wrong(
            model=None,
            what="scheduler",
            says="No scheduler is at work, so that nothing is run; the latest runs had one.",
            do=known.typed("up"),
        )
    for notice in known.untold:
        if notice.model in chosen:
            yield from _untold(settings, notice, known, now)


def _untold(settings: Settings, notice: Notice, known: _Known, now: datetime) -> Iterator[Wrong]:
    given = addresses(settings, notice.model)
    told = f"That {notice.model} was {notice.kind} ({notice.run_key})" if notice.kind != "recovered" else "A recovery"
    for label, why in untellable(notice, given).items():
        yield Wrong(
            model=notice.model,
            what="notices",
            says=f"{told} could not be told to {label}: {why}.",
            do=f"{known.typed('notify', '--test')}, and once that works: {known.typed('notify')}",
        )
    if is_pending(notice, given) and now - notice.at > UNTOLD_FOR:
        yield Wrong(
            model=notice.model, what="notices", says=f"{told} has not been told for an hour.", do=known.typed("notify")
        )


def _judge(
    name: str, settings: Settings, status: Status | None, known: _Known, max_age: float | None, now: datetime
) -> ModelHealth:
    newest, pause = known.newest.get(name), known.pauses.get(name)
    data_time = status.data_time if status else None
    freshness = (now - data_time).total_seconds() if data_time else None
    own = settings.given_for(name)
    wrong = list(_wrong(name, status, known, own, now)) if name not in known.elsewhere else [_elsewhere(settings, name)]
    if max_age is not None and not known.trouble and (freshness is None or freshness > max_age):
        what = (
            f"is of {status.data_date}, {_hours(freshness)} old"
            if status and freshness is not None
            else "does not exist"
        )
        wrong.append(
            Wrong(model=name, what="old", says=f"What is served {what}; at most {_hours(max_age)} are asked for.",
                  do=known.typed("runs", name))
        )  # fmt: skip
    return ModelHealth(
        model=name,
        state=newest.state if newest else "",
        data_date=status.data_date.isoformat() if status and status.data_date else None,
        data_time=data_time,
        version=status.version if status else None,
        published_at=status.published_at if status else None,
        freshness_seconds=freshness,
        last_success_at=status.last_success_at if status else None,
        paused=pause,
        wrong=wrong,
    )


def _wrong(name: str, status: Status | None, known: _Known, own: ModelSettings, now: datetime) -> Iterator[Wrong]:
    newest, pause = known.newest.get(name), known.pauses.get(name)
    if (unread := known.unread.get(name)) and _is_unread(unread, status, known, own):
        says = f"Its file {unread.file} does not load, so that no run of it can begin: {_short(unread.says)}"
        yield Wrong(
            model=name,
            what="file",
            says=says,
            do=f"{known.typed('check', name)}; sereno up reads it again once it has changed",
        )
    served = status.data_time if status and status.data_time else known.published.get(name)
    for entry in known.troubled.get(name, []):
        if served is None or entry.data_time > served:  # else something newer was published since
            yield _troubled(entry, known)
            break
    if newest is not None and newest.state == "published" and newest.reason.startswith("ExportError"):
        says = f"Version {newest.version} is published, but an export could not follow: {_short(newest.reason)}"
        yield Wrong(model=name, what="exports", says=says, do=f"mend that; {known.run(newest)} finishes it")
    if pause is not None:
        if pause.who == BY_SCHEDULER:
            do = f"{known.typed('resume', name)}, or {known.typed('resume', name, '--skip-missed')}"
            yield Wrong(model=name, what="paused", says=f"It was paused: {_short(pause.why)}", do=do)
        return  # nothing is due while it is paused
    if own.scheduled and (never := _never(name, status, known, own)):
        yield never
    elif own.scheduled and (overdue := _overdue(name, status, known, timedelta(seconds=own.deadline_seconds), now)):
        yield overdue


def _is_unread(unread: Unread, status: Status | None, known: _Known, own: ModelSettings) -> bool:
    """Whether what a scheduler has found of a file still holds: one that lives reads it again by itself."""
    if not own.scheduled or own.file is None:
        return False
    ran_since = status is not None and status.last_success_at > unread.at
    return known.scheduler is not None or not (unread.has_changed() or ran_since)


def _troubled(entry: Entry, known: _Known) -> Wrong:
    which = entry.attempt or _date(entry)
    says = f"The run for {_date(entry)} {'is held' if entry.state == 'held' else 'failed'}: {_short(entry.reason)}"
    if entry.state == "failed":
        do = known.typed("show", which, "--model", entry.model) if entry.attempt else known.typed("runs", entry.model)
        do += f"; once it is mended, {known.run(entry)}"
    else:
        release, discard = (known.typed(what, which, "--model", entry.model) for what in ("release", "discard"))
        do = f"{release}, or {discard}"
    return Wrong(model=entry.model, what=entry.state, says=says, do=do)


def _never(name: str, status: Status | None, known: _Known, own: ModelSettings) -> Wrong | None:
    """Of a model of which nothing was ever published: who would change that?"""
    newest = known.newest.get(name)
    if status is not None or name in known.published or known.trouble or (own.file is None and newest is None):
        return None
    says = "Nothing of it was ever published"
    if newest is not None and newest.state in ("skipped", "discarded"):
        says += f"; the newest run, of {_date(newest)}, was {newest.state}: {_short(newest.reason)}"
        return Wrong(model=name, what="never", says=says, do=known.typed("runs", name))
    if known.scheduler is not None or (newest is not None and newest.state in ("failed", "held")):
        return None  # it is on its way, or it is said already why not
    return Wrong(
        model=name,
        what="never",
        says=f"{says}; and no scheduler is at work.",
        do=f"{known.typed('up')}, or {known.typed('run', name)}; for a model that is only served, set models.{name}.scheduled = false",
    )


def _overdue(name: str, status: Status | None, known: _Known, allowed: timedelta, now: datetime) -> Wrong | None:
    open_now = known.open.get(name, [])
    for entry in open_now:  # oldest first
        if entry.state in ("due", "waiting", "running") and now > entry.data_time + allowed:
            since = _hours((now - entry.data_time).total_seconds())
            says = (
                f"The run for {_date(entry)} is {entry.state}, and was due {since} ago. {_short(entry.reason)}".rstrip()
            )
            return Wrong(model=name, what="overdue", says=says, do=known.typed("runs", name))
    due = status.due_at if status else None
    newest = known.newest.get(name)
    if due is None or (newest is not None and newest.data_time >= due) or now <= due + allowed:
        return None
    says = f"No run has begun since {due:%Y-%m-%d %H:%M} UTC, when the next one was due."
    do = "see whether sereno up, or the timer or crontab that starts its runs, is at work"
    return Wrong(
        model=name, what="overdue", says=says, do=f"{do}; a model that is run no more: {known.typed('pause', name)}"
    )


def _date(entry: Entry) -> str:
    return entry.label or entry.data_date.isoformat()


def _short(text: str) -> str:
    shown = " ".join(redact(text).split())
    return shown if len(shown) <= MOST_REASON else f"{shown[: MOST_REASON - 1]}…"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if abs(seconds) < 172_800 else f"{seconds / 86_400:.1f} days"
