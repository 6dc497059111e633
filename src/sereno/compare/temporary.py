"""The folder of a comparison, below `.sereno/`: it is gone when the comparison ends, however it ends.

After a kill nobody can clean up behind oneself: the next comparison removes what an earlier one left. A lock tells those
that still go on; of another host, whose locks may be its own, only what is old is taken for left.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from sereno.signals import Terminated
from sereno.storage import age, exclusive, host_name, is_held

LEFT_SECONDS = (
    7 * 86_400
)  # without a change in it, after which another host's comparison is taken for one that was killed
TRIES = 100  # a thread that scores may be writing its last batch into the folder that is about to go


@contextlib.contextmanager
def temporary_folder(home: Path) -> Iterator[Path]:
    """An empty folder of this process alone."""
    place, locks = home / ".sereno" / "compare", home / ".sereno" / "locks"
    for folder in leftovers(home):
        remove(home, folder)
    name = f"{secrets.token_hex(6)}-{host_name()}"
    lock = _lock(locks, name)
    with exclusive(lock, "Two comparisons chose one name. Start this again."):
        folder = place / name
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            _remove(folder)
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another comparison goes on there
                place.rmdir()


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that it cleans up; the exit code is that of the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lock(locks: Path, name: str) -> Path:
    return locks / f"compare.{name}"


def leftovers(home: Path) -> list[Path]:
    """Folders of comparisons that were killed."""
    # a lock is taken before its folder is made, so a folder without one is nobody's
    locks = home / ".sereno" / "locks"
    there = (home / ".sereno" / "compare").glob("*")
    return [folder for folder in there if not is_held(_lock(locks, folder.name)) and not _is_anothers(folder)]


def _is_anothers(folder: Path) -> bool:
    try:
        return folder.name.partition("-")[2] not in ("", host_name()) and age(folder) < LEFT_SECONDS
    except FileNotFoundError:  # it has just ended
        return True


def remove(home: Path, folder: Path) -> None:
    """Remove what a comparison left."""
    _remove(folder)
    _lock(home / ".sereno" / "locks", folder.name).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
