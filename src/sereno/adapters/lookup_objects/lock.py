"""Who builds: a lock that is an object, and that its holder renews."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator

from sereno.exceptions import BusyError, StorageError
from sereno.object_path import ConditionError, ObjectPath

PATIENCE = 300.0  # seconds that one who builds an index may keep the next one waiting
LOCK_SECONDS = 30.0  # without a sign of life, somebody else may follow
RENEW_SECONDS = 8.0
ASK_SECONDS = 0.5  # between two looks at somebody else's lock


class Lock:
    """Who builds. It is free once nobody has renewed it for a time, so that whoever dies keeps nobody from it.

    No clock is compared with another's: whoever waits sees that the object does not change.
    """

    def __init__(self, path: ObjectPath, model: str) -> None:
        self._path, self._model = path, model
        self._tag, self._who, self._beats = "", "", 0
        self._renewed = 0.0
        self._writing, self._lost = threading.Lock(), threading.Event()
        self._seen: tuple[str, float] = ("", 0.0)  # somebody else's tag, and since when it has been that

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises BusyError once it has waited for too long, and StorageError."""
        self._who, self._beats = secrets.token_hex(8), 0
        deadline = time.monotonic() + PATIENCE
        while not self._take():
            if time.monotonic() > deadline:
                raise BusyError(
                    f"Another process, perhaps on another host, is building the lookups of {self._model!r}. Start this again "
                    "when it is done."
                )
            time.sleep(ASK_SECONDS)
        self._lost.clear()
        ended = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if not self._lost.is_set():
                with contextlib.suppress(ConditionError, StorageError):  # else it is free after a time
                    self._write(is_free=True)

    def confirm(self) -> None:
        """Raises BusyError where somebody else has it; who stood still, or had no answer for long, asks. Raises StorageError."""
        if time.monotonic() - self._renewed > LOCK_SECONDS:
            self._renew()
        if self._lost.is_set():
            raise taken_over(self._model)

    def is_held(self) -> bool:
        """Whether somebody has it, and lives, as far as this process has seen."""
        return self._free_tag() is None

    def _take(self) -> bool:
        tag = self._free_tag()
        if tag is None:
            return False
        self._tag = tag
        try:
            self._write()
        except ConditionError:
            return False
        return True

    def _free_tag(self) -> str | None:
        """The tag to replace it by; None: somebody has it."""
        try:
            content, tag = self._path.read_tagged()
        except FileNotFoundError:
            return ""
        if not _field(content, "held_by"):
            return tag
        now = time.monotonic()
        if self._seen[0] != tag:
            self._seen = (tag, now)
        return tag if now - self._seen[1] > LOCK_SECONDS else None

    def _write(self, *, is_free: bool = False) -> None:
        self._beats += 1
        content = json.dumps({"held_by": "" if is_free else self._who, "by": self._who, "beat": self._beats}).encode()
        began = time.monotonic()  # whoever waits counts from when this arrives, which is later
        try:
            self._tag = self._path.write_bytes(content, only_if=self._tag)
        except ConditionError:
            if not (tag := self._own_tag()):
                raise
            # An earlier one arrived, though its answer did not.
            self._tag = self._path.write_bytes(content, only_if=tag)
        self._renewed = began

    def _own_tag(self) -> str:
        """Empty: what is there is somebody else's."""
        with contextlib.suppress(FileNotFoundError):
            content, tag = self._path.read_tagged()
            if _field(content, "by") == self._who:
                return tag
        return ""

    def _renew(self) -> None:
        with self._writing:
            try:
                self._write()
            except ConditionError:
                self._lost.set()

    def _go_on(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS) and not self._lost.is_set():
            with contextlib.suppress(StorageError):  # nobody else is answered, either
                self._renew()


def taken_over(model: str) -> BusyError:
    return BusyError(
        f"Another process has taken over the lookups of {model!r}, because this one gave no sign of life for too long. It "
        "goes on."
    )


def _field(content: bytes, name: str) -> str:
    """Of a lock; empty, too, where it is damaged."""
    try:
        return str(json.loads(content)[name] or "")
    except (ValueError, KeyError, TypeError):
        return ""
