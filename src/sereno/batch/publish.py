"""From a finished attempt to a published one: by its gates, or by an operator's word where they held it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from sereno.batch.attempts import Report
from sereno.batch.judging import judge_report
from sereno.batch.lease import HeldLease, hold
from sereno.batch.own_gates import own_gates
from sereno.batch.profile import stored_profile
from sereno.batch.record import Record, but_not_told
from sereno.exceptions import ExportError, OlderDataError, PublishError, StorageError
from sereno.failpoints import failpoint
from sereno.home import AS_IT_WAS, Home
from sereno.interfaces import RunLedger
from sereno.ledger import RELEASED_LATE, Entry, RunState
from sereno.places import place_of, readable
from sereno.presence import sizes
from sereno.snapshots import Part, Publication
from sereno.typed import typed


def failed_gates(report: Report, options: tuple[str, ...]) -> str:
    """What keeps a run from being published; "": nothing. `options`: of the commands that it says to type."""
    failed = [f"{g.name}: {g.says}" for g in report.gates if not g.passed]
    if not failed:
        return ""
    show, release, discard = (typed(options, what, report.attempt) for what in ("show", "release", "discard"))
    return (
        f"Held by {len(failed)} gate{'s' if len(failed) > 1 else ''} ({'; '.join(failed)}). What was in service stays. "
        f"Look at it (`{show}`), then `{release}` or `{discard}`."
    )


def publication_of(report: Report, token: int = 0) -> Publication:
    """What a finished attempt would publish; all of it stands in its report. Raises PublishError where parts are gone.

    `token`: of the lease under which it is published.
    """
    import pyarrow.parquet as pq

    if sum(part.rows for part in report.parts) != report.predictions:
        raise PublishError(
            f"The report of run {report.attempt} does not name all of its parts any more"
            f"{f': {report.parts_file} beside it was removed' if report.parts_file else ''}. Run the data date again."
        )
    places = [place_of(part.path) for part in report.parts]
    there = sizes(places)
    for part, place in zip(report.parts, places, strict=True):
        if there.get(place) != part.size:
            raise PublishError(f"{part.path} was removed or changed since it was scored. Run the data date again.")
    return Publication(
        attempt=report.attempt,
        run_key=report.run_key,
        revision=report.revision,
        data_date=report.data_date,
        data_time=report.data_time,
        fingerprint=report.fingerprint,
        rows=report.predictions,
        rejects=report.rejects,
        disposition=report.disposition,
        keys=report.keys,
        schema=pq.read_schema(readable(places[0])),
        parts=tuple(
            (Part(path=place, rows=p.rows, size=p.size, sha256=p.sha256), p.stats)
            for p, place in zip(report.parts, places, strict=True)
        ),
        rejects_file=report.rejects_file,
        rejects_sha256=report.rejects_sha256,
        profile_file=report.profile_file,
        profile_sha256=report.profile_sha256,
        token=token,
    )


def release(home: Home, name: str, *, who: str = "") -> Report:
    """Publish a held run on the operator's word; its gates are judged again against what is served now, for the record.

    Raises PublishError where the run is not held, and OlderDataError where a newer data date is in service.
    """
    report = home.attempts.find(name, state="held")
    with _alone_with(home, report, who) as (ledger, held, record):
        state = home.store.state()
        if report.attempt not in state.attempts:
            home.attempts.reconcile(state.attempts, report.run_key)  # another attempt may have taken this one's place
        report = home.attempts.find(report.attempt)
        if report.state == "held":  # a release that died after its commit published it: publishing finds that out
            if report.attempt not in state.attempts:
                _whole_profile(home, report)
                report.gates = judge_report(report, home, state, own_gates(report.gates))
            failpoint("release")
            snapshot = home.store.publish(
                publication_of(report, home.token(held.lease)), force=False, known=state.snapshots, confirm=held.confirm
            )
            if snapshot.attempt != report.attempt:
                raise PublishError(f"Run {snapshot.attempt} has just published the same as version {snapshot.number}.")
            report.state, report.version = "published", snapshot.number
            report.says = f"Released by {who or 'an operator'} at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
            try:
                home.follow(succeeded=True)
            except ExportError as error:
                record.published(snapshot, behind=error)
                raise
            home.attempts.save(report)
            home.attempts.settle(report)
            home.clean(ledger)
            with but_not_told(f"Version {snapshot.number} is published."):
                record.published(snapshot, report.says)
            return report
        raise _not_held(home, report)


def discard(home: Home, name: str, *, who: str = "") -> Report:
    """Drop a held run; what is in service stays. Raises PublishError where the run is not held."""
    report = home.attempts.find(name, state="held")
    with _alone_with(home, report, who) as (ledger, held, record):
        state = home.store.state()
        home.attempts.reconcile(state.attempts, report.run_key)
        report = home.attempts.find(report.attempt)
        if report.state != "held":
            raise _not_held(home, report)
        report.state, report.says = "discarded", "Discarded by an operator."
        home.attempts.save(report)
        home.attempts.drop_work(report)
        home.clean(ledger)
        held.check()
        with but_not_told(f"Run {report.attempt} is discarded."):
            record.discarded(f"Discarded by {who or 'an operator'}.", state)
        return report


def _whole_profile(home: Home, report: Report) -> None:
    """Raise PublishError where a held run's profile is gone: what is published next is compared with it."""
    try:
        stored_profile(home.store.folder, report)
    except StorageError as error:
        raise PublishError(f"{error} Run the data date again.") from error


def release_late(home: Home, entry: Entry, *, who: str = "") -> Entry:
    """Let a run start that was held because its input was late: it is due, and the input is not waited for any longer.

    Raises PublishError where it is not held any more, and OlderDataError where a newer data date is in service.
    """
    newest = home.store.state().newest
    if home.chosen.disposition == "replace" and newest is not None and newest.data_time > entry.data_time:
        give_up = typed(home.settings.given_options, "discard", entry.label)
        raise OlderDataError(
            f"Data date {entry.data_date} is older than {newest.data_date}, which is in service (version {newest.number}). "
            f"`{give_up}` gives it up; `sereno run --force` would put the older one in service."
        )
    return _move_late(home, entry, "due", RELEASED_LATE, who)


def discard_late(home: Home, entry: Entry, *, who: str = "") -> Entry:
    """Skip a run that was held because its input was late. Raises PublishError where it is not held any more."""
    return _move_late(home, entry, "skipped", "discarded: the input came too late", who)


def _move_late(home: Home, entry: Entry, to: RunState, reason: str, who: str) -> Entry:
    now = datetime.now(UTC)
    after = replace(entry, state=to, reason=reason, who=who, since=now, not_before=None)
    with home.ledger() as ledger:
        if not ledger.move(after, expected=["held"]):
            found = ledger.entry(entry.model, entry.run_key)
            is_now = found.state if found else "unknown"
            raise PublishError(f"The run of {entry.model} for {entry.label} is {is_now} by now, not held.")
    return after


@contextlib.contextmanager
def _alone_with(home: Home, report: Report, who: str) -> Iterator[tuple[RunLedger, HeldLease, Record]]:
    """The run of a held report, as long as nobody else may work on it. Raises BusyError, LedgerError."""
    with (
        home.used(AS_IT_WAS),
        home.attempts.exclusive(report.run_key),
        home.ledger() as ledger,
        hold(ledger, home.name, report.run_key) as held,
    ):
        yield ledger, held, Record(ledger, home.name, report, who=who, held=held)


def _not_held(home: Home, report: Report) -> PublishError:
    return PublishError(
        f"Run {report.attempt} is {report.state}, not held. {report.says} "
        f"`{typed(home.settings.given_options, 'runs', home.name)}` shows which ones are."
    )
