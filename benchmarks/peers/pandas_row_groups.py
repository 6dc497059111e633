"""pandas with care for memory: a row group at a time, in one process."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()
predict = load_model(model)
answer = pa.schema([(KEY, pa.int64()), ("probability", pa.float64()), ("band", pa.int64())])
for file in sorted(source.glob("*.parquet")):
    reader = pq.ParquetFile(file)
    with pq.ParquetWriter(output / file.name, answer) as writer:
        for group in range(reader.num_row_groups):
            customers = reader.read_row_group(group).to_pandas()
            probability = predict(customers[FEATURES].to_numpy())
            scores = pd.DataFrame({KEY: customers[KEY], "probability": probability, "band": band_of(probability)})
            writer.write_table(pa.Table.from_pandas(scores, answer, preserve_index=False))
