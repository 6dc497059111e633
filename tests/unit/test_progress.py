"""What a log and a terminal are told while a run goes on."""

from __future__ import annotations

import io

import pytest

from sereno import progress
from sereno.progress import Bar, Lines, progress_line


def test_a_line_says_rows_rate_and_what_is_left() -> None:
    expected = "score: 1,000 of 10,000 rows, 500 rows/s, 18 s left"
    assert progress_line("score", 1_000, 10_000, 2.0) == expected
    assert progress_line("score", 1_000, 0, 2.0) == "score: 1,000 rows, 500 rows/s"


def test_a_log_gets_a_line_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    stream = io.StringIO()
    lines = Lines(stream)
    lines.total(100)
    lines.stage("score")
    lines.rows(10)
    assert stream.getvalue() == ""
    now = 110.0
    lines.rows(40)
    assert stream.getvalue() == "score: 50 of 100 rows, 5 rows/s, 10 s left\n"
    lines.close()


def test_a_bar_shows_stage_rows_and_total(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.stage("score")
    bar.total(2_000)
    bar.rows(500)
    bar.close()
    shown = capsys.readouterr().err
    assert "score" in shown
    assert "2.00k" in shown
