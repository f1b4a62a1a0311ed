"""The Jacobian penalty: what keeps a network's map contracting where nothing else does."""

import torch
from torch import Tensor

from jfb import ImplicitNetwork


def jacobian_penalty(network: ImplicitNetwork, fixed_point: Tensor, injection: Tensor) -> Tensor:
    """Estimate ``‖∂T/∂u‖²_F / d`` at each row's state, with d latent entries (Bai, Koltun, Kolter, ICML 2021, eq. 4).

    One random direction a row (Hutchinson's estimator): unbiased, at the cost of one vector-Jacobian product. It draws from
    torch's generator.

    Args:
        network: whose ``step`` is looked at.
        fixed_point: shape ``[n, *state_shape]``; nothing goes back through it.
        injection: shape ``[n, ...]``, with its graph or without.

    Returns:
        Shape ``[n]``, with the graph of the weights of ``step``.
    """
    point = fixed_point.detach().requires_grad_()
    image = network.step(point, injection)
    (product,) = torch.autograd.grad(image, point, torch.randn_like(image), create_graph=True)
    return product.square().flatten(1).mean(1)
