"""The scheduler's ledger is made whole by another process, as often as it takes; and only where that is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sereno.adapters.ledger import ledger_file, open_at
from sereno.ledger import Entry
from sereno.operate import mending
from sereno.operate.mending import Mending, lacks
from sereno.settings import Settings
from sereno.status import Status, write_status

NOW = datetime(2026, 5, 10, tzinfo=UTC)
WORKS = """print('{"aside": "", "added": {"published": 2}}')"""


class Bench:
    """A ledger, and a command that repairs it."""

    def __init__(self, home: Path, script: str) -> None:
        self.home, self.log = home, list[str]()
        self.ledger = open_at(None, home)
        self.mending = Mending(self.ledger, Settings(home=home), [sys.executable, "-c", script], self.log.append)

    def ends(self) -> bool:
        deadline = time.monotonic() + 60
        while self.mending.has_begun:
            if self.mending.ended():
                return True
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[str], Bench]:
    return lambda script: Bench(tmp_path, script)


def published(version: int | None, model: str = "churn") -> Entry:
    return Entry(
        model=model, run_key=f"k{version}", data_date=NOW.date(), data_time=NOW, state="published", since=NOW,
        version=version,
    )  # fmt: skip


def test_what_is_whole_is_let_be(bench: Callable[[str], Bench]) -> None:
    one = bench(WORKS)
    assert one.mending.is_whole()
    assert (one.mending.is_needed, one.mending.ended(), one.log) == (False, False, [])


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_another_ledger_is_made_whole(how: str, bench: Callable[[str], Bench], tmp_path: Path) -> None:
    one = bench(WORKS)
    assert one.mending.is_whole()
    if how == "removed":
        for end in ("", "-wal", "-shm"):
            ledger_file(tmp_path).with_name(f"ledger.sqlite{end}").unlink(missing_ok=True)
    else:
        one.ledger.close()
        backup = tmp_path / "backup"
        backup.write_bytes(ledger_file(tmp_path).read_bytes())
        backup.replace(ledger_file(tmp_path))
    assert not one.mending.is_whole()
    assert one.mending.is_needed
    one.mending.start()
    assert one.ends()
    assert one.log == ["the ledger was made whole from what is published (2 runs)."]
    assert one.mending.is_whole()
    assert not one.mending.is_needed


def test_a_repair_that_fails_is_tried_again_and_each_failure_told_once(
    bench: Callable[[str], Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "SHORTEST_PAUSE", 0.05)
    tries = tmp_path / "tries"
    fails = f"import sys; f = open({str(tries)!r}, 'a+'); f.write('x'); f.flush(); f.seek(0); len(f.read()) > 2 or sys.exit(1)"
    one = bench(f"{fails}\n{WORKS}")
    (tmp_path / "predictions/churn/_delta_log").mkdir(parents=True)
    assert not one.mending.is_whole()
    while not (one.mending.start() or one.ends()):  # type: ignore[func-returns-value]
        time.sleep(0.01)
    assert one.log == [
        "the ledger could not be repaired. The next try is in 0.05 s.",
        "the ledger could not be repaired. The next try is in 0.1 s.",
        "the ledger was made whole from what is published (2 runs).",
    ]
    assert one.mending.is_whole()  # it was repaired: what a log has that cannot be read, it need not know


def test_pauses_grow_up_to_a_limit_and_begin_anew_once_all_is_well(bench: Callable[[str], Bench]) -> None:
    one = bench(WORKS)
    assert [one.mending._pause() for _ in range(9)] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    one.mending.is_well()
    assert one.mending._pause() == 5


def test_what_cannot_be_started_is_a_failure(bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench(WORKS)
    monkeypatch.setattr(mending, "tied", lambda command: ["/no/such/program"])
    one.mending.start()
    assert one.log == ["the ledger could not be repaired: No such file or directory. The next try is in 5 s."]


def test_the_end_ends_a_repair(bench: Callable[[str], Bench]) -> None:
    one = bench("import time; time.sleep(600)")
    one.mending.stop()
    one.mending.start()
    one.mending.stop()
    assert not one.mending.has_begun


def test_what_a_ledger_lacks(tmp_path: Path) -> None:
    ledger = open_at(None, tmp_path)

    def status(version: int | None, model: str = "churn") -> None:
        write_status(tmp_path, Status(model=model, last_success_at=NOW, version=version))

    status(None)  # a run ended well, and nothing is served
    assert not lacks(ledger, tmp_path)
    (tmp_path / "predictions/churn/_delta_log").mkdir(parents=True)
    assert lacks(ledger, tmp_path)
    ledger.move(published(None))
    assert lacks(ledger, tmp_path)
    ledger.move(published(7))
    assert not lacks(ledger, tmp_path)
    for version, expected in ((7, False), (8, True), (5, False)):  # the last: it was rolled back
        status(version)
        assert lacks(ledger, tmp_path) is expected
    (tmp_path / "predictions/offers/_delta_log").mkdir(parents=True)
    assert lacks(ledger, tmp_path)  # of one model it knows all, of another nothing
    ledger.move(published(1, "offers"))
    assert not lacks(ledger, tmp_path)
    ledger.close()
