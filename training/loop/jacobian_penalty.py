"""Jacobian penalty: keeps the map of a network contracting that has no such constraint."""

import torch
from torch import Tensor

from jfb import ImplicitNetwork


def jacobian_penalty(network: ImplicitNetwork, fixed_point: Tensor, injection: Tensor) -> Tensor:
    """Estimate ``‖∂T/∂u‖²_F / d`` at each row's state, with d latent entries (Bai, Koltun, Kolter, ICML 2021, eq. 4).

    One random direction per row (Hutchinson's estimator): unbiased, at the cost of one vector-Jacobian product. Draws from
    torch's generator.

    Args:
        network: whose ``step`` is differentiated.
        fixed_point: shape ``[n, *state_shape]``; not differentiated through.
        injection: shape ``[n, ...]``.

    Returns:
        Shape ``[n]``, differentiable in the weights of ``step``.
    """
    point = fixed_point.detach().requires_grad_()
    next_state = network.step(point, injection)
    (product,) = torch.autograd.grad(next_state, point, torch.randn_like(next_state), create_graph=True)
    return product.square().flatten(1).mean(1)
