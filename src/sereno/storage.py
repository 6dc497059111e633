"""Files that survive a power cut: written whole, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sereno.exceptions import BusyError, StorageError

CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk reports an error",
    errno.ENOLCK: "the file system has no locks to give: mount it with them (NFS: version 4, or local_lock=flock)",
    errno.ESTALE: "the file server has another folder there by now: mount it again",
}
GOES_ON = "Nothing was published by this run. Mend that, then start it again: it goes on where it was."


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, temporary: str = "") -> None:
    """Write a file so that a reader, or whoever comes after a crash, finds the old content or the new.

    Only one process at a time writes a path, so what a crash left of the temporary file is overwritten by the next;
    or each names its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(temporary or f".{path.name}.tmp")
    try:
        with hidden.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(hidden, path)
    except OSError:
        hidden.unlink(missing_ok=True)  # above all where the disk is full
        raise
    fsync(path.parent)


def refresh(folder: Path) -> None:
    """Have this host ask the file server anew what is in a folder. Raises OSError.

    A network file system may remember for a minute what was there, and what was not. Whoever makes a file in a folder is
    told by the server that others have changed it, and forgets. On a disk of this host it does nothing of use.
    """
    if folder.is_dir():
        probe = folder / f".{host_name()}-{secrets.token_hex(6)}.look"
        probe.touch()
        probe.unlink()


def age(path: Path) -> float:
    """Seconds since a file was changed in any way, by the clock of whoever keeps it. Raises OSError.

    This host's clock may differ by minutes from that of another, or of a file server, whose times files have.
    """
    probe = path.with_name(f".{host_name()}-{secrets.token_hex(6)}.look")
    try:
        probe.touch()
        now = probe.stat().st_ctime
    finally:
        probe.unlink(missing_ok=True)
    return now - path.stat().st_ctime


def host_name() -> str:
    """This machine's name, as part of a file's name: what others, elsewhere, write to the same folder has theirs."""
    return re.sub(r"[^\w.]", "_", socket.gethostname())


@contextlib.contextmanager
def exclusive(path: Path, busy: str, *, wait_seconds: float = 0.2) -> Iterator[None]:
    """Hold a lock file; it is free again when the process ends, however it ends. Other hosts need not see it.

    Raises BusyError(busy), with the holder's pid in place of `{pid}`, once it has waited. The shortest wait is there
    because whoever only looks (`is_held`) holds it for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with path.open("a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    stream.seek(0)
                    raise BusyError(busy.format(pid=stream.read().strip() or "unknown")) from error
                time.sleep(0.01)
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def run_lock(home: Path, model: str, run_key: str) -> Path:
    """The lock file of a run key, for processes of this host: who works on the run holds it.

    Other hosts have others: what tells hosts apart is the lease, which ends. A lock on a file server that gives locks would
    be kept by a host that is cut off from the ledger, and nobody could take its run over.
    """
    return home / ".sereno" / "locks" / f"{model}.{run_key.replace(':', '')}.{host_name()}.run"


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock file. Writes nothing, so that it works where one may only read."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def told(what: str, then: str = GOES_ON) -> Iterator[None]:
    """Turn an error of the operating system into a StorageError that says what failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        # pyarrow's errors are OSErrors too, some without errno: their text then holds the cause
        cause = CAUSES.get(error.errno or 0) or next(
            (words for code, words in CAUSES.items() if os.strerror(code) in str(error)), error.strerror or str(error)
        )
        if error.errno is None and cause == str(error):
            raise
        path = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"{what}: {cause}{path}. {then}") from error
