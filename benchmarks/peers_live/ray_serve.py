"""Ray Serve: one replica, batches of so many rows, or none. Its other processes (head node, proxy) count too."""

import signal
import sys

import numpy as np
import ray
from ray import serve

from benchmarks.workload import load_model

model, port, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
QUIET = {"enable_access_log": False}
OPTIONS = {"num_replicas": 1, "max_ongoing_requests": 1_000, "ray_actor_options": {"num_cpus": 0.5}}


@serve.deployment(**OPTIONS, logging_config=QUIET)
class Batched:
    def __init__(self) -> None:
        self.model = load_model(model)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def score(self, waiting):
        return self.model(np.array(waiting)).tolist()

    async def __call__(self, request):
        return {"probability": await self.score((await request.json())["row"])}


@serve.deployment(**OPTIONS, logging_config=QUIET)
class Single:
    def __init__(self) -> None:
        self.model = load_model(model)

    async def __call__(self, request):
        return {"probability": float(self.model(np.array([(await request.json())["row"]]))[0])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
    serve.run((Batched if rows > 1 else Single).bind(), route_prefix="/predict")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    ray.shutdown()
