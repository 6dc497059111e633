"""KServe's own server around the model; it batches in a sidecar of its platform, not here."""

import argparse
import os

import kserve
import numpy as np

from benchmarks.workload import load_model


class Live(kserve.Model):
    def __init__(self) -> None:
        super().__init__("live")
        self.model = load_model(os.environ["MODEL"])
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": self.model(np.array(payload["instances"])).tolist()}


if __name__ == "__main__":
    argparse.ArgumentParser(parents=[kserve.model_server.parser]).parse_known_args()
    kserve.ModelServer(enable_grpc=False, enable_latency_logging=False, access_log_format=None).start([Live()])
