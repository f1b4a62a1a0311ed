"""solve(): find the fixed points of a batch offline, with rows leaving as they converge."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.label_stop import LabelStop, Stability
from jfb.mixed_precision import low_precision_step, needs_full_precision, size_in
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.rows import close_gaps, per_row, to_device
from jfb.solvers import Picard, Solver
from jfb.status import Status


@dataclass(frozen=True)
class Solution:
    """The result of ``solve``, row by row."""

    fixed_point: Tensor
    """``u_k``, shape ``[n, *state_shape]``; not finite where the status is ``diverged``."""
    iterations: Tensor
    """Evaluations of ``step``, int64 ``[n]``, at least 1."""
    residual: Tensor
    """``‖u_k − u_{k−1}‖`` of the last iteration, shape ``[n]``."""
    status: list[Status]
    """n values: ``converged``, ``label_stable``, ``max_iterations`` or ``diverged``."""
    stability: Stability | None = None
    """The margins and bounds of the labels after the last iteration; only with label stops."""


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
    label_stop: LabelStop | None = None,
    low_precision: ImplicitNetwork | None = None,
) -> Solution:
    """Find ``u = step(u, injection)`` for every row, each row stopping by itself (Algorithm 1 of the paper).

    A row stops at its first iteration k whose residual is at or below its tolerance, or at its cap; then it leaves the batch, and
    the others go on without it. With label stops it also stops when its label cannot change any more, which takes a readout in
    every iteration.

    Args:
        network: its ``step`` is called on fewer rows as rows leave.
        injection: ``inject(inputs)``, shape ``[n, ...]``, n at least 0.
        tolerance: ε, positive and finite: a number, or one per row, shape ``[n]``.
        max_iterations: K, at least 1: a number, or one per row, shape ``[n]``.
        residual_norm: the norm of the residual.
        solver: Picard iteration by default.
        start: initial states ``[n, *state_shape]``; ``network.first_state(injection)`` by default.
        label_stop: decides when a label cannot change any more; without it rows do not stop for that.
        low_precision: the same network in bfloat16. Rows start in it, and ``jfb.mixed_precision`` decides when a row goes on in
            full precision, in which every row ends. Not used with label stops, or with solvers that split the map.

    Raises:
        ValueError: for a tolerance or cap out of range or of the wrong shape, for a solver that cannot solve the network, and for
            label stops with a solver that does not support them.
        TypeError: for a network that is not an ``ImplicitNetwork``.
    """
    if not isinstance(network, ImplicitNetwork):
        raise TypeError(f"network: must be an ImplicitNetwork (got {type(network).__name__}); jfb.fixed_point takes any function")
    solver = solver or Picard()
    solver.check(type(network))
    rows = injection.shape[0]
    state = network.first_state(injection) if start is None else start.clone()
    index = torch.arange(rows, device=state.device)
    # Where they are: to look at what is on a GPU is to wait for it.
    tolerance, max_iterations = torch.as_tensor(tolerance, dtype=state.dtype), torch.as_tensor(max_iterations, dtype=index.dtype)
    if not bool(((tolerance > 0) & tolerance.isfinite()).all()):
        raise ValueError(f"tolerance: must be positive finite numbers (got {tolerance.tolist()})")
    if not bool((max_iterations >= 1).all()):
        raise ValueError(f"max_iterations: must be at least 1 (got {max_iterations.tolist()})")
    tolerance = per_row("tolerance", tolerance, rows, like=state)
    max_iterations = per_row("max_iterations", max_iterations, rows, like=index)

    if label_stop is not None and not label_stop.supports(type(solver)):
        raise ValueError(f"solver: must be one of {', '.join(label_stop.solvers)} for label stops (got {type(solver).__name__})")

    fixed_point = torch.empty_like(state)
    iterations = torch.zeros_like(index)
    final_residual = state.new_empty(rows)
    margin, bound = state.new_full((rows,), torch.nan), state.new_full((rows,), torch.nan)

    memory = solver.start(state) | (label_stop.start(state) if label_stop is not None else {})
    in_low_precision = (max_iterations > 1) & (low_precision is not None and label_stop is None and not solver.splits)
    low = in_low_precision.cpu().numpy()
    injection = injection.clone()  # because rows move as others leave
    requested = tolerance.clone()
    k = 0
    while index.numel():
        k += 1
        if low_precision is None or not low.any():
            next_state = solver.evaluate(network, memory, state, injection)
        else:
            next_state = torch.empty_like(state)
            far, near = (to_device(np.flatnonzero(rows), state.device) for rows in (low, ~low))
            next_state[far] = low_precision_step(low_precision, state[far], injection[far])
            next_state[near] = network.step(state[near], injection[near])
        moved = residual(state, next_state, residual_norm)
        ended = ((moved <= tolerance) | (max_iterations <= k) | ~moved.isfinite()) & ~in_low_precision
        if low_precision is not None:
            size = size_in(next_state, residual_norm)
            in_low_precision &= ~needs_full_precision(moved, size, tolerance) & (max_iterations - 1 > k)
        if label_stop is not None:
            stability = label_stop.judge(memory, label_stop.movement(state, next_state), network.readout(next_state))
            ended |= stability.stable
            margin[index], bound[index] = stability.margin, stability.bound
        state = solver.propose(memory, state, next_state)
        # Here the host waits for a GPU, and nowhere else in an iteration.
        ended_on_host, low = torch.stack([ended, in_low_precision]).cpu().numpy()
        if ended_on_host.any():
            rows_ended = to_device(np.flatnonzero(ended_on_host), state.device)
            leaving = index[rows_ended]
            fixed_point[leaving] = next_state[rows_ended]
            iterations[leaving] = k
            final_residual[leaving] = moved[rows_ended]
            names = list(memory)
            state, injection, index, tolerance, max_iterations, in_low_precision, *kept = close_gaps(
                ended_on_host, state, injection, index, tolerance, max_iterations, in_low_precision, *memory.values()
            )
            memory = dict(zip(names, kept, strict=True))
            low = close_gaps(ended_on_host, torch.from_numpy(low))[0].numpy()
    stability = Stability(margin, bound)
    facts = torch.stack([final_residual <= requested, stability.stable, final_residual.isfinite()], 1)
    status = [_status(*of_row) for of_row in facts.tolist()]
    return Solution(fixed_point, iterations, final_residual, status, stability if label_stop is not None else None)


def _status(has_converged: bool, is_stable: bool, is_finite: bool) -> Status:
    if has_converged:
        return Status.CONVERGED
    if is_stable:
        return Status.LABEL_STABLE
    return Status.MAX_ITERATIONS if is_finite else Status.DIVERGED
