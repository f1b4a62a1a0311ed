"""predict(): from raw inputs to logits, offline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.label_stop import LabelStop
from jfb.network import ImplicitNetwork
from jfb.solution import Solution, solve
from jfb.solvers import Solver


@dataclass(frozen=True)
class Prediction:
    """Logits ``[n, classes]``, and the solution that they were read from."""

    logits: Tensor
    solution: Solution


@torch.no_grad()
def predict(
    network: ImplicitNetwork,
    inputs: Tensor,
    *,
    tolerance: float | Tensor,
    max_iterations: int | Tensor,
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE,
    solver: Solver | None = None,
    label_stop: LabelStop | None = None,
    low_precision: ImplicitNetwork | None = None,
) -> Prediction:
    """Inject, solve and read out: the same results as the server's, computed offline.

    Args:
        network: in evaluation mode, because otherwise rows are not independent.
        inputs: raw, shape ``[n, *input_shape]``.

    The other arguments and exceptions are those of ``jfb.solve``.
    """
    solution = solve(
        network,
        network.inject(inputs),
        tolerance=tolerance,
        max_iterations=max_iterations,
        residual_norm=residual_norm,
        solver=solver,
        label_stop=label_stop,
        low_precision=low_precision,
    )
    return Prediction(network.readout(solution.fixed_point), solution)
