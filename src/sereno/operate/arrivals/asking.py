"""Asking `@model.ready`: each model in a process of its own, a few at a time; the others get their turn."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from sereno.operate.tied import tied

MOST = 4  # processes at once: each holds what its model file imports
TURN = 10.0  # seconds that a process has before another's turn comes, if one waits
HUNG = 300.0  # seconds after which a function that does not answer is asked by another process
AGAIN = 30.0  # seconds before another process is started for one that could not ask, or has died
IDLE = 60.0
NICE = 10


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is to ask. Not on its command line, which everybody may read."""

    file: str
    start: str  # of the interval
    end: str
    alone: bool
    ready_seconds: float
    home: str | None = None
    env: str | None = None
    overrides: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of what such a process says."""

    kind: Literal["yes", "no", "raised", "odd", "failed"]  # odd: neither True nor False; failed: it cannot be asked
    says: str  # "ready says no"


Key = tuple[str, str]  # model, run key


@dataclass(eq=False)
class _Asked:
    question: Question
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    answered: float = 0.0  # the last time; 0: not yet
    not_before: float = 0.0
    last: Answer | None = None

    @property
    def hangs_at(self) -> float:
        """When it has hung for too long, unless it answers before."""
        return max(self.started, self.answered) + self.question.ready_seconds + HUNG


class Asker:
    """Asks until the answer is yes. `answered` is called with each answer, `wake` when `tend` has something to do; both by any
    thread.
    """

    def __init__(self, answered: Callable[[Key, Answer], None], wake: Callable[[], None]) -> None:
        self._answered, self._wake = answered, wake
        self._lock = threading.RLock()
        self._asked: dict[Key, _Asked] = {}
        self._queue: deque[Key] = deque()  # those that have no process

    def ask(self, key: Key, question: Question) -> None:
        """Have it asked until it says yes, or is forgotten."""
        with self._lock:
            self.forget(key)
            self._asked[key] = _Asked(question)
            self._queue.append(key)
        self._wake()

    def forget(self, key: Key) -> None:
        """Its process is killed, if there is one; no answer comes any more, but perhaps the one that is on its way."""
        with self._lock:
            asked = self._asked.pop(key, None)
            if asked is None:
                return
            _kill(asked.process)
            if key in self._queue:
                self._queue.remove(key)

    def close(self) -> None:
        with self._lock:
            for key in [*self._asked]:
                self.forget(key)

    def tend(self) -> float:
        """Start, replace and kill processes as their time has come, in a thread that lives on; seconds until the next time."""
        now = time.monotonic()
        with self._lock:
            for key, asked in [*self._asked.items()]:
                if asked.process is not None and asked.hangs_at <= now:
                    self._tell(key, asked, Answer(kind="failed", says=f"ready has not answered for {HUNG:g} s"))
                    self._put_back(key, asked)
            due = [key for key in self._queue if self._asked[key].not_before <= now]
            free = MOST - sum(asked.process is not None for asked in self._asked.values())
            if len(due) > free:
                free += self._give_way(now, len(due) - free)
            for key in due[:free]:
                self._start(key, now)
            times = [one.not_before if one.process is None else one.hangs_at for one in self._asked.values()]
            return max(1.0 if due[free:] else 0.0, min(times, default=now + IDLE) - now)

    def _give_way(self, now: float, wanted: int) -> int:
        """Those that have had their turn make room for others, the longest first."""
        done = [
            (asked.started, key)
            for key, asked in self._asked.items()
            if asked.process is not None and asked.answered and now - asked.started > TURN
        ]
        for _, key in sorted(done)[:wanted]:
            self._put_back(key, self._asked[key])
        return min(wanted, len(done))

    def _put_back(self, key: Key, asked: _Asked, pause: float = 0.0) -> None:
        _kill(asked.process)
        asked.process = None
        asked.not_before = time.monotonic() + pause
        self._queue.append(key)

    def _start(self, key: Key, now: float) -> None:
        asked = self._asked[key]
        self._queue.remove(key)
        try:
            process = subprocess.Popen(
                tied([sys.executable, "-P", "-m", "sereno.operate.arrivals.ready"], nice=NICE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # what the function starts ends with it; Ctrl-C is not for it
            )
        except OSError as error:
            self._tell(key, asked, Answer(kind="failed", says=f"ready cannot be asked: {error.strerror}"))
            self._put_back(key, asked, AGAIN)
            return
        assert process.stdin is not None
        asked.process, asked.started, asked.answered = process, now, 0.0
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(msgspec.json.encode(asked.question))
        threading.Thread(target=self._listen, args=(key, asked, process), name="ready", daemon=True).start()

    def _listen(self, key: Key, asked: _Asked, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        said = False
        with process.stdout as lines:
            for line in lines:
                try:
                    answer = msgspec.json.decode(line, type=Answer)
                except msgspec.MsgspecError:
                    break
                with self._lock:
                    if asked.process is not process or self._asked.get(key) is not asked:
                        break
                    said = True
                    asked.answered = time.monotonic()
                    if answer.kind == "yes":
                        self._asked.pop(key)
                self._tell(key, asked, answer)
        _kill(process)
        code = process.wait()
        with self._lock:
            if asked.process is not process or self._asked.get(key) is not asked:
                return
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            failed = asked.last is not None and asked.last.kind == "failed" and said
            self._put_back(key, asked, max(AGAIN, asked.question.ready_seconds))
        self._wake()
        if not failed:
            self._tell(key, asked, Answer(kind="failed", says=f"the process that asks ready ended {how}"))

    def _tell(self, key: Key, asked: _Asked, answer: Answer) -> None:
        asked.last = answer
        self._answered(key, answer)


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """With all that it started."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
