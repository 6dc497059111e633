"""What a command prints: lines for people, or JSON for scripts."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def output(options: argparse.Namespace, data: Any, lines: Iterable[str]) -> None:
    write(options, json.dumps(data, indent=2, default=str) if options.json else "\n".join(lines))


def write(options: argparse.Namespace, text: str) -> None:
    try:
        print(text, file=options.out, flush=True)
    except BrokenPipeError:  # the reader (head, say) has seen enough; the exit code is still the command's
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def write_page(file: Path, page: str) -> str:
    """Write an HTML page, whole or not at all; the line that says where. Raises StorageError."""
    from sereno.storage import told, write_atomically

    # the folder that is asked for must be there: a mistyped path makes none
    with told(f"The page {file} could not be written", "Give --html another path, or make its folder."):
        file.parent.resolve(strict=True)
        write_atomically(file, page.encode(errors="backslashreplace"))
    return f"The page is in {file}."
