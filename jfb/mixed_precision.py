"""Mixed precision: how far an iteration may run in bfloat16 before it goes on in float32."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jfb.norms import ResidualNorm, residual

ROUNDOFF = 2.0**-8
"""Of bfloat16: an entry is stored with a relative error of at most half of it."""
MARGIN = 4.0
"""How many times above its tolerance, and above what rounding alone moves it, a row's residual must be to go on in bfloat16."""


def size_in(state: Tensor, norm: ResidualNorm) -> Tensor:
    """How large states are in a residual norm, shape ``[n]``; 1 in the relative norm."""
    if norm is ResidualNorm.RELATIVE:
        return torch.ones(state.shape[0], dtype=state.dtype, device=state.device)
    return residual(torch.zeros_like(state), state, norm)


def hands_over(moved: NDArray[np.floating], size: NDArray[np.floating], tolerance: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows must go on in float32, shape ``[n]``.

    Far from the fixed point an iteration forgives rounding: the error of a state is multiplied by γ in every iteration that
    follows, and by Banach's theorem the iteration converges from wherever it is handed over. Near it, the residual cannot
    fall under what rounding moves the state by, about ``ROUNDOFF`` times its size.

    Args:
        moved: residuals of an iteration in bfloat16.
        size: of the states, in the same norm (``size_in``).
        tolerance: of the rows.
    """
    near: NDArray[np.bool_] = ~(moved > MARGIN * np.maximum(tolerance, ROUNDOFF * size))  # so that NaN goes on, and ends there
    return near
