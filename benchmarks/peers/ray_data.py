"""Ray Data: a pool of two actors, each with the model, fed with NumPy batches."""

import shutil
import tempfile

import numpy as np
import ray

from benchmarks.workload import FEATURES, KEY, band_of, from_command_line, load_model

model, source, output = from_command_line()


class Scorer:
    def __init__(self) -> None:
        self.predict = load_model(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        probability = self.predict(np.column_stack([batch[feature] for feature in FEATURES]))
        return {KEY: batch[KEY], "probability": probability, "band": band_of(probability)}


folder = tempfile.mkdtemp(prefix="ray-")  # in the system's own: Ray's sockets need a short path
try:
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}  # Ray sets its own otherwise
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=one_thread, _temp_dir=folder)
    pool = ray.data.ActorPoolStrategy(size=2)
    scores = ray.data.read_parquet(str(source)).map_batches(
        Scorer, batch_size=16_384, batch_format="numpy", compute=pool, num_cpus=0.5
    )
    scores.write_parquet(str(output))
    ray.shutdown()
finally:
    shutil.rmtree(folder, ignore_errors=True)
