"""How many cores' time a control group leaves this process: a container's `--cpus`, a pod's limit, a unit's `CPUQuota`.

The number of cores does not tell: a container of two cores' time sees all of the machine's, and 64 workers would share the two.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OURS = Path("/proc/self/cgroup")


def cores_of_quota(groups: Path = GROUPS, ours: Path = OURS) -> int | None:
    """At least one; None: no group says so, or none can be read."""
    with contextlib.suppress(OSError, ValueError):
        return min((max(1, math.ceil(share)) for share in _shares(groups, ours)), default=None)
    return None


def _shares(groups: Path, ours: Path) -> Iterator[float]:
    """Of this process's group and all above it, as far as they are seen: a container may see its own as the topmost."""
    for line in ours.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for group in _upwards(groups, path):
                quota, _, period = _said(group / "cpu.max").partition(" ")
                if quota not in ("", "max"):
                    yield int(quota) / int(period)
        elif "cpu" in controllers.split(","):
            for group in _upwards(groups / "cpu", path):
                quota, period = (_said(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                if quota and period and int(quota) > 0:
                    yield int(quota) / int(period)


def _upwards(top: Path, path: str) -> Iterator[Path]:
    group = top / path.strip("/")
    yield from (one for one in (group, *group.parents) if one.is_relative_to(top))


def _said(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""
