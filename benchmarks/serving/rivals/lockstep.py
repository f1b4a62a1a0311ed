"""Lockstep batches, which all batching rivals compute: iterate until the slowest row has converged at the strictest tolerance."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import jfb
from jfb import residual

MAX_BATCH_SIZE = 32
BATCH_WAIT_SECONDS = 0.005
"""For a batch to fill; with 64 clients it fills at once, and 32 requests take thirty times as long to compute."""


class Lockstep:
    """The network, called with batches of request bodies ``{"inputs": [one image], "tolerance": number}``."""

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = False  # as in this project's server
        self.device = torch.device(device)
        found = jfb.load(Path(folder), self.device)
        self.network = found.network
        self.classes = found.config.classes
        self.norm = found.config.serving.residual_norm
        self.max_iterations = found.config.serving.max_iterations

    @torch.inference_mode()
    def __call__(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return one prediction per body."""
        tolerance = min(body["tolerance"] for body in bodies)
        inputs = torch.from_numpy(np.concatenate([np.asarray(body["inputs"], np.float32) for body in bodies]))
        injection = self.network.inject(inputs.to(self.device))
        state = self.network.first_state(injection)
        for iterations in range(1, self.max_iterations + 1):  # noqa: B007
            previous, state = state, self.network.step(state, injection)
            moved = residual(previous, state, self.norm)
            if float(moved.max()) <= tolerance:
                break
        return predictions(self.network.readout(state).cpu().numpy(), [iterations] * len(bodies), moved.tolist(), self.classes)


def predictions(logits: np.ndarray, iterations: list[int], moved: list[float], classes: list[str]) -> list[dict[str, Any]]:
    """Return the same fields as this project's server."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    rows = zip(logits.argmax(1).tolist(), (powers / powers.sum(1, keepdims=True)).tolist(), iterations, moved, strict=True)
    return [
        {"label": classes[index], "index": index, "probabilities": row, "iterations": count, "residual": movement}
        for index, row, count, movement in rows
    ]
