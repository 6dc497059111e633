"""The files that `sereno deploy` writes: texts from templates, and how they come into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from sereno.exceptions import SettingsError
from sereno.storage import told, write_atomically


def filled(template: str, **values: str) -> str:
    """A file of `templates`, with what it leaves open."""
    text = (files("sereno.deploy") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(values)


def write(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files; one that somebody changed since is refused. Raises SettingsError, StorageError."""
    for name, text in texts.items():
        there = folder / name
        if there.exists() and there.read_text("utf-8") != text:
            raise SettingsError(
                f"{there} exists and differs from what would be written. Move it away, or write elsewhere with --to."
            )
    with told("The units could not be written"):
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]
