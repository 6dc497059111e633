"""Each interval falls due once, whatever the clocks of the world do: against a calculation that shares nothing with cron."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from sereno.schedule import Interval, due_between, next_end

MINUTE = timedelta(minutes=1)
# In both hemispheres; clocks that change at midnight, by half an hour, backwards in winter, on odd dates, or never.
ZONES = [
    *("Europe/Madrid", "Europe/London", "Europe/Dublin", "Europe/Istanbul", "America/New_York", "America/St_Johns"),
    *("America/Havana", "America/Santiago", "America/Asuncion", "America/Sao_Paulo", "America/Nuuk", "Africa/Cairo"),
    *("Africa/Casablanca", "Asia/Beirut", "Asia/Jerusalem", "Asia/Tehran", "Asia/Kathmandu", "Australia/Lord_Howe"),
    *("Australia/Sydney", "Pacific/Chatham"),
]
FIRST, LAST = datetime(2021, 6, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
# minute, hour, and whether a wildcard has it follow the real hours
SCHEDULES = {
    "0 0 * * *": ([0], [0], False),
    "30 2 * * *": ([30], [2], False),
    "15,45 0,1,2,3 * * *": ([15, 45], [0, 1, 2, 3], False),
    "0 * * * *": ([0], range(24), True),
    "*/20 1 * * *": ([0, 20, 40], [1], True),
    "*/20 2 * * *": ([0, 20, 40], [2], True),
}


def local(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def changes(zone: ZoneInfo) -> Iterator[datetime]:
    """When the clock is turned, to the minute."""
    moment = FIRST
    while moment < LAST:
        following = moment + timedelta(hours=6)
        if moment.astimezone(zone).utcoffset() != following.astimezone(zone).utcoffset():
            change = moment
            while change.astimezone(zone).utcoffset() == moment.astimezone(zone).utcoffset():
                change += MINUTE
            yield change
        moment = following


def ends_by_the_minute(schedule: str, zone: ZoneInfo, start: datetime, stop: datetime) -> list[datetime]:
    """Look at the clock on the wall each minute."""
    minutes, hours, is_real = SCHEDULES[schedule]
    begin = start - timedelta(hours=30)
    moments = [begin + n * MINUTE for n in range(int((stop - begin) / MINUTE) + 1)]
    shown = [local(moment, zone) for moment in moments]
    ends = set()
    if is_real:
        ends = {m for m, wall in zip(moments, shown, strict=True) if wall.minute in minutes and wall.hour in hours}
    else:
        first_shown: dict[datetime, datetime] = {}
        for moment, wall in zip(moments, shown, strict=True):
            first_shown.setdefault(wall, moment)
            if wall.minute in minutes and wall.hour in hours:
                ends.add(first_shown[wall])
        for (_, before), (moment, after) in pairwise(zip(moments, shown, strict=True)):
            missing = (before + n * MINUTE for n in range(1, int((after - before) / MINUTE)))
            if any(wall.minute in minutes and wall.hour in hours for wall in missing):
                ends.add(moment)
    return sorted(end for end in ends if start < end <= stop)


def as_a_scheduler(schedule: str, zone: str, start: datetime, stop: datetime, seed: int) -> list[Interval]:
    """Asked when the next one ends, or at any time, from the newest that is known: as a scheduler does, or one that was down."""
    chance = random.Random(seed)
    found: list[Interval] = []
    now = start
    while now < stop:
        known = found[-1].data_time if found else start
        now = next_end(schedule, zone, max(known, now))
        if chance.random() < 0.3:
            now += timedelta(minutes=chance.randrange(60 * 40))
        found += due_between(schedule, zone, known, min(now, stop), most=10_000)
    return found


def check(schedule: str, zone: str, start: datetime, stop: datetime) -> None:
    found = as_a_scheduler(schedule, zone, start, stop, seed=len(schedule))
    assert [one.data_time for one in found] == ends_by_the_minute(schedule, ZoneInfo(zone), start, stop)
    assert all(one.end.astimezone(UTC) == other.start.astimezone(UTC) for one, other in pairwise(found))
    assert len({one.key for one in found}) == len(found)


@pytest.mark.parametrize("zone", ZONES)
def test_intervals_about_the_changes_of_the_clock(zone: str) -> None:
    times = [*changes(ZoneInfo(zone))]
    for number, change in enumerate(times[-4:]):
        schedule = [*SCHEDULES][number % len(SCHEDULES)] if number else "30 2 * * *"
        check(schedule, zone, change - timedelta(hours=30), change + timedelta(hours=30))


@pytest.mark.parametrize("schedule", ["*/20 1 * * *", "*/20 2 * * *"])
def test_half_an_hour_is_no_hour(schedule: str) -> None:
    for change in [*changes(ZoneInfo("Australia/Lord_Howe"))][:4]:
        check(schedule, "Australia/Lord_Howe", change - timedelta(hours=30), change + timedelta(hours=30))


@pytest.mark.soak
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zone", ZONES)
def test_intervals_about_every_change_of_five_years(zone: str, schedule: str) -> None:
    for change in changes(ZoneInfo(zone)):
        check(schedule, zone, change - timedelta(days=3), change + timedelta(days=3))


@pytest.mark.parametrize("zone", ZONES)
def test_each_date_of_five_years_has_its_interval(zone: str) -> None:
    """A day's interval starts at its midnight, or, where that does not exist, when the day begins."""
    there = ZoneInfo(zone)
    found = due_between("0 0 * * *", zone, FIRST, LAST, most=10_000)
    first = found[0].data_date
    assert [one.data_date for one in found] == [first + timedelta(days=n) for n in range(len(found))]
    assert len(found) == (LAST - FIRST).days
    assert all(one.alone and one.label == one.data_date.isoformat() for one in found)
    for one in found:
        assert one.start.astimezone(UTC) == begins(one.data_date, there)


def begins(day: date, zone: ZoneInfo) -> datetime:
    midnight = datetime.combine(day, time(), zone)
    moment = midnight.astimezone(UTC)
    if local(moment, zone) == midnight.replace(tzinfo=None):
        return moment
    while local(moment - MINUTE, zone).date() == day:
        moment -= MINUTE
    return moment


def test_the_newest_of_many_are_given_oldest_first() -> None:
    now = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    found = due_between("* * * * *", "Europe/Madrid", datetime(1990, 1, 1, tzinfo=UTC), now, most=3)
    assert [one.data_time for one in found] == [now.replace(second=0) - n * MINUTE for n in (2, 1, 0)]
    assert due_between("* * * * *", "UTC", now, now, most=3) == []
    assert next_end("* * * * *", "UTC", found[-1].data_time) == now.replace(minute=1, second=0)
