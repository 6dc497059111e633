"""The model as MLServer wants it."""

import os

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.workload import load_model


class Live(MLModel):
    async def load(self) -> bool:
        self.model = load_model(os.environ["MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("probability", self.model(rows).reshape(-1, 1))
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
