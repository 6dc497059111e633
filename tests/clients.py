"""Environments of the clients that do not go with ours: other versions of the same packages, or many of their own.

uv makes one when it is first needed, under `.tools/clients/`, of just the packages that its list pins
(`tests/clients/<name>.txt`, made by `uv pip compile`).
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "tests" / "clients"
ENVIRONMENTS = ROOT / ".tools" / "clients"


def python_of(name: str) -> Path:
    """The Python of an environment that has what the list `name` pins; made, or made anew where the list has changed."""
    packages = LISTS / f"{name}.txt"
    digest = hashlib.sha256(packages.read_bytes() + sys.version.encode()).hexdigest()
    folder = ENVIRONMENTS / name
    made_of = folder / "made-of.txt"
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests may want it at once
        if not made_of.exists() or made_of.read_text() != digest:
            _uv("venv", "--clear", "--python", sys.executable, folder)
            _uv("pip", "sync", "--python", folder, packages)
            made_of.write_text(digest)
    return folder / "bin" / "python"


def _uv(*command: str | Path) -> None:
    found = shutil.which("uv", path=str(ROOT / ".tools" / "bin")) or shutil.which("uv")
    assert found is not None, "uv makes the environments of clients; `make setup` installs it."
    done = subprocess.run([found, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
