"""Named places where tests make a run die, fail or wait.

    SERENO_TESTING=1 SERENO_FAILPOINT=NAME:ACTION[@N][,…]

NAME is one of POINTS. ACTION is `kill` (SIGKILL to the own process), `raise` (FailpointError) or `delay` (wait one
second), `delay=0.2` (that many seconds). `@N`: only the N-th time that this process reaches the place; without it, each
time. Several are separated by commas: `part_written:kill@3,export_before:delay=0.5`. Worker processes inherit them.

Without SERENO_TESTING=1 nothing of this is looked at again after the first call.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sereno.exceptions import SettingsError

POINTS = frozenset(
    {
        "plan",
        "task_start",
        "part_written",
        "task_done",
        "scored",
        "gate_before",
        "gate_after",
        "fsync",
        "commit_before",
        "commit_after",
        "export_before",
        "export_copied",
        "export_swapped",
        "run_end",
        "ledger_running",
        "ledger_ended",
        "release",
        "rollback",
        "answers_write",
        "answers_flush",
        "answers_pending",
        "answers_part",
        "answers_commit_before",
        "answers_commit_after",
        "answers_segment_removed",
        "lookup_build",
        "lookup_built",
        "lookup_manifest",
        "lookup_swap_before",
        "lookup_swapped",
        "lookup_removed",
        "notice_sent",
    }
)


class FailpointError(Exception):
    """A failpoint was told to raise. Not a SerenoError: it stands for what nobody foresaw."""


class _Fault(NamedTuple):
    action: str
    seconds: float
    time: int | None  # the N-th time only; None: each time


@dataclass(slots=True)
class _State:
    faults: Mapping[str, list[_Fault]] | Literal[False] | None  # None: not read yet; False: inert
    reached: Counter[str]


_state = _State(None, Counter())


def failpoint(name: str) -> None:
    """Mark a named place. Well under a microsecond, unless a test asked for a fault here."""
    _check(name)
    if _state.faults is not False:
        _reach(name)


def reset() -> None:
    """Read the variables again at the next failpoint, and count from the start; for tests."""
    _state.faults = None
    _state.reached.clear()


def _reach(name: str) -> None:
    if _state.faults is None:
        _state.faults = (
            _parse(os.environ.get("SERENO_FAILPOINT", "")) if os.environ.get("SERENO_TESTING") == "1" else False
        )
    if _state.faults is False:
        return
    _state.reached[name] += 1
    for fault in _state.faults.get(name, ()):
        if fault.time in (None, _state.reached[name]):
            _cause(name, fault)


def _cause(name: str, fault: _Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "raise":
        raise FailpointError(f"failpoint '{name}'")
    else:
        time.sleep(fault.seconds)


def _parse(text: str) -> dict[str, list[_Fault]]:
    faults: dict[str, list[_Fault]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(\w+):(kill|raise|delay)(?:(?<=delay)=(\d+(?:\.\d+)?))?(?:@([1-9]\d*))?", part)
        if match is None:
            raise SettingsError(
                f"SERENO_FAILPOINT has '{part}'. Write NAME:kill, NAME:raise or NAME:delay=0.5; "
                "a final @2 means the second time only."
            )
        name, action, seconds, nth = match.groups()
        _check(name)
        faults.setdefault(name, []).append(_Fault(action, float(seconds or 1), int(nth) if nth else None))
    return faults


def _check(name: str) -> None:
    if name not in POINTS:
        raise SettingsError(f"There is no failpoint '{name}'. Known are {', '.join(sorted(POINTS))}.")
