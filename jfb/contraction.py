"""Contraction: bounds and measurements of the Lipschitz constant of ``step``."""

import math

import torch
from torch import Tensor
from torch.autograd.functional import jvp, vjp

from jfb.network import ImplicitNetwork
from jfb.norms import row_norms


@torch.no_grad()
def operator_norm_bound(weight: Tensor, *, grid: int = 12, squarings: int = 6) -> Tensor:
    """Bound the L2 operator norm of a linear map from above, tightly.

    A matrix ``[out, in]`` is bounded by Gram iteration (Delattre et al., ICML 2023): ``‖W‖ ≤ ‖(WᴴW)^p‖_F^{1/2p}``, with
    p = 2^squarings, at most a factor ``in^{1/4p}`` too large. A convolution kernel ``[out, in, height, width]`` (stride 1,
    odd sides, zero padding, any image size) is a matrix at every frequency, and a compression of the convolution
    over the infinite plane, so its norm is at most the largest of those matrices' norms. The frequencies are sampled on a
    grid; between its points a trigonometric polynomial of degree ``(side − 1) / 2`` exceeds the samples by at most
    ``1 / cos(π · degree / grid)`` per dimension (Ehlich and Zeller, 1964), which is multiplied in.

    Args:
        weight: the matrix or kernel.
        grid: frequencies per dimension, more than ``side − 1``.
        squarings: number of squarings of the Gram matrix.

    Returns:
        A number (0-dimensional tensor), never less than the norm up to rounding.
    """
    overshoot = 1.0
    if weight.dim() == 2:
        matrices = weight.unsqueeze(0)
    else:
        sides = weight.shape[2:]
        overshoot = math.prod(1 / math.cos(math.pi * (side - 1) / 2 / grid) for side in sides)
        # A real kernel's spectrum is symmetric, so half of the frequencies are enough.
        matrices = torch.fft.rfft2(weight, s=(grid, grid)).permute(2, 3, 0, 1).flatten(0, 1)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mH
    # The Gram matrix is Hermitian: a symmetric real and an antisymmetric imaginary part, which real products square in
    # half the time that complex ones take.
    x, y = (matrices.real, matrices.imag) if matrices.is_complex() else (matrices, torch.zeros_like(matrices))
    real, imaginary = x.mT @ x + y.mT @ y, x.mT @ y
    imaginary = imaginary - imaginary.mT
    log_scale = weight.new_zeros(len(matrices))
    for squaring in range(squarings + 1):
        # gram_true = exp(log_scale) · (real + i · imaginary), kept at Frobenius norm one: no overflow, no vanishing.
        size = (real.square().sum((1, 2)) + imaginary.square().sum((1, 2))).sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
        log_scale = 2 * log_scale + size.log()
        real, imaginary = real / size[:, None, None], imaginary / size[:, None, None]
        if squaring < squarings:
            product = real @ imaginary
            real, imaginary = real @ real - imaginary @ imaginary, product - product.mT
    bound: Tensor = (log_scale / 2 ** (squarings + 1)).exp().amax() * overshoot
    return bound


@torch.no_grad()
def scale_to_unit_norm(weight: Tensor) -> None:
    """Scale a matrix or kernel in place so that its operator norm is at most one; leave it if it already is.

    It runs after every optimiser step, so it uses a coarser bound: a tenth too large, at a third of the cost.
    """
    if not weight.is_meta:  # without values, PyTorch would import its compiler for this: see jfb.architectures.initialisation
        weight.div_(operator_norm_bound(weight, grid=10, squarings=3).clamp_min(1.0))


@torch.no_grad()
def pairwise_distances(weight: Tensor) -> Tensor:
    """Return the L2 distances between a matrix's rows: ``[classes, features]`` to ``[classes, classes]``.

    For a linear readout they are the exact Lipschitz constants of the differences between two logits.
    """
    wide = weight.double()
    distances: Tensor = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").to(weight.dtype)
    return distances


def local_contraction_factor(
    network: ImplicitNetwork, state: Tensor, injection: Tensor, *, iterations: int = 30, seed: int = 0
) -> Tensor:
    """Estimate ``‖∂T/∂u‖₂`` at each row's state, by power iteration on ``JᵀJ``.

    The estimate approaches the norm from below. At fixed points it says how fast errors shrink there; it is no bound on
    the Lipschitz constant elsewhere (``ImplicitNetwork.contraction_bound`` is).

    Args:
        network: in evaluation mode.
        state: shape ``[n, *state_shape]``.
        injection: shape ``[n, ...]``.
        iterations: number of power iterations, at least 1.
        seed: seed of the random start.

    Returns:
        Shape ``[n]``.
    """

    def step(u: Tensor) -> Tensor:
        return network.step(u, injection)

    def unit(v: Tensor) -> Tensor:
        return v / row_norms(v).clamp_min(torch.finfo(v.dtype).tiny).view(-1, *[1] * (v.dim() - 1))

    generator = torch.Generator().manual_seed(seed)
    direction = unit(torch.randn(state.shape, generator=generator, dtype=state.dtype).to(state.device))
    product = torch.zeros_like(state)
    for _ in range(iterations):
        _, product = jvp(step, state.detach(), direction)  # type: ignore[no-untyped-call]
        _, pulled_back = vjp(step, state.detach(), product)  # type: ignore[no-untyped-call]
        direction = unit(pulled_back)
    return row_norms(product)
