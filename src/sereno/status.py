"""Status files: what is served of each model, where a look at the disk is all that one can afford.

`.sereno/status/MODEL.json` is written when a run ends well and when what is served changes. The Delta log stays the truth;
this is what metrics and `sereno health` read, of a thousand models at once. Light: nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

MOST_BYTES = 65_536  # of a file: another one is none of ours
# A folder whose last change is younger may change once more without its time telling so: the kernel's clock ticks.
SETTLED_SECONDS = 1.0

_ModelName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model. Times are UTC."""

    format: Literal[1] = 1
    model: _ModelName
    last_success_at: _Moment  # a run ended well: it published, or found that all was published
    version: int | None = None  # that is served, of the newest data date; None: nothing is
    data_date: date | None = None
    data_time: _Moment | None = None
    published_at: _Moment | None = None
    due_at: _Moment | None = None  # when the run is due that follows the newest one that ended well


def status_folder(home: Path) -> Path:
    return home / ".sereno" / "status"


def write_status(home: Path, status: Status) -> None:
    """Replace what is known of a model. Raises OSError."""
    from sereno.storage import write_atomically

    file = status_folder(home) / f"{status.model}.json"
    # of two writers at once each has its own temporary file; the suffix keeps readers from it
    write_atomically(file, msgspec.json.encode(status), temporary=f".{file.name}.{os.getpid()}.tmp")


def read_status(home: Path, model: str) -> Status | None:
    """None: there is no such file, or it is damaged, or it is none of ours."""
    path = status_folder(home) / f"{model}.json"
    try:
        return _read(path, model) if path.is_file() else None
    except OSError:
        return None


def read_statuses(home: Path) -> dict[str, Status]:
    """What is known of every model of a home, by name."""
    return dict(Statuses(home).read())


class Statuses:
    """The status files of a home, for who asks again and again: only what has changed is read again."""

    def __init__(self, home: Path) -> None:
        self._folder = status_folder(home)
        self._as_of: int | None = None  # when the folder was last changed; None: look again
        self._files: dict[
            str, tuple[tuple[int, int, int], Status | None]
        ] = {}  # model → which file it was, its content

    def read(self) -> dict[str, Status]:
        """Never raises: what cannot be read is left out. A thousand files that stand still cost one question."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._as_of:
                self._look()
                is_settled = time.time_ns() - changed > SETTLED_SECONDS * 1e9
                self._as_of = changed if is_settled else None
        except OSError:  # there is no folder yet, or the disk is gone
            self._files, self._as_of = {}, None
        return {model: status for model, (_, status) in self._files.items() if status is not None}

    def _look(self) -> None:
        before, self._files = self._files, {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                model, suffix = os.path.splitext(entry.name)
                if suffix != ".json" or model.startswith("."):
                    continue
                with contextlib.suppress(OSError):  # removed meanwhile, or not to be read by us
                    if not entry.is_file(follow_symlinks=False):  # a pipe would keep who opens it
                        continue
                    found = entry.stat(follow_symlinks=False)
                    which = (found.st_ino, found.st_mtime_ns, found.st_size)
                    known = before.get(model)
                    if known is None or known[0] != which:
                        known = which, _read(Path(entry.path), model)
                    self._files[model] = known


_decode = msgspec.json.Decoder(Status).decode


def _read(path: Path, model: str) -> Status | None:
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        return None
    try:
        status = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return status if status.model == model else None
