"""The truncated Neumann series."""

import torch
from torch import Tensor

from jfb.gradients.gradient import Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.solution import Solution


class Neumann(Gradient):
    """Replace ``(I − Jᵀ)⁻¹`` by ``I + Jᵀ + … + (Jᵀ)ᵏ`` (eq. 22 of the paper), ``J = ∂T/∂u`` at the fixed point.

    ``k = 0`` is JFB. The error of the gradient is proportional to γᵏ⁺¹.

    Args:
        terms: k, at least 0; each costs one vector-Jacobian product.
    """

    def __init__(self, terms: int = 5) -> None:
        if terms < 0:
            raise ValueError(f"terms: must be an integer of at least 0 (got {terms})")
        self.terms = terms

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        solution = search(network, injection)
        state = network.step(solution.fixed_point, injection)
        if self.terms and state.requires_grad:
            point = solution.fixed_point.requires_grad_()
            next_state = network.step(point, injection.detach())

            def sum_series(gradient: Tensor) -> Tensor:
                term = total = gradient
                for _ in range(self.terms):
                    (term,) = torch.autograd.grad(next_state, point, term, retain_graph=True)
                    total = total + term
                return total

            state.register_hook(sum_series)  # type: ignore[no-untyped-call]
        return state, solution
