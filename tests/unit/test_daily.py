"""What is done once a day."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sereno.adapters.ledger import open_at
from sereno.operate.scheduling import daily
from sereno.operate.scheduling.daily import Daily


def wait(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daily, "LOOK_SECONDS", 0.0)


def command(folder: Path, then: str = "") -> list[str]:
    code = f"open({str(folder / 'done')!r}, 'a').write('x'); {then}"
    return [sys.executable, "-c", code]


def done(folder: Path) -> int:
    file = folder / "done"
    return len(file.read_text()) if file.exists() else 0


def test_it_is_done_once_a_day_whoever_looks_and_not_beside_a_run(tmp_path: Path) -> None:
    ledger, log = open_at(None, tmp_path), list[str]()
    some = [Daily(ledger, command(tmp_path), log.append) for _ in range(3)]
    for one in some:
        one.look(quiet=False)
    assert ledger.holder(daily.LEASE) is None

    def look() -> None:
        for one in some:
            one.look(quiet=True)

    look()
    wait(lambda: done(tmp_path) == 1)
    wait(lambda: look() or all(one._process is None for one in some))  # type: ignore[func-returns-value]
    look()
    assert done(tmp_path) == 1
    ledger.acquire(daily.LEASE, "the next day", 0.0, by_force=True)
    look()
    wait(lambda: done(tmp_path) == 2)
    for one in some:
        one.stop()
    assert log == []
    ledger.close()


def test_one_that_fails_is_told(tmp_path: Path) -> None:
    ledger, log = open_at(None, tmp_path), list[str]()
    one = Daily(ledger, command(tmp_path, "raise SystemExit(1)"), log.append)
    one.look(quiet=True)
    wait(lambda: one.look(quiet=True) or bool(log))  # type: ignore[func-returns-value]
    assert log == ["`sereno prune` ended with 1. It is tried again tomorrow."]
    ledger.close()


def test_it_ends_with_its_scheduler(tmp_path: Path) -> None:
    ledger = open_at(None, tmp_path)
    one = Daily(ledger, command(tmp_path, "import time; time.sleep(60)"), lambda text: None)
    one.look(quiet=True)
    wait(lambda: done(tmp_path) == 1)
    one.stop()
    assert one._process is None
    ledger.close()
