"""Processes whose parent is gone: they are children of a container's first process, or of the one that adopts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection


def children_of(pid: int) -> list[int]:
    """Those that run, and those whose end nobody has asked for yet. Raises OSError where the kernel does not tell."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file,
        ):
            found += [int(one) for one in file.read().split()]
    return found


def reap(own: Collection[int]) -> None:
    """Take leave of orphans that have ended. `own`: the children of this process that it asks for itself."""
    with contextlib.suppress(OSError):  # a kernel that does not tell: then their numbers stay taken
        for pid in children_of(os.getpid()):
            if pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
