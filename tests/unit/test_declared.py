"""What model files declare, and what their runs then wait for: each file is read, whatever the one before it did."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sereno.exceptions import WorkerError
from sereno.operate import declared as module
from sereno.operate.arrivals.awaited import Awaited, interval_of
from sereno.operate.declared import MOST_ALONE, Declarations, Declared, Reading, declared, settled

MODEL = """
from typing import TypedDict

import pyarrow as pa

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


model = Model("{name}", inputs=Row, outputs=Out{more})


@model.load
def load():
    return 1


@model.predict
def predict(loaded, rows: pa.Table):
    return {{"y": rows["x"]}}
"""
READY = "\n@model.ready\ndef ready(): ...\n"
READ = "\n@model.read\ndef read(): ...\n"


def write(folder: Path, name: str, *, after: str = "", before: str = "", file: str = "", **options: str) -> Path:
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    path = folder / (file or f"{name.replace('-', '_')}.py")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(before + MODEL.format(name=name, more=more) + after)
    return path


def one(found: Declarations) -> Declared:
    assert not found.failed, found.failed[0].says
    (only,) = found.models
    return only


def test_what_the_file_and_the_settings_say(tmp_path: Path) -> None:
    file = write(tmp_path, "credit", before="import beside\n", schedule="0 3 * * *", source="{landing}/{data_date}.csv")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "sereno.toml").write_text(
        '[values]\nlanding = "in"\n[models.credit]\ntime_zone = "Europe/Madrid"\ndisposition = "partition"\ncatch_up = 7\n'
        'retries = 1\nretry_seconds = 60\nquiet_seconds = 5\ndeadline_seconds = 600\nlate = "skip"\nscheduled = false\n'
        '[env.prod.values]\nlanding = "/landing"\n'
    )
    assert one(declared([file])) == Declared(
        name="credit", file=str(file), schedule="0 3 * * *", time_zone="Europe/Madrid", disposition="partition",
        scheduled=False, catch_up=7, retries=1, retry_seconds=60, deadline_seconds=600, late="skip", has_input=True,
        has_ready=False,
        awaited=Awaited(
            how="path", template="in/{data_date}.csv", base=str(tmp_path), is_source=True, quiet_seconds=5
        ),
        belongs=(str(tmp_path / "sereno.toml"), str(file), str(tmp_path / "beside.py")),
    )  # fmt: skip
    prod = one(declared([file], env="prod", overrides={"models.credit.time_zone": "UTC"}))
    assert (prod.awaited.template, prod.time_zone) == ("/landing/{data_date}.csv", "UTC")
    assert one(declared([file], overrides={"models.credit.ready": "off"})).has_arrival is False


def test_paths_of_the_command_line_resolve_where_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sereno.toml").touch()
    file = write(tmp_path / "models", "m", source="x.csv")
    other = write(tmp_path / "models", "n", source="x.csv")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = {f"models.{name}.ready": "done/{data_date}" for name in "mn"}
    found = declared([Path("../models/m.py"), other], overrides=overrides)
    interval = interval_of("2026-05-01T00:00Z", datetime(2026, 5, 2, tzinfo=UTC), "UTC")
    assert [m.awaited.path(interval) for m in found.models] == [f"{tmp_path}/here/done/2026-05-01"] * 2
    assert found.models[0].file == str(file)
    source = one(declared([file])).awaited.path(interval)
    assert source == f"{tmp_path}/models/x.csv"


Case = tuple[str, dict[str, str], str, str]
FILE, QUERY = {"source": "in.csv"}, {"source": "SELECT 1", "database": "a.db"}


def read_all(folder: Path, cases: list[Case]) -> Declarations:
    """One model each, m0, m1 and so on, with settings of their own, in one go."""
    files = []
    for number, (after, options, settings, _) in enumerate(cases):
        files.append(write(folder / f"m{number}", f"m{number}", after=after, **options))
        (folder / f"m{number}" / "sereno.toml").write_text(f"[models.m{number}]\n{settings}\n")
    return declared(files)


def test_what_is_waited_for(tmp_path: Path) -> None:
    cases: list[Case] = [
        ("", FILE, "", "path"),
        ("", QUERY, "", "nothing"),
        ("", {}, "", "nothing"),
        (READ, {}, "", "nothing"),
        (READY + READ, {}, "", "function"),
        (READY, FILE, "ready_seconds = 5", "function"),
        (READY, QUERY, "", "function"),
        (READY, FILE, 'ready = "off"', "nothing"),
        (READ, {}, 'ready = "in/_SUCCESS"', "path"),
        ("", FILE, 'ready = "in/_SUCCESS"', "path"),
    ]
    found = read_all(tmp_path, cases)
    for (after, options, settings, how), model in zip(cases, found.models, strict=True):
        assert model.awaited.how == how
        assert model.has_arrival is (how != "nothing")
        assert model.awaited.is_source is (how == "path" and not settings)
        assert model.has_ready is (READY in after)
        assert model.has_input is bool("source" in options or READ in after)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    idle = "'models.m{n}.{key}', from {toml}, has no effect, as "
    cases: list[Case] = [
        (
            READY,
            FILE,
            'ready = "x"',
            "'models.m{n}.ready' is a path, from {toml}, but the model file has a function under",
        ),
        (
            READY,
            FILE,
            "quiet_seconds = 5",
            idle + "`@model.ready` says when the data is there, and no file is looked at.",
        ),
        (
            "",
            FILE,
            "ready_seconds = 5",
            idle + "the model file has no function under `@model.ready` that could be asked.",
        ),
        (
            READ,
            {},
            'late = "run"',
            idle + "nothing is waited for: nobody knows what `read` reads. Set ready to a path, or",
        ),
        (
            "",
            QUERY,
            "quiet_seconds = 5",
            idle + "nothing is waited for: the source is a query. Set ready to a path, or",
        ),
        ("", {"source": "{landing}/x.csv"}, "", "The source asks for 'landing', which nothing gives"),
        ("", FILE, 'ready = "{landing}/x"', "The setting 'models.m{n}.ready' asks for 'landing', which nothing gives"),
        ("", {"source": "ftp://a/b"}, "", "The source 'ftp://a/b' cannot be read: ftp://… is no place for files."),
    ]
    found = read_all(tmp_path, cases)
    assert not found.models
    for number, ((_, _, settings, words), failed) in enumerate(zip(cases, found.failed, strict=True)):
        toml = tmp_path / f"m{number}" / "sereno.toml"
        assert failed.says.startswith(words.format(n=number, toml=toml, key=settings.split(" ")[0]))


def test_a_file_that_fails_stops_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [
        write(tmp_path, "first", before="print('loud')\n"),
        tmp_path / "nothing.py",
        write(tmp_path, "raises", before="1 / 0\n"),
        write(tmp_path, "broken", before="def (:\n"),
        write(tmp_path, "ends", before="import sys\nsys.exit(3)\n"),
        write(tmp_path, "killed", before="import os\nos.kill(os.getpid(), 9)\n"),
        write(tmp_path, "gone", before="import os\nos._exit(7)\n"),
        write(tmp_path, "last"),
    ]
    found = declared(files)
    assert [m.name for m in found.models] == ["first", "last"]
    says = {Path(f.file).stem: f.says for f in found.failed}
    assert says["nothing"].startswith("There is no file ")
    assert says["raises"] == "raises.py:1: ZeroDivisionError: division by zero"
    assert says["broken"].startswith("broken.py:1: ")
    assert "ends the program (exit 3)" in says["ends"]
    assert says["killed"].startswith("killed.py ended the process that read it (ended by signal 9). Import it ")
    assert says["gone"].startswith("gone.py ended the process that read it (exit code 7). Import it ")
    assert {str(file) for file in files} <= found.belongs
    assert "loud" in capfd.readouterr().err


def test_a_file_that_hangs_is_given_up(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "quick"),
        write(tmp_path, "hangs", before="import time\ntime.sleep(3600)\n"),
        write(tmp_path, "last"),
    ]
    found = declared(files, longest=4.0)
    assert [m.name for m in found.models] == ["quick", "last"]
    assert [f.says for f in found.failed] == [
        "hangs.py was not read within 4 s. Load what takes long under `@model.load`."
    ]


def test_a_file_that_takes_long_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG", 0.5)
    wait = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)\n"
    slow = [write(tmp_path, f"slow{n}", before=wait.format(f"{tmp_path}/go{n}")) for n in range(MOST_ALONE)]
    quick = [write(tmp_path, f"quick{n}") for n in range(3)]
    files = [quick[0], *slow, *quick[1:]]
    with contextlib.closing(Reading(files)) as reading:
        found: dict[str, Any] = {}
        while len(found) < 3:
            assert reading.pause <= 300
            found |= reading.step(reading.pause)
        assert {one.name for one in found.values()} == {"quick0", "quick1", "quick2"}
        assert reading.long >= {*reading.left} == {str(file) for file in slow}
        (tmp_path / "go2").touch()
        while len(found) < 4:
            found |= reading.step(reading.pause)
        assert found[str(slow[2])].name == "slow2"
        assert not reading.is_done
        so_far = settled(reading.files, found)
        assert [one.name for one in so_far.models] == ["quick0", "slow2", "quick1", "quick2"]


def test_files_and_modules_of_the_same_name(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        files.append(write(tmp_path / name, name, file="model.py", before="from features import NAME\n"))
        files[-1].write_text(files[-1].read_text().replace(f'Model("{name}"', "Model(NAME"))
        (tmp_path / name / "features.py").write_text(f"NAME = 'model-{name}'")
    # what it imports at a time that nobody foresees is found by a process of its own
    (tmp_path / "a" / "features.py").write_text("NAME = 'model-a'\n__import__('late')")
    (tmp_path / "a" / "late.py").touch()
    (tmp_path / "b" / "late.py").touch()
    (tmp_path / "b" / "features.py").write_text(
        "import late\nassert late.__file__.endswith('b/late.py')\nNAME = 'model-b'"
    )
    assert [m.name for m in declared(files).models] == ["model-a", "model-b"]


def test_two_models_of_one_name(tmp_path: Path) -> None:
    first, second = write(tmp_path, "m"), write(tmp_path, "m", file="again.py")
    found = declared([first, second, first])
    assert [m.file for m in found.models] == [str(first)]
    assert [f.says for f in found.failed] == [
        f"The model of {second} has the name 'm', as has that of {first}. Rename one of them."
    ]


def test_nothing_to_read() -> None:
    assert declared([]) == Declarations()


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(WorkerError, match=r"No process could be started to read model files: Resource temporarily"):
        declared([tmp_path / "m.py"])


def test_reading_loads_no_model(tmp_path: Path) -> None:
    file = write(tmp_path, "m", source="x.csv")
    code = (
        "import sys; from pathlib import Path; from sereno.operate.declared import declared;"
        f"print(declared([Path({str(file)!r})]).models[0].name, 'pyarrow' in sys.modules, 'm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "m False False\n"
