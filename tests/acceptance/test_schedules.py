"""Schedules as people have them: backfill, pause, resume, and the scheduler's process with real runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters.ledger import ledger_file, open_at
from sereno.cli import main
from sereno.ledger import Entry

MODEL = """
from typing import TypedDict

import pyarrow as pa

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("NAME", inputs=Row, outputs=Score, source="input/{data_date}.parquet")


@model.load
def load():
    return None


@model.predict
def predict(loaded, rows: pa.Table) -> pa.Table:
    return pa.table({"y": rows["x"]})
"""
SETTINGS = """
workers = 1

[models.NAME]
file = "NAME.py"
"""


def project(folder: Path, name: str = "scores", more: str = "") -> Path:
    (folder / "input").mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(MODEL.replace("NAME", name))
    with (folder / "sereno.toml").open("a") as file:
        file.write((SETTINGS if name == "scores" else SETTINGS.replace("workers = 1", "")).replace("NAME", name) + more)
    return folder


def data(folder: Path, day: str, rows: int = 100) -> None:
    file = folder / "input" / f"{day}.parquet"
    table = pa.table({"id": range(rows), "x": [float(n) for n in range(rows)]})
    pq.write_table(table, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)


def states(folder: Path, model: str = "scores") -> dict[str, str]:
    with contextlib.closing(open_at(None, folder)) as ledger:
        return {entry.label: entry.state for entry in ledger.entries(model=model)[::-1]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


# Backfill


def test_what_was_backfilled_is_not_published_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a model that declares no artefacts, which is never a no-op by its revision."""
    project(folder, more='disposition = "partition"\n')
    arguments = ["backfill", "scores", "--from", "2026-05-01", "--to", "2026-05-02"]
    for day in ("2026-05-01", "2026-05-02"):
        data(folder, day)
    assert command(*arguments, capsys=capsys)[0] == 0
    code, out, _ = command(*arguments, capsys=capsys)
    assert (code, out.splitlines()[-1]) == (0, "2 dates of scores: 2 published before.")

    command("rollback", "scores", "--date", "2026-05-02", capsys=capsys)
    data(folder, "2026-05-02", 101)
    scheduled = ["run", "scores", "--span", "2026-05-02T00:00Z/2026-05-03T00:00Z", "--once=ever"]  # as a scheduler does
    _, out, _ = command(*scheduled, capsys=capsys)
    assert "Version 2 of this interval was rolled back: no schedule publishes it again." in out
    assert command(*arguments, capsys=capsys)[1].endswith("1 published, 1 published before.\n")
    # an operator's word
    assert "published as version 4" in command("run", "scores", "--date", "2026-05-02", capsys=capsys)[1]


def test_backfill_goes_on_after_a_bad_date_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(folder, more='disposition = "partition"\n')
    for day, rows in (("2026-05-01", 100), ("2026-05-02", 10), ("2026-05-04", 100)):
        data(folder, day, rows)  # the second day lacks most rows, the third is missing
    arguments = ["backfill", "scores", "--from", "2026-05-01", "--to", "2026-05-04"]
    code, out, _ = command(*arguments, capsys=capsys)
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "1 of 4  2026-05-01  published  version 1, 100 rows"
    assert lines[1].startswith("2 of 4  2026-05-02  held       Held by 1 gate (row count: 10 predictions, -90%")
    assert lines[2].startswith("3 of 4  2026-05-03  failed     The source ")
    assert lines[3] == "4 of 4  2026-05-04  published  version 2, 100 rows"
    assert lines[4:] == [
        "4 dates of scores: 2 published, 1 held, 1 failed.",
        "Held: 2026-05-02. See `sereno show D`, then `sereno release D` or `sereno discard D`.",
        "Failed: 2026-05-03. Mend what it says, then start this again: what is published is not run twice.",
    ]
    assert [*states(folder).values()] == ["published", "held", "failed", "published"]

    data(folder, "2026-05-03")
    code, out, _ = command(*arguments[:3], "2026-05-02", *arguments[4:], "--force", "--json", capsys=capsys)
    told = json.loads(out)
    assert (code, told["model"]) == (3, "scores")
    assert [(one["label"], one["state"]) for one in told["dates"]] == [
        ("2026-05-02", "held"),
        ("2026-05-03", "published"),
        ("2026-05-04", "published"),
    ]


def test_what_cannot_be_backfilled_is_told_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(folder)
    code, _, err = command("backfill", "scores", "--from", "2026-05-01", "--to", "2026-05-04", capsys=capsys)
    assert code == 2
    assert err == (
        "sereno: Model 'scores' has disposition = \"replace\": its table is the latest snapshot and has no place for other "
        'dates. For a partition per data date set disposition = "partition" in [models.scores]. To put one older date in '
        "service, `sereno run scores --date D --force`.\n"
    )
    dates = ["--set", "models.scores.disposition=partition", "--from", "2026-05-04", "--to"]
    for last, more, says in (
        ("2026-05-01", [], "--from 2026-05-04 is later than --to 2026-05-01. Turn them round."),
        ("2999-01-01", [], "The interval of 2999-01-01 has not ended. The last one that has is "),
        (
            "2026-05-04",
            ["--set", "models.scores.schedule=0 0 1 * *"],
            "No interval starts from 2026-05-04 to 2026-05-04",
        ),
        ("2026-05-05", ["--set", "models.scores.schedule=0 * * * *"], "2026-05-04 has several runs with the schedule"),
    ):
        code, _, err = command("backfill", "scores", *dates, last, *more, capsys=capsys)
        assert code == 2
        assert says in err
    with pytest.raises(SystemExit):
        main(["backfill", "scores", "--from", "yesterday", "--to", "2026-05-04"])
    assert "'yesterday' is no date; write it as 2026-05-01" in capsys.readouterr().err
    assert states(folder) == {}


# Pause


def test_pause_and_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(folder, more='disposition = "partition"\n')
    assert command("resume", "scores", capsys=capsys)[:2] == (0, "scores is not paused.\n")
    code, out, _ = command("pause", "scores", "--why", "The warehouse moves.", capsys=capsys)
    assert code == 0
    assert out == "scores is paused: the scheduler starts none of its runs until `sereno resume scores`.\n"
    code, out, _ = command("pause", "scores", capsys=capsys)
    assert out.startswith("scores is paused already, since 2")
    assert out.endswith(" The warehouse moves.\n")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    start = today - timedelta(days=4)
    with contextlib.closing(open_at(None, folder)) as ledger:
        ledger.move(
            Entry(
                model="scores", run_key=f"{start:%Y-%m-%dT%H:%MZ}", data_date=start.date(), state="published",
                data_time=start + timedelta(days=1), since=start, label=f"{start:%Y-%m-%d}",
            )
        )  # fmt: skip
    code, out, _ = command("resume", "scores", capsys=capsys)
    assert out.splitlines() == [
        "scores is no longer paused.",
        f"3 missed dates are due, oldest first: {start + timedelta(days=1):%Y-%m-%d} to {start + timedelta(days=3):%Y-%m-%d}.",
    ]
    assert [*states(folder).values()] == ["published", "due", "due", "due"]
    command("pause", "scores", capsys=capsys)
    code, out, _ = command("resume", "scores", "--skip-missed", "--json", capsys=capsys)
    assert json.loads(out) == {"model": "scores", "paused": False, "due": [], "skipped": []}
    code, _, err = command("pause", "scroes", capsys=capsys)
    assert code == 1
    assert "There is no model 'scroes': sereno.toml and" in err
    assert err.endswith("know scores. Name one of them.\n")


# The process


class Scheduling:
    """The scheduler's process in a project."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *(command or ["-m", "sereno.operate.scheduling.process"])],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.told = json.loads(self.process.stdout.readline())

    def wait(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not is_so():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()


@contextlib.contextmanager
def scheduling(folder: Path, *command: str) -> Iterator[Scheduling]:
    one = Scheduling(folder, *command)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()


def test_the_scheduler_runs_what_is_due_once_its_data_is_there(folder: Path) -> None:
    project(folder)
    project(folder, "mine", "scheduled = false\n")
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    with scheduling(folder) as one:
        assert one.told == {"pid": one.process.pid, "models": ["scores"], "says": "Schedules scores."}
        one.wait(lambda: states(folder) == {yesterday: "waiting"})
        data(folder, yesterday)
        one.wait(lambda: states(folder) == {yesterday: "published"})
        with contextlib.closing(open_at(None, folder)) as ledger:
            happened = ledger.transitions("scores", ledger.entries()[0].run_key)
        assert [(each.after, each.who) for each in happened] == [
            (state, "sereno") for state in ("due", "waiting", "running", "published")
        ]

        project(folder, "others")
        one.process.send_signal(signal.SIGHUP)
        one.wait(lambda: states(folder, "others") == {yesterday: "published"})

        # a ledger that is gone is made again, and what is published is not run again
        for end in ("", "-wal", "-shm"):
            ledger_file(folder).with_name(f"ledger.sqlite{end}").unlink(missing_ok=True)
        one.wait(lambda: "the ledger was made whole from what is published" in one.log.read_text())
        one.wait(lambda: states(folder) == states(folder, "others") == {yesterday: "published"})

        # what waited, waits again
        project(folder, "later", 'ready = "later/{data_date}"\n')
        one.process.send_signal(signal.SIGHUP)
        one.wait(lambda: states(folder, "later") == {yesterday: "waiting"})
        for end in ("", "-wal", "-shm"):
            ledger_file(folder).with_name(f"ledger.sqlite{end}").unlink(missing_ok=True)
        one.wait(lambda: one.log.read_text().count("the ledger was made whole from what is published") == 2)
        one.wait(lambda: states(folder, "later") == {yesterday: "waiting"})

        (folder / "scores.py").write_text("model = ")
        one.process.send_signal(signal.SIGHUP)
        one.wait(lambda: "what it declared before stays" in one.log.read_text())
        maps = Path(f"/proc/{one.process.pid}/maps").read_text()
        assert not [heavy for heavy in ("pyarrow", "numpy", "pandas", "deltalake") if f"/{heavy}/" in maps]
        one.end()
    with contextlib.closing(open_at(None, folder)) as ledger:
        assert ledger.holder("scheduler") is None
    assert states(folder, "mine") == {}

    (folder / "scores.py").unlink()  # of this model nothing but what is published is known
    ledger_file(folder).write_bytes(b"no ledger" * 1000)
    with scheduling(folder) as one:
        one.wait(lambda: "What was damaged is at" in one.log.read_text())
        one.wait(lambda: states(folder) == states(folder, "others") == {yesterday: "published"})
        assert one.told["models"] == ["others", "later"]
        one.end()


def test_a_model_file_that_takes_long_to_read_keeps_no_other_waiting(folder: Path) -> None:
    project(folder)
    project(folder, "hangs", 'ready = "off"\n')
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    data(folder, yesterday)
    good = (folder / "hangs.py").read_text()
    (folder / "hangs.py").write_text(f"import time\ntime.sleep(600)\n{good}")
    with contextlib.closing(open_at(None, folder)) as ledger:  # a scheduler that died has left a run
        start = datetime.fromisoformat(f"{yesterday}T00:00Z")
        ledger.move(
            Entry(
                model="hangs", run_key=f"{yesterday}T00:00Z", data_date=start.date(), data_time=start + timedelta(days=1),
                state="running", since=datetime.now(UTC), who="sereno", label=yesterday, tries=1,
            )
        )  # fmt: skip
    code = (
        "import sys; from sereno.operate import declared; from sereno.operate.scheduling import process; "
        "declared.LONG = 0.5; sys.exit(process.main([]))"
    )
    with scheduling(folder, "-c", code) as one:
        assert one.told["says"] == "Schedules scores. Still to be read: hangs.py."
        one.wait(lambda: states(folder) == {yesterday: "published"})
        assert "hangs.py takes long to be read; the others do not wait for it." in one.log.read_text()
        # nor does a ledger that is gone
        for end in ("", "-wal", "-shm"):
            ledger_file(folder).with_name(f"ledger.sqlite{end}").unlink(missing_ok=True)
        one.wait(lambda: "the ledger was made whole from what is published" in one.log.read_text())
        one.wait(lambda: states(folder) == {yesterday: "published"})
        # nor who has mended it
        (folder / "hangs.py").write_text(good)
        one.process.send_signal(signal.SIGHUP)
        one.wait(lambda: states(folder, "hangs") == {yesterday: "published"})
        one.end()


def test_settings_that_cannot_be_end_it(folder: Path) -> None:
    (folder / "sereno.toml").write_text("[models.scores]\nschedul = 1\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sereno.operate.scheduling.process"], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'schedule'?" in done.stderr
