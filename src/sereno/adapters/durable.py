"""Files and folders that last: linked or copied, made durable, exchanged, removed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def link_or_copy(part: Path, path: Path) -> None:
    """Make a read-only file with the content of a part, which never changes: its bytes are shared where they can be."""
    try:
        path.hardlink_to(part)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        shutil.copyfile(part, path)
        with path.open("rb") as file:
            seal(file.fileno())
    else:
        path.chmod(0o444)


def seal(descriptor: int) -> None:
    """Make a file read-only, and its content durable."""
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)


def exchange(left: Path, right: Path) -> None:
    """Let two folders change their names, in one step where system and file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and not rename(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE):
        return
    right.rename(left.with_name(f"{left.name}-wrong"))
    left.rename(right)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
