"""Model files that do not load: people are told, and `sereno health` finds which they are in `.sereno/unread.json`.

The scheduler writes that file each time it has read the model files, and reads none itself. Light: nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sereno.interfaces import RunLedger
from sereno.ledger import Notice
from sereno.operate.notices.words import NEWEST, OF_FILE, wants
from sereno.settings import FILE_NAME, Settings, redact

if TYPE_CHECKING:
    from sereno.operate.declared import Failed

MOST_BYTES = 16_000_000
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")  # where an object lies: another place with each start


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose file does not load."""

    model: str
    file: str
    says: str
    at: datetime
    content: str = ""  # a hash of its files
    marks: dict[str, tuple[int, int]] = {}  # file that belongs to it → time of its last change (ns), bytes

    def has_changed(self) -> bool:
        """Whether one of its files is another one than that which did not load."""
        return marks_of(self.marks) != self.marks


def marks_of(files: Collection[str]) -> dict[str, tuple[int, int]]:
    """What tells that a file has changed; of one that is not there (0, 0)."""
    found = {}
    for file in files:
        found[file] = (0, 0)
        with contextlib.suppress(OSError):
            there = os.stat(file)
            found[file] = (there.st_mtime_ns, there.st_size)
    return found


def unread_now(model: str, failed: Failed, before: Unread | None, now: datetime) -> Unread:
    """What is known of a file that did not load; `before`: when it was read before."""
    return Unread(
        model=model,
        file=failed.file,
        says=redact(failed.says),
        at=now if before is None else before.at,
        content=_content(failed.belongs),
        marks=marks_of(failed.belongs),
    )


def unread_file(home: Path) -> Path:
    return home / ".sereno" / "unread.json"


def write_unread(home: Path, unread: Collection[Unread]) -> None:
    """Replace what is known of files that do not load. Raises OSError."""
    from sereno.storage import write_atomically

    file = unread_file(home)
    if not unread:
        file.unlink(missing_ok=True)
        return
    write_atomically(file, msgspec.json.encode(list(unread)), temporary=f".{file.name}.{os.getpid()}.tmp")


def read_unread(home: Path) -> dict[str, Unread]:
    """By model. Never raises: what cannot be read is not known."""
    try:
        with unread_file(home).open("rb") as stream:
            found = msgspec.json.decode(stream.read(MOST_BYTES), type=list[Unread])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return {one.model: one for one in found}


# Having people told


def tell_unread(
    ledger: RunLedger, settings: Settings, unread: Mapping[str, Unread], read: Collection[str], at: datetime
) -> None:
    """Have people told of files that do not load, and of those that do again; of each once, whoever asks how often.

    Raises LedgerError.
    """
    for one in unread.values():
        if wants(settings, one.model, "failed"):
            ledger.add_notice(one.model, _key(one, _told(ledger, one.model)), "failed", one.says, at)
    for model in read:
        if wants(settings, model, "recovered") and (told := _told(ledger, model)) and told[0].kind == "failed":
            ledger.add_notice(model, told[0].run_key, "recovered", "", at)


def _told(ledger: RunLedger, model: str) -> list[Notice]:
    """What people were told of the model's file, newest first."""
    return [one for one in ledger.notices(model, NEWEST) if one.run_key.startswith(OF_FILE)]


def _key(one: Unread, told: Sequence[Notice]) -> str:
    """The same while the files and the reason are, over all restarts; another one once people heard that all is well."""
    recovered = next((notice.number for notice in told if notice.kind == "recovered"), 0)
    words = f"{recovered} {one.content} {_ADDRESS.sub('', one.says)}"
    return OF_FILE + hashlib.blake2b(words.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _content(files: Collection[str]) -> str:
    seen = hashlib.blake2b(digest_size=8)
    for file in sorted(files):
        if os.path.basename(file) != FILE_NAME:  # which changes for the sake of other models
            with contextlib.suppress(OSError):
                seen.update(Path(file).read_bytes())
    return seen.hexdigest()
