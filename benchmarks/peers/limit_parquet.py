"""Limit: all columns in and three columns out, by two threads; the probabilities are made up and no model runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import KEY, band_of, from_command_line

model, source, output = from_command_line()
made_up = pa.array(np.random.default_rng(1).random(1 << 20))
bands = pa.array(band_of(made_up.to_numpy()))
answer = pa.schema([(KEY, pa.int64()), ("probability", pa.float64()), ("band", pa.int64())])


def copy(file: Path) -> None:
    reader = pq.ParquetFile(file)
    with pq.ParquetWriter(output / file.name, answer, compression="zstd", use_dictionary=["band"]) as writer:
        for group in range(reader.num_row_groups):
            table = reader.read_row_group(group, use_threads=False)
            rows = table.num_rows
            writer.write_table(pa.table([table[KEY], made_up[:rows], bands[:rows]], schema=answer))


with ThreadPoolExecutor(2) as threads:
    list(threads.map(copy, sorted(source.glob("*.parquet"))))
