"""Limit: the model alone, on one matrix in memory with two threads. Reading before and writing after are not timed."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()
files = sorted(source.glob("*.parquet"))
sizes = [pq.read_metadata(file).num_rows for file in files]
matrix, keys = np.empty((sum(sizes), len(FEATURES))), np.empty(sum(sizes), dtype=np.int64)
end = 0
for file, size in zip(files, sizes, strict=True):
    start, end = end, end + size
    table = pq.read_table(file)
    keys[start:end] = table[KEY]
    for place, feature in enumerate(FEATURES):
        matrix[start:end, place] = table[feature]
    del table

predict = load_model(model)
clock, cpu = time.perf_counter(), time.process_time()
probability = predict(matrix)
print(json.dumps({"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}))

pq.write_table(
    pa.table({KEY: keys, "probability": probability, "band": band_of(probability)}), output / "scores.parquet"
)
