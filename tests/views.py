"""Hosts that share a folder over a file system of the kind that a network has: each remembers for a minute what was there
and what was not, and sees no lock of another's.

    with views(2, tmp_path / "real", PurePath("/tmp/bank")) as (first, second):    # tmp_path/real, as /tmp/bank on each
        first.run([…], cwd=Path("/tmp/bank"))

It is bindfs, a FUSE file system, once on each host. What it does as NFS does: locks (`local_lock=all`), what is remembered of
names and attributes (`actimeo=60`). What it does not: silly renames, ESTALE, data that lies in a host's memory until a file is
closed, names that are remembered until the folder changes. Where there is no FUSE, the test is skipped, aloud.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.hosts import Host, _until, hosts

SECONDS = 60  # for which a host remembers


@contextlib.contextmanager
def views(count: int, real: Path, shown: Path, names: Sequence[str] = ()) -> Iterator[list[Host]]:
    """So many hosts, on each of which the folder `real` is to be seen as `shown`."""
    if why := _missing():
        if os.environ.get("CI"):
            pytest.fail(f"a folder as a network has it cannot be made: {why}")
        pytest.skip(f"LOUD: nothing about shared folders on several hosts is tested here: {why}")
    real.mkdir(exist_ok=True)
    remembers = ",".join(f"{what}_timeout={SECONDS}" for what in ("attr", "entry", "negative"))
    with hosts(count, real, names=names) as made:
        for host in made:
            host.run(["mkdir", "-p", shown])
            mounted = host.popen(["bindfs", "-f", "-o", remembers, real, shown])
            _until(partial(_is_mounted, host, shown), mounted, "bindfs")
        yield made


def _is_mounted(host: Host, shown: Path) -> bool:
    return "yes" in host.run(["sh", "-c", f"mountpoint -q {shown} && echo yes"], check=False)


def _missing() -> str:
    if shutil.which("bindfs") is None:
        return "bindfs is not installed (package bindfs)"
    return "" if os.access("/dev/fuse", os.W_OK) else "this machine has no /dev/fuse"
