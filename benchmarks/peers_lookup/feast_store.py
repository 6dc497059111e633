"""The feature store of Feast: where it lies, what it is made of."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

OUTPUTS = ("probability", "band", "segment")


def settle(folder: Path, kind: str, redis_port: str | None) -> None:
    """Write the settings of a store that keeps its online values in SQLite or in a Redis."""
    online = {"sqlite": f"{{type: sqlite, path: {folder}/online.db}}"}
    online["redis"] = f"{{type: redis, connection_string: '127.0.0.1:{redis_port}'}}"
    settings = [
        "project: lookup",
        "provider: local",
        f"registry: {folder}/registry.db",
        f"online_store: {online[kind]}",
    ]
    settings += ["offline_store: {type: file}", "entity_key_serialization_version: 3"]
    (folder / "feature_store.yaml").write_text("\n".join(settings) + "\n")


def definitions(folder: Path) -> list:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64, String

    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "predictions.parquet"), timestamp_field="event_timestamp")
    fields = [Field(name=name, dtype=kind) for name, kind in zip(OUTPUTS, (Float64, Int64, String), strict=True)]
    view = FeatureView(name="scores", entities=[customer], ttl=timedelta(days=36_500), source=source, schema=fields)
    return [customer, source, view]
