"""Nights of several models, simulated: data that comes or does not, runs that end well or not, schedulers that crash, stand
still or are down for days, clocks that are set wrong. And an oracle, which says what must come of it.

The oracle knows nothing of ledgers, leases, ticks or crashes: it goes through what happens to one model, in order. What
makes its outcome differ by minutes (crashes, clocks, times of runs) must not matter: events lie well apart.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sereno.adapters.ledger import open_at
from sereno.adapters.ledger.sqlite import SqliteDatabase
from sereno.adapters.ledger.statements import Now
from sereno.interfaces import RunLedger
from sereno.ledger import Entry, Lease, NoticeKind, Pause
from sereno.operate.notices.words import add, add_recovered
from sereno.operate.scheduling import deciding
from sereno.operate.scheduling.pausing import resume
from sereno.operate.scheduling.scheduler import Scheduler
from sereno.schedule import Interval, due_between
from sereno.settings import Settings

START = datetime(2026, 1, 10, 12, tzinfo=UTC)
APART = timedelta(minutes=55)  # more than all that runs, retries and clocks can shift
STARTUP, WORK = timedelta(seconds=20), timedelta(seconds=70)  # until a run is running; until it has ended
GRACE = timedelta(seconds=60)
MOST_SKEW = 900  # seconds by which a clock may be wrong


@dataclass(frozen=True, kw_only=True)
class Night:
    """One model, as the scheduler has it declared."""

    name: str
    file: str = "model.py"
    schedule: str = "0 0 * * *"
    time_zone: str = "UTC"
    disposition: str = "replace"
    catch_up: int = 5
    retries: int = 3
    retry_seconds: float = 3600.0
    has_arrival: bool = True
    deadline_seconds: float = 6 * 3600.0
    late: str = "hold"
    run_seconds: float | None = None
    run_cores: int | None = None
    run_memory_bytes: int | None = None


@dataclass
class Fate:
    """What happens to one run."""

    interval: Interval
    comes: datetime | None  # its data
    kind: str = "good"  # torn, schema, held, export
    failures: int = 0  # tries for which the disk is full


@dataclass
class Story:
    """What happens to one model."""

    model: Night
    fates: dict[str, Fate]
    pauses: list[tuple[datetime, datetime]]  # by an operator
    skips: bool  # what the operator says to more missed dates than are caught up with


@dataclass
class World:
    """What happens to all."""

    stories: dict[str, Story]
    downs: list[tuple[datetime, datetime]]  # no scheduler is up
    crashes: list[datetime]  # the scheduler that leads is killed, with its runs
    stalls: list[tuple[datetime, datetime]]  # it does not move
    skews: list[tuple[datetime, float]]  # from then on the clock is wrong by so many seconds
    resumes: timedelta  # after a model was paused by the scheduler
    end: datetime

    def decides_at(self, story: Story, paused_at: datetime) -> datetime:
        """When an operator says what becomes of a model that was paused by itself: not about when something falls due."""
        moment = paused_at + self.resumes
        ends = [fate.interval.data_time for fate in story.fates.values()]
        while any(abs(moment - end) < APART for end in ends):
            moment += timedelta(minutes=20)
        return moment


def make_world(seed: int, days: int, models: list[Night]) -> World:
    chance = random.Random(seed)
    end = START + timedelta(days=days)
    taken: list[datetime] = []

    def free(moment: datetime, more: list[datetime]) -> datetime:
        while any(abs(moment - one) < APART for one in more) or any(abs(moment - one) < APART for one in taken):
            moment += timedelta(minutes=20)
        return moment

    def windows(
        every_days: float, hours: Callable[[], float], fixed: list[datetime]
    ) -> list[tuple[datetime, datetime]]:
        found = []
        moment = START + timedelta(days=2 + chance.random() * every_days)
        while moment < end - timedelta(days=12):
            start = free(moment, fixed)
            stop = free(start + timedelta(hours=hours()), [*fixed, start])
            found.append((start, stop))
            moment = stop + timedelta(days=1 + chance.random() * every_days * 2)
        return found

    intervals = {
        one.name: due_between(
            one.schedule, one.time_zone, START - timedelta(days=9), end + timedelta(days=1), most=10_000
        )
        for one in models
    }
    ends = [one.data_time for some in intervals.values() for one in some]
    deadlines = [
        one.data_time + timedelta(seconds=model.deadline_seconds) for model in models for one in intervals[model.name]
    ]
    downs = windows(25, lambda: chance.choice([1, 5, 30, 60, 100, 200]), [*ends, *deadlines])
    taken += [moment for window in downs for moment in window]
    stories = {}
    for model in models:
        own = [
            one.data_time + timedelta(seconds=s) for one in intervals[model.name] for s in (0, model.deadline_seconds)
        ]
        pauses = windows(40, lambda: chance.choice([2, 20, 50, 100, 190]), own)
        pauses = [(a, b) for a, b in pauses if all(b < c or d < a for c, d in downs)]
        fixed = [*own, *(moment for window in pauses for moment in window)]
        fates = {}
        for one in intervals[model.name]:
            comes: datetime | None = one.data_time + timedelta(hours=chance.choice([-2, -1, 1, 2, 4, 7, 9, 30]))
            comes = None if chance.random() < 0.08 else free(comes, fixed)  # type: ignore[arg-type]
            if comes:
                fixed.append(comes)
            kind = chance.choices(["good", "torn", "schema", "held", "export"], [80, 4, 3, 6, 7])[0]
            fates[one.key] = Fate(one, comes, kind, chance.choices([0, 1, 2, 9], [80, 10, 6, 4])[0])
        stories[model.name] = Story(model, fates, pauses, skips=chance.random() < 0.5)
    skews, moment = [], START + timedelta(days=3)
    while moment < end:
        skews.append((moment, chance.choice([0, 0, 30, -30, MOST_SKEW, -MOST_SKEW])))
        moment += timedelta(days=chance.random() * 15)
    crashes = [START + timedelta(days=chance.random() * days) for _ in range(days // 4)]
    # at most one in six hours, so that no run loses more than one try to them
    crashes = [
        one
        for number, one in enumerate(sorted(crashes))
        if not number or one - sorted(crashes)[number - 1] > timedelta(hours=6)
    ]
    stalls = [
        (one + timedelta(hours=2), one + timedelta(hours=2, seconds=chance.choice([10, 60, 4000])))
        for one in crashes[::3]
    ]
    return World(stories, downs, crashes, stalls, skews, timedelta(hours=7), end)


# The oracle


@dataclass
class Outcome:
    states: dict[str, str]
    notices: list[tuple[str, str]]  # run key, kind


def oracle(story: Story, world: World) -> Outcome:
    return _Oracle(story, world).go()


class _Oracle:
    def __init__(self, story: Story, world: World) -> None:
        self.story, self.model, self.world = story, story.model, world
        self.states: dict[str, str] = {}
        self.notices: list[tuple[str, str]] = []
        self.since: dict[str, datetime] = {}  # when it was first waited for
        self.tried: set[str] = set()
        self.running: tuple[str, datetime] | None = None
        self.cut_off: str | None = None
        self.failures: dict[str, int] = {}
        self.not_before: dict[str, datetime] = {}
        self.again: dict[str, datetime] = {}  # published, but not exported yet
        self.known = ""
        self.served = ""
        self.resume_at: datetime | None = None
        self.times: list[datetime] = []
        self.keys = [*story.fates]
        self.ends = [fate.interval.data_time for fate in story.fates.values()]

    def go(self) -> Outcome:
        for fate in self.story.fates.values():
            self.times += [fate.interval.data_time, *([fate.comes] if fate.comes else [])]
            self.times.append(fate.interval.data_time + timedelta(seconds=self.model.deadline_seconds))
        self.times += [moment for window in (*self.world.downs, *self.story.pauses) for moment in window]
        self.times.append(START)
        heapq.heapify(self.times)
        while self.times and self.times[0] < self.world.end:
            now = heapq.heappop(self.times)
            if now >= START:
                self.step(now)
        return Outcome(self.states, self.notices)

    def at(self, moment: datetime) -> None:
        heapq.heappush(self.times, moment)

    def tell(self, key: str, kind: str) -> None:
        if (key, kind) not in self.notices:
            self.notices.append((key, kind))

    def step(self, now: datetime) -> None:
        if any(start <= now < stop for start, stop in self.world.downs):
            if self.running is not None and self.running[1] > now:  # it dies with the scheduler
                self.cut_off, self.running = self.running[0], None
            elif self.running is not None:
                self.end_run(now)
            return
        if self.running is not None and self.running[1] <= now:
            self.end_run(now)
        if self.resume_at is not None and now >= self.resume_at:
            self.decide(now)
        is_paused = self.resume_at is not None or any(a <= now < b for a, b in self.story.pauses)
        if not is_paused:
            self.let_fall_due(now)
        if self.cut_off is not None:
            key, self.cut_off = self.cut_off, None
            if self.model.disposition == "replace" and self.known > key:
                self.states[key] = "failed"
                self.tell(key, "failed")
            else:
                self.states[key] = "due"
        if self.resume_at is None and not is_paused:
            self.begin(now)

    def missed(self, now: datetime) -> list[str]:
        """Keys are in the order of time, as texts, too."""
        ended = self.keys[: bisect.bisect_right(self.ends, now)]
        return ended[bisect.bisect_right(ended, self.known) :] if self.known else ended[-1:]

    def let_fall_due(self, now: datetime) -> None:
        missed = self.missed(now)
        if not missed:
            return
        if self.model.disposition == "partition" and len(missed) > self.model.catch_up:
            self.tell(missed[-1], "held")
            self.resume_at = self.world.decides_at(self.story, now)
            self.at(self.resume_at)
            return
        self.states |= dict.fromkeys(missed, "due")
        if self.model.disposition == "replace":
            self.states |= dict.fromkeys(missed[:-1], "skipped")
        self.known = missed[-1]

    def decide(self, now: datetime) -> None:
        missed = self.missed(now)
        self.states |= dict.fromkeys(missed, "skipped" if self.story.skips else "due")
        self.known = missed[-1]
        self.resume_at = None

    def begin(self, now: datetime) -> None:
        due = sorted(key for key, state in self.states.items() if state == "due")
        ready = []
        for key in due:
            fate = self.story.fates[key]
            if key in self.not_before and now < self.not_before[key]:
                continue
            if not self.model.has_arrival or key in self.tried or (fate.comes is not None and fate.comes <= now):
                ready.append(key)
                continue
            since = self.since.setdefault(key, now)
            late = max(fate.interval.data_time + timedelta(seconds=self.model.deadline_seconds), since + GRACE)
            if now < late:
                self.at(late)
                continue
            self.tell(key, "late")
            if self.model.late == "run":
                ready.append(key)
            else:
                self.states[key] = "held" if self.model.late == "hold" else "skipped"
        ready = sorted([*ready, *(key for key, again in self.again.items() if again <= now)])
        if self.model.disposition == "replace":
            newest = max([*ready, self.served, *([self.running[0]] if self.running else [])], default="")
            for key in due:
                if key < newest and self.states[key] == "due":
                    self.states[key] = "skipped"
            ready = [key for key in ready if key >= newest]
            self.again = {key: again for key, again in self.again.items() if key >= newest}
        if ready and self.running is None:
            self.running = (ready[0], now + STARTUP + WORK)
            self.tried.add(ready[0])
            self.states[ready[0]] = "running"
            self.at(self.running[1])

    def end_run(self, now: datetime) -> None:
        assert self.running is not None
        key, _ = self.running
        self.running = None
        self.at(now + timedelta(seconds=1))
        if self.again.pop(key, None):
            self.recover(key)
            self.states[key] = "published"
            return
        failures = self.failures.get(key, 0)
        outcome = outcome_of(self.story, key, failures, now, self.served)
        if outcome.startswith("StorageError"):
            self.failures[key] = failures + 1
            if failures < self.model.retries and not (self.model.disposition == "replace" and self.known > key):
                self.states[key] = "due"
                self.not_before[key] = now + timedelta(seconds=41)
                self.at(self.not_before[key])
                return
        state = outcome if outcome in ("held", "published") else "failed"
        self.states[key] = state
        if state == "published":
            self.served = max(self.served, key)
            if self.story.fates[key].kind == "export":
                self.again[key] = now + timedelta(seconds=60)
                self.at(self.again[key])
            else:
                self.recover(key)
        else:
            self.tell(key, state)

    def recover(self, key: str) -> None:
        kinds = [kind for _, kind in self.notices]
        last = len(kinds) - kinds[::-1].index("recovered") if "recovered" in kinds else 0
        troubled = [one for one, _ in self.notices[last:]]
        if troubled and key >= max(troubled):
            self.tell(key, "recovered")


def outcome_of(story: Story, key: str, failures: int, now: datetime, served: str) -> str:
    """How a run ends: its state, or its error."""
    fate = story.fates[key]
    if story.model.has_arrival and (fate.comes is None or fate.comes > now):
        return "SourceError: there is no such file"
    if fate.failures > failures:
        return "StorageError: the disk is full"
    if fate.kind == "torn":
        return "SourceError: it is cut off"
    if fate.kind == "schema":
        return "InputError: a column is missing"
    if story.model.disposition == "replace" and served > key:
        return "OlderDataError: a newer one is served"
    return "held" if fate.kind == "held" else "published"


# The simulation


class CrashError(Exception):
    """The scheduler was killed."""


class Fragile:
    """A ledger that a scheduler uses until it is killed, before or after what it asked for was done."""

    def __init__(self, ledger: RunLedger) -> None:
        self._ledger = ledger
        self.calls_left: float = float("inf")
        self.is_done = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left < 0:
                if self.is_done:
                    method(*arguments, **named)
                raise CrashError
            return method(*arguments, **named)

        return call


@dataclass(eq=False)
class Run:
    model: str
    run_key: str
    begins: datetime
    ends: datetime
    lease: Lease | None = None
    entry: Entry | None = None


@dataclass(eq=False)
class Process:
    """A scheduler's process: it starts runs, which die with it."""

    world: Simulation
    ledger: Fragile = field(init=False)
    scheduler: Scheduler = field(init=False)
    runs: list[Run] = field(default_factory=list)
    over: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Fragile(self.world.ledger)
        self.scheduler = Scheduler(
            self.ledger,  # type: ignore[arg-type]
            [story.model for story in self.world.world.stories.values()],
            home=self.world.home,
            starter=self,
            arrivals=self,
            teller=self,
            clock=lambda: self.world.clock(),
            random=self.world.random.random,
            most_runs=100,
            log=lambda line: self.world.log.append(f"{self.world.now:%m-%d %H:%M:%S} {line}"),
            is_alive=self.world.is_alive,
        )

    def start(self, entry: Entry, scheduled: Any) -> None:
        self.world.starts.append((entry.model, entry.run_key))
        now = self.world.now
        self.runs.append(Run(entry.model, entry.run_key, now + STARTUP, now + STARTUP + WORK))

    def ended(self) -> list[tuple[str, str, int]]:
        over, self.over = self.over, []
        return over

    def watch(self, entry: Entry, scheduled: Any) -> None:
        pass

    def state(self, model: str, run_key: str) -> tuple[Any, str]:
        comes = self.world.world.stories[model].fates[run_key].comes
        return ("ready", "") if comes is not None and comes <= self.world.now else ("waiting", "it is not there")

    def forget(self, model: str, run_key: str) -> None:
        pass

    def tell(self, entry: Entry, kind: NoticeKind, says: str, at: datetime) -> object:
        return add(self.ledger, self.world.settings, entry, kind, at, says)  # type: ignore[arg-type]

    def tell_published(self, entry: Entry, at: datetime) -> object:
        return add_recovered(self.ledger, self.world.settings, entry, at)  # type: ignore[arg-type]


class Simulation:
    def __init__(self, world: World, home: Path, seed: int) -> None:
        self.world, self.home, self.now = world, home, START
        self.random = random.Random(seed)
        self.settings = Settings(home=home, notify=("json://localhost",))
        self.ledger = open_at(None, home)
        self.processes: list[Process] = []
        self.stalled: Process | None = None
        self.log: list[str] = []
        self.starts: list[tuple[str, str]] = []
        self.published: list[tuple[str, str]] = []
        self.served: dict[str, str] = {}
        self.failures: dict[tuple[str, str], int] = {}
        self.exports: set[tuple[str, str]] = set()
        self.version = 0
        self.skew = 0.0
        self.again = START  # when all look again
        self.decisions: list[datetime] = []  # when an operator decides

    def clock(self) -> datetime:
        return self.now + timedelta(seconds=self.skew)

    def ticks(self) -> Now:
        micros = round(self.now.timestamp() * 1e6)
        return Now(era="simulated", ticks=micros, wall=micros)

    def is_alive(self, entry: Entry) -> bool:
        return any(
            (run.model, run.run_key) == (entry.model, entry.run_key) and run.lease is not None
            for process in self.processes
            for run in process.runs
        )

    def go(self) -> None:
        events = sorted(self._events(), key=lambda event: event[0])
        for _ in range(2):
            self.processes.append(Process(self))
        number = 0
        while True:
            following = events[number][0] if number < len(events) else self.world.end
            moment = min([following, *self._wakes()])
            if moment >= self.world.end:
                return
            self.now = max(self.now, moment)
            while number < len(events) and events[number][0] <= self.now:
                events[number][1]()
                number += 1
            self._tick()
            self._decide()

    def _decide(self) -> None:
        """What an operator does about models that were paused by themselves."""
        self.decisions = []
        for name, pause in self.ledger.pauses().items():
            story = self.world.stories[name]
            if pause.who != "sereno" or not self.processes:
                continue
            if self.now < (moment := self.world.decides_at(story, pause.since)):
                self.decisions.append(moment)
                continue
            resume(self.ledger, story.model, skip_missed=story.skips, now=self.clock(), who="ana")
            self.again = self.now + timedelta(seconds=5)
            if any(start <= self.now < stop for start, stop in story.pauses):
                self._pause(name)

    def _events(self) -> Iterator[tuple[datetime, Callable[[], None]]]:
        world = self.world
        for start, stop in world.downs:
            yield start, self._go_down
            yield stop, self._come_up
        for moment in world.crashes:
            yield moment, self._crash
        for start, stop in world.stalls:
            yield start, self._stall
            yield start + timedelta(seconds=25), lambda: None  # whoever stands by looks every few seconds
            yield stop, self._go_on
        for moment, skew in world.skews:
            yield moment, lambda skew=skew: setattr(self, "skew", skew)  # type: ignore[misc]
        for name, story in world.stories.items():
            for start, stop in story.pauses:
                yield start, lambda name=name: self._pause(name)  # type: ignore[misc]
                yield stop, lambda name=name: self._resume(name)  # type: ignore[misc]
            for fate in story.fates.values():
                if fate.comes is not None and fate.comes > START:
                    yield fate.comes, lambda: None

    def _wakes(self) -> Iterator[datetime]:
        if self.processes and not any(process.scheduler.leads for process in self.processes):
            yield self.now + timedelta(seconds=25)  # they look every few seconds, and the lease of a dead one ends
        if self.again > self.now:
            yield self.again
        yield from self.decisions
        for process in self.processes:
            for run in process.runs:
                yield run.ends if run.lease is not None else run.begins
            if process is not self.stalled:
                wake = process.scheduler.next_wake()
                if wake < datetime.max.replace(tzinfo=UTC):
                    # Never twice at one moment; and a clock that was set makes one look again.
                    shift = timedelta(seconds=self.skew)
                    yield max(wake - shift if wake > START else self.now, self.now + timedelta(seconds=1))

    def _tick(self) -> None:
        for process in [*self.processes]:
            if process not in self.processes:
                continue
            for run in [*process.runs]:
                self._advance(process, run)
            if process.over and not process.scheduler.leads:
                self.again = self.now + timedelta(seconds=5)  # the one that leads has looked already
            if process is self.stalled:
                continue
            try:
                process.scheduler.tick()
            except CrashError:
                self._replace(process)

    def _replace(self, process: Process) -> None:
        """Killed, with its runs; and started again."""
        self.processes[self.processes.index(process)] = Process(self)
        if self.stalled is process:
            self.stalled = None

    def _crash(self) -> None:
        """Soon, at some call to the ledger, the scheduler that leads is killed."""
        chosen = next((one for one in self.processes if one.scheduler.leads and one is not self.stalled), None)
        if chosen is not None:
            chosen.ledger.calls_left = self.random.randrange(12)
            chosen.ledger.is_done = self.random.random() < 0.5

    def _stall(self) -> None:
        self.stalled = next((one for one in self.processes if one.scheduler.leads), None)

    def _go_on(self) -> None:
        self.stalled = None

    def _go_down(self) -> None:
        self.processes, self.stalled = [], None

    def _come_up(self) -> None:
        self.processes = [Process(self), Process(self)]

    def _pause(self, name: str) -> None:
        self.ledger.pause(Pause(model=name, since=self.clock(), who="ana", why=""))

    def _resume(self, name: str) -> None:
        pause = self.ledger.pauses().get(name)
        if pause is not None and pause.who == "ana":
            self.ledger.resume(name)

    # Runs, as `batch.run` does them

    def _advance(self, process: Process, run: Run) -> None:
        if run.lease is None and run.begins <= self.now:
            name = f"run:{run.model}:{run.run_key}"
            if self.is_alive(self._entry(run)):
                process.runs.remove(run)
                process.over.append((run.model, run.run_key, 1))  # BusyError
                return
            run.lease = self.ledger.acquire(name, _holder(), 1e7, by_force=True)
            entry = self._entry(run)
            run.entry = replace(
                entry, state="running", since=self.clock(), reason="", who="sereno", attempt=f"a{len(self.starts)}",
                tries=entry.tries + 1, not_before=None,
            )  # fmt: skip
            assert self.ledger.move(run.entry, lease=run.lease)
        if run.lease is not None and run.ends <= self.now:
            process.runs.remove(run)
            process.over.append((run.model, run.run_key, self._finish(run)))

    def _entry(self, run: Run) -> Entry:
        entry = self.ledger.entry(run.model, run.run_key)
        if entry is None:  # the clock was ahead, and the scheduler has forgotten it since
            story = self.world.stories[run.model]
            entry = deciding.entry_of(story.model, story.fates[run.run_key].interval, "due", self.clock())
        return entry

    def _finish(self, run: Run) -> int:
        key = (run.model, run.run_key)
        story = self.world.stories[run.model]
        assert run.entry is not None
        assert run.lease is not None
        failures = self.failures.get(key, 0)
        outcome = outcome_of(story, run.run_key, failures, self.now, self.served.get(run.model, ""))
        state: Any = outcome if outcome in ("held", "published") else "failed"
        again, reason, version = None, "" if state == "published" else outcome, None
        if outcome.startswith("StorageError"):
            self.failures[key] = failures + 1
        if state == "published":
            is_new = key not in self.published
            if is_new:
                self.published.append(key)
                self.version += 1
                self.served[run.model] = max(run.run_key, self.served.get(run.model, ""))
            version = self.version
            if story.fates[run.run_key].kind == "export" and key not in self.exports:
                self.exports.add(key)
                again, reason = self.clock() + timedelta(seconds=60), "ExportError: the disk is full"
        entry = replace(run.entry, state=state, since=self.clock(), reason=reason, version=version, not_before=again)
        self.ledger.move(entry, lease=run.lease)
        self.ledger.release(run.lease)
        return {"published": 1 if again else 0, "held": 3}.get(state, 1)


def _holder() -> str:
    import socket

    return f"{socket.gethostname()}:1:run"


def fast(database: Any) -> None:
    """What is not about a disk need not wait for one."""
    assert isinstance(database, SqliteDatabase)
    database.read(lambda cursor: None)
    assert database._connection is not None
    database._connection.execute("PRAGMA synchronous = OFF")
