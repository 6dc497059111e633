"""Notices: which of them a model wants, where they go, and what they say.

Whoever finds that people are to be told (the scheduler, a run that somebody started) adds a notice to the ledger, which
keeps one of each run and kind. `sender.py` puts it into words, of what is known by then, and tells it. Light: nothing
heavy is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sereno.exceptions import StorageError
from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Notice, NoticeKind, Pause
from sereno.settings import FILE_NAME, Settings, redact
from sereno.status import Status
from sereno.typed import options_of, typed

MOST_TRIES = 10  # of one address, for one notice; then it is given up
MOST_REASON = 2_000  # characters
MOST_LISTED = 200  # notices that one message lists
NEWEST = 50  # how many notices of a model are looked at to find what it has not recovered from
# Kinds of addresses whose host is always a host: of others it may be a topic or a token, and so a secret.
_HAS_HOST = re.compile(r"(json|xml|form|mailto)s?|rsyslog")
_KIND = re.compile(r"([A-Za-z0-9]{1,20})://")
OF_FILE = "file:"  # how the run key begins of a notice that is of no run, but of a model file that does not load
PROBLEMS: tuple[NoticeKind, ...] = ("failed", "held", "late")


# Who wants what


def addresses(settings: Settings, model: str) -> tuple[str, ...]:
    """Who is told of a model: its own addresses, or those of all. They are secrets."""
    own = settings.given_for(model).notify
    return settings.notify if own is None else own


def wants(settings: Settings, model: str, kind: NoticeKind) -> bool:
    """Whether somebody is to be told of such a thing."""
    own = settings.given_for(model).notify_on
    return bool(addresses(settings, model)) and kind in (settings.notify_on if own is None else own)


def is_anyone_told(settings: Settings) -> bool:
    """Whether there is an address at all."""
    return bool(everyone(settings))


def everyone(settings: Settings) -> tuple[str, ...]:
    """Every address there is, once."""
    own = (address for one in settings.models.values() for address in one.notify or ())
    return tuple(dict.fromkeys((*settings.notify, *own)))


def labels(given: Iterable[str]) -> dict[str, str]:
    """What messages call each address → the address itself: its kind, and the host where that is no secret."""
    found: dict[str, str] = {}
    for address in given:
        if address.startswith("secret:"):
            label = address
        else:
            kind = _KIND.match(address)
            label = f"{kind[1].lower()}://{host_of(address)}" if kind else "an address"
        number = 1 + sum(1 for one in found if one == label or one.startswith(f"{label} #"))
        found[label if number == 1 else f"{label} #{number}"] = address
    return found


def host_of(address: str) -> str:
    """The host of an address, where it is one: in "slack://TOKEN/…" it would be a secret."""
    scheme, _, rest = address.partition("://")
    if not _HAS_HOST.fullmatch(scheme.lower()):
        return ""
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    # A password that is not escaped may end the authority too early: then what looks like the host is a piece of it.
    is_cut = "@" in path or ("@" in query and "@" not in authority and ":" in authority)
    return host if re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", host) and not is_cut else ""


# Adding them


def add(ledger: RunLedger, settings: Settings, entry: Entry, kind: NoticeKind, at: datetime, says: str = "") -> bool:
    """Have people told of a run, unless nobody wants that, or they were told already. `says`: why; else the entry's reason.

    Raises LedgerError.
    """
    if not wants(settings, entry.model, kind):
        return False
    says = says or entry.reason
    attempt = _attempt_of_failure(ledger, entry, says) if kind == "failed" else entry.attempt if kind == "held" else ""
    return ledger.add_notice(entry.model, entry.run_key, kind, says, at, attempt)


def _attempt_of_failure(ledger: RunLedger, entry: Entry, says: str) -> str:
    """Of a failure that people know of, that which they were told of; else the newest one.

    They know where nothing but failing was in between, and it is the scheduler's own try, or failed for the same reason.
    """
    from sereno.operate.scheduling.deciding import (  # not for who only looks: it knows of calendars
        WHO,
        is_infrastructure,
    )

    own = (one for one in ledger.notices(entry.model, NEWEST) if one.run_key == entry.run_key and one.kind == "failed")
    told = next(own, None)
    if told is None or (entry.who != WHO and told.says != says):
        return entry.attempt
    since = (one for one in ledger.transitions(entry.model, entry.run_key) if one.at > told.at)
    went_on = any(
        one.after in ("held", "discarded", "skipped")
        or (one.after == "published" and not is_infrastructure(one.reason))
        for one in since
    )
    return entry.attempt if went_on else told.attempt


def add_outcome(ledger: RunLedger, settings: Settings, entry: Entry, at: datetime) -> bool:
    """Have people told how a run ended, where that is anything to tell: it failed, was held, or all is well again.

    Nothing is to be tried again by itself after this: whoever tries again tells when there are no more tries.
    """
    if entry.state == "failed" or (entry.state == "published" and entry.not_before is not None):
        return add(ledger, settings, entry, "failed", at)  # published, but an export could not follow
    if entry.state == "held":
        return add(ledger, settings, entry, "held", at)
    return entry.state == "published" and add_recovered(ledger, settings, entry, at)


def add_recovered(ledger: RunLedger, settings: Settings, entry: Entry, at: datetime) -> bool:
    """A run was published: once, people hear so, where the last that they heard of the model was that something was wrong."""
    if not wants(settings, entry.model, "recovered"):
        return False
    troubled: list[Notice] = []  # their run keys, as texts, are in the order of time
    for notice in ledger.notices(entry.model, NEWEST):
        if notice.run_key.startswith(OF_FILE):
            continue
        if notice.kind == "recovered":
            break
        troubled.append(notice)
    if not troubled or entry.run_key < max(one.run_key for one in troubled):
        return False
    # of each trouble, though it was of one run: it may be held again, and released again
    return ledger.add_notice(entry.model, entry.run_key, "recovered", entry.reason, at, str(troubled[0].number))


class Teller:
    """Adds notices for a scheduler. `settings` may be replaced at any time."""

    def __init__(self, ledger: RunLedger, settings: Settings) -> None:
        self.settings = settings
        self._ledger = ledger

    def tell(self, entry: Entry, kind: NoticeKind, says: str, at: datetime) -> bool:
        """Something is wrong with a run. Whether people are told by this, and were not before. Raises LedgerError."""
        return add(self._ledger, self.settings, entry, kind, at, says)

    def tell_published(self, entry: Entry, at: datetime) -> bool:
        """A run was published. Raises LedgerError."""
        return add_recovered(self._ledger, self.settings, entry, at)


# How far each is told


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far one address was told one notice."""

    tries: int = 0
    told: bool = False
    not_before: float = 0.0  # Unix time: when it is tried again
    says: str = ""  # of the last try

    @property
    def given_up(self) -> bool:
        return not self.told and self.tries >= MOST_TRIES


def key_of(notice: Notice, address: str) -> str:
    """What the ledger calls an address: of each notice another hash, which does not give the address away."""
    salt = f"{notice.model} {notice.run_key} {notice.kind} {notice.at.timestamp():.6f}".encode()
    return hashlib.blake2b(address.encode(), key=hashlib.sha256(salt).digest(), digest_size=12).hexdigest()


def told_of(notice: Notice) -> dict[str, Told]:
    """By the key of each address; the ledger keeps it as the notice's error. One that fails keeps no other from being told once."""
    try:
        return msgspec.json.decode(notice.error, type=dict[str, Told]) if notice.error else {}
    except msgspec.MsgspecError:
        return {}


def kept(told: Mapping[str, Told]) -> str:
    """The same as the ledger keeps it."""
    return msgspec.json.encode(told).decode()


def told_to(notice: Notice, given: Iterable[str]) -> dict[str, Told]:
    """How far each of these addresses was told, by its label."""
    told = told_of(notice)
    return {label: told.get(key_of(notice, address), Told()) for label, address in labels(given).items()}


def is_pending(notice: Notice, given: Iterable[str]) -> bool:
    """Whether one of these addresses is still to be told, now or later."""
    return any(not (one.told or one.given_up) for one in told_to(notice, given).values())


def untellable(notice: Notice, given: Iterable[str]) -> dict[str, str]:
    """The addresses that were given up, and why."""
    return {label: one.says for label, one in told_to(notice, given).items() if one.given_up}


# What they say


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where all this is, as people are told."""

    host: str
    home: str
    root: str = ""  # where what must last lies; "": the home
    folder: str  # where commands are typed: that of sereno.toml, or the home
    options: tuple[str, ...] = ()  # that each command gets: see `options_of`
    files: dict[str, str] = {}  # model → what `sereno run` takes for it, where that is not its name

    def command(self, *words: str) -> str:
        return typed(self.options, *words)


def place_of(settings: Settings, files: Mapping[str, Path] | None = None) -> Place:
    import os

    given = {name: str(file) for name, file in (files or {}).items() if settings.given_for(name).file is None}
    folder = settings.folder or settings.home
    return Place(
        host=os.uname().nodename,
        home=str(settings.home),
        root=str(settings.root),
        folder=str(folder if (folder / FILE_NAME).is_file() else settings.home),
        options=options_of(settings),
        files=given,
    )


_SUBJECTS: Mapping[NoticeKind, str] = {
    "failed": "{model} failed for {date}",
    "held": "{model} is held for {date}",
    "late": "{model} is late: data of {date}",
    "recovered": "{model} has recovered: {date} is published",
}
_OF_FILE: Mapping[NoticeKind, tuple[str, str]] = {
    "failed": (
        "{model} cannot be run: its file does not load",
        "The model file of {model} does not load: no run of it can begin.",
    ),
    "recovered": (
        "{model} has recovered: its file loads again",
        "The model file of {model} loads again, and is scheduled.",
    ),
}
_HAPPENED: Mapping[NoticeKind, str] = {
    "failed": "The run of {model} for {date} failed.",
    "held": "The run of {model} for {date} is held: its result is kept aside until somebody decides.",
    "late": "The data of {model} for {date} was not there by its deadline.",
    "recovered": "{model} publishes again: the run for {date} went well.",
}


def compose(
    notice: Notice, place: Place, *, entry: Entry | None, pause: Pause | None, status: Status | None
) -> tuple[str, str]:
    """Subject and text of a notice. What is not known (any more) is left out."""
    date = entry.data_date.isoformat() if entry else notice.run_key
    words = {"model": notice.model, "date": (entry.label if entry else "") or date}
    is_pause = notice.kind == "held" and pause is not None and not (entry and entry.attempt)
    subject, happened = _SUBJECTS[notice.kind], _HAPPENED[notice.kind]
    if is_pause:
        subject = "{model} is paused"
        happened = "The schedule of {model} is paused: it starts no runs until somebody decides."
    elif notice.run_key.startswith(OF_FILE):
        subject, happened = _OF_FILE[notice.kind]
    from sereno.places import place_of as place_named

    subject = subject.format(**words)
    lines = [happened.format(**words)]
    if notice.says:
        lines.append(f"Why: {_plain(notice.says.removeprefix(f'{notice.kind}: '))}")
    if entry and (since := _since(notice, entry)):
        lines.append(since)
    lines += ["", _in_service(status)]
    if commands := _commands(notice, place, entry, is_pause=is_pause):
        lines += ["", f"What to do, on {place.host}:", f"  cd {shlex.quote(place.folder)}"]
        width = max(len(command) for command, _ in commands)
        lines += [f"  {command:<{width}}   # {why}" for command, why in commands]
    lines.append("")
    if entry and entry.attempt:
        page = place_named(place.root or place.home) / ".sereno" / "runs" / notice.model / entry.attempt / "report.html"
        with contextlib.suppress(StorageError):
            if page.is_file():
                lines.append(f"Report: {page}")
    lines.append(f"Host {place.host}, home {place.home}, {notice.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC.")
    return subject, "\n".join(lines) + "\n"


def compose_many(notices: Sequence[Notice], place: Place, entries: Mapping[int, Entry | None]) -> tuple[str, str]:
    """The same of several at once, a line each: a night on which everything fails is one message."""
    counts = {kind: sum(1 for one in notices if one.kind == kind) for kind in (*PROBLEMS, "recovered")}
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    lines = [f"{len(notices)} notices at once: {shown}.", ""]
    for notice in notices[:MOST_LISTED]:
        entry = entries.get(notice.number)
        date = (entry.label or entry.data_date.isoformat()) if entry else notice.run_key
        reason = f": {_plain(notice.says)[:200]}" if notice.says else ""
        subject = _OF_FILE[notice.kind][0] if notice.run_key.startswith(OF_FILE) else _SUBJECTS[notice.kind]
        lines.append(f"- {subject.format(model=notice.model, date=date)}{reason}")
    if len(notices) > MOST_LISTED:
        lines.append(f"- and {len(notices) - MOST_LISTED} more")
    lines += [
        "",
        f"What to do, on {place.host}:",
        f"  cd {shlex.quote(place.folder)}",
        f"  {place.command('health')}   # what is wrong now, and what to do about each",
        "",
        f"Host {place.host}, home {place.home}, {notices[-1].at.astimezone(UTC):%Y-%m-%d %H:%M} UTC.",
    ]
    return f"{len(notices)} notices: {shown}", "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """One line, without passwords and without what a terminal or an e-mail would take for more than text."""
    shown = "".join(c if c.isprintable() else " " for c in redact(text))
    shown = " ".join(shown.split())
    return shown if len(shown) <= MOST_REASON else f"{shown[: MOST_REASON - 1]}…"


def _since(notice: Notice, entry: Entry) -> str:
    """What happened after the notice was added, as it may be told late."""
    is_as_told = entry.state in {"failed": ("failed",), "held": ("held",), "recovered": ("published",)}.get(
        notice.kind, ("held", "skipped", "waiting", "due")
    )
    if is_as_told or (notice.kind == "failed" and entry.state == "published" and entry.not_before):
        return ""
    if entry.state == "published":
        return f"Since then it was published, as version {entry.version}." if entry.version else ""
    return f"By now it is {entry.state}."


def _in_service(status: Status | None) -> str:
    if status is None or status.version is None or status.data_date is None:
        return "In service: nothing is known to be."
    published = f", published {status.published_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if status.published_at else ""
    return f"In service: version {status.version}, data date {status.data_date}{published}."


def _commands(notice: Notice, place: Place, entry: Entry | None, *, is_pause: bool) -> list[tuple[str, str]]:
    model = notice.model
    if is_pause:
        return [
            (place.command("resume", model), "run all that was missed, oldest first"),
            (place.command("resume", model, "--skip-missed"), "or leave it out"),
        ]
    if notice.kind == "failed" and notice.run_key.startswith(OF_FILE):
        return [
            (
                place.command("check", place.files.get(model, model)),
                "what is wrong with it, and then whether it is mended",
            )
        ]
    if notice.kind == "recovered" or entry is None:
        return [(place.command("runs", model), "its runs")]
    label = entry.label or entry.data_date.isoformat()
    run = (place.command("run", place.files.get(model, model), "--date", label), "once the cause is mended")
    if entry.attempt:
        show = [(place.command("show", entry.attempt, "--model", model), "what it did, and why it ended so")]
        which = entry.attempt
    else:
        show, which = [], label
    if notice.kind == "failed":
        return [*show, run]
    decide = [
        (
            place.command("release", which, "--model", model),
            "publish it" if entry.attempt else "run it with what is there",
        ),
        (place.command("discard", which, "--model", model), "or drop it"),
    ]
    if notice.kind == "held":
        return [*show, *decide]
    run = (run[0], "once the data is there")
    return [run, *(decide if entry.state == "held" else [])]
