"""Puts the predictions of FOLDER/predictions.parquet into a new feature store there: feast_fill KIND FOLDER [REDIS-PORT]"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from feast import FeatureStore

from benchmarks.peers_lookup.feast_store import definitions, settle

AT_ONCE = 50_000

kind, folder = sys.argv[1], Path(sys.argv[2])
settle(folder, kind, sys.argv[3] if sys.argv[3:] else None)
frame = pd.read_parquet(folder / "predictions.parquet")
frame["event_timestamp"] = datetime(2026, 11, 1, tzinfo=UTC)
frame.to_parquet(folder / "predictions.parquet")
store = FeatureStore(repo_path=str(folder))
store.apply(definitions(folder))
for start in range(0, len(frame), AT_ONCE):
    store.write_to_online_store("scores", df=frame[start : start + AT_ONCE])
