"""solve(): the offline loop, with rows leaving as they converge."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jfb.network import ImplicitNetwork
from jfb.norms import ResidualNorm, residual
from jfb.rows import close_gaps, per_row
from jfb.solvers import Picard, Solver
from jfb.status import Status


@dataclass(frozen=True)
class Solution:
    """What ``solve`` found, row by row."""

    fixed_point: Tensor
    """``u_k``, shape ``[n, *state_shape]``; not finite where the status is ``diverged``."""
    iterations: Tensor
    """Evaluations of ``step``, int64 ``[n]``, at least 1."""
    residual: Tensor
    """``‖u_k − u_{k−1}‖`` at the end, shape ``[n]``."""
    status: list[Status]
    """``converged``, ``max_iterations`` or ``diverged``, n of them."""


@torch.no_grad()
def solve(
    network: ImplicitNetwork,
    injection: Tensor,
    *,
    tolerance: float | Tensor,
    max_iterations: int | Tensor,
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE,
    solver: Solver | None = None,
    start: Tensor | None = None,
) -> Solution:
    """Find ``u = step(u, injection)`` for every row, each stopping by itself (Algorithm 1 of the paper).

    A row stops at its first iteration k whose residual is at or under its tolerance, or at its cap; then it leaves the
    batch, and the others go on without it.

    Args:
        network: gives ``step``; it is called on fewer rows as rows leave.
        injection: ``inject(inputs)``, shape ``[n, ...]``, n at least 0.
        tolerance: ε, positive and finite: a number, or one per row, shape ``[n]``.
        max_iterations: K, at least 1: a number, or one per row, shape ``[n]``.
        residual_norm: how movement is measured.
        solver: Picard iteration if not given.
        start: first states ``[n, *state_shape]``; ``network.initial_state(injection)`` if not given.

    Raises:
        ValueError: for a tolerance or a cap out of range or of the wrong shape, and for a solver that cannot solve the network.
    """
    solver = solver or Picard()
    solver.check(type(network))
    rows = injection.shape[0]
    point = network.initial_state(injection) if start is None else start.clone()
    index = torch.arange(rows, device=point.device)
    tolerance = per_row("tolerance", tolerance, rows, like=point)
    max_iterations = per_row("max_iterations", max_iterations, rows, like=index)
    if not bool(((tolerance > 0) & tolerance.isfinite()).all()):
        raise ValueError(f"tolerance: expected positive finite numbers, got {tolerance.tolist()}")
    if not bool((max_iterations >= 1).all()):
        raise ValueError(f"max_iterations: expected at least 1, got {max_iterations.tolist()}")

    fixed_point = torch.empty_like(point)
    iterations = torch.zeros_like(index)
    final_residual = point.new_empty(rows)

    memory = solver.start(point)
    injection = injection.clone()  # its rows are moved as others leave
    asked = tolerance.clone()
    k = 0
    while index.numel():
        k += 1
        image = solver.evaluate(network, memory, point, injection)
        moved = residual(point, image, residual_norm)
        ended = (moved <= tolerance) | (max_iterations <= k) | ~moved.isfinite()
        some_ended = bool(ended.any())
        if some_ended:
            leaving = index[ended]
            fixed_point[leaving] = image[ended]
            iterations[leaving] = k
            final_residual[leaving] = moved[ended]
        point = solver.propose(memory, point, image)
        if some_ended:
            names = list(memory)
            point, injection, index, tolerance, max_iterations, *kept = close_gaps(
                ended, point, injection, index, tolerance, max_iterations, *memory.values()
            )
            memory = dict(zip(names, kept, strict=True))
    return Solution(fixed_point, iterations, final_residual, _status(final_residual, asked))


def _status(final_residual: Tensor, tolerance: Tensor) -> list[Status]:
    return [
        Status.CONVERGED if converged else Status.MAX_ITERATIONS if finite else Status.DIVERGED
        for converged, finite in zip((final_residual <= tolerance).tolist(), final_residual.isfinite().tolist(), strict=True)
    ]
