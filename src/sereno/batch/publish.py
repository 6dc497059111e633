"""From a finished attempt to a published one: by its gates, or by an operator's word where they held it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from sereno.batch.attempts import Report
from sereno.batch.gates import Gate, judge
from sereno.config import ModelSettings
from sereno.exceptions import PublishError
from sereno.failpoints import failpoint
from sereno.home import AS_IT_WAS, Home
from sereno.snapshots import Part, Publication, State
from sereno.storage import told


def judge_report(report: Report, chosen: ModelSettings, state: State) -> list[Gate]:
    """The gates' verdicts on a finished attempt, against what is served now."""
    # what is in service; where each date is, the date before (or this one's, which it would replace)
    by_date = report.disposition == "partition"
    others = [s for s in state.served if not by_date or s.data_date <= report.data_date]
    return judge(
        chosen.gates,
        rows_in=report.rows_in,
        rejects=report.rejects - report.uncounted_rejects,
        answered=report.predictions,
        profile=report.profile,
        last=others[-1] if others else None,
    )


def failed_gates(report: Report) -> str:
    failed = [f"{g.name}: {g.says}" for g in report.gates if not g.passed]
    if not failed:
        return ""
    return (
        f"Held by {len(failed)} gate{'s' if len(failed) > 1 else ''} ({'; '.join(failed)}). What was in service stays. "
        f"Look at it (`sereno show {report.attempt}`), then `sereno release {report.attempt}` or `sereno discard {report.attempt}`."
    )


def publication_of(report: Report) -> Publication:
    """What a finished attempt would publish; all of it stands in its report. Raises PublishError where parts are gone."""
    import pyarrow.parquet as pq

    for part in report.parts:
        if not os.path.exists(part.path) or os.path.getsize(part.path) != part.size:
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
        schema=pq.read_schema(report.parts[0].path),
        parts=tuple(
            (Part(path=Path(p.path), rows=p.rows, size=p.size, sha256=p.sha256), p.stats) for p in report.parts
        ),
        rejects_file=report.rejects_file,
        rejects_sha256=report.rejects_sha256,
        profile_file=report.profile_file,
        profile_sha256=report.profile_sha256,
    )


def release(home: Home, name: str, *, who: str = "") -> Report:
    """Publish a held run on the operator's word; its gates are judged again against what is served now, for the record.

    Raises PublishError where the run is not held, and OlderDataError where a newer data date is in service.
    """
    report = home.attempts.find(name, state="held")
    with told(f"The home {home.path} cannot be used", AS_IT_WAS), home.attempts.exclusive(report.run_key):
        state = home.store.state()
        if report.attempt not in state.attempts:
            home.attempts.reconcile(state.attempts, report.run_key)  # another attempt may have taken this one's place
        report = home.attempts.find(report.attempt)
        if report.state == "held":  # a release that died after its commit published it: publishing finds that out
            if report.attempt not in state.attempts:
                report.gates = judge_report(report, home.chosen, state)
            failpoint("release")
            snapshot = home.store.publish(publication_of(report), force=False)
            report.state, report.version = "published", snapshot.number
            report.says = f"Released by {who or 'an operator'} at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
            home.follow()
            home.attempts.save(report)
            home.attempts.settle(report)
            home.clean()
            return report
        raise _not_held(home, report)


def discard(home: Home, name: str) -> Report:
    """Drop a held run; what is in service stays. Raises PublishError where the run is not held."""
    report = home.attempts.find(name, state="held")
    with told(f"The home {home.path} cannot be used", AS_IT_WAS), home.attempts.exclusive(report.run_key):
        home.attempts.reconcile(home.store.state().attempts, report.run_key)
        report = home.attempts.find(report.attempt)
        if report.state != "held":
            raise _not_held(home, report)
        report.state, report.says = "discarded", "Discarded by an operator."
        home.attempts.save(report)
        home.attempts.drop_work(report)
        home.clean()
        return report


def _not_held(home: Home, report: Report) -> PublishError:
    return PublishError(
        f"Run {report.attempt} is {report.state}, not held. {report.says} `sereno runs {home.name}` shows which ones are."
    )
