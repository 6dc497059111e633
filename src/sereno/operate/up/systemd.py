"""What systemd is told of this process, where it has asked for that (`Type=notify`): ready, stopping, alive."""

from __future__ import annotations

import contextlib
import os
import socket


class Systemd:
    """Says nothing where nobody listens. It takes its variables: what is started here is not to speak for us."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watched = int(os.environ.pop("WATCHDOG_USEC", "") or 0)
        is_meant = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # half of the time after which we count as hung
        self.every = watched / 2e6 if self._address and watched and is_meant else None

    def tell(self, *lines: str) -> None:
        """Say `READY=1`, `STATUS=…` and the like."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # what systemd does not hear, it acts on: we need not
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.sendto("\n".join(lines).encode(), address)
