"""LitServe: batches of so many rows, or none."""

import sys

import litserve
import numpy as np

from benchmarks.workload import load_model

model, port, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Batched(litserve.LitAPI):
    def setup(self, device):
        self.model = load_model(model)

    def decode_request(self, request):
        return np.array(request["row"])

    def batch(self, inputs):
        return np.array(inputs)

    def predict(self, x):
        return self.model(x)

    def unbatch(self, output):
        return output.tolist()

    def encode_response(self, output):
        return {"probability": output}


class Single(litserve.LitAPI):
    def setup(self, device):
        self.model = load_model(model)

    def decode_request(self, request):
        return np.array([request["row"]])

    def predict(self, x):
        return self.model(x)

    def encode_response(self, output):
        return {"probability": float(output[0])}


if __name__ == "__main__":
    api = Batched(max_batch_size=rows, batch_timeout=0.001) if rows > 1 else Single()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
