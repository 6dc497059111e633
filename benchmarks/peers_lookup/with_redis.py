"""Starts a Redis, waits until it has loaded its data, and becomes the command: with_redis FOLDER PORT COMMAND…

The Redis ends when the command does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

START_LIMIT = 120
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def command(folder: object, port: object) -> list[str]:
    """A Redis with the data of a folder, which it leaves as it is."""
    options = {"--bind": "127.0.0.1", "--port": port, "--dir": folder, "--save": "", "--appendonly": "no"}
    return ["redis-server", *(str(part) for option in options.items() for part in option)]


def main() -> None:
    folder, port, *then = sys.argv[1:]
    subprocess.Popen(
        command(folder, port),
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM, 0, 0, 0),
    )
    deadline = time.monotonic() + START_LIMIT
    while not has_loaded(int(port)):
        if time.monotonic() > deadline:
            sys.exit(f"with_redis: no answer from Redis in {START_LIMIT} s")
        time.sleep(0.02)
    os.execvp(then[0], then)


def has_loaded(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.sendall(b"PING\r\n")
            return one.recv(64).startswith(b"+PONG")
    except OSError:
        return False


if __name__ == "__main__":
    main()
