"""Temporary folders of this process, and what processes have left that were killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

LEFT_SECONDS = 86_400.0  # a process that is not seen from here, in a container say, may still use a younger one


def own_folder(prefix: str, place: Path | None = None) -> Path:
    """A new folder, named for this process. Those of the same prefix whose process ended are removed after a day."""
    place = place or Path(tempfile.gettempdir())
    for folder in place.glob(f"{prefix}*-*"):
        with contextlib.suppress(OSError, ValueError):  # somebody else's
            pid = int(folder.name.removeprefix(prefix).partition("-")[0])
            if time.time() - folder.stat().st_mtime > LEFT_SECONDS and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=place))
