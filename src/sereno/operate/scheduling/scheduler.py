"""The scheduler: at each tick it looks at what the ledger knows and does what `deciding.py` says. It keeps no state that
counts: whoever takes its place, at whatever point it died, goes on from the ledger.

Several may run. The one with the lease "scheduler" schedules, the others stand by; two that both believe they have it do
no harm, as each change needs the state that was seen, and a run has a lease of its own.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

from sereno.exceptions import WorkerError
from sereno.interfaces import RunLedger
from sereno.ledger import BEAT_SECONDS, LEASE_SECONDS, Entry, Lease, Pause, RunState, holder_here, is_left
from sereno.operate.scheduling import deciding
from sereno.operate.scheduling.deciding import WHO, Scheduled
from sereno.operate.scheduling.endings import ENDED, Ended, Endings, Teller
from sereno.schedule import last_interval, next_end

LEASE = "scheduler"
MOST_MOVES = 50  # into due and waiting in one tick: each waits for the disk. What is left comes in the next
_AT_ONCE, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_BEAT = timedelta(seconds=BEAT_SECONDS)


class Starter(Protocol):
    """Starts the process of a run, and hears of its end."""

    def start(self, entry: Entry, scheduled: Scheduled) -> None:
        """Start `sereno run` for an entry. Raises WorkerError where it cannot."""

    def ended(self) -> Sequence[tuple[str, str, int] | Ended]:
        """Those that have ended since this was asked last: model, run key, exit code (below 0: that signal)."""
        ...


class Arrivals(Protocol):
    """Looks whether the data of runs is there."""

    def watch(self, entry: Entry, scheduled: Scheduled) -> None:
        """Begin to look for the data of a run."""

    def state(self, model: str, run_key: str) -> tuple[Literal["ready", "waiting"], str]:
        """Whether it is there, and in words what is waited for."""
        ...

    def forget(self, model: str, run_key: str) -> None:
        """Look no more."""


class Scheduler:
    """One process's scheduler. `tick` is called in one thread, at `next_wake` and every BEAT_SECONDS. It raises LedgerError:
    then it is called again, and goes on."""

    def __init__(
        self,
        ledger: RunLedger,
        models: Iterable[Scheduled],
        *,
        home: Path,
        starter: Starter,
        arrivals: Arrivals,
        teller: Teller,
        clock: Callable[[], datetime],
        random: Callable[[], float],
        most_runs: int = 1,
        log: Callable[[str], None] = print,
        is_alive: Callable[[Entry], bool] | None = None,
    ) -> None:
        """`is_alive`: whether a process of this host works on a run; by the run's lock file, if not given."""
        self._ledger, self._starter, self._arrivals, self._clock, self._log = ledger, starter, arrivals, clock, log
        self.most_runs = most_runs
        self._endings = Endings(ledger, home, teller=teller, random=random, log=log, is_alive=is_alive)
        self._holder = holder_here()
        self._lease: Lease | None = None
        self._renewed = _AT_ONCE
        self._last = _AT_ONCE  # when the last tick was
        self._moves = 0  # in this tick
        self._wake = _AT_ONCE
        self._is_new = True  # it has to begin with what others left
        self._models: dict[str, Scheduled] = {}
        self._changed: set[str] = set()  # models whose schedule may be another one than their runs were due by
        self._ends: list[tuple[datetime, str]] = []  # a heap: when a model's next interval ends
        self._going: dict[tuple[str, str], Entry] = {}  # what was started here, as it was then
        self._ended: list[Ended] = []  # of them, those that were not looked at yet
        self._watched: set[tuple[str, str]] = set()
        self._told_late: set[tuple[str, str]] = set()  # of what has not ended
        self._seen: dict[str, tuple[str, RunState, datetime]] = {}  # model → its newest run, as it was last looked at
        self.reload(models)

    @property
    def let_be(self) -> Set[str]:
        """Models of which it is not known yet what they declare: of their runs nothing is concluded."""
        return self._endings.let_be

    @let_be.setter
    def let_be(self, names: Set[str]) -> None:
        self._endings.let_be = names

    @property
    def leads(self) -> bool:
        """Whether it is this one that schedules, as far as it knows."""
        return self._lease is not None

    def next_wake(self) -> datetime:
        """When there is something to do, by the clock; an event (a run that ended, data that came) may want it sooner."""
        return self._wake

    def reload(self, models: Iterable[Scheduled]) -> None:
        """From now on these are the models. What is due or going on stays so."""
        before, self._models = self._models, {model.name: model for model in models}
        same = {n for n, one in self._models.items() if n in before and _schedule_of(before[n]) == _schedule_of(one)}
        self._ends = [(end, name) for end, name in self._ends if name in same]
        self._ends += [(_AT_ONCE, name) for name in self._models if name not in same]
        self._changed = {*self._models} - same | {name for name in self._changed if name in self._models}
        heapq.heapify(self._ends)
        self._endings.models = self._models
        self._watched.clear()  # what is waited for may be another path
        self._wake = _AT_ONCE

    def begin_anew(self) -> None:
        """The ledger is another one than it was: what it says is looked at, and what it lacks falls due, with the next tick."""
        self._is_new = True
        self._wake = _AT_ONCE

    def tick(self) -> None:
        """Do what is to be done now."""
        now = self._clock()
        self._wake = _NEVER
        self._moves = 0
        self._hear(now)
        if not self._lead(now):
            return
        if self._is_new:
            self._begin(now)
        if now + timedelta(seconds=1) < self._last:
            self._clock_went_back(now)
        self._last = now
        paused = self._ledger.pauses()
        newest = self._ledger.newest(now)
        if self._changed:
            self._replan(newest, now)
        self._let_fall_due(newest, paused, now)
        self._look(newest, now)
        self._work(newest, paused, now)

    def stop(self, ended: Iterable[tuple[str, str, int] | Ended]) -> None:
        """Let another one take over. `ended`: those that were going on and were asked to end: they go on when one starts."""
        now = self._clock()
        for one in ended:
            self._endings.interrupt(Ended(*one), now)
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self._ledger.release(lease)

    # The lease

    def _lead(self, now: datetime) -> bool:
        """Have the lease; who has just got it begins with what others left."""
        self._keep(now)
        if self._lease is None:
            self._lease = self._ledger.acquire(LEASE, self._holder, LEASE_SECONDS)
            if self._lease is None and is_left(self._ledger.holder(LEASE)):  # it was killed, and started again
                self._lease = self._ledger.acquire(LEASE, self._holder, LEASE_SECONDS, by_force=True)
            self._renewed = now
            self._is_new |= self._lease is not None
        return self._lease is not None

    def _begin(self, now: datetime) -> None:
        self._seen.clear()
        self._clock_went_back(now)  # perhaps it did
        self._endings.catch_up(self._ledger.newest(now), now)
        self._is_new = False  # only now: had the ledger failed, the next tick would begin again

    def _keep(self, now: datetime) -> None:
        if self._lease is None or abs(now - self._renewed) < _BEAT:
            return
        if self._ledger.renew(self._lease, LEASE_SECONDS):
            self._renewed = now
        else:
            self._log("Another scheduler has taken over, as this one did not move for too long. It stands by.")
            self._lease = None

    def _move(self, entry: Entry, *expected: RunState | None) -> bool:
        return self._lease is not None and self._ledger.move(entry, expected=expected, lease=self._lease)

    def _clock_went_back(self, now: datetime) -> None:
        """What was planned for times to come is planned again when they come; so is what failed, or was late, too early."""
        later = now + deciding.AHEAD
        for pause in self._ledger.pauses().values():
            if pause.who == WHO and pause.since > later:
                self._ledger.resume(pause.model)
                self._log(
                    f"The clock was ahead: {pause.model} is no longer paused. It was, as too many dates seemed missed."
                )
                for notice in self._ledger.notices(pause.model, 1):
                    if notice.at > later and self._ledger.entry(pause.model, notice.run_key) is None:
                        self._ledger.forget(pause.model, notice.run_key)  # of a date that is not due yet
        ahead = self._ledger.entries(states=("due", "waiting", "skipped", "failed", "held"), since=later)
        ahead = [entry for entry in ahead if entry.state != "held" or not entry.attempt]
        for entry in ahead:
            self._ledger.forget(entry.model, entry.run_key)
            self._look_no_more(entry)
        if ahead:
            self._log(
                f"The clock was ahead: {len(ahead)} runs that are not due yet are planned again when they are. The first is "
                f"{ahead[-1].model} {ahead[-1].label}, the last {ahead[0].model} {ahead[0].label}."
            )
        self._ends = [(_AT_ONCE, name) for name in self._models]

    def _replan(self, newest: dict[str, Entry], now: datetime) -> None:
        """Runs that wait and are of no interval any more are skipped; in the place of the newest comes that of the schedule."""
        for entry in self._ledger.open_entries():
            model = self._models.get(entry.model)
            if model is None or entry.model not in self._changed or entry.state == "running":
                continue
            if (entry.model, entry.run_key) in self._going or deciding.is_planned(entry, model):
                continue
            if entry.state == "published":
                if self._move(replace(entry, not_before=None), "published"):
                    self._endings.tell(entry, "failed", entry.reason, now)
                continue
            self._skip(entry, deciding.unplanned(model), now)
            known = newest.get(entry.model)
            if known is not None and known.run_key == entry.run_key:
                last = last_interval(model.schedule, model.time_zone, now)
                due = deciding.entry_of(model, last, "due", now)
                if self._add(due) and due.data_time >= known.data_time:
                    newest[entry.model] = due
        self._changed.clear()

    # What falls due

    def _let_fall_due(self, newest: dict[str, Entry], paused: dict[str, Pause], now: datetime) -> None:
        """What falls due is written down, and stands in `newest`; a model for which it is too much is paused, in `paused`."""
        later: list[tuple[datetime, str]] = []  # those of paused models, for when they are resumed
        while self._ends and self._ends[0][0] <= now and self._moves < MOST_MOVES and self._lease is not None:
            model = self._models[self._ends[0][1]]
            made = None if model.name in paused else self._fall_due(model, newest, paused, now)
            if made is None:
                later.append(heapq.heappop(self._ends))
            else:
                # only now: had the ledger failed, the next tick would look again
                heapq.heapreplace(self._ends, (next_end(model.schedule, model.time_zone, now), model.name))
                self._moves += made
            self._keep(self._clock())
        self._wake_at(self._ends[0][0] if self._ends else None)
        for one in later:
            heapq.heappush(self._ends, one)

    def _fall_due(
        self, model: Scheduled, newest: dict[str, Entry], paused: dict[str, Pause], now: datetime
    ) -> int | None:
        """Write the missed intervals of a model down; how many. None: there are too many, and it is paused."""
        known = newest.get(model.name)
        if known is None and self._ledger.entries(model=model.name, limit=1):
            return 0  # the clock was put back to before all that is known
        if known is not None and known.who != WHO and model.disposition == "partition":
            known_ones = self._ledger.entries(model=model.name, until=now + timedelta(microseconds=1))
            intervals = deciding.gaps(model, known_ones, now)
        else:
            intervals = deciding.missed(model, known, now, most=deciding.most_missed(model))
        if deciding.too_many(model, intervals):
            why = deciding.why_paused(model, intervals)
            pause = Pause(model=model.name, since=now, who=WHO, why=why)
            self._ledger.pause(pause)
            paused[model.name] = pause
            self._endings.tell(deciding.entry_of(model, intervals[-1], "due", now), "held", f"paused: {why}", now)
            return None
        entries = deciding.fallen_due(model, intervals, now) if intervals else []
        for entry in entries:
            if self._add(entry) and (known is None or entry.data_time >= known.data_time):
                newest[model.name] = entry
        return len(entries)

    def _add(self, entry: Entry) -> bool:
        """A new entry. Where the schedule has changed, another interval may have begun at the same time: it gives way."""
        if self._move(entry, None):
            return True
        known = self._ledger.entry(entry.model, entry.run_key)
        gives_way = known is not None and known.data_time < entry.data_time and known.state in ENDED
        return gives_way and known is not None and self._move(entry, known.state)

    # What ended

    def _hear(self, now: datetime) -> None:
        self._ended += [Ended(*one) for one in self._starter.ended()]
        while self._ended:
            ended = self._ended[0]
            self._endings.heed(ended, self._going.get(ended[:2]), now)
            self._going.pop(ended[:2], None)
            self._ended.pop(0)

    def _look(self, newest: Mapping[str, Entry], now: datetime) -> None:
        """Look at the newest run of each model where it has changed, whoever changed it."""
        for name, entry in newest.items():
            mark = (entry.run_key, entry.state, entry.since)
            if self._seen.get(name) != mark:
                self._endings.conclude(entry, entry, now)
                self._seen[name] = mark

    # What is run

    def _work(self, newest: Mapping[str, Entry], paused: Mapping[str, Pause], now: datetime) -> None:
        entries = self._ledger.open_entries()
        going, idle = [], defaultdict(list)
        for entry in entries:
            is_ours = (entry.model, entry.run_key) in self._going
            if entry.state == "running" and not is_ours:
                entry = self._endings.look_after(entry, newest.get(entry.model), now)
            if is_ours or entry.state == "running":
                going.append(entry)
            elif entry.model in self._models and entry.model not in paused:
                idle[entry.model].append(entry)
        self._watched &= {(entry.model, entry.run_key) for entry in entries}
        self._told_late &= {(entry.model, entry.run_key) for entry in entries}
        busy = {entry.model: entry for entry in going} | {model: entry for (model, _), entry in self._going.items()}
        ready = [
            one
            for name, some in idle.items()
            for one in self._ready(self._models[name], some, busy.get(name), newest.get(name), now)[:1]
        ]
        others = sum(entry.who == WHO and (entry.model, entry.run_key) not in self._going for entry in going)
        room = self.most_runs - len(self._going) - others
        ordered = sorted(ready, key=lambda one: (one.model in busy, *deciding.order(one, newest.get(one.model))))
        free = sum(entry.model not in busy for entry in ordered)
        for entry in ordered[: max(0, min(room, free))]:
            self._start(entry, now)
        for entry in [*going, *ordered[max(0, min(room, free)) :]]:
            self._tell_late_end(entry, now)

    def _tell_late_end(self, entry: Entry, now: datetime) -> None:
        """Of a run that could have begun by now, or ended, and has not."""
        model, key = self._models.get(entry.model), (entry.model, entry.run_key)
        if model is None or entry.state == "published" or key in self._told_late:
            return
        late_at = deciding.ends_late(entry, model, now)
        if now < late_at:
            self._wake_at(late_at)
            return
        self._endings.tell(entry, "late", deciding.why_not_ended(entry, model), now)
        self._told_late.add(key)

    def _ready(
        self, model: Scheduled, entries: Sequence[Entry], going: Entry | None, newest: Entry | None, now: datetime
    ) -> list[Entry]:
        """Of a model's runs that are due, those that may begin, the first first; those that they overtake are skipped."""
        ready = [entry for entry in entries if self._may_begin(entry, model, now)]
        if model.disposition == "replace":
            began = [newest] if newest is not None and newest.state in ("running", "published", "held") else []
            wanted = [*ready, *began, *([going] if going is not None else [])]
            by = max(wanted, key=lambda entry: entry.data_time, default=None)
            for entry in deciding.overtaken(entries, by):
                assert by is not None
                self._skip(entry, deciding.superseded(by.label or by.data_date.isoformat()), now)
                ready = [one for one in ready if one is not entry]
        return deciding.runnable(ready, model)

    def _skip(self, entry: Entry, reason: str, now: datetime) -> None:
        if entry.state == "published":  # a run of the newer date finishes its exports, too
            self._move(replace(entry, not_before=None), "published")
        elif self._move(deciding.skipped(entry, reason, now), entry.state):
            self._look_no_more(entry)

    def _may_begin(self, entry: Entry, model: Scheduled, now: datetime) -> bool:
        if not deciding.is_due(entry, now):
            self._wake_at(entry.not_before)
            return False
        if entry.state == "published":
            return self._endings.export_again(entry, now)
        return not deciding.waits(entry, model) or self._has_arrived(entry, model, now)

    def _has_arrived(self, entry: Entry, model: Scheduled, now: datetime) -> bool:
        """Whether a run need not wait any more: its data is there, or is late and it is to run as it is."""
        key = (entry.model, entry.run_key)
        if key not in self._watched:
            self._arrivals.watch(entry, model)
            self._watched.add(key)
        state, says = self._arrivals.state(*key)
        if state == "ready":
            return True
        if deciding.is_late(entry, model, now):
            self._endings.tell(entry, "late", deciding.why_late(model, says), now)
            if model.late == "run":
                return True
            if self._move(deciding.without_data(entry, model, says, now), entry.state):
                self._look_no_more(entry)
            return False
        self._wake_at(deciding.late_at(entry, model, now))
        if entry.state == "waiting":
            if entry.reason != says:
                self._move(replace(entry, reason=says), "waiting")
        elif self._moves < MOST_MOVES:
            self._moves += self._move(replace(entry, state="waiting", since=now, reason=says, who=WHO), "due")
        else:
            self._wake_at(now)
        return False

    def _start(self, entry: Entry, now: datetime) -> None:
        if self._lease is None:
            return
        try:
            self._starter.start(entry, self._models[entry.model])
        except WorkerError as error:
            failed = deciding.has_failed(entry, f"WorkerError: {error}", now, began=False)
            if self._move(failed, entry.state):
                self._endings.conclude(failed, failed, now)
        else:
            self._going[entry.model, entry.run_key] = entry
        self._look_no_more(entry)

    def _look_no_more(self, entry: Entry) -> None:
        self._watched.discard((entry.model, entry.run_key))
        self._arrivals.forget(entry.model, entry.run_key)

    def _wake_at(self, moment: datetime | None) -> None:
        if moment is not None:
            self._wake = min(self._wake, moment)


def _schedule_of(model: Scheduled) -> tuple[str, str]:
    return model.schedule, model.time_zone
