"""Whether a home is one and the same folder on every node of a cluster, asked before a row is scored there.

The process that runs (the driver) writes a file with random content (`announce`). A worker elsewhere reads it by the same
path, and leaves one of its own (`confirm`), which the driver must find (`seen`). All names are new, each time: what a
network file system remembers of a name, it cannot remember of these. Nothing is listed, as a list may be a minute old.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

import msgspec

from sereno.exceptions import NotSharedError, StorageError
from sereno.storage import CAUSES, age, told, write_atomically

PATIENCE = 5.0  # seconds until what another host wrote is there; a network file system promises it at once
LOOK_SECONDS = 0.1
LEFT_SECONDS = 7 * 86_400  # no run takes longer
FOLDER = "shared"
# As Linux calls them; of FUSE, those of which it is known.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "afs", "ocfs2", "gfs2", "orangefs", "9p"}
NETWORK |= {"fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.moosefs", "fuse.sshfs"}
DRIVER = "driver"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver tells its workers: which file there is, and what is in it."""

    home: str  # absolute
    attempt: str  # of the run: the folder's name
    content: str  # of the driver's file
    host: str  # the driver's
    patience: float = PATIENCE


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its driver: that it found it, and which file it wrote."""

    host: str
    name: str  # of its file, in the folder of the check
    content: str
    clock: float  # its time of day, in seconds since 1970


def announce(home: Path, attempt: str) -> bytes:
    """Write the file that workers must find; what they are to be told (msgpack).

    Raises StorageError where the file system lacks what publishing needs: better now than after hours of scoring.
    """
    check = Check(home=str(home), attempt=attempt, content=secrets.token_hex(16), host=socket.gethostname())
    folder = _folder(check)
    with told(f"The home {home} cannot be used"):
        write_atomically(folder / DRIVER, check.content.encode())
    _try_out(home, folder / DRIVER)
    return msgspec.msgpack.encode(check)


def _try_out(home: Path, file: Path) -> None:
    link = file.with_name("link")

    def lock() -> None:
        with file.open("rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    what = {
        "no hard links, by which a commit is made": lambda: link.hardlink_to(file),
        "no locks, which keep processes of one host apart (NFS: version 4, or local_lock=flock)": lock,
    }
    for lacks, try_it in what.items():
        try:
            try_it()
        except OSError as error:
            kind = file_system(home) or "unknown"
            raise StorageError(
                f"The folder {home} cannot be a home: its file system ({kind}) gives {lacks}: {error.strerror}. Nothing was "
                "published. Mount it otherwise, or put the home elsewhere; docs/shared_folder.md tells what it must give."
            ) from error


def file_system(path: Path) -> str:
    """The kind of file system that a folder lies on, as the kernel calls it ("ext4", "nfs4"); "": it cannot be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    found, longest = "", 0
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode(errors="surrogateescape").decode("unicode_escape", errors="replace")
        if Path(os.path.realpath(path)).is_relative_to(point) and len(point) >= longest:  # a later one lies on top
            found, longest = after.split(" ")[0], len(point)
    return found


def is_network(kind: str) -> bool:
    """Whether other hosts may have files on such a file system open, too."""
    return kind in NETWORK


def confirm(check: bytes) -> bytes:
    """In a worker: find the driver's file and write one; what the driver is to be told (msgpack), for `seen`.

    Raises NotSharedError where the home is not there, is another folder, or cannot be written.
    """
    asked = msgspec.msgpack.decode(check, type=Check)
    host = socket.gethostname()
    home, folder = Path(asked.home), _folder(asked)
    if not home.is_dir():
        raise NotSharedError(_not_the_same(asked, host, f"on {host} there is no such folder"))
    # Where this host has remembered that these were not there, the attempt to make them finds that they are.
    made = [path for path in (home / ".sereno", folder.parent) if _made(path)]
    found = _read(folder / DRIVER, asked.content, asked.patience)
    if found != asked.content:
        for path in reversed(made):  # nothing is left in a folder that is none of ours
            with contextlib.suppress(OSError):
                path.rmdir()
        lacks = found is None
        why = (
            "it lacks the file that the run wrote there" if lacks else "the file that the run wrote has another content"
        )
        raise NotSharedError(_not_the_same(asked, host, f"on {host} {why} ({folder / DRIVER})"))
    seen = Seen(host=host, name=f"{host}-{secrets.token_hex(6)}", content=secrets.token_hex(16), clock=time.time())
    try:
        write_atomically(folder / seen.name, seen.content.encode())
    except OSError as error:
        cause = CAUSES.get(error.errno or 0, error.strerror or str(error))
        raise NotSharedError(_not_the_same(asked, host, f"{host} cannot write there: {cause}")) from error
    return msgspec.msgpack.encode(seen)


def seen(check: bytes, answer: bytes) -> Seen:
    """In the driver: find what a worker wrote. Raises NotSharedError."""
    asked = msgspec.msgpack.decode(check, type=Check)
    told = msgspec.msgpack.decode(answer, type=Seen)
    file = _folder(asked) / told.name
    if _read(file, told.content, asked.patience) != told.content:
        why = f"what {told.host} wrote there is not to be found on {asked.host} ({file})"
        raise NotSharedError(_not_the_same(asked, told.host, why))
    return told


def forget(check: bytes) -> None:
    """Remove the files of a check. A worker that comes later finds none: only once all have ended."""
    shutil.rmtree(_folder(msgspec.msgpack.decode(check, type=Check)), ignore_errors=True)


def left_checks(home: Path) -> list[Path]:
    """Folders of checks whose runs were killed long ago."""
    return [folder for folder in (home / ".sereno" / FOLDER).glob("*") if age(folder) > LEFT_SECONDS]


def _folder(check: Check) -> Path:
    return Path(check.home) / ".sereno" / FOLDER / check.attempt


def _made(path: Path) -> bool:
    """Make a folder; False: it is there already, or cannot be made, which the next step tells."""
    try:
        path.mkdir()
    except OSError:
        return False
    return True


def _read(file: Path, wanted: str, patience: float) -> str | None:
    """A small file's content, once it is what it should be, or at the end of our patience; None: it is not there."""
    deadline = time.monotonic() + patience
    while True:
        found = None
        with contextlib.suppress(OSError):  # not there, or (ESTALE) no longer what it was
            found = file.read_text(encoding="utf-8", errors="replace")
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_SECONDS)


def _not_the_same(check: Check, host: str, why: str) -> str:
    return (
        f"The folder {check.home} is not the same on host {host} as on host {check.host}: {why}. Nothing was published. "
        "Every node needs the home at the same path, as one folder that all can write: mount it there, or leave that node out."
    )
