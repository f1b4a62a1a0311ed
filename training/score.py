"""Score: how well a network answers, and what it costs."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from jfb import ImplicitNetwork, predict
from jfb.config import Serving
from jfb.solvers import SOLVERS
from jfb.status import Status
from training.sources import Split


@dataclass(frozen=True)
class Score:
    """Means over a part of the data."""

    loss: float
    """Cross entropy, without label smoothing."""
    accuracy: float
    """Share that is right, 0 to 1; an input whose iteration diverged is wrong."""
    iterations: float
    converged: float
    """Share whose residual came to the tolerance before the cap."""


def score(network: ImplicitNetwork, part: Split, serving: Serving, device: torch.device, *, batch_size: int = 500) -> Score:
    """Answer a part as a server would: each input stopping by itself, in evaluation mode (which the network is left in)."""
    network.eval()
    loss = right = iterations = converged = 0.0
    for inputs, labels in zip(torch.split(part.inputs, batch_size), torch.split(part.labels.to(device), batch_size), strict=True):
        prediction = predict(
            network,
            inputs.to(device, torch.float32),
            tolerance=serving.tolerance,
            max_iterations=serving.max_iterations,
            residual_norm=serving.residual_norm,
            solver=SOLVERS[serving.solver](),
        )
        logits = prediction.logits
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
        iterations += int(prediction.solution.iterations.sum())
        converged += prediction.solution.status.count(Status.CONVERGED)
    rows = len(part.labels)
    return Score(loss / rows, right / rows, iterations / rows, converged / rows)
