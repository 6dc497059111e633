"""Spark on two cores: `map` is mapInPandas, `udf` an iterator UDF over a struct, the way of MLflow's `spark_udf`."""

import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession, functions

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()


def score(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    predict = load_model(model)
    for customers in batches:
        probability = predict(customers[FEATURES].to_numpy())
        yield pd.DataFrame({KEY: customers[KEY], "probability": probability, "band": band_of(probability)})


def probability(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
    predict = load_model(model)
    for features in batches:
        yield pd.Series(predict(features[FEATURES].to_numpy()))


settings = {
    "spark.driver.memory": "4g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.local.dir": str(output / "_spark"),
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
}
with SparkSession.builder.master("local[2]").config(map=settings).getOrCreate() as spark:
    customers = spark.read.parquet(str(source))
    if sys.argv[4] == "map":
        scores = customers.mapInPandas(score, f"{KEY} long, probability double, band long")
    else:
        applied = functions.pandas_udf(probability, "double")(functions.struct(*FEATURES))
        scores = customers.select(KEY, applied.alias("probability"))
        scores = scores.withColumn(
            "band", functions.least(functions.floor(functions.col("probability") * 10), functions.lit(9)).cast("long")
        )
    scores.write.mode("append").parquet(str(output))
