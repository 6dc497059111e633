"""Polars' streaming engine, with the model in a map over its batches."""

import numpy as np
import polars as pl

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()
predict = load_model(model)


def score(frame: pl.DataFrame) -> pl.DataFrame:
    probability = predict(np.ascontiguousarray(frame.select(FEATURES).to_numpy()))
    return pl.DataFrame({KEY: frame[KEY], "probability": probability, "band": band_of(probability)})


schema = {KEY: pl.Int64, "probability": pl.Float64, "band": pl.Int64}
customers = pl.scan_parquet(source / "*.parquet")
scores = customers.map_batches(score, schema=schema, streamable=True)
scores.sink_parquet(output / "scores.parquet", engine="streaming")
