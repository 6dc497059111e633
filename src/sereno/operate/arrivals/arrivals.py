"""Arrivals: whether the data has come that runs wait for.

Light: it looks at names, sizes and times and never into a file, and asks `@model.ready` in processes of their own. It looks
when the kernel tells of a change, and every POLL_SECONDS, since the kernel tells nothing of a network file system. Several
hundred runs may wait at once: each costs a few calls of the operating system every POLL_SECONDS.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from sereno.ledger import Entry
from sereno.operate.arrivals.asking import Answer, Asker, Question
from sereno.operate.arrivals.awaited import Awaited, interval_of
from sereno.operate.arrivals.changes import Changes
from sereno.operate.arrivals.looking import Look, Lookers, look
from sereno.operate.declared import Declared

POLL_SECONDS = 10.0
SILENT = 30.0  # seconds after which a file system that does not answer is told as the reason
CLOCKS_APART = 600.0  # seconds by which the clock of a file server may be behind this one's
SHORTEST = 0.2  # seconds between two looks for the same, however much changes beside it
SHARE = 20  # and so many times as long as a look takes


class Arrival(NamedTuple):
    """What is known of what one run waits for."""

    state: Literal["ready", "waiting"]  # ready: it is there, the run may start
    says: str  # why, as the end of a sentence: "/landing/2026-05-01.csv is not there"


class Named(Protocol):
    """Whatever has the name of a model: `deciding.Scheduled`, `declared.Declared`."""

    @property
    def name(self) -> str: ...


Key = tuple[str, str]  # model, run key


@dataclass(eq=False)
class _Wait:
    """One run that waits. Changed under the lock of Arrivals only."""

    awaited: Awaited | None  # None: no file declares the model any more
    path: str
    arrival: Arrival
    due: float = 0.0  # when it is looked for next
    began: float | None = None  # since when it is looked for right now
    again: bool = False  # something has changed meanwhile
    looked: float = 0.0  # when it was looked for last
    took: float = 0.0  # seconds that this took
    digest: str | None = None  # of what is there; None: nothing is
    unchanged_since: float = 0.0
    folder: tuple[str, int, int] | None = None
    told: set[str] = field(default_factory=set)  # of a function: what the log has


class Arrivals:
    """What runs wait for, looked at by threads of its own: none of these calls looks, or waits for anything.

    `models` is what their files declare; `home`, `env` and `overrides` are those of the command line, for the processes that
    ask `@model.ready`; `tell` gets the lines for the log. Safe to call from any thread.
    """

    def __init__(
        self,
        models: Iterable[Declared] = (),
        *,
        home: Path | None = None,
        env: str | None = None,
        overrides: Mapping[str, str] = MappingProxyType({}),
        poll_seconds: float = POLL_SECONDS,
        events: bool = True,  # have the kernel tell of changes
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.woken = threading.Event()  # set when a state has changed; whoever waits for it clears it, then asks
        self._home, self._env, self._overrides = home, env, dict(overrides)
        self._poll = poll_seconds
        self._note = tell or _to_stderr
        self._models: dict[str, Declared] = {}
        self._waits: dict[Key, _Wait] = {}
        self._entries: dict[Key, Entry] = {}
        self._news = threading.Condition()
        self._is_closed = False
        self._is_woken = False  # there is something to do for the thread below
        self._lookers = Lookers()
        self._asker = Asker(self._answered, self._wake)
        self._changes = Changes(self._changed, self._refused) if events else None
        self.update(models)
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
        self._thread.start()
        if self._changes is not None:
            self._changes.start()

    # What the scheduler calls

    def update(self, models: Iterable[Declared]) -> None:
        """The models were read again: these are all there are. Runs that wait for something else now begin to wait for that.

        A run whose model is gone stays watched and says so, until it is forgotten.
        """
        self._models = {one.name: one for one in models}
        with self._news:
            entries = [*self._entries.values()]
        for entry in entries:
            self._begin(entry)

    def watch(self, entry: Entry, scheduled: Named) -> None:
        """Begin to wait for what this run waits for. Does nothing where it is watched already."""
        key = (scheduled.name, entry.run_key)
        with self._news:
            if self._is_closed or key in self._entries:
                return
            self._entries[key] = entry
        self._begin(entry)

    def state(self, model: str, run_key: str) -> Arrival:
        """What is known now. Not ready, and saying so, where the run is not watched.

        What is there may be gone again later: then it says so, until the run is forgotten. A `ready` that said yes is not asked
        again.
        """
        with self._news:
            wait = self._waits.get((model, run_key))
            return wait.arrival if wait is not None else Arrival("waiting", "nobody looks for its data")

    def forget(self, model: str, run_key: str) -> None:
        """The run has begun, or is not wanted any more. Nothing where it is not watched."""
        key = (model, run_key)
        with self._news:
            self._entries.pop(key, None)
            self._waits.pop(key, None)
            self._follow()
        self._asker.forget(key)

    def close(self) -> None:
        """Nothing is looked at or asked afterwards; processes that ask are killed."""
        with self._news:
            self._is_closed = self._is_woken = True
            self._news.notify_all()
        if self._changes is not None:
            self._changes.close()
        self._lookers.close()
        self._thread.join(5.0)
        self._asker.close()

    # One wait

    def _begin(self, entry: Entry) -> None:
        key = (entry.model, entry.run_key)
        model = self._models.get(entry.model)
        path, question = "", None
        state: Literal["ready", "waiting"] = "waiting"
        if model is None:
            says = f"no model file declares {entry.model}"
        elif model.awaited.how == "path":
            try:
                path = model.awaited.path(interval_of(entry.run_key, entry.data_time, model.time_zone, entry.label))
                says = f"{path} was not looked for yet"
            except (ValueError, LookupError, AttributeError) as error:  # a value that stands in the form of a date
                says = f"its path cannot be filled in: {error}"
        elif model.awaited.how == "function":
            question, says = self._question(model, entry), "ready was not asked yet"
        else:
            state, says = "ready", "nothing is waited for"
        awaited = model.awaited if model is not None else None
        with self._news:
            known = self._waits.get(key)
            if known is not None and (known.awaited, known.path) == (awaited, path):
                is_asked = question is not None and known.arrival.state == "waiting"
                if not is_asked:  # else the function may be another now
                    return
            if key not in self._entries:
                return
            self._waits[key] = _Wait(awaited, path, Arrival(state, says))
            self._follow()
            self._news.notify_all()
        self._asker.forget(key)
        if question is not None:
            self._asker.ask(key, question)
        if state == "ready":
            self.woken.set()

    def _question(self, model: Declared, entry: Entry) -> Question:
        interval = interval_of(entry.run_key, entry.data_time, model.time_zone, entry.label)
        return Question(
            file=model.file,
            start=interval.start.isoformat(),
            end=interval.end.isoformat(),
            alone=interval.alone,
            ready_seconds=model.awaited.ready_seconds,
            home=None if self._home is None else str(self._home),
            env=self._env,
            overrides=self._overrides,
        )

    def _look(self, key: Key, wait: _Wait) -> None:
        """In a thread of the lookers."""
        awaited = wait.awaited
        assert awaited is not None
        began = time.monotonic()
        found = look(wait.path, is_source=awaited.is_source, in_full=awaited.quiet_seconds > 0)
        now = time.monotonic()
        with self._news:
            wait.began, wait.looked, wait.took = None, now, now - began
            if self._waits.get(key) is not wait:
                return
            wait.due = now + (SHORTEST if wait.again else self._poll)
            wait.again = False
            self._set(wait, self._judged(wait, found, awaited.quiet_seconds))
            if wait.folder != found.folder:
                wait.folder = found.folder
                self._follow()
            self._news.notify_all()

    def _judged(self, wait: _Wait, found: Look, quiet_seconds: float) -> Arrival:
        if not found.found:
            wait.digest = None
            return Arrival("waiting", found.says)
        if found.digest != wait.digest:
            wait.digest, wait.unchanged_since = found.digest, wait.looked
        left = wait.unchanged_since + quiet_seconds - (wait.looked - wait.took)
        # By whose clock files have their times is not known: one that seems to be older by less is watched for a while.
        has_been_quiet = time.time() - found.changed >= quiet_seconds + CLOCKS_APART
        if quiet_seconds and left > 0 and not has_been_quiet:
            wait.due = min(wait.due, wait.looked + left)
            return Arrival("waiting", f"{found.says}, but changed within {quiet_seconds:g} s ('quiet_seconds')")
        return Arrival("ready", found.says)

    def _answered(self, key: Key, answer: Answer) -> None:
        """By a thread of the asker, or our own."""
        with self._news:
            wait = self._waits.get(key)
            if wait is None or wait.awaited is None or wait.awaited.how != "function":
                return
            self._set(wait, Arrival("ready" if answer.kind == "yes" else "waiting", answer.says))
            is_told = answer.kind not in ("raised", "odd", "failed") or answer.says in wait.told
            wait.told.add(answer.says)
        if not is_told:
            self._note(f"{key[0]}: {answer.says}. It is asked again.")

    def _set(self, wait: _Wait, arrival: Arrival) -> None:
        if arrival != wait.arrival:
            wait.arrival = arrival
            self.woken.set()

    def _wake(self) -> None:
        with self._news:
            self._is_woken = True
            self._news.notify_all()

    # All of them

    def _run(self) -> None:
        """When which of them is looked for."""
        while True:
            with self._news:
                if self._is_closed:
                    return
                self._is_woken = False
            pause = self._asker.tend()
            with self._news:
                now = time.monotonic()
                looks = [(key, wait) for key, wait in self._waits.items() if wait.path and wait.began is None]
                due = [(key, wait) for key, wait in looks if wait.due <= now]
                for _, wait in due:
                    wait.began = now
                for wait in self._waits.values():
                    if wait.began is not None and now - wait.began > SILENT:
                        says = f"{wait.path} cannot be looked at: its file system has not answered for {SILENT:g} s"
                        self._set(wait, Arrival("waiting", says))
            for key, wait in due:
                self._lookers.do(lambda key=key, wait=wait: self._look(key, wait))  # type: ignore[misc]
            pause = min(pause, self._lookers.tend())
            with self._news:
                if not self._is_woken:
                    now = time.monotonic()
                    times = [wait.due for wait in self._waits.values() if wait.path and wait.began is None]
                    until = min([now + pause, *times])
                    self._news.wait(max(0.0, until - now))

    def _changed(self, folders: frozenset[str] | None) -> None:
        """By the thread of the changes."""
        now = time.monotonic()
        with self._news:
            for wait in self._waits.values():
                if folders is None or (wait.folder is not None and wait.folder[0] in folders):
                    wait.again = wait.began is not None
                    wait.due = min(wait.due, max(now, wait.looked + max(SHORTEST, SHARE * wait.took)))
            self._news.notify_all()

    def _refused(self, why: str) -> None:
        self._note(f"changes of folders are not told ({why}); they are looked at every {self._poll:g} s instead.")

    def _follow(self) -> None:
        if self._changes is not None:
            self._changes.watch(wait.folder for wait in self._waits.values() if wait.folder is not None)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"sereno: {line}\n")
    sys.stderr.flush()
