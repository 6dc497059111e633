"""Profiles and reports for tests, made of values."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from sereno.baseline import Baseline
from sereno.batch.attempts import Report
from sereno.batch.gates import Gate
from sereno.batch.parts import WrittenPart
from sereno.batch.profile import ColumnProfile
from sereno.batch.profiling import ProfileBuilder
from sereno.schema import Column

NIGHT = datetime(2026, 5, 4, 1, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e\"'&</title><script>alert(2)</script>"


def profile_of(kind: Any, values: Any, **declared: Any) -> ColumnProfile:
    """The profile of one column."""
    column = Column(name="x", kind=kind, nullable=True, **declared)
    builder = ProfileBuilder([column])
    builder.add(pa.table({"x": pa.array(values, column.arrow_type)}))
    return builder.build()["x"]


def report_of(**given: Any) -> Report:
    """A held run of 2026-05-03, with what a test wants otherwise."""
    arguments: dict[str, Any] = {
        "attempt": "2026-05-03-abcdef", "model": "churn", "run_key": "2026-05-02T22:00Z", "data_date": date(2026, 5, 3),
        "data_time": NIGHT, "started_at": NIGHT, "ended_at": NIGHT, "state": "held", "says": "Held by 1 gate.",
        "source": "read", "workers": 2, "tasks": 3, "rows_in": 1_010, "predictions": 1_000, "rejects": 10,
        "reasons": {"age: must be at least 18": 7, "age: is absent": 3}, "seconds": {"plan": 0.5, "score": 2.0},
        "worker_seconds": {"read": 1.0}, "baseline": 2,
        "parts": [WrittenPart(path="/x/part-00000.parquet", rows=1_000, size=99, sha256="ab" * 32, stats="{}")],
    }  # fmt: skip
    return Report(**arguments | given)


def gate(level: Any = "held", name: str = "drift of score", says: str = "PSI 0.41", **about: Any) -> Gate:
    return Gate(name=name, passed=level != "held", says=says, level=level, **about)


def baseline(**outputs: ColumnProfile) -> Baseline:
    return Baseline(version=2, data_date=date(2026, 5, 2), outputs=outputs)
