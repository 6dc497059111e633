"""How long what is deployed may take to end, for whoever would kill it then: systemd, a container engine, Kubernetes."""

from __future__ import annotations

import math

from sereno.operate.up.children import GRACE
from sereno.serve.processes.ending import AFTER_DRAIN_SECONDS
from sereno.settings import Settings

SPARE_SECONDS = 10  # beyond what is known


def stop_seconds(settings: Settings) -> int:
    """Of `sereno serve` and of `sereno up`, from the SIGTERM on."""
    server, runs = settings.serve.drain_seconds + AFTER_DRAIN_SECONDS, settings.up.stop_seconds
    return math.ceil(max(server, runs) + GRACE) + SPARE_SECONDS
