"""What a careful engineer writes by hand: two threads, each a file at a time and a row group at a time, no frames."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()
predict = load_model(model)
answer = pa.schema([(KEY, pa.int64()), ("probability", pa.float64()), ("band", pa.int64())])


def score(file: Path) -> None:
    reader = pq.ParquetFile(file)
    with pq.ParquetWriter(output / file.name, answer, compression="zstd", use_dictionary=["band"]) as writer:
        for group in range(reader.num_row_groups):
            table = reader.read_row_group(group, use_threads=False)
            matrix = np.empty((table.num_rows, len(FEATURES)))
            for place, feature in enumerate(FEATURES):
                matrix[:, place] = table[feature].to_numpy()
            probability = predict(matrix)
            writer.write_table(pa.table([table[KEY], probability, band_of(probability)], schema=answer))


with ThreadPoolExecutor(2) as threads:  # reading, trees and writing release the GIL
    list(threads.map(score, sorted(source.glob("*.parquet"))))
