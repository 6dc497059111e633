"""The files that `sereno deploy` writes: texts from templates, and how they come into a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from sereno.exceptions import SettingsError
from sereno.storage import told, write_atomically

_LAST_LINE = re.compile(r"^(?:#|<!--) As `sereno deploy` wrote it: (?P<digest>[0-9a-f]{16})(?: -->)?\n\Z", re.MULTILINE)


def filled(template: str, **values: str) -> str:
    """A file of `templates`, with what it leaves open."""
    text = (files("sereno.deploy") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(values)


def write(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files, over what was written by an earlier version or for other settings, too.

    Nothing is written where somebody has changed one of them. Raises SettingsError, StorageError.
    """
    signed = {folder / name: _signed(text, is_page=name.endswith(".md")) for name, text in texts.items()}
    with told("The files could not be written", "Mend that, or write elsewhere with --to."):
        for there, text in signed.items():
            if there.exists() and (found := there.read_text("utf-8", "replace")) != text and not _is_unchanged(found):
                raise SettingsError(
                    f"{there} exists and differs from what would be written, and somebody has changed it since `sereno deploy` "
                    "wrote it. Move it away, or write elsewhere with --to."
                )
        for there, text in signed.items():
            write_atomically(there, text.encode())
    return [*signed]


def _signed(text: str, *, is_page: bool) -> str:
    """With a last line by which it is seen whether somebody has changed it."""
    line = f"As `sereno deploy` wrote it: {_digest(text)}"
    return f"{text}<!-- {line} -->\n" if is_page else f"{text}# {line}\n"


def _is_unchanged(text: str) -> bool:
    line = _LAST_LINE.search(text)
    return line is not None and line["digest"] == _digest(text[: line.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
