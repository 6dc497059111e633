"""A schedule as a Kubernetes CronJob has it, and the times at which that starts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from sereno.deploy.calendar import values_of
from sereno.exceptions import SettingsError
from sereno.schedule import check_schedule

_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday
_AHEAD = timedelta(days=400)  # every change of the clock comes once in that time
_MANY = 3000  # times in which the shortest pause shows


@dataclass(frozen=True, kw_only=True)
class Cron:
    """What a CronJob is given."""

    schedule: str
    comes_more_often: bool = False  # than the model's: what it starts then has nothing to do


def cron_of(schedule: str) -> Cron:
    """The schedule in Kubernetes' words. Raises SettingsError for what cronsim knows and Kubernetes does not (`L`, `#`)."""
    fields = check_schedule(schedule).split()
    parsed = [
        values_of(text, least, most, lambda part: _no_word(part, schedule))
        for text, (least, most) in zip(fields, _RANGES, strict=True)
    ]
    days, weekdays = parsed[2], parsed[4]
    if weekdays is not None and 7 in weekdays:  # there, Sunday is 0 alone
        numbers = sorted({number % 7 for number in weekdays})
        fields[4] = "*" if len(numbers) == 7 else ",".join(map(str, numbers))
    if days is None or fields[4] == "*":
        return Cron(schedule=" ".join(fields))
    if fields[2].startswith("*") or schedule.split()[4].startswith("*"):
        # Debian's cron wants both, `*/2` and Monday, say; there, one of the two will do
        return Cron(schedule=" ".join([*fields[:4], "*"]), comes_more_often=True)
    return Cron(schedule=" ".join(fields))


def left_out(schedule: str, time_zone: str, now: datetime) -> list[datetime]:
    """The local times within a year at which a run is due and a CronJob starts none: its hour is not on the clock that day."""
    minute, hour, *_ = check_schedule(schedule).split()
    if minute.startswith("*") or hour.startswith("*"):  # due each real hour, in both
        return []
    minutes, hours = values_of(minute, 0, 59) or [], values_of(hour, 0, 23) or []
    return [due for due in _due(schedule, time_zone, now) if due.minute not in minutes or due.hour not in hours]


def shortest(schedule: str, time_zone: str, now: datetime) -> timedelta:
    """Between two times at which a run is due, within a year."""
    due = [moment.astimezone(UTC) for moment in islice(_due(schedule, time_zone, now), _MANY)]
    return min((after - before for before, after in pairwise(due)), default=_AHEAD)


def _due(schedule: str, time_zone: str, now: datetime) -> Iterator[datetime]:
    start = now.astimezone(ZoneInfo(time_zone))
    return takewhile(lambda moment: moment - start < _AHEAD, CronSim(schedule, start))


def _no_word(part: str, schedule: str) -> SettingsError:
    return SettingsError(
        f"Kubernetes has no word for '{part}' in the schedule '{schedule}'. Write days as numbers, or say --scheduler: "
        "`sereno up` knows it."
    )
