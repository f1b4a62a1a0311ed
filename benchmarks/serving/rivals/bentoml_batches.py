"""BentoML with adaptive batching: batches of up to 32, which iterate until their slowest row has converged.

A batched method takes one argument, a list, so a body is ``{"requests": [{"inputs": ..., "tolerance": ...}]}``.
"""

import os
import sys
from typing import Any

import bentoml
from pydantic import BaseModel

from benchmarks.serving.rivals.lockstep import MAX_BATCH_SIZE, Lockstep

FOLDER = "SERVING_BENCHMARK_FOLDER"
"""Environment variable that passes the version's folder to BentoML's own process."""


class Request(BaseModel):
    """The body of one request."""

    inputs: list[list[list[list[float]]]]
    tolerance: float


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 4096})
class Batches:
    """Computes whole batches."""

    def __init__(self) -> None:
        self.network = Lockstep(os.environ[FOLDER])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=60_000)
    def predict(self, requests: list[Request]) -> list[dict[str, Any]]:
        return self.network([request.model_dump() for request in requests])


if __name__ == "__main__":
    os.environ |= {FOLDER: sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
    serve = ["-m", "bentoml", "serve", f"{__spec__.name}:Batches", "--port", sys.argv[2], "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve])
