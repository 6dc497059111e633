"""The folder of one model's segments: which are there, who writes them, and how to ask for them. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sereno.storage import is_held

PENDING = "pending.json"  # what is about to be committed
DAMAGE = "damage.jsonl"  # what could not be read
TIDIED = "tidied"  # when old days were last dropped
SEGMENT_SECONDS = 300  # by the clock, so that the segments of all workers are handed over together
SEGMENT_BYTES = 64 << 20  # or as soon as there is so much
_SEAL = "seal"  # its time says when workers were last asked to seal


def segments_folder(home: Path, model: str) -> Path:
    return home / ".sereno" / "answers" / model


def open_segments(folder: Path) -> list[Path]:
    """Segments that a living worker writes."""
    return [path for path in sorted(folder.glob("*.open")) if is_held(path)]


def finished_segments(folder: Path) -> list[Path]:
    """Segments that nobody writes any more: sealed, or left by a worker that died."""
    there = sorted(folder.glob("*.open"))
    left = [path for path in there if path.exists() and not is_held(path)]
    # In this order: one that is sealed in between is found at the second look.
    sealed = sorted(folder.glob("*.sealed"))
    return sorted({*sealed, *(path for path in left if path.exists())})


# A request to the workers: hand over what you have. Its time tells one from the next.


def ask_to_seal(folder: Path) -> None:
    """Ask all who write segments in this folder to write what they hold in memory and seal it, within the second."""
    request = folder / _SEAL
    request.touch()
    now = time.time_ns()  # the file system's own clock is coarse
    os.utime(request, ns=(now, now))


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
