"""Dask: two worker processes of one thread, a partition for every row group."""

from functools import cache

import dask
import dask.dataframe as dd
import pandas as pd
from dask.distributed import Client, LocalCluster

from benchmarks.workload import FEATURES, KEY, Predict, band_of, from_command_line, load_model


@cache
def loaded(model: str) -> Predict:
    return load_model(model)


def score(customers: pd.DataFrame, model: str) -> pd.DataFrame:
    probability = loaded(model)(customers[FEATURES].to_numpy())
    return pd.DataFrame({KEY: customers[KEY], "probability": probability, "band": band_of(probability)})


def main() -> None:
    model, source, output = from_command_line()
    dask.config.set(temporary_directory=str(output / "_dask"))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        customers = dd.read_parquet(source, split_row_groups=True)
        columns = {KEY: "int64", "probability": "float64", "band": "int64"}
        scores = customers.map_partitions(score, model, meta=columns)
        scores.to_parquet(output, write_index=False)


if __name__ == "__main__":
    main()
