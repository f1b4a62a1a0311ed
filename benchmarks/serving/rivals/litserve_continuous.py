"""LitServe with its ``ContinuousBatchingLoop``, which was made for tokens: rows join and leave between calls of ``step``.

Each call iterates until at least one row has ended, because the loop sleeps 10 ms after a call without outputs.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import litserve
import numpy as np
import torch
from litserve.loops import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus
from torch import Tensor

from benchmarks.serving.rivals.lockstep import MAX_BATCH_SIZE, Lockstep, predictions
from jfb import residual


@dataclass
class Rows:
    """The rows in the batch, in the same order in every list and tensor."""

    ids: list[str] = field(default_factory=list)
    tolerance: Tensor = field(default_factory=lambda: torch.empty(0))
    iterations: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    injection: Tensor | None = None
    state: Tensor | None = None


class Continuous(litserve.LitAPI):
    """Ends each row on its own."""

    def setup(self, device: str) -> None:
        self.network = Lockstep(sys.argv[1])
        self.rows = Rows()
        self.joining: dict[str, dict[str, Any]] = {}

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def encode_response(self, output: dict[str, Any] | str) -> dict[str, Any] | str:
        return output

    def add_request(self, uid: str, request: dict[str, Any]) -> None:
        self.joining[uid] = request

    def has_capacity(self) -> bool:
        return len(self.rows.ids) + len(self.joining) < MAX_BATCH_SIZE

    def has_active_requests(self) -> bool:
        return bool(self.rows.ids or self.joining)

    @torch.inference_mode()
    def step(self, previous: list[Output] | None) -> list[Output]:
        """Admit waiting rows, and iterate until at least one row has ended."""
        rows, network = self.rows, self.network.network
        self._join()
        assert rows.state is not None
        assert rows.injection is not None
        while True:
            previous_state, rows.state = rows.state, network.step(rows.state, rows.injection)
            rows.iterations += 1
            moved = residual(previous_state, rows.state, self.network.norm)
            ended = (moved <= rows.tolerance) | (rows.iterations >= self.network.max_iterations)
            if ended.any():
                break
        logits, classes = network.readout(rows.state[ended]).numpy(), self.network.classes
        results = predictions(logits, rows.iterations[ended].tolist(), moved[ended].tolist(), classes)
        outputs = []
        for place, result in zip(ended.nonzero()[:, 0].tolist(), results, strict=True):
            uid = rows.ids[place]
            outputs += [
                Output(uid, {"predictions": [result]}, LitAPIStatus.OK),
                Output(uid, "", LitAPIStatus.FINISH_STREAMING),
            ]
        kept = ~ended
        rows.ids = [uid for uid, keep in zip(rows.ids, kept.tolist(), strict=True) if keep]
        rows.state, rows.injection = rows.state[kept], rows.injection[kept]
        rows.tolerance, rows.iterations = rows.tolerance[kept], rows.iterations[kept]
        return outputs

    def _join(self) -> None:
        joining, rows, network = list(self.joining.items()), self.rows, self.network.network
        if not joining:
            return
        for uid, _ in joining:
            del self.joining[uid]
        images = np.concatenate([np.asarray(body["inputs"], np.float32) for _, body in joining])
        injection = network.inject(torch.from_numpy(images))
        state = network.first_state(injection)
        rows.ids += [uid for uid, _ in joining]
        rows.tolerance = torch.cat([rows.tolerance, torch.tensor([body["tolerance"] for _, body in joining])])
        rows.iterations = torch.cat([rows.iterations, torch.zeros(len(joining), dtype=torch.int64)])
        rows.injection = injection if rows.injection is None else torch.cat([rows.injection, injection])
        rows.state = state if rows.state is None else torch.cat([rows.state, state])


if __name__ == "__main__":
    api = Continuous(max_batch_size=MAX_BATCH_SIZE, stream=True, loop=ContinuousBatchingLoop())
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning", access_log=False)
