"""The exact implicit gradient."""

import torch
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.gradients.gradient import Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.solution import Solution


class Jacobian(Gradient):
    """Solve ``(I − Jᵀ) w = dℓ/du`` with ``J = ∂T/∂u`` at the fixed point (eq. 14 of the paper), matrix-free.

    Each row's system is solved by the iteration ``w ← Jᵀw + dℓ/du``, which converges wherever the forward iteration does: a
    matrix and its transpose have the same spectrum.

    Args:
        tolerance: on ``‖w_k − w_{k−1}‖ / ‖w_k‖``, per row; positive.
        max_iterations: largest number of vector-Jacobian products, at least 1.

    Attributes:
        iterations: vector-Jacobian products in the last backward pass.
        residual: largest ``‖w_k − w_{k−1}‖ / ‖w_k‖`` of the last backward pass.
    """

    def __init__(self, tolerance: float = 1e-6, max_iterations: int = 200) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance: must be a positive number (got {tolerance})")
        if max_iterations < 1:
            raise ValueError(f"max_iterations: must be an integer of at least 1 (got {max_iterations})")
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.iterations = 0
        self.residual = 0.0

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        solution = search(network, injection)
        state = network.step(solution.fixed_point, injection)
        if state.requires_grad:
            point = solution.fixed_point.requires_grad_()
            next_state = network.step(point, injection.detach())
            state.register_hook(lambda gradient: self._solve_adjoint(next_state, point, gradient))  # type: ignore[no-untyped-call]
        return state, solution

    def _solve_adjoint(self, next_state: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        adjoint = gradient
        for k in range(1, self.max_iterations + 1):
            (pulled_back,) = torch.autograd.grad(next_state, point, adjoint, retain_graph=True)
            following = pulled_back + gradient
            movement = residual(adjoint, following, ResidualNorm.RELATIVE)
            adjoint = following
            self.iterations = k
            self.residual = float(movement.amax()) if movement.numel() else 0.0
            if self.residual <= self.tolerance:
                break
        return adjoint
