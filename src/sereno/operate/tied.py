"""Starts a command tied to the process that starts it: when that one is gone, however it ended, the command is killed.

And within limits: the priority, the cores and the memory that it and all that it starts may have. A bare interpreter runs
this file, sets them and becomes the command, in about 20 ms. To set them between fork and exec, in a copy of a process that
has threads, could hang.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def tied(
    command: list[str],
    *,
    nice: int = 0,  # 19: it gets what nobody else wants
    cores: list[int] | None = None,  # their numbers
    memory_bytes: int | None = None,  # of each process
    dies_first: bool = False,  # where memory runs out, the kernel takes it before others
) -> list[str]:
    """The command to start in place of `command`, by a thread that lives as long as its process: it is tied to that."""
    limits = {
        "parent": os.getpid(),
        "nice": nice,
        "cores": cores,
        "memory_bytes": memory_bytes,
        "dies_first": dies_first,
    }
    return [sys.executable, "-I", "-S", __file__, json.dumps(limits), *command]


def adopt_orphans() -> None:
    """Processes below this one whose parents are gone become children of this one, not of the first process there is."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _become(command: list[str], limits: dict[str, int | list[int] | None]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != limits["parent"]:  # it was gone before we were tied to it
        sys.exit(1)
    if limits["nice"]:
        os.nice(limits["nice"])  # type: ignore[arg-type]
        # A process of the API that wakes up takes the core from one of SCHED_IDLE at once; from one that is merely nice, only
        # when that has had its turn, some milliseconds.
        policy = os.SCHED_IDLE if limits["nice"] == 19 else os.SCHED_BATCH
        os.sched_setscheduler(0, policy, os.sched_param(0))
    if limits["cores"]:
        os.sched_setaffinity(0, limits["cores"])  # type: ignore[arg-type]
    if limits["memory_bytes"]:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limits["memory_bytes"] if hard == resource.RLIM_INFINITY else min(limits["memory_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # type: ignore[arg-type]
    if limits["dies_first"]:
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write("500")
        except OSError:
            pass  # a system that does not let us: then the kernel chooses as it likes
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # this interpreter ignores them, and the command would, too
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(sys.argv[2:], json.loads(sys.argv[1]))
