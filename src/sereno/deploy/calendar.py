"""A schedule of cron as systemd's OnCalendar (systemd.time(7))."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sereno.exceptions import SettingsError
from sereno.schedule import check_schedule

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # cron has Sunday twice
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday
_PLAIN = re.compile(r"(?:\*|(\d+|[a-z]{3})(?:-(\d+|[a-z]{3}))?)(?:/(\d+))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A model whose runs a timer starts."""

    name: str
    schedule: str
    time_zone: str


def on_calendar(schedule: str, time_zone: str) -> list[str]:
    """The lines of a timer: two where cron is due on a day of the month or on a weekday.

    Raises SettingsError for what cronsim knows and systemd does not (`L`, `#`).
    """
    minute, hour, day, month, weekday = check_schedule(schedule).split()
    minutes, hours, days, months, weekdays = (
        values_of(text, least, most, lambda part: _no_word(part, schedule))
        for text, (least, most) in zip((minute, hour, day, month, weekday), _RANGES, strict=True)
    )
    at = f"{_listed(hours)}:{_listed(minutes)}:00 {time_zone}"
    on_day = f"*-{_listed(months)}-{_listed(days)} {at}"
    if weekdays is None:
        return [on_day]
    named = ",".join(dict.fromkeys(_DAYS[number] for number in sorted(weekdays, key=lambda n: n % 7)))
    on_weekday = f"{named} *-{_listed(months)}-* {at}"
    # Debian's cron: where neither begins with *, either of the two will do
    if days is None or day.startswith("*") or weekday.startswith("*"):
        return [on_weekday if days is None else f"{named} {on_day}"]
    return [on_day, on_weekday]


def values_of(text: str, least: int, most: int, refused: Callable[[str], Exception] | None = None) -> list[int] | None:
    """Every value of a field of cron; None: whichever. `refused` makes the error for what is not plain (`L`, `#`)."""
    if text == "*":
        return None
    values: set[int] = set()
    for part in text.split(","):
        match = _PLAIN.fullmatch(part)
        if match is None:
            raise refused(part) if refused is not None else ValueError(f"{part!r} is no plain part of a schedule.")
        first, last, step = match.groups()
        low = least if first is None else _number(first)
        high = most if first is None or (last is None and step) else _number(last or first)
        values.update(range(low, high + 1, int(step or 1)))
    return sorted(values)


def _no_word(part: str, schedule: str) -> SettingsError:
    return SettingsError(
        f"systemd has no word for '{part}' in the schedule '{schedule}'. Leave out --timers: `sereno up` knows it."
    )


def _number(text: str) -> int:
    if text.isdecimal():
        return int(text)
    low = text.lower()
    return _MONTHS.index(low) + 1 if low in _MONTHS else [day.lower() for day in _DAYS].index(low)


def _listed(values: list[int] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02}" for value in values)
