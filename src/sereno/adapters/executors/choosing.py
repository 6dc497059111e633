"""Which executor a run gets: what the setting `executor` says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sereno.adapters.executors.local import LocalExecutor
from sereno.adapters.executors.spawn import Ahead, cores
from sereno.interfaces import Executor
from sereno.scoring import open_scorer

if TYPE_CHECKING:
    from sereno.model import Model
    from sereno.settings import Settings


def make_executor(model: Model, settings: Settings, ahead: Ahead | None = None) -> Executor:
    """Raises MissingExtraError where the package of a cluster is missing. `ahead`: a worker that was started already."""
    if settings.executor == "ray":
        from sereno.adapters.executors.ray_executor import RayExecutor

        return RayExecutor(settings)
    if settings.executor == "spark" or _is_submitted(settings):
        from sereno.adapters.executors.spark_executor import SparkExecutor

        return SparkExecutor(settings, model)
    return LocalExecutor(settings.workers or cores(), lambda: open_scorer(model, settings), ahead)


def _is_submitted(settings: Settings) -> bool:
    """Whether `spark-submit` started this process, and nobody said that Spark is not to score."""
    return "PYSPARK_GATEWAY_PORT" in os.environ and "executor" not in settings.origins
