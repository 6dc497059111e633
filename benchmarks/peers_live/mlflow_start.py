"""MLflow: saves the model with its signature, once, and becomes `mlflow models serve` with one worker."""

import os
import sys
from pathlib import Path

from benchmarks.workload import DATA, FEATURES, MODEL_FILES

model, port, folder = sys.argv[1:4]
saved = DATA / f"mlflow-{model}"
if not saved.exists():
    import lightgbm
    import mlflow
    import pandas as pd

    booster = lightgbm.Booster(model_file=MODEL_FILES[model])
    example = pd.DataFrame([[1.0] * len(FEATURES)] * 3, columns=FEATURES)
    signature = mlflow.models.infer_signature(example, booster.predict(example))
    unfinished = Path(folder) / "model"
    mlflow.lightgbm.save_model(booster, unfinished, signature=signature, pip_requirements=["lightgbm", "pandas"])
    unfinished.replace(saved)
options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
os.execv(Path(sys.executable).parent / "mlflow", ["mlflow", "models", "serve", "-m", str(saved), *options])
