"""What a ledger in a file promises beyond `interfaces.RunLedger`: what it says of faults, and what it survives."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sereno.adapters.ledger import ledger_file, open_at, sqlite
from sereno.adapters.ledger.salvage import salvage
from sereno.exceptions import LedgerError
from sereno.ledger import Entry, Notice, Pause
from tests.contract.ledgers import START, Place, entry, labels, moved

DAYS = 300


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(address=None, home=tmp_path / "home")
    yield place
    place.close()


@pytest.fixture
def file(place: Place) -> Path:
    """Of a ledger with many runs, closed."""
    ledger = open_at(None, place.home)
    ledger.pause(Pause(model="churn", since=START, who="ana", why="the warehouse moves"))
    ledger.add_notice("churn", entry().run_key, "failed", "It failed.", START)
    ledger.add([entry(day, reason="some words " * 20) for day in range(1, DAYS + 1)])
    ledger.close()
    return ledger_file(place.home)


def beside(file: Path) -> set[str]:
    return {path.name for path in file.parent.glob(f"*{file.name}*")}


def refused(place: Place) -> LedgerError:
    """What a ledger that cannot be used says, asked for anything."""
    ledger = place.open()
    said = []
    for ask in (
        lambda: ledger.entries(),
        lambda: ledger.move(entry(400)),
        lambda: ledger.acquire("scheduler", "me", 30),
    ):
        with pytest.raises(LedgerError) as error:
            ask()
        said.append(error.value)
    assert len({str(error).partition("(")[0] for error in said}) == 1
    return said[0]


@dataclass
class Found:
    entries: list[Entry]
    pauses: list[Pause]
    notices: list[Notice]
    token: int
    unread: list[str]


def salvaged(file: Path) -> Found:
    with salvage(file) as found:
        transitions = list(found.transitions())
        assert [t.at for t in transitions] == sorted(t.at for t in transitions)
        values = [*found.entries()], [*found.pauses()], [*found.notices()], found.token()
        return Found(*values, [what for what in found.unread if "transitions" not in what])


# The file


def test_it_is_whole_once_it_is_there_and_written_back_once_all_have_closed_it(place: Place, file: Path) -> None:
    assert beside(file) == {"ledger.sqlite"}
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT value FROM sereno_ledger WHERE name = 'format'").fetchone() == (1,)
    connection.close()
    assert len(place.open().entries()) == DAYS


def test_a_newer_format_is_refused(place: Place, file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE sereno_ledger SET value = 2 WHERE name = 'format'")
    connection.close()
    error = refused(place)
    assert str(error) == (
        f"The ledger {file} was made by a newer version of Sereno (format 2; this one knows 1). Upgrade Sereno here, too."
    )
    assert not error.damaged


def test_nothing_heavy_is_loaded(place: Place, file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sereno.adapters.ledger import open_at; "
        "ledger = open_at(None, Path(sys.argv[1])); print(len(ledger.entries())); "
        "assert not {'numpy', 'pyarrow', 'deltalake', 'psycopg', 'msgspec'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, place.home], capture_output=True, text=True, check=True)
    assert done.stdout == f"{DAYS}\n"


def test_a_fork_opens_its_own(place: Place) -> None:
    ledger = place.open()
    moved(ledger, entry(1))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            moved(ledger, entry(2))
            ledger.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    moved(ledger, entry(3))
    assert labels(ledger.entries()) == ["churn/03", "churn/02", "churn/01"]


def test_the_clock_on_the_wall_does_not_move_leases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = place.open()
    lease = ledger.acquire("scheduler", "me", 0.3)
    assert lease is not None
    now = time.time_ns()
    for step in (86_400, -86_400):
        monkeypatch.setattr(time, "time_ns", lambda step=step: now + step * 10**9)
        assert ledger.renew(lease, 0.3)
        assert ledger.holder("scheduler") == lease
        assert ledger.acquire("scheduler", "you", 30) is None
    time.sleep(0.35)
    assert ledger.holder("scheduler") is None  # though its time on the wall is a day away
    taken = ledger.acquire("scheduler", "you", 30)
    assert taken is not None
    assert taken.token > lease.token


def test_leases_of_before_a_restart_of_the_host_are_over_by_the_clock(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = place.open()
    monkeypatch.setattr(sqlite, "_boot", lambda: "an earlier one")
    long, short = ledger.acquire("a", "me", 30), ledger.acquire("b", "me", 0.01)
    monkeypatch.undo()
    time.sleep(0.02)
    assert ledger.holder("a") == long
    assert ledger.holder("b") is None
    assert short is not None
    assert ledger.acquire("b", "you", 30) is not None
    monkeypatch.setattr(sqlite, "_boot", lambda: "a later one")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 31 * 10**9)
    assert ledger.acquire("a", "you", 30) is not None


# Removed


def test_one_that_is_removed_while_it_is_open(place: Place) -> None:
    """The next transaction finds that out, and begins a new one: nothing is written where nobody finds it."""
    ledger, other = place.open(), place.open()
    moved(ledger, entry(1))
    lease, lost = ledger.acquire("run:churn:a", "me", 30), other.acquire("run:churn:b", "me", 30)
    assert lease is not None
    assert lost is not None
    file = ledger_file(place.home)
    for path in file.parent.glob("ledger.sqlite*"):
        path.unlink()
    assert other.entries() == []
    assert ledger.move(entry(2), expected=[None])
    assert other.entries() == [entry(2)]
    # Who worked goes on with the lease that it had, unless another has asked for it since.
    taken = other.acquire("run:churn:b", "you", 30)
    assert taken is not None
    assert taken.token > lost.token
    assert not ledger.renew(lost, 30)
    assert ledger.renew(lease, 30)
    assert other.acquire("run:churn:a", "you", 30) is None
    assert other.move(replace(entry(1), state="published"), lease=lease)
    ledger.close()
    other.close()
    assert beside(file) == {"ledger.sqlite"}
    assert labels(place.open().entries()) == ["churn/02", "churn/01"]


def test_only_the_file_is_removed_and_what_lies_beside_it_stays(place: Place) -> None:
    ledger = place.open()
    moved(ledger, *(entry(day) for day in range(1, 30)))
    ledger_file(place.home).unlink()
    other = place.open()
    moved(other, entry(40))
    assert labels(other.entries()) == labels(ledger.entries()) == ["churn/09"]
    ledger.close()
    moved(other, entry(41))
    with sqlite3.connect(ledger_file(place.home)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert len(place.open().entries()) == 2


def test_many_find_it_removed_again_and_again(place: Place) -> None:
    file = ledger_file(place.home)

    said: list[LedgerError] = []

    def work(number: int) -> None:
        ledger = place.open()
        for day in range(1, 60):
            try:
                ledger.move(entry(day, str(number)))
            except LedgerError as error:  # its files went one by one, just as it was opened
                said.append(error)
            if number == 0 and day % 6 == 0:
                for end in random.Random(day).sample(["", "-wal", "-shm"], 3):
                    Path(f"{file}{end}").unlink(missing_ok=True)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not [error for error in said if error.damaged]
    ledger = open_at(None, place.home)
    ledger.verify()
    ledger.close()


# Locked


def test_one_that_another_process_has_locked(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger = place.open()
    assert len(ledger.entries()) == DAYS  # who reads does not wait
    with pytest.raises(LedgerError) as error:
        ledger.move(entry(400))
    assert str(error.value) == (
        f"The ledger {file} is locked: another process has kept it for 0.2 seconds. Try again; if that goes on, end whatever "
        "has it open, such as a shell of sqlite3."
    )
    assert not error.value.damaged
    other.execute("ROLLBACK")
    other.close()
    assert ledger.move(entry(400))


# Full, read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def on_disk(small_disk: Path) -> Iterator[Place]:
    place = Place(address=None, home=small_disk)
    yield place
    place.close()


def fill(disk: Path, *, but: int) -> Path:
    """A file that leaves so many pages free."""
    file = disk / "filler"
    with file.open("wb") as stream:
        for _ in range(shutil.disk_usage(disk).free // 4096 - but):
            stream.write(b"x" * 4096)
    return file


@pytest.mark.parametrize("pages", [0, 1, 2, 4, 8, 12, 16, 24, 32])
def test_a_full_disk(on_disk: Place, pages: int) -> None:
    ledger = on_disk.open()
    moved(ledger, entry(1))
    if pages % 4:
        ledger.close()  # then even what lies beside the file is to be made
    filler = fill(on_disk.home, but=pages)
    told = 1
    error = None
    while error is None:
        try:
            assert ledger.move(entry(told + 1, reason="many words " * 500))
            told += 1
        except LedgerError as raised:
            error = raised
    assert str(error) == (
        f"The ledger {ledger_file(on_disk.home)} cannot be written: the disk is full. Free space, then try again."
    )
    assert not error.damaged
    assert len(ledger.entries()) == told  # what was told stays, and can be read
    assert len(on_disk.open().entries()) == told
    filler.unlink()
    assert ledger.move(entry(told + 1))
    assert len(on_disk.open().entries()) == told + 1


def test_a_disk_that_is_full_before_there_is_one(on_disk: Place) -> None:
    filler = fill(on_disk.home, but=0)
    ledger = on_disk.open()
    with pytest.raises(LedgerError, match="the disk is full"):
        ledger.move(entry(1))
    filler.unlink()
    assert ledger.move(entry(1))


@pytest.mark.parametrize("has_left", [False, True])
def test_a_read_only_disk(on_disk: Place, has_left: bool) -> None:
    ledger = on_disk.open()
    moved(ledger, entry(1))
    ledger.close()
    if has_left:  # one that was killed: what it wrote lies beside the file still
        subprocess.run([sys.executable, "-P", "-c", KILLED, on_disk.home], check=False)
        assert len(beside(ledger_file(on_disk.home))) == 3
    subprocess.run(["mount", "-o", "remount,ro", on_disk.home], check=True)
    try:
        assert len(ledger.entries()) == len(ledger.entries()) == 1 + has_left
        with pytest.raises(LedgerError, match="it is read-only, or this user may not write there. Mend that") as error:
            ledger.move(entry(3))
        assert not error.value.damaged
        assert len(ledger.entries()) == 1 + has_left
    finally:
        subprocess.run(["mount", "-o", "remount,rw", on_disk.home], check=True)
    assert ledger.move(entry(3))  # once it may
    assert len(ledger.entries()) == 2 + has_left


KILLED = """
import os, signal, sys
from datetime import UTC, date, datetime
from pathlib import Path
from sereno.adapters.ledger import open_at
from sereno.ledger import Entry
when = datetime(2026, 1, 1, tzinfo=UTC)
open_at(None, Path(sys.argv[1])).move(
    Entry(model="killed", run_key="k", data_date=date(2026, 1, 1), data_time=when, state="due", since=when)
)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_home_where_this_user_may_not_write(place: Place, file: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    file.parent.chmod(0o500)
    file.chmod(0o400)
    try:
        assert len(place.open().entries()) == DAYS
    finally:
        file.parent.chmod(0o700)


# Damaged


def damaged(place: Place) -> str:
    error = refused(place)
    assert error.damaged
    message = str(error)
    assert message.startswith(f"The ledger {ledger_file(place.home)} is damaged: ")
    assert message.endswith(" `sereno repair` puts it aside and makes it again from what was published.")
    return message


def test_garbage_in_place_of_the_file(place: Place, file: Path) -> None:
    file.write_bytes(random.Random(1).randbytes(file.stat().st_size))
    assert "it is no SQLite file any more" in damaged(place)
    found = salvaged(file)
    assert (found.entries, found.pauses) == ([], [])
    assert len(found.unread) == 5


@pytest.mark.parametrize("size", [0, 1, 50, 100, 512, 3000])
def test_a_file_of_which_next_to_nothing_is_left(place: Place, file: Path, size: int) -> None:
    os.truncate(file, size)
    damaged(place)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(place: Place, file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share) // 4096 * 4096)
    ledger = open_at(None, place.home)
    with pytest.raises(LedgerError) as error:
        ledger.verify()
    assert error.value.damaged
    assert "`sereno repair`" in str(error.value)
    ledger.close()
    found = salvaged(file)
    assert found.unread
    assert len(found.entries) <= DAYS


def test_some_pages_of_garbage(place: Place, file: Path) -> None:
    """What else there is can be read: what stands before them, between them, and after them."""
    size = file.stat().st_size
    for third in (1, 2):
        with file.open("r+b") as stream:
            stream.seek(size * third // 3 // 4096 * 4096)
            stream.write(random.Random(third).randbytes(4096))
    ledger = open_at(None, place.home)
    with pytest.raises(LedgerError) as error:
        ledger.verify()
    assert error.value.damaged
    ledger.close()
    found = salvaged(file)
    assert DAYS * 0.8 < len(found.entries) < DAYS
    assert [one.data_date for one in found.entries] == sorted(one.data_date for one in found.entries)
    assert all(one == entry(int((one.data_time - START).days), reason="some words " * 20) for one in found.entries)
    assert [pause.who for pause in found.pauses] == ["ana"]
    assert [notice.says for notice in found.notices] == ["It failed."]
    assert found.token > 0


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_changed_anywhere(place: Place, file: Path, seed: int) -> None:
    """It is said that it is damaged, or it is as it was; nothing else is ever raised."""
    dice = random.Random(seed)
    content = bytearray(file.read_bytes())
    for _ in range(40):
        at = dice.randrange(len(content))
        content[at : at + 16] = dice.randbytes(16)
    file.write_bytes(content)
    for ask in (
        lambda ledger: ledger.entries(),
        lambda ledger: ledger.newest(START.replace(year=2030)),
        lambda ledger: ledger.open_entries(),
        lambda ledger: ledger.untold(),
        lambda ledger: ledger.move(entry(400)),
        lambda ledger: ledger.verify(),
    ):
        ledger = open_at(None, place.home)
        said = ""
        try:
            ask(ledger)
        except LedgerError as error:
            said = "" if error.damaged else str(error)
        assert said == ""
        ledger.close()
    salvaged(file)


def test_values_of_another_kind(place: Place, file: Path) -> None:
    for change in ("data_date = 'never'", "data_time = 'never'", "data_time = 9e18", "since = x'00ff'"):
        with sqlite3.connect(file) as connection:
            connection.execute(f"UPDATE sereno_runs SET {change} WHERE run_key = ?", (entry(9).run_key,))
        connection.close()
        ledger = place.open()
        with pytest.raises(LedgerError, match="is damaged: it has a value of another kind") as error:
            ledger.entries()
        assert error.value.damaged
        found = salvaged(file)
        assert len(found.entries) == DAYS - 1
        assert found.unread == [f"the table of runs: {DAYS - 1} of its rows could be read"]
