"""The script that most people have: read all, predict all, write all."""

import pandas as pd

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()
customers = pd.read_parquet(source)
probability = load_model(model)(customers[FEATURES].to_numpy())
scores = pd.DataFrame({KEY: customers[KEY], "probability": probability, "band": band_of(probability)})
scores.to_parquet(output / "scores.parquet", index=False)
