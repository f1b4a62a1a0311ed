"""Ray Serve with ``@serve.batch``: batches of up to 32, which iterate until their slowest row has converged."""

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.rivals.lockstep import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Lockstep


@serve.deployment(max_ongoing_requests=1024)
class Batches:
    """Computes whole batches."""

    def __init__(self, folder: str) -> None:
        self.network = Lockstep(folder)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def predict(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.network(bodies)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"predictions": [await self.predict(await request.json())]}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Batches.bind(sys.argv[1]), route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.pause()
