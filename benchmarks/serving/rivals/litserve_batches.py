"""LitServe with dynamic batching: batches of up to 32, which iterate until their slowest row has converged.

Arguments: the version's folder and the port; and for a GPU ``cuda`` and the number of HTTP processes, with batches of up to 256.
"""

import sys
from typing import Any

import litserve

from benchmarks.serving.rivals.lockstep import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Lockstep


class Batches(litserve.LitAPI):
    """Computes whole batches."""

    def setup(self, device: str) -> None:
        self.network = Lockstep(sys.argv[1], device)

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
    accelerator = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    processes = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    api = Batches(max_batch_size=MAX_BATCH_SIZE if accelerator == "cpu" else 256, batch_timeout=BATCH_WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, workers_per_device=1, timeout=False)
    server.run(
        port=int(sys.argv[2]), num_api_servers=processes, generate_client_file=False, log_level="warning", access_log=False
    )
