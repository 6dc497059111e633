"""Reports of attempts with many parts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from sereno import Interval
from sereno.batch.attempts import MOST_PARTS, Attempts, Report
from sereno.batch.parts import WrittenPart
from sereno.batch.publish import publication_of
from sereno.exceptions import PublishError

INTERVAL = Interval(start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 2, tzinfo=UTC))


def held(attempts: Attempts, home: Path, *, parts: int) -> Report:
    """An attempt that a gate holds, whose parts nobody wrote."""
    report = attempts.create(INTERVAL)
    folder = home / "predictions" / "m" / report.attempt
    report.parts = [
        WrittenPart(path=f"{folder}/part-{i:05d}.parquet", rows=2, size=9, sha256="ab" * 32, stats="{}")
        for i in range(parts)
    ]
    report.state, report.predictions = "held", 2 * parts
    attempts.save(report)
    return report


@pytest.mark.parametrize("parts", [MOST_PARTS, MOST_PARTS + 1])
def test_a_report_with_many_parts_is_small_and_has_them_all(tmp_path: Path, parts: int) -> None:
    attempts = Attempts(tmp_path, "m")
    report = held(attempts, tmp_path, parts=parts)
    many = parts > MOST_PARTS
    (listed,) = attempts.all()
    assert len(listed.parts) == (0 if many else parts)
    assert attempts.find(report.attempt).parts == report.parts
    assert attempts.needed() == ({report.attempt}, {Path(p.path) for p in report.parts})
    assert ((attempts.work(report) / "report.json").stat().st_size < 5_000) == many
    attempts.save(listed)  # as whoever only has it from the list does
    assert attempts.find(report.attempt).parts == report.parts


def test_a_home_that_was_moved_has_its_parts_where_it_is_now(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    report = held(Attempts(before, "m"), before, parts=MOST_PARTS + 1)
    before.rename(now)
    parts = Attempts(now, "m").find(report.attempt).parts
    assert parts[-1].path == str(now / "predictions" / "m" / report.attempt / f"part-{MOST_PARTS:05d}.parquet")


def test_nothing_is_published_of_a_report_that_has_lost_its_parts(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, "m")
    report = held(attempts, tmp_path, parts=MOST_PARTS + 1)
    (attempts.work(report) / "parts.json").unlink()
    found = attempts.find(report.attempt)
    with pytest.raises(
        PublishError, match=r"does not name all of its parts any more: parts\.json beside it was removed"
    ):
        publication_of(found)
