"""Residual norms: how far one iteration moved each row."""

import torch
from torch import Tensor

from jfb.config import ResidualNorm


def residual(previous: Tensor, current: Tensor, norm: ResidualNorm) -> Tensor:
    """Measure the movement of each row.

    Args:
        previous: ``u_{k-1}``, shape ``[n, *state_shape]``.
        current: ``u_k``, of the same shape.
        norm: the norm to measure in.

    Returns:
        Shape ``[n]``, non-negative; NaN or infinity where an iterate is not finite.
    """
    movement = current - previous
    match norm:
        case ResidualNorm.ABSOLUTE:
            return row_norms(movement)
        case ResidualNorm.RELATIVE:
            size = row_norms(current)
            # An infinite size would make any finite movement "converged", although the row has diverged: return NaN.
            size = torch.where(size.isfinite(), size, torch.nan)
            # A state of zeros would give infinity, which means "diverged", although the iterate is finite.
            numbers = torch.finfo(size.dtype)
            return (row_norms(movement) / size.clamp_min(numbers.tiny)).clamp_max(numbers.max)
        case ResidualNorm.CHANNEL_MAX:
            # On a CPU, vector_norm(dim=1) takes twenty times as long over a dimension that is not the last.
            return movement.square_().sum(1, keepdim=True).flatten(1).amax(1).sqrt()
        case ResidualNorm.MAX:
            return movement.abs_().amax(tuple(range(1, movement.dim())))


def row_norms(rows: Tensor) -> Tensor:
    """The L2 norm of each row over all its entries: ``[n, ...]`` to ``[n]``."""
    # Rows are not flattened: with channels last in memory that would copy, at ten times the cost of the norm.
    norms: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())))
    return norms
