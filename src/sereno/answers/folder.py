"""The folder of one model's segments: which are there, who writes them, and how to ask for them. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sereno.storage import age, host_name, is_held, write_atomically

PENDING = "pending.json"  # what is about to be committed
DAMAGE = "damage.jsonl"  # what could not be read
TIDIED = "tidied"  # when old days were last dropped
SEGMENT_SECONDS = 300  # by the clock, so that the segments of all workers are handed over together
SEGMENT_BYTES = 64 << 20  # or as soon as there is so much
LEFT_SECONDS = 3_600  # without a sign of life, after which what another host's worker had is taken for left
BEAT_SECONDS = 300.0  # between two signs of life of a log that has nothing to write
WRITER = "answers-writer"  # what the tables call whoever commits from this home
_DAYS = "days"  # how long answers are kept
_KEYS = "keys.json"  # the keys as versions of the model have declared them
_NO_DAYS = "none"
_SEAL = "seal"  # its time says when workers were last asked to seal


def segments_folder(home: Path, model: str) -> Path:
    return home / ".sereno" / "answers" / model


def make_folder(folder: Path) -> None:
    """For this user only: answers are personal data."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


# Several hosts may have their workers write here. What they hold is locked, but a lock may be seen on its own host only: so
# names end with that of the host, and what another host does not hold, as it seems, is its own as long as it is not old.


def name_of(*parts: object) -> str:
    """A name that no other file has: `<parts>-<pid>-<random>-<host>`."""
    return "-".join(map(str, (*parts, os.getpid(), secrets.token_hex(3), host_name())))


def host_of(path: Path) -> str:
    """The host whose worker wrote it; "": this one, or it is of an older version, which knew no others."""
    known = _pieces(path)[2:]
    return known[0] if known and known[0] != host_name() else ""


def _pieces(path: Path) -> list[str]:
    """Pid, random number and host of a name; a segment's begins with its time."""
    pieces = path.stem.split("-")
    return pieces[1:] if "T" in pieces[0] else pieces


def is_alive(path: Path) -> bool:
    """Whether a living worker has a file, here or on another host. Raises FileNotFoundError where it has just gone."""
    return is_held(path) or (bool(host_of(path)) and age(path) < LEFT_SECONDS)


def open_segments(folder: Path) -> list[Path]:
    """Segments that a living worker writes."""
    return [path for path in sorted(folder.glob("*.open")) if _is_alive(path)]


def _is_alive(path: Path) -> bool:
    try:
        return is_alive(path)
    except FileNotFoundError:
        return False


def finished_segments(folder: Path) -> list[Path]:
    """Segments that nobody writes any more: sealed, or left by a worker that died."""
    there = sorted(folder.glob("*.open"))
    left = [path for path in there if path.exists() and not _is_alive(path)]
    # In this order: one that is sealed in between is found at the second look.
    sealed = sorted(folder.glob("*.sealed"))
    return sorted({*sealed, *(path for path in left if path.exists())})


# Servers that share a home have one compactor, which is one of them's: what the others keep it learns from here.


def days_kept(folder: Path) -> int | None:
    """How long the answers of a model are kept, as a server last said; None: none did, so for ever."""
    try:
        return int((folder / _DAYS).read_text())
    except (FileNotFoundError, ValueError):
        return None


def remember_days(folder: Path, days: int) -> None:
    if days_kept(folder) != days:
        make_folder(folder)
        write_atomically(folder / _DAYS, str(days).encode(), temporary=f"{os.getpid()}-{secrets.token_hex(3)}.new")


def is_tidy(folder: Path, days: int | None) -> bool:
    """Whether old days were dropped today, where some are to be."""
    try:
        when, _, what = (folder / TIDIED).read_text().partition(" ")
    except FileNotFoundError:
        return False
    return when == datetime.now(UTC).date().isoformat() and (days is None or what != _NO_DAYS)


def say_tidy(folder: Path, days: int | None) -> None:
    today = datetime.now(UTC).date().isoformat()
    write_atomically(folder / TIDIED, (today if days is not None else f"{today} {_NO_DAYS}").encode())


# The table's columns come in the order in which they were new, and a key's values are given in declared order.


def known_keys(folder: Path) -> list[list[str]]:
    """The names of the key's columns as versions of the model have declared them, the newest last."""
    try:
        keys: list[list[str]] = json.loads((folder / _KEYS).read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return keys


def remember_key(folder: Path, names: Sequence[str]) -> None:
    """Several workers may do so at once."""
    before = known_keys(folder)
    if not names or before[-1:] == [list(names)]:
        return
    now = [*(key for key in before if key != list(names)), list(names)]
    write_atomically(folder / _KEYS, json.dumps(now).encode(), temporary=f"{os.getpid()}-{secrets.token_hex(3)}.new")


# A table keeps the last commit's number of each writer for ever, so there are few: one for each home, on each host.


def writer_of(home: Path) -> str:
    """What tables call whoever commits from this home, on this host: a copy of either is another one."""
    file = home / ".sereno" / WRITER
    with contextlib.suppress(FileNotFoundError):
        return f"{file.read_text()}-{host_name()}"
    write_atomically(file, secrets.token_hex(8).encode(), temporary=f"{os.getpid()}-{secrets.token_hex(3)}.new")
    return writer_of(home)


# A request to the workers: hand over what you have. Its time tells one from the next; it is also that of the answer, the
# file of each log.


def ask_to_seal(folder: Path) -> int:
    """Ask all who keep answers in this folder to write what they hold in memory and seal it, within the second."""
    request = folder / _SEAL
    # the file system's own clock is coarse, and the machine's may be set back
    time_of_it = max(time.time_ns(), last_request(folder) + 1_000_000)
    request.touch(mode=0o600)
    os.utime(request, ns=(time_of_it, time_of_it))
    return last_request(folder)  # as the file system has it


class Writer:
    """The file of one log, `<pid>-<random>-<host>.writer`: locked as long as the log may hold answers in memory.

    Its time is that of the last request before which all its answers are handed over.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._path = folder / f"{name_of()}.writer"
        hidden = self._path.with_suffix(".new")  # it gets its name once it is locked
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.request = last_request(folder)
            self.hand_over(self.request)
            os.rename(hidden, self._path)
        except OSError:
            os.close(self._descriptor)
            hidden.unlink(missing_ok=True)
            raise

    def hand_over(self, request: int) -> None:
        """Say that all that was answered before this request is in segments that nobody writes any more."""
        os.utime(self._descriptor, ns=(request, request))
        self.request = request
        self._beat_at = time.monotonic()

    def beat(self) -> None:
        """Show other hosts that this log lives on."""
        if time.monotonic() - self._beat_at > BEAT_SECONDS:
            self.hand_over(self.request)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def late_writers(folder: Path, request: int) -> list[str]:
    """The pids of the logs that have not handed over what was answered before a request."""
    late = []
    for path in sorted(folder.glob("*.writer")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns < request and is_alive(path):
                late.append(worker_of(path))
    return late


def worker_of(path: Path) -> str:
    """The process that writes a file of this folder, in words: its pid, with its host if that is another one."""
    pid = _pieces(path)[0]
    return f"{pid} on host {host}" if (host := host_of(path)) else pid


def last_request(folder: Path) -> int:
    """When workers were last asked to seal; 0: never."""
    try:
        return os.stat(folder / _SEAL).st_mtime_ns
    except OSError:  # there is none, as a rule
        return 0


def total_size(paths: Iterable[Path]) -> int:
    size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size
