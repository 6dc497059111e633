"""`@model.ready` is asked by a process of its own until it says yes, whatever it does instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sereno.ledger import Entry
from sereno.operate.arrivals import asking
from sereno.operate.arrivals.arrivals import Arrivals
from sereno.operate.arrivals.asking import Answer
from sereno.operate.arrivals.awaited import Awaited
from sereno.operate.declared import Declared

MODEL = """
import os, sys, time
from datetime import date
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from sereno import Interval, Key, Model, Secret


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


model = Model("m", inputs=Row, outputs=Out, time_zone="Europe/Madrid")


@model.load
def load():
    return 1


@model.predict
def predict(loaded, rows: pa.Table):
    return {"y": rows["x"]}


def asked():
    with open("asked", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return len(Path("asked").read_text().split())


@model.ready
"""
PATIENCE = 40.0
ENTRY = Entry(
    model="m",
    run_key="2026-04-30T22:00Z",
    data_date=date(2026, 5, 1),
    data_time=datetime(2026, 5, 1, 22, tzinfo=UTC),
    state="due",
    since=datetime(2026, 5, 1, 22, tzinfo=UTC),
    label="2026-05-01",
)


def declared(folder: Path, ready: str, *, name: str = "m", seconds: float = 0.05) -> Declared:
    file = folder / f"{name}.py"
    file.write_text(MODEL.replace('"m"', f'"{name}"') + textwrap.dedent(ready))
    (folder / "sereno.toml").touch()
    return Declared(
        name=name, file=str(file), schedule="0 0 * * *", time_zone="Europe/Madrid", disposition="replace",
        scheduled=True, catch_up=30, retries=3, retry_seconds=3600, deadline_seconds=3600, late="hold", has_input=True,
        has_ready=True, awaited=Awaited(how="function", ready_seconds=seconds), belongs=(),
    )  # fmt: skip


class Watched:
    """Arrivals of some models, the lines of their log, and what was known of each in turn."""

    def __init__(self, *models: Declared, **options: Any) -> None:
        self.lines: list[str] = []
        self.arrivals = Arrivals(models, tell=self.lines.append, events=False, **options)
        for model in models:
            self.arrivals.watch(replace(ENTRY, model=model.name), model)

    def until(self, words: str, name: str = "m") -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.arrivals.woken.clear()
            known = self.arrivals.state(name, ENTRY.run_key)
            if words in known.says:
                return known.state
            self.arrivals.woken.wait(0.05)
        raise AssertionError(f"{self.arrivals.state(name, ENTRY.run_key)} never said {words!r}")


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    opened = []

    def open_one(*models: Declared, **options: Any) -> Watched:
        opened.append(Watched(*models, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.arrivals.close()


def asked(folder: Path) -> list[int]:
    """The process of each question."""
    return [int(pid) for pid in (folder / "asked").read_text().split()] if (folder / "asked").exists() else []


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until_dead(pid: int) -> None:
    end = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_is_asked_until_it_says_yes(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERENO_SECRET_TOKEN", "hidden")
    (tmp_path / "sereno.toml").write_text("")
    ready = """
    def ready(data_date: date, interval: Interval, token: Secret, limit: int, folder: Path):
        print("loud")
        assert data_date == date(2026, 5, 1) and interval.label == "2026-05-01" and token == "hidden"
        assert interval.start.isoformat() == "2026-05-01T00:00:00+02:00" and Path.cwd() == folder
        return asked() >= limit
    """
    model = declared(tmp_path, ready)
    overrides = {"values.limit": "3", "values.folder": str(tmp_path)}
    watched = watch(model, overrides=overrides)
    assert watched.arrivals.state("m", ENTRY.run_key) == ("waiting", "ready was not asked yet")
    assert watched.until("says no") == "waiting"
    assert watched.until("says yes") == "ready"
    first, *others = asked(tmp_path)
    assert others == [first, first]  # the file is loaded once
    assert watched.lines == []
    until_dead(first)
    watched.arrivals.update([model])
    assert watched.until("says yes") == "ready"  # it is not asked again


def test_ready_seconds_is_how_often_it_is_asked(tmp_path: Path, watch: Callable[..., Watched]) -> None:
    watched = watch(declared(tmp_path, "def ready():\n    asked()\n    return False", seconds=3600))
    watched.until("says no")
    (pid,) = asked(tmp_path)
    watched.arrivals.forget("m", ENTRY.run_key)
    until_dead(pid)
    assert asked(tmp_path) == [pid]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no network')", "raised ValueError: no network"),
        ("sys.exit(3)", "raised SystemExit: 3"),
        ("return 'soon'", "answered str, 'soon', which is neither True nor False"),
        ("return None", "answered nothing, which is neither True nor False"),
        ("return 1", "answered int, 1, which is neither True nor False"),
    ],
)
def test_what_is_no_answer_is_told_once_and_asked_again(
    tmp_path: Path, watch: Callable[..., Watched], body: str, says: str
) -> None:
    watched = watch(declared(tmp_path, f"def ready():\n    if asked() >= 4:\n        return True\n    {body}"))
    watched.until(says)
    watched.until("says yes")
    line = MODEL.count("\n")
    assert watched.lines == [f"m: ready (m.py:{line}) {says}. It is asked again."]


def test_the_answers_of_numpy_are_answers(tmp_path: Path, watch: Callable[..., Watched]) -> None:
    watched = watch(declared(tmp_path, "def ready():\n    import numpy\n    return numpy.array([asked() > 1]).all()"))
    watched.until("says yes")
    assert len(asked(tmp_path)) == 2


def test_one_that_hangs_is_asked_by_another_process(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "HUNG", 3.0)
    ready = """
    def ready():
        if asked() == 1:
            time.sleep(3600)
        return True
    """
    watched = watch(declared(tmp_path, ready))
    watched.until("says yes")
    assert watched.lines[0] == "m: ready has not answered for 3 s. It is asked again."
    first, second, *_ = asked(tmp_path)
    assert first != second
    assert not is_alive(first)


def test_a_process_that_dies_is_told(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "AGAIN", 0.05)
    watched = watch(declared(tmp_path, "def ready():\n    return asked() > 1 or os.kill(os.getpid(), 9)"))
    watched.until("says yes")
    assert watched.lines == ["m: the process that asks ready ended by signal 9. It is asked again."]


def test_a_file_that_cannot_be_loaded_is_told_and_tried_again(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "AGAIN", 0.05)
    model = declared(tmp_path, "def ready(absent):\n    return True")
    watched = watch(model)
    watched.until("ready cannot be asked: m.py:")
    assert "nothing gives ready its parameter 'absent'" in watched.lines[0]
    Path(model.file).write_text("1 / 0")
    watched.until("ready cannot be asked: m.py:1: ZeroDivisionError")
    declared(tmp_path, "")
    Path(model.file).write_text(MODEL.rpartition("@model.ready")[0])
    watched.until("ready cannot be asked: m.py has no function under `@model.ready` any more")
    declared(tmp_path, "def ready():\n    return True")
    watched.until("says yes")


def test_no_process_can_be_started(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, refuse = subprocess.Popen, [True]

    def once(*args: Any, **options: Any) -> Any:
        if refuse:
            refuse.clear()
            raise OSError(11, os.strerror(11))
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", once)
    monkeypatch.setattr(asking, "AGAIN", 0.05)
    watched = watch(declared(tmp_path, "def ready():\n    return True"))
    watched.until("says yes")
    assert watched.lines == ["m: ready cannot be asked: Resource temporarily unavailable. It is asked again."]


def test_many_take_turns(tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TURN", 0.0)
    no = "def ready():\n    asked()\n    return False"
    models = [declared(tmp_path, no, name=f"n{i}") for i in range(asking.MOST)]
    watched = watch(*models, declared(tmp_path, "def ready():\n    return True"))
    watched.until("says yes")


def test_a_model_that_is_read_again_is_asked_by_its_new_file(tmp_path: Path, watch: Callable[..., Watched]) -> None:
    watched = watch(declared(tmp_path, "def ready():\n    return False"))
    watched.until("says no")
    watched.arrivals.update([declared(tmp_path, "def ready():\n    return True")])
    watched.until("says yes")


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    model = declared(tmp_path, "def ready():\n    asked()\n    return False")
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from sereno.operate.arrivals.asking import Asker, Question
asker = Asker(lambda *_: None, lambda: None)
asker.ask(("m", "k"), Question(file={model.file!r}, start="2026-04-30T22:00Z", end="2026-05-01T22:00Z", alone=True, ready_seconds=0.05))
asker.tend()
time.sleep(3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + PATIENCE
        while not asked(tmp_path):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until_dead(asked(tmp_path)[0])


def test_exit_codes(tmp_path: Path) -> None:
    model = declared(tmp_path, "def ready():\n    return True")
    question = asking.Question(
        file=model.file, start="2026-04-30T22:00+00:00", end="2026-05-01T22:00+00:00", alone=True, ready_seconds=1
    )
    for file, code, kind in ((model.file, 0, "yes"), (f"{tmp_path}/no.py", 1, "failed")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sereno.operate.arrivals.ready"],
            input=msgspec.json.encode(msgspec.structs.replace(question, file=file)),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == code
        assert msgspec.json.decode(done.stdout, type=Answer).kind == kind
