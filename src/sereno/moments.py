"""Times as people write them on the command line. Light."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from sereno.exceptions import SettingsError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def time_of(text: str, option: str, *, end: bool = False) -> datetime:
    """A time that was given as text: a date, a date and time (UTC if it has no zone), or how long ago it was (90m).

    Of a date the beginning, or the end. Raises SettingsError.
    """
    try:
        if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return datetime.combine(date.fromisoformat(text) + timedelta(days=1 if end else 0), time(), UTC)
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option} {text!r} is no time. Write 2026-05-01, 2026-05-01T12:00 (UTC) or, for how long ago, 90s, 15m, 2h, 3d."
        ) from None
