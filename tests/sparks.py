"""A Spark for tests: in this process, or a cluster of hosts of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.config import Settings, SparkSettings


def require() -> None:
    """Skips the test, or fails it with CI=1, where there is no Java."""
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        if os.environ.get("CI"):
            pytest.fail("there is no Java, which Spark needs: openjdk-17-jre-headless")
        pytest.skip("LOUD: nothing about Spark is tested here: there is no Java (openjdk-17-jre-headless)")


@contextlib.contextmanager
def started_spark(home: Path, workers: int) -> Iterator[None]:
    """A context in this process, which executors find and leave open."""
    require()
    from sereno.adapters.spark_start import start

    settings = Settings(home=home, workers=workers, spark=SparkSettings(master=f"local[{workers}]"))
    context, _ = start(settings)
    try:
        yield
    finally:
        context.stop()
