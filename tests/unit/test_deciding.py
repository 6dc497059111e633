"""What becomes of runs: the rules, one by one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from sereno.ledger import Entry, Transition
from sereno.operate.scheduling import deciding
from sereno.schedule import last_interval
from tests.nights import Night

NOW = datetime(2026, 5, 10, 0, 0, 30, tzinfo=UTC)
LATEST = Night(name="churn")
DATES = Night(name="churn", disposition="partition", catch_up=3)


def entry(day: int, state: str = "due", **more: object) -> Entry:
    found = last_interval("0 0 * * *", "UTC", datetime(2026, 5, day + 1, tzinfo=UTC))
    made = deciding.entry_of(LATEST, found, "due", NOW)
    return replace(made, state=state, **more)  # type: ignore[arg-type]


def due(model: Night, known: Entry | None, now: datetime = NOW) -> list[tuple[str, str]]:
    intervals = deciding.missed(model, known, now, most=deciding.most_missed(model))
    return [(one.label, one.state) for one in deciding.fallen_due(model, intervals, now)] if intervals else []


# What falls due


@pytest.mark.parametrize("model", [LATEST, DATES])
def test_a_model_that_nobody_knows_begins_with_the_last_interval_that_ended(model: Night) -> None:
    assert due(model, None) == [("2026-05-09", "due")]


@pytest.mark.parametrize("model", [LATEST, DATES])
def test_nothing_is_due_twice_nor_before_it_ended(model: Night) -> None:
    assert due(model, entry(9)) == []
    assert due(model, entry(9), NOW + timedelta(hours=23)) == []
    assert due(model, entry(9), NOW + timedelta(hours=24)) == [("2026-05-10", "due")]


def test_of_a_table_that_is_the_latest_snapshot_the_newest_missed_date_is_due() -> None:
    assert due(LATEST, entry(6, "published")) == [
        ("2026-05-07", "skipped"),
        ("2026-05-08", "skipped"),
        ("2026-05-09", "due"),
    ]
    intervals = deciding.missed(LATEST, entry(6), NOW, most=10)
    assert deciding.fallen_due(LATEST, intervals, NOW)[0].reason == "A newer date, 2026-05-09, is due."


def test_of_a_table_with_every_date_all_are_due() -> None:
    assert due(DATES, entry(6)) == [("2026-05-07", "due"), ("2026-05-08", "due"), ("2026-05-09", "due")]


def test_more_than_anybody_wants_to_run_unasked_are_too_many() -> None:
    for day, many in ((6, False), (5, True)):
        intervals = deciding.missed(DATES, entry(day), NOW, most=deciding.most_missed(DATES))
        assert deciding.too_many(DATES, intervals) is many
    assert deciding.why_paused(DATES, intervals) == (
        "More than 3 dates were missed ('catch_up'), so nothing is run until somebody decides: `sereno resume churn` runs "
        "them all, oldest first; `sereno resume churn --skip-missed` runs none of them. The newest is 2026-05-09."
    )
    assert not deciding.too_many(LATEST, deciding.missed(LATEST, entry(1), NOW, most=100))


def test_years_of_missed_minutes_are_not_written_down_one_by_one() -> None:
    minutes = replace(LATEST, schedule="* * * * *")
    known = replace(entry(1), data_time=datetime(2016, 1, 1, tzinfo=UTC))
    intervals = deciding.missed(minutes, known, NOW, most=deciding.most_missed(minutes))
    entries = deciding.fallen_due(minutes, intervals, NOW)
    assert len(entries) == deciding.MOST_SKIPPED + 1
    assert entries[-1].state == "due"
    assert entries[-1].data_time == NOW.replace(second=0)
    assert entries[0].reason.endswith(" is due. So were all before it, which are not written down.")
    assert entries[1].reason == "A newer date, 2026-05-09T23:59, is due."


# What waits


@pytest.mark.parametrize(
    ("changes", "does"),
    [
        ({}, True),
        ({"tries": 1}, False),  # it began once: its data was there
        ({"not_before": NOW}, False),
        ({"who": "ana"}, False),  # an operator said to run it as it is
    ],
)
def test_a_run_waits_until_it_was_tried_or_an_operator_says_not_to(changes: dict[str, object], does: bool) -> None:
    assert deciding.waits(entry(9, **changes), LATEST) is does
    assert not deciding.waits(entry(9, **changes), replace(LATEST, has_arrival=False))


def test_data_is_late_after_its_deadline_and_not_before_anybody_could_look() -> None:
    punctual = entry(9, since=datetime(2026, 5, 10, tzinfo=UTC))
    assert not deciding.is_late(punctual, LATEST, datetime(2026, 5, 10, 5, 59, 59, tzinfo=UTC))
    assert deciding.is_late(punctual, LATEST, datetime(2026, 5, 10, 6, tzinfo=UTC))
    caught_up = entry(1, since=NOW)
    assert not deciding.is_late(caught_up, LATEST, NOW + timedelta(seconds=59))
    assert deciding.is_late(caught_up, LATEST, NOW + timedelta(seconds=60))


def test_a_clock_that_was_ahead_keeps_nothing_waiting() -> None:
    from_the_future = entry(9, since=NOW + timedelta(days=365))
    assert deciding.is_late(from_the_future, LATEST, NOW + timedelta(days=1))
    assert deciding.is_due(entry(9, not_before=NOW + timedelta(days=365)), NOW)
    assert not deciding.is_due(entry(9, not_before=NOW + timedelta(seconds=1)), NOW)
    assert deciding.is_due(entry(9, not_before=NOW), NOW)


@pytest.mark.parametrize(("late", "state"), [("hold", "held"), ("skip", "skipped")])
def test_what_late_data_does_to_its_run(late: str, state: str) -> None:
    after = deciding.without_data(entry(9, "waiting"), replace(LATEST, late=late), "/in/9.csv is not there", NOW)
    assert (after.state, after.since, after.who) == (state, NOW, "sereno")
    assert after.reason == "late: 6:00:00 after the run was due, /in/9.csv is not there"


# What is run


def test_which_of_a_models_runs_goes_first() -> None:
    some = [entry(8), entry(9), entry(7)]
    assert [one.label for one in deciding.runnable(some, LATEST)] == ["2026-05-09"]
    assert [one.label for one in deciding.runnable(some, DATES)] == ["2026-05-07", "2026-05-08", "2026-05-09"]


def test_an_older_date_gives_way_unless_an_operator_wants_it() -> None:
    some = [entry(7), entry(8, who="ana"), entry(9)]
    assert deciding.overtaken(some, entry(9)) == [some[0]]
    assert deciding.overtaken(some, None) == []


def test_tonights_runs_go_before_what_is_caught_up_with() -> None:
    tonight, before = entry(9), entry(2)
    hourly = replace(entry(9), model="hourly", data_time=NOW)
    newest = {"churn": tonight, "hourly": hourly}
    ordered = sorted([before, hourly, tonight], key=lambda one: deciding.order(one, newest[one.model]))
    assert ordered == [tonight, hourly, before]


# What failed


@pytest.mark.parametrize(
    ("reason", "tries", "after", "again"),
    [
        ("StorageError: The disk is full.", 1, 0, True),
        ("StorageError: The disk is full.", 3, 0, True),
        ("StorageError: The disk is full.", 4, 0, False),
        ("StorageError: The disk is full.", 2, 3600, False),
        ("WorkerError: The run ended by signal 9.", 1, 0, True),
        ("BusyError: …", 1, 0, True),
        ("LedgerError: …", 1, 0, True),
        ("LeaseLostError: …", 1, 0, True),
        ("SourceError: There is no such file.", 1, 0, False),
        ("PredictError: churn.py:12 …", 1, 0, False),
        ("", 1, 0, False),
        (f"{deciding.INTERRUPTED}: its process is gone.", 10, 86_400, True),
        (f"{deciding.INTERRUPTED}: its process is gone.", 11, 0, False),
    ],
)
def test_what_is_tried_again(reason: str, tries: int, after: int, again: bool) -> None:
    failed = entry(9, "failed", reason=reason, tries=tries)
    assert deciding.may_try_again(failed, LATEST, NOW, NOW + timedelta(seconds=after)) is again


def test_without_retries_only_what_was_interrupted_goes_on() -> None:
    never = replace(LATEST, retries=0)
    assert not deciding.may_try_again(entry(9, "failed", reason="StorageError: …", tries=1), never, NOW, NOW)
    interrupted = entry(9, "failed", reason=f"{deciding.INTERRUPTED}: …", tries=1)
    assert deciding.may_try_again(interrupted, never, NOW, NOW)


@pytest.mark.parametrize(("tries", "longest"), [(1, 10), (2, 20), (3, 40), (9, 300)])
def test_the_pause_before_another_try_is_random_and_grows(tries: int, longest: int) -> None:
    failed = entry(9, "failed", reason="StorageError: full.", tries=tries)
    for share in (0.0, 0.5, 1.0):
        again = deciding.tried_again(failed, NOW, lambda share=share: share)  # type: ignore[misc]
        assert (again.state, again.tries, again.who) == ("due", tries, "sereno")
        assert again.reason == "Tried again after: StorageError: full."
        assert again.not_before == NOW + timedelta(seconds=share * longest)


def test_what_was_interrupted_goes_on_at_once() -> None:
    failed = entry(9, "failed", reason=f"{deciding.INTERRUPTED}: …", tries=3)
    assert deciding.tried_again(failed, NOW, lambda: 1.0).not_before == NOW


def test_a_process_that_is_gone_does_not_unpublish() -> None:
    first = deciding.has_failed(entry(9, "running", tries=1), "WorkerError: …", NOW, began=True)
    assert (first.state, first.tries, first.not_before) == ("failed", 1, None)
    again = deciding.has_failed(entry(9, "running", tries=1, version=4), "WorkerError: …", NOW, began=True)
    assert (again.state, again.version, again.not_before) == ("published", 4, NOW)  # its exports may be behind
    assert deciding.has_failed(entry(9), "WorkerError: …", NOW, began=False).tries == 1


def test_what_was_stopped_in_good_order_does_not_count_as_a_try() -> None:
    stopped = deciding.stopped(entry(9, "running", tries=2), NOW)
    assert (stopped.state, stopped.tries, stopped.not_before) == ("due", 1, NOW)


def published(minute: int, reason: str = "") -> Transition:
    at = NOW + timedelta(minutes=minute)
    return Transition(
        model="churn", run_key="k", at=at, before="running", after="published", reason=reason, who="sereno"
    )


def test_exports_are_tried_again_as_often_as_runs() -> None:
    failed = [published(minute, "ExportError: …") for minute in range(1, 5)]
    assert deciding.may_export_again(failed[:3], LATEST, NOW + timedelta(minutes=4))
    assert not deciding.may_export_again(failed, LATEST, NOW + timedelta(minutes=4))
    assert not deciding.may_export_again(failed[:1], LATEST, NOW + timedelta(minutes=62))
    assert deciding.may_export_again([*failed, published(5), *failed[:1]], LATEST, NOW + timedelta(minutes=6))


def test_entries_say_what_their_interval_is() -> None:
    one = entry(9)
    assert (one.run_key, one.label, one.data_date) == ("2026-05-09T00:00Z", "2026-05-09", date(2026, 5, 9))
    assert (one.data_time, one.who) == (datetime(2026, 5, 10, tzinfo=UTC), "sereno")
