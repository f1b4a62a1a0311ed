"""LitServe with dynamic batching: batches of up to 32, which iterate until their slowest row has converged."""

import sys
from typing import Any

import litserve

from benchmarks.serving.rivals.lockstep import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Lockstep


class Batches(litserve.LitAPI):
    """Computes whole batches."""

    def setup(self, device: str) -> None:
        self.network = Lockstep(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.network(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Batches(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning", access_log=False)
