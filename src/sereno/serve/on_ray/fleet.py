"""The servers of a home on a cluster, as the command sees them that was started: brought up, watched, updated and ended.

What there is to do next is a *course*: a generator that goes a step further at each look, and waits by yielding. One at a
time; a signal to end puts another in its place. All that must outlive the command is the cluster's: who is started again
finds the servers, keeps those that are as they are asked for now, and replaces the others, one after another.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

from sereno import exceptions
from sereno.exceptions import SerenoError, WorkerError
from sereno.serve.on_ray.replica import Name, Spec, Status
from sereno.signals import OTHER, Signals, has_terminal

LOOK_SECONDS = 0.2
TELL_SECONDS = 10.0  # without all places, until somebody is told what is waited for
FEWER_SECONDS = 30.0  # and until it begins with those that there are nodes for
SETTLE_SECONDS = 3.0  # between a server that is back and the next that goes: a balancer takes it again meanwhile
GROW_SECONDS = 60.0  # between two tries to have more places
GRACE = 10.0  # that a server may take longer to end than it waits for itself, or until it is ready after a reload
UP_SECONDS = 300.0  # until one that takes another's place is ready, or has read its files again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Cluster(Protocol):
    """What a cluster does for it: see `adapters/ray_servers.py`."""

    def addresses(self) -> list[str]: ...
    def generations(self) -> dict[int, int]: ...
    def open(self, generation: int, places: int) -> None: ...
    def is_open(self, generation: int) -> bool: ...
    def place(self, generation: int, index: int) -> str: ...
    def close_places(self, generation: int) -> None: ...
    def find(self) -> Sequence[Name]: ...
    def names(self) -> Sequence[Name]: ...
    def start(self, generation: int, index: int, spec: Spec) -> Name: ...
    def look(self, seconds: float) -> None: ...
    def status(self, name: Name) -> Status | None: ...
    def reload(self, name: Name) -> None: ...
    def stop(self, name: Name) -> None: ...
    def remove(self, name: Name) -> None: ...


class Outcome(NamedTuple):
    """Of what was waited for: an error, or none."""

    error: str = ""  # its class
    says: str = ""


class Room(NamedTuple):
    """What places there are; none: there was no room."""

    generation: int
    size: int


Course = Generator[None, None, None]


class Fleet:
    """Runs until it is told to end. One thread."""

    def __init__(
        self,
        cluster: Cluster,
        spec: Spec,
        replicas: int,
        *,
        seconds_to_end: float,  # that a server takes at most
        announce: Callable[[Sequence[Status]], None],
        note: Callable[[str], None],
        settle_seconds: float = SETTLE_SECONDS,
        fewer_seconds: float = FEWER_SECONDS,
    ) -> None:
        self._cluster, self._spec, self._replicas = cluster, spec, replicas
        self._seconds_to_end = seconds_to_end
        self._announce, self._note = announce, note
        self._settle_seconds, self._fewer_seconds = settle_seconds, fewer_seconds
        self._is_announced = self._is_ending = self._is_over = False
        self._reload_asked = False
        self._told_to_end: dict[int, float] = {}
        self._seen: dict[Name, tuple[str, int]] = {}  # what was last noted of a replica: state and pid
        self._grow_at = 0.0
        self._code = 0
        self._course: Course = self._begin()
        self._signals = Signals()

    def run(self) -> int:
        """0: all have drained; 1: some had to be killed. Raises what kept the first from starting."""
        with self._signals.caught(SIGNALS) as before, selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            has_window = has_terminal() and before[signal.SIGHUP] is not signal.SIG_IGN  # else under nohup
            try:
                while not self._is_over:
                    if selector.select(0):
                        self._on_signals(self._signals.read(), has_window=has_window)
                    self._cluster.look(LOOK_SECONDS)
                    self._notice()
                    try:
                        next(self._course)
                    except StopIteration:
                        self._course = self._next()
                    if selector.select(LOOK_SECONDS):
                        continue
            finally:
                self._signals.close()
        return self._code

    def _next(self) -> Course:
        if self._is_ending:
            self._is_over = True
        elif self._reload_asked:
            self._reload_asked = False
            return self._reload()
        elif self._grow_at and time.monotonic() >= self._grow_at:
            return self._grow()
        return self._idle()

    # Courses

    def _idle(self) -> Course:
        yield

    def _begin(self) -> Course:
        """Find what there is, or make it."""
        cluster = self._cluster
        sizes = cluster.generations()
        for name in cluster.find():
            if name.generation not in sizes:  # its place was closed, by a command that was killed as it ended
                cluster.remove(name)
        yield from self._hear(cluster.names())
        is_serving = any(self._is_up(name) for name in cluster.names())
        newest = max(sizes, default=0)
        if sizes.get(newest) != self._replicas:
            newest += 1
            cluster.open(newest, self._replicas)
        room = yield from self._room(newest, self._replicas, may_be_fewer=not is_serving)
        if room.size < self._replicas:
            self._grow_at = time.monotonic() + GROW_SECONDS
        if not room.size:  # what serves stays, and is updated
            room = Room(*max(cluster.generations().items(), default=(0, 0)))
        outcome = yield from self._roll(*room, one_by_one=is_serving)
        if outcome.error and not is_serving:
            yield from self._clear()
            raise _error(outcome)
        if outcome.error:
            self._note(f"the update was refused, the other servers stay as they are: {outcome.says}")
        self._tell_all()

    def _hear(self, names: Sequence[Name]) -> Course:
        """Until all have said how they are, or it takes too long: those are being started again."""
        deadline = time.monotonic() + GRACE
        while any(self._cluster.status(name) is None for name in names) and time.monotonic() < deadline:
            yield

    def _room(self, generation: int, size: int, *, may_be_fewer: bool) -> Generator[None, None, Room]:
        """Wait for the places. With fewer it begins only where nothing serves yet."""
        since, is_told = time.monotonic(), False
        while not self._cluster.is_open(generation):
            waited = time.monotonic() - since
            able = len(self._cluster.addresses())
            if waited > TELL_SECONDS and not is_told:
                is_told = True
                self._note(
                    f"{size} servers need as many nodes with room, each on its own (ray.server_cpus); the cluster has {able} "
                    "nodes that are large enough. Waiting for room."
                )
            if waited > self._fewer_seconds and not may_be_fewer:
                self._cluster.close_places(generation)
                self._note(f"there is no room for {size} servers beside those that run; they stay.")
                return Room(0, 0)
            if waited > self._fewer_seconds and 0 < able < size:
                self._cluster.close_places(generation)
                self._note(f"begins with {able} of {size} servers; the others follow once there are nodes for them.")
                self._cluster.open(generation + 1, able)
                generation, size, since = generation + 1, able, time.monotonic()
            yield
        return Room(generation, size)

    def _roll(self, generation: int, size: int, *, one_by_one: bool) -> Generator[None, None, Outcome]:
        """Have each place of a generation serve what is asked for now, and close those of others. An Outcome."""
        cluster = self._cluster
        is_new = all((said := cluster.status(name)) is None or said.state != "ready" for name in cluster.names())
        waits: list[Name] = []
        for index in range(size):
            here = [name for name in cluster.names() if (name.generation, name.index) == (generation, index)]
            if any(name.digest == self._spec.digest and not self._is_ended(name) for name in here):
                continue  # whatever befalls it is Ray's affair
            while one_by_one and not (address := cluster.place(generation, index)):
                yield  # its node is gone, and no other has room
            if one_by_one:
                others = [name for name in cluster.names() if name.generation != generation]
                here += [one for one in others if (said := cluster.status(one)) and said.address == address]
            before = next((said.spec for name in here if (said := cluster.status(name))), None)
            for name in here:
                yield from self._stop(name)
            started = cluster.start(generation, index, self._spec)
            if not one_by_one:
                waits.append(started)
                continue
            outcome = yield from self._up(started, is_new=is_new)
            if outcome.error:
                yield from self._stop(started)
                if before is not None:
                    cluster.start(generation, index, before)
                return outcome
            if index < size - 1:
                yield from self._settle()
        for name in waits:
            outcome = yield from self._up(name, is_new=is_new)
            if outcome.error:
                return outcome
        for old in [number for number in cluster.generations() if number != generation]:
            for name in [name for name in cluster.names() if name.generation == old]:
                yield from self._stop(name)
                yield from self._settle()
            cluster.close_places(old)
        return Outcome()

    def _up(self, name: Name, *, is_new: bool) -> Generator[None, None, Outcome]:
        """Wait until it is ready: an Outcome. Where no other was (`is_new`), it may be unready, and take any time to start."""
        started, is_told = time.monotonic(), False
        while True:
            said = self._cluster.status(name)
            if said is not None and said.state == "failed":
                return Outcome(said.error or "WorkerError", said.says)
            if said is not None and said.state == "ready":
                return Outcome()
            if said is not None and said.state == "unready" and is_new:
                return Outcome()  # it answers, though it wants something, such as a first run
            why = f": {said.says.rstrip('.')}" if said is not None and said.says else ""
            if not is_new and time.monotonic() - started > UP_SECONDS:
                return Outcome("WorkerError", f"server {name.index + 1} was not ready after {UP_SECONDS:g} s{why}.")
            if time.monotonic() - started > TELL_SECONDS and not is_told:
                is_told = True
                self._note(f"waiting until server {name.index + 1} is ready{why}.")
            yield

    def _stop(self, name: Name) -> Course:
        """Have one drain and go."""
        self._cluster.stop(name)
        deadline = time.monotonic() + self._seconds_to_end + GRACE
        while not self._is_ended(name) and time.monotonic() < deadline:
            said = self._cluster.status(name)
            if said is not None and said.state == "failed":
                break
            if said is None and time.monotonic() > deadline - self._seconds_to_end:
                break  # it does not answer: nothing of it is in anybody's service
            yield
        if self._is_ending and time.monotonic() >= deadline:
            self._code = 1
        self._cluster.remove(name)

    def _settle(self) -> Course:
        until = time.monotonic() + self._settle_seconds
        while time.monotonic() < until:
            yield

    def _reload(self) -> Course:
        """Each server reads its files again, one after another; the first that refuses ends it."""
        names = [name for name in self._cluster.names() if self._is_up(name)]
        for done, name in enumerate(names):
            before = self._cluster.status(name)
            if before is None:
                continue
            self._cluster.reload(name)
            refused = yield from self._reloaded(name, before)
            if refused:
                self._note(f"{refused} {len(names) - done - 1} other servers were not told to read them.")
                return
        self._note(f"{len(names)} server{'s have' if len(names) > 1 else ' has'} read their files again.")

    def _reloaded(self, name: Name, before: Status) -> Generator[None, None, str]:
        """Wait until it has read its files: why the others are not told to; empty: they are."""
        until = time.monotonic() + UP_SECONDS
        while (said := self._cluster.status(name)) is not None and said.pid == before.pid:
            if said.reloads > before.reloads:
                if said.refused or said.state == "ready" or before.state != "ready":
                    return said.refused
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:
                return (
                    f"server {name.index + 1} is not ready after its reload: {(said.says or said.state).rstrip('.')}."
                )
            yield
        return ""  # it was started again, and has read them

    def _grow(self) -> Course:
        """More places, now that there are more nodes."""
        self._grow_at = time.monotonic() + GROW_SECONDS
        sizes = self._cluster.generations()
        newest, size = max(sizes.items(), default=(0, 0))
        able = min(self._replicas, len(self._cluster.addresses()))
        if able > size:
            self._cluster.open(newest + 1, able)
            room = yield from self._room(newest + 1, able, may_be_fewer=False)
            if not room.size:
                return
            newest += 1
        elif able < size or sum(name.generation == newest for name in self._cluster.names()) == size:
            return  # else one did not start the last time
        outcome = yield from self._roll(newest, able, one_by_one=True)
        if outcome.error:
            self._note(f"the next server did not start: {outcome.says}")
            return
        self._note(f"{able} of {self._replicas} servers now.")
        if able == self._replicas:
            self._grow_at = 0.0

    def _clear(self) -> Course:
        """Nothing is left."""
        names = self._cluster.names()
        stops = [self._stop(name) for name in names]
        while stops:
            for one in [*stops]:
                try:
                    next(one)
                except StopIteration:
                    stops.remove(one)
            yield
        for generation in self._cluster.generations():
            self._cluster.close_places(generation)

    # What is seen

    def _is_up(self, name: Name) -> bool:
        said = self._cluster.status(name)
        return said is not None and said.state in ("ready", "unready")

    def _is_ended(self, name: Name) -> bool:
        said = self._cluster.status(name)
        return said is not None and said.state == "ended"

    def _tell_all(self) -> None:
        if not self._is_announced and not self._is_ending:
            self._is_announced = True
            said = [self._cluster.status(name) for name in self._cluster.names()]
            self._announce([one for one in said if one is not None])

    def _notice(self) -> None:
        """Say what has become of servers since the last look."""
        for name in self._cluster.names() if self._is_announced and not self._is_ending else ():
            said = self._cluster.status(name)
            state, pid = (said.state, said.pid) if said is not None else ("lost", 0)
            before = self._seen.get(name)
            if before == (state, pid):
                continue
            self._seen[name] = (state, pid)
            number = name.index + 1
            if said is None and before is not None:
                self._note(f"server {number} is lost. Ray starts it again, where there is room.")
            elif said is not None and state == "ready" and before is not None:
                self._note(f"server {number} is ready on {said.url} (host {said.host}).")
            elif said is not None and state in ("unready", "failed"):
                self._note(f"server {number} on host {said.host} is {state}: {said.says}")

    def _on_signals(self, numbers: bytes, *, has_window: bool) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                first = self._told_to_end.setdefault(number, time.monotonic())
                self._end(at_once=time.monotonic() - first > 0.5)
            elif number == signal.SIGUSR1:  # another command is to look after them
                self._is_over = True
            elif number == signal.SIGHUP and has_window and not has_terminal():
                self._end(at_once=False)  # whoever started it has closed the window
            elif number in (signal.SIGHUP, OTHER):
                self._reload_asked = True

    def _end(self, *, at_once: bool) -> None:
        if at_once:
            for name in self._cluster.names():
                self._cluster.remove(name)
            self._code = 1
        if not self._is_ending:
            self._is_ending = True
            self._course = self._clear()


def _error(outcome: Outcome) -> SerenoError:
    kind = getattr(exceptions, outcome.error, WorkerError)
    with contextlib.suppress(TypeError):
        if issubclass(kind, SerenoError):
            return kind(outcome.says)
    return WorkerError(outcome.says)
