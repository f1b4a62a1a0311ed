"""Mixed precision: how far an iteration may run in bfloat16 before it goes on in float32."""

from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork
from jfb.norms import residual

Numbers = TypeVar("Numbers", Tensor, NDArray[Any])

ROUNDOFF = 2.0**-8
"""Of bfloat16: an entry is stored with a relative error of at most half of it."""
MARGIN = 4.0
"""How many times above its tolerance, and above what rounding alone moves it, a row's residual must be to go on in bfloat16."""


def size_in(state: Tensor, norm: ResidualNorm) -> Tensor:
    """How large states are in a residual norm, shape ``[n]``; 1 in the relative norm."""
    if norm is ResidualNorm.RELATIVE:
        return torch.ones(state.shape[0], dtype=state.dtype, device=state.device)
    return residual(torch.zeros_like(state), state, norm)


def low_precision_step(network: ImplicitNetwork, state: Tensor, injection: Tensor) -> Tensor:
    """One step in bfloat16 of states in a higher precision.

    Args:
        network: in evaluation mode, cast to bfloat16; best a folded one.
    """
    return network.step(state.bfloat16(), injection.bfloat16()).to(state.dtype)


def needs_full_precision(moved: Numbers, size: Numbers, tolerance: Numbers) -> Numbers:
    """Which rows must go on in float32, Boolean ``[n]``.

    Far from the fixed point an iteration forgives rounding: the error of a state is multiplied by γ in every iteration that
    follows, and by Banach's theorem the iteration converges from wherever it is handed over. Near it, the residual cannot
    fall under what rounding moves the state by, about ``ROUNDOFF`` times its size.

    Args:
        moved: residuals of an iteration in bfloat16, tensor or array.
        size: of the states, in the same norm (``size_in``).
        tolerance: of the rows.
    """
    # Said this way, a row whose residual is NaN is handed over, and ends there.
    near: Numbers = ~((moved > MARGIN * tolerance) & (moved > MARGIN * ROUNDOFF * size))
    return near
