"""Spark on two cores, the model saved by MLflow and applied by `mlflow.pyfunc.spark_udf`, as its documents show it."""

import os
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from pyspark.sql import SparkSession, functions

from benchmarks.workload import FEATURES, KEY, MODEL_FILES, from_command_line, load_model

model, source, output = from_command_line()
os.environ["PYSPARK_PYTHON"] = sys.executable


class Scorer(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.predict_matrix = load_model(model)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> np.ndarray:
        return self.predict_matrix(model_input[FEATURES].to_numpy())


saved = output / "_model"
example = pd.DataFrame([[1.0] * len(FEATURES)] * 3, columns=FEATURES)
signature = mlflow.models.infer_signature(example, np.zeros(3))
files = {"model": str(MODEL_FILES[model])}
mlflow.pyfunc.save_model(saved, python_model=Scorer(), artifacts=files, signature=signature, pip_requirements=["numpy"])
settings = {
    "spark.driver.memory": "4g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.local.dir": str(Path(output, "_spark")),
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
}
with SparkSession.builder.master("local[2]").config(map=settings).getOrCreate() as spark:
    score = mlflow.pyfunc.spark_udf(spark, str(saved), result_type="double", env_manager="local")
    customers = spark.read.parquet(str(source))
    scores = customers.select(KEY, score(functions.struct(*FEATURES)).alias("probability"))
    band = functions.least(functions.floor(functions.col("probability") * 10), functions.lit(9)).cast("long")
    scores.withColumn("band", band).write.mode("append").parquet(str(output))
