"""A Ray for tests: in this process, so that executors find it started."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from unittest import mock

VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # a process reads it once
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def started_ray(cpus: int, gpus: int = 0) -> Iterator[None]:
    """Ray runs on this machine, and this process is connected to it."""
    folder = tempfile.mkdtemp(prefix="sereno-ray-")
    with mock.patch.dict(os.environ, VARIABLES):
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",  # type: ignore[arg-type]
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
