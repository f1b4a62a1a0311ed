"""Back-propagation through every iteration."""

import torch
from torch import Tensor

from jfb.gradients.gradient import Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.solution import Solution


class Unrolled(Gradient):
    """Search first, then iterate again with the graph: each row as many times as in the search.

    The gradient is that of the network with that many layers and tied weights. Memory grows with the number of
    iterations, which implicit networks exist to avoid; use it for comparison.
    """

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        solution = search(network, injection)
        state = network.initial_state(injection)
        iterations = solution.iterations.view(-1, *[1] * (state.dim() - 1))
        for k in range(int(solution.iterations.amax()) if solution.iterations.numel() else 0):
            state = torch.where(iterations > k, network.step(state, injection), state)
        return state, solution
