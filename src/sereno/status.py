"""Status files: what is served of each model, where a look at the disk is all that one can afford.

`.sereno/status/MODEL.json` is written when a run ends well and when what is served changes. The Delta log stays the truth;
this is what metrics and `sereno health` read, of a thousand models at once. Light: nothing heavy is imported, unless they
lie in an object store.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    from sereno.places import ObjectPath, Place
    from sereno.presence import Contents

MOST_BYTES = 65_536  # of a file: another one is none of ours
# A folder whose last change is younger may change once more without its time telling so: the kernel's clock ticks.
SETTLED_SECONDS = 1.0
FAR_SECONDS = 10.0  # between two looks at an object store
TRIES = 20  # of a change, where others change the same file of an object store

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


def status_folder(root: Place) -> Any:
    return root / ".sereno" / "status"


def write_status(home: Path, status: Status) -> None:
    """Replace what is known of a model. Raises OSError."""
    from sereno.storage import write_atomically

    file = status_folder(home) / f"{status.model}.json"
    # of two writers at once each has its own temporary file; the suffix keeps readers from it
    write_atomically(file, msgspec.json.encode(status), temporary=f".{file.name}.{os.getpid()}.tmp")


def change_status(root: Place, model: str, change: Callable[[Status | None], Status | None]) -> None:
    """Replace what is known of a model by what `change` makes of it, which is asked again if another was faster.

    None, or the same: nothing is written. In a folder, one process at a time does this. Raises OSError, StorageError.
    """
    if isinstance(root, Path):
        before = read_status(root, model)
        after = change(before)
        if after is not None and after != before:
            write_status(root, after)
        return
    from sereno.object_path import ConditionError

    file = status_folder(root) / f"{model}.json"
    for _ in range(TRIES):  # whoever was faster each time has left what is as new
        try:
            content, tag = file.read_tagged()
        except FileNotFoundError:
            content, tag = b"", ""
        before = _decoded(content, model)
        after = change(before)
        if after is None or after == before:
            return
        with contextlib.suppress(ConditionError):
            file.write_bytes(msgspec.json.encode(after), only_if=tag)
            return


def read_status(root: Place, model: str) -> Status | None:
    """None: there is no such file, or it is damaged, or it is none of ours. Raises StorageError, of an object store."""
    path = status_folder(root) / f"{model}.json"
    try:
        if not isinstance(root, Path):
            return _decoded(path.read_bytes(), model)
        return _read(path, model) if path.is_file() else None
    except OSError:
        return None


def read_statuses(root: Place) -> dict[str, Status]:
    """What is known of every model, by name. Raises StorageError, of an object store."""
    if isinstance(root, Path):
        return dict(Statuses(root).read())
    return _Far(root).look()


class Statuses:
    """The status files below a root, for who asks again and again: only what has changed is read again."""

    def __init__(self, root: Place) -> None:
        self._far = None if isinstance(root, Path) else _Far(root)
        self._folder = status_folder(root)
        self._as_of: int | None = None  # when the folder was last changed; None: look again
        self._files: dict[
            str, tuple[tuple[int, int, int], Status | None]
        ] = {}  # model → which file it was, its content

    def read(self) -> dict[str, Status]:
        """Never raises: what cannot be read is left out. A thousand files that stand still cost one question.

        Of an object store, which answers when it likes, it tells what it knows, and looks for news meanwhile.
        """
        if self._far is not None:
            return self._far.read()
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


class _Far:
    """The same of an object store."""

    def __init__(self, root: ObjectPath) -> None:
        from sereno.presence import Contents

        self._contents: Contents[bytes] = Contents(
            status_folder(root), lambda path: path.suffix == ".json", lambda path: path.read_bytes()
        )
        self._known: dict[str, Status] = {}
        self._due = 0.0
        self._looking = threading.Lock()

    def look(self) -> dict[str, Status]:
        """Raises StorageError."""
        found = {path.stem: _decoded(content, path.stem) for path, (_, content) in self._contents.read().items()}
        self._known = {model: status for model, status in found.items() if status is not None}
        return self._known

    def read(self) -> dict[str, Status]:
        if time.monotonic() > self._due and self._looking.acquire(blocking=False):
            self._due = time.monotonic() + FAR_SECONDS
            threading.Thread(target=self._look, daemon=True).start()
        return self._known

    def _look(self) -> None:
        from sereno.exceptions import SerenoError

        try:
            with contextlib.suppress(SerenoError, OSError):  # it goes on with what it knows
                self.look()
        finally:
            self._looking.release()


_decode = msgspec.json.Decoder(Status).decode


def _read(path: Path, model: str) -> Status | None:
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    return _decoded(content, model)


def _decoded(content: bytes, model: str) -> Status | None:
    if len(content) > MOST_BYTES:
        return None
    try:
        status = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return status if status.model == model else None
