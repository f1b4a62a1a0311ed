"""The explicit network of the same parameters."""

import torch
from torch import Tensor

from jfb.gradients.gradient import Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.solution import Solution
from jfb.status import Status


class Explicit(Gradient):
    """One application of ``step`` to the initial state and no fixed point: an ordinary feedforward network.

    The baseline for the value of the fixed point. Serve such a network with a cap of one iteration.
    """

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        start = network.initial_state(injection)
        state = network.step(start, injection)
        moved = residual(start.detach(), state.detach(), search.residual_norm)
        rows = state.shape[0]
        iterations = torch.ones(rows, dtype=torch.int64, device=state.device)
        return state, Solution(state.detach(), iterations, moved, [Status.MAX_ITERATIONS] * rows)
