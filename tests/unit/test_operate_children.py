"""The processes below `sereno up`, here small scripts: what becomes of them when they, or the one above them, end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from sereno.operate.up import children as module

PATIENCE = 60.0

HOST = """
import json, sys
from dataclasses import replace
from pathlib import Path
from sereno.settings import ServeSettings, Settings
from sereno.exceptions import SettingsError
from sereno.operate.up import children
from sereno.operate.up.children import Child, Children

scripts, told = json.loads(sys.argv[1]), json.loads(sys.argv[2])
children.GRACE = told["grace"]
settings = Settings(home=Path.cwd(), serve=ServeSettings(drain_seconds=told["drain_seconds"]))

def read_settings():
    text = Path("settings").read_text()
    if text == "bad":
        raise SettingsError("They are bad.")
    return settings

def note(text):
    sys.stderr.write(f"{text}\\n")
    sys.stderr.flush()

processes = [
    Child(name, [sys.executable, "-I", "-S", "-c", text], lambda _: told["seconds"], reads_changes=name in told["reads_changes"],
          may_fail=name in told["may_fail"], silence=told["silence"].get(name))
    for name, text in scripts.items()
]
sys.exit(Children(
    processes, settings, read_settings=read_settings, watched=lambda _: [Path("settings").absolute()],
    announce=lambda said: print(json.dumps(said), flush=True), note=note,
).run())
"""
READY = """
import os, signal, sys, time
def ready(**said):
    import json
    print(json.dumps(dict(said, pid=os.getpid())), flush=True)
def says(text):
    os.write(2, (text + "\\n").encode())
"""
STEADY = READY + "ready(); time.sleep(600)\n"


def until(true: Callable[[], object]) -> None:
    deadline = monotonic() + PATIENCE
    while not true():
        assert monotonic() < deadline
        threading.Event().wait(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Host:
    """A process with such children; its log and what it announced."""

    def __init__(self, folder: Path, scripts: dict[str, str], told: dict[str, Any], environ: dict[str, str]) -> None:
        (folder / "settings").write_text("good")
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", HOST, json.dumps(scripts), json.dumps(told)],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | environ,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def announced(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        until(lambda: len(re.findall(pattern, self.log)) >= times or self.process.poll() is not None)
        found = re.findall(pattern, self.log)
        assert len(found) >= times, self.log
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def host(
    folder: Path,
    *,
    grace: float = 5.0,
    seconds: float = 20.0,
    drain_seconds: float = 25.0,
    reads_changes: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    may_fail: tuple[str, ...] = (),
    silence: dict[str, float] | None = None,
    **scripts: str,
) -> Iterator[Host]:
    told: dict[str, Any] = {"grace": grace, "seconds": seconds, "drain_seconds": drain_seconds}
    told |= {"reads_changes": reads_changes, "may_fail": may_fail, "silence": silence or {}}
    one = Host(folder, scripts, told, environ or {})
    try:
        yield one
    except BaseException:
        print(one.log, file=sys.stderr)
        raise
    finally:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()
    assert "Traceback" not in one.log, one.log


def test_it_announces_when_all_are_ready(tmp_path: Path) -> None:
    late = READY + "while not os.path.exists('go'): time.sleep(0.01)\nready(late=True); time.sleep(600)"
    with host(tmp_path, one=STEADY, two=late) as up:
        until(lambda: len(psutil.Process(up.process.pid).children()) == 2)
        (tmp_path / "go").touch()
        said = up.announced()
        assert said["two"]["late"]
        assert {said["one"]["pid"], said["two"]["pid"]} == {p.pid for p in psutil.Process(up.process.pid).children()}
        assert up.stop() == 1  # they know no SIGTERM, and died of it
        assert "one was ended by signal 15.\n" in up.log


def test_one_that_may_fail_keeps_nobody_from_being_announced(tmp_path: Path) -> None:
    fails = READY + "os.path.exists('go') or sys.exit(1)\nready(url='http://there'); time.sleep(600)"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(PATIENCE)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with host(tmp_path, environ=environ, may_fail=("one",), one=fails, two=STEADY) as up:
            assert list(up.announced()) == ["two"]
            assert told.recv(100) == b"READY=1"
            assert "one ended with exit code 1." in up.log
            (tmp_path / "go").touch()
            up.wait_for(r"one is ready now \(pid \d+\) on http://there\.\n")


def test_one_that_stands_still_is_replaced(tmp_path: Path) -> None:
    beats = "while True:\n    os.write(1, b'\\n'); time.sleep(0.05)\n"
    late = READY + "for _ in range(60): os.write(1, b'\\n'); time.sleep(0.05)\nready()\n" + beats
    with host(tmp_path, grace=0.1, seconds=0.1, silence={"one": 2.0}, one=late, two=STEADY) as up:
        said = up.announced()  # it took longer than that, and was let be
        pid = said["one"]["pid"]
        assert "stood still" not in up.log
        os.kill(pid, signal.SIGSTOP)
        assert up.wait_for(r"one \(pid (\d+)\) has stood still for 2 s; it is killed\.\n") == [str(pid)]
        up.wait_for(r"one is back \(pid (\d+)\)")
        assert is_gone(pid)
        assert up.log.count("stood still") == 1
        # they, too, if we did: nobody is to blame
        os.kill(up.process.pid, signal.SIGSTOP)
        for child in psutil.Process(up.process.pid).children():
            child.suspend()
        threading.Event().wait(3)
        for child in psutil.Process(up.process.pid).children():
            child.resume()
        os.kill(up.process.pid, signal.SIGCONT)
        threading.Event().wait(1)
        assert up.log.count("stood still") == 1


def test_what_ends_is_started_again(tmp_path: Path) -> None:
    with host(tmp_path, one=STEADY, two=STEADY) as up:
        said = up.announced()
        for number, name in enumerate(("one", "two", "one"), 1):
            pid = said[name]["pid"]
            os.kill(pid, signal.SIGKILL)
            (back,) = up.wait_for(rf"{name} is back \(pid (\d+)\)", times=1 + number // 3)[-1:]
            said[name]["pid"] = int(back)
            assert int(back) != pid
        assert up.log.startswith("one was ended by signal 9. Another one starts now.\none is back")


def test_one_that_fails_again_and_again_waits_longer_each_time(tmp_path: Path) -> None:
    failing = READY + "says('it has no port'); sys.exit(1)"
    with host(tmp_path, one=STEADY, two=failing) as up:
        up.wait_for("two ended", times=3)
        what = "it has no port\ntwo ended with exit code 1. Another one starts "
        assert up.log == f"{what}now.\n{what}in 1 s.\n{what}in 2 s.\n"


def test_settings_that_cannot_be_end_it(tmp_path: Path) -> None:
    with host(tmp_path, one=STEADY, two="import sys; sys.exit(2)") as up:
        assert up.process.wait(PATIENCE) == 2


def test_one_that_worked_before_is_tried_again_whatever_it_says(tmp_path: Path) -> None:
    once = READY + "if os.path.exists('bad'): sys.exit(2)\nready(); time.sleep(600)"
    with host(tmp_path, one=once) as up:
        said = up.announced()
        (tmp_path / "bad").touch()
        os.kill(said["one"]["pid"], signal.SIGKILL)
        up.wait_for("one ended with exit code 2. Another one starts in")
        (tmp_path / "bad").unlink()
        up.process.send_signal(signal.SIGHUP)  # whoever mended it need not wait
        up.wait_for("one is back")


def test_a_child_that_says_nothing_of_ours(tmp_path: Path) -> None:
    with host(tmp_path, one=READY + "print('hello', flush=True); time.sleep(600)") as up:
        up.wait_for(r"one \(pid \d+\) printed what is no JSON; it is killed")
        up.wait_for("one was ended by signal 9")


def polite(name: str, number: int, code: int) -> str:
    """One that ends when it is told to, and says so."""
    return (
        READY + f"signal.signal({number}, lambda *_: (says('{name} ends'), sys.exit({code}))); ready(); time.sleep(600)"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end(tmp_path: Path, number: signal.Signals) -> None:
    scripts = {name: polite(name, int(number), 0) for name in ("one", "two")}
    with host(tmp_path, **scripts) as up:
        up.announced()
        assert up.stop(number) == 0
        assert sorted(up.log.splitlines()) == ["one ends", "two ends"]


def test_one_that_cut_its_work_off(tmp_path: Path) -> None:
    with host(tmp_path, one=polite("one", 15, 1)) as up:
        up.announced()
        assert up.stop() == 1
        assert "one ended with exit code 1.\n" in up.log


DEAF = READY + "signal.signal(15, lambda *_: says('no')); ready()\nwhile True: time.sleep(600)"


def test_who_does_not_end_is_killed(tmp_path: Path) -> None:
    with host(tmp_path, one=DEAF, seconds=0.2, grace=0.1) as up:
        up.announced()
        assert up.stop() == 1
        assert up.log == "no\none was ended by signal 9.\n"


def test_the_same_signal_twice_is_the_end_at_once(tmp_path: Path) -> None:
    with host(tmp_path, one=DEAF) as up:
        up.announced()
        up.process.send_signal(signal.SIGTERM)
        up.process.send_signal(signal.SIGTERM)
        up.wait_for("no")
        threading.Event().wait(module.ONE_WORD)  # what comes at once says nothing new
        assert up.process.poll() is None
        assert up.stop() == 1


def test_the_end_while_they_start(tmp_path: Path) -> None:
    with host(tmp_path, one="import time; time.sleep(600)") as up:
        until(lambda: psutil.Process(up.process.pid).children())
        assert up.stop() == 0


def test_reload(tmp_path: Path) -> None:
    hears = READY + "signal.signal(1, lambda *_: says('NAME reads again')); ready()\nwhile True: time.sleep(600)"
    scripts = {name: hears.replace("NAME", name) for name in ("one", "two")}
    with host(tmp_path, reads_changes=("two",), **scripts) as up:
        up.announced()
        up.process.send_signal(signal.SIGHUP)
        for name in scripts:
            up.wait_for(f"{name} reads again")
        (tmp_path / "settings").write_text("bad")
        up.wait_for("the settings were read again and refused; those before stay: They are bad.")
        (tmp_path / "settings").write_text("good again")
        up.wait_for("one reads again", times=2)
        assert up.log.count("two reads again") == 1  # it looks at files itself


def test_none_outlives_it(tmp_path: Path) -> None:
    with host(tmp_path, one=STEADY, two=DEAF) as up:
        said = up.announced()
        up.process.kill()
        for one in said.values():
            until(lambda: is_gone(one["pid"]))  # noqa: B023


LEAVES = (
    READY
    + "import subprocess; ready(left=subprocess.Popen(['sleep', '600'], start_new_session=True).pid); time.sleep(600)"
)


def test_what_a_child_leaves_behind_is_ended(tmp_path: Path) -> None:
    with host(tmp_path, one=LEAVES, drain_seconds=0.0, grace=0.3) as up:
        said = up.announced()["one"]
        os.kill(said["pid"], signal.SIGKILL)
        up.wait_for("one is back")
        assert not is_gone(said["left"]) or f"process {said['left']}" in up.log  # it was given some time
        up.wait_for(f"process {said['left']}, which was left behind, is killed.")
        until(lambda: not psutil.pid_exists(said["left"]))


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    with host(tmp_path, one=LEAVES) as up:
        said = up.announced()["one"]
        up.stop()
        assert not psutil.pid_exists(said["left"])


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(PATIENCE)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        of_child = READY + "ready(seen=[k for k in os.environ if k[:6] in ('NOTIFY', 'WATCHD')]); time.sleep(600)"
        with host(tmp_path, environ=environ, one=of_child) as up:
            assert up.announced()["one"]["seen"] == []  # it does not speak for us
            heard = [told.recv(100)]
            while b"READY=1" not in heard or heard[-1] == b"READY=1":
                heard.append(told.recv(100))
            assert set(heard) == {b"READY=1", b"WATCHDOG=1"}
            up.process.send_signal(signal.SIGTERM)
            while told.recv(100) != b"STOPPING=1":
                pass
