"""Dask: two worker processes of one thread, a partition for every row group."""

from functools import cache

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
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**settings, local_directory=str(output / "_dask")) as cluster, Client(cluster):
        customers = dd.read_parquet(source, split_row_groups=True)
        columns = {KEY: "int64", "probability": "float64", "band": "int64"}
        scores = customers.map_partitions(score, model, meta=columns)
        scores.to_parquet(output, write_index=False)


if __name__ == "__main__":
    main()
