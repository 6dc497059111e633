"""Orphans are taken leave of; the end of one's own children is not taken from whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

FIRST = """
import os, subprocess, sys, time
from sereno.operate.tied import adopt_orphans
from sereno.orphans import children_of, reap

def until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def has_ended(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0] == "Z"

adopt_orphans()
own = subprocess.Popen(["sh", "-c", "exit 7"])
starts = "sleep 0.2 >/dev/null 2>&1 & echo $!; sleep 60 >/dev/null 2>&1 & echo $!"
told = subprocess.run(["sh", "-c", starts], capture_output=True, text=True)
ended, runs = map(int, told.stdout.split())
until(lambda: has_ended(own.pid) and has_ended(ended))
reap({own.pid})
assert sorted(children_of(os.getpid())) == sorted([own.pid, runs]), "one has gone, the other one's end is left to be asked for"
assert own.wait() == 7
os.kill(runs, 9)
until(lambda: has_ended(runs))
reap(set())
assert children_of(os.getpid()) == []
"""


def test_who_has_ended_and_is_nobodys_is_reaped() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
