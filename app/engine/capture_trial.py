"""A trial of CUDA graphs: ``python -m app.engine.capture_trial FOLDER DEVICE``, with an ``EngineConfig`` on standard input.

It exits with status 0 if the iterations of the version in the folder can be captured, and compute the same then. An engine runs
it before it captures them itself, because a capture that fails may leave a process unable to use its GPU.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.batch import RunningBatch
from app.engine.device import set_up_torch
from app.engine.graphs import CudaGraphs, eager
from app.engine.loading import iterated, make_batch, make_probe
from app.settings import EngineConfig
from jfb import checkpoint

ITERATIONS = 100  # enough for most rows to have left low precision, in which the two batches may differ
MAX_DIFFERENCE = 1e-3
"""Between logits, in units of the largest if that is over 1: the two batches may have chosen other backends."""


def main(folder: Path, device: torch.device, config: EngineConfig) -> None:
    """Exit with the reason if iterations cannot be captured."""
    set_up_torch(config)
    found = checkpoint.load(folder, device)
    graphs = CudaGraphs(device)
    captured = make_batch(found, folder, device, config, graphs)
    if graphs.failure is not None:
        sys.exit(graphs.failure)
    uncaptured = make_batch(found, folder, device, config, eager)
    if reason := difference(captured, uncaptured, make_probe(found, min(captured.slots, uncaptured.slots))):
        sys.exit(reason)


def difference(captured: RunningBatch, uncaptured: RunningBatch, probe: Tensor) -> str:
    """How the answers of two batches to the same rows differ; empty if they do not."""
    for solver in captured.solvers:
        for rows in sorted({1, len(probe)}):
            found, expected = (_logits(batch, probe[:rows], solver) for batch in (captured, uncaptured))
            largest, size = (float(np.abs(logits).max()) for logits in (found - expected, expected))
            if not largest <= MAX_DIFFERENCE * max(1.0, size) and np.isfinite(size):
                return f"{solver}: logits of {rows} rows differ by {largest:.1e} from those of iterations that are not captured"
    return ""


def _logits(batch: RunningBatch, probe: Tensor, solver: str) -> NDArray[np.floating]:
    """The logits of some rows after some iterations."""
    request = iterated(batch, probe, solver, ITERATIONS)
    if request.failure is not None:
        sys.exit(request.failure)
    return request.logits


if __name__ == "__main__":
    main(Path(sys.argv[1]), torch.device(sys.argv[2]), EngineConfig.model_validate_json(sys.stdin.read()))
