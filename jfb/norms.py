"""Residual norms: how far one iteration moved a row."""

from enum import StrEnum

import torch
from torch import Tensor


class ResidualNorm(StrEnum):
    """The three ways to measure ``u_k - u_{k-1}``, each a number per row.

    * ``absolute``: L2 over all latent entries (Algorithm 1 of the paper);
    * ``relative``: that, divided by the L2 norm of ``u_k``; a tolerance means the same for every model;
    * ``channel_max``: largest over positions of the L2 norm over channels (the paper's authors' programs). A state
      without positions has one position.
    """

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    CHANNEL_MAX = "channel_max"


def residual(previous: Tensor, current: Tensor, norm: ResidualNorm) -> Tensor:
    """Measure the movement of each row.

    Args:
        previous: ``u_{k-1}``, shape ``[n, *state_shape]``.
        current: ``u_k``, of the same shape.
        norm: which norm.

    Returns:
        Shape ``[n]``, non-negative; NaN or infinity where an iterate is not finite.
    """
    movement = current - previous
    match norm:
        case ResidualNorm.ABSOLUTE:
            return row_norms(movement)
        case ResidualNorm.RELATIVE:
            size = row_norms(current)
            # An infinite size would turn any finite movement into "converged": such a row has diverged, say NaN.
            size = torch.where(size.isfinite(), size, torch.nan)
            # A state of zeros makes it infinite, which would read as "diverged" though the iterate is finite.
            numbers = torch.finfo(size.dtype)
            return (row_norms(movement) / size.clamp_min(numbers.tiny)).clamp_max(numbers.max)
        case ResidualNorm.CHANNEL_MAX:
            # Not vector_norm(dim=1), which on a CPU takes twenty times as long over a dimension that is not the last.
            return movement.square_().sum(1, keepdim=True).flatten(1).amax(1).sqrt()


def row_norms(rows: Tensor) -> Tensor:
    """The L2 norm of each row over all its entries: ``[n, ...]`` to ``[n]``."""
    # Not of flattened rows: where channels come last in memory, flattening copies, at ten times the cost of the norm.
    norms: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())))
    return norms
