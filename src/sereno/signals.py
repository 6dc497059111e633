"""Signals, as exceptions, and for a process that waits in a selector: there they arrive as bytes in a socket, between two
other events and never within one."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable, Iterator

OTHER = 0  # no signal has this number: what another thread writes among them


class Terminated(SystemExit):
    """A signal ends this process, in order."""


# What does not come from a function of the model file, even where it is raised in one. All else does, sys.exit(0) as well.
NOT_THE_MODELS = (KeyboardInterrupt, GeneratorExit, Terminated)


class Signals:
    """The signals that are caught in a block, in the order in which they came."""

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def fileno(self) -> int:
        """Readable when one came."""
        return self._wake.fileno()

    def read(self) -> bytes:
        """The numbers of those that came. Raises BlockingIOError where there is none."""
        return self._wake.recv(4096)

    def wake(self) -> None:
        """From another thread: `OTHER` comes among the signals."""
        with contextlib.suppress(OSError):  # it is full of such words, or the process ends
            self._waker.send(bytes([OTHER]))

    @contextlib.contextmanager
    def caught(self, numbers: Iterable[signal.Signals]) -> Iterator[dict[signal.Signals, object]]:
        """Catch these in the block; what was done about each before is done again afterwards. In the main thread."""
        wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield {**before}
        finally:
            for number, action in before.items():
                signal.signal(number, action)
            signal.set_wakeup_fd(wakeup)

    def close(self) -> None:
        """Nothing is asked of it afterwards."""
        self._wake.close()
        self._waker.close()


def has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False
