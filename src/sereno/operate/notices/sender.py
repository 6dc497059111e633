"""The sender: a process of its own that tells people what the ledger says they are to be told. One at a time.

    python -P -m sereno.operate.notices.sender [--once] [--again] [--test] < the job, as JSON

It gets its job by stdin, as addresses are secrets that nobody is to read in a list of processes. Each address is told on
its own, and what became of it is written down before the next one is: one that fails keeps no other from being told, and
none is told twice (unless this process is killed between the two). It ends when there is nothing left to tell.
`--once`: each address is tried once, and what failed is left to the next sender. `--again`: also what was given up.
`--test`: a test message to every address instead; JSON tells what became of it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from sereno.exceptions import SerenoError, StorageError
from sereno.failpoints import failpoint
from sereno.interfaces import RunLedger
from sereno.ledger import BEAT_SECONDS, LEASE_SECONDS, Lease, Notice, NoticeKind, holder_here
from sereno.operate.notices.words import (
    Place,
    Told,
    addresses,
    compose,
    compose_many,
    everyone,
    is_pending,
    kept,
    key_of,
    labels,
    place_of,
    told_of,
)
from sereno.places import place_of as place_named
from sereno.settings import Settings
from sereno.status import Status, read_status

LEASE = "sender"
PATIENCE = LEASE_SECONDS + 2 * BEAT_SECONDS  # a sender that was killed has lost its lease by then
LOOK_SECONDS = 0.5
SECONDS_FOR_ONE = 60.0  # a channel that takes longer has failed; should it be done after all, it was told
PAUSES = (10.0, 30.0, 90.0, 300.0, 900.0, 1800.0, 3600.0)  # before another try; about four hours until it is given up
MOST_ALONE = 3  # notices that one address is told one by one; more of them are one message

LOG = logging.getLogger("sereno.operate.notices.sender")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """All that a sender has to know."""

    place: Place
    ledger: str | None  # its address, which is a secret, too
    secrets_folder: str
    notify: tuple[str, ...]
    models: dict[str, tuple[str, ...]]  # those that have addresses of their own

    def settings(self) -> Settings:
        from sereno.settings import ModelSettings

        return Settings(
            home=Path(self.place.home),
            ledger=self.ledger,
            secrets_folder=Path(self.secrets_folder),
            notify=self.notify,
            models={name: ModelSettings(notify=own) for name, own in self.models.items()},
        )


def job_of(settings: Settings, files: Mapping[str, Path] | None = None) -> bytes:
    """What a sender gets by stdin."""
    job = Job(
        place=place_of(settings, files),
        ledger=settings.ledger,
        secrets_folder=str(settings.secrets_folder),
        notify=settings.notify,
        models={name: one.notify for name, one in settings.models.items() if one.notify is not None},
    )
    return msgspec.json.encode(job)


class Tells(Protocol):
    """A channel to one address: `adapters/channels.py`."""

    def tell(self, subject: str, text: str, kind: NoticeKind | None) -> str:
        """Send a message; what went wrong, in words, or nothing."""
        ...


class _Done(msgspec.Struct):
    address: str
    notices: list[Notice]
    error: str


class _Busy(msgspec.Struct):
    notices: list[Notice]
    until: float


class Sender:
    """Tells what is untold. For one thread, but for the threads that wait for channels."""

    def __init__(
        self,
        ledger: RunLedger,
        settings: Settings,
        place: Place,
        lease: Lease,
        open_channel: Callable[[str], Tells],
        *,
        seconds_for_one: float = SECONDS_FOR_ONE,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._ledger, self._settings, self._place, self._lease = ledger, settings, place, lease
        self._open_channel, self._seconds_for_one, self._pauses = open_channel, seconds_for_one, pauses
        self._channels: dict[str, Tells] = {}  # by address
        self._busy: dict[str, _Busy] = {}  # address → what it is being told
        self._ended: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._tried: set[tuple[int, str]] = set()  # number and address, by this sender
        self._renewed = time.monotonic()

    def run(self, stop: threading.Event, *, once: bool = False, again: bool = False) -> None:
        """Until nothing is left to tell (`once`: or all was tried), or it is told to stop. Raises LedgerError."""
        while not stop.is_set():
            if not self._keep_lease():
                LOG.error("another sender has taken over; it tells what is left")
                return
            is_left = False
            for address, notices in self._by_address().items():
                due = [one for one in notices if self._is_due(one, address, once=once, again=again)]
                is_left |= bool(due) or (not once and any(_is_left(self._told(one, address)) for one in notices))
                if due and address not in self._busy:
                    self._start(address, due)
            if not is_left and not self._busy:
                return
            self._record(LOOK_SECONDS)

    def _by_address(self) -> dict[str, list[Notice]]:
        found: dict[str, list[Notice]] = {}
        for notice in self._ledger.untold():
            for address in addresses(self._settings, notice.model):
                found.setdefault(address, []).append(notice)
        return found

    def _label(self, notice: Notice, address: str) -> str:
        given = labels(addresses(self._settings, notice.model))
        return next(label for label, one in given.items() if one == address)

    def _told(self, notice: Notice, address: str) -> Told:
        return told_of(notice).get(key_of(notice, address), Told())

    def _is_due(self, notice: Notice, address: str, *, once: bool, again: bool) -> bool:
        told = self._told(notice, address)
        if (once or again) and (notice.number, address) in self._tried:
            return False
        return not told.told if again else _is_left(told) and (once or told.not_before <= time.time())

    def _start(self, address: str, due: list[Notice]) -> None:
        """Have an address told, in a thread of its own."""
        chosen = due if len(due) > MOST_ALONE else due[:1]
        message = self._message(chosen)
        kind = chosen[0].kind if len(chosen) == 1 else None
        self._tried |= {(one.number, address) for one in chosen}
        self._busy[address] = _Busy(chosen, time.monotonic() + self._seconds_for_one)

        def tell() -> None:
            try:
                if address not in self._channels:
                    self._channels[address] = self._open_channel(address)
                error = self._channels[address].tell(*message, kind)
            except SerenoError as refused:  # a secret that is not there, say: it may be at the next try
                error = str(refused)
            self._ended.put(_Done(address, chosen, error))

        threading.Thread(target=tell, daemon=True).start()

    def _message(self, notices: Sequence[Notice]) -> tuple[str, str]:
        entries = {one.number: self._ledger.entry(one.model, one.run_key) for one in notices}
        if len(notices) > 1:
            return compose_many(notices, self._place, entries)
        (notice,) = notices
        return compose(
            notice,
            self._place,
            entry=entries[notice.number],
            pause=self._ledger.pauses().get(notice.model),
            status=self._status(notice.model),
        )

    def _status(self, model: str) -> Status | None:
        try:
            return read_status(place_named(self._place.root or self._place.home), model)
        except StorageError:  # people are told all the same
            return None

    def _record(self, seconds: float) -> None:
        """Write down what became of what was tried, waiting for it no longer than that."""
        with contextlib.suppress(queue.Empty):
            self._note(self._ended.get(timeout=seconds))
            while True:
                self._note(self._ended.get_nowait())
        now = time.monotonic()
        for address, busy in list(self._busy.items()):
            if now > busy.until:
                self._channels.pop(address, None)  # the thread that waits may wait on
                self._note(_Done(address, busy.notices, f"it took more than {self._seconds_for_one:g} s"))

    def _note(self, done: _Done) -> None:
        failpoint("notice_sent")
        busy = self._busy.get(done.address)
        if busy is not None and busy.notices is done.notices:
            del self._busy[done.address]
        elif done.error:
            return  # it took too long, and that it failed is written down already
        untold = {one.number: one for one in self._ledger.untold()}
        for number in [one.number for one in done.notices]:
            if notice := untold.get(number):
                self._keep(notice, done.address, done.error)
        if done.error:
            first = done.notices[0]
            what = first.model if len(done.notices) == 1 else f"{len(done.notices)} notices"
            LOG.warning("%s: %s could not be told: %s", what, self._label(first, done.address), done.error)

    def _keep(self, notice: Notice, address: str, error: str) -> None:
        key, told = key_of(notice, address), told_of(notice)
        tries = told.get(key, Told()).tries + 1
        pause = self._pauses[min(tries, len(self._pauses)) - 1]
        told[key] = Told(tries=tries, told=not error, not_before=time.time() + pause if error else 0.0, says=error)
        given = addresses(self._settings, notice.model)
        is_told = all(told.get(key_of(notice, one), Told()).told for one in given)
        self._ledger.tried(notice.number, told_at=datetime.now(UTC) if is_told else None, error=kept(told))
        if told[key].given_up:
            LOG.error(
                "%s: %s is given up after %d tries. `sereno notify --test` tries the address, `sereno notify` tells it again.",
                notice.model,
                self._label(notice, address),
                tries,
            )

    def _keep_lease(self) -> bool:
        if time.monotonic() - self._renewed < BEAT_SECONDS:
            return True
        self._renewed = time.monotonic()
        return self._ledger.renew(self._lease, LEASE_SECONDS)


def _is_left(told: Told) -> bool:
    return not (told.told or told.given_up)


def channel_of(settings: Settings) -> Callable[[str], Tells]:
    """What opens the channel to an address. Its function raises SettingsError, MissingExtraError."""

    def open_channel(address: str) -> Tells:
        from sereno.adapters.channels import Channel

        return Channel(resolved(settings, address))

    return open_channel


def resolved(settings: Settings, address: str) -> str:
    """The address itself, of one that names a secret. Raises SettingsError."""
    if not address.startswith("secret:"):
        return address
    from sereno.config import secret

    return secret(address.removeprefix("secret:"), settings).strip()


def send(
    ledger: RunLedger,
    settings: Settings,
    place: Place,
    stop: threading.Event,
    *,
    once: bool = False,
    again: bool = False,
    patience: float = PATIENCE,
) -> None:
    """Claim the lease, and tell what is untold. Raises LedgerError, MissingExtraError."""
    holder, deadline = holder_here(), time.monotonic() + patience
    while (lease := ledger.acquire(LEASE, holder, LEASE_SECONDS)) is None:
        if time.monotonic() > deadline or stop.wait(LOOK_SECONDS):
            return  # another one is at it, and tells all there is
    try:
        if not again and not any(is_pending(one, addresses(settings, one.model)) for one in ledger.untold()):
            return
        from sereno.adapters.channels import import_apprise

        import_apprise()  # where it is missing, that is no failure of an address
        Sender(ledger, settings, place, lease, channel_of(settings)).run(stop, once=once, again=again)
    finally:
        ledger.release(lease)


def tell_test(settings: Settings, *, seconds: float = SECONDS_FOR_ONE) -> list[tuple[str, str]]:
    """Send a test to every address, all at once: what it is called, and what went wrong, or nothing.

    Raises MissingExtraError.
    """
    from sereno.adapters.channels import import_apprise

    import_apprise()
    place, given = place_of(settings), labels(everyone(settings))
    text = f"This is a test of `sereno notify --test`. Nothing is wrong.\n\nHost {place.host}, home {place.home}.\n"
    found: dict[str, str] = {}

    def tell(label: str, address: str) -> None:
        try:
            found[label] = channel_of(settings)(address).tell("Test", text, None)
        except SerenoError as error:
            found[label] = str(error)

    threads = [threading.Thread(target=tell, args=one, daemon=True) for one in given.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [(label, found.get(label, f"it took more than {seconds:g} s")) for label in given]


def main(arguments: Sequence[str] | None = None) -> int:
    import signal

    from sereno.ledger import open_ledger

    parser = argparse.ArgumentParser(
        prog="python -m sereno.operate.notices.sender", description="Run by Sereno itself."
    )
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="sereno: %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started this decides when it ends
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    settings = job.settings()
    try:
        if options.test:
            sys.stdout.buffer.write(msgspec.json.encode(tell_test(settings)))
            sys.stdout.flush()
            return 0
        with contextlib.closing(open_ledger(settings)) as ledger:
            send(ledger, settings, job.place, stop, once=options.once, again=options.again)
    except SerenoError as error:
        LOG.error("Nobody can be told: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a channel that hangs has threads, for which the interpreter would wait
