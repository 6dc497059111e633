"""Intervals tile time, whatever the clock does."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.batch.attempts import Attempts
from sereno.batch.record import label_of, label_of_attempt
from sereno.exceptions import ChangedError, SettingsError
from sereno.schedule import (
    Interval,
    check_schedule,
    due_between,
    interval_for,
    interval_of_span,
    last_interval,
    span,
)

DAILY = "0 0 * * *"
MADRID = ZoneInfo("Europe/Madrid")


def madrid(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=MADRID, fold=fold)


def utc(interval: Interval) -> tuple[str, str]:
    return tuple(f"{one.astimezone(UTC):%d %H:%M}" for one in (interval.start, interval.end))  # type: ignore[return-value]


def test_at_midnight_the_run_scores_the_day_that_ended() -> None:
    interval = last_interval(DAILY, "Europe/Madrid", madrid("2026-05-02T00:00"))
    assert interval.start == madrid("2026-05-01T00:00")
    assert interval.end == madrid("2026-05-02T00:00")
    assert interval.data_date == date(2026, 5, 1)
    assert interval.data_time == datetime(2026, 5, 1, 22, tzinfo=UTC)
    assert interval.key == "2026-04-30T22:00Z"
    assert interval.label == "2026-05-01"


def test_a_second_before_midnight_the_day_has_not_ended() -> None:
    assert last_interval(DAILY, "Europe/Madrid", madrid("2026-05-01T23:59:59")).label == "2026-04-30"


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-24", 24), ("2026-10-25", 25)]
)
def test_days_are_as_long_as_the_clock_makes_them(day: str, hours: int) -> None:
    interval = interval_for(DAILY, "Europe/Madrid", day, datetime(2027, 1, 1, tzinfo=UTC))
    assert interval.end.astimezone(UTC) - interval.start.astimezone(UTC) == timedelta(hours=hours)
    assert interval.data_date.isoformat() == interval.label == day


def test_a_time_that_does_not_exist_runs_at_the_next_one_that_does() -> None:
    interval = last_interval("30 2 * * *", "Europe/Madrid", madrid("2026-03-29T12:00"))
    assert utc(interval) == ("28 01:30", "29 01:00")  # 02:30 and 03:00 in Madrid


def test_a_time_that_comes_twice_runs_once() -> None:
    first = madrid("2026-10-25T02:30")
    for now in (first, madrid("2026-10-25T02:10", fold=1), madrid("2026-10-25T02:45", fold=1)):
        assert utc(last_interval("30 2 * * *", "Europe/Madrid", now)) == ("24 00:30", "25 00:30")
    before = madrid("2026-10-25T02:29")
    assert utc(last_interval("30 2 * * *", "Europe/Madrid", before)) == ("23 00:30", "24 00:30")


def test_hours_follow_the_real_hours_when_the_clock_is_turned_back() -> None:
    now = datetime(2026, 10, 25, 3, tzinfo=UTC)
    moments = [now - timedelta(hours=back) for back in (3, 2, 1)]
    hours = [last_interval("0 * * * *", "Europe/Madrid", moment) for moment in moments]
    assert [one.label for one in hours] == ["2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T02:00+01:00"]
    assert [interval_for("0 * * * *", "Europe/Madrid", one.label, now) for one in hours] == hours
    assert sorted(hours, reverse=True) == hours[::-1]
    assert len(set(hours)) == 3


def test_two_half_hours_of_the_same_name_are_not_equal() -> None:
    first = last_interval("*/30 * * * *", "Europe/Madrid", madrid("2026-10-25T02:30"))
    second = last_interval("*/30 * * * *", "Europe/Madrid", madrid("2026-10-25T02:30", fold=1))
    assert first.start == second.start  # by Python's own rule
    assert first != second
    assert first < second
    assert first != "2026-10-25"


def test_hours_skip_the_one_that_does_not_exist() -> None:
    now = madrid("2026-03-29T03:00")
    assert utc(last_interval("0 * * * *", "Europe/Madrid", now)) == ("29 00:00", "29 01:00")
    with pytest.raises(
        SettingsError, match=r"2026-03-29T02:30 does not exist in Europe/Madrid, .* such as 2026-03-29T03:30"
    ):
        interval_for("0 * * * *", "Europe/Madrid", "2026-03-29T02:30", now)


SCHEDULES = [
    "0 0 * * *",
    "30 2 * * *",
    "0 * * * *",
    "*/15 * * * *",
    "0 0,12 * * *",
    "0 6 * * MON",
    "0 0 1 * *",
    "15 1-3 * * *",
]
ZONES = ["Europe/Madrid", "UTC", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Kolkata"]
# Around the changes of the clock of 2026, in both hemispheres, and anywhere else.
MOMENTS = st.one_of(
    *(
        st.datetimes(day - timedelta(hours=30), day + timedelta(hours=54))
        for day in (
            datetime(2026, 3, 29),
            datetime(2026, 10, 25),
            datetime(2026, 3, 8),
            datetime(2026, 11, 1),
            datetime(2026, 4, 5),
            datetime(2026, 9, 6),
            datetime(2026, 10, 4),
        )
    ),
    st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1)),
).map(lambda moment: moment.replace(tzinfo=UTC))


@settings(max_examples=400, deadline=None)
@given(schedule=st.sampled_from(SCHEDULES), zone=st.sampled_from(ZONES), now=MOMENTS)
def test_intervals_tile_time(schedule: str, zone: str, now: datetime) -> None:
    last = last_interval(schedule, zone, now)
    start, end = last.start.astimezone(UTC), last.end.astimezone(UTC)
    assert start < end <= now
    # Half-open: the end belongs to the next one, the moment before to this one.
    assert last_interval(schedule, zone, end) == last
    before = last_interval(schedule, zone, end - timedelta(microseconds=1))
    assert before.end.astimezone(UTC) == start
    for inside in (start, start + (end - start) / 2, end - timedelta(seconds=1)):
        assert interval_for(schedule, zone, inside.isoformat(), now) == last
    following = interval_for(schedule, zone, last.end.isoformat(), now + timedelta(days=70))
    assert following.start.astimezone(UTC) == end
    # What it calls itself finds it again, and nothing else.
    assert interval_for(schedule, zone, last.label, now) == last
    assert interval_for(schedule, zone, last.label, now).label == last.label


def test_a_date_with_several_intervals_asks_for_a_time() -> None:
    with pytest.raises(SettingsError) as error:
        interval_for("0 * * * *", "UTC", "2026-05-01", datetime(2026, 6, 1, tzinfo=UTC))
    assert str(error.value) == (
        "24 intervals start on 2026-05-01 with the schedule '0 * * * *'. Name one by its time: "
        "2026-05-01T00:00, 2026-05-01T01:00, … 2026-05-01T23:00."
    )


def test_a_date_without_an_interval_names_the_nearest() -> None:
    with pytest.raises(SettingsError) as error:
        interval_for("0 6 * * MON", "Europe/Madrid", "2026-05-01", datetime(2026, 6, 1, tzinfo=UTC))
    assert str(error.value) == (
        "No interval starts on 2026-05-01 with the schedule '0 6 * * MON' (Europe/Madrid). "
        "The nearest are 2026-04-27 and 2026-05-04."
    )


def test_an_interval_that_has_not_ended_is_refused() -> None:
    now = madrid("2026-05-01T15:00")
    with pytest.raises(SettingsError) as error:
        interval_for(DAILY, "Europe/Madrid", "2026-05-01", now)
    assert str(error.value) == (
        "The interval 2026-05-01 has not ended: it will at 2026-05-02T00:00+02:00. "
        "Run it then; the last one that ended is 2026-04-30."
    )


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "01/05/2026", "2026-05-01T25:00", ""])
def test_what_is_no_date_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match="is no date. Write it as 2026-05-01, or with a time, 2026-05-01T13:00."):
        interval_for(DAILY, "UTC", text, datetime(2026, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("@daily", "The schedule '@daily' has 1 fields, not 5. Write minute, hour, day, month and weekday"),
        ("0 0 0 * * *", "has 6 fields, not 5"),
        ("0 24 * * *", "The schedule '0 24 * * *' is not cron: bad hour. Write minute, hour"),
        ("0 0 30 2 *", "is not cron: bad day-of-month"),
        ("0 0 29 2 MON#5,TUE", None),
    ],
)
def test_schedules_are_checked(schedule: str, message: str | None) -> None:
    if message is None:
        assert check_schedule(schedule) == schedule
    else:
        with pytest.raises(SettingsError) as error:
            check_schedule(schedule)
        assert message in str(error.value)


def test_an_interval_is_named_by_its_start_and_end() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    hours = due_between("0 * * * *", "Europe/Madrid", now - timedelta(days=8), now, most=400)
    for one in hours:  # also of those that start at two equal hours
        found = interval_of_span("0 * * * *", "Europe/Madrid", span(one.key, one.data_time), now)
        assert (found, found.label) == (one, one.label)


def test_a_run_s_label_means_its_interval_also_of_two_equal_hours(tmp_path: Path) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    for schedule in ("0 * * * *", "0 0 * * *"):
        for one in due_between(schedule, "Europe/Madrid", now - timedelta(days=8), now, most=400):
            report = Attempts(tmp_path, "m").create(one)
            assert label_of(report) == one.label
            without = label_of_attempt(report.attempt, report.run_key)  # its report is gone
            assert interval_for(schedule, "Europe/Madrid", without, now) == one


@pytest.mark.parametrize(
    ("schedule", "zone", "says"),
    [
        ("0 0 * * *", "Europe/Madrid", "has no interval from 2026-05-01T00:00Z to 2026-05-02T00:00Z"),
        ("0 0 * * MON", "UTC", "it has changed since this run was due"),
        ("0 0 1 * *", "UTC", "it has changed since"),  # it begins then, and ends later
    ],
)
def test_an_interval_that_a_schedule_no_longer_has(schedule: str, zone: str, says: str) -> None:
    with pytest.raises(ChangedError, match=re.escape(says)):
        interval_of_span(schedule, zone, "2026-05-01T00:00Z/2026-05-02T00:00Z", datetime(2026, 6, 3, tzinfo=UTC))


def test_an_interval_that_has_not_ended_is_not_run() -> None:
    with pytest.raises(SettingsError, match="has not ended by this computer's clock"):
        interval_of_span(
            "0 0 * * *", "UTC", "2026-05-01T00:00Z/2026-05-02T00:00Z", datetime(2026, 5, 1, 12, tzinfo=UTC)
        )
