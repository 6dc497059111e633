"""Intervals: how a schedule cuts time, and which interval a date on the command line means.

A schedule is cron, read as Debian's does over changes of the clock: a time that does not exist runs at the next one
that does, a time that comes twice runs once; schedules with `*` for the hour or minute follow the real hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import total_ordering
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from sereno.exceptions import ChangedError, SettingsError

# cronsim forgets which of two equal wall-clock times it was given. Searches begin this much off and drop what is over;
# no zone turns its clock by more.
_MARGIN = timedelta(hours=3)


@total_ordering
@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """The time that one run covers, [start, end), in the model's zone.

    Python compares and subtracts times of one zone by the wall clock, which is wrong in the night the clock is turned
    back: intervals compare by UTC, and so should whoever needs their length.
    """

    start: datetime
    end: datetime
    alone: bool = True  # no other interval starts on this local date

    @property
    def data_date(self) -> date:
        """The local date of the start."""
        return self.start.date()

    @property
    def data_time(self) -> datetime:
        """The end, in UTC."""
        return self.end.astimezone(UTC)

    @property
    def key(self) -> str:
        """The start as it names the run: "2026-04-30T22:00Z"."""
        return f"{self.start.astimezone(UTC):%Y-%m-%dT%H:%MZ}"

    @property
    def label(self) -> str:
        """What `--date` takes for this interval: the date, with the time where the date has several intervals."""
        if self.alone:
            return self.start.date().isoformat()
        # The second of two equal wall-clock times needs its offset to be told from the first.
        shown = self.start if self.start.fold else self.start.replace(tzinfo=None)
        return shown.isoformat(timespec="minutes")

    def _utc(self) -> tuple[datetime, datetime]:
        return self.start.astimezone(UTC), self.end.astimezone(UTC)

    def __eq__(self, other: object) -> bool:
        return self._utc() == other._utc() if isinstance(other, Interval) else NotImplemented

    def __lt__(self, other: Interval) -> bool:
        return self._utc() < other._utc()

    def __hash__(self) -> int:
        return hash(self._utc())


def check_schedule(schedule: str) -> str:
    """The schedule itself; SettingsError where it is not five fields of cron, or never due."""
    advice = "Write minute, hour, day, month and weekday, as in '0 0 * * *' for every midnight."
    if len(schedule.split()) != 5:
        raise SettingsError(f"The schedule '{schedule}' has {len(schedule.split())} fields, not 5. {advice}")
    try:
        next(CronSim(schedule, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise SettingsError(f"The schedule '{schedule}' is not cron: {str(error).lower()}. {advice}") from None
    except StopIteration:
        raise SettingsError(f"The schedule '{schedule}' is never due. {advice}") from None
    return schedule


def last_interval(schedule: str, time_zone: str, now: datetime) -> Interval:
    """The last interval that ended at or before now."""
    due = _due_until(schedule, ZoneInfo(time_zone), now)
    end, start, before = islice(due, 3)
    return Interval(start=start, end=end, alone=_alone(before, start, end))


def due_between(schedule: str, time_zone: str, after: datetime, until: datetime, *, most: int) -> list[Interval]:
    """The intervals that ended after one moment and until another, oldest first; of more than `most`, the newest.

    It costs what it gives: after a pause of years, a schedule of every minute is not gone through.
    """
    after, due = after.astimezone(UTC), _due_until(schedule, ZoneInfo(time_zone), until)
    found: list[Interval] = []
    end, start = islice(due, 2)
    while end.astimezone(UTC) > after and len(found) < most:
        before = next(due)
        found.append(Interval(start=start, end=end, alone=_alone(before, start, end)))
        end, start = start, before
    return found[::-1]


def next_end(schedule: str, time_zone: str, after: datetime) -> datetime:
    """When the next interval ends, in UTC: later than `after`."""
    return next(_due_after(schedule, ZoneInfo(time_zone), after)).astimezone(UTC)


def interval_for(schedule: str, time_zone: str, when: str, now: datetime) -> Interval:
    """The interval that starts on a local date ("2026-05-01") or holds a local time ("2026-05-01T13:00").

    Raises SettingsError for a date where none or several start, and for an interval that has not ended yet.
    """
    zone = ZoneInfo(time_zone)
    if len(when) == len("2026-05-01"):
        interval = _on(schedule, zone, _parse_date(when))
    else:
        interval = _holding(schedule, zone, _parse_time(when, zone))
    if interval.data_time > now.astimezone(UTC):
        last = last_interval(schedule, time_zone, now)
        raise SettingsError(
            f"The interval {interval.label} has not ended: it will at {interval.end.isoformat(timespec='minutes')}. "
            f"Run it then; the last one that ended is {last.label}."
        )
    return interval


def interval_between(schedule: str, time_zone: str, start: datetime, end: datetime) -> Interval | None:
    """The interval with this start and this end; None where the schedule has none, say because it has changed."""
    found = _holding(schedule, ZoneInfo(time_zone), start)
    return found if (found.start.astimezone(UTC), found.data_time) == (start, end) else None


def span(run_key: str, data_time: datetime) -> str:
    """An interval for another process: "2026-04-30T22:00Z/2026-05-01T22:00Z"."""
    return f"{run_key}/{data_time.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def interval_of_span(schedule: str, time_zone: str, text: str, now: datetime) -> Interval:
    """The interval that `span` wrote. Raises ChangedError where the schedule has no such interval, SettingsError where it has not ended."""
    start, end = (datetime.fromisoformat(moment) for moment in text.split("/"))
    interval = interval_between(schedule, time_zone, start, end)
    if interval is None:
        raise ChangedError(
            f"The schedule '{schedule}' ({time_zone}) has no interval from {text.replace('/', ' to ')}: it has changed since "
            "this run was due. Nothing was run; the scheduler goes by the new one once it has read it."
        )
    if interval.data_time > now.astimezone(UTC):
        raise SettingsError(f"The interval {interval.label} has not ended by this computer's clock. Nothing was run.")
    return interval


def _parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SettingsError(_not_a_date(text)) from None


def _parse_time(text: str, zone: ZoneInfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(_not_a_date(text)) from None
    if moment.tzinfo is not None:
        return moment.astimezone(zone)
    moment = moment.replace(tzinfo=zone)
    there = moment.astimezone(UTC).astimezone(zone)
    if there.replace(tzinfo=None) != moment.replace(tzinfo=None):
        raise SettingsError(
            f"{text} does not exist in {zone.key}, where the clock is put forward then. "
            f"Name a time before or after, such as {there.replace(tzinfo=None).isoformat(timespec='minutes')}."
        )
    return moment


def _not_a_date(text: str) -> str:
    return f"'{text}' is no date. Write it as 2026-05-01, or with a time, 2026-05-01T13:00."


def _on(schedule: str, zone: ZoneInfo, day: date) -> Interval:
    midnight = datetime.combine(day, time(), zone)
    # A second before midnight, so that a run due exactly then is among those after.
    after = _due_after(schedule, zone, midnight - timedelta(seconds=1))
    starts = list(takewhile(lambda due: due.date() == day, after))
    if len(starts) == 1:
        return _holding(schedule, zone, starts[0])
    if starts:
        some = [_holding(schedule, zone, start).label for start in (*starts[:2], starts[-1])]
        raise SettingsError(
            f"{len(starts)} intervals start on {day} with the schedule '{schedule}'. Name one by its time: "
            f"{some[0]}, {some[1]}" + (f", … {some[2]}." if len(starts) > 2 else ".")
        )
    before = _holding(schedule, zone, midnight)
    raise SettingsError(
        f"No interval starts on {day} with the schedule '{schedule}' ({zone.key}). "
        f"The nearest are {before.label} and {_holding(schedule, zone, before.end).label}."
    )


def _holding(schedule: str, zone: ZoneInfo, moment: datetime) -> Interval:
    start, before = islice(_due_until(schedule, zone, moment), 2)
    end = next(_due_after(schedule, zone, moment))
    return Interval(start=start, end=end, alone=_alone(before, start, end))


class _Cron(CronSim):
    """CronSim goes from hour to hour by 3,600 seconds. Where a zone turns its clock by half an hour (Lord Howe), that would
    leave out times that are due: here it goes to the beginning of the next hour, and to the end of the one before."""

    def advance_hour(self) -> bool:
        if self.dt.hour in self.hours:
            return False
        self.dt = self.dt.replace(minute=0, second=0)
        while self.dt.hour not in self.hours:
            self.tick(3600 - 60 * self.dt.minute)
            if self.dt.hour == 0:
                break  # another day: it has to match, too
        return True

    def reverse_hour(self) -> bool:
        if self.dt.hour in self.hours:
            return False
        self.dt = self.dt.replace(minute=59, second=59)
        while self.dt.hour not in self.hours:
            self.tick(3600)
            if self.dt.hour == 23:
                break
        while self.dt.minute != 59 and self.dt.tzinfo is not None:
            later = (self.dt.astimezone(UTC) + timedelta(minutes=1)).astimezone(self.dt.tzinfo)
            if later.hour != self.dt.hour:
                break
            self.dt = later
        return True


def _alone(before: datetime, start: datetime, end: datetime) -> bool:
    return before.date() != start.date() != end.date()


def _due_until(schedule: str, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    """Due times at or before a moment, latest first."""
    moment = moment.astimezone(UTC)
    ticks = _Cron(schedule, (moment + _MARGIN).astimezone(zone), reverse=True)
    return (tick for tick in ticks if tick.astimezone(UTC) <= moment)


def _due_after(schedule: str, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    """Due times after a moment, earliest first."""
    moment = moment.astimezone(UTC)
    ticks = _Cron(schedule, (moment - _MARGIN).astimezone(zone))
    return (tick for tick in ticks if tick.astimezone(UTC) > moment)
