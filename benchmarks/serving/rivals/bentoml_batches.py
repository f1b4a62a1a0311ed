"""BentoML with adaptive batching: batches of up to 32, which run until their worst row has ended.

A method that is batched takes one argument, a list, so a body is ``{"questions": [{"inputs": ..., "tolerance": ...}]}``.
"""

import os
import sys
from typing import Any

import bentoml
from pydantic import BaseModel

from benchmarks.serving.rivals.lockstep import LARGEST_BATCH, Lockstep

FOLDER = "SERVING_BENCHMARK_FOLDER"
"""The environment variable that tells BentoML's own process which folder it is."""


class Question(BaseModel):
    """One request."""

    inputs: list[list[list[list[float]]]]
    tolerance: float


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 4096})
class Batches:
    """The whole batch at once."""

    def __init__(self) -> None:
        self.network = Lockstep(os.environ[FOLDER])

    @bentoml.api(batchable=True, max_batch_size=LARGEST_BATCH, max_latency_ms=60_000)
    def predict(self, questions: list[Question]) -> list[dict[str, Any]]:
        return self.network([question.model_dump() for question in questions])


if __name__ == "__main__":
    os.environ |= {FOLDER: sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
    serve = ["-m", "bentoml", "serve", f"{__spec__.name}:Batches", "--port", sys.argv[2], "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve])
