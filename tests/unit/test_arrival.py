"""Arrivals: data comes as it comes, by rename or byte by byte, and the run that waits for it starts when it is there."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.exceptions import SourceError
from sereno.ledger import Entry
from sereno.operate.arrivals import arrivals as module
from sereno.operate.arrivals import changes, looking
from sereno.operate.arrivals.arrivals import Arrival, Arrivals
from sereno.operate.arrivals.awaited import Awaited
from sereno.operate.arrivals.looking import look
from sereno.operate.declared import Declared
from sereno.sources import find_files

DAY = date(2026, 5, 1)
LONG = 3600.0  # nobody waits for so long: what is seen earlier was told, not looked at
PATIENCE = 20.0


def declared(base: Path, template: str = "in/{data_date}.csv", *, name: str = "m", **awaited: Any) -> Declared:
    return Declared(
        name=name, file="", schedule="0 0 * * *", time_zone="Europe/Madrid", disposition="replace", scheduled=True,
        catch_up=30, retries=3, retry_seconds=3600, deadline_seconds=3600, late="hold", has_input=True, has_ready=False,
        awaited=Awaited(**dict[str, Any](how="path", template=template, base=str(base), is_source=True) | awaited),
        belongs=(),
    )  # fmt: skip


def entry(name: str = "m", day: date = DAY) -> Entry:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=2)  # midnight in Madrid, in summer
    return Entry(
        model=name,
        run_key=f"{start:%Y-%m-%dT%H:%MZ}",
        data_date=day,
        data_time=start + timedelta(days=1),
        state="due",
        since=start + timedelta(days=1),
        label=day.isoformat(),
    )


Open = Callable[..., Arrivals]


@pytest.fixture
def open_arrivals() -> Iterator[Open]:
    opened = []

    def open_one(*models: Declared, **options: Any) -> Arrivals:
        opened.append(Arrivals(models, **options))
        for model in models:
            opened[-1].watch(entry(model.name), model)
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def until(arrivals: Arrivals, words: str, name: str = "m") -> Arrival:
    """What is known once it says so; nobody looks in between but when woken."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        arrivals.woken.clear()
        known = arrivals.state(name, entry(name).run_key)
        if words in known.says or words == known.state:
            return known
        arrivals.woken.wait(end - time.monotonic())
    raise AssertionError(f"{arrivals.state(name, entry(name).run_key)} never became {words!r}")


WAYS = pytest.mark.parametrize(
    "options", [{"poll_seconds": LONG}, {"poll_seconds": 0.02, "events": False}], ids=["told", "polled"]
)


@WAYS
def test_a_file_that_is_renamed_into_place(tmp_path: Path, open_arrivals: Open, options: dict[str, Any]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    arrivals = open_arrivals(declared(tmp_path), **options)
    assert until(arrivals, "not there") == ("waiting", f"{folder}/2026-05-01.csv is not there")
    (folder / "2026-05-01.csv.part").write_text("id\n1\n")
    (folder / "2026-05-01.csv.part").rename(folder / "2026-05-01.csv")
    assert until(arrivals, "ready") == ("ready", f"{folder}/2026-05-01.csv is there")
    (folder / "2026-05-01.csv").unlink()
    assert until(arrivals, "waiting").says == f"{folder}/2026-05-01.csv is not there"


@WAYS
def test_folders_above_it_that_are_not_there_yet(tmp_path: Path, open_arrivals: Open, options: dict[str, Any]) -> None:
    arrivals = open_arrivals(declared(tmp_path, "a/b/{data_date:%Y/%m/%d}/*.csv"), **options)
    until(arrivals, f"nothing matches {tmp_path}/a/b/2026/05/01/*.csv")
    folder = tmp_path
    for name in ("a", "b", "2026", "05", "01"):
        folder /= name
        folder.mkdir()
        (folder / "_x.csv").write_text("")  # hidden: it does not count
    (folder / "x.csv").write_text("id\n1\n")
    assert until(arrivals, "ready").says == f"{folder}/*.csv is there"


def test_a_folder_that_is_replaced_by_another(tmp_path: Path, open_arrivals: Open) -> None:
    (tmp_path / "in").mkdir()
    arrivals = open_arrivals(declared(tmp_path, "in"), poll_seconds=LONG)
    until(arrivals, f"the folder {tmp_path}/in has no file in it")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("id\n")
    (tmp_path / "in").rmdir()
    (tmp_path / "other").rename(tmp_path / "in")
    until(arrivals, "ready")


def test_what_was_written_long_before_is_ready_at_once(tmp_path: Path, open_arrivals: Open) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "2026-05-01.csv"
    file.write_text("id\n")
    os.utime(file, (time.time() - 3600,) * 2)
    until(open_arrivals(declared(tmp_path, quiet_seconds=600), poll_seconds=LONG), "ready")


def test_what_seems_to_be_older_by_less_than_clocks_differ_is_watched(tmp_path: Path, open_arrivals: Open) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "2026-05-01.csv"
    file.write_text("id\n")  # it is being written by a machine whose clock is 5 minutes behind
    os.utime(file, (time.time() - 300,) * 2)
    until(open_arrivals(declared(tmp_path, quiet_seconds=60), poll_seconds=LONG), "changed within 60 s")


def test_a_time_to_come_says_nothing(tmp_path: Path, open_arrivals: Open) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "2026-05-01.csv"
    file.write_text("id\n")
    os.utime(file, (time.time() + 3600,) * 2)
    arrivals = open_arrivals(declared(tmp_path, quiet_seconds=600), poll_seconds=LONG)
    until(arrivals, "changed within 600 s ('quiet_seconds')")


def test_a_slow_write_ends_before_it_is_ready(tmp_path: Path, open_arrivals: Open) -> None:
    (tmp_path / "in").mkdir()
    arrivals = open_arrivals(declared(tmp_path, quiet_seconds=0.8), poll_seconds=LONG)
    file = tmp_path / "in" / "2026-05-01.csv"
    written: list[float] = []
    ends = threading.Event()

    def write() -> None:
        with file.open("w") as stream:
            for _ in range(15):
                stream.write("1\n")
                stream.flush()
                written.append(time.monotonic())
                time.sleep(0.1)
        ends.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert until(arrivals, "changed within 0.8 s ('quiet_seconds')").state == "waiting"
    until(arrivals, "ready")
    paused = max(after - before for before, after in itertools.pairwise(written))
    assert ends.is_set() or paused > 0.8  # a machine that had too much else to do
    writer.join()


@pytest.mark.parametrize("change", ["grows", "is touched", "another file", "is replaced"])
def test_whatever_changes_begins_the_quiet_time_anew(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("id\n1\n")

    def seen() -> str:
        return look(str(folder), is_source=True, in_full=True).digest

    before = seen()
    assert seen() == before
    if change == "grows":
        stat = (folder / "a.csv").stat()
        with (folder / "a.csv").open("a") as stream:
            stream.write("2\n")
        os.utime(folder / "a.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "is touched":
        os.utime(folder / "a.csv", (1, 1))
    elif change == "another file":
        (folder / "b.csv").write_text("id\n")
    else:
        stat = (folder / "a.csv").stat()
        (folder / "new").write_text("id\n2\n")
        os.utime(folder / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (folder / "new").rename(folder / "a.csv")
    assert seen() != before


@pytest.mark.parametrize(
    ("marker", "makes", "found"),
    [
        ("in/_SUCCESS", "in/_SUCCESS", True),
        ("in/*/_SUCCESS", "in/part/_SUCCESS", True),
        ("in/*/_SUCCESS", "in/_tmp/_SUCCESS", False),
        ("in/*", "in/part/x.csv", True),
        ("in/*", "in/part/", False),
        ("in", "in/x.csv", True),
        ("in", "in/_SUCCESS", False),
        ("in", "in/", False),
        ("in", "in", True),
        ("in/a[1].csv", "in/a[1].csv", True),
        ("in/**/done", "in/a/b/done", True),
    ],
)
def test_markers(tmp_path: Path, marker: str, makes: str, found: bool) -> None:
    made = tmp_path / makes
    made.parent.mkdir(parents=True, exist_ok=True)
    if makes.endswith("/"):
        made.mkdir(parents=True)
    else:
        made.touch()
    assert look(f"{tmp_path}/{marker}", is_source=False, in_full=False).found is found
    assert look(f"{tmp_path}/{marker}", is_source=False, in_full=True).found is found


@pytest.mark.parametrize(
    "source",
    [
        "",
        "a.parquet",
        "*.parquet",
        "**/*.parquet",
        "day=*",
        "day=*/*",
        "_temporary/*",
        "*/d.parquet",
        "nothing",
        "empty",
    ],
)
def test_a_source_is_there_where_a_run_finds_it(tmp_path: Path, source: str) -> None:
    for name in ("a.parquet", "_SUCCESS", "day=1/c.parquet", "_temporary/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    path = f"{tmp_path}/{source}"
    try:
        there = bool(find_files(path))
    except SourceError:
        there = False
    assert look(path, is_source=True, in_full=False).found is there


def test_a_delta_table_is_there_at_once(tmp_path: Path) -> None:
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    assert not look(f"{tmp_path}/t", is_source=True, in_full=False).found
    (tmp_path / "t" / "_delta_log" / "00000000000000000000.json").touch()
    first = look(f"{tmp_path}/t", is_source=True, in_full=True)
    (tmp_path / "t" / "_delta_log" / "00000000000000000001.json").touch()
    second = look(f"{tmp_path}/t", is_source=True, in_full=True)
    assert first.found
    assert second.found
    assert first.digest != second.digest


def test_what_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.csv"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "in") and access(path, mode))
    assert look(str(file), is_source=True, in_full=False).says == (
        f"{file} cannot be looked at: this user may not read {tmp_path}/in"
    )
    file.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(file) and access(path, mode))
    assert look(str(file), is_source=True, in_full=False).says == f"{file} may not be read by this user"


def test_what_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    says = look(f"{tmp_path}/{'x' * 300}", is_source=True, in_full=False).says
    assert says == f"{tmp_path}/{'x' * 300} cannot be looked at: File name too long"
    assert "is not there" in look("/a\0b", is_source=True, in_full=False).says


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed, to whom a folder is closed")
def test_a_folder_that_is_closed_to_this_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    (tmp_path / "in").mkdir(mode=0o700)
    (tmp_path / "in" / "a.csv").touch()
    code = (
        "import os, sys; from sereno.operate.arrivals.looking import look; os.setgid(65534); os.setuid(65534);"
        "print(look(sys.argv[1], is_source=True, in_full=False).says)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}/in/a.csv"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"{tmp_path}/in/a.csv cannot be looked at: ")
    assert "Permission denied" in done.stdout or "may not read" in done.stdout


def test_a_file_system_that_does_not_answer_keeps_no_other_model_waiting(
    tmp_path: Path, open_arrivals: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hanging(path: str, **options: Any) -> Any:
        if "hung" in path:
            answers.wait(PATIENCE)
        return look(path, **options)

    monkeypatch.setattr(module, "look", hanging)
    monkeypatch.setattr(module, "SILENT", 0.05)
    monkeypatch.setattr(looking, "STUCK", 0.05)
    (tmp_path / "there").touch()
    hung = [declared(tmp_path, "hung", name=f"h{i}") for i in range(3)]
    arrivals = open_arrivals(*hung, declared(tmp_path, "there"), poll_seconds=0.05, events=False)
    until(arrivals, "ready")
    for one in hung:
        until(arrivals, f"{tmp_path}/hung cannot be looked at: its file system has not answered for 0.05 s", one.name)
    answers.set()
    until(arrivals, "is not there", "h0")


def test_what_the_kernel_refuses_is_told_and_looked_at(
    tmp_path: Path, open_arrivals: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, paths: object) -> None:
        raise OSError("no space left on device: the limit of inotify watches is reached")

    monkeypatch.setattr(changes.Changes, "_follow", refuse)
    lines: list[str] = []
    arrivals = open_arrivals(declared(tmp_path), poll_seconds=0.02, tell=lines.append)
    until(arrivals, "is not there")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2026-05-01.csv").touch()
    until(arrivals, "ready")
    end = time.monotonic() + PATIENCE
    while not lines and time.monotonic() < end:
        time.sleep(0.01)
    assert len(lines) == 1
    assert lines[0] == (
        "changes of folders are not told (no space left on device: the limit of inotify watches is reached); they are looked at "
        "every 0.02 s instead."
    )


def test_nothing_to_wait_for(open_arrivals: Open, tmp_path: Path) -> None:
    arrivals = open_arrivals(declared(tmp_path, how="nothing"))
    assert arrivals.woken.is_set()
    assert arrivals.state("m", entry().run_key) == ("ready", "nothing is waited for")


def test_each_date_waits_for_its_own(tmp_path: Path, open_arrivals: Open) -> None:
    model = declared(tmp_path)
    arrivals = open_arrivals(model, poll_seconds=0.02, events=False)
    other = entry(day=DAY + timedelta(days=1))
    arrivals.watch(other, model)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2026-05-01.csv").touch()
    until(arrivals, "ready")
    assert arrivals.state("m", other.run_key).state == "waiting"
    arrivals.forget("m", entry().run_key)
    assert arrivals.state("m", entry().run_key) == ("waiting", "nobody looks for its data")
    arrivals.forget("m", "never watched")


def test_models_that_are_read_again(tmp_path: Path, open_arrivals: Open) -> None:
    arrivals = open_arrivals(declared(tmp_path), poll_seconds=0.02, events=False)
    until(arrivals, "is not there")
    (tmp_path / "other").touch()
    arrivals.update([declared(tmp_path, "other")])
    assert until(arrivals, "ready").says == f"{tmp_path}/other is there"
    arrivals.update([])
    assert arrivals.state("m", entry().run_key) == ("waiting", "no model file declares m")
    arrivals.update([declared(tmp_path, "{data_date:%")])
    assert "its path cannot be filled in: " in arrivals.state("m", entry().run_key).says
    arrivals.update([declared(tmp_path, "other")])
    until(arrivals, "ready")


def test_several_hundred_wait_for_little(tmp_path: Path, open_arrivals: Open) -> None:
    models = [declared(tmp_path, f"in{i}/{{data_date}}.csv", name=f"m{i}") for i in range(300)]
    arrivals = open_arrivals(*models, poll_seconds=LONG)
    for model in models:
        until(arrivals, "is not there", model.name)
    (tmp_path / "in299").mkdir()
    (tmp_path / "in299" / "2026-05-01.csv").touch()
    until(arrivals, "ready", "m299")
    assert threading.active_count() < 20


def test_nothing_is_looked_at_after_the_end(tmp_path: Path, open_arrivals: Open) -> None:
    arrivals = open_arrivals(declared(tmp_path), poll_seconds=0.01)
    until(arrivals, "is not there")
    arrivals.close()
    arrivals.watch(entry("late"), declared(tmp_path, name="late"))
    assert arrivals.state("late", entry("late").run_key).says == "nobody looks for its data"
    shutil.rmtree(tmp_path)
    arrivals.close()


def test_the_schedulers_process_stays_light() -> None:
    code = (
        "import sys; import sereno.operate.arrivals.arrivals, sereno.operate.declared;"
        "heavy = {'pyarrow', 'numpy', 'pandas', 'polars', 'deltalake', 'pydantic', 'asyncio'};"
        "a = sereno.operate.arrivals.arrivals.Arrivals(); a.close();"
        "print(heavy & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
