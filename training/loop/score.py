"""Score: accuracy of a network, and what it costs."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from jfb import ImplicitNetwork, predict
from jfb.config import Serving
from jfb.solvers import SOLVERS
from jfb.status import Status
from training.data import Split


@dataclass(frozen=True)
class Score:
    """Means over the inputs of a part."""

    loss: float
    """Cross entropy, without label smoothing."""
    accuracy: float
    """In [0, 1]; an input whose iteration diverged counts as wrong."""
    iterations: float
    converged: float
    """Fraction whose residual reached the tolerance before the cap."""


def score(network: ImplicitNetwork, part: Split, serving: Serving, device: torch.device, *, batch_size: int = 500) -> Score:
    """Score a part as a server would answer it, each input stopping on its own; leaves the network in evaluation mode."""
    network.eval()
    loss = correct = iterations = converged = 0.0
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
        correct += int(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
        iterations += int(prediction.solution.iterations.sum())
        converged += prediction.solution.status.count(Status.CONVERGED)
    rows = len(part.labels)
    return Score(loss / rows, correct / rows, iterations / rows, converged / rows)
