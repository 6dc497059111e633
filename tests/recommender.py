"""The recommender example, trained once for all tests that want it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "recommender"
MADE = ("*.npz", "*.sqlite", "predictions", "exports", "answers", ".sereno", "__pycache__")


def trained_copy(factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own with the example, its model and its database; `printed.txt` is what its programs said."""
    first = factory.getbasetemp() / "recommender"
    if not first.exists():
        making = factory.mktemp("recommender-making") / "shop"
        shutil.copytree(EXAMPLE, making, ignore=shutil.ignore_patterns(*MADE))
        printed = ""
        for program in ("train.py", "prepare_shop.py"):
            command = [sys.executable, "-W", "error", program]
            done = subprocess.run(command, cwd=making, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            printed += done.stdout
        (making / "printed.txt").write_text(printed, encoding="utf-8")
        making.rename(first)
    folder = factory.mktemp("recommender-copy") / "shop"
    shutil.copytree(first, folder)
    return folder
